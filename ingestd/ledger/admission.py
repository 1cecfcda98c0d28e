"""Files become rows: candidates, admission, refusal, and reading a row's file again.

What was read of a file never changes. Where other bytes are found at its place they are a new file, with deliveries in
place of those that had still to be sent; what an attempt may have delivered is proven against what it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import bindparam, case, delete, exists, select, update

from ingestd.lifecycle import GIVES_IDENTITY_UP, HOLDING, Arrival, Content, Identity, Reason, Refusal, State

from . import dialect
from .identity import hash_of
from .operator import readmitted
from .row import (
    CONTENT,
    HOLDS,
    IDENTITY,
    OF_STUDY,
    Row,
    as_json,
    columns,
    content_of,
    identity_of,
    pieces,
    waits_with_its_file,
    was_let_go_by_rule,
)
from .sameness import Judgement, judge
from .schema import candidate, delivery, file, rendition
from .transaction import Transaction
from .values import Admitted, NewCandidate, PendingRead

_NO_FORMERS: Mapping[int, int] = MappingProxyType({})


_SELECT_HOLDERS = select(*columns("id state transfer_syntax digest"), *IDENTITY).select_from(OF_STUDY)
_SELECT_HELD = dialect.LookUpEach(
    _SELECT_HOLDERS.where(HOLDS, delivery.c.destination_id == bindparam("destination_id")).with_for_update(of=delivery),
    delivery.c.identity,
    "identities",
)
_CANDIDATES = dialect.LookUpEach(
    select(candidate).where(candidate.c.inbox_id == bindparam("inbox_id")), candidate.c.relative_path, "paths"
)
_DROP = delete(candidate).where(dialect.among(candidate.c.id, "ids"))
_STAY = update(candidate).where(dialect.among(candidate.c.id, "ids")).values(target="")
_LOOK_AGAIN = (
    update(delivery)
    .where(dialect.among(delivery.c.id, "ids"), dialect.unindexed(delivery.c.state) == State.CONFIRMED)
    .values(next_check_at=bindparam("now"), checks=0, absences=0, absent_since=None)
)
_OF_FILE = (file.c.study_id, file.c.series_uid, file.c.sop_uid)
_STAYS_THERE = select(file.c.id, *_OF_FILE).where(
    file.c.relative_path == bindparam("relative_path"),
    file.c.inbox_id == bindparam("inbox_id"),
    file.c.digest == bindparam("digest"),
    file.c.in_place == 1,
    file.c.removing_at.is_(None),
)
_READ = select(*CONTENT, *_OF_FILE).where(file.c.id == bindparam("id"))


class _Holder(NamedTuple):
    """Who holds an identity at a destination."""

    id: int
    state: State
    transfer_syntax: str
    digest: str


class _Delivered(NamedTuple):
    """What becomes of an arrival at one destination."""

    destination_id: int
    judgement: Judgement
    holder: _Holder | None


# Who holds which identity at which destination.
_Held: TypeAlias = dict[tuple[int, Identity], _Holder]


def _destinations_of(tx: Transaction, arrival: Arrival) -> list[int]:
    names = tx.served if arrival.route is None else arrival.route.destinations
    return [tx.destinations[name] for name in names]


def _holders(tx: Transaction, destination_ids: Iterable[int], arrivals: Iterable[Arrival]) -> _Held:
    """Look up who holds the identities of these at each destination."""
    found: _Held = {}
    wanted = sorted({hash_of(arrival.identity) for arrival in arrivals})
    for destination_id in sorted(set(destination_ids)):
        for piece in pieces(wanted):
            asked = {"destination_id": destination_id, "identities": piece}
            for row in _SELECT_HELD.run(tx.connection, asked):
                holder = _Holder(row.id, State(row.state), row.transfer_syntax, row.digest)
                found[destination_id, identity_of(row)] = holder
    return found


def add_candidates(tx: Transaction, candidates: Sequence[NewCandidate], *, now: datetime) -> list[int]:
    """Put down which files are about to be read, before they are.

    The very file that was put down before keeps its tries. Another one that was dropped under the same name, and is on
    its way into the spool or lies there, keeps its row.
    """
    known: dict[tuple[str, str, str], Any] = {}
    by_inbox: dict[str, list[str]] = defaultdict(list)
    for each in candidates:
        by_inbox[each.inbox].append(each.relative_path)
    numbers = {inbox: tx.inbox_id(inbox) for inbox in by_inbox}
    for inbox, paths in by_inbox.items():
        for piece in pieces(paths):
            for left in _CANDIDATES.run(tx.connection, {"inbox_id": numbers[inbox], "paths": piece}):
                known[inbox, left.relative_path, left.target] = left
    ids = dialect.take_numbers(tx.connection, "candidate", len(candidates))
    rows: list[dict[str, Any]] = []
    formers: list[int] = []
    for number, each in zip(ids, candidates, strict=True):
        place = (each.inbox, each.relative_path)
        former = known.get((*place, each.target)) or known.get((*place, ""))
        if former is not None:
            formers.append(former.id)
        rows.append(
            {
                "id": number,
                "spool_id": tx.spool_id,
                "inbox_id": numbers[each.inbox],
                "relative_path": each.relative_path,
                "source": each.source,
                "target": each.target,
                "tries": former.tries if former is not None and _is_of(former, each) else 0,
                "since": now,
            }
        )
    drop_candidates(tx, formers)
    if rows:
        dialect.insert_rows(tx.connection, candidate, rows)
    return [row["id"] for row in rows]


def _is_of(former: Any, found: NewCandidate) -> bool:
    """Whether a candidate row is of this very file, or of what it was copied from."""
    is_copy = former.target == found.target and former.source.looks_like(found.source)
    return is_copy or bool(former.source == found.source)


def candidate_died(tx: Transaction, candidate_id: int) -> int:
    """Count a reader that this file killed."""
    where = candidate.c.id == candidate_id
    tx.connection.execute(update(candidate).where(where).values(tries=candidate.c.tries + 1))
    tries: int | None = tx.connection.execute(select(candidate.c.tries).where(where)).scalar_one_or_none()
    return tries or 0


def stay_candidates(tx: Transaction, candidate_ids: Iterable[int]) -> None:
    """Forget the targets of files that lie where they lay, and altogether those that killed no reader."""
    for piece in pieces(list(candidate_ids)):
        tx.connection.execute(_DROP.where(candidate.c.tries == 0), {"ids": piece})
        tx.connection.execute(_STAY, {"ids": piece})


def drop_candidates(tx: Transaction, candidate_ids: Iterable[int]) -> None:
    """Forget files that nothing came of."""
    for piece in pieces(list(candidate_ids)):
        dialect.write(tx.connection, _DROP, {"ids": piece})


def admit(
    tx: Transaction,
    arrivals: Sequence[Arrival],
    *,
    formers: Mapping[int, int] = _NO_FORMERS,
    now: datetime,
) -> list[Admitted]:
    """Make rows of files that were read whole: at each destination PENDING, or what the holder makes of them there.

    Answers come in the order of the arrivals. ``formers`` has, by position in ``arrivals``, the row without a delivery
    whose file it was. That is closed first: the file may lie where it lay, and of each path one row is kept.
    """
    tx.write_rows()
    wanted = [_destinations_of(tx, arrival) for arrival in arrivals]
    held = _holders(tx, chain.from_iterable(wanted), arrivals)
    tx.studies({arrival.identity.study_uid: _labels_of(arrival) for arrival in reversed(arrivals)})  # all at once
    free = iter(tx.new_ids(sum(max(1, len(each)) for each in wanted)))
    answers: list[Admitted] = []
    look_again: dict[int, None] = {}
    for position, arrival in enumerate(arrivals):
        decided = _decide(wanted[position], arrival, held)
        numbers = list(islice(free, max(1, len(decided))))
        if position in formers:
            readmitted(tx, formers[position], numbers[0], now=now)
        _add(tx, numbers, arrival, decided, arrival.route.text if arrival.route is not None else "", now)
        answers.append(_answer(numbers, decided, arrival))
        _hold(held, arrival, decided, numbers)
        look_again.update(dict.fromkeys(_confirmed_holders(decided)))
    drop_candidates(tx, [arrival.candidate_id for arrival in arrivals if arrival.candidate_id is not None])
    look_again_at(tx, look_again, now)
    tx.flush()
    return answers


def _answer(numbers: Sequence[int], decided: Sequence[_Delivered], arrival: Arrival) -> Admitted:
    """Say what became of an arrival: the first of its deliveries stands for all."""
    return Admitted(number=numbers[0], state=(decided[0].judgement if decided else _end_of(arrival)).state)


def _hold(held: _Held, arrival: Arrival, decided: Sequence[_Delivered], numbers: Sequence[int]) -> None:
    """Remember that this one holds its identity now, where nobody did: another of the same call may have it too."""
    content = arrival.content
    for number, (destination_id, judgement, holder) in zip(numbers, decided, strict=False):
        if holder is None:
            holds = _Holder(number, judgement.state, content.transfer_syntax, content.digest)
            held[destination_id, arrival.identity] = holds


def _confirmed_holders(decided: Iterable[_Delivered]) -> Iterator[int]:
    for _, judgement, holder in decided:
        if judgement.reason is Reason.SAME_CONTENT and holder is not None and holder.state is State.CONFIRMED:
            yield holder.id


def look_again_at(tx: Transaction, holders: Iterable[int], now: datetime) -> None:
    """Ask whether these are still there: if one was deleted on the server, dropping it again means "send it again"."""
    tx.write_rows()
    for piece in pieces(list(holders)):
        tx.connection.execute(_LOOK_AGAIN, {"ids": piece, "now": now})


def _decide(destination_ids: Iterable[int], arrival: Arrival, held: _Held) -> list[_Delivered]:
    """Say what becomes of a file at each destination."""
    decided: list[_Delivered] = []
    for destination_id in destination_ids:
        holder = held.get((destination_id, arrival.identity))
        decided.append(_Delivered(destination_id, judge(arrival.content, holder), holder))
    return decided


def _end_of(arrival: Arrival) -> Judgement:
    """Say where a file ends that goes to no destination."""
    assert arrival.route is not None, "a file that goes everywhere goes somewhere"
    if arrival.route.rule is None:
        return Judgement(State.UNROUTED, Reason.NO_RULE, "no rule says where it goes")
    return Judgement(State.DISCARDED, Reason.BY_RULE, f"{arrival.route.text} says that it goes nowhere")


def _add(
    tx: Transaction, numbers: Sequence[int], arrival: Arrival, decided: Sequence[_Delivered], route: str, now: datetime
) -> None:
    """Add a file that was read whole, and its deliveries, of which the first has its number."""
    study_uid, labels = arrival.identity.study_uid, _labels_of(arrival)
    study = tx.studies({study_uid: labels})[study_uid]
    content = arrival.content
    values = _place_of(tx, numbers[0], arrival, now)
    state, reason, note = (None, None, "") if decided else _end_of(arrival)
    values.update(
        state=state,
        reason=reason,
        note=note,
        changed_at=now if state else None,
        study_id=study.id,
        series_uid=arrival.identity.series_uid,
        sop_uid=arrival.identity.sop_uid,
        sop_class_uid=arrival.sop_class_uid,
        transfer_syntax=content.transfer_syntax,
        digest=content.digest,
        meta_digest=content.meta_digest,
        dataset_offset=content.dataset_offset,
        size_bytes=content.size_bytes,
        sha256=arrival.sha256 or None,
        modality=arrival.modality,
        station=arrival.station,
        patient_hash=None if labels[0] == study.patient_hash else labels[0],
        accession_hash=None if labels[1] == study.accession_hash else labels[1],
        notes=as_json(arrival.notes),
        route=route,
        needed_by=len(decided),
        unneeded_at=now if state is State.DISCARDED else None,
    )
    tx.add_file(values, at=now)
    identity = hash_of(arrival.identity)
    for number, each in zip(numbers, decided, strict=False):
        add_delivery(
            tx,
            values,
            number,
            identity=identity,
            state=each.judgement.state,
            note=each.judgement.note,
            now=now,
            reason=each.judgement.reason,
            destination_id=each.destination_id,
            holder_id=each.holder.id if each.holder else None,
        )
    tx.counters.label(arrival, study.id)


def _labels_of(arrival: Arrival) -> tuple[str, str]:
    return arrival.patient_hash, arrival.accession_hash


def add_delivery(
    tx: Transaction, of: Mapping[str, Any], number: int, *, state: State, note: str, now: datetime, **values: Any
) -> None:
    """Add a delivery of a file, whose columns ``of`` has; ``values`` are the delivery's own: why, where, on whom."""
    values.update(
        id=number,
        file_id=of["id"],
        spool_id=of["spool_id"],
        state=state,
        note=note,
        holds=int(state in HOLDING),
        study_id=of["study_id"],
        size_bytes=of["size_bytes"],
        admitted_at=now,
        changed_at=now,
        queued=int(state is State.PENDING),
    )
    tx.add(values, inbox_id=of["inbox_id"], priority=of["priority"], at=now, note=note)


def _place_of(tx: Transaction, number: int, arrived: Arrival | Refusal, now: datetime) -> dict[str, Any]:
    """Spread over its columns where a file came from, and where it lies."""
    return {
        "id": number,
        "spool_id": tx.spool_id,
        "inbox_id": tx.inbox_id(arrived.inbox),
        "relative_path": arrived.relative_path,
        "source": arrived.source,
        "source_removed": int(arrived.source_removed),
        "path": arrived.path,
        "in_place": int(arrived.in_place),
        "in_spool": int(not arrived.in_place),
        "priority": arrived.priority,
        "admitted_at": now,
        "ctime_ns": arrived.ctime_ns,
        "source_ctime_ns": arrived.source_ctime_ns,
    }


def refuse(
    tx: Transaction, refusals: Sequence[Refusal], *, formers: Mapping[int, int] = _NO_FORMERS, now: datetime
) -> list[int]:
    """Make REJECTED files of those that are not to be sent.

    ``formers`` has, by position in ``refusals``, the REJECTED row whose file it was; closed first, as in ``admit``.
    """
    numbers = tx.new_ids(len(refusals))
    for position, former in formers.items():
        readmitted(tx, former, numbers[position], now=now)
    _refuse(tx, list(zip(numbers, refusals, strict=True)), now)
    return list(numbers)


def _refuse(tx: Transaction, numbered: Sequence[tuple[int, Refusal]], now: datetime) -> None:
    studies = tx.studies({refusal.identity.study_uid: (None, None) for _, refusal in numbered if refusal.identity})
    for number, refusal in numbered:
        identity = refusal.identity
        values = _place_of(tx, number, refusal, now)
        values.update(
            state=State.REJECTED,
            reason=refusal.reason,
            note=refusal.note,
            changed_at=now,
            study_id=studies[identity.study_uid].id if identity else None,
            series_uid=identity.series_uid if identity else None,
            sop_uid=identity.sop_uid if identity else None,
            size_bytes=refusal.source.size_bytes,
        )
        tx.add_file(values, at=now)
    drop_candidates(tx, [each.candidate_id for _, each in numbered if each.candidate_id is not None])
    tx.flush()


def reread(tx: Transaction, delivery_id: int, arrival: Arrival, *, now: datetime) -> Admitted:
    """Go on with a row that waits, whose file was read again; where it holds other bytes now, with a new file of these.

    The new file goes where the former went, as far as that is served still: there it takes the place of what had still
    to be sent or compared, and is held against what an attempt may have delivered.
    """
    row = tx.row(delivery_id)
    if row is None or not waits_with_its_file(row):
        return Admitted(number=None, state=None)
    rows = tx.rows_of_file(row.file_id)
    waiting = [each for each in rows if waits_with_its_file(each)]
    if _is_unchanged(tx, row, arrival):
        for each in waiting:
            if each.need == PendingRead.REREAD:
                reason = Reason.CHANGED if each.state is State.PENDING else Reason.NOT_COMPARED
                tx.move(each, to=each.state, at=now, reason=reason, note="read again", need=None)
        tx.set_file(row.file_id, source=arrival.source, ctime_ns=arrival.ctime_ns)
        tx.flush()
        return Admitted(number=delivery_id, state=row.state)
    if (known := _read_already(tx, waiting, arrival)) is not None:
        _end_changed(tx, waiting, known, now)
        return Admitted(number=None, state=None)
    served = {tx.destinations[name] for name in tx.served}
    wanted = [each for each in rows if not was_let_go_by_rule(each)]
    to = [each.destination_id for each in wanted if each.destination_id in served or each in waiting]
    held = _holders(tx, to, [arrival])
    for each in waiting:
        _give_way(tx, held, each, arrival)
    decided = _decide(to, arrival, held)
    numbers = tx.new_ids(len(decided))
    route: str = tx.connection.execute(select(file.c.route).where(file.c.id == row.file_id)).scalar_one()
    _end_changed(tx, waiting, numbers[0], now)
    _add(tx, numbers, arrival, decided, route, now)
    look_again_at(tx, _confirmed_holders(decided), now)
    tx.flush()
    return _answer(numbers, decided, arrival)


def _read_already(tx: Transaction, waiting: Sequence[Row], arrival: Arrival) -> int | None:
    """Say by which row these very bytes at this very place go to all that these rows are for; a file that stays there.

    Each row of a file that was written over more than once is read again, and what lies there is one file. What was let
    go of, or is proven, goes nowhere any more: such bytes are a new drop.
    """
    if not arrival.in_place:
        return None
    asked = {"inbox_id": tx.inbox_id(arrival.inbox), "relative_path": arrival.relative_path}
    for known in tx.connection.execute(_STAYS_THERE, asked | {"digest": arrival.content.digest}).all():
        rows = tx.rows_of_file(known.id) if _has_identity(tx, known, arrival) else []
        rows = [each for each in rows if each.settled_at is None and each.state not in GIVES_IDENTITY_UP]
        if {each.destination_id for each in rows} >= {each.destination_id for each in waiting}:
            return rows[0].file_id
    return None


def _is_unchanged(tx: Transaction, row: Row, arrival: Arrival) -> bool:
    was = tx.connection.execute(_READ, {"id": row.file_id}).one()
    read: Content = content_of(was)
    return read == arrival.content and _has_identity(tx, was, arrival)


def _has_identity(tx: Transaction, of: Any, arrival: Arrival) -> bool:
    identity = arrival.identity
    study_id = tx.study_id(identity.study_uid)
    return (of.study_id, of.series_uid, of.sop_uid) == (study_id, identity.series_uid, identity.sop_uid)


def _give_way(tx: Transaction, held: _Held, row: Row, arrival: Arrival) -> None:
    """Say who holds the identity of an arrival once this row has given up its own."""
    key = (row.destination_id, arrival.identity)
    holder = held.get(key)
    if holder is None or holder.id != row.id:
        return
    waiting = tx.duplicates_of([row.id])
    if waiting:
        first = waiting[0]
        held[key] = _Holder(first.id, first.state, first.transfer_syntax, first.digest)
    else:
        del held[key]


def _end_changed(tx: Transaction, waiting: Sequence[Row], number: int, now: datetime) -> None:
    """Let go of what had still to be sent of a file whose bytes are gone: what lies in their place is another one."""
    note = f"its bytes are gone; what lies in their place was read as row {number}"
    tx.move(*waiting, to=State.DISCARDED, at=now, reason=Reason.CHANGED, note=note)
    # What was sent in its stead lies there still, for nobody.
    has_more = exists().where(rendition.c.file_id == waiting[0].file_id, rendition.c.removed_at.is_(None))
    tx.set_file(waiting[0].file_id, removing_at=now, removed_at=now, in_spool=case((has_more, 1), else_=0))
    tx.flush()


def reread_refused(tx: Transaction, delivery_id: int, refusal: Refusal, *, now: datetime) -> int | None:
    """Let go of a row that waits, whose file is no whole DICOM file any more; give the number of the REJECTED one."""
    row = tx.row(delivery_id)
    if row is None or not waits_with_its_file(row):
        return None
    waiting = [each for each in tx.rows_of_file(row.file_id) if waits_with_its_file(each)]
    (number,) = tx.new_ids(1)
    _end_changed(tx, waiting, number, now)
    _refuse(tx, [(number, refusal)], now)
    return number
