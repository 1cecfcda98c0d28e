"""Which files have to be compared with the row that holds their identity, and what that row has to compare with."""

from __future__ import annotations

from sqlalchemy import bindparam, select

from ingestd.lifecycle import State

from .. import dialect
from ..row import DELIVERED, NOT_COMPARED, columns, reach_of
from ..schema import delivery, file
from ..session import Queryable
from ..values import Holder, RowToCompare

_HOLDER = delivery.alias("holder")
_HELD = file.alias("held")
_PLACE = "spool_id path relative_path in_place removing_at digest"
_TO_COMPARE = (
    select(
        *columns("id file_id path relative_path in_place digest"),
        _HOLDER.c.id.label("holder_id"),
        _HOLDER.c.state.label("held_state"),
        *(_HELD.c[name].label(f"held_{name}") for name in _PLACE.split()),
    )
    .select_from(
        DELIVERED.join(_HOLDER, _HOLDER.c.id == delivery.c.holder_id).join(_HELD, _HELD.c.id == _HOLDER.c.file_id)
    )
    .where(
        NOT_COMPARED,
        delivery.c.destination_id == bindparam("destination_id"),
        dialect.unindexed(delivery.c.spool_id) == bindparam("spool_id"),
        delivery.c.id > bindparam("after_id"),
        delivery.c.need.is_(None),
    )
    .order_by(delivery.c.id)
    .limit(bindparam("limit"))
)


def rows_to_compare(ledger: Queryable, *, limit: int, after_id: int = 0) -> list[RowToCompare]:
    """Say, by id, which rows at this destination have to be compared with their holder before they are settled."""
    asked = {
        "destination_id": ledger.destination_id,
        "spool_id": ledger.spool_id,
        "after_id": after_id,
        "limit": limit,
    }
    found = []
    for row in ledger.fetch_cached(_TO_COMPARE, asked):
        spool, in_place = ledger.spool_of(row.held_spool_id), bool(row.held_in_place)
        has_file = row.held_removing_at is None and (in_place or spool is not None)
        place = (spool, row.held_path)
        holder = Holder(
            delivery_id=row.holder_id,
            state=State(row.held_state),
            path=reach_of(*place, in_place=in_place, relative_path=row.held_relative_path) if has_file else None,
            digest=row.held_digest,
        )
        path = reach_of(ledger.spool, row.path, in_place=bool(row.in_place), relative_path=row.relative_path)
        found.append(RowToCompare(delivery_id=row.id, file_id=row.file_id, path=path, digest=row.digest, holder=holder))
    return found
