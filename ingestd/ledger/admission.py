"""Files become rows: candidates, admission, refusal, and reading a row's file again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import bindparam, delete, select, update

from ingestd.lifecycle import (
    HOLDING,
    Arrival,
    Content,
    Identity,
    Reason,
    Refusal,
    Sameness,
    State,
    compare_content,
)

from . import dialect
from .row import HOLDS, Row, as_json, content_columns, content_of, identity_of, pieces, reach_of
from .schema import candidate, instance
from .transaction import Transaction
from .values import Admitted, Holder, Judged, NewCandidate

_NONE_JUDGED: Mapping[int, Judged] = MappingProxyType({})


@dataclass(slots=True)
class _Held:
    """The row that holds an identity, as the comparison needs it; it may be as new as this very call."""

    entry_id: int
    state: State
    spool: Path | None
    path: str | None  # as the row has it; None once removed
    relative_path: str
    in_place: bool
    content: Content

    def told(self) -> Holder:
        """Say it to whoever is to compare with it."""
        path = self.path if self.in_place or self.spool is not None else None
        if path is not None:
            path = reach_of(self.spool, path, in_place=self.in_place, relative_path=self.relative_path)
        return Holder(
            entry_id=self.entry_id,
            state=self.state,
            path=path,
            content=self.content,
        )


_HELD = (
    instance.c.id,
    instance.c.state,
    instance.c.host,
    instance.c.path,
    instance.c.relative_path,
    instance.c.in_place,
    instance.c.removed_at,
    instance.c.study_uid,
    instance.c.series_uid,
    instance.c.sop_uid,
    instance.c.transfer_syntax,
    instance.c.digest,
    instance.c.meta_digest,
    instance.c.dataset_offset,
    instance.c.size_bytes,
)
_SELECT_HELD = select(*_HELD).where(HOLDS, dialect.among(instance.c.sop_uid, "sop_uids")).with_for_update()
_CANDIDATES = select(candidate).where(
    candidate.c.host == bindparam("host"),
    candidate.c.inbox == bindparam("inbox"),
    dialect.among(candidate.c.relative_path, "paths"),
)
# By id alone: of the other columns' index a host is only the beginning.
_DROP = delete(candidate).where(
    dialect.among(candidate.c.id, "ids"), dialect.unindexed(candidate.c.host) == bindparam("host")
)
_LOOK_AGAIN = (
    update(instance)
    .where(dialect.among(instance.c.id, "ids"), dialect.unindexed(instance.c.state) == State.CONFIRMED)
    .values(next_check_at=bindparam("now"), checks=0, absences=0, absent_since=None)
)


def _holders(tx: Transaction, identities: Iterable[Identity]) -> dict[Identity, _Held]:
    """Look up who holds these identities."""
    wanted = {identity.sop_uid: None for identity in identities}
    found: dict[Identity, _Held] = {}
    for piece in pieces(list(wanted)):
        for row in tx.connection.execute(_SELECT_HELD, {"sop_uids": piece}):
            found[identity_of(row)] = _Held(
                entry_id=row.id,
                state=State(row.state),
                spool=tx.spool_of(row.host),
                path=row.path if row.removed_at is None else None,
                relative_path=row.relative_path,
                in_place=bool(row.in_place),
                content=content_of(row),
            )
    return found


def add_candidates(tx: Transaction, candidates: Sequence[NewCandidate], *, now: datetime) -> list[int]:
    """Put down which files are about to be read, before they are.

    The very file that was put down before keeps its row and its tries.
    """
    known: dict[tuple[str, str], Any] = {}
    by_inbox: dict[str, list[str]] = defaultdict(list)
    for each in candidates:
        by_inbox[each.inbox].append(each.relative_path)
    for inbox, paths in by_inbox.items():
        for piece in pieces(paths):
            rows = tx.connection.execute(_CANDIDATES, {"host": tx.host, "inbox": inbox, "paths": piece})
            known.update(((row.inbox, row.relative_path), row) for row in rows)
    ids: list[int] = []
    fresh: list[dict[str, Any]] = []
    changed: list[int] = []
    next_id = max(tx.first_candidate_id, dialect.next_id(tx.connection, candidate))
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
                "host": tx.host,
                "inbox": each.inbox,
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
    tx.first_candidate_id = next_id
    return ids


def candidate_died(tx: Transaction, candidate_id: int) -> int:
    """Count a reader that this file killed."""
    where = (candidate.c.id == candidate_id, candidate.c.host == tx.host)
    tx.connection.execute(update(candidate).where(*where).values(tries=candidate.c.tries + 1))
    tries: int | None = tx.connection.execute(select(candidate.c.tries).where(*where)).scalar_one_or_none()
    return tries or 0


def drop_candidates(tx: Transaction, candidate_ids: Iterable[int]) -> None:
    """Forget files that nothing came of."""
    for piece in pieces(list(candidate_ids)):
        tx.connection.execute(_DROP, {"ids": piece, "host": tx.host})


def admit(
    tx: Transaction,
    arrivals: Sequence[Arrival],
    *,
    judged: Mapping[int, Judged] = _NONE_JUDGED,
    now: datetime,
) -> list[Admitted]:
    """Make rows of files that were read whole: PENDING, or what the row that holds the identity makes of them.

    Answers come in the order of the arrivals. ``judged`` has, by position in ``arrivals``, what a comparison with the
    holder came to; it counts only while that row still holds the identity.
    """
    tx.write_rows()
    held = _holders(tx, (arrival.identity for arrival in arrivals))
    answers: list[Admitted] = []
    look_again: dict[int, None] = {}
    done: list[int] = []
    for position, arrival in enumerate(arrivals):
        holder = held.get(arrival.identity)
        same = _compare(arrival, holder, judged.get(position)) if holder is not None else None
        if same is Sameness.COMPARE:
            assert holder is not None, "only a holder is compared with"
            answers.append(Admitted(entry_id=None, state=None, holder=holder.told(), needs_compare=True))
            continue
        state, reason, note = _verdict(same, holder)
        entry_id = tx.new_id()
        tx.add(_new_row(tx, entry_id, arrival, state, reason, note, holder, now), at=now, note=note)
        _label(tx, arrival)
        answers.append(Admitted(entry_id=entry_id, state=state, holder=holder.told() if holder else None))
        if arrival.candidate_id is not None:
            done.append(arrival.candidate_id)
        if holder is None:
            held[arrival.identity] = _Held(
                entry_id=entry_id,
                state=state,
                spool=tx.spool,
                path=arrival.path,
                relative_path=arrival.relative_path,
                in_place=arrival.in_place,
                content=arrival.content,
            )
        elif state is State.DUPLICATE and holder.state is State.CONFIRMED:
            look_again[holder.entry_id] = None
    drop_candidates(tx, done)
    # Is it still there? If it was deleted on the server, dropping it again means "send it again".
    _look_again(tx, list(look_again), now)
    tx.flush()
    return answers


def _look_again(tx: Transaction, entry_ids: Sequence[int], now: datetime) -> None:
    tx.write_rows()
    for piece in pieces(entry_ids):
        tx.connection.execute(_LOOK_AGAIN, {"ids": piece, "now": now})


def _compare(arrival: Arrival, holder: _Held, answer: Judged | None) -> Sameness:
    if answer is not None and answer.holder_id == holder.entry_id:
        return answer.sameness
    return compare_content(arrival.content, holder.content)


def _verdict(same: Sameness | None, holder: _Held | None) -> tuple[State, Reason | None, str]:
    if holder is None:
        return State.PENDING, None, ""
    if same is Sameness.SAME:
        return State.DUPLICATE, Reason.SAME_CONTENT, f"row {holder.entry_id} has the same content"
    if same is Sameness.OTHER_ENCODING:
        note = f"row {holder.entry_id} holds the same UIDs in another encoding, which cannot be compared"
        return State.CONFLICT, Reason.OTHER_ENCODING, note
    return State.CONFLICT, Reason.OTHER_CONTENT, f"row {holder.entry_id} holds the same UIDs with other content"


def _new_row(
    tx: Transaction,
    entry_id: int,
    arrival: Arrival,
    state: State,
    reason: Reason | None,
    note: str,
    holder: _Held | None,
    now: datetime,
) -> dict[str, Any]:
    return {
        "id": entry_id,
        "host": tx.host,
        "state": state,
        "reason": reason,
        "note": note,
        "holds": int(state in HOLDING),
        "queued": int(state is State.PENDING),
        "inbox": arrival.inbox,
        "relative_path": arrival.relative_path,
        "source": arrival.source,
        "source_removed": int(arrival.source_removed),
        "path": arrival.path,
        "in_place": int(arrival.in_place),
        "study_uid": arrival.identity.study_uid,
        "series_uid": arrival.identity.series_uid,
        "sop_uid": arrival.identity.sop_uid,
        "sop_class_uid": arrival.sop_class_uid,
        **content_columns(arrival.content),
        "modality": arrival.modality,
        "station": arrival.station,
        "patient_hash": arrival.patient_hash,
        "accession_hash": arrival.accession_hash,
        "notes": as_json(arrival.notes),
        "priority": arrival.priority,
        "admitted_at": now,
        "changed_at": now,
        "holder_id": holder.entry_id if holder else None,
        "ctime_ns": arrival.ctime_ns,
        "source_ctime_ns": arrival.source_ctime_ns,
    }


def _label(tx: Transaction, arrival: Arrival) -> None:
    study_uid = arrival.identity.study_uid
    tx.counters.label("modality", arrival.modality, study_uid)
    tx.counters.label("patient", arrival.patient_hash, study_uid)
    tx.counters.label("accession", arrival.accession_hash, study_uid)
    tx.counters.label("series", arrival.identity.series_uid, study_uid)


def refuse(tx: Transaction, refusals: Sequence[Refusal], *, now: datetime) -> list[int]:
    """Make REJECTED rows of files that are not to be sent."""
    tx.write_rows()
    ids = []
    for refusal in refusals:
        entry_id = tx.new_id()
        identity = refusal.identity
        tx.add(
            {
                "id": entry_id,
                "host": tx.host,
                "state": State.REJECTED,
                "reason": refusal.reason,
                "note": refusal.note,
                "holds": 0,
                "queued": 0,
                "inbox": refusal.inbox,
                "relative_path": refusal.relative_path,
                "source": refusal.source,
                "source_removed": int(refusal.source_removed),
                "path": refusal.path,
                "in_place": int(refusal.in_place),
                "study_uid": identity.study_uid if identity else None,
                "series_uid": identity.series_uid if identity else None,
                "sop_uid": identity.sop_uid if identity else None,
                "size_bytes": refusal.source.size_bytes,
                "priority": refusal.priority,
                "admitted_at": now,
                "changed_at": now,
                "ctime_ns": refusal.ctime_ns,
                "source_ctime_ns": refusal.source_ctime_ns,
            },
            at=now,
            note=refusal.note,
        )
        ids.append(entry_id)
    drop_candidates(tx, [each.candidate_id for each in refusals if each.candidate_id is not None])
    tx.flush()
    return ids


def reread(
    tx: Transaction,
    entry_id: int,
    arrival: Arrival,
    *,
    judged: Judged | None = None,
    now: datetime,
) -> Admitted:
    """Take over what a PENDING row's file now holds; it may belong to another identity than before."""
    row = tx.rows_by_id([entry_id]).get(entry_id)
    if row is None or row.state is not State.PENDING:
        return Admitted(entry_id=None, state=row.state if row else None)
    holder = _holders(tx, [arrival.identity]).get(arrival.identity)
    if holder is not None and holder.entry_id == entry_id:
        holder = None
    same = _compare(arrival, holder, judged) if holder is not None else None
    if same is Sameness.COMPARE:
        assert holder is not None, "only a holder is compared with"
        return Admitted(entry_id=None, state=None, holder=holder.told(), needs_compare=True)
    state, reason, note = _verdict(same, holder)
    unchanged = row.digest == arrival.content.digest and row.identity == arrival.identity
    if state is State.PENDING:
        reason, note = Reason.CHANGED, "read again" if unchanged else "its bytes had changed; it was read again"
    assert reason is not None, "only a new PENDING row has none"
    followers = [] if unchanged else tx.rows_on(entry_id, instance.c.state == State.DUPLICATE)
    tx.move(
        row,
        state,
        at=now,
        reason=reason,
        note=note,
        need=None,
        source=arrival.source,
        path=arrival.path,
        ctime_ns=arrival.ctime_ns,
        in_place=int(arrival.in_place),
        study_uid=arrival.identity.study_uid,
        series_uid=arrival.identity.series_uid,
        sop_uid=arrival.identity.sop_uid,
        sop_class_uid=arrival.sop_class_uid,
        **content_columns(arrival.content),
        modality=arrival.modality,
        station=arrival.station,
        patient_hash=arrival.patient_hash,
        accession_hash=arrival.accession_hash,
        notes=as_json(arrival.notes),
        # The copy was made of the former bytes.
        reencoded_path=None,
        reencoded_digest=None,
        holder_id=holder.entry_id if holder else None,
    )
    _label(tx, arrival)
    tx.write_rows()
    _let_go(tx, row, arrival, followers, now)
    tx.flush()
    return Admitted(entry_id=entry_id, state=state, holder=holder.told() if holder else None)


def _let_go(tx: Transaction, row: Row, arrival: Arrival, followers: Sequence[Row], now: datetime) -> None:
    """See to the duplicates of a row whose bytes are others now: none of them is what it will send."""
    if not followers:
        return
    if row.identity == arrival.identity:
        for duplicate in followers:
            tx.point_to(duplicate, row.id, same=duplicate.digest == arrival.content.digest, at=now)
    else:
        tx.pass_on(row, at=now)


def reread_refused(tx: Transaction, entry_id: int, refusal: Refusal, *, now: datetime) -> bool:
    """Reject a PENDING row whose file turned out, read again, to be no whole DICOM file any more."""
    row = tx.rows_by_id([entry_id]).get(entry_id)
    if row is None or row.state is not State.PENDING:
        return False
    tx.move(
        row,
        State.REJECTED,
        at=now,
        reason=refusal.reason,
        note=refusal.note,
        path=refusal.path,
        in_place=int(refusal.in_place),
        source=refusal.source,
        ctime_ns=refusal.ctime_ns,
        reencoded_path=None,
        reencoded_digest=None,
    )
    tx.flush()
    return True
