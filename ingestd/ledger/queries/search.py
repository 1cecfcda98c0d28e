"""Which studies and files there are, and the whole story of one, over all hosts: what people ask.

With a million rows each answer is read off the end of an index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, literal, literal_column, or_, select

from ingestd.lifecycle import NEEDS_PERSON, Reason, State

from .. import dialect
from ..column_types import PathText
from ..reports import Attempt, Choice, Entry, Event, Story, StudySummary
from ..row import content_of, file_of, identity_of, pieces
from ..schema import STATE_COLUMNS, attempt, history, host, inbox_report, instance, study, study_label
from ..session import Queryable
from ..values import OperatorRequest, PendingRead

_ALL = Choice()
# With fewer studies than this under a label they are looked at one by one; with more, the newest are walked through.
_FEW = 200


def studies(
    ledger: Queryable, choice: Choice = _ALL, *, limit: int = 100, after: StudySummary | None = None
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
    where += [*_of_studies(ledger, choice, study.c.study_uid)[0], ~exists().where(*later)]
    rows = ledger.fetch_all(
        select(study).where(*where).order_by(study.c.changed_at.desc(), study.c.study_uid.desc()).limit(limit)
    )
    uids = [row.study_uid for row in rows]
    of_hosts: dict[str, list[Any]] = {}
    for piece in pieces(uids):
        for row in ledger.fetch_all(select(study).where(study.c.study_uid.in_(piece))):
            of_hosts.setdefault(row.study_uid, []).append(row)
    modalities = _modalities(ledger, uids)
    return [_summed(row, of_hosts[row.study_uid], modalities.get(row.study_uid, ())) for row in rows]


def _of_studies(
    ledger: Queryable, choice: Choice, column: ColumnElement[Any]
) -> tuple[list[ColumnElement[bool]], bool]:
    """Say what is asked of the study, and whether that leaves but few studies."""
    where: list[ColumnElement[bool]] = []
    few = choice.study_uid is not None
    if choice.study_uid is not None:
        where.append(column == choice.study_uid)
    labels = (("patient", choice.patient_hash), ("accession", choice.accession_hash), ("modality", choice.modality))
    for kind, value in labels:
        if value is None:
            continue
        under = (study_label.c.kind == kind, study_label.c.value == value)
        found = ledger.fetch_all(select(study_label.c.study_uid).where(*under).limit(_FEW + 1))
        if len(found) <= _FEW:
            few = True
            where.append(column.in_([row.study_uid for row in found]))
        else:
            # EXISTS keeps the newest-first index in charge.
            where.append(exists().where(*under, study_label.c.study_uid == column))
    return where, few


def _modalities(ledger: Queryable, study_uids: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for piece in pieces(study_uids):
        rows = ledger.fetch_all(
            select(study_label.c.study_uid, study_label.c.value)
            .where(study_label.c.study_uid.in_(piece), study_label.c.kind == "modality")
            .order_by(study_label.c.value)
        )
        for row in rows:
            found.setdefault(row.study_uid, []).append(row.value)
    return {study_uid: tuple(values) for study_uid, values in found.items()}


def entries(ledger: Queryable, choice: Choice = _ALL, *, limit: int = 1000, after: Entry | None = None) -> list[Entry]:
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
    of_studies, few = _of_studies(ledger, choice, instance.c.study_uid)
    where += of_studies
    if few:
        if choice.state is not None:
            # Written so that no index over the state is taken for it: the one over the study finds few rows.
            where.append(instance.c.state.concat("") == choice.state)
        rows = ledger.fetch_all(select(*columns).where(*where).order_by(*newest_first).limit(limit))
        return _entries(ledger, [row.id for row in rows])
    # An index has each state's rows in order; the states are merged here, as no database would by itself.
    ends = [
        ledger.fetch_all(select(*columns).where(instance.c.state == state, *where).order_by(*newest_first).limit(limit))
        for state in ([choice.state] if choice.state else State)
    ]
    ordered = merge(*ends, key=lambda row: (row.changed_at, row.id), reverse=True)
    return _entries(ledger, [row.id for row in islice(ordered, limit)])


def called_since(ledger: Queryable, event_id: int) -> list[Entry]:
    """Give the rows that need a person, and to which anything happened after this event; by state, newest first."""
    statement = (
        select(instance.c.id, instance.c.state)
        .distinct()
        .join_from(history, instance, history.c.entry_id == instance.c.id)
        .where(history.c.id > event_id, dialect.unindexed(instance.c.state).in_(NEEDS_PERSON))
    )
    rows = sorted(ledger.fetch_all(statement), key=lambda row: (row.state, -row.id))
    return _entries(ledger, [row.id for row in rows])


def _entries(ledger: Queryable, ids: Sequence[int]) -> list[Entry]:
    """Read these rows, in that order."""
    places = spools(ledger) if ids else {}
    found: dict[int, Entry] = {}
    for piece in pieces(ids):
        for row in ledger.fetch_all(select(instance).where(instance.c.id.in_(piece))):
            found[row.id] = _entry(row, places)
    return [found[entry_id] for entry_id in ids if entry_id in found]


def spools(ledger: Queryable) -> dict[str, Path]:
    """Say where the spool of each host is, as it was last opened."""
    return {row.host: Path(row.spool) for row in ledger.fetch_all(select(host.c.host, host.c.spool)) if row.spool}


def entry(ledger: Queryable, entry_id: int) -> Entry | None:
    found = _entries(ledger, [entry_id])
    return found[0] if found else None


def find(ledger: Queryable, text: str) -> list[Entry]:
    """Find rows by what a person has at hand: the row's id, a UID (study, series or instance), or a path.

    A path may be that of the file in the inbox (relative to it, or absolute) or of the file in the spool.
    """
    if text.isascii() and text.isdigit():
        by_id = entry(ledger, int(text)) if len(text) < 19 else None
        if by_id is not None:
            return [by_id]
    if not text.isascii():  # no UID, and maybe no text that a database takes
        return _entries(ledger, _by_path(ledger, text))
    found = _ids(ledger, instance.c.sop_uid == text) or _ids(ledger, instance.c.study_uid == text)
    if not found:
        in_series = ledger.fetch_all(
            select(study_label.c.study_uid).where(study_label.c.kind == "series", study_label.c.value == text)
        )
        if in_series:
            studies = instance.c.study_uid.in_([row.study_uid for row in in_series])
            found = _ids(ledger, studies, instance.c.series_uid == text)
    return _entries(ledger, found or _by_path(ledger, text))


def _ids(ledger: Queryable, *where: ColumnElement[bool]) -> list[int]:
    rows = ledger.fetch_all(select(instance.c.id).where(*where).order_by(instance.c.id).limit(1000))
    return [row.id for row in rows]


def _by_path(ledger: Queryable, text: str) -> list[int]:
    path = Path(text)
    names = {text}
    spool_names = {text}
    if path.is_absolute():
        roots = {Path(row.path) for row in ledger.fetch_all(select(inbox_report.c.path))}
        names |= {str(path.relative_to(root)) for root in roots if path.is_relative_to(root)}
        spool_names |= {str(path.relative_to(spool)) for spool in spools(ledger).values() if path.is_relative_to(spool)}
    found = _ids(ledger, instance.c.relative_path.in_(sorted(names)))
    if not found:
        found = _ids(
            ledger,
            instance.c.path.in_(sorted(spool_names)),
            instance.c.removed_at.is_(None),
            instance.c.in_place == literal_column("0"),
        )
    return found or _ids(
        ledger, instance.c.reencoded_path.is_not(None), instance.c.reencoded_path.in_(sorted(spool_names))
    )


def find_named(ledger: Queryable, name: str, *, limit: int = 1000) -> list[Entry]:
    """Find rows whose path in the inbox ends in this name, or in these folders and this name; by id.

    No index leads there: all paths are read, off the index that has nothing else in it.
    """
    ending = literal(f"/{name}", PathText())
    ends = func.substr(instance.c.relative_path, -func.length(ending)) == ending
    rows = ledger.fetch_all(select(instance.c.id).where(instance.c.relative_path > "", ends).limit(limit))
    return _entries(ledger, sorted(row.id for row in rows))


def story(ledger: Queryable, entry_id: int) -> Story | None:
    """Tell everything that is known of one row."""
    told = entry(ledger, entry_id)
    if told is None:
        return None
    events = ledger.fetch_all(select(history).where(history.c.entry_id == entry_id).order_by(history.c.id))
    attempts: list[Attempt] = []
    for piece in pieces(sorted({row.attempt_id for row in events if row.attempt_id is not None})):
        rows = ledger.fetch_all(select(attempt).where(attempt.c.id.in_(piece)).order_by(attempt.c.id))
        attempts += map(_attempt, rows)
    duplicates = _ids(ledger, instance.c.holder_id.is_not(None), instance.c.holder_id == entry_id)
    others: list[int] = []
    if told.identity is not None:
        others = _ids(
            ledger,
            instance.c.sop_uid == told.identity.sop_uid,
            instance.c.series_uid == told.identity.series_uid,
            instance.c.study_uid == told.identity.study_uid,
        )
    return Story(
        entry=told,
        history=tuple(map(_event, events)),
        attempts=tuple(attempts),
        holder=entry(ledger, told.holder_id) if told.holder_id is not None else None,
        duplicates=tuple(each for each in _entries(ledger, duplicates) if each.state is State.DUPLICATE),
        same_identity=tuple(_entries(ledger, [other for other in others if other != entry_id])),
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
        identity=None if None in (row.study_uid, row.series_uid, row.sop_uid) else identity_of(row),
        sop_class_uid=row.sop_class_uid or "",
        content=None if row.digest is None else content_of(row),
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
        pending_read=PendingRead(row.need) if row.need else None,
        request=OperatorRequest(row.wish) if row.wish else None,
        holder_id=row.holder_id,
        failure_reason=row.failure_reason,
        warning_reason=row.warning_reason,
        failed_attributes=tuple(json.loads(row.failed_attributes)) if row.failed_attributes else (),
        reencoded=row.reencoded_digest is not None,
        compared=bool(row.compared),
    )
