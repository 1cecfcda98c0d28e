"""Which studies and files there are, and the whole story of one, over all hosts: what people ask.

An entry is a delivery with its file, or a file that has none. With a million of them each answer is read off the end of
an index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, FromClause, and_, case, exists, func, literal, literal_column, or_, select, tuple_

from ingestd.lifecycle import FILE_ENDS, HOLDING, NEEDS_PERSON, UNCONFIRMED, Identity, State

from .. import dialect
from ..column_types import PathText
from ..reports import Attempt, Choice, Entry, Event, Story, StudySummary
from ..row import CONFIRMED, DELIVERED, ENDED, HOLDS, ON_ITS_WAY, ZERO, pieces, told_evidence
from ..schema import STATE_COLUMNS, attempt, delivery, file, history, inbox, rendition, study, study_label, study_sum
from ..session import Queryable
from .whole import ENTRIES, NUMBER, entry, homes, own, whole

_ALL = Choice()
# With fewer studies than this under a label they are looked at one by one; with more, the newest are walked through.
_FEW = 200


# The instant by which an entry is listed, see ``entries``.
_LISTED_AT: ColumnElement[Any] = case(
    (file.c.state.is_not(None), file.c.changed_at),
    (HOLDS, func.coalesce(delivery.c.confirmed_at, delivery.c.admitted_at)),
    else_=delivery.c.changed_at,
)


def studies(
    ledger: Queryable, choice: Choice = _ALL, *, limit: int = 100, after: StudySummary | None = None
) -> list[StudySummary]:
    """List studies, the one that changed last first; ``after`` is the last one of the page before.

    A study of which several hosts have files (some were sent, others dropped) is one line, where it changed last.
    """
    other = study_sum.alias("other")
    later = [
        other.c.study_id == study_sum.c.study_id,
        tuple_(other.c.changed_at, other.c.destination_id, other.c.spool_id)
        > tuple_(study_sum.c.changed_at, study_sum.c.destination_id, study_sum.c.spool_id),
    ]
    where: list[ColumnElement[bool]] = []
    if choice.state is not None:
        where.append(literal_column(f"study_sum.{STATE_COLUMNS[choice.state]}") > ZERO)
        later.append(other.c[STATE_COLUMNS[choice.state]] > ZERO)
    if choice.since is not None:
        where.append(study_sum.c.changed_at >= choice.since)
    here: list[ColumnElement[bool]] = []
    if choice.destination is not None:
        here.append(dialect.unindexed(study_sum.c.destination_id) == choice.destination)
        later.append(other.c.destination_id == choice.destination)
    if after is not None:
        last = ledger.study_id(after.study_uid) or 0
        where.append(_is_before(study_sum.c.changed_at, study_sum.c.study_id, after.changed_at, last))
    where += [*_of_studies(ledger, choice, study_sum.c.study_id)[0], ~exists().where(*later)]
    newest_first = (study_sum.c.changed_at.desc(), study_sum.c.study_id.desc())
    rows = ledger.fetch_all(select(study_sum).where(*where, *here).order_by(*newest_first).limit(limit))
    study_ids = [row.study_id for row in rows]
    of_study: dict[int, list[Any]] = {}
    for piece in pieces(study_ids):
        sums = select(study_sum, study.c.uid).join(study, study.c.id == study_sum.c.study_id)
        for row in ledger.fetch_all(sums.where(study_sum.c.study_id.in_(piece), *here)):
            of_study.setdefault(row.study_id, []).append(row)
    modalities = _modalities(ledger, study_ids)
    hosts = {spool_id: host for spool_id, host, _ in homes(ledger)} if rows else {}
    return [_summed(row, of_study[row.study_id], hosts[row.spool_id], modalities.get(row.study_id, ())) for row in rows]


def _is_before(at: ColumnElement[Any], number: ColumnElement[int], last_at: Any, last: int) -> ColumnElement[bool]:
    """Say that a row comes behind the last of a page, where the newest are listed first."""
    return or_(at < last_at, and_(at == last_at, number < last))


def _of_studies(
    ledger: Queryable, choice: Choice, column: ColumnElement[Any]
) -> tuple[list[ColumnElement[bool]], bool]:
    """Say what is asked of the study, and whether that leaves but few studies."""
    where: list[ColumnElement[bool]] = []
    few = choice.study_uid is not None
    if choice.study_uid is not None:
        where.append(column == (ledger.study_id(choice.study_uid) or 0))
    labels = (("patient", choice.patient_hash), ("accession", choice.accession_hash), ("modality", choice.modality))
    for kind, value in labels:
        if value is None:
            continue
        under = (study_label.c.kind == kind, study_label.c.value == value)
        found = ledger.fetch_all(select(study_label.c.study_id).where(*under).limit(_FEW + 1))
        if len(found) <= _FEW:
            few = True
            where.append(column.in_([row.study_id for row in found]))
        else:
            # EXISTS keeps the newest-first index in charge.
            where.append(exists().where(*under, study_label.c.study_id == column))
    return where, few


def _modalities(ledger: Queryable, study_ids: Sequence[int]) -> Mapping[int, tuple[str, ...]]:
    found: dict[int, list[str]] = {}
    for piece in pieces(study_ids):
        rows = ledger.fetch_all(
            select(study_label.c.study_id, study_label.c.value)
            .where(study_label.c.study_id.in_(piece), study_label.c.kind == "modality")
            .order_by(study_label.c.value)
        )
        for row in rows:
            found.setdefault(row.study_id, []).append(row.value)
    return {study_id: tuple(values) for study_id, values in found.items()}


def entries(ledger: Queryable, choice: Choice = _ALL, *, limit: int = 1000, after: Entry | None = None) -> list[Entry]:
    """List entries, the newest first; ``after`` is the last one of the page before.

    What is on its way is as new as its admission, what is CONFIRMED as that, and what ended otherwise as its end.
    """
    of_studies, few = _of_studies(ledger, choice, file.c.study_id)

    def ask(
        table: FromClause,
        number: ColumnElement[int],
        at: ColumnElement[Any],
        of: Callable[[str], ColumnElement[Any]],
        *where: ColumnElement[bool],
    ) -> Sequence[Any]:
        asked = [*where, *of_studies, *_asked_of_entry(choice, of)]
        if after is not None:
            asked.append(_is_before(at, number, _listed_at(after), after.delivery_id))
        listed = select(number.label("id"), at.label("at")).select_from(table).where(*asked)
        return ledger.fetch_all(listed.order_by(at.desc(), number.desc()).limit(limit))

    if few:
        in_state = () if choice.state is None else (own("state") == choice.state,)
        return whole(ledger, [row.id for row in ask(ENTRIES, NUMBER, _LISTED_AT, own, *in_state)])
    # An index has each kind of them in order; the kinds are merged here, as no database would by itself.
    states = {choice.state} if choice.state else set(State)
    of_delivery, of_file = delivery.c.__getitem__, file.c.__getitem__
    here = ledger.destinations.values() if choice.destination is None else [choice.destination]
    lists = [
        ask(DELIVERED, delivery.c.id, at, of_delivery, *where)
        for at, where in _lists_of_deliveries(states, choice, here)
    ]
    if choice.destination is None:
        lists += [
            ask(file, file.c.id, file.c.changed_at, of_file, file.c.state == state)
            for state in sorted(states & FILE_ENDS)
        ]
    ordered = merge(*lists, key=lambda row: (row.at, row.id), reverse=True)
    return whole(ledger, [row.id for row in islice(ordered, limit)])


def _lists_of_deliveries(
    states: set[State], choice: Choice, here: Iterable[int]
) -> Iterator[tuple[ColumnElement[Any], tuple[ColumnElement[bool], ...]]]:
    """Give the lists in which the deliveries in these states stand, each with the instant that orders it."""
    on_their_way = states & UNCONFIRMED
    for at in here:
        is_there = delivery.c.destination_id == at
        if on_their_way:
            yield delivery.c.admitted_at, (ON_ITS_WAY, is_there, delivery.c.state.in_(sorted(on_their_way)))
        if State.CONFIRMED in states:
            # It was seen again since, if at all.
            since = () if choice.since is None else (delivery.c.confirmed_at >= choice.since,)
            yield delivery.c.confirmed_at, (CONFIRMED, is_there, *since)
        for state in sorted(states - HOLDING - {State.REJECTED, State.UNROUTED}):
            yield delivery.c.changed_at, (ENDED, is_there, delivery.c.state == state)


def _asked_of_entry(choice: Choice, of: Callable[[str], ColumnElement[Any]]) -> Iterator[ColumnElement[bool]]:
    if choice.reason is not None:
        yield of("reason") == choice.reason
    if choice.destination is not None:
        yield dialect.unindexed(delivery.c.destination_id) == choice.destination
    for name, value in (("patient_hash", choice.patient_hash), ("accession_hash", choice.accession_hash)):
        if value is not None:
            as_said = func.coalesce(file.c[name], study.c[name])
            yield exists().where(study.c.id == file.c.study_id, as_said == value)
    if choice.modality is not None:
        yield file.c.modality == choice.modality
    if choice.since is not None:
        yield of("changed_at") >= choice.since


def _listed_at(entry: Entry) -> Any:
    if entry.state in HOLDING:
        return entry.confirmed_at or entry.admitted_at
    return entry.changed_at


def called_since(ledger: Queryable, event_id: int) -> list[Entry]:
    """Give the entries that need a person, and to which anything happened after this event; by state, newest first."""
    found: set[tuple[str, int]] = set()
    for table, named in ((delivery, history.c.delivery_id), (file, history.c.file_id)):
        statement = (
            select(table.c.id, table.c.state)
            .distinct()
            .join_from(history, table, named == table.c.id)
            .where(history.c.id > event_id, dialect.unindexed(table.c.state).in_(NEEDS_PERSON))
        )
        found.update((row.state, -row.id) for row in ledger.fetch_all(statement))
    return whole(ledger, [-number for _, number in sorted(found)])


def find(ledger: Queryable, text: str) -> list[Entry]:
    """Find entries by what a person has at hand: the number, a UID (study, series or instance), or a path.

    A path may be that of the file in the inbox (relative to it, or absolute) or of the file in the spool.
    """
    if text.isascii() and text.isdigit():
        by_id = entry(ledger, int(text)) if len(text) < 19 else None
        if by_id is not None:
            return [by_id]
    if not text.isascii():  # no UID, and maybe no text that a database takes
        return find_path(ledger, text)
    found = _few_ids(ledger, file.c.sop_uid == text)
    if not found:
        found = _ids(ledger, file.c.study_id == (ledger.study_id(text) or 0))
    if not found:
        in_series = ledger.fetch_all(
            select(study_label.c.study_id).where(study_label.c.kind == "series", study_label.c.value == text)
        )
        if in_series:
            studies = file.c.study_id.in_([row.study_id for row in in_series])
            found = _ids(ledger, studies, file.c.series_uid == text)
    return whole(ledger, found or _by_path(ledger, text))


def of_files(ledger: Queryable, file_ids: Sequence[int]) -> list[Entry]:
    """Give all deliveries of these files, and what of them has none, file by file."""
    found = [number for piece in pieces(file_ids) for number in _ids(ledger, file.c.id.in_(piece))]
    return sorted(whole(ledger, found), key=lambda each: (each.file_id, each.delivery_id))


def _ids(ledger: Queryable, *where: ColumnElement[bool]) -> list[int]:
    listed = select(NUMBER.label("id")).select_from(ENTRIES).where(*where)
    return [row.id for row in ledger.fetch_all(listed.order_by(file.c.id).limit(1000))]


def _few_ids(ledger: Queryable, *where: ColumnElement[bool]) -> list[int]:
    """Find what is found by an index that does not have them by number."""
    listed = select(NUMBER.label("id")).select_from(ENTRIES).where(*where)
    return sorted(row.id for row in ledger.fetch_all(listed.limit(1000)))


def find_path(ledger: Queryable, text: str) -> list[Entry]:
    """Find entries by a path alone: one in an inbox or in the spool, relative to it or absolute."""
    return whole(ledger, _by_path(ledger, text))


def _by_path(ledger: Queryable, text: str) -> list[int]:
    path = Path(text)
    in_inbox = [file.c.relative_path == text]
    spool_names = {text}
    spools = homes(ledger)
    if path.is_absolute():
        roots = [(row.id, Path(row.path)) for row in ledger.fetch_all(select(inbox.c.id, inbox.c.path)) if row.path]
        in_inbox += [
            and_(file.c.inbox_id == inbox_id, file.c.relative_path == str(path.relative_to(root)))
            for inbox_id, root in roots
            if path.is_relative_to(root)
        ]
        spool_names |= {str(path.relative_to(home)) for _, _, home in spools if home and path.is_relative_to(home)}
    found = _ids(ledger, or_(*in_inbox))
    if not found:
        found = _few_ids(
            ledger,
            file.c.spool_id.in_([spool_id for spool_id, _, _ in spools]),
            file.c.path.in_(sorted(spool_names)),
            literal_column("file.removed_at IS NULL AND file.in_place = 0"),
        )
    if not found:
        sent = ledger.fetch_all(
            select(rendition.c.file_id).where(
                rendition.c.path.in_(sorted(spool_names)), literal_column("rendition.removed_at IS NULL")
            )
        )
        found = _ids(ledger, file.c.id.in_([row.file_id for row in sent])) if sent else []
    return found


def find_named(ledger: Queryable, name: str, *, limit: int = 1000) -> list[Entry]:
    """Find entries whose path in the inbox ends in this name, or in these folders and this name; by number.

    No index leads there: all paths are read, off the index that has nothing else in it.
    """
    ending = literal(f"/{name}", PathText())
    ends = dialect.ends_with(file.c.relative_path, ending)
    listed = select(NUMBER.label("id")).select_from(ENTRIES).where(file.c.relative_path > "", ends)
    return whole(ledger, sorted(row.id for row in ledger.fetch_all(listed.limit(limit))))


def story(ledger: Queryable, delivery_id: int) -> Story | None:
    """Tell everything that is known of one entry."""
    told = entry(ledger, delivery_id)
    if told is None:
        return None
    of_it = or_(history.c.delivery_id.is_(None), history.c.delivery_id == delivery_id)
    events = ledger.fetch_all(select(history).where(history.c.file_id == told.file_id, of_it).order_by(history.c.id))
    attempts: list[Attempt] = []
    for piece in pieces(sorted({row.attempt_id for row in events if row.attempt_id is not None})):
        rows = ledger.fetch_all(select(attempt).where(attempt.c.id.in_(piece)).order_by(attempt.c.id))
        attempts += map(_attempt, rows)
    return Story(
        entry=told,
        history=tuple(map(_event, events)),
        attempts=tuple(attempts),
        holder=entry(ledger, told.holder_id) if told.holder_id is not None else None,
        duplicates=tuple(whole(ledger, _duplicates_of(ledger, delivery_id))),
        same_identity=tuple(
            other for other in whole(ledger, _with_identity(ledger, told.identity)) if _is_beside(other, told)
        ),
    )


def _is_beside(other: Entry, told: Entry) -> bool:
    """Whether another entry with the same identity is of another file, and not at another destination."""
    return other.file_id != told.file_id and (not told.destination or other.destination in ("", told.destination))


def _duplicates_of(ledger: Queryable, delivery_id: int) -> list[int]:
    rows = ledger.fetch_all(
        select(delivery.c.id)
        .where(
            delivery.c.holder_id.is_not(None),
            delivery.c.holder_id == delivery_id,
            dialect.unindexed(delivery.c.state) == State.DUPLICATE,
        )
        .order_by(delivery.c.id)
        .limit(1000)
    )
    return [row.id for row in rows]


def _with_identity(ledger: Queryable, identity: Identity | None) -> list[int]:
    if identity is None:
        return []
    return _ids(
        ledger,
        file.c.sop_uid == identity.sop_uid,
        file.c.series_uid == identity.series_uid,
        dialect.unindexed(file.c.study_id) == (ledger.study_id(identity.study_uid) or 0),
    )


def _summed(last: Any, of_study: Sequence[Any], host: str, modalities: tuple[str, ...]) -> StudySummary:
    """Sum up what there is of a study; ``last`` is what changed last."""
    waits = [row.next_attempt_at for row in of_study if row.next_attempt_at is not None]
    return StudySummary(
        host=host,
        study_uid=of_study[0].uid,
        states={state: sum(getattr(row, column) for row in of_study) for state, column in STATE_COLUMNS.items()},
        size_bytes=sum(row.size_bytes for row in of_study),
        modalities=modalities,
        first_at=min(row.first_at for row in of_study),
        changed_at=last.changed_at,
        next_attempt_at=min(waits, default=None),
        charged=max(row.charged for row in of_study),
    )


def _event(row: Any) -> Event:
    return Event(
        at=row.at,
        before=State(row.before) if row.before else None,
        after=State(row.after),
        reason=row.reason,
        note=row.note,
        attempt_id=row.attempt_id,
        evidence=told_evidence(row.evidence),
    )


def _attempt(row: Any) -> Attempt:
    return Attempt(
        attempt_id=row.id,
        worker=row.worker_id,
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
