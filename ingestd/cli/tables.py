"""Tables for people, by rich; imported by a command when it prints one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .frame import plain

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
    "FAILED": "red",
}
_GAP = " " * 4  # what `padding` leaves between two columns


def console() -> Console:
    """Return a console on stdout; into a pipe it prints without colour and as wide as it takes."""
    import sys

    width = None if sys.stdout.isatty() else 200
    return Console(highlight=False, soft_wrap=False, width=width)


def styled(state: str) -> Text:
    """Return a state's name in its colour."""
    return Text(state, style=STYLES.get(state, ""))


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> Table:
    """Return a table; a heading that ends in ``>`` is a column of numbers."""
    made = Table(
        box=None, title=title or None, title_justify="left", title_style="bold", pad_edge=False, padding=(0, 2)
    )
    for heading in headings:
        number = heading.endswith(">")
        made.add_column(heading.removesuffix(">"), justify="right" if number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(plain(cell)) for cell in row))
    return made


def print_list(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of words that may be long: where it fits, without rich, which takes 0.15 ms for each row."""
    screen = console()
    cells = [[plain(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if sum(widths) + len(_GAP) * (len(widths) - 1) > screen.width or not all(map(str.isascii, chain(*cells))):
        screen.print(table(headings, rows))
        return
    lines = [_GAP.join(map(str.ljust, row, widths)).rstrip() for row in cells]
    screen.print(Text(lines[0], style="bold"))
    screen.file.write("".join(f"{line}\n" for line in lines[1:]))
