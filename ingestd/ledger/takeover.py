"""Duplicates take the place of rows that nobody sends or proves: an interrupted ``send``'s, or a stopped daemon's."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

from sqlalchemy import select

from ingestd.lifecycle import UNCONFIRMED, Reason, State

from . import dialect
from .row import UNASKED, Row, is_not_compared
from .schema import delivery, spool
from .transaction import Transaction


def take_over(tx: Transaction, delivery_ids: Iterable[int], *, hosts: Collection[str], now: datetime) -> int:
    """Let these duplicates be sent in place of what they duplicate, where that waits for one of ``hosts``.

    What is found SENDING, UNCERTAIN or STORED may have arrived: it is posted again, and the server, which is asked
    first or answers that it has it, settles that.
    """
    idle = set(tx.connection.execute(select(spool.c.id).where(spool.c.host.in_(list(hosts)))).scalars())
    taken = 0
    for delivery_id in sorted(set(delivery_ids)):
        # One after the other: of two duplicates of one row the second is found to belong to the first.
        row = tx.row(delivery_id)
        if row is None or row.state is not State.DUPLICATE or row.settled_at or row.removing_at:
            continue
        if row.spool_id != tx.spool_id:
            continue
        holder = tx.row(row.holder_id or 0)
        if (
            holder is None
            or holder.state not in UNCONFIRMED
            or holder.spool_id not in idle
            or holder.spool_id == tx.spool_id
        ):
            continue
        _change_places(tx, row, holder, now)
        taken += 1
    tx.flush()
    return taken


def _change_places(tx: Transaction, row: Row, holder: Row, now: datetime) -> None:
    others = tx.rows_on(
        holder.id, dialect.unindexed(delivery.c.state).in_([State.DUPLICATE, State.CONFLICT]), delivery.c.id != row.id
    )
    reason, has = Reason.SAME_CONTENT, "has the same content"
    # A person decided it about the content.
    replaces = tx.connection.execute(select(delivery.c.replaces).where(delivery.c.id == holder.id)).scalar_one()
    if is_not_compared(row):
        reason, has, replaces = Reason.NOT_COMPARED, "has the same UIDs, in other bytes,", 0
    tx.move(
        holder,
        to=State.DUPLICATE,
        at=now,
        reason=reason,
        note=f"row {row.id} {has} and is sent in its place: nobody runs what would send this one",
        holder_id=row.id,
        **UNASKED,
    )
    tx.move(
        row,
        to=State.PENDING,
        at=now,
        reason=Reason.HOLDER_GONE,
        note=f"row {holder.id}, which holds its identity, waits for what nobody runs",
        holder_id=None,
        replaces=replaces,
    )
    tx.follow(row, others, at=now)
    tx.flush()
