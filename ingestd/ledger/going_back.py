"""What the server has shown so far, by which one that was restored from an older backup is known."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, literal, or_, update

from ingestd.lifecycle import FeedEnd, State

from .reads import IS_RESTED_ON
from .schema import Instant, destination, instance
from .transaction import Transaction

_TO_BE_THERE = instance.c.state.in_([State.STORED, State.UNCERTAIN, State.CONFIRMED])


def seen_end(tx: Transaction, end: FeedEnd) -> None:
    """Keep how far the change feed went, where it went further than ever before."""
    lower = or_(destination.c.highest_sequence.is_(None), destination.c.highest_sequence <= end.sequence)
    tx.connection.execute(update(destination).where(lower).values(highest_sequence=end.sequence, highest_at=end.at))


def went_back(tx: Transaction, *, to: int | None, end: FeedEnd | None, now: datetime) -> None:
    """Put down that the server has gone back in time, and have everything asked about that it may have lost.

    That is what its feed had shown after the sequence ``to`` (None: it has no feed), what no feed had shown, and
    whatever a kept file rests on. What those entries said holds no more: their sequences are given out again.
    """
    since = (instance.c.seen_sequence > to, instance.c.seen_sequence.is_(None)) if to is not None else ()
    tx.connection.execute(update(instance).where(_TO_BE_THERE, or_(IS_RESTED_ON, *since)).values(next_check_at=now))
    if to is not None:
        nothing = dict.fromkeys(("seen_sequence", "seen_action", "seen_state", "seen_at"))
        tx.connection.execute(update(instance).where(instance.c.seen_sequence > to).values(nothing))
    values = {} if end is None else {"highest_sequence": end.sequence, "highest_at": end.at}
    since_when = func.coalesce(destination.c.went_back_at, literal(now, Instant()))
    tx.connection.execute(update(destination).values(went_back_at=since_when, **values))


def went_back_settled(tx: Transaction) -> None:
    """All that was asked about is settled: files may go again."""
    tx.connection.execute(update(destination).values(went_back_at=None))
