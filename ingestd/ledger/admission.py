"""Files become rows: candidates, admission, refusal, and reading a row's file again.

What was read of a file never changes. Where other bytes are found at its place they are a new file, with deliveries in
place of those that had still to be sent; what an attempt may have delivered is proven against what it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import bindparam, case, delete, exists, select, update

from ingestd.lifecycle import HOLDING, Arrival, Content, Identity, Reason, Refusal, Sameness, State, compare_content

from . import dialect
from .identity import hash_of
from .operator import readmitted
from .row import CONTENT, HOLDS, IDENTITY, OF_STUDY, Row, as_json, columns, content_of, identity_of, pieces, reach_of
from .schema import candidate, delivery, file, rendition
from .transaction import Transaction
from .values import Admitted, Holder, Judged, NewCandidate

_NONE_JUDGED: Mapping[int, Judged] = MappingProxyType({})
_NO_FORMERS: Mapping[int, int] = MappingProxyType({})


_HOLDER = (*columns("id state spool_id destination_id path relative_path in_place removing_at"), *IDENTITY, *CONTENT)
_SELECT_HOLDERS = select(*_HOLDER).select_from(OF_STUDY)
_SELECT_HELD = _SELECT_HOLDERS.where(
    HOLDS,
    delivery.c.destination_id == bindparam("destination_id"),
    dialect.among(delivery.c.identity, "identities"),
).with_for_update(of=delivery)
_SELECT_ONE = _SELECT_HOLDERS.where(delivery.c.id == bindparam("id"))
_CANDIDATES = select(candidate).where(
    candidate.c.inbox_id == bindparam("inbox_id"), dialect.among(candidate.c.relative_path, "paths")
)
_DROP = delete(candidate).where(dialect.among(candidate.c.id, "ids"))
_LOOK_AGAIN = (
    update(delivery)
    .where(dialect.among(delivery.c.id, "ids"), dialect.unindexed(delivery.c.state) == State.CONFIRMED)
    .values(next_check_at=bindparam("now"), checks=0, absences=0, absent_since=None)
)
_READ = select(*CONTENT, file.c.identity).where(file.c.id == bindparam("id"))


class _Delivered(NamedTuple):
    """What becomes of an arrival at one destination."""

    destination_id: int
    state: State
    reason: Reason | None
    note: str
    holder: Holder | None


def _holders(tx: Transaction, destination_id: int, arrivals: Iterable[Arrival]) -> dict[Identity, Holder]:
    """Look up who holds the identities of these at a destination."""
    found: dict[Identity, Holder] = {}
    wanted = sorted({hash_of(arrival.identity) for arrival in arrivals})
    for piece in pieces(wanted):
        asked = {"destination_id": destination_id, "identities": piece}
        for row in tx.connection.execute(_SELECT_HELD, asked):
            found[identity_of(row)] = _holder(tx, row)
    return found


def _holder(tx: Transaction, row: Any) -> Holder:
    spool, in_place = tx.spool_of(row.spool_id), bool(row.in_place)
    has_file = row.removing_at is None and (in_place or spool is not None)
    return Holder(
        entry_id=row.id,
        state=State(row.state),
        path=reach_of(spool, row.path, in_place=in_place, relative_path=row.relative_path) if has_file else None,
        content=content_of(row),
    )


def add_candidates(tx: Transaction, candidates: Sequence[NewCandidate], *, now: datetime) -> list[int]:
    """Put down which files are about to be read, before they are.

    The very file that was put down before keeps its row and its tries.
    """
    known: dict[tuple[str, str], Any] = {}
    by_inbox: dict[str, list[str]] = defaultdict(list)
    for each in candidates:
        by_inbox[each.inbox].append(each.relative_path)
    numbers = {inbox: tx.inbox_id(inbox) for inbox in by_inbox}
    for inbox, paths in by_inbox.items():
        for piece in pieces(paths):
            for left in tx.connection.execute(_CANDIDATES, {"inbox_id": numbers[inbox], "paths": piece}):
                known[inbox, left.relative_path] = left
    ids: list[int] = []
    fresh: list[dict[str, Any]] = []
    changed: list[int] = []
    next_id = tx.next_number("candidate", len(candidates))
    for each in candidates:
        row = known.get((each.inbox, each.relative_path))
        if row is not None and row.source == each.source:
            ids.append(row.id)
            continue
        if row is not None:
            changed.append(row.id)
        fresh.append(
            {
                "id": next_id,
                "spool_id": tx.spool_id,
                "inbox_id": numbers[each.inbox],
                "relative_path": each.relative_path,
                "source": each.source,
                "since": now,
            }
        )
        ids.append(next_id)
        next_id += 1
    drop_candidates(tx, changed)
    if fresh:
        dialect.insert_rows(tx.connection, candidate, fresh)
    return ids


def candidate_died(tx: Transaction, candidate_id: int) -> int:
    """Count a reader that this file killed."""
    where = candidate.c.id == candidate_id
    tx.connection.execute(update(candidate).where(where).values(tries=candidate.c.tries + 1))
    tries: int | None = tx.connection.execute(select(candidate.c.tries).where(where)).scalar_one_or_none()
    return tries or 0


def drop_candidates(tx: Transaction, candidate_ids: Iterable[int]) -> None:
    """Forget files that nothing came of."""
    for piece in pieces(list(candidate_ids)):
        tx.connection.execute(_DROP, {"ids": piece})


def admit(
    tx: Transaction, arrivals: Sequence[Arrival], *, judged: Mapping[int, Judged] = _NONE_JUDGED, now: datetime
) -> list[Admitted]:
    """Make rows of files that were read whole: PENDING, or what the row that holds the identity makes of them.

    Answers come in the order of the arrivals. ``judged`` has, by position in ``arrivals``, what a comparison with the
    holder came to; it counts only while that row still holds the identity.
    """
    tx.write_rows()
    destination_id = tx.destination_id
    held = _holders(tx, destination_id, arrivals)
    studies = tx.study_ids(arrival.identity.study_uid for arrival in arrivals)
    numbers = iter(tx.new_ids(len(arrivals)))
    answers: list[Admitted] = []
    look_again: dict[int, None] = {}
    done: list[int] = []
    for position, arrival in enumerate(arrivals):
        holder = held.get(arrival.identity)
        decided = _decide(destination_id, arrival, holder, judged.get(position))
        if decided is None:
            answers.append(Admitted(entry_id=None, state=None, holder=holder, needs_compare=True))
            continue
        entry_id = next(numbers)
        _add(tx, entry_id, arrival, decided, studies[arrival.identity.study_uid], now)
        answers.append(Admitted(entry_id=entry_id, state=decided.state, holder=holder))
        if arrival.candidate_id is not None:
            done.append(arrival.candidate_id)
        if holder is None:
            place, in_place, below = arrival.path, arrival.in_place, arrival.relative_path
            held[arrival.identity] = Holder(
                entry_id=entry_id,
                state=decided.state,
                path=reach_of(tx.spool, place, in_place=in_place, relative_path=below),
                content=arrival.content,
            )
        elif decided.state is State.DUPLICATE and holder.state is State.CONFIRMED:
            look_again[holder.entry_id] = None
    drop_candidates(tx, done)
    _look_again(tx, look_again, now)
    tx.flush()
    return answers


def _look_again(tx: Transaction, holders: Iterable[int], now: datetime) -> None:
    """Ask whether these are still there: if one was deleted on the server, dropping it again means "send it again"."""
    tx.write_rows()
    for piece in pieces(list(holders)):
        tx.connection.execute(_LOOK_AGAIN, {"ids": piece, "now": now})


def _decide(destination_id: int, arrival: Arrival, holder: Holder | None, judged: Judged | None) -> _Delivered | None:
    """Say what becomes of a file, by who holds its identity; None: the two have to be compared first."""
    if holder is None:
        return _Delivered(destination_id, State.PENDING, None, "", None)
    if judged is not None and judged.holder_id == holder.entry_id:
        same = judged.sameness
    else:
        same = compare_content(arrival.content, holder.content)
    if same is Sameness.COMPARE:
        return None
    row = f"row {holder.entry_id}"
    if same is Sameness.SAME:
        state, reason, note = State.DUPLICATE, Reason.SAME_CONTENT, f"{row} has the same content"
    elif same is Sameness.OTHER_ENCODING:
        note = f"{row} holds the same UIDs in another encoding, which cannot be compared"
        state, reason = State.CONFLICT, Reason.OTHER_ENCODING
    else:
        note = f"{row} holds the same UIDs with other content"
        state, reason = State.CONFLICT, Reason.OTHER_CONTENT
    return _Delivered(destination_id, state, reason, note, holder)


def _add(tx: Transaction, number: int, arrival: Arrival, decided: _Delivered, study_id: int, now: datetime) -> None:
    """Add a file that was read whole, and its delivery under the same number."""
    content, identity = arrival.content, hash_of(arrival.identity)
    values = _place_of(tx, number, arrival, now)
    values.update(
        state=None,
        reason=None,
        note="",
        study_id=study_id,
        series_uid=arrival.identity.series_uid,
        sop_uid=arrival.identity.sop_uid,
        identity=identity,
        sop_class_uid=arrival.sop_class_uid,
        transfer_syntax=content.transfer_syntax,
        digest=content.digest,
        meta_digest=content.meta_digest,
        dataset_offset=content.dataset_offset,
        size_bytes=content.size_bytes,
        modality=arrival.modality,
        station=arrival.station,
        patient_hash=arrival.patient_hash or None,
        accession_hash=arrival.accession_hash or None,
        notes=as_json(arrival.notes),
        needed_by=1,
    )
    tx.add_file(values, at=now)
    delivered = {
        "id": number,
        "file_id": number,
        "destination_id": decided.destination_id,
        "spool_id": tx.spool_id,
        "state": decided.state,
        "reason": decided.reason,
        "note": decided.note,
        "holds": int(decided.state in HOLDING),
        "study_id": study_id,
        "identity": identity,
        "size_bytes": content.size_bytes,
        "admitted_at": now,
        "changed_at": now,
        "queued": int(decided.state is State.PENDING),
        "holder_id": decided.holder.entry_id if decided.holder else None,
    }
    tx.add(delivered, inbox_id=values["inbox_id"], priority=arrival.priority, at=now, note=decided.note)
    tx.counters.label(arrival, study_id)


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
        "changed_at": now,
        "ctime_ns": arrived.ctime_ns,
        "source_ctime_ns": arrived.source_ctime_ns,
    }


def refuse(
    tx: Transaction, refusals: Sequence[Refusal], *, formers: Mapping[int, int] = _NO_FORMERS, now: datetime
) -> list[int]:
    """Make REJECTED files of those that are not to be sent.

    ``formers`` has, by position in ``refusals``, the REJECTED row whose file it was. It is closed first, for the file
    may lie where it lay, and of each path one row is kept.
    """
    numbers = tx.new_ids(len(refusals))
    for position, former in formers.items():
        readmitted(tx, former, numbers[position], now=now)
    _refuse(tx, list(zip(numbers, refusals, strict=True)), now)
    return list(numbers)


def _refuse(tx: Transaction, numbered: Sequence[tuple[int, Refusal]], now: datetime) -> None:
    studies = tx.study_ids(refusal.identity.study_uid for _, refusal in numbered if refusal.identity)
    for number, refusal in numbered:
        identity = refusal.identity
        values = _place_of(tx, number, refusal, now)
        values.update(
            state=State.REJECTED,
            reason=refusal.reason,
            note=refusal.note,
            study_id=studies[identity.study_uid] if identity else None,
            series_uid=identity.series_uid if identity else None,
            sop_uid=identity.sop_uid if identity else None,
            identity=hash_of(identity) if identity else None,
            size_bytes=refusal.source.size_bytes,
        )
        tx.add_file(values, at=now)
    drop_candidates(tx, [each.candidate_id for _, each in numbered if each.candidate_id is not None])
    tx.flush()


def reread(
    tx: Transaction, entry_id: int, arrival: Arrival, *, judged: Judged | None = None, now: datetime
) -> Admitted:
    """Go on with a PENDING row whose file was read again; where it holds other bytes now, with a new file of these."""
    row = tx.row(entry_id)
    if row is None or row.state is not State.PENDING:
        return Admitted(entry_id=None, state=row.state if row else None)
    if _is_unchanged(tx, row, arrival):
        tx.move(row, to=State.PENDING, at=now, reason=Reason.CHANGED, note="read again", need=None)
        tx.set_file(row.file_id, source=arrival.source, ctime_ns=arrival.ctime_ns)
        tx.flush()
        return Admitted(entry_id=entry_id, state=State.PENDING)
    holder = _holder_after(tx, row, arrival)
    decided = _decide(row.destination_id, arrival, holder, judged)
    if decided is None:
        return Admitted(entry_id=None, state=None, holder=holder, needs_compare=True)
    (number,) = tx.new_ids(1)
    _end_changed(tx, row, number, now)
    studies = tx.study_ids([arrival.identity.study_uid])
    _add(tx, number, arrival, decided, studies[arrival.identity.study_uid], now)
    if decided.state is State.DUPLICATE and holder is not None and holder.state is State.CONFIRMED:
        _look_again(tx, [holder.entry_id], now)
    tx.flush()
    return Admitted(entry_id=number, state=decided.state, holder=holder)


def _is_unchanged(tx: Transaction, row: Row, arrival: Arrival) -> bool:
    was = tx.connection.execute(_READ, {"id": row.file_id}).one()
    read: Content = content_of(was)
    return read == arrival.content and was.identity == hash_of(arrival.identity)


def _holder_after(tx: Transaction, row: Row, arrival: Arrival) -> Holder | None:
    """Say who holds the identity of an arrival once this row has given up its own."""
    holder = _holders(tx, row.destination_id, [arrival]).get(arrival.identity)
    if holder is None or holder.entry_id != row.id:
        return holder
    waiting = tx.duplicates_of([row.id])
    return _holder(tx, tx.connection.execute(_SELECT_ONE, {"id": waiting[0].id}).one()) if waiting else None


def _end_changed(tx: Transaction, row: Row, number: int, now: datetime) -> None:
    """Let go of a row whose bytes are gone: what lies in their place is another file."""
    note = f"its bytes are gone; what lies in their place was read as row {number}"
    tx.move(row, to=State.DISCARDED, at=now, reason=Reason.CHANGED, note=note)
    # What was sent in its stead lies there still, for nobody.
    has_more = exists().where(rendition.c.file_id == row.file_id, rendition.c.removed_at.is_(None))
    tx.set_file(row.file_id, removing_at=now, removed_at=now, in_spool=case((has_more, 1), else_=0))
    tx.flush()


def reread_refused(tx: Transaction, entry_id: int, refusal: Refusal, *, now: datetime) -> int | None:
    """Let go of a PENDING row whose file is no whole DICOM file any more; give the number of the REJECTED one."""
    row = tx.row(entry_id)
    if row is None or row.state is not State.PENDING:
        return None
    (number,) = tx.new_ids(1)
    _end_changed(tx, row, number, now)
    _refuse(tx, [(number, refusal)], now)
    return number
