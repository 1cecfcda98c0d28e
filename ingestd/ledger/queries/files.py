"""Which rows the files in inboxes and in the spool belong to, and which of the files are not needed any more.

Each question is about this host's rows, one SELECT served by an index and fetched whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, bindparam, exists, func, literal_column, or_, select

from ingestd.lifecycle import Reason, State

from .. import dialect
from ..row import CONTENT, HAS_OWN_FILE, PLACE, ZERO, columns, content_of, pieces, place_of
from ..schema import candidate, instance
from ..session import Queryable
from ..values import KeptFile, KnownSource, LeftCandidate, RejectedFile, Removable, Resting, UnremovedSource

_WAITS: ColumnElement[bool] = literal_column(
    "instance.state = 'DUPLICATE' AND instance.settled_at IS NULL AND instance.removed_at IS NULL"
)
_REJECTED: ColumnElement[bool] = literal_column("state = 'REJECTED'")


_TAKEN_FROM = (
    select(instance.c.id)
    .where(
        instance.c.relative_path >= bindparam("first"),
        instance.c.relative_path < bindparam("end"),
        instance.c.inbox == bindparam("inbox"),
        instance.c.host == bindparam("host"),
        instance.c.in_place == ZERO,
        instance.c.source_removed == 1,
    )
    .limit(1)
)
_KNOWN = (*columns("id state reason source_removed ctime_ns digest meta_digest"), *PLACE)
_HOLDER = instance.alias("holder")
_RESTS_ON = instance.alias("rests_on")
_HOLDER_IS_IN_DOUBT = exists().where(
    _HOLDER.c.id == instance.c.holder_id,
    or_(
        dialect.unindexed(_HOLDER.c.state).not_in([State.CONFIRMED, State.DISCARDED]),
        _HOLDER.c.next_check_at.is_not(None),
    ),
)
_WAITING_ELSEWHERE = (
    select(instance.c.id, _HOLDER.c.host)
    .select_from(instance)
    .join(_HOLDER, literal_column("+instance.holder_id") == _HOLDER.c.id)
    .where(
        _WAITS,
        instance.c.host == bindparam("host"),
        literal_column("+holder.host") != bindparam("host"),
        literal_column("+holder.holds = 1 AND +holder.confirmed_at IS NULL"),
    )
    .order_by(instance.c.id)
    .limit(bindparam("limit"))
)
_KEPT = (instance.c.settled_at.is_not(None), instance.c.removed_at.is_(None), HAS_OWN_FILE)
_KEPT_LONGEST = (
    select(instance.c.settled_at)
    .where(*_KEPT, instance.c.host == bindparam("host"))
    .order_by(instance.c.settled_at)
    .limit(1)
)


def left_candidates(ledger: Queryable, *, limit: int = 1000, after_id: int = 0) -> list[LeftCandidate]:
    """Say which files were being read when the process ended, by id."""
    rows = ledger.fetch_all(
        select(candidate)
        .where(candidate.c.host == ledger.host, candidate.c.id > after_id)
        .order_by(candidate.c.id)
        .limit(limit)
    )
    return [
        LeftCandidate(
            candidate_id=row.id, inbox=row.inbox, relative_path=row.relative_path, source=row.source, tries=row.tries
        )
        for row in rows
    ]


def known_sources(ledger: Queryable, inbox: str, relative_paths: Iterable[str]) -> dict[str, list[KnownSource]]:
    """Say which rows came from these paths of an inbox; paths without any are absent."""
    found: dict[str, list[KnownSource]] = defaultdict(list)
    for piece in pieces(list(relative_paths)):
        rows = ledger.fetch_all(
            select(*_KNOWN).where(
                instance.c.relative_path.in_(piece), instance.c.inbox == inbox, instance.c.host == ledger.host
            )
        )
        for row in rows:
            found[row.relative_path].append(
                KnownSource(
                    entry_id=row.id,
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
    return [folder for folder in folders if ledger.fetch_one(_TAKEN_FROM, _range_of(ledger, inbox, folder)) is not None]


def _range_of(ledger: Queryable, inbox: str, folder: str) -> dict[str, str]:
    # All that begins with the folder and a slash; a zero is what comes after a slash.
    return {"host": ledger.host, "inbox": inbox, "first": folder + "/", "end": folder + "0"}


def unremoved_sources(ledger: Queryable, *, after_id: int = 0, limit: int = 1000) -> list[UnremovedSource]:
    """Say which copied sources are still to be removed from their inbox, in the order of their rows."""
    rows = ledger.fetch_all(
        select(instance.c.id, *PLACE, *CONTENT, instance.c.source_ctime_ns, instance.c.removed_at)
        .where(
            instance.c.source_removed == ZERO,
            instance.c.in_place == ZERO,
            instance.c.host == ledger.host,
            instance.c.id > after_id,
        )
        .order_by(instance.c.id)
        .limit(limit)
    )
    return [
        UnremovedSource(
            entry_id=row.id,
            inbox=row.inbox,
            relative_path=row.relative_path,
            source=row.source,
            path=row.path if row.removed_at is None else "",
            content=content_of(row) if row.digest is not None else None,
            ctime_ns=row.source_ctime_ns,
        )
        for row in rows
    ]


def paths_known(ledger: Queryable, paths: Sequence[str]) -> set[str]:
    """Say which of these paths in the own spool belong to a row that still has its file."""
    known: set[str] = set()
    for piece in pieces(paths):
        known.update(
            row.path
            for row in ledger.fetch_all(
                select(instance.c.path).where(
                    instance.c.path.in_(piece),
                    instance.c.removed_at.is_(None),
                    instance.c.in_place == ZERO,
                    instance.c.host == ledger.host,
                )
            )
        )
        known.update(
            row.reencoded_path
            for row in ledger.fetch_all(
                select(instance.c.reencoded_path).where(
                    instance.c.reencoded_path.is_not(None),
                    instance.c.reencoded_path.in_(piece),
                    instance.c.removed_at.is_(None),
                    instance.c.host == ledger.host,
                )
            )
        )
    return known


def removable(
    ledger: Queryable, *, before: datetime, ahead_of: datetime | None = None, limit: int = 1000
) -> list[Removable]:
    """Say which files in the spool have not been needed since ``before``, the longest first (G3).

    ``ahead_of`` asks instead for those that seem to be needed until a time to come: from before the clock was set.
    """
    settled_at = instance.c.settled_at
    if ahead_of is None and not _is_kept_since(ledger, before):
        return []
    rows = ledger.fetch_all(
        select(
            instance.c.id,
            instance.c.state,
            *PLACE,
            *CONTENT,
            *columns("ctime_ns reencoded_path reencoded_digest reencoded_meta_digest reencoded_size_bytes"),
            *columns("reencoded_ctime_ns"),
        )
        .where(*_may_go(ledger, settled_at <= before if ahead_of is None else settled_at > ahead_of))
        .order_by(instance.c.settled_at)
        .limit(limit)
    )
    return [
        Removable(
            entry_id=row.id,
            state=State(row.state),
            inbox=row.inbox,
            relative_path=row.relative_path,
            files=tuple(_kept_files(row)),
            size_bytes=row.size_bytes,
        )
        for row in rows
    ]


def resting(ledger: Queryable, *, before: datetime, limit: int = 1) -> list[Resting]:
    """Say what the first of these files rest on, in the order in which they stopped being needed."""
    if not _is_kept_since(ledger, before):
        return []
    held = select(_RESTS_ON.c.settled_at).where(_RESTS_ON.c.id == instance.c.holder_id).scalar_subquery()
    since = func.coalesce(held, instance.c.settled_at).label("confirmed_at")
    rows = ledger.fetch_all(
        select(func.coalesce(instance.c.holder_id, instance.c.id).label("id"), instance.c.settled_at, since)
        .where(
            *_may_go(ledger, instance.c.settled_at <= before),
            dialect.unindexed(instance.c.state).in_([State.CONFIRMED, State.DUPLICATE]),
        )
        .order_by(instance.c.settled_at)
        .limit(limit)
    )
    return [Resting(entry_id=row.id, settled_at=row.settled_at, confirmed_at=row.confirmed_at) for row in rows]


def _is_kept_since(ledger: Queryable, before: datetime) -> bool:
    """Whether any file is kept that has not been needed since then; costs nothing while the ledger is the same."""
    rows = ledger.fetch_cached(_KEPT_LONGEST, {"host": ledger.host})
    return bool(rows) and rows[0].settled_at <= before


def _may_go(ledger: Queryable, since: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
    return (
        *_KEPT,
        instance.c.host == ledger.host,
        since,
        # What is to be looked at again may be the only copy.
        or_(dialect.unindexed(instance.c.state) != State.CONFIRMED, instance.c.next_check_at.is_(None)),
        or_(dialect.unindexed(instance.c.state) != State.DUPLICATE, ~_HOLDER_IS_IN_DOUBT),
    )


def rejected_files(ledger: Queryable, *, after_id: int = 0, limit: int = 1000) -> list[RejectedFile]:
    """List the files set aside, by id."""
    rows = ledger.fetch_all(
        select(instance.c.id, instance.c.reason, *PLACE)
        .where(_REJECTED, instance.c.host == ledger.host, instance.c.id > after_id, instance.c.removed_at.is_(None))
        .order_by(instance.c.id)
        .limit(limit)
    )
    return [RejectedFile(entry_id=row.id, reason=Reason(row.reason), **place_of(row)) for row in rows]


def waiting_elsewhere(ledger: Queryable, *, limit: int = 500) -> list[tuple[int, str]]:
    """List duplicates of ours whose holder is another host's, and on its way: their ids, and that host."""
    rows = ledger.fetch_cached(_WAITING_ELSEWHERE, {"host": ledger.host, "limit": limit})
    return [(row.id, row.host) for row in rows]


def _kept_files(row: Any) -> Iterator[KeptFile]:
    if not row.in_place:
        yield KeptFile(
            path=row.path,
            size_bytes=row.source.size_bytes,
            mtime_ns=row.source.mtime_ns,
            ctime_ns=row.ctime_ns,
            digests=None if row.digest is None else (row.meta_digest, row.digest),
        )
    if row.reencoded_path is not None:
        yield KeptFile(
            path=row.reencoded_path,
            size_bytes=row.reencoded_size_bytes,
            mtime_ns=None,
            ctime_ns=row.reencoded_ctime_ns,
            digests=(row.reencoded_meta_digest, row.reencoded_digest),
        )
