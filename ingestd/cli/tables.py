"""Tables for people, by rich; imported by a command when it prints one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
