"""What is due, and when: what the daemon asks at every tick, so each of these statements is built once.

Each question is one SELECT, served by an index and fetched whole. What no clock has a part in is remembered until the
ledger changes: with nothing to do, a tick reads nothing but whether somebody wrote. Waits that pace are read by the
``longest`` of whoever asks: what lies further ahead than its kind can reach is due.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Label,
    Select,
    and_,
    bindparam,
    func,
    or_,
    select,
    tuple_,
)

from ingestd.lifecycle import AT_ONCE, Reason, State, StudyQueue, Unproven

from .. import dialect
from ..claims import SERIES_SENT, SOP_SENT
from ..column_types import Instant
from ..counters import queue_of
from ..row import (
    CONFIRMED,
    CONTENT,
    DELIVERED,
    IDENTITY,
    OF_STUDY,
    ON_ITS_WAY,
    PLACE,
    RENDITION,
    ZERO,
    columns,
    content_of,
    content_sent,
    file_columns,
    identity_of,
    path_of,
    pieces,
    place_of,
    reach_of,
    tuple_of,
)
from ..schema import attempt, delivery, file, study, study_sum
from ..session import Queryable
from ..values import OperatorRequest, PendingRead, RequestedRow, RowToRead

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# So many of a line are read at least, however many lines there are.
_OF_A_LINE = 4

_NOW = bindparam("now", type_=Instant())
_LIMIT: BindParameter[int] = bindparam("limit")
_SPOOL: BindParameter[int] = bindparam("spool_id")
_DESTINATION: BindParameter[int] = bindparam("destination_id")
_OWN_STUDY = and_(study_sum.c.destination_id == _DESTINATION, study_sum.c.spool_id == _SPOOL)
_OWN = and_(delivery.c.destination_id == _DESTINATION, delivery.c.spool_id == _SPOOL)
# Confirmed rows of other spools, whose daemons may not run: a drop of ours may wait to hear that one is gone.
_CONFIRMED_ELSEWHERE = and_(CONFIRMED, delivery.c.destination_id == _DESTINATION, delivery.c.spool_id != _SPOOL)

_WAITING = study_sum.c.waiting > ZERO
# In trouble, with a batch out: its end is what such a study waits for.
_FREE = or_(study_sum.c.charged == 0, study_sum.c.in_flight == 0)
# The studies of one line: of one inbox, at one priority.
_LINE = (study_sum.c.priority, study_sum.c.inbox_id)
_IN_LINE = (_WAITING, _OWN_STUDY, *(column == bindparam(column.name) for column in _LINE), _FREE)
_FIRST_LINE = select(*_LINE).where(_WAITING, _OWN_STUDY).order_by(*_LINE).limit(1)
_NEXT_LINE = _FIRST_LINE.where(tuple_(*_LINE) > tuple_(bindparam("priority"), bindparam("inbox_id")))
_SELECT_QUEUES = select(study_sum, study.c.uid).join(study, study.c.id == study_sum.c.study_id)
_DUE = _SELECT_QUEUES.where(*_IN_LINE, study_sum.c.due_at <= _NOW).order_by(study_sum.c.due_at).limit(_LIMIT)
_WAITS_NO_BACKOFF = or_(study_sum.c.next_attempt_at.is_(None), study_sum.c.next_attempt_at <= _NOW)
_DUE_FLUSHED = _SELECT_QUEUES.where(*_IN_LINE, _WAITS_NO_BACKOFF).order_by(study_sum.c.due_at).limit(_LIMIT)
# A wait that lies further ahead than its kind can reach was set by a clock that has been set back since: it is over.
# Each is the far end of an index that nothing but such waits lies at, and the longest backoffs.
_BEYOND_BACKOFF = bindparam("backoff_end", type_=Instant())
_STUDY_BEYOND = (
    study_sum.c.due_at > bindparam("quiet_end", type_=Instant()),
    or_(_WAITS_NO_BACKOFF, study_sum.c.next_attempt_at > _BEYOND_BACKOFF),
)
_DUE_BEYOND = _SELECT_QUEUES.where(*_IN_LINE, *_STUDY_BEYOND).order_by(study_sum.c.due_at).limit(_LIMIT)
_EARLIEST_FLUSHED = (
    select(func.coalesce(study_sum.c.next_attempt_at, study_sum.c.oldest_at).label("at"))
    .where(*_IN_LINE)
    .order_by(study_sum.c.due_at)
    .limit(1)
)


_SINCE = bindparam("since", type_=Instant())


def _ends(
    at: Column[datetime], name: str, *where: ColumnElement[bool], since: tuple[ColumnElement[bool], ...] = ()
) -> tuple[Label[Any], Label[Any]]:
    """Read the first and the last of these instants, as ``first_...`` and ``last_...``: the two ends of an index."""
    first = select(at).where(*where, *since).order_by(at).limit(1)
    last = select(at).where(*where).order_by(at.desc()).limit(1)
    return first.scalar_subquery().label(f"first_{name}"), last.scalar_subquery().label(f"last_{name}")


_TO_WAKE = delivery.c.next_attempt_at.is_not(None)
_TO_CHECK = delivery.c.next_check_at.is_not(None)
_STUDY_ENDS = select(*_ends(study_sum.c.due_at, "due", *_IN_LINE))
_WAKE_ENDS = select(*_ends(delivery.c.next_attempt_at, "wake", _TO_WAKE, _OWN))
_CHECK_ENDS = select(
    *_ends(delivery.c.next_check_at, "check", _TO_CHECK, _OWN, since=(delivery.c.next_check_at >= _SINCE,)),
    *_ends(delivery.c.next_check_at, "look", _TO_CHECK, _CONFIRMED_ELSEWHERE),
)

_UNPROVEN = (
    *columns("id spool_id state reason note path relative_path in_place removing_at first_attempt_at"),
    *columns("last_attempt_at stored_at present_before was_stored resends charged absences attempt_id"),
    *columns("checks seen_sequence seen_action seen_state seen_at needs_content_check next_check_at"),
    *columns("sop_class_uid differs_since untold_since unnamed rendition_id"),
    study.c.uid.label("study_uid"),
    SERIES_SENT.label("series_uid"),
    SOP_SENT.label("sop_uid"),
    *CONTENT,
    *RENDITION,
)
_SELECT_UNPROVEN = select(*_UNPROVEN).select_from(OF_STUDY)
_Read = tuple_of(_UNPROVEN)


def _unproven_whose(whose: ColumnElement[bool]) -> tuple[Select[Any], Select[Any]]:
    """Build what reads the rows to be asked about, and those whose time is beyond reach."""
    at = delivery.c.next_check_at
    due, beyond = (
        _SELECT_UNPROVEN.where(_TO_CHECK, whose, *is_due).order_by(at).limit(_LIMIT)
        for is_due in ((at >= _SINCE, at <= _NOW), (at > bindparam("check_end", type_=Instant()),))
    )
    return due, beyond


_UNPROVEN_OWN, _UNPROVEN_ELSEWHERE = _unproven_whose(_OWN), _unproven_whose(_CONFIRMED_ELSEWHERE)

_NEWEST_STORED = (
    _SELECT_UNPROVEN.where(
        ON_ITS_WAY,
        delivery.c.destination_id == _DESTINATION,
        dialect.unindexed(delivery.c.spool_id) == _SPOOL,
        dialect.unindexed(delivery.c.state) == State.STORED,
    )
    .order_by(delivery.c.admitted_at.desc(), delivery.c.id.desc())
    .limit(1)
)

# What is read again is the file, and is what it was by itself, whatever is sent in its stead.
_TO_READ = (
    select(delivery.c.id, delivery.c.need, file.c.ctime_ns, *PLACE, *IDENTITY, *CONTENT)
    .select_from(DELIVERED.join(study, study.c.id == file.c.study_id))
    .where(delivery.c.need.is_not(None), delivery.c.spool_id == _SPOOL, delivery.c.id > bindparam("after_id"))
    .order_by(delivery.c.id)
    .limit(_LIMIT)
)
_REQUESTED = (
    select(*file_columns("id wish reason"), *PLACE)
    .where(file.c.wish.is_not(None), file.c.spool_id == _SPOOL, file.c.id > bindparam("after_id"))
    .order_by(file.c.id)
    .limit(_LIMIT)
)


_POSTS_OUT = select(func.count().label("out")).where(
    attempt.c.spool_id == _SPOOL,
    attempt.c.destination_id == _DESTINATION,
    attempt.c.finished_at.is_(None),
)


def studies_due(
    ledger: Queryable, *, now: datetime, flush: bool = False, limit: int = 100, at_once: bool = False
) -> list[StudyQueue]:
    """Say which studies are due, some of each inbox at each priority; ``flush`` waits for no quiet.

    Whose turn it is of these is said by ``Turns``. One that is in trouble and has a batch out is not due. ``at_once``:
    only those with something that is sent at once.
    """
    found: dict[str, StudyQueue] = {}
    ends = _far_ends(ledger, now)
    lines = _lines(ledger, at_once=at_once)
    wanted = {**_own(ledger), "now": now, "limit": max(_OF_A_LINE, limit // max(1, len(lines))), **ends}
    for line in lines:
        first, last = _due_ends(ledger, line)
        statements = [_DUE_FLUSHED] if flush else [_DUE] * (first is not None and first <= now)
        statements += [_DUE_BEYOND] * (last is not None and last > ends["quiet_end"])
        for statement in statements:
            rows = ledger.fetch_all(statement, {**wanted, **line})
            for row in rows:
                found[row.uid] = queue_of(row._mapping, row.uid)  # noqa: SLF001 - its public name
    return list(found.values())


def _own(ledger: Queryable) -> dict[str, int]:
    return {"spool_id": ledger.spool_id, "destination_id": ledger.destination_id}


def _far_ends(ledger: Queryable, now: datetime) -> dict[str, datetime]:
    """Say how far ahead of now each kind of wait can lie."""
    longest = ledger.longest
    return {"quiet_end": now + longest.quiet, "backoff_end": now + longest.backoff, "check_end": now + longest.check}


def _lines(ledger: Queryable, *, at_once: bool) -> list[dict[str, int]]:
    # A skip over the index: few lines, many studies.
    lines: list[dict[str, int]] = []
    rows = ledger.fetch_cached(_FIRST_LINE, _own(ledger))
    while rows:
        lines.append({"priority": rows[0].priority, "inbox_id": rows[0].inbox_id})
        rows = ledger.fetch_cached(_NEXT_LINE, {**_own(ledger), **lines[-1]})
    return [line for line in lines if line["priority"] >= AT_ONCE] if at_once else lines


def _due_ends(ledger: Queryable, line: Mapping[str, int]) -> tuple[datetime | None, datetime | None]:
    (ends,) = ledger.fetch_cached(_STUDY_ENDS, {**_own(ledger), **line})
    return ends.first_due, ends.last_due


def posts_out(ledger: Queryable) -> int:
    """Say how many posts are out to the destination, whichever worker of the spool has begun them."""
    (row,) = ledger.fetch_cached(_POSTS_OUT, _own(ledger))
    return int(row.out)


def next_study_at(ledger: Queryable, *, now: datetime, flush: bool = False, at_once: bool = False) -> datetime | None:
    """Say when the next study is due; with ``flush``, when the next backoff of a study ends.

    Studies in trouble with a batch out do not count: its end is what they wait for. ``at_once`` as in ``studies_due``.
    """
    earliest: datetime | None = None
    ends = _far_ends(ledger, now)
    for line in _lines(ledger, at_once=at_once):
        at, last = _due_ends(ledger, line)
        wanted = {**_own(ledger), "now": now, "limit": 1, **line, **ends}
        if last is not None and last > ends["quiet_end"] and ledger.fetch_all(_DUE_BEYOND, wanted):
            return now
        if flush:
            rows = ledger.fetch_cached(_EARLIEST_FLUSHED, {**_own(ledger), **line})
            at = rows[0].at if rows else None
        if at is not None and (earliest is None or at < earliest):
            earliest = at
    return earliest


def next_wake_at(ledger: Queryable, *, now: datetime) -> datetime | None:
    """Say when the next deferred row's time comes."""
    (ends,) = ledger.fetch_cached(_WAKE_ENDS, _own(ledger))
    if ends.last_wake is not None and ends.last_wake > _far_ends(ledger, now)["backoff_end"]:
        return now
    first: datetime | None = ends.first_wake
    return first


def unproven(ledger: Queryable, *, now: datetime, since: datetime = BEGINNING, limit: int = 1000) -> list[Unproven]:
    """Say which rows the server is to be asked about now, the longest due first; none that was due before ``since``.

    Also confirmed rows of other spools, whose daemons may not run: a drop of ours may wait to hear that one is gone.
    """
    (ends,) = ledger.fetch_cached(_CHECK_ENDS, {**_own(ledger), "since": since})
    far = _far_ends(ledger, now)
    found: list[Unproven] = []
    for first, last, (due, beyond) in (
        (ends.first_check, ends.last_check, _UNPROVEN_OWN),
        (ends.first_look, ends.last_look, _UNPROVEN_ELSEWHERE),
    ):
        statements = [due] * (first is not None and first <= now)
        statements += [beyond] * (last is not None and last > far["check_end"])
        for statement in statements:
            wanted = {**_own(ledger), "now": now, "since": since, "limit": limit - len(found), **far}
            found += _unproven(ledger, ledger.fetch_all(statement, wanted))
    return found


def next_check_at(ledger: Queryable, *, now: datetime, since: datetime = BEGINNING) -> datetime | None:
    """Say when the server is to be asked next, about what was not due before ``since``."""
    (ends,) = ledger.fetch_cached(_CHECK_ENDS, {**_own(ledger), "since": since})
    end = _far_ends(ledger, now)["check_end"]
    if any(last is not None and last > end for last in (ends.last_check, ends.last_look)):
        return now
    return min((first for first in (ends.first_check, ends.first_look) if first is not None), default=None)


def newest_stored(ledger: Queryable) -> list[Unproven]:
    """Give the latest of this spool's rows that are STORED, if there is one."""
    return _unproven(ledger, ledger.fetch_all(_NEWEST_STORED, _own(ledger)))


def unproven_rows(ledger: Queryable, delivery_ids: Iterable[int]) -> list[Unproven]:
    """Read these rows as the reconciler sees them, due or not."""
    found: list[Unproven] = []
    for piece in pieces(list(delivery_ids)):
        found += _unproven(ledger, ledger.fetch_all(_SELECT_UNPROVEN.where(delivery.c.id.in_(piece))))
    return found


def _unproven(ledger: Queryable, rows: Iterable[Any]) -> list[Unproven]:
    found: list[Unproven] = []
    for read in rows:
        row = _Read(*read)
        each = Unproven(
            delivery_id=row.id,
            identity=identity_of(row),
            state=State(row.state),
            content=content_sent(row),
            path=_place_of(ledger, row),
            first_attempt_at=row.first_attempt_at,
            last_attempt_at=row.last_attempt_at,
            stored_at=row.stored_at,
            reason=Reason(row.reason) if row.reason else None,
            note=row.note or "",
            present_before=None if row.present_before is None else bool(row.present_before),
            was_stored=bool(row.was_stored),
            resends=row.resends,
            charged=row.charged,
            absences=row.absences,
            attempt_id=row.attempt_id,
            checks=row.checks,
            seen_sequence=row.seen_sequence,
            seen_action=row.seen_action,
            seen_state=row.seen_state,
            seen_at=row.seen_at,
            needs_content_check=bool(row.needs_content_check),
            next_check_at=row.next_check_at,
            sop_class_uid=row.sop_class_uid or "",
            differs_since=row.differs_since,
            untold_since=row.untold_since,
            unnamed=row.unnamed,
            reencoded=row.rendition_id is not None,
        )
        found.append(each)
    return found


def _place_of(ledger: Queryable, row: Any) -> str | None:
    """Say where lies what was sent: the rendition, or the file."""
    is_rendition = row.rendition_id is not None
    if row.removing_at is not None or row.sent_removed_at is not None:
        return None
    if row.in_place and not is_rendition:
        return reach_of(None, row.path, in_place=True, relative_path=row.relative_path)
    spool = ledger.spool_of(row.spool_id)
    return path_of(spool, row.sent_path if is_rendition else row.path) if spool is not None else None


def rows_to_read(ledger: Queryable, *, limit: int = 1000, after_id: int = 0) -> list[RowToRead]:
    """Say which PENDING rows the reader has to look at before they can be sent, by id."""
    rows = ledger.fetch_cached(_TO_READ, {"spool_id": ledger.spool_id, "after_id": after_id, "limit": limit})
    return [
        RowToRead(
            delivery_id=row.id,
            pending_read=PendingRead(row.need),
            inbox=ledger.inbox_of(row.inbox_id),
            relative_path=row.relative_path,
            path=reach_of(ledger.spool, row.path, in_place=bool(row.in_place), relative_path=row.relative_path),
            in_place=bool(row.in_place),
            source=row.source,
            identity=identity_of(row),
            content=content_of(row),
            ctime_ns=row.ctime_ns,
            priority=row.priority,
        )
        for row in rows
    ]


def requested_rows(ledger: Queryable, *, limit: int = 1000, after_id: int = 0) -> list[RequestedRow]:
    """Say which REJECTED rows a person wants admitted, by id."""
    rows = ledger.fetch_cached(_REQUESTED, {"spool_id": ledger.spool_id, "after_id": after_id, "limit": limit})
    return [
        RequestedRow(
            file_id=row.id,
            request=OperatorRequest(row.wish),
            reason=Reason(row.reason),
            **place_of(row, ledger.inbox_of(row.inbox_id)),
        )
        for row in rows
    ]
