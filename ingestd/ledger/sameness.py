"""What a file is at a destination where another delivery holds its identity, as far as the ledger can say."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ingestd.lifecycle import Reason, State


class HasContent(Protocol):
    """A row of a file, as it is by itself and not as it was sent."""

    @property
    def transfer_syntax(self) -> str: ...
    @property
    def digest(self) -> str: ...


class Holds(HasContent, Protocol):
    """A delivery that holds an identity."""

    @property
    def id(self) -> int: ...


class Judgement(NamedTuple):
    """What becomes of a file at a destination, and why."""

    state: State
    reason: Reason | None
    note: str


def same_bytes(one: HasContent, other: HasContent) -> bool:
    return one.digest == other.digest and one.transfer_syntax == other.transfer_syntax


def judge(of: HasContent, holder: Holds | None) -> Judgement:
    """Say what a file is where ``holder`` has its identity; NOT_COMPARED: their bytes differ, and both must be read."""
    if holder is None:
        return Judgement(State.PENDING, None, "")
    row = f"row {holder.id}"
    if same_bytes(of, holder):
        return Judgement(State.DUPLICATE, Reason.SAME_CONTENT, f"{row} has the same content")
    if of.transfer_syntax != holder.transfer_syntax:
        note = f"{row} holds the same UIDs in another encoding, which cannot be compared"
        return Judgement(State.CONFLICT, Reason.OTHER_ENCODING, note)
    note = f"{row} holds the same UIDs in other bytes; whether their content is the same has to be found out"
    return Judgement(State.DUPLICATE, Reason.NOT_COMPARED, note)
