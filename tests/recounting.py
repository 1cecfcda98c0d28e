"""A ledger counted afresh, with SQL of its own, and held against what must be true of any (G4, DESIGN.md 8.3)."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from ingestd.lifecycle import HOLDING, MOVES, BatchLimits, State, StudyQueue, study_due_at

Row: TypeAlias = sqlite3.Row

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STATES = {f"n_{state.lower()}": state for state in State}
_COUNTS = "SELECT host, inbox, state, reason, entries, held, size_bytes FROM state_count"


def problems_of_ledger(ledger: sqlite3.Connection) -> list[str]:
    """Say what is wrong with a ledger as a whole; nothing where all is well."""
    ledger.row_factory = sqlite3.Row
    rows = {row["id"]: row for row in ledger.execute("SELECT * FROM instance ORDER BY id")}
    histories: dict[int, list[Row]] = defaultdict(list)
    for move in ledger.execute("SELECT * FROM history ORDER BY id"):
        histories[move["entry_id"]].append(move)
    found = [*problems_of_sums(ledger, rows), *problems_of_rows(ledger, rows)]
    for entry_id in histories.keys() | rows.keys():
        found += problems_of_history(entry_id, histories[entry_id], rows)
    return [*found, *(["foreign_key_check"] if ledger.execute("PRAGMA foreign_key_check").fetchall() else [])]


def problems_of_history(entry_id: int, moves: Sequence[Row], rows: Mapping[int, Row]) -> Iterator[str]:
    """Hold a row's history to the table of moves: a chain that begins with no row and ends where the row is."""
    before: str | None = None
    for move in moves:
        if move["before"] != before:
            yield f"row {entry_id}: a move from {move['before']} when it was in {before}"
        pair = (State(before) if before else None, State(move["after"]))
        if pair not in MOVES and pair[0] != pair[1]:
            yield f"row {entry_id}: no legal move {before} -> {move['after']}"
        if move["evidence"] and not json.loads(move["evidence"]):
            yield f"row {entry_id}: an evidence that says nothing"
        before = move["after"]
    state = rows[entry_id]["state"] if entry_id in rows else None
    if before != state:
        yield f"row {entry_id}: its history ends in {before}, it is in {state}"


def problems_of_sums(ledger: sqlite3.Connection, rows: Mapping[int, Row]) -> Iterator[str]:
    """Hold what is kept in sum against the rows."""
    fresh: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    of_study: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows.values():
        sums = fresh[row["host"], row["inbox"], row["state"], row["reason"] or ""]
        sums[0] += 1
        sums[1] += row["hold_reason"] is not None
        sums[2] += row["size_bytes"]
        if row["study_uid"] is not None:
            of_study[row["host"], row["study_uid"]].append(row)
    kept = {tuple(row)[:4]: list(row)[4:] for row in ledger.execute(_COUNTS) if any(tuple(row)[4:])}
    if kept != fresh:
        yield f"the kept counts say {kept}, the rows {dict(fresh)}"
    in_flight = Counter(
        (row["host"], row["study_uid"]) for row in ledger.execute("SELECT * FROM attempt WHERE finished_at IS NULL")
    )
    limits = {row["host"]: _limits(row) for row in ledger.execute("SELECT * FROM host")}
    for study in ledger.execute("SELECT * FROM study").fetchall():
        key = (study["host"], study["study_uid"])
        counted = _counted(study, of_study.pop(key, []), in_flight[key], limits.get(study["host"], BatchLimits()))
        if wrong := {name: (study[name], value) for name, value in counted.items() if study[name] != value}:
            yield f"study {study['study_uid']}: kept and counted differ in {wrong}"
    for _, study_uid in of_study:
        yield f"study {study_uid} has rows and no sums"


def problems_of_rows(ledger: sqlite3.Connection, rows: Mapping[int, Row]) -> Iterator[str]:
    """Hold each row to what its state says, and all of them to one holder an identity."""
    held = Counter(
        (row["study_uid"], row["series_uid"], row["sop_uid"]) for row in rows.values() if row["state"] in HOLDING
    )
    for (*_, sop_uid), number in held.items():
        if number > 1:
            yield f"{sop_uid} is held by {number} rows"
    attempts = {row["id"] for row in ledger.execute("SELECT id FROM attempt WHERE finished_at IS NULL")}
    for row in rows.values():
        for problem, is_so in _PROBLEMS.items():
            if is_so(row):
                yield f"row {row['id']} ({row['state']}) {problem}"
        if row["state"] == State.SENDING and row["attempt_id"] not in attempts:
            yield f"row {row['id']} (SENDING) has no attempt that is under way"
        if row["state"] == State.DUPLICATE and row["settled_at"] is None:
            # Nobody is forgotten: an unsettled duplicate has somebody who may still deliver its content.
            holder = rows.get(row["holder_id"])
            if holder is None or holder["state"] not in {*HOLDING, State.CONFLICT}:
                yield f"row {row['id']} (DUPLICATE) waits for a row that delivers nothing"


def at(microseconds: int) -> datetime:
    """Make an instant of what a ledger keeps."""
    return EPOCH + timedelta(microseconds=microseconds)


def _counted(study: Row, rows: Sequence[Row], in_flight: int, limits: BatchLimits) -> dict[str, int | None]:
    """Say what a study's sums must be; of a queue without rows its ends, and its priority, say nothing."""
    states = Counter(row["state"] for row in rows)
    queue = [row for row in rows if row["queued"]]
    return {
        **{column: states[state] for column, state in _STATES.items()},
        "size_bytes": _sum(rows),
        "waiting": len(queue),
        "waiting_bytes": _sum(queue),
        "in_flight": in_flight,
        "oldest_at": min((row["admitted_at"] for row in queue), default=study["oldest_at"]),
        "newest_at": max((row["admitted_at"] for row in queue), default=study["newest_at"]),
        "priority": max((study["priority"], *(row["priority"] for row in queue))),
        "due_at": _due_at(study, limits) if queue else None,
    }


def _sum(rows: Iterable[Row]) -> int:
    return sum(row["size_bytes"] for row in rows)


def _limits(host: Row) -> BatchLimits:
    return BatchLimits(
        quiet_period=timedelta(microseconds=host["quiet_period_us"]),
        max_wait=timedelta(microseconds=host["max_wait_us"]),
        max_bytes=host["max_bytes"],
        max_instances=host["max_instances"],
    )


def _due_at(study: Row, limits: BatchLimits) -> int:
    queue = StudyQueue(
        study_uid=study["study_uid"],
        waiting=study["waiting"],
        waiting_bytes=study["waiting_bytes"],
        oldest_at=at(study["oldest_at"]),
        newest_at=at(study["newest_at"]),
        next_attempt_at=None if study["next_attempt_at"] is None else at(study["next_attempt_at"]),
        charged=study["charged"],
    )
    return (study_due_at(queue, limits) - EPOCH) // timedelta(microseconds=1)


def _waits(row: Row) -> bool:
    return row["hold_reason"] is not None or row["need"] is not None or row["next_attempt_at"] is not None


_PROBLEMS: Mapping[str, Callable[[Row], bool]] = {
    "is queued, or is not, as it should be": lambda row: (
        row["queued"] != int(row["state"] == State.PENDING and not _waits(row))
    ),
    "waits to be sent": lambda row: _waits(row) and row["state"] != State.PENDING,
    "has a claim token, or none": lambda row: (row["claim_token"] is not None) != (row["state"] == State.SENDING),
    "is to be asked about": lambda row: (
        row["next_check_at"] is not None
        and row["state"] not in {State.UNCERTAIN, State.STORED, State.CONFIRMED, State.DELETED}
    ),
    "is never asked about again": lambda row: (
        row["next_check_at"] is None and row["state"] in {State.UNCERTAIN, State.STORED}
    ),
    "is settled": lambda row: (
        row["settled_at"] is not None and row["state"] not in {State.CONFIRMED, State.DISCARDED, State.DUPLICATE}
    ),
}
