"""Rows go out: what is due again, the claim of a batch, and what start-up finds of a process that died with one.

``claim`` decides in this order; what comes later relies on what came before:

1. Whether the study may go now. The caller's list of due studies is a hint: here the study is read in the transaction
   that claims. It has rows waiting, its backoff is over (or lies further ahead than any backoff can: another clock
   set it), and, while it is in trouble, none of its batches is out.
2. Which rows: those of its queue, of this spool and destination alone, the oldest first; outside a destination's
   window those that go at once. A few more are read than fill a batch, and ``lifecycle.cut_batch`` cuts: that rule
   (halving, alone, no UID twice) stands there and nowhere else.
3. What each part is: the rendition if the row has one, else the file, with the UIDs and digests that it must still
   have. The sender gets these and never looks into the ledger, so nothing may be left to be asked later.
4. The attempt's row, then the rows to SENDING under the attempt's token. Both are in one transaction, and whoever posts
   registers it with ``tx.on_commit``: that is G5. A batch that is posted before that COMMIT is a fault, always.

The token is drawn anew for each claim, and ``finish`` knows its rows by it: an answer that comes late, to a row that
was settled and claimed once more, meets another token and changes nothing (G4).

``recover`` belongs to the start, and to the end of another worker: what nobody who is at work has begun is nobody's. It
never says "not sent": the process may have died with the last byte out, so each is UNCERTAIN and the server is asked
(G6). It charges nothing. The attempts are closed as interrupted, and posts in flight are counted anew, behind the
counters that were gathered. ``wake`` only lets a row's wait end; when the study goes is said by its own sums.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import starmap
from operator import attrgetter
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, insert, or_, select, update

from ingestd.lifecycle import AT_ONCE, Batch, Identity, Part, Reason, State, Waiting, cut_batch

from . import dialect
from .counters import StudySending
from .row import (
    ON_ITS_WAY,
    QUEUED,
    RENDERED,
    RENDITION,
    ROW,
    UNASKED,
    Row,
    columns,
    content_sent,
    make_row,
    path_of,
    reach_of,
    tuple_of,
)
from .schema import attempt, candidate, delivery, file, rendition, study_sum
from .transaction import Transaction
from .values import Recovered

# Rows looked at beyond what fills a batch: those with a SOP Instance UID twice, or to travel alone, are passed over.
_SPARE = 16

_RECOVERED_AT_ONCE = 1000
# Below every priority.
_ANY = -1000


# What names an instance on the server, beside its study: the UIDs that were sent.
SERIES_SENT: ColumnElement[str] = func.coalesce(rendition.c.series_uid, file.c.series_uid)
SOP_SENT: ColumnElement[str] = func.coalesce(rendition.c.sop_uid, file.c.sop_uid)

# What a part needs beyond its Row.
_PART = (
    *columns("rendition_id path relative_path meta_digest dataset_offset alone replaces sop_class_uid"),
    SERIES_SENT.label("sent_series_uid"),
    SOP_SENT.label("sent_sop_uid"),
    file.c.size_bytes.label("file_bytes"),
    *RENDITION,
)
_QUEUED = (*ROW, *_PART)
_Queued = tuple_of(_QUEUED)

_QUEUE = (
    select(*_QUEUED)
    .select_from(RENDERED)
    .where(QUEUED, *(delivery.c[name] == bindparam(name) for name in ("destination_id", "spool_id", "study_id")))
    .where(file.c.priority >= bindparam("least"))
    .order_by(delivery.c.admitted_at, delivery.c.id)
    .limit(bindparam("limit"))
    .with_for_update(of=delivery)
)
_OPEN_ATTEMPT = insert(attempt)


def recover(tx: Transaction, *, now: datetime, wait: timedelta = timedelta(0), has_begun: bool = False) -> Recovered:
    """Settle what a process that died left open: its rows in SENDING may have arrived or not.

    What others have begun who are at work is theirs, and ours ``has_begun``, unless this is our start. The server is
    asked after ``wait``: what was sent last may be on its way still.
    """
    uncertain = 0
    living = [*tx.others(), *([tx.worker] if has_begun else [])]
    is_open = (attempt.c.spool_id == tx.spool_id, attempt.c.finished_at.is_(None))
    nobodys = [attempt.c.worker_id.not_in(living)] if living else []
    theirs = select(attempt.c.id).where(*is_open, attempt.c.worker_id.in_(living))
    not_theirs = [delivery.c.attempt_id.not_in(theirs)] if living else []
    while True:
        rows = tx.rows(
            tx.select_rows(delivery.c.claim_token.is_not(None), delivery.c.spool_id == tx.spool_id, *not_theirs)
            .order_by(delivery.c.id)
            .limit(_RECOVERED_AT_ONCE)
        )
        for row in rows:
            tx.move(
                row,
                to=State.UNCERTAIN,
                at=now,
                reason=Reason.PROCESS_DIED,
                note="the process ended while it was being sent; the server will be asked",
                next_check_at=now + wait,
                **UNASKED,
            )
        tx.flush()
        uncertain += len(rows)
        if len(rows) < _RECOVERED_AT_ONCE:
            break
    closed = tx.connection.execute(
        update(attempt)
        .where(*is_open, *nobodys)
        .values(finished_at=now, interrupted=1, error="the process ended before the answer was read")
    )
    # Behind the counters that were gathered, which may know of posts in flight themselves.
    tx.flush_all()
    out = select(func.count()).where(
        *is_open, attempt.c.destination_id == study_sum.c.destination_id, attempt.c.study_id == study_sum.c.study_id
    )
    in_flight = (study_sum.c.spool_id == tx.spool_id, study_sum.c.in_flight > 0)
    tx.connection.execute(update(study_sum).where(*in_flight).values(in_flight=out.scalar_subquery()))
    tx.counters.forget_studies()
    left = 0
    if not living:
        of_spool = select(func.count()).select_from(candidate).where(candidate.c.spool_id == tx.spool_id)
        left = tx.connection.execute(of_spool).scalar_one()
    return Recovered(uncertain=uncertain, attempts=closed.rowcount, candidates=left)


def ask_first(tx: Transaction, *, now: datetime) -> int:
    """Have the server asked for some of what waits to be sent, before it is; say for how many, 0 when none is left.

    To be called where the record of what was sent last may be lost: a row that waits may have been sent since.
    """
    rows = tx.rows(
        tx.select_rows(
            ON_ITS_WAY,
            dialect.unindexed(delivery.c.spool_id) == tx.spool_id,
            dialect.unindexed(delivery.c.state) == State.PENDING,
        )
        .order_by(delivery.c.id)
        .limit(_RECOVERED_AT_ONCE)
    )
    for row in rows:
        # As if it had been tried as soon as it could be.
        sent: dict[str, Any] = (
            {} if row.attempts else dict.fromkeys(("first_attempt_at", "last_attempt_at"), row.admitted_at)
        )
        tx.move(
            row,
            to=State.UNCERTAIN,
            at=now,
            reason=Reason.RECORD_LOST,
            note="the ledger's server is another than before, and what was sent last may not be on record there",
            next_check_at=now,
            needs_content_check=1,
            **sent,
            **UNASKED,
        )
    tx.flush()
    return len(rows)


def wake(tx: Transaction, *, now: datetime) -> int:
    """Let deferred rows whose time has come join the queue of their study."""
    rows = tx.rows(
        tx.select_rows(
            delivery.c.next_attempt_at.is_not(None),
            or_(delivery.c.next_attempt_at <= now, delivery.c.next_attempt_at > now + tx.longest.backoff),
            delivery.c.destination_id == tx.destination_id,
            delivery.c.spool_id == tx.spool_id,
        )
        .order_by(delivery.c.next_attempt_at)
        .limit(_RECOVERED_AT_ONCE)
    )
    for row in rows:
        tx.change(row, to={"next_attempt_at": None}, at=now)
    tx.flush()
    return len(rows)


def claim(
    tx: Transaction, study_uid: str, *, now: datetime, at_once: bool = False, most_bytes: int | None = None
) -> Batch | None:
    """Take the next batch of a study: its rows are SENDING and its attempt is on record before anything leaves (G5).

    ``at_once`` takes only what is sent at once; ``most_bytes`` cuts it shorter than the spool's limits.
    """
    tx.flush()
    limits = tx.limits_of(tx.spool_id)
    if most_bytes is not None:
        limits = replace(limits, max_bytes=min(limits.max_bytes, most_bytes))
    found = read_study(tx, study_uid)
    if found is None or not found.waiting:
        return None
    if found.next_attempt_at is not None and now < found.next_attempt_at <= now + tx.longest.backoff:
        return None
    if found.charged and found.in_flight:
        return None  # a study that is in trouble has one batch out at a time
    # So many rows fill a batch, going by the size of the study's files.
    by_bytes = limits.max_bytes * found.waiting // max(1, found.waiting_bytes) * 2
    look_at = min(limits.max_instances, max(by_bytes, 1)) + _SPARE
    wanted = {**_key(tx, found.study_id), "limit": look_at, "least": AT_ONCE if at_once else _ANY}
    queue = _queue(tx, wanted, now)
    if not queue:
        return None
    cut = cut_batch(map(_waiting, queue), limits, charged=found.charged)
    taken = set(map(attrgetter("delivery_id"), cut))
    queue = [row for row in queue if row.id in taken]
    batch = Batch(
        attempt_id=tx.next_number("attempt"),
        claim_token=secrets.token_hex(16),
        study_uid=study_uid,
        parts=tuple([_part(tx, study_uid, row, now) for row in queue]),
        started_at=now,
        charged=found.charged,
        at_once=all(row.priority >= AT_ONCE for row in queue),
    )
    opened = {
        "id": batch.attempt_id,
        **_key(tx, found.study_id),
        "worker_id": tx.worker,
        "claim_token": batch.claim_token,
        "started_at": now,
        "instances": len(batch.parts),
        "size_bytes": batch.size_bytes,
    }
    dialect.write(tx.connection, _OPEN_ATTEMPT, opened)
    _mark_sending(tx, batch, [make_row(row[: len(ROW)]) for row in queue])
    set_study(tx, found, now, in_flight=found.in_flight + 1)
    tx.flush()
    return batch


def _queue(tx: Transaction, wanted: Mapping[str, int], now: datetime) -> list[Any]:
    """Read what waits, the oldest first; what was sent in a file's stead and is gone is not sent again: the file is."""
    queue = list(starmap(_Queued, tx.connection.execute(_QUEUE, wanted)))
    gone = [row for row in queue if row.sent_removed_at is not None]
    if not gone:
        return queue
    for row in gone:
        tx.change(make_row(row[: len(ROW)]), to={"rendition_id": None, "size_bytes": row.file_bytes}, at=now)
    tx.flush()
    return list(starmap(_Queued, tx.connection.execute(_QUEUE, wanted)))


def _waiting(row: Any) -> Waiting:
    return Waiting(
        delivery_id=row.id,
        sop_uid=row.sent_sop_uid,
        size_bytes=row.size_bytes,
        charged=row.charged,
        alone=bool(row.alone),
    )


def _part(tx: Transaction, study_uid: str, row: Any, now: datetime) -> Part:
    content, reencoded = content_sent(row), row.rendition_id is not None
    path = (
        path_of(tx.spool, row.sent_path)
        if reencoded
        else reach_of(tx.spool, row.path, in_place=bool(row.in_place), relative_path=row.relative_path)
    )
    return Part(
        delivery_id=row.id,
        identity=Identity(study_uid=study_uid, series_uid=row.sent_series_uid, sop_uid=row.sent_sop_uid),
        path=path,
        content=content,
        attempts=row.attempts,
        charged=row.charged,
        sop_class_uid=row.sop_class_uid or "",
        being_created_since=tx.surely_since(row.being_created_since, now) if row.being_created_since else None,
        replaces=bool(row.replaces),
        reencoded=reencoded,
        generated_meta=content.dataset_offset == 0,
    )


def _mark_sending(tx: Transaction, batch: Batch, rows: Sequence[Row]) -> None:
    by_attempts: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_attempts[row.attempts].append(row)
    for attempts, alike in by_attempts.items():
        first: dict[str, Any] = {"first_attempt_at": batch.started_at} if attempts == 0 else {}
        tx.move(
            *alike,
            to=State.SENDING,
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


def read_study(tx: Transaction, study_uid: str) -> StudySending | None:
    """Read a study's queue, and what its next attempt depends on; None if there is no such study."""
    study_id = tx.study_id(study_uid)
    if study_id is None:
        return None
    if tx.counters.has_changed(tx.spool_id, tx.destination_id, study_id):
        tx.flush()
        tx.counters.flush(tx.connection)
    return tx.counters.sending_of(tx.connection, tx.spool_id, tx.destination_id, study_id)


def set_study(tx: Transaction, found: StudySending, at: datetime, **values: Any) -> None:
    """Set what is no sum of a study that ``read_study`` gave."""
    tx.counters.set_study(tx.spool_id, tx.destination_id, found.study_id, at, **values)


def _key(tx: Transaction, study_id: int) -> dict[str, int]:
    return {"spool_id": tx.spool_id, "destination_id": tx.destination_id, "study_id": study_id}
