"""What people ask: how things stand, which studies and files there are, and the whole story of one.

Over all hosts. With a million rows each answer is read from counts or off the end of an index.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, literal, literal_column, or_, select

from ingestd.lifecycle import NEEDS_PERSON, Content, Identity, Jump, Reason, State, needs_person

from . import dialect
from .reads import UNCONFIRMED, Reads
from .row import ZERO, file_of, jump_of, pieces
from .schema import (
    STATE_COLUMNS,
    PathText,
    alarm,
    attempt,
    clock,
    history,
    host,
    inbox_report,
    instance,
    state_count,
    study,
    study_label,
)
from .values import (
    Alarm,
    Attempt,
    Choice,
    Count,
    Entry,
    Event,
    InboxSummary,
    Need,
    Status,
    Story,
    StudySummary,
    Wish,
)

# Listed, but nobody is called for it.
CLUTTER = frozenset({Reason.NOT_DICOM, Reason.DICOMDIR})

_ALL = Choice()
# With fewer studies than this under a label they are looked at one by one; with more, the newest are walked through.
_FEW = 200
# A count that is shown as "this many or more" beyond it.
_MANY = 1000


_JUMPS = select(clock).where(clock.c.by_us != ZERO).order_by(clock.c.id.desc())
_JUMPS_SHOWN = 10


def _stretches(jumps: Sequence[Any]) -> Iterator[tuple[ColumnElement[bool], timedelta]]:
    """Cut the rows where a clock was set, and say how far each stretch's times lie from what it shows now."""
    hosts = {jump.host for jump in jumps}
    yield instance.c.host.not_in(hosts), timedelta(0)
    for name in hosts:
        rows, by = [instance.c.host == name], timedelta(0)
        for jump in (each for each in jumps if each.host == name):
            yield and_(*rows, instance.c.id > jump.last_entry_id), by
            rows = [instance.c.host == name, instance.c.id <= jump.last_entry_id]
            by += timedelta(microseconds=jump.by_us)
        yield and_(*rows), by


class Views(Reads):
    """The questions of people; ``Ledger`` has them all."""

    def counts(self) -> dict[State, int]:
        """Say how many rows are in each state; every state is there."""
        rows = self._all(
            select(state_count.c.state, func.sum(state_count.c.entries).label("entries")).group_by(state_count.c.state)
        )
        found = {row.state: int(row.entries) for row in rows}
        return {state: found.get(state.value, 0) for state in State}

    def oldest_unconfirmed_at(self) -> datetime | None:
        """Say since when the oldest file that is still on its way has been in the ledger, by today's clock."""
        oldest = select(instance.c.admitted_at).where(UNCONFIRMED).order_by(instance.c.admitted_at).limit(1)
        row = self._one(oldest)
        jumps = self._remembered(_JUMPS) if row else []
        if not jumps:
            return row.admitted_at if row else None
        found = [(self._one(oldest.where(rows)), by) for rows, by in _stretches(jumps)]
        return min((row.admitted_at + by for row, by in found if row is not None), default=None)

    def _jumps(self) -> tuple[Jump, ...]:
        return tuple(map(jump_of, self._remembered(_JUMPS)[:_JUMPS_SHOWN]))

    def status(self) -> Status:
        """Say how things stand, in constant time."""
        rows = self._all(select(state_count).where(state_count.c.entries > 0))
        summed: dict[tuple[str, State, str], list[int]] = {}
        for row in rows:
            sums = summed.setdefault((row.inbox, State(row.state), row.reason), [0, 0, 0])
            for position, number in enumerate((row.entries, row.held, row.size_bytes)):
                sums[position] += number
        counts = tuple(
            Count(inbox=inbox, state=state, reason=reason, rows=entries, held=held, size_bytes=size)
            for (inbox, state, reason), (entries, held, size) in sorted(summed.items())
        )
        states = dict.fromkeys(State, 0)
        for count in counts:
            states[count.state] += count.rows
        held = sum(count.held for count in counts)
        troubled = [count for count in counts if needs_person(count.state, count.reason)]
        clutter = sum(count.rows for count in troubled if count.state is State.REJECTED and count.reason in CLUTTER)
        inboxes = self._inboxes()
        waiting = [self.oldest_unconfirmed_at(), *(inbox.oldest_at for inbox in inboxes)]
        return Status(
            states=states,
            counts=counts,
            held=held,
            needs_person=held + sum(count.rows for count in troubled) - clutter,
            clutter=clutter,
            oldest_unconfirmed_at=min((at for at in waiting if at is not None), default=None),
            oldest_needs_person_at=self._oldest_needs_person_at([state for state in NEEDS_PERSON if states[state]]),
            studies_waiting=self._studies_waiting(),
            destination=self.destination(),
            inboxes=inboxes,
            alarms=self.alarms(),
            jumps=self._jumps(),
        )

    def _oldest_needs_person_at(self, states: Iterable[State]) -> datetime | None:
        # State by state: the index over them is in the order of time within each. Clutter is passed over row by row.
        oldest = [
            self._one(
                select(instance.c.changed_at)
                .where(instance.c.state == state, instance.c.reason.not_in(CLUTTER | {Reason.DROPPED_AGAIN}))
                .order_by(instance.c.changed_at)
                .limit(1)
            )
            for state in states
        ]
        return min((row.changed_at for row in oldest if row is not None), default=None)

    def alarms(self) -> tuple[Alarm, ...]:
        """Say what keeps files from being confirmed or removed, of all hosts, the oldest first."""
        return tuple(
            Alarm(kind=row.kind, about=row.about, note=row.note, next_step=row.next_step, since=row.since)
            for row in sorted(self._all(select(alarm)), key=lambda row: (row.since, row.kind, row.about))
        )

    def _studies_waiting(self) -> int:
        # Bounded: 1,000 says "1,000 or more".
        bounded = select(study.c.waiting).where(study.c.waiting > literal_column("0"))
        row = self._one(select(func.count().label("studies")).select_from(bounded.limit(_MANY).subquery()))
        return int(row.studies)

    def _inboxes(self) -> tuple[InboxSummary, ...]:
        return tuple(
            InboxSummary(
                inbox=row.inbox,
                path=row.path,
                alarm=row.alarm,
                watching=row.watching,
                counts=json.loads(row.counts),
                oldest_at=row.oldest_at,
                at=row.at,
            )
            for row in sorted(self._all(select(inbox_report)), key=lambda row: row.inbox)
        )

    def studies(
        self, choice: Choice = _ALL, *, limit: int = 100, after: StudySummary | None = None
    ) -> list[StudySummary]:
        """List studies, the one that changed last first; ``after`` is the last one of the page before.

        A study of which several hosts have files (some were sent, others dropped) is one line, where it changed last.
        """
        other = study.alias("other")
        later = [
            other.c.study_uid == study.c.study_uid,
            or_(
                other.c.changed_at > study.c.changed_at,
                and_(other.c.changed_at == study.c.changed_at, other.c.host > study.c.host),
            ),
        ]
        where: list[ColumnElement[bool]] = []
        if choice.state is not None:
            where.append(literal_column(f"study.{STATE_COLUMNS[choice.state]}") > literal_column("0"))
            later.append(other.c[STATE_COLUMNS[choice.state]] > literal_column("0"))
        if choice.since is not None:
            where.append(study.c.changed_at >= choice.since)
        if after is not None:
            where.append(
                or_(
                    study.c.changed_at < after.changed_at,
                    and_(study.c.changed_at == after.changed_at, study.c.study_uid < after.study_uid),
                )
            )
        where += [*self._of_studies(choice, study.c.study_uid)[0], ~exists().where(*later)]
        rows = self._all(
            select(study).where(*where).order_by(study.c.changed_at.desc(), study.c.study_uid.desc()).limit(limit)
        )
        uids = [row.study_uid for row in rows]
        of_hosts: dict[str, list[Any]] = {}
        for piece in pieces(uids):
            for row in self._all(select(study).where(study.c.study_uid.in_(piece))):
                of_hosts.setdefault(row.study_uid, []).append(row)
        modalities = self._modalities(uids)
        return [_summed(row, of_hosts[row.study_uid], modalities.get(row.study_uid, ())) for row in rows]

    def _of_studies(self, choice: Choice, column: ColumnElement[Any]) -> tuple[list[ColumnElement[bool]], bool]:
        """Say what is asked of the study, and whether that leaves but few studies."""
        where: list[ColumnElement[bool]] = []
        few = choice.study_uid is not None
        if choice.study_uid is not None:
            where.append(column == choice.study_uid)
        labels = (
            ("patient", choice.patient_hash),
            ("accession", choice.accession_hash),
            ("modality", choice.modality),
        )
        for kind, value in labels:
            if value is None:
                continue
            under = (study_label.c.kind == kind, study_label.c.value == value)
            found = self._all(select(study_label.c.study_uid).where(*under).limit(_FEW + 1))
            if len(found) <= _FEW:
                few = True
                where.append(column.in_([row.study_uid for row in found]))
            else:
                # EXISTS keeps the newest-first index in charge.
                where.append(exists().where(*under, study_label.c.study_uid == column))
        return where, few

    def _modalities(self, study_uids: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for piece in pieces(study_uids):
            rows = self._all(
                select(study_label.c.study_uid, study_label.c.value)
                .where(study_label.c.study_uid.in_(piece), study_label.c.kind == "modality")
                .order_by(study_label.c.value)
            )
            for row in rows:
                found.setdefault(row.study_uid, []).append(row.value)
        return {study_uid: tuple(values) for study_uid, values in found.items()}

    def entries(self, choice: Choice = _ALL, *, limit: int = 1000, after: Entry | None = None) -> list[Entry]:
        """List rows, the one that changed last first; ``after`` is the last one of the page before."""
        where: list[ColumnElement[bool]] = []
        if choice.reason is not None:
            where.append(instance.c.reason == choice.reason)
        if choice.patient_hash is not None:
            where.append(instance.c.patient_hash == choice.patient_hash)
        if choice.accession_hash is not None:
            where.append(instance.c.accession_hash == choice.accession_hash)
        if choice.modality is not None:
            where.append(instance.c.modality == choice.modality)
        if choice.since is not None:
            where.append(instance.c.changed_at >= choice.since)
        if after is not None:
            where.append(
                or_(
                    instance.c.changed_at < after.changed_at,
                    and_(instance.c.changed_at == after.changed_at, instance.c.id < after.entry_id),
                )
            )
        newest_first = (instance.c.changed_at.desc(), instance.c.id.desc())
        columns = (instance.c.id, instance.c.changed_at)
        of_studies, few = self._of_studies(choice, instance.c.study_uid)
        where += of_studies
        if few:
            if choice.state is not None:
                # Written so that no index over the state is taken for it: the one over the study finds few rows.
                where.append(instance.c.state.concat("") == choice.state)
            rows = self._all(select(*columns).where(*where).order_by(*newest_first).limit(limit))
            return self._entries([row.id for row in rows])
        # An index has each state's rows in order; the states are merged here, as no database would by itself.
        ends = [
            self._all(select(*columns).where(instance.c.state == state, *where).order_by(*newest_first).limit(limit))
            for state in ([choice.state] if choice.state else State)
        ]
        ordered = merge(*ends, key=lambda row: (row.changed_at, row.id), reverse=True)
        return self._entries([row.id for row in islice(ordered, limit)])

    def called_since(self, event_id: int) -> list[Entry]:
        """Give the rows that need a person, and to which anything happened after this event; by state, newest first."""
        statement = (
            select(instance.c.id, instance.c.state)
            .distinct()
            .join_from(history, instance, history.c.entry_id == instance.c.id)
            .where(history.c.id > event_id, dialect.unindexed(instance.c.state).in_(NEEDS_PERSON))
        )
        rows = sorted(self._all(statement), key=lambda row: (row.state, -row.id))
        return self._entries(row.id for row in rows)

    def _entries(self, entry_ids: Iterable[int]) -> list[Entry]:
        """Read these rows, in that order."""
        ids = list(entry_ids)
        spools = self.spools() if ids else {}
        found: dict[int, Entry] = {}
        for piece in pieces(ids):
            for row in self._all(select(instance).where(instance.c.id.in_(piece))):
                found[row.id] = _entry(row, spools)
        return [found[entry_id] for entry_id in ids if entry_id in found]

    def spools(self) -> dict[str, Path]:
        """Say where the spool of each host is, as it was last opened."""
        return {row.host: Path(row.spool) for row in self._all(select(host.c.host, host.c.spool)) if row.spool}

    def entry(self, entry_id: int) -> Entry | None:
        """Read one row."""
        found = self._entries([entry_id])
        return found[0] if found else None

    def find(self, text: str) -> list[Entry]:
        """Find rows by what a person has at hand: the row's id, a UID (study, series or instance), or a path.

        A path may be that of the file in the inbox (relative to it, or absolute) or of the file in the spool.
        """
        if text.isascii() and text.isdigit():
            by_id = self.entry(int(text)) if len(text) < 19 else None
            if by_id is not None:
                return [by_id]
        if not text.isascii():  # no UID, and maybe no text that a database takes
            return self._entries(self._by_path(text))
        found = self._ids(instance.c.sop_uid == text) or self._ids(instance.c.study_uid == text)
        if not found:
            in_series = self._all(
                select(study_label.c.study_uid).where(study_label.c.kind == "series", study_label.c.value == text)
            )
            if in_series:
                studies = instance.c.study_uid.in_([row.study_uid for row in in_series])
                found = self._ids(studies, instance.c.series_uid == text)
        return self._entries(found or self._by_path(text))

    def _ids(self, *where: ColumnElement[bool]) -> list[int]:
        rows = self._all(select(instance.c.id).where(*where).order_by(instance.c.id).limit(1000))
        return [row.id for row in rows]

    def _by_path(self, text: str) -> list[int]:
        path = Path(text)
        names = {text}
        spool_names = {text}
        if path.is_absolute():
            roots = {Path(row.path) for row in self._all(select(inbox_report.c.path))}
            names |= {str(path.relative_to(root)) for root in roots if path.is_relative_to(root)}
            spool_names |= {
                str(path.relative_to(spool)) for spool in self.spools().values() if path.is_relative_to(spool)
            }
        found = self._ids(instance.c.relative_path.in_(sorted(names)))
        if not found:
            found = self._ids(
                instance.c.path.in_(sorted(spool_names)),
                instance.c.removed_at.is_(None),
                instance.c.in_place == literal_column("0"),
            )
        return found or self._ids(
            instance.c.reencoded_path.is_not(None), instance.c.reencoded_path.in_(sorted(spool_names))
        )

    def find_named(self, name: str, *, limit: int = 1000) -> list[Entry]:
        """Find rows whose path in the inbox ends in this name, or in these folders and this name; by id.

        No index leads there: all paths are read, off the index that has nothing else in it.
        """
        ending = literal(f"/{name}", PathText())
        ends = func.substr(instance.c.relative_path, -func.length(ending)) == ending
        rows = self._all(select(instance.c.id).where(instance.c.relative_path > "", ends).limit(limit))
        return self._entries(sorted(row.id for row in rows))

    def story(self, entry_id: int) -> Story | None:
        """Tell everything that is known of one row."""
        entry = self.entry(entry_id)
        if entry is None:
            return None
        events = self._all(select(history).where(history.c.entry_id == entry_id).order_by(history.c.id))
        attempts: list[Attempt] = []
        for piece in pieces(sorted({row.attempt_id for row in events if row.attempt_id is not None})):
            rows = self._all(select(attempt).where(attempt.c.id.in_(piece)).order_by(attempt.c.id))
            attempts += map(_attempt, rows)
        duplicates = self._ids(instance.c.holder_id.is_not(None), instance.c.holder_id == entry_id)
        others: list[int] = []
        if entry.identity is not None:
            others = self._ids(
                instance.c.sop_uid == entry.identity.sop_uid,
                instance.c.series_uid == entry.identity.series_uid,
                instance.c.study_uid == entry.identity.study_uid,
            )
        return Story(
            entry=entry,
            history=tuple(map(_event, events)),
            attempts=tuple(attempts),
            holder=self.entry(entry.holder_id) if entry.holder_id is not None else None,
            duplicates=tuple(each for each in self._entries(duplicates) if each.state is State.DUPLICATE),
            same_identity=tuple(self._entries(other for other in others if other != entry_id)),
        )


def _summed(last: Any, of_hosts: Sequence[Any], modalities: tuple[str, ...]) -> StudySummary:
    """Sum up what each host has of a study; ``last`` is the row that changed last."""
    waits = [row.next_attempt_at for row in of_hosts if row.next_attempt_at is not None]
    return StudySummary(
        host=last.host,
        study_uid=last.study_uid,
        states={state: sum(getattr(row, column) for row in of_hosts) for state, column in STATE_COLUMNS.items()},
        size_bytes=sum(row.size_bytes for row in of_hosts),
        modalities=modalities,
        first_at=min(row.first_at for row in of_hosts),
        changed_at=last.changed_at,
        next_attempt_at=min(waits, default=None),
        charged=max(row.charged for row in of_hosts),
    )


def _event(row: Any) -> Event:
    return Event(
        at=row.at,
        before=State(row.before) if row.before else None,
        after=State(row.after),
        reason=row.reason,
        note=row.note,
        attempt_id=row.attempt_id,
        evidence=json.loads(row.evidence) if row.evidence else {},
    )


def _attempt(row: Any) -> Attempt:
    return Attempt(
        attempt_id=row.id,
        started_at=row.started_at,
        finished_at=row.finished_at,
        instances=row.instances,
        size_bytes=row.size_bytes,
        http_status=row.http_status,
        body_bytes_left=row.body_bytes_left,
        seconds=None if row.milliseconds is None else row.milliseconds / 1000,
        error=row.error,
        interrupted=bool(row.interrupted),
    )


def _entry(row: Any, spools: Mapping[str, Path]) -> Entry:
    identity = None
    if row.study_uid is not None and row.series_uid is not None and row.sop_uid is not None:
        identity = Identity(study_uid=row.study_uid, series_uid=row.series_uid, sop_uid=row.sop_uid)
    content = None
    if row.digest is not None:
        content = Content(
            transfer_syntax=row.transfer_syntax,
            digest=row.digest,
            meta_digest=row.meta_digest,
            dataset_offset=row.dataset_offset,
            size_bytes=row.size_bytes,
        )
    in_place = bool(row.in_place)
    is_there = row.removed_at is None and (in_place or row.host in spools)
    return Entry(
        entry_id=row.id,
        host=row.host,
        state=State(row.state),
        reason=Reason(row.reason) if row.reason else None,
        note=row.note,
        inbox=row.inbox,
        relative_path=row.relative_path,
        path=row.path,
        file=file_of(spools.get(row.host), row.path, in_place=in_place) if is_there else None,
        in_place=in_place,
        source=row.source,
        source_removed=bool(row.source_removed),
        identity=identity,
        sop_class_uid=row.sop_class_uid or "",
        content=content,
        modality=row.modality,
        station=row.station,
        notes=tuple(json.loads(row.notes)) if row.notes else (),
        priority=row.priority,
        admitted_at=row.admitted_at,
        changed_at=row.changed_at,
        attempts=row.attempts,
        charged=row.charged,
        resends=row.resends,
        next_attempt_at=row.next_attempt_at,
        next_check_at=row.next_check_at,
        stored_at=row.stored_at,
        confirmed_at=row.confirmed_at,
        removed_at=row.removed_at,
        hold_reason=row.hold_reason,
        need=Need(row.need) if row.need else None,
        wish=Wish(row.wish) if row.wish else None,
        holder_id=row.holder_id,
        failure_reason=row.failure_reason,
        warning_reason=row.warning_reason,
        failed_attributes=tuple(json.loads(row.failed_attributes)) if row.failed_attributes else (),
        reencoded=row.reencoded_digest is not None,
        compared=bool(row.compared),
    )
