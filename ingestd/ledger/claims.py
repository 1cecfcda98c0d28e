"""Rows go out: what is due again, the claim of a batch, and what start-up finds of a process that died with one."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, func, insert, or_, select, update

from ingestd.lifecycle import (
    Batch,
    BatchLimits,
    Content,
    Part,
    Reason,
    State,
    Waiting,
    cut_batch,
)

from . import dialect
from .row import QUEUED, ROW, Row, make_row, path_of, reach_of
from .schema import attempt, candidate, instance, study
from .transaction import Transaction
from .values import Recovered

# Rows looked at beyond what fills a batch: those with a SOP Instance UID twice, or to travel alone, are passed over.
_SPARE = 16

_RECOVERED_AT_ONCE = 1000


class _More(NamedTuple):
    """What a part needs beyond its Row."""

    path: str
    relative_path: str
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
        tx.flush()
        uncertain += len(rows)
        if len(rows) < _RECOVERED_AT_ONCE:
            break
    closed = tx.connection.execute(
        update(attempt)
        .where(attempt.c.host == tx.host, attempt.c.finished_at.is_(None))
        .values(finished_at=now, interrupted=1, error="the process ended before the answer was read")
    )
    # Behind the sums that were gathered, which may know of posts in flight themselves.
    tx.flush_all()
    tx.connection.execute(update(study).where(study.c.host == tx.host, study.c.in_flight > 0).values(in_flight=0))
    left = tx.connection.execute(
        select(func.count()).select_from(candidate).where(candidate.c.host == tx.host)
    ).scalar_one()
    return Recovered(uncertain=uncertain, attempts=closed.rowcount, candidates=left)


def wake(tx: Transaction, *, now: datetime) -> int:
    """Let deferred rows whose time has come join the queue of their study."""
    rows = tx.rows(
        tx.select_rows(
            instance.c.next_attempt_at.is_not(None),
            or_(instance.c.next_attempt_at <= now, instance.c.next_attempt_at > now + tx.longest.backoff),
            instance.c.host == tx.host,
        )
        .order_by(instance.c.next_attempt_at)
        .limit(_RECOVERED_AT_ONCE)
    )
    for row in rows:
        tx.change(row, {"next_attempt_at": None}, at=now)
    tx.flush()
    return len(rows)


def claim(tx: Transaction, study_uid: str, *, now: datetime, limits: BatchLimits | None = None) -> Batch | None:
    """Take the next batch of a study: its rows are SENDING and its attempt is on record before anything leaves (G5)."""
    tx.flush()
    limits = limits or tx.limits_of(tx.host)
    found = read_study(tx, study_uid)
    if found is None or not found.waiting:
        return None
    if found.next_attempt_at is not None and now < found.next_attempt_at <= now + tx.longest.backoff:
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
        parts=tuple(_part(tx, row, more, now) for row, more in queued),
        started_at=now,
        charged=found.charged,
    )
    _put_attempt(tx, batch)
    _mark_sending(tx, batch, [row for row, _ in queued])
    tx.counters.set_study(tx.host, study_uid, now, in_flight=found.in_flight + 1)
    tx.flush()
    return batch


def _read_queue(tx: Transaction, study_uid: str, *, limit: int) -> list[tuple[Row, _More]]:
    """Read the oldest queued rows of a study."""
    found = tx.connection.execute(_QUEUE, {"host": tx.host, "study_uid": study_uid, "limit": limit}).all()
    columns = len(ROW)
    return [(make_row(values[:columns]), _More(*values[columns:])) for values in map(tuple, found)]


def _part(tx: Transaction, row: Row, more: _More, now: datetime) -> Part:
    identity = row.identity
    assert identity is not None, "what is queued has its identity"
    if more.reencoded_path is None:
        path = reach_of(tx.spool, more.path, in_place=bool(row.in_place), relative_path=more.relative_path)
    else:
        path = path_of(tx.spool, more.reencoded_path)
    reencoded = more.reencoded_path is not None
    content = _content_of_copy(more) if reencoded else _content(row, more)
    return Part(
        entry_id=row.id,
        identity=identity,
        path=path,
        content=content,
        attempts=row.attempts,
        charged=row.charged,
        sop_class_uid=more.sop_class_uid or "",
        being_created_since=tx.surely_since(row.being_created_since, now) if row.being_created_since else None,
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


def read_study(tx: Transaction, study_uid: str) -> Any:
    """Read a study's queue, and what its next attempt depends on; None if there is no such study."""
    tx.see_study(study_uid)
    return tx.connection.execute(_STUDY, {"host": tx.host, "study_uid": study_uid}).one_or_none()
