"""Entries of the ledger, read whole: a delivery with its file, or a file that has none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, case, func, select

from ingestd.lifecycle import Reason, State

from .. import dialect
from ..reports import Entry
from ..row import DELIVERED, FILED, columns, content_of, file_columns, file_of, identity_of, pieces
from ..schema import delivery, file, spool, study
from ..session import Queryable
from ..values import OperatorRequest, PendingRead


def own(name: str) -> ColumnElement[Any]:
    """Give what the delivery says, and what the file does where it has an end of its own."""
    return case((file.c.state.is_not(None), file.c[name]), else_=delivery.c[name])


# Files with their deliveries; an entry has the number of its delivery, where it has one.
ENTRIES = file.outerjoin(delivery, delivery.c.file_id == file.c.id)
NUMBER: ColumnElement[int] = func.coalesce(delivery.c.id, file.c.id)
_WHOLE = select(
    NUMBER.label("id"),
    *(own(name).label(name) for name in ("state", "reason", "note", "admitted_at", "changed_at")),
    *file_columns(
        "spool_id inbox_id relative_path source source_removed path in_place wish priority removing_at removed_at"
    ),
    *file_columns("series_uid sop_uid sop_class_uid transfer_syntax digest meta_digest dataset_offset size_bytes"),
    *file_columns("sha256 modality station notes route"),
    study.c.uid.label("study_uid"),
    *columns("file_id destination_id attempts charged resends need next_attempt_at next_check_at stored_at"),
    *columns("confirmed_at holder_id"),
    *columns("failure_reason warning_reason failed_attributes rendition_id compared"),
)
_DELIVERIES = _WHOLE.select_from(DELIVERED.outerjoin(study, study.c.id == file.c.study_id)).where(
    dialect.among(delivery.c.id, "ids")
)
_FILES = _WHOLE.select_from(FILED.outerjoin(delivery, delivery.c.file_id == file.c.id)).where(
    dialect.among(file.c.id, "ids"), file.c.state.is_not(None)
)


def whole(ledger: Queryable, ids: Sequence[int]) -> list[Entry]:
    """Read these entries, in that order."""
    at_home = {spool_id: (host, path) for spool_id, host, path in homes(ledger)} if ids else {}
    names = {number: name for name, number in ledger.destinations.items()}
    found: dict[int, Entry] = {}
    for piece in pieces(ids):
        for statement in (_DELIVERIES, _FILES):
            for row in ledger.fetch_all(statement, {"ids": piece}):
                inbox, goes_to = ledger.inbox_of(row.inbox_id), names.get(row.destination_id, "")
                found[row.id] = _entry(row, inbox, goes_to, *at_home[row.spool_id])
    return [found[delivery_id] for delivery_id in ids if delivery_id in found]


def homes(ledger: Queryable) -> list[tuple[int, str, Path | None]]:
    """Say which spools there are, of which host each is and where, as it was last opened."""
    rows = ledger.fetch_all(select(spool.c.id, spool.c.host, spool.c.path))
    return [(row.id, row.host, Path(row.path) if row.path else None) for row in rows]


def spools(ledger: Queryable) -> dict[str, Path]:
    """Say where the spool of each host is, as it was last opened."""
    return {host: path for _, host, path in homes(ledger) if path is not None}


def entry(ledger: Queryable, delivery_id: int) -> Entry | None:
    found = whole(ledger, [delivery_id])
    return found[0] if found else None


def _entry(row: Any, inbox_name: str, destination: str, host: str, home: Path | None) -> Entry:
    in_place = bool(row.in_place)
    is_there = row.removing_at is None and (in_place or home is not None)
    return Entry(
        delivery_id=row.id,
        file_id=row.file_id or row.id,
        destination=destination,
        route=row.route,
        host=host,
        state=State(row.state),
        reason=Reason(row.reason) if row.reason else None,
        note=row.note,
        inbox=inbox_name,
        relative_path=row.relative_path,
        path=row.path,
        file=file_of(home, row.path, in_place=in_place) if is_there else None,
        in_place=in_place,
        source=row.source,
        source_removed=bool(row.source_removed),
        identity=None if None in (row.study_uid, row.series_uid, row.sop_uid) else identity_of(row),
        sop_class_uid=row.sop_class_uid or "",
        content=None if row.digest is None else content_of(row),
        sha256=row.sha256 or "",
        modality=row.modality,
        station=row.station,
        notes=tuple(json.loads(row.notes)) if row.notes else (),
        priority=row.priority,
        admitted_at=row.admitted_at,
        changed_at=row.changed_at,
        attempts=row.attempts or 0,
        charged=row.charged or 0,
        resends=row.resends or 0,
        next_attempt_at=row.next_attempt_at,
        next_check_at=row.next_check_at,
        stored_at=row.stored_at,
        confirmed_at=row.confirmed_at,
        removed_at=row.removed_at,
        pending_read=PendingRead(row.need) if row.need else None,
        request=OperatorRequest(row.wish) if row.wish else None,
        holder_id=row.holder_id,
        failure_reason=row.failure_reason,
        warning_reason=row.warning_reason,
        failed_attributes=tuple(json.loads(row.failed_attributes)) if row.failed_attributes else (),
        reencoded=row.rendition_id is not None,
        compared=bool(row.compared),
    )
