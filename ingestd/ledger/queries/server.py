"""What is known of the destination: its feed, whether it went back in time, and how far its word is trusted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import bindparam, func, literal_column, or_, select

from ingestd.lifecycle import FeedCursor, FeedEnd, Standing, State

from .. import dialect
from ..row import HAS_OWN_FILE, ON_ITS_WAY, ONE, pieces
from ..schema import destination as destination_table
from ..schema import feed_cursor, instance, trust, verification
from ..schema import host as host_table
from ..session import Queryable
from ..values import DestinationStatus

_DESTINATION = select(destination_table)
_COMPARED = instance.c.compared == ONE
_MISMATCH = instance.c.mismatch == ONE
_NEWEST_CONFIRMED = (
    select(instance.c.id)
    .where(instance.c.state == State.CONFIRMED)
    .order_by(instance.c.changed_at.desc(), instance.c.id.desc())
    .limit(1)
)
_VERIFICATION = select(verification).where(verification.c.id == 1)
_TRUST = select(trust)
_ANY_UNTOLD = (
    select(instance.c.id).where(instance.c.untold_since.is_not(None), instance.c.host == bindparam("host")).limit(1)
)
_LOOKS = (
    select(instance.c.id).where(literal_column("state = 'CONFIRMED'"), instance.c.next_check_at.is_not(None)).limit(1)
)


def destination(ledger: Queryable) -> DestinationStatus | None:
    """Say where this ledger delivers to, and whether it is sent to."""
    rows = ledger.fetch_cached(_DESTINATION)
    if not rows:
        return None
    row = rows[0]
    return DestinationStatus(
        url=row.url,
        kind=row.kind,
        paused_until=row.paused_until,
        pause_cause=row.pause_cause,
        pause_note=row.pause_note,
        paused_since=row.paused_since,
        last_ok_at=row.last_ok_at,
    )


def cursor(ledger: Queryable) -> FeedCursor | None:
    """Say how far the change feed was read."""
    row = ledger.fetch_one(select(feed_cursor))
    return FeedCursor(version=row.version, since=row.since, sequence=row.sequence) if row else None


def cursor_moved_at(ledger: Queryable) -> datetime | None:
    """Say when the change feed's cursor was put where it is."""
    row = ledger.fetch_one(select(feed_cursor.c.moved_at))
    return row.moved_at if row else None


def feed_end(ledger: Queryable) -> FeedEnd | None:
    """Say how far the change feed ever went; None where that was never seen."""
    rows = ledger.fetch_cached(_DESTINATION)
    if not rows or rows[0].highest_sequence is None:
        return None
    return FeedEnd(sequence=rows[0].highest_sequence, at=rows[0].highest_at)


def went_back_at(ledger: Queryable) -> datetime | None:
    """Say since when the server is known to have gone back, while what it may have lost is not settled."""
    rows = ledger.fetch_cached(_DESTINATION)
    return rows[0].went_back_at if rows else None


def newest_confirmed(ledger: Queryable) -> int | None:
    """Give the row that became CONFIRMED last, of whatever host."""
    row = ledger.fetch_one(_NEWEST_CONFIRMED)
    return row.id if row else None


def has_looks(ledger: Queryable) -> bool:
    """Whether a confirmed row is still to be looked at again, of whatever host."""
    return ledger.fetch_one(_LOOKS) is not None


def standing(ledger: Queryable) -> Standing:
    """Say how far this server's word is trusted."""
    (row,) = ledger.fetch_cached(_VERIFICATION)
    kinds = ledger.fetch_cached(_TRUST)
    return Standing(
        matched={(kind.transfer_syntax, kind.sop_class_uid): kind.matched for kind in kinds},
        ever_matched=bool(row.ever_matched),
        mismatched_at=row.mismatched_at,
        stopped_at=row.stopped_at,
        studies=tuple(json.loads(row.studies)) if row.studies else (),
        differs=row.differs,
    )


def studies_compared(ledger: Queryable, study_uids: Iterable[str]) -> set[str]:
    """Say of which of these studies an instance was confirmed by a comparison."""
    found: set[str] = set()
    for piece in pieces(list(study_uids)):
        some = select(instance.c.study_uid).distinct().where(_COMPARED, instance.c.study_uid.in_(piece))
        found.update(row.study_uid for row in ledger.fetch_all(some))
    return found


def uncompared(
    ledger: Queryable, *, before: datetime, after: datetime | None = None, limit: int = 1000, host: str | None = None
) -> list[tuple[int, datetime]]:
    """Say which rows, with their instants, were confirmed without a comparison and still have their own file.

    Those confirmed from ``after`` to ``before``, in this order; rows that are about to be compared do not count.
    """
    rows = ledger.fetch_all(
        select(instance.c.id, instance.c.settled_at)
        .where(
            instance.c.settled_at.is_not(None),
            instance.c.removed_at.is_(None),
            instance.c.host == (ledger.host if host is None else host),
            instance.c.settled_at <= before,
            *(() if after is None else (instance.c.settled_at >= after,)),
            HAS_OWN_FILE,
            dialect.unindexed(instance.c.state) == State.CONFIRMED,
            dialect.unindexed(instance.c.compared) == 0,
            instance.c.needs_content_check == 0,
        )
        .order_by(instance.c.settled_at)
        .limit(limit)
    )
    return [(row.id, row.settled_at) for row in rows]


def has_uncompared(ledger: Queryable, *, before: datetime) -> bool:
    """Whether any host has such a row."""
    return any(
        uncompared(ledger, before=before, limit=1, host=row.host) for row in ledger.fetch_all(select(host_table))
    )


def has_mismatched(ledger: Queryable) -> bool:
    """Whether a person has still to settle a file that the server is to blame for, or one is to be compared."""
    mismatched = select(instance.c.id).where(_MISMATCH)
    unchecked = select(instance.c.id).where(
        literal_column("state = 'CONFIRMED'"),
        instance.c.next_check_at.is_not(None),
        instance.c.needs_content_check == 1,
        instance.c.removed_at.is_(None),
    )
    return any(ledger.fetch_one(rows.limit(1)) is not None for rows in (mismatched, unchecked))


def others_on_their_way(ledger: Queryable, study_uids: Iterable[str]) -> bool:
    """Whether a file of another study than these is still to be proven."""
    others = select(instance.c.id).where(ON_ITS_WAY, instance.c.study_uid.not_in(list(study_uids)))
    return ledger.fetch_one(others.limit(1)) is not None


def untold(ledger: Queryable, *, longer_than: timedelta, now: datetime) -> tuple[int, str]:
    """Count the rows of which the server could not tell for so long, and give the oldest one's note.

    What seems to be so since a time to come is so since before the clock was set back, and counts.
    """
    if not ledger.fetch_cached(_ANY_UNTOLD, {"host": ledger.host}):
        return 0, ""
    since = instance.c.untold_since
    late = (since.is_not(None), instance.c.host == ledger.host, or_(since <= now - longer_than, since > now))
    oldest = ledger.fetch_one(select(instance.c.note).where(*late).order_by(instance.c.untold_since).limit(1))
    if oldest is None:
        return 0, ""
    return int(ledger.fetch_one(select(func.count().label("rows")).where(*late)).rows), oldest.note
