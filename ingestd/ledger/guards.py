"""What the database itself refuses, whoever writes: moves that the table does not have, and edits of what stays.

Each database says it as a trigger of its own; here stands what is to be said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ingestd.lifecycle import FILE_MOVES, MOVES, State


class Guard(NamedTuple):
    """A trigger: before ``event`` on a row of ``table`` it refuses, in the words of ``why``.

    Where it has ``legal`` moves it refuses the others, each of which is "BEFORE>AFTER" there, between spaces.
    """

    name: str
    table: str
    event: str  # UPDATE, DELETE, or UPDATE OF state
    why: str
    legal: str = ""


def _legal(moves: Mapping[tuple[State | None, State], str]) -> str:
    pairs = {f"{state}>{state}" for state in State} | {f"{b}>{a}" for b, a in moves if b is not None}
    return f" {' '.join(sorted(pairs))} "


GUARDS = (
    Guard("delivery_moves", "delivery", "UPDATE OF state", "no such move", _legal(MOVES)),
    Guard("file_moves", "file", "UPDATE OF state", "no such move", _legal(FILE_MOVES)),
    Guard("history_stays", "history", "UPDATE", "history is append-only"),
    Guard("history_is_kept", "history", "DELETE", "history is append-only"),
    Guard("attempt_is_kept", "attempt", "DELETE", "attempts are append-only"),
    Guard("delivery_is_kept", "delivery", "DELETE", "no row is deleted"),
    Guard("file_is_kept", "file", "DELETE", "no row is deleted"),
)
