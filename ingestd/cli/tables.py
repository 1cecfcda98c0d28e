"""Tables and text for people, laid out for their terminal; imported by a command when it prints one.

No word is ever broken: what has to be copied whole (a UID, a path, a command between backquotes) stays on one line.
Where a table is too wide for the terminal, its cells fold between words; a column that is too wide even so gets a line
of its own in each row. Into a pipe each row is one line, without colour.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from .output import plain

STYLES = {
    "CONFIRMED": "green",
    "STORED": "cyan",
    "SENDING": "cyan",
    "PENDING": "blue",
    "DUPLICATE": "dim",
    "DISCARDED": "dim",
    "UNCERTAIN": "yellow",
    "DELETED": "yellow",
    "CONFLICT": "magenta",
    "REJECTED": "red",
    "UNROUTED": "red",
    "FAILED": "red",
}
_SGR = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "bold green": "1;32",
    "bold red": "1;31",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}
_GAP = 2
# A last column that leaves at least this much stays beside the others; only its longer words go below.
_LEAST_BESIDE = 20
# A column is not folded into less than this for the sake of another.
_LEAST_FOLDED = 16
_WORDS = re.compile(r"(?:`[^`]*`|\S)+")


class Cell(NamedTuple):
    """A piece of text in a style; ``whole``: it stays on one line, spaces or not."""

    text: str
    style: str = ""
    whole: bool = False


Line = list[tuple[str, str]]  # pieces of text with their styles
Block = Callable[[int | None], Iterator[Line]]  # what to print, laid out for so many columns; None: as many as it takes


def styled(state: str) -> Cell:
    return Cell(state, STYLES.get(state, ""))


def whole(text: object) -> Cell:
    """Return what must not be folded, a path with spaces say."""
    return Cell(plain(text), whole=True)


def show(*blocks: Block) -> None:
    for line in lines_of(blocks):
        sys.stdout.write(f"{line}\n")


def lines_of(blocks: Iterable[Block]) -> Iterator[str]:
    """Lay out for the terminal on stdout, or for a pipe."""
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if on_terminal else None
    in_colour = on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for block in blocks:
        for line in block(width):
            yield _painted(line, in_colour=in_colour)


def _painted(line: Line, *, in_colour: bool) -> str:
    if not in_colour:
        return "".join([text for text, _ in line]).rstrip()
    while line and not line[-1][0].strip():
        line.pop()
    return "".join([f"\x1b[{_SGR[style]}m{text}\x1b[0m" if style else text for text, style in line])


def paragraph(*pieces: str | Cell, lead: str = "") -> Block:
    """Return a paragraph, folded between words; ``lead`` stands before it, and further lines are indented as far."""
    cells = [_cell(piece) for piece in pieces]

    def lay_out(width: int | None) -> Iterator[Line]:
        line: Line = [(lead, "")]
        used = len(lead)
        for cell in cells:
            for word in [cell.text] if cell.whole or width is None else _WORDS.findall(cell.text):
                size = _size(word)
                if len(line) > 1 and width is not None and used + 1 + size > width:
                    yield line
                    line, used = [(" " * len(lead), "")], len(lead)
                elif len(line) > 1:
                    line.append((" ", ""))
                    used += 1
                line.append((word, cell.style))
                used += size
        yield line

    return lay_out


def blank(_width: int | None) -> Iterator[Line]:
    yield []


def facts(pairs: Iterable[tuple[str, object]]) -> Block:
    """Return lines of a name and what it is; what does not fit beside the name stands below it."""
    cells = [(name, _cell(value)) for name, value in pairs]

    def lay_out(width: int | None) -> Iterator[Line]:
        beside = max((len(name) for name, _ in cells), default=0) + _GAP
        for name, value in cells:
            first = name.ljust(beside)
            indent = beside
            if width is not None and _least(value) > width - beside:
                yield [(name, "")] if name else []
                indent = _GAP if _least(value) <= width - _GAP else 0
                first = " " * indent
            for folded in _fold(value, None if width is None else width - indent):
                yield [(first, ""), (folded, value.style)]
                first = " " * indent

    return lay_out


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> Block:
    """Return a table; a heading that ends in ``>`` is a column of numbers."""
    numbers = [heading.endswith(">") for heading in headings]
    head = [Cell(heading.removesuffix(">"), "bold") for heading in headings]
    lines = [head, *([cell if isinstance(cell, Cell) else Cell(plain(cell)) for cell in row] for row in rows)]

    def lay_out(width: int | None) -> Iterator[Line]:
        columns = list(zip(*lines, strict=True))
        natural = [max([len(cell.text) if cell.text.isascii() else _size(cell.text) for cell in of]) for of in columns]
        if title:
            yield from paragraph(Cell(title, "bold"))(width)
        if width is None or sum(natural) + _GAP * (len(natural) - 1) <= width:
            yield from _rows(lines, natural, numbers)
            return
        least = [
            size if is_number else max(min(size, _LEAST_FOLDED), *map(_least, column))
            for size, is_number, column in zip(natural, numbers, columns, strict=True)
        ]
        widths, apart = _divide(natural, least, width)
        for row in lines:
            yield from _row(row, head, widths, apart, numbers, width)

    return lay_out


def _rows(lines: Iterable[Sequence[Cell]], widths: Sequence[int], numbers: Sequence[bool]) -> Iterator[Line]:
    """Give the rows of a table that fits, which may be many: little is done for each."""
    for cells in lines:
        line: Line = []
        for cell, width, is_number in zip(cells, widths, numbers, strict=True):
            text, style, _ = cell
            gap = " " * _GAP if line else ""
            padding = " " * (width - (len(text) if text.isascii() else _size(text)))
            line += [(gap + padding, ""), (text, style)] if is_number else [(gap, ""), (text, style), (padding, "")]
        yield line


def _divide(natural: Sequence[int], least: Sequence[int], width: int) -> tuple[list[int], list[int]]:
    """Give each column its width; the second list names those that get a line of their own."""
    beside, apart, widths = list(range(len(natural))), list[int](), list(least)

    def left(sizes: Sequence[int]) -> int:
        indent = _GAP if 0 in apart else 0
        return width - indent - sum(sizes[column] for column in beside) - _GAP * (len(beside) - 1)

    while left(widths) < 0 and len(beside) > 1:
        widest = max(beside, key=lambda column: widths[column])
        if widest == beside[-1] and left(widths) + widths[widest] >= _LEAST_BESIDE:
            widths[widest] += left(widths)
            break
        beside.remove(widest)
        apart.append(widest)
    for column in sorted(beside, key=lambda column: natural[column] - widths[column]):
        widths[column] += min(max(0, natural[column] - widths[column]), max(0, left(widths)))
    return widths, sorted(apart)


def _row(
    row: Sequence[Cell],
    head: Sequence[Cell],
    widths: Sequence[int],
    apart: Sequence[int],
    numbers: Sequence[bool],
    width: int,
) -> Iterator[Line]:
    margin = _GAP if 0 in apart else 0
    below = [column for column in apart if column and row is not head]
    if 0 in apart:
        yield [(row[0].text, row[0].style)]
    beside = [column for column in range(len(row)) if column not in apart]
    folded: list[list[str]] = []
    for column in beside:
        if row[column].text and _size(row[column].text) > widths[column] < _least(row[column]):
            below.append(column)
            folded.append([""])
        else:
            folded.append(_fold(row[column], widths[column]))
    for number in range(max(map(len, folded))):
        line: Line = [(" " * margin, "")] if margin else []
        for place, column in enumerate(beside):
            piece = folded[place][number] if number < len(folded[place]) else ""
            padding = " " * (widths[column] - _size(piece))
            gap = " " * _GAP if place else ""
            before, after = (padding, "") if numbers[column] else ("", padding)
            line += [(gap + before, ""), (piece, row[column].style), (after, "")]
        yield line
    for column in below:
        yield from _below(row[column], head[column].text, width)


def _below(cell: Cell, name: str, width: int) -> Iterator[Line]:
    if not cell.text:
        return
    indent = 2 * _GAP
    label = f"{name} " if name else ""
    if indent + len(label) + _least(cell) > width:
        label = ""
    if indent + _least(cell) > width:
        indent = 0
    for number, piece in enumerate(_fold(cell, width - indent - len(label))):
        yield [(" " * indent + (label if not number else " " * len(label)), ""), (piece, cell.style)]


def _cell(value: object) -> Cell:
    return value if isinstance(value, Cell) else Cell(plain(value))


def _size(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _least(cell: Cell) -> int:
    """Say how wide the longest piece is that may not be broken."""
    if cell.whole:
        return _size(cell.text)
    return max(map(_size, _WORDS.findall(cell.text)), default=0)


def _fold(cell: Cell, width: int | None) -> list[str]:
    if cell.whole or width is None or _size(cell.text) <= width:
        return [cell.text]
    lines: list[str] = []
    for word in _WORDS.findall(cell.text):
        if lines and _size(lines[-1]) + 1 + _size(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]
