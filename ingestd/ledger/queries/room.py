"""What may be given up where the disk is full, and what was: files that only destinations wait for that need not be."""

from __future__ import annotations

from collections.abc import Collection
from heapq import merge
from itertools import islice

from sqlalchemy import and_, bindparam, exists, or_, select

from ingestd.lifecycle import Reason, State

from .. import dialect
from ..row import DELIVERED, NOT_COMPARED, ON_ITS_WAY
from ..schema import delivery, file, state_count
from ..session import Queryable
from .files import IS_IN_DOUBT, OF_FILE, RESTS_ON_AWAY

_IS_WANTED_OTHERWISE = exists().where(
    OF_FILE.c.file_id == file.c.id,
    dialect.unindexed(OF_FILE.c.settled_at).is_(None),
    or_(
        dialect.unindexed(OF_FILE.c.state).not_in([State.PENDING, State.DUPLICATE]),
        and_(dialect.unindexed(OF_FILE.c.state) == State.DUPLICATE, OF_FILE.c.reason != Reason.NOT_COMPARED),
        ~dialect.among(OF_FILE.c.destination_id, "at"),
    ),
)
_OLDEST = (
    select(delivery.c.admitted_at, delivery.c.id, delivery.c.file_id, file.c.size_bytes)
    .select_from(DELIVERED)
    .where(
        delivery.c.destination_id == bindparam("destination_id"),
        dialect.unindexed(delivery.c.spool_id) == bindparam("spool_id"),
        file.c.in_place == 0,
        ~_IS_WANTED_OTHERWISE,
        ~RESTS_ON_AWAY,
        ~IS_IN_DOUBT,
    )
    .order_by(delivery.c.admitted_at, delivery.c.id)
    .limit(bindparam("limit"))
)
# What waits to be sent, and what waits to be compared.
_FIRST = (
    _OLDEST.where(ON_ITS_WAY, dialect.unindexed(delivery.c.state) == State.PENDING),
    _OLDEST.where(NOT_COMPARED),
)
_GIVEN_UP = select(dialect.total(state_count.c.entries).label("entries")).where(
    state_count.c.spool_id == bindparam("spool_id"),
    state_count.c.destination_id == bindparam("destination_id"),
    state_count.c.state == State.FAILED,
    state_count.c.reason == Reason.NO_ROOM,
)


def given_up_first(
    ledger: Queryable,
    *,
    at: Collection[int],
    away: Collection[int] = (),
    unasked: Collection[int] = (),
    size_bytes: int,
    limit: int = 1000,
) -> list[int]:
    """Say which files in the spool nobody waits for but these destinations, the oldest first; so much of them.

    ``away`` and ``unasked`` are as in ``removable``: what these hold would make no room.
    """
    asked = {"spool_id": ledger.spool_id, "at": sorted(at), "away": sorted(away), "unasked": sorted(unasked)}
    asked["limit"] = limit
    # Each destination has its own in order.
    lists = [ledger.fetch_all(first, asked | {"destination_id": each}) for each in at for first in _FIRST]
    found: set[int] = set()
    for row in islice(merge(*lists), limit):
        if size_bytes <= 0:
            break
        if row.file_id not in found:
            found.add(row.file_id)
            size_bytes -= row.size_bytes
    return sorted(found)


def given_up_for_room(ledger: Queryable) -> int:
    """Say how many files were given up at this destination and no person has let go of."""
    (row,) = ledger.fetch_cached(_GIVEN_UP, {"spool_id": ledger.spool_id, "destination_id": ledger.destination_id})
    return row.entries or 0
