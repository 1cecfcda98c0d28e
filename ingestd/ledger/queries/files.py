"""Which rows the files in inboxes and in the spool belong to, and which of the files are not needed any more.

Each question is about this spool's rows, one SELECT served by an index and fetched whole. A file is given once, however
many deliveries it has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, exists, func, literal_column, or_, select

from ingestd.lifecycle import Reason, State

from .. import dialect
from ..row import CONTENT, DELIVERED, IN_SPOOL, ONE, PLACE, ZERO, content_of, file_columns, pieces, place_of, reach_of
from ..schema import candidate, delivery, file, rendition, spool, study
from ..session import Queryable
from ..values import KeptFile, KnownSource, LeftCandidate, RejectedFile, Removable, Resting, UnremovedSource
from .due import BEGINNING

_OWN: ColumnElement[bool] = file.c.spool_id == bindparam("spool_id")
_WAITS: ColumnElement[bool] = literal_column("delivery.state = 'DUPLICATE' AND delivery.settled_at IS NULL")
_REJECTED: ColumnElement[bool] = literal_column("file.state = 'REJECTED' AND file.removing_at IS NULL")
# Partial indexes say them so, and are used where the statement does.
_SOURCE_LEFT: ColumnElement[bool] = literal_column("file.source_removed = 0 AND file.in_place = 0")
_LIES_THERE: ColumnElement[bool] = literal_column("file.removed_at IS NULL AND file.in_place = 0")
_RENDITION_LIES_THERE: ColumnElement[bool] = literal_column("rendition.removed_at IS NULL")
_BEING_REMOVED: ColumnElement[bool] = literal_column("file.removing_at IS NOT NULL AND file.in_spool = 1")

OF_FILE = delivery.alias("of_file")
# How a file stands: by itself, else as its first delivery does.
_FIRST_DELIVERY = (
    select(OF_FILE.c.state).where(OF_FILE.c.file_id == file.c.id).order_by(OF_FILE.c.destination_id).limit(1)
)
_STATE = func.coalesce(file.c.state, _FIRST_DELIVERY.scalar_subquery()).label("state")

_TAKEN_FROM = (
    select(file.c.id)
    .where(
        file.c.relative_path >= bindparam("first"),
        file.c.relative_path < bindparam("end"),
        file.c.inbox_id == bindparam("inbox_id"),
        file.c.in_place == ZERO,
        file.c.source_removed == 1,
    )
    .limit(1)
)
_KNOWN = (
    *file_columns("id source relative_path in_place source_removed ctime_ns digest meta_digest reason"),
    _STATE,
)

# What is to be looked at again may be the only copy.
_HOLDER = delivery.alias("holder")
_HOLDER_IS_IN_DOUBT = exists().where(
    _HOLDER.c.id == OF_FILE.c.holder_id,
    or_(
        dialect.unindexed(_HOLDER.c.state).not_in([State.CONFIRMED, State.DISCARDED]),
        _HOLDER.c.next_check_at.is_not(None),
    ),
)
_IN_DOUBT = or_(
    and_(dialect.unindexed(OF_FILE.c.state) == State.CONFIRMED, OF_FILE.c.next_check_at.is_not(None)),
    and_(dialect.unindexed(OF_FILE.c.state) == State.DUPLICATE, _HOLDER_IS_IN_DOUBT),
)
# Of those whom nobody asks, nobody's doubt ends: "unasked" is bound to the numbers of these destinations.
IS_IN_DOUBT = exists().where(
    OF_FILE.c.file_id == file.c.id, ~dialect.among(OF_FILE.c.destination_id, "unasked"), _IN_DOUBT
)
_IS_IN_DOUBT_HERE = exists().where(
    OF_FILE.c.file_id == file.c.id, OF_FILE.c.destination_id == bindparam("destination_id"), _IN_DOUBT
)
# What may have to be sent anew to one of these, should it turn out to have lost it.
RESTS_ON_AWAY = exists().where(
    OF_FILE.c.file_id == file.c.id,
    dialect.among(OF_FILE.c.destination_id, "away"),
    dialect.unindexed(OF_FILE.c.state).in_([State.CONFIRMED, State.DUPLICATE]),
)
_UNNEEDED = (_OWN, file.c.unneeded_at.is_not(None), IN_SPOOL, file.c.removing_at.is_(None))
_KEPT_LONGEST = (
    select(file.c.unneeded_at)
    .where(*_UNNEEDED, file.c.unneeded_at >= bindparam("since", type_=file.c.unneeded_at.type))
    .order_by(file.c.unneeded_at)
    .limit(1)
)
_UNNEEDED_AT = select(file.c.unneeded_at).where(_OWN, file.c.unneeded_at.is_not(None), IN_SPOOL)
_REMOVABLE = (
    *file_columns("id inbox_id relative_path source path in_place ctime_ns digest meta_digest size_bytes"),
    *file_columns("removing_at removed_at"),
    select(study.c.uid).where(study.c.id == file.c.study_id).scalar_subquery().label("study_uid"),
    _STATE,
)
_REMOVING = select(*_REMOVABLE).where(_OWN, _BEING_REMOVED).order_by(file.c.id).limit(bindparam("limit"))
_MAY_GO = (
    select(*_REMOVABLE)
    .where(*_UNNEEDED, ~RESTS_ON_AWAY, ~IS_IN_DOUBT)
    .order_by(file.c.unneeded_at)
    .limit(bindparam("limit"))
)
# Of those that might go when it was asked: asked again by whoever writes that they do.
STILL_MAY_GO = select(file.c.id, file.c.in_place).where(
    dialect.among(file.c.id, "ids"),
    dialect.unindexed(file.c.spool_id) == bindparam("spool_id"),
    dialect.unindexed(file.c.unneeded_at).is_not(None),
    dialect.unindexed(file.c.in_spool) == 1,
    file.c.removing_at.is_(None),
    ~IS_IN_DOUBT,
)
_FILES_KNOWN = select(file.c.path).where(dialect.among(file.c.path, "paths"), _LIES_THERE, _OWN)
_RENDITIONS_KNOWN = (
    select(rendition.c.path)
    .join(file, file.c.id == rendition.c.file_id)
    .where(dialect.among(rendition.c.path, "paths"), _RENDITION_LIES_THERE, _OWN)
)
_RENDITIONS = select(rendition).where(dialect.among(rendition.c.file_id, "files"), _RENDITION_LIES_THERE)

_RESTS_ON = delivery.alias("rests_on")
_SETTLED_OF_HOLDER = select(_RESTS_ON.c.settled_at).where(_RESTS_ON.c.id == delivery.c.holder_id).scalar_subquery()
_RESTING = (
    select(
        func.coalesce(delivery.c.holder_id, delivery.c.id).label("id"),
        file.c.unneeded_at,
        func.coalesce(_SETTLED_OF_HOLDER, delivery.c.settled_at).label("confirmed_at"),
    )
    .select_from(DELIVERED)
    .where(
        *_UNNEEDED,
        ~_IS_IN_DOUBT_HERE,
        file.c.unneeded_at <= bindparam("before", type_=file.c.unneeded_at.type),
        delivery.c.destination_id == bindparam("destination_id"),
        dialect.unindexed(delivery.c.state).in_([State.CONFIRMED, State.DUPLICATE]),
    )
    .order_by(file.c.unneeded_at)
    .limit(bindparam("limit"))
)

_HELD = file.alias("held")
_UNREMOVED_SOURCES = (
    select(file.c.id, *PLACE, *CONTENT, file.c.source_ctime_ns, file.c.removing_at)
    .where(_SOURCE_LEFT, _OWN, file.c.id > bindparam("after_id"))
    .order_by(file.c.id)
    .limit(bindparam("limit"))
)
_HELD_PLACE = tuple(_HELD.c[name] for name in ("spool_id", "path", "relative_path", "in_place"))
_WAITING_ELSEWHERE = (
    select(delivery.c.id, delivery.c.reason, spool.c.host, *_HELD_PLACE)
    .select_from(DELIVERED)
    .join(_HOLDER, dialect.unindexed(delivery.c.holder_id) == _HOLDER.c.id)
    .join(_HELD, _HELD.c.id == _HOLDER.c.file_id)
    .join(spool, spool.c.id == _HOLDER.c.spool_id)
    .where(
        _WAITS,
        delivery.c.spool_id == bindparam("spool_id"),
        file.c.removing_at.is_(None),
        dialect.unindexed(_HOLDER.c.spool_id) != bindparam("spool_id"),
        dialect.unindexed(_HOLDER.c.holds) == ONE,
        dialect.unindexed(_HOLDER.c.confirmed_at).is_(None),
    )
    .order_by(delivery.c.id)
    .limit(bindparam("limit"))
)


def left_candidates(ledger: Queryable, *, limit: int = 1000, after_id: int = 0) -> list[LeftCandidate]:
    """Say which files were being read when the process ended, by id."""
    rows = ledger.fetch_all(
        select(candidate)
        .where(candidate.c.spool_id == ledger.spool_id, candidate.c.id > after_id)
        .order_by(candidate.c.id)
        .limit(limit)
    )
    return [
        LeftCandidate(
            candidate_id=row.id,
            inbox=ledger.inbox_of(row.inbox_id),
            relative_path=row.relative_path,
            source=row.source,
            target=row.target,
            tries=row.tries,
        )
        for row in rows
    ]


def known_sources(ledger: Queryable, inbox: str, relative_paths: Iterable[str]) -> dict[str, list[KnownSource]]:
    """Say which rows came from these paths of an inbox; paths without any are absent.

    Not of what stayed in place and was written over before it arrived: what lies there now is no file of such a row.
    """
    found: dict[str, list[KnownSource]] = defaultdict(list)
    inbox_id = ledger.inbox_id(inbox)
    if inbox_id is None:
        return {}
    for piece in pieces(list(relative_paths)):
        here = (file.c.relative_path.in_(piece), file.c.inbox_id == inbox_id)
        rows = ledger.fetch_all(
            select(*_KNOWN).where(*here, or_(file.c.in_place == ZERO, file.c.removing_at.is_(None)))
        )
        for row in rows:
            found[row.relative_path].append(
                KnownSource(
                    file_id=row.id,
                    state=State(row.state),
                    source=row.source,
                    in_place=bool(row.in_place),
                    source_removed=bool(row.source_removed),
                    ctime_ns=row.ctime_ns,
                    digests=None if row.digest is None else (row.meta_digest, row.digest),
                    reason=row.reason,
                )
            )
    return dict(found)


def emptied_by_us(ledger: Queryable, inbox: str, folders: Iterable[str]) -> list[str]:
    """Say out of which of these folders of an inbox files were taken, in their order."""
    inbox_id = ledger.inbox_id(inbox)
    if inbox_id is None:
        return []
    return [folder for folder in folders if ledger.fetch_one(_TAKEN_FROM, _range_of(inbox_id, folder)) is not None]


def _range_of(inbox_id: int, folder: str) -> dict[str, Any]:
    # All that begins with the folder and a slash; a zero is what comes after a slash.
    return {"inbox_id": inbox_id, "first": folder + "/", "end": folder + "0"}


def unremoved_sources(ledger: Queryable, *, after_id: int = 0, limit: int = 1000) -> list[UnremovedSource]:
    """Say which copied sources are still to be removed from their inbox, in the order of their rows."""
    asked = {"spool_id": ledger.spool_id, "after_id": after_id, "limit": limit}
    rows = ledger.fetch_cached(_UNREMOVED_SOURCES, asked)
    return [
        UnremovedSource(
            file_id=row.id,
            inbox=ledger.inbox_of(row.inbox_id),
            relative_path=row.relative_path,
            source=row.source,
            path=row.path if row.removing_at is None else "",
            content=content_of(row) if row.digest is not None else None,
            ctime_ns=row.source_ctime_ns,
        )
        for row in rows
    ]


def paths_known(ledger: Queryable, paths: Sequence[str]) -> set[str]:
    """Say which of these paths in the own spool belong to a file that was not removed yet, or are its rendition's."""
    asked = {"spool_id": ledger.spool_id, "paths": paths}
    return {row.path for statement in (_FILES_KNOWN, _RENDITIONS_KNOWN) for row in ledger.fetch_all(statement, asked)}


def removable(
    ledger: Queryable,
    *,
    before: datetime,
    since: datetime | None = None,
    ahead_of: datetime | None = None,
    away: Collection[int] = (),
    unasked: Collection[int] = (),
    limit: int = 1000,
) -> list[Removable]:
    """Say which files in the spool have not been needed since ``before``, the longest first (G3).

    Before them all those of which it is written that they are being removed, and not that they are: whoever was to do
    it did not end it. Only those that were needed until ``since``: the others were looked through before. What rests on
    one of the destinations ``away`` stays; that a copy is in doubt at one ``unasked`` holds nothing. ``ahead_of`` asks
    instead for those that seem to be needed until a time to come: from before the clock was set.
    """
    own = {"spool_id": ledger.spool_id, "limit": limit}
    may_go = own | {"away": sorted(away), "unasked": sorted(unasked)}
    unneeded_at = file.c.unneeded_at
    rows: list[Any] = []
    if ahead_of is not None:
        rows += ledger.fetch_all(_MAY_GO.where(unneeded_at > ahead_of), may_go)
    else:
        rows += ledger.fetch_cached(_REMOVING, own)
        if len(rows) < limit and _is_any_kept(ledger, before, since):
            wanted = _MAY_GO.where(unneeded_at <= before, *_since(since))
            rows += ledger.fetch_all(wanted, may_go | {"limit": limit - len(rows)})
    renditions = _renditions_of(ledger, rows)
    return [
        Removable(
            file_id=row.id,
            study_uid=row.study_uid or "",
            state=State(row.state),
            inbox=ledger.inbox_of(row.inbox_id),
            relative_path=row.relative_path,
            files=tuple(_kept_files(row, renditions.get(row.id, ()))),
            size_bytes=row.size_bytes,
            is_being_removed=row.removing_at is not None,
        )
        for row in rows
    ]


def unneeded_up_to(ledger: Queryable, *, before: datetime, since: datetime | None = None, files: int) -> datetime:
    """Say up to when so many files stopped being needed, from ``since`` on; ``before`` where there are fewer.

    Where so many did in one instant, that is ``before``, too: whoever goes on from there would not come on.
    """
    if not _is_any_kept(ledger, before, since):
        return before
    passed = _UNNEEDED_AT.where(file.c.unneeded_at <= before, *_since(since)).order_by(file.c.unneeded_at)
    row = ledger.fetch_one(passed.offset(files).limit(1), {"spool_id": ledger.spool_id})
    return before if row is None or row.unneeded_at == since else row.unneeded_at


def resting(ledger: Queryable, *, before: datetime, since: datetime | None = None, limit: int = 1) -> list[Resting]:
    """Say what the first of these files rest on at this server, in the order in which they stopped being needed.

    Those that were not needed before ``since`` already are left out.
    """
    if not _is_any_kept(ledger, before, since):
        return []
    rows = ledger.fetch_all(
        _RESTING.where(*_since(since)),
        {
            "spool_id": ledger.spool_id,
            "destination_id": ledger.destination_id,
            "before": before,
            "limit": limit,
        },
    )
    return [Resting(delivery_id=row.id, settled_at=row.unneeded_at, confirmed_at=row.confirmed_at) for row in rows]


def _since(since: datetime | None) -> tuple[ColumnElement[bool], ...]:
    return () if since is None else (file.c.unneeded_at >= since,)


def _is_any_kept(ledger: Queryable, before: datetime, since: datetime | None) -> bool:
    """Whether any of these files is kept; costs nothing while the ledger is the same."""
    rows = ledger.fetch_cached(_KEPT_LONGEST, {"spool_id": ledger.spool_id, "since": since or BEGINNING})
    return bool(rows) and rows[0].unneeded_at <= before


def _renditions_of(ledger: Queryable, rows: Sequence[Any]) -> Mapping[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for piece in pieces([row.id for row in rows]):
        for each in ledger.fetch_all(_RENDITIONS, {"files": piece}):
            found.setdefault(each.file_id, []).append(each)
    return found


def rejected_files(ledger: Queryable, *, after_id: int = 0, limit: int = 1000) -> list[RejectedFile]:
    """List the files set aside, by id."""
    rows = ledger.fetch_all(
        select(file.c.id, file.c.reason, *PLACE)
        .where(_REJECTED, _OWN, file.c.id > after_id)
        .order_by(file.c.id)
        .limit(limit),
        {"spool_id": ledger.spool_id},
    )
    return [
        RejectedFile(file_id=row.id, reason=Reason(row.reason), **place_of(row, ledger.inbox_of(row.inbox_id)))
        for row in rows
    ]


def waiting_elsewhere(ledger: Queryable, *, limit: int = 500) -> list[tuple[int, str, str | None]]:
    """List duplicates of ours whose holder is another host's, and on its way: their ids, and that host.

    With one that was not compared yet comes the place of the holder's file: while that is there, it may be.
    """
    found: list[tuple[int, str, str | None]] = []
    for row in ledger.fetch_cached(_WAITING_ELSEWHERE, {"spool_id": ledger.spool_id, "limit": limit}):
        spool, in_place = ledger.spool_of(row.spool_id), bool(row.in_place)
        place = None
        if row.reason == Reason.NOT_COMPARED and (in_place or spool is not None):
            place = reach_of(spool, row.path, in_place=in_place, relative_path=row.relative_path)
        found.append((row.id, row.host, place))
    return found


def _kept_files(row: Any, renditions: Iterable[Any]) -> Iterator[KeptFile]:
    if not row.in_place and row.removed_at is None:
        yield KeptFile(
            path=row.path,
            size_bytes=row.source.size_bytes,
            mtime_ns=row.source.mtime_ns,
            ctime_ns=row.ctime_ns,
            digests=None if row.digest is None else (row.meta_digest, row.digest),
        )
    for each in renditions:
        yield KeptFile(
            path=each.path,
            size_bytes=each.size_bytes,
            mtime_ns=None,
            ctime_ns=each.ctime_ns,
            digests=(each.meta_digest, each.digest),
        )
