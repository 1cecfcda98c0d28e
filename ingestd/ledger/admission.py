"""Files become rows: candidates, admission, refusal, and reading a row's file again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import bindparam, delete, select, update

from ingestd.lifecycle import HOLDING, Arrival, Identity, Reason, Refusal, Sameness, State, compare_content

from . import dialect
from .row import CONTENT, HOLDS, IDENTITY, Row, as_json, columns, content_of, identity_of, pieces, reach_of
from .schema import candidate, instance
from .transaction import Transaction
from .values import Admitted, Holder, Judged, NewCandidate

_NONE_JUDGED: Mapping[int, Judged] = MappingProxyType({})


_HELD = (*columns("id state host path relative_path in_place removed_at"), *IDENTITY, *CONTENT)
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


def _holders(tx: Transaction, arrivals: Iterable[Arrival]) -> dict[Identity, Holder]:
    """Look up who holds the identities of these."""
    wanted: dict[str, None] = {}
    for arrival in arrivals:
        wanted[arrival.identity.sop_uid] = None
    found: dict[Identity, Holder] = {}
    for piece in pieces(list(wanted)):
        for row in tx.connection.execute(_SELECT_HELD, {"sop_uids": piece}):
            spool, in_place = tx.spool_of(row.host), bool(row.in_place)
            has_file = row.removed_at is None and (in_place or spool is not None)
            found[identity_of(row)] = Holder(
                entry_id=row.id,
                state=State(row.state),
                path=reach_of(spool, row.path, in_place=in_place, relative_path=row.relative_path)
                if has_file
                else None,
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
            for left in rows:
                known[left.inbox, left.relative_path] = left
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
    tx: Transaction, arrivals: Sequence[Arrival], *, judged: Mapping[int, Judged] = _NONE_JUDGED, now: datetime
) -> list[Admitted]:
    """Make rows of files that were read whole: PENDING, or what the row that holds the identity makes of them.

    Answers come in the order of the arrivals. ``judged`` has, by position in ``arrivals``, what a comparison with the
    holder came to; it counts only while that row still holds the identity.
    """
    tx.write_rows()
    held = _holders(tx, arrivals)
    answers: list[Admitted] = []
    look_again: dict[int, None] = {}
    done: list[int] = []
    for position, arrival in enumerate(arrivals):
        holder = held.get(arrival.identity)
        decided = _decide(arrival, holder, judged.get(position))
        if decided is None:
            answers.append(Admitted(entry_id=None, state=None, holder=holder, needs_compare=True))
            continue
        state, reason, note = decided
        entry_id = tx.new_id()
        values = _new_row(tx, entry_id, arrival, state, reason, note, now)
        values.update(_what_was_read(arrival), holder_id=holder.entry_id if holder else None)
        tx.add(values, at=now, note=note)
        tx.counters.label(arrival)
        answers.append(Admitted(entry_id=entry_id, state=state, holder=holder))
        if arrival.candidate_id is not None:
            done.append(arrival.candidate_id)
        if holder is None:
            place, in_place, below = arrival.path, arrival.in_place, arrival.relative_path
            held[arrival.identity] = Holder(
                entry_id=entry_id,
                state=state,
                path=reach_of(tx.spool, place, in_place=in_place, relative_path=below),
                content=arrival.content,
            )
        elif state is State.DUPLICATE and holder.state is State.CONFIRMED:
            look_again[holder.entry_id] = None
    drop_candidates(tx, done)
    # Is it still there? If it was deleted on the server, dropping it again means "send it again".
    tx.write_rows()
    for piece in pieces(list(look_again)):
        tx.connection.execute(_LOOK_AGAIN, {"ids": piece, "now": now})
    tx.flush()
    return answers


def _decide(arrival: Arrival, holder: Holder | None, judged: Judged | None) -> tuple[State, Reason | None, str] | None:
    """Say what becomes of a file, by who holds its identity; None: the two have to be compared first."""
    if holder is None:
        return State.PENDING, None, ""
    if judged is not None and judged.holder_id == holder.entry_id:
        same = judged.sameness
    else:
        same = compare_content(arrival.content, holder.content)
    if same is Sameness.COMPARE:
        return None
    if same is Sameness.SAME:
        return State.DUPLICATE, Reason.SAME_CONTENT, f"row {holder.entry_id} has the same content"
    if same is Sameness.OTHER_ENCODING:
        note = f"row {holder.entry_id} holds the same UIDs in another encoding, which cannot be compared"
        return State.CONFLICT, Reason.OTHER_ENCODING, note
    return State.CONFLICT, Reason.OTHER_CONTENT, f"row {holder.entry_id} holds the same UIDs with other content"


def _new_row(
    tx: Transaction,
    entry_id: int,
    file: Arrival | Refusal,
    state: State,
    reason: Reason | None,
    note: str,
    now: datetime,
) -> dict[str, Any]:
    identity = file.identity
    return {
        "id": entry_id,
        "host": tx.host,
        "state": state,
        "reason": reason,
        "note": note,
        "holds": int(state in HOLDING),
        "queued": int(state is State.PENDING),
        "inbox": file.inbox,
        "relative_path": file.relative_path,
        "source": file.source,
        "source_removed": int(file.source_removed),
        "path": file.path,
        "in_place": int(file.in_place),
        "study_uid": identity.study_uid if identity else None,
        "series_uid": identity.series_uid if identity else None,
        "sop_uid": identity.sop_uid if identity else None,
        "size_bytes": file.source.size_bytes,
        "priority": file.priority,
        "admitted_at": now,
        "changed_at": now,
        "ctime_ns": file.ctime_ns,
        "source_ctime_ns": file.source_ctime_ns,
    }


def _what_was_read(arrival: Arrival) -> dict[str, Any]:
    """Spread what is known of a file that was read whole over its columns."""
    return {
        "source": arrival.source,
        "path": arrival.path,
        "ctime_ns": arrival.ctime_ns,
        "in_place": int(arrival.in_place),
        "study_uid": arrival.identity.study_uid,
        "series_uid": arrival.identity.series_uid,
        "sop_uid": arrival.identity.sop_uid,
        "sop_class_uid": arrival.sop_class_uid,
        "transfer_syntax": arrival.content.transfer_syntax,
        "digest": arrival.content.digest,
        "meta_digest": arrival.content.meta_digest,
        "dataset_offset": arrival.content.dataset_offset,
        "size_bytes": arrival.content.size_bytes,
        "modality": arrival.modality,
        "station": arrival.station,
        "patient_hash": arrival.patient_hash,
        "accession_hash": arrival.accession_hash,
        "notes": as_json(arrival.notes),
    }


def refuse(tx: Transaction, refusals: Sequence[Refusal], *, now: datetime) -> list[int]:
    """Make REJECTED rows of files that are not to be sent."""
    tx.write_rows()
    ids = []
    for refusal in refusals:
        entry_id = tx.new_id()
        values = _new_row(tx, entry_id, refusal, State.REJECTED, refusal.reason, refusal.note, now)
        tx.add(values, at=now, note=refusal.note)
        ids.append(entry_id)
    drop_candidates(tx, [each.candidate_id for each in refusals if each.candidate_id is not None])
    tx.flush()
    return ids


def reread(
    tx: Transaction, entry_id: int, arrival: Arrival, *, judged: Judged | None = None, now: datetime
) -> Admitted:
    """Take over what a PENDING row's file now holds; it may belong to another identity than before."""
    row = tx.row(entry_id)
    if row is None or row.state is not State.PENDING:
        return Admitted(entry_id=None, state=row.state if row else None)
    holder = _holders(tx, [arrival]).get(arrival.identity)
    if holder is not None and holder.entry_id == entry_id:
        holder = None
    decided = _decide(arrival, holder, judged)
    if decided is None:
        return Admitted(entry_id=None, state=None, holder=holder, needs_compare=True)
    state, reason, note = decided
    unchanged = row.digest == arrival.content.digest and row.identity == arrival.identity
    if state is State.PENDING:
        reason, note = Reason.CHANGED, "read again" if unchanged else "its bytes had changed; it was read again"
    assert reason is not None, "only a new PENDING row has none"
    followers = [] if unchanged else tx.rows_on(entry_id, instance.c.state == State.DUPLICATE)
    tx.move(
        row,
        to=state,
        at=now,
        reason=reason,
        note=note,
        need=None,
        **_what_was_read(arrival),
        # The copy was made of the former bytes.
        reencoded_path=None,
        reencoded_digest=None,
        holder_id=holder.entry_id if holder else None,
    )
    tx.counters.label(arrival)
    tx.write_rows()
    _let_go(tx, row, arrival, followers, now)
    tx.flush()
    return Admitted(entry_id=entry_id, state=state, holder=holder)


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
    row = tx.row(entry_id)
    if row is None or row.state is not State.PENDING:
        return False
    tx.move(
        row,
        to=State.REJECTED,
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
