"""How things stand: counts, alarms, and what happened last; read from counters or off the end of an index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select

from ingestd.lifecycle import FILE_ENDS, Jump, Reason, State, needs_person

from .. import dialect
from ..counters import COUNTS_WAITING
from ..reports import Count, Status
from ..row import ENDED, NOT_COMPARED, ON_ITS_WAY, ZERO, jump_of
from ..schema import alarm, attempt, delivery, destination, file, history, inbox, spool, state_count, study_sum
from ..schema import clock as clock_table
from ..session import Queryable
from ..values import Alarm, ClockLine, DestinationStatus, InboxSummary
from .server import destination_of

# Listed, but nobody is called for it.
CLUTTER = frozenset({Reason.NOT_DICOM, Reason.DICOMDIR})

# A count that is shown as "this many or more" beyond it.
_MANY = 1000


_JUMPS = select(clock_table).where(clock_table.c.by_us != ZERO).order_by(clock_table.c.id.desc())
_JUMPS_SHOWN = 10


def _stretches(jumps: Sequence[Any]) -> Iterator[tuple[ColumnElement[bool], timedelta]]:
    """Cut the rows where a clock was set, and say how far each stretch's times lie from what it shows now."""
    spools = {jump.spool_id for jump in jumps}
    yield delivery.c.spool_id.not_in(spools), timedelta(0)
    for spool_id in spools:
        rows, by = [delivery.c.spool_id == spool_id], timedelta(0)
        for jump in (each for each in jumps if each.spool_id == spool_id):
            yield and_(*rows, delivery.c.file_id > jump.last_file_id), by
            rows = [delivery.c.spool_id == spool_id, delivery.c.file_id <= jump.last_file_id]
            by += timedelta(microseconds=jump.by_us)
        yield and_(*rows), by


def status(ledger: Queryable, *, at: str | None = None) -> Status:
    """Say how things stand, in constant time; with ``at``, what is counted and waits is what is so at this destination.

    Raises KeyError for one that the ledger does not know.
    """
    number = None if at is None else ledger.destinations[at]
    here = () if number is None else (state_count.c.destination_id == number,)
    # Of what left a state by another slot than it came, one alone says less than nothing: of rows, or of bytes alone.
    says_something = or_(state_count.c.entries != 0, state_count.c.size_bytes != 0)
    rows = ledger.fetch_all(select(state_count).where(says_something, *here))
    summed: dict[tuple[str, State, str], list[int]] = {}
    for row in rows:
        sums = summed.setdefault((ledger.inbox_of(row.inbox_id), State(row.state), row.reason), [0, 0])
        sums[0] += row.entries
        sums[1] += row.size_bytes
    by_reason = tuple(
        Count(inbox=name, state=state, reason=reason, rows=entries, size_bytes=size)
        for (name, state, reason), (entries, size) in sorted(summed.items())
        if entries > 0
    )
    states = dict.fromkeys(State, 0)
    for count in by_reason:
        states[count.state] += count.rows
    troubled = [count for count in by_reason if needs_person(count.state, count.reason)]
    clutter = sum(count.rows for count in troubled if count.state is State.REJECTED and count.reason in CLUTTER)
    inboxes = _inboxes(ledger)
    known = destinations(ledger)
    waiting = [each.oldest_unconfirmed_at for each in known if at in (None, each.name)]
    waiting += [each.oldest_at for each in inboxes if at is None]
    return Status(
        states=states,
        counts=by_reason,
        needs_person=sum(count.rows for count in troubled) - clutter,
        clutter=clutter,
        oldest_unconfirmed_at=min((at for at in waiting if at is not None), default=None),
        oldest_needs_person_at=_oldest_needs_person_at(
            ledger, {count.state for count in troubled if count.reason not in CLUTTER}, at=number
        ),
        studies_waiting=_studies_waiting(ledger, at=number),
        destinations=known,
        inboxes=inboxes,
        alarms=alarms(ledger),
        jumps=_jumps(ledger),
    )


def counts(ledger: Queryable, *, destination_id: int | None = None) -> dict[State, int]:
    """Say how many rows are in each state, at all destinations or at this one; every state is there."""
    here = () if destination_id is None else (state_count.c.destination_id == destination_id,)
    entries = dialect.total(state_count.c.entries).label("entries")
    rows = ledger.fetch_all(select(state_count.c.state, entries).where(*here).group_by(state_count.c.state))
    found = {row.state: int(row.entries) for row in rows}
    return {state: found.get(state.value, 0) for state in State}


def destinations(ledger: Queryable) -> tuple[DestinationStatus, ...]:
    """Say of each destination that the ledger knows whether it is sent to, and what waits there."""
    waiting = {
        row.destination_id: row
        for row in ledger.fetch_all(
            select(
                state_count.c.destination_id,
                dialect.total(state_count.c.entries).label("entries"),
                dialect.total(state_count.c.size_bytes).label("size_bytes"),
            )
            .where(COUNTS_WAITING)
            .group_by(state_count.c.destination_id)
        )
    }
    found = []
    for row in ledger.fetch_all(select(destination).order_by(destination.c.id)):
        stands = destination_of(row)
        if (sums := waiting.get(row.id)) is not None and sums.entries:
            stands = replace(
                stands,
                unconfirmed=int(sums.entries),
                unconfirmed_bytes=int(sums.size_bytes),
                oldest_unconfirmed_at=oldest_unconfirmed_at(ledger, at=row.id),
            )
        found.append(stands)
    return tuple(found)


def oldest_unconfirmed_at(ledger: Queryable, *, at: int) -> datetime | None:
    """Say since when the oldest file that waits for a destination has been in the ledger, by today's clock."""
    here = select(delivery.c.admitted_at).where(delivery.c.destination_id == at).limit(1)
    oldest = [
        here.where(waits).order_by(order)
        for waits, order in ((ON_ITS_WAY, delivery.c.admitted_at), (NOT_COMPARED, delivery.c.id))
    ]
    found = [row.admitted_at for each in oldest if (row := ledger.fetch_one(each)) is not None]
    jumps = ledger.fetch_cached(_JUMPS) if found else []
    if jumps:
        each_in = [(ledger.fetch_one(each.where(rows)), by) for rows, by in _stretches(jumps) for each in oldest]
        found = [row.admitted_at + by for row, by in each_in if row is not None]
    return min(found, default=None)


def _oldest_needs_person_at(ledger: Queryable, states: Iterable[State], *, at: int | None) -> datetime | None:
    # State by state: the indexes over them are in the order of time within each. Clutter is passed over row by row, but
    # not where the counts have nothing else.
    passed_over = CLUTTER | {Reason.DROPPED_AGAIN}
    everywhere = ledger.destinations.values() if at is None else [at]
    at_each = [(delivery, (ENDED, delivery.c.destination_id == number)) for number in everywhere]
    oldest = [
        ledger.fetch_one(
            select(table.c.changed_at)
            .where(table.c.state == state, *where, table.c.reason.not_in(passed_over))
            .order_by(table.c.changed_at)
            .limit(1)
        )
        for state in states
        for table, where in ([(file, ())] if state in FILE_ENDS else at_each)
    ]
    return min((row.changed_at for row in oldest if row is not None), default=None)


def alarms(ledger: Queryable, *, but_of: str = "") -> tuple[Alarm, ...]:
    """Say what keeps files from being confirmed or removed, of all hosts but one, the oldest first.

    What several workers of a spool have met with is one.
    """
    names = {number: name for name, number in ledger.destinations.items()}
    first: dict[tuple[Any, ...], Any] = {}
    asked = select(alarm).join(spool, spool.c.id == alarm.c.spool_id).where(spool.c.host != but_of)
    for row in sorted(ledger.fetch_all(asked), key=lambda row: (row.since, row.kind, row.about)):
        first.setdefault((row.spool_id, row.destination_id, row.kind, row.about), row)
    return tuple(
        Alarm(
            kind=row.kind,
            about=row.about,
            note=row.note,
            next_step=row.next_step,
            since=row.since,
            destination=names.get(row.destination_id, ""),
        )
        for row in first.values()
    )


def _jumps(ledger: Queryable) -> tuple[Jump, ...]:
    return tuple(map(jump_of, ledger.fetch_cached(_JUMPS)[:_JUMPS_SHOWN]))


def _studies_waiting(ledger: Queryable, *, at: int | None) -> int:
    # Bounded: 1,000 says "1,000 or more".
    bounded = select(study_sum.c.waiting).where(study_sum.c.waiting > ZERO)
    if at is not None:
        bounded = bounded.where(study_sum.c.destination_id == at)
    row = ledger.fetch_one(select(func.count().label("studies")).select_from(bounded.limit(_MANY).subquery()))
    return int(row.studies)


def _inboxes(ledger: Queryable) -> tuple[InboxSummary, ...]:
    return tuple(
        InboxSummary(
            inbox=row.name,
            path=row.path,
            alarm=row.alarm,
            watching=row.watching,
            counts=json.loads(row.counts),
            oldest_at=row.oldest_at,
            at=row.at,
        )
        for row in sorted(ledger.fetch_all(select(inbox).where(inbox.c.at.is_not(None))), key=lambda row: row.name)
    )


def unfinished(ledger: Queryable, *, host: str | None = None) -> int:
    """Count the rows of this host, or of another, that are still on their way, or have to be compared."""
    entries = func.coalesce(dialect.total(state_count.c.entries), 0).label("rows")
    of_host: ColumnElement[bool] = state_count.c.spool_id == ledger.spool_id
    if host is not None:
        of_host = state_count.c.spool_id.in_(select(spool.c.id).where(spool.c.host == host))
    return int(ledger.fetch_one(select(entries).where(of_host, COUNTS_WAITING)).rows)


def clock(ledger: Queryable) -> ClockLine | None:
    """Say what is known of this host's wall clock."""
    row = ledger.fetch_one(
        select(clock_table).where(clock_table.c.spool_id == ledger.spool_id).order_by(clock_table.c.id.desc()).limit(1)
    )
    if row is None:
        return None
    return ClockLine(boot=row.boot, offset=timedelta(microseconds=row.offset_us), jump=jump_of(row))


def jumps(ledger: Queryable, *, limit: int = 10) -> list[Jump]:
    """Say when this host's wall clock was set, the last time first."""
    own = select(clock_table).where(clock_table.c.spool_id == ledger.spool_id, clock_table.c.by_us != ZERO)
    return [jump_of(row) for row in ledger.fetch_all(own.order_by(clock_table.c.id.desc()).limit(limit))]


def newest_at(ledger: Queryable) -> datetime | None:
    row = ledger.fetch_one(select(history.c.at).where(history.c.id == select(func.max(history.c.id)).scalar_subquery()))
    return row.at if row else None


def last_id(ledger: Queryable) -> int:
    """Say the newest file's number; 0 in an empty ledger."""
    row = ledger.fetch_one(select(func.max(file.c.id).label("id")))
    return row.id or 0


def last_event_id(ledger: Queryable) -> int:
    """Say the number of what happened last, in the order of happening; 0 in an empty ledger."""
    row = ledger.fetch_one(select(func.max(history.c.id).label("id")))
    return row.id or 0


def last_attempt_id(ledger: Queryable) -> int:
    """Say the newest attempt's id; 0 before the first."""
    row = ledger.fetch_one(select(func.max(attempt.c.id).label("id")))
    return row.id or 0


def first_attempt_at(ledger: Queryable) -> datetime | None:
    """Say when the first Store Transaction to this destination began."""
    here = attempt.c.destination_id == ledger.destination_id
    row = ledger.fetch_one(select(attempt.c.started_at).where(here).order_by(attempt.c.id).limit(1))
    return row.started_at if row else None
