"""What is known of the ledger's destination: its feed, whether it went back, and how far its word is trusted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BindParameter, bindparam, exists, func, or_, select

from ingestd.lifecycle import FeedCursor, FeedEnd, Standing

from .. import dialect
from ..row import CONFIRMED, DELIVERED, ON_ITS_WAY, ONE, pieces
from ..schema import delivery, feed_cursor, file, spool, study, trust, verification
from ..schema import destination as destination_table
from ..session import Queryable
from ..values import DestinationStatus

_ID: BindParameter[int] = bindparam("destination_id")
_DESTINATION = select(destination_table).where(destination_table.c.id == _ID)
_CURSOR = select(feed_cursor).where(feed_cursor.c.destination_id == _ID)
_VERIFICATION = select(verification).where(verification.c.destination_id == _ID)
_TRUST = select(trust).where(trust.c.destination_id == _ID)
_AT_DESTINATION = delivery.c.destination_id == _ID
_HAS_COMPARED = exists().where(delivery.c.compared == ONE, _AT_DESTINATION, delivery.c.study_id == study.c.id)
_NEWEST_CONFIRMED = (
    select(delivery.c.id)
    .where(CONFIRMED, _AT_DESTINATION)
    .order_by(delivery.c.confirmed_at.desc(), delivery.c.id.desc())
    .limit(bindparam("limit"))
)
_UNTOLD = (delivery.c.untold_since.is_not(None), _AT_DESTINATION, delivery.c.spool_id == bindparam("spool_id"))
_ANY_UNTOLD = select(delivery.c.id).where(*_UNTOLD).limit(1)
_LOOKS = (CONFIRMED, _AT_DESTINATION, delivery.c.next_check_at.is_not(None))
# Ordered, so that the index of what is to be looked at is taken, not that of all that is confirmed.
_ANY_LOOK = select(delivery.c.id).where(*_LOOKS).order_by(delivery.c.next_check_at).limit(1)
_ANY_MISMATCH = select(delivery.c.id).where(delivery.c.mismatch == ONE, _AT_DESTINATION).limit(1)
_ANY_UNCHECKED = (
    select(delivery.c.id)
    .select_from(DELIVERED)
    .where(*_LOOKS, delivery.c.needs_content_check == 1, file.c.removing_at.is_(None))
    .order_by(delivery.c.next_check_at)
    .limit(1)
)


def _own(ledger: Queryable) -> dict[str, int]:
    return {"destination_id": ledger.destination_id}


def destination(ledger: Queryable) -> DestinationStatus | None:
    """Say where this ledger delivers to, and whether it is sent to."""
    rows = ledger.fetch_cached(_DESTINATION, _own(ledger))
    return destination_of(rows[0]) if rows else None


def destination_of(row: Any) -> DestinationStatus:
    """Give what a row of the table says."""
    return DestinationStatus(
        name=row.name,
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
    row = ledger.fetch_one(_CURSOR, _own(ledger))
    return FeedCursor(version=row.version, since=row.since, sequence=row.sequence) if row else None


def cursor_moved_at(ledger: Queryable) -> datetime | None:
    """Say when the change feed's cursor was put where it is."""
    row = ledger.fetch_one(_CURSOR, _own(ledger))
    return row.moved_at if row else None


def feed_end(ledger: Queryable) -> FeedEnd | None:
    """Say how far the change feed ever went; None where that was never seen."""
    rows = ledger.fetch_cached(_DESTINATION, _own(ledger))
    if not rows or rows[0].highest_sequence is None:
        return None
    return FeedEnd(sequence=rows[0].highest_sequence, at=rows[0].highest_at)


def went_back_at(ledger: Queryable) -> datetime | None:
    """Say since when the server is known to have gone back, while what it may have lost is not settled."""
    rows = ledger.fetch_cached(_DESTINATION, _own(ledger))
    return rows[0].went_back_at if rows else None


def newest_confirmed(ledger: Queryable, *, limit: int = 1) -> list[int]:
    """Give the rows that became CONFIRMED last, of whatever spool."""
    return [row.id for row in ledger.fetch_all(_NEWEST_CONFIRMED, {**_own(ledger), "limit": limit})]


def has_looks(ledger: Queryable) -> bool:
    """Whether a confirmed row is still to be looked at again, of whatever spool."""
    return ledger.fetch_one(_ANY_LOOK, _own(ledger)) is not None


def standing(ledger: Queryable) -> Standing:
    """Say how far this server's word is trusted."""
    rows = ledger.fetch_cached(_VERIFICATION, _own(ledger))
    if not rows:
        return Standing()
    (row,) = rows
    kinds = ledger.fetch_cached(_TRUST, _own(ledger))
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
        some = select(study.c.uid).where(study.c.uid.in_(piece), _HAS_COMPARED)
        found.update(row.uid for row in ledger.fetch_all(some, _own(ledger)))
    return found


def uncompared(
    ledger: Queryable,
    *,
    before: datetime,
    after: datetime | None = None,
    limit: int = 1000,
    spool_id: int | None = None,
) -> list[tuple[int, datetime]]:
    """Say which rows were confirmed without a comparison and have their file in the spool still.

    In the order of the instants, given with them, when they were: those from ``after`` to ``before``. Rows that are
    about to be compared do not count.
    """
    rows = ledger.fetch_all(
        select(delivery.c.id, delivery.c.confirmed_at)
        .select_from(DELIVERED)
        .where(
            CONFIRMED,
            delivery.c.confirmed_at <= before,
            *(() if after is None else (delivery.c.confirmed_at >= after,)),
            dialect.unindexed(file.c.spool_id) == (ledger.spool_id if spool_id is None else spool_id),
            dialect.unindexed(file.c.in_spool) == 1,
            file.c.removing_at.is_(None),
            _AT_DESTINATION,
            dialect.unindexed(delivery.c.compared) == 0,
            delivery.c.needs_content_check == 0,
        )
        .order_by(delivery.c.confirmed_at)
        .limit(limit),
        _own(ledger),
    )
    return [(row.id, row.confirmed_at) for row in rows]


def has_uncompared(ledger: Queryable, *, before: datetime) -> bool:
    """Whether there is such a row in any spool."""
    spools = ledger.fetch_all(select(spool.c.id))
    return any(uncompared(ledger, before=before, limit=1, spool_id=row.id) for row in spools)


def has_mismatched(ledger: Queryable) -> bool:
    """Whether a person has still to settle a file that the server is to blame for, or one is to be compared."""
    return any(ledger.fetch_one(rows, _own(ledger)) is not None for rows in (_ANY_MISMATCH, _ANY_UNCHECKED))


def others_on_their_way(ledger: Queryable, study_uids: Iterable[str]) -> bool:
    """Whether a file of another study than these is still to be proven."""
    these = select(study.c.id).where(study.c.uid.in_(list(study_uids)))
    others = select(delivery.c.id).where(ON_ITS_WAY, _AT_DESTINATION, delivery.c.study_id.not_in(these))
    oldest = others.order_by(delivery.c.admitted_at, delivery.c.id).limit(1)
    return ledger.fetch_one(oldest, _own(ledger)) is not None


def untold(ledger: Queryable, *, longer_than: timedelta, now: datetime) -> tuple[int, str]:
    """Count the rows of which the server could not tell for so long, and give the oldest one's note.

    What seems to be so since a time to come is so since before the clock was set back, and counts.
    """
    own = {**_own(ledger), "spool_id": ledger.spool_id}
    if not ledger.fetch_cached(_ANY_UNTOLD, own):
        return 0, ""
    since = delivery.c.untold_since
    late = (*_UNTOLD, or_(since <= now - longer_than, since > now))
    oldest = ledger.fetch_one(select(delivery.c.note).where(*late).order_by(since).limit(1), own)
    if oldest is None:
        return 0, ""
    return int(ledger.fetch_one(select(func.count().label("rows")).where(*late), own).rows), oldest.note
