"""Rows go out and come back: claim, finish, and what start-up finds of a process that died in between."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Hashable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import bindparam, func, insert, select, update

from ingestd.lifecycle import (
    Backoff,
    Batch,
    BatchLimits,
    BatchResult,
    Content,
    Outcome,
    Part,
    Reason,
    State,
    Waiting,
    cut_batch,
)

from . import dialect
from .row import QUEUED, ROW, Row, as_json, make_row, path_of
from .schema import Instant, attempt, candidate, destination, instance, study
from .transaction import Transaction
from .values import Finished, Need, Recovered

# Rows looked at beyond what fills a batch: those with a SOP Instance UID twice, or to travel alone, are passed over.
_SPARE = 16

_RECOVERED_AT_ONCE = 1000

_CLOSING = ("finished_at", "http_status", "body_bytes_left", "milliseconds", "error")


class _More(NamedTuple):
    """What a part needs beyond its Row."""

    path: str
    meta_digest: str
    dataset_offset: int
    alone: int
    replaces: int
    sop_class_uid: str | None
    reencoded_path: str | None
    reencoded_transfer_syntax: str
    reencoded_digest: str
    reencoded_meta_digest: str
    reencoded_dataset_offset: int
    reencoded_size_bytes: int


_PART = tuple(instance.c[name] for name in _More._fields)

_OWN_STUDY = (study.c.host == bindparam("host"), study.c.study_uid == bindparam("study_uid"))
_STUDY = (
    select(
        study.c.waiting,
        study.c.waiting_bytes,
        study.c.charged,
        study.c.pauses,
        study.c.in_flight,
        study.c.next_attempt_at,
    )
    .where(*_OWN_STUDY)
    .with_for_update()
)
_QUEUE = (
    select(*ROW, *_PART)
    .where(QUEUED, instance.c.host == bindparam("host"), instance.c.study_uid == bindparam("study_uid"))
    .order_by(instance.c.admitted_at, instance.c.id)
    .limit(bindparam("limit"))
    .with_for_update()
)
_OPEN_ATTEMPT = insert(attempt)
_CLOSE_ATTEMPT = (
    update(attempt)
    .where(attempt.c.id == bindparam("attempt_id"), attempt.c.finished_at.is_(None))
    .values({name: bindparam(name) for name in _CLOSING})
)
_ANSWERED = update(destination).values(last_ok_at=bindparam("at", type_=Instant()))


def recover(tx: Transaction, *, now: datetime) -> Recovered:
    """Settle what a process that died left open: its rows in SENDING may have arrived or not."""
    uncertain = 0
    while True:
        rows = tx.rows(
            tx.select_rows(instance.c.state == State.SENDING, instance.c.host == tx.host)
            .order_by(instance.c.changed_at)
            .limit(_RECOVERED_AT_ONCE)
        )
        for row in rows:
            tx.move(
                row,
                State.UNCERTAIN,
                at=now,
                reason=Reason.PROCESS_DIED,
                note="the process ended while it was being sent; the server will be asked",
                next_check_at=now,
                checks=0,
                absences=0,
                absent_since=None,
            )
        tx.settle()
        uncertain += len(rows)
        if len(rows) < _RECOVERED_AT_ONCE:
            break
    closed = tx.connection.execute(
        update(attempt)
        .where(attempt.c.host == tx.host, attempt.c.finished_at.is_(None))
        .values(finished_at=now, interrupted=1, error="the process ended before the answer was read")
    )
    # Behind the sums that were gathered, which may know of posts in flight themselves.
    tx.close()
    tx.connection.execute(update(study).where(study.c.host == tx.host, study.c.in_flight > 0).values(in_flight=0))
    left = tx.connection.execute(
        select(func.count()).select_from(candidate).where(candidate.c.host == tx.host)
    ).scalar_one()
    return Recovered(uncertain=uncertain, attempts=closed.rowcount, candidates=left)


def wake(tx: Transaction, *, now: datetime) -> int:
    """Let deferred rows whose time has come join the queue of their study."""
    rows = tx.rows(
        tx.select_rows(
            instance.c.next_attempt_at.is_not(None), instance.c.next_attempt_at <= now, instance.c.host == tx.host
        )
        .order_by(instance.c.next_attempt_at)
        .limit(_RECOVERED_AT_ONCE)
    )
    for row in rows:
        tx.change(row, {"next_attempt_at": None}, at=now)
    tx.settle()
    return len(rows)


def claim(tx: Transaction, study_uid: str, *, now: datetime, limits: BatchLimits | None) -> Batch | None:
    """Take the next batch of a study: its rows are SENDING and its attempt is on record before anything leaves (G5)."""
    tx.settle()
    limits = limits or tx.limits_of(tx.host)
    found = _read_study(tx, study_uid)
    if found is None or not found.waiting:
        return None
    if found.next_attempt_at is not None and found.next_attempt_at > now:
        return None
    if found.charged and found.in_flight:
        return None  # a study that is in trouble has one batch out at a time
    queued = _read_queue(tx, study_uid, limit=_rows_to_look_at(found, limits))
    chosen = cut_batch(
        [
            Waiting(
                entry_id=row.id,
                sop_uid=row.sop_uid or "",
                size_bytes=row.size_bytes if more.reencoded_path is None else more.reencoded_size_bytes,
                charged=row.charged,
                alone=bool(more.alone),
            )
            for row, more in queued
        ],
        limits,
        charged=found.charged,
    )
    taken = {waiting.entry_id for waiting in chosen}
    queued = [(row, more) for row, more in queued if row.id in taken]
    batch = Batch(
        attempt_id=dialect.next_id(tx.connection, attempt),
        claim_token=secrets.token_hex(16),
        study_uid=study_uid,
        parts=tuple(_part(tx, row, more) for row, more in queued),
        started_at=now,
        charged=found.charged,
    )
    _put_attempt(tx, batch)
    _mark_sending(tx, batch, [row for row, _ in queued])
    tx.sums.set_study(tx.host, study_uid, now, in_flight=found.in_flight + 1)
    tx.settle()
    return batch


def _read_queue(tx: Transaction, study_uid: str, *, limit: int) -> list[tuple[Row, _More]]:
    """Read the oldest queued rows of a study."""
    found = tx.connection.execute(_QUEUE, {"host": tx.host, "study_uid": study_uid, "limit": limit}).all()
    columns = len(ROW)
    return [(make_row(values[:columns]), _More(*values[columns:])) for values in map(tuple, found)]


def _part(tx: Transaction, row: Row, more: _More) -> Part:
    identity = row.identity
    assert identity is not None, "what is queued has its identity"
    reencoded = more.reencoded_path is not None
    path = more.path if more.reencoded_path is None else more.reencoded_path
    content = _content_of_copy(more) if reencoded else _content(row, more)
    return Part(
        entry_id=row.id,
        identity=identity,
        path=path_of(tx.spool, path, in_place=bool(row.in_place) and not reencoded),
        content=content,
        attempts=row.attempts,
        charged=row.charged,
        sop_class_uid=more.sop_class_uid or "",
        being_created_since=row.being_created_since,
        replaces=bool(more.replaces),
        reencoded=reencoded,
        generated_meta=content.dataset_offset == 0,
    )


def _content(row: Row, more: _More) -> Content:
    assert row.transfer_syntax is not None, "what is queued has its content"
    assert row.digest is not None, "what is queued has its content"
    return Content(
        transfer_syntax=row.transfer_syntax,
        digest=row.digest,
        meta_digest=more.meta_digest,
        dataset_offset=more.dataset_offset,
        size_bytes=row.size_bytes,
    )


def _content_of_copy(more: _More) -> Content:
    return Content(
        transfer_syntax=more.reencoded_transfer_syntax,
        digest=more.reencoded_digest,
        meta_digest=more.reencoded_meta_digest,
        dataset_offset=more.reencoded_dataset_offset,
        size_bytes=more.reencoded_size_bytes,
    )


def _put_attempt(tx: Transaction, batch: Batch) -> None:
    tx.connection.execute(
        _OPEN_ATTEMPT,
        {
            "id": batch.attempt_id,
            "host": tx.host,
            "study_uid": batch.study_uid,
            "claim_token": batch.claim_token,
            "started_at": batch.started_at,
            "instances": len(batch.parts),
            "size_bytes": batch.size_bytes,
        },
    )


def _rows_to_look_at(queue: Any, limits: BatchLimits) -> int:
    """Say how many rows fill a batch, going by the size of the study's files."""
    by_bytes: int = limits.max_bytes * queue.waiting // max(1, queue.waiting_bytes) * 2
    return min(limits.max_instances, max(by_bytes, 1)) + _SPARE


def _mark_sending(tx: Transaction, batch: Batch, rows: Sequence[Row]) -> None:
    by_attempts: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_attempts[row.attempts].append(row)
    for attempts, alike in by_attempts.items():
        first: dict[str, Any] = {"first_attempt_at": batch.started_at} if attempts == 0 else {}
        tx.move_all(
            alike,
            State.SENDING,
            at=batch.started_at,
            reason=None,
            by_attempt=batch.attempt_id,
            claim_token=batch.claim_token,
            attempt_id=batch.attempt_id,
            attempts=attempts + 1,
            last_attempt_at=batch.started_at,
            present_before=None,
            **first,
        )


def finish(
    tx: Transaction,
    result: BatchResult,
    *,
    now: datetime,
    backoff: Backoff,
    jitter: float,
    study_wait: timedelta | None,
) -> Finished:
    """Carry out what became of a batch, close its attempt, and let the study go on or wait."""
    batch = result.batch
    # Read before the moves below change its sums, so that these need not be written in between.
    before = _read_study(tx, batch.study_uid)
    assert before is not None, "a batch is of a study"
    rows = tx.rows_by_id(part.entry_id for part in batch.parts)
    outcomes = {outcome.entry_id: outcome for outcome in result.outcomes}
    same: dict[Hashable, tuple[Outcome, list[Row]]] = {}
    moved = 0
    for part in batch.parts:
        row = rows.get(part.entry_id)
        if row is None or row.state is not State.SENDING or row.claim_token != batch.claim_token:
            continue
        outcome = outcomes.get(part.entry_id) or Outcome(
            entry_id=part.entry_id,
            state=State.UNCERTAIN,
            reason=Reason.NO_VERDICT,
            note="nothing was said of this file; the server will be asked",
        )
        same.setdefault(_effect(row, outcome), (outcome, []))[1].append(row)
        moved += 1
    for outcome, alike in same.values():
        _come_back(tx, alike, outcome, batch, now)
    tx.settle()
    was_open = _close_attempt(tx, result)
    charged, pauses, next_attempt_at = _study_goes_on(
        tx, result, before, now, backoff, jitter, study_wait, was_open=was_open
    )
    if result.answered:
        tx.connection.execute(_ANSWERED, {"at": result.finished_at})
    tx.settle()
    return Finished(
        moved=moved,
        lost=len(batch.parts) - moved,
        charged=charged,
        pauses=pauses,
        next_attempt_at=next_attempt_at,
    )


def _effect(row: Row, outcome: Outcome) -> Hashable:
    """Say what of a row and its outcome decides what ``_come_back`` sets."""
    return (
        row.charged,
        row.being_created_since,
        row.seen_sequence is None,
        outcome.state,
        outcome.reason,
        outcome.note,
        outcome.charge,
        outcome.alone,
        outcome.failure_reason,
        outcome.warning_reason,
        outcome.failed_attributes,
        outcome.wait,
        outcome.reread,
        outcome.reencode,
        outcome.needs_content_check,
        tuple(outcome.evidence.items()),
    )


def _come_back(tx: Transaction, rows: Sequence[Row], outcome: Outcome, batch: Batch, now: datetime) -> None:
    """Move rows on which this outcome has the same effect."""
    row = rows[0]
    values: dict[str, Any] = {
        "charged": 0 if outcome.state is State.STORED else row.charged + int(outcome.charge),
        "alone": int(outcome.alone),
        "failure_reason": outcome.failure_reason,
        "warning_reason": outcome.warning_reason,
        "failed_attributes": as_json(outcome.failed_attributes),
        "present_before": _present_before(outcome),
        "being_created_since": None,
    }
    if outcome.reason is Reason.BEING_CREATED:
        values["being_created_since"] = row.being_created_since or now
    later = now + outcome.wait if outcome.wait is not None else None
    if outcome.state is State.PENDING:
        values["next_attempt_at"] = later
        values["need"] = need_of(outcome)
    elif outcome.state in (State.STORED, State.UNCERTAIN):
        values.update(
            # What the feed has shown of it while it was out need not wait.
            next_check_at=now if row.seen_sequence is not None or later is None else later,
            checks=0,
            absences=0,
            absent_since=None,
        )
        if outcome.needs_content_check or outcome.reason is Reason.ALREADY_THERE:
            values["needs_content_check"] = 1
        if outcome.state is State.STORED:
            values.update(stored_at=now, was_stored=1)
    tx.move_all(
        rows,
        outcome.state,
        at=now,
        reason=outcome.reason,
        note=outcome.note,
        evidence=outcome.evidence,
        by_attempt=batch.attempt_id,
        **values,
    )


def need_of(outcome: Outcome) -> Need | None:
    """Say what the reader has to do before the row can be sent."""
    if outcome.reread:
        return Need.REREAD
    return Need.REENCODE if outcome.reencode else None


def _present_before(outcome: Outcome) -> int | None:
    return {"yes": 1, "no": 0}.get(outcome.evidence.get("present_before", ""))


def _close_attempt(tx: Transaction, result: BatchResult) -> bool:
    closed = tx.connection.execute(
        _CLOSE_ATTEMPT,
        {
            "attempt_id": result.batch.attempt_id,
            "finished_at": result.finished_at,
            "http_status": result.http_status,
            "body_bytes_left": result.body_bytes_left,
            "milliseconds": round(result.seconds * 1000),
            "error": result.error,
        },
    )
    return closed.rowcount == 1


def _read_study(tx: Transaction, study_uid: str) -> Any:
    """Read a study's queue, and what its next attempt depends on; None if there is no such study."""
    tx.see_study(study_uid)
    return tx.connection.execute(_STUDY, {"host": tx.host, "study_uid": study_uid}).one_or_none()


def _study_goes_on(
    tx: Transaction,
    result: BatchResult,
    before: Any,
    now: datetime,
    backoff: Backoff,
    jitter: float,
    study_wait: timedelta | None,
    *,
    was_open: bool,
) -> tuple[int, int, datetime | None]:
    study_uid = result.batch.study_uid
    charged, pauses, next_attempt_at = before.charged, before.pauses, before.next_attempt_at
    if not was_open:
        return charged, pauses, next_attempt_at
    if result.charge_study:
        charged += 1
        wait = study_wait if study_wait is not None else backoff.wait(charged, jitter=jitter)
        next_attempt_at = now + wait
    elif result.answered:
        charged, next_attempt_at = 0, None
    if result.pause is not None:
        pauses += 1
    elif result.answered:
        pauses = 0
    tx.sums.set_study(
        tx.host,
        study_uid,
        now,
        charged=charged,
        pauses=pauses,
        next_attempt_at=next_attempt_at,
        in_flight=max(0, before.in_flight - 1),
    )
    return charged, pauses, next_attempt_at


def charge_study(tx: Transaction, study_uid: str, *, now: datetime, backoff: Backoff, jitter: float) -> datetime:
    """Move a study on although no verdict on it was read: pauses of the destination keep meeting it in flight."""
    found = _read_study(tx, study_uid)
    charged: int | None = found.charged if found is not None else None
    next_attempt_at = now + backoff.wait((charged or 0) + 1, jitter=jitter)
    if charged is not None:
        tx.sums.set_study(tx.host, study_uid, now, charged=charged + 1, pauses=0, next_attempt_at=next_attempt_at)
        tx.settle()
    return next_attempt_at
