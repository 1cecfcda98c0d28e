"""Rows come back: what a post did to its rows, its attempt and its study."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from sqlalchemy import bindparam, update

from ingestd.lifecycle import Backoff, Batch, BatchResult, Outcome, Reason, State

from .claims import read_study, set_study
from .counters import StudySending
from .row import UNASKED, Row, as_json
from .schema import attempt
from .transaction import Transaction
from .values import Finished, PendingRead

_CLOSING = ("finished_at", "http_status", "body_bytes_left", "milliseconds", "error")
_CLOSE_ATTEMPT = (
    update(attempt)
    .where(attempt.c.id == bindparam("attempt_id"), attempt.c.finished_at.is_(None))
    .values({name: bindparam(name) for name in _CLOSING})
)
_GONE = "its bytes were changed while it was sent; the server is asked whether it has what they were"
_PRESENT = {"yes": 1, "no": 0}


def finish(tx: Transaction, result: BatchResult, *, now: datetime, backoff: Backoff, jitter: float) -> Finished:
    """Carry out what became of a batch, close its attempt, and let the study go on or wait.

    With ``charge_study`` the study waits as the backoff says; an answer without a charge ends its backoff. A part
    without an outcome becomes UNCERTAIN.
    """
    batch = result.batch
    # Read before the moves below change its counters, so that these need not be written in between.
    before = read_study(tx, batch.study_uid)
    assert before is not None, "a batch is of a study"
    rows = tx.rows_by_id(map(attrgetter("delivery_id"), batch.parts))
    outcomes = {outcome.delivery_id: outcome for outcome in result.outcomes}
    same: dict[Hashable, tuple[Outcome, list[Row]]] = {}
    moved = 0
    for part in batch.parts:
        row = rows.get(part.delivery_id)
        if row is None or row.state is not State.SENDING or row.claim_token != batch.claim_token:
            continue
        outcome = outcomes.get(part.delivery_id) or Outcome(
            delivery_id=part.delivery_id,
            state=State.UNCERTAIN,
            reason=Reason.NO_VERDICT,
            note="nothing was said of this file; the server will be asked",
        )
        if outcome.state is State.PENDING and row.removing_at is not None:
            # What lies in its place is another file: it cannot be sent again. May be that it arrived all the same.
            outcome = replace(outcome, state=State.UNCERTAIN, reason=Reason.GONE, note=_GONE, wait=timedelta(0))
        same.setdefault(_effect(row, outcome), (outcome, []))[1].append(row)
        moved += 1
    for outcome, alike in same.values():
        wait = outcome.wait
        if outcome.state is State.PENDING and outcome.charge and wait is None and not result.charge_study:
            # Whoever is charged waits: the study, where it is, else the row.
            wait = backoff.charged_wait(alike[0].charged + 1, jitter=jitter)
        _come_back(tx, alike, replace(outcome, wait=wait), batch, now)
    tx.flush()
    was_open = _close_attempt(tx, result)
    charged, pauses, next_attempt_at = _study_goes_on(tx, result, before, now, backoff, jitter, was_open=was_open)
    tx.flush()
    return Finished(
        moved=moved, lost=len(batch.parts) - moved, charged=charged, pauses=pauses, next_attempt_at=next_attempt_at
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
        row.unnamed,
        outcome.unnamed,
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
        "present_before": _PRESENT.get(outcome.evidence.get("present_before", "")),
        "being_created_since": None,
    }
    if outcome.unnamed or row.unnamed:
        values["unnamed"] = row.unnamed + 1 if outcome.unnamed else 0 if outcome.state is State.STORED else row.unnamed
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
            **UNASKED,
        )
        if outcome.needs_content_check or outcome.reason is Reason.ALREADY_THERE:
            values["needs_content_check"] = 1
        if outcome.state is State.STORED:
            values.update(stored_at=now, was_stored=1)
    tx.move(
        *rows,
        to=outcome.state,
        at=now,
        reason=outcome.reason,
        note=outcome.note,
        evidence=outcome.evidence,
        by_attempt=batch.attempt_id,
        **values,
    )


def need_of(outcome: Outcome) -> PendingRead | None:
    """Say what the reader has to do before the row can be sent."""
    if outcome.reread:
        return PendingRead.REREAD
    return PendingRead.REENCODE if outcome.reencode else None


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


def _study_goes_on(
    tx: Transaction,
    result: BatchResult,
    before: StudySending,
    now: datetime,
    backoff: Backoff,
    jitter: float,
    *,
    was_open: bool,
) -> tuple[int, int, datetime | None]:
    charged, pauses, next_attempt_at = before.charged, before.pauses, before.next_attempt_at
    if not was_open:
        return charged, pauses, next_attempt_at
    if result.charge_study:
        charged += 1
        next_attempt_at = now + backoff.wait(charged, jitter=jitter)
    elif result.answered:
        charged, next_attempt_at = 0, None
    if result.pause is not None:
        pauses += 1
    elif result.answered:
        pauses = 0
    set_study(
        tx,
        before,
        now,
        charged=charged,
        pauses=pauses,
        next_attempt_at=next_attempt_at,
        in_flight=max(0, before.in_flight - 1),
    )
    return charged, pauses, next_attempt_at


def charge_study(tx: Transaction, study_uid: str, *, now: datetime, backoff: Backoff, jitter: float) -> datetime:
    """Move a study on although no verdict on it was read: pauses of the destination keep meeting it in flight."""
    found = read_study(tx, study_uid)
    charged = found.charged if found is not None else 0
    next_attempt_at = now + backoff.wait(charged + 1, jitter=jitter)
    if found is not None:
        set_study(tx, found, now, charged=charged + 1, pauses=0, next_attempt_at=next_attempt_at)
        tx.flush()
    return next_attempt_at
