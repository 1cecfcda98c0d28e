"""Builders and checks that the tests of the ledger share."""

from __future__ import annotations

import hashlib
import itertools
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ingestd.ledger import Ledger, Transaction, Writer, moves, queries
from ingestd.lifecycle import (
    Arrival,
    Backoff,
    Batch,
    BatchLimits,
    BatchResult,
    Content,
    Identity,
    Outcome,
    Reason,
    Refusal,
    Sameness,
    SourceStat,
    State,
)
from tests.ledgers import read_whole, url_of
from tests.recounting import problems_of_ledger

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
BACKOFF = Backoff()
URL = "http://pacs.example/v2"
LIMITS = BatchLimits()


def open_shared(database: str, folder: Path, writer: Writer, **options: object) -> Ledger:
    """Open a ledger in PostgreSQL as this one writes it; all hosts have one spool."""
    return Ledger.open(
        database,
        host=writer.host,
        destinations={"default": URL},
        spool=folder / "spool",
        limits=LIMITS,
        key=folder / "search.key",
        writer=writer,
        **options,  # type: ignore[arg-type]
    )


def open_ledger(
    folder: Path,
    *,
    host: str = "host-a",
    limits: BatchLimits = LIMITS,
    destination: str = URL,
    beside: bool = False,
) -> Ledger:
    return Ledger.open(
        url_of(folder),
        host=host,
        destinations={"default": destination},
        # A ledger that is shared has one spool, and in it that of `send`.
        spool=folder / f"spool-{host}" / ("send" if host in ("host-b", "other", "send") else ""),
        limits=limits,
        key=folder / "search.key",
        beside=beside,
    )


def identity(number: int, *, study: int = 1) -> Identity:
    return Identity(study_uid=f"1.2.{study}", series_uid=f"1.2.{study}.1", sop_uid=f"1.2.{study}.1.{number}")


def content(seed: int | str, *, size: int = 1000, transfer_syntax: str = "1.2.840.10008.1.2.1") -> Content:
    return Content(
        transfer_syntax=transfer_syntax,
        digest=hashlib.sha256(str(seed).encode()).hexdigest(),
        meta_digest=hashlib.sha256(b"meta").hexdigest(),
        dataset_offset=340,
        size_bytes=size,
    )


def source(number: int = 1, *, size: int = 1000) -> SourceStat:
    return SourceStat(device=2049, inode=number, size_bytes=size, mtime_ns=1_700_000_000_000_000_000 + number)


# Paths are unique: beside those of another process that writes the same ledger, too.
_paths = itertools.count(os.getpid() * 1_000_000)


def arrival(
    number: int,
    *,
    study: int = 1,
    seed: int | str | None = None,
    size: int = 1000,
    inbox: str = "in",
    relative_path: str | None = None,
    in_place: bool = False,
    priority: int = 0,
    candidate_id: int | None = None,
    transfer_syntax: str = "1.2.840.10008.1.2.1",
    source_removed: bool = True,
    modality: str = "CT",
    patient_hash: str = "",
    accession_hash: str = "",
    source_stat: SourceStat | None = None,
) -> Arrival:
    made = next(_paths)
    return Arrival(
        candidate_id=candidate_id,
        inbox=inbox,
        relative_path=relative_path or f"IM{number:05d}",
        source=source_stat or source(number, size=size),
        path=f"/archive/IM{made:05d}" if in_place else f"files/{inbox}/{made:032x}",
        in_place=in_place,
        source_removed=source_removed,
        identity=identity(number, study=study),
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        content=content(number if seed is None else seed, size=size, transfer_syntax=transfer_syntax),
        priority=priority,
        modality=modality,
        station="ROOM1",
        patient_hash=patient_hash,
        accession_hash=accession_hash,
    )


def refusal(number: int, *, reason: Reason = Reason.TRUNCATED, candidate_id: int | None = None) -> Refusal:
    made = next(_paths)
    return Refusal(
        candidate_id=candidate_id,
        inbox="in",
        relative_path=f"bad/IM{number:05d}",
        source=source(number),
        path=f"rejected/in/{made:032x}/IM{number:05d}",
        in_place=False,
        reason=reason,
        note="it ends before its lengths say",
    )


def admit(ledger: Ledger, *arrivals: Arrival, now: datetime = NOW) -> list[int]:
    """Admit these and give back their ids."""
    with ledger.transaction() as tx:
        answers = moves.admit(tx, arrivals, now=now)
    return [answer.number for answer in answers if answer.number is not None]


def compare(ledger: Ledger, delivery_id: int, sameness: Sameness, *, now: datetime = NOW) -> State | None:
    """Say of a row that was not compared yet how it compares with its holder."""
    (holder_id,) = [
        each.holder.delivery_id
        for each in queries.rows_to_compare(ledger, limit=100)
        if each.delivery_id == delivery_id
    ]
    with ledger.transaction() as tx:
        return moves.compared(tx, delivery_id, holder_id=holder_id, sameness=sameness, now=now)


def outcome(delivery_id: int, state: State, reason: Reason = Reason.QUERY, **more: object) -> Outcome:
    return Outcome(delivery_id=delivery_id, state=state, reason=reason, **more)  # type: ignore[arg-type]


def result_of(batch: Batch, state: State, reason: Reason = Reason.STORED_ANSWER, **more: object) -> BatchResult:
    """The same outcome for every part of a batch; what concerns outcomes goes there, the rest to the result."""
    of_outcome = {key: more.pop(key) for key in list(more) if key in Outcome.__dataclass_fields__}
    outcomes = tuple(outcome(part.delivery_id, state, reason, **of_outcome) for part in batch.parts)
    answered = more.pop("answered", state is State.STORED)
    return BatchResult(batch=batch, outcomes=outcomes, finished_at=LATER, answered=answered, **more)  # type: ignore[arg-type]


def send(
    ledger: Ledger,
    study: int = 1,
    *,
    state: State = State.STORED,
    reason: Reason = Reason.STORED_ANSWER,
    now: datetime = LATER,
    **more: object,
) -> Batch:
    """Claim the next batch of a study and let it end so."""
    with ledger.transaction() as tx:
        batch = moves.claim(tx, f"1.2.{study}", now=now)
    assert batch is not None
    with ledger.transaction() as tx:
        moves.finish(tx, result_of(batch, state, reason, **more), now=now, backoff=BACKOFF, jitter=0.0)
    return batch


def apply(ledger: Ledger, *outcomes: Outcome, now: datetime = LATER) -> None:
    with ledger.transaction() as tx:
        applied = moves.apply(tx, outcomes, now=now, backoff=BACKOFF, jitter=0.0)
    assert applied.lost == 0


def confirm(ledger: Ledger, *delivery_ids: int, now: datetime = LATER, evidence_at: datetime | None = None) -> None:
    apply(
        ledger,
        *(
            outcome(delivery_id, State.CONFIRMED, Reason.FEED, evidence_at=evidence_at or now)
            for delivery_id in delivery_ids
        ),
        now=now,
    )


def state_of(ledger: Ledger, delivery_id: int) -> State:
    entry = queries.entry(ledger, delivery_id)
    assert entry is not None
    return entry.state


def holder_of(ledger: Ledger, delivery_id: int) -> int | None:
    entry = queries.entry(ledger, delivery_id)
    assert entry is not None
    return entry.holder_id


def entry_in(ledger: Ledger, state: State, number: int = 1, *, study: int = 1) -> int:
    """Make a row and bring it, by legal moves, into this state."""
    if state is State.REJECTED:
        with ledger.transaction() as tx:
            return moves.refuse(tx, [refusal(number)], now=NOW)[0]
    if state is State.UNROUTED:
        return unrouted(ledger, arrival(number, study=study))
    if state in (State.DUPLICATE, State.CONFLICT):
        admit(ledger, arrival(number, study=study))
        (delivery_id,) = admit(
            ledger,
            arrival(number, study=study)
            if state is State.DUPLICATE
            else arrival(number, study=study, transfer_syntax="1.2.840.10008.1.2.4.70"),
        )
        return delivery_id
    (delivery_id,) = admit(ledger, arrival(number, study=study))
    if state is State.SENDING:
        with ledger.transaction() as tx:
            assert moves.claim(tx, f"1.2.{study}", now=LATER) is not None
    elif state is State.UNCERTAIN:
        send(ledger, study, state=State.UNCERTAIN, reason=Reason.NO_VERDICT)
    elif state in (State.FAILED, State.DISCARDED):
        send(ledger, study, state=State.FAILED, reason=Reason.REFUSED)
    elif state is not State.PENDING:
        send(ledger, study)
    if state in (State.CONFIRMED, State.DELETED):
        confirm(ledger, delivery_id)
    if state is State.DELETED:
        apply(ledger, outcome(delivery_id, State.DELETED, Reason.FEED))
    if state is State.DISCARDED:
        with ledger.transaction() as tx:
            moves.discard(tx, delivery_id, now=LATER)
    assert state_of(ledger, delivery_id) is state
    return delivery_id


def unrouted(ledger: Ledger, came: Arrival, *, now: datetime = NOW) -> int:
    """Add a file that no rule wants."""
    with ledger.transaction() as tx:
        (file_id,) = tx.new_ids(1)
        uid = came.identity.study_uid
        content = {name: getattr(came.content, name) for name in Content.__dataclass_fields__}
        place = {name: getattr(came, name) for name in ("relative_path", "source", "path", "priority")}
        place["in_place"] = int(came.in_place)
        of_file = {"id": file_id, "spool_id": tx.spool_id, "inbox_id": tx.inbox_id(came.inbox), **place, **content}
        uids = {"study_id": tx.studies({uid: (None, None)})[uid].id, "series_uid": came.identity.series_uid}
        state = {"state": State.UNROUTED, "reason": None, "note": "", "in_spool": 1}
        uids["sop_uid"] = came.identity.sop_uid
        tx.add_file({**of_file, **uids, **state, "admitted_at": now, "changed_at": now}, at=now)
    return file_id


def remove(tx: Transaction, *file_ids: int, now: datetime = LATER) -> int:
    """Let the files of these go by rule, and say how many went."""
    moves.mark_removing(tx, file_ids, now=now)
    return moves.mark_removed(tx, file_ids, now=now)


def finish(tx: Transaction, result: BatchResult, *, now: datetime = LATER) -> None:
    moves.finish(tx, result, now=now, backoff=BACKOFF, jitter=0.0)


def assert_ledger_holds(ledger: Ledger) -> None:
    """Count everything afresh, and hold the whole ledger against what must be true of any."""
    with read_whole(ledger) as connection:
        assert problems_of_ledger(connection) == []
