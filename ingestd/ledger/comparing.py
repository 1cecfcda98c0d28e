"""Duplicates that may be none: what the comparison of a file with the holder of its identity came to.

Bytes that differ may be one object all the same, and only reading both tells. Until then the file is a DUPLICATE for
the reason NOT_COMPARED: it holds nothing up, keeps its bytes whatever becomes of its holder, and takes its place.
"""

from __future__ import annotations

from datetime import datetime

from ingestd.lifecycle import Reason, Sameness, State

from .admission import look_again_at
from .row import Row, is_not_compared
from .transaction import Transaction
from .values import PendingRead


def compared(
    tx: Transaction, delivery_id: int, *, holder_id: int, sameness: Sameness | None, why: str = "", now: datetime
) -> State | None:
    """Say of a row how it compares with its holder; ``sameness`` None: they cannot be compared, and ``why``.

    None: it has another holder by now, or none, and nothing was changed.
    """
    row = _not_compared(tx, delivery_id)
    if row is None or row.holder_id != holder_id:
        return None
    state, held = State.CONFLICT, f"row {holder_id} holds the same UIDs"
    if sameness is Sameness.SAME:
        state, reason = State.DUPLICATE, Reason.SAME_CONTENT
        note = f"row {holder_id} has the same content, in other bytes"
    elif sameness is None:
        reason, note = Reason.NOT_COMPARABLE, f"{held}, and cannot be compared with: {why}"
    else:
        reason, note = Reason.OTHER_CONTENT, f"{held} with other content"
    tx.move(row, to=state, at=now, reason=reason, note=note)
    if sameness is Sameness.SAME:
        holder = tx.row(holder_id)
        if holder is not None and holder.state is State.CONFIRMED:
            look_again_at(tx, [holder_id], now)
    tx.flush()
    return state


def read_before_comparing(tx: Transaction, delivery_id: int, *, now: datetime) -> None:
    """Have the file of a row read again, which is not what it was any more, or is not there."""
    row = _not_compared(tx, delivery_id)
    if row is not None:
        tx.change(row, to={"need": PendingRead.REREAD}, at=now)
        tx.flush()


def _not_compared(tx: Transaction, delivery_id: int) -> Row | None:
    row = tx.row(delivery_id)
    return row if row is not None and is_not_compared(row) else None
