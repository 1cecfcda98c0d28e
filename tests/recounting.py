"""A ledger counted afresh, with SQL of its own, and held against what must be true of any (G4, DESIGN.md 8.3).

A row here is a delivery with its file, or a file that ended without one: a dict of the columns of both, the delivery's
where they share a name, and ``destination``, its name. ``delivery_id`` is NULL, ``destination_id`` 0 and the name empty
where there is no delivery.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from ingestd.ledger.row import told_evidence
from ingestd.lifecycle import FILE_MOVES, HOLDING, MOVES, BatchLimits, State, StudyQueue, study_due_at
from tests.kept import told

Row: TypeAlias = Mapping[str, Any]
# A line of the history tells of a file's delivery, or (None) of the file itself.
Life: TypeAlias = tuple[int, int | None]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Given up for room, and, it may be, dropped again since: as good as settled.
GIVEN_UP = {(State.FAILED, "no_room"), (State.FAILED, "dropped_again")}
_STATES = {f"n_{state.lower()}": state for state in State}
# The UIDs are those that are sent; of what has one name twice, the last counts.
_DELIVERIES = """SELECT file.*, file.size_bytes AS file_bytes, file.study_id AS file_study_id,
    file.series_uid AS file_series_uid, file.sop_uid AS file_sop_uid, spool.path AS spool, study.uid AS study_uid,
    coalesce(rendition.series_uid, file.series_uid) AS series_uid,
    coalesce(rendition.sop_uid, file.sop_uid) AS sop_uid,
    rendition.path AS reencoded_path, rendition.digest AS reencoded_digest,
    rendition.removed_at AS reencoded_removed_at, rendition.size_bytes AS reencoded_bytes,
    rendition.study_id AS reencoded_study_id, rendition.file_id AS rendition_of,
    delivery.*, delivery.id AS delivery_id, destination.name AS destination
    FROM delivery JOIN file ON file.id = delivery.file_id JOIN spool ON spool.id = file.spool_id
    JOIN study ON study.id = delivery.study_id JOIN destination ON destination.id = delivery.destination_id
    LEFT JOIN rendition ON rendition.id = delivery.rendition_id"""
_FILES = """SELECT file.*, file.id AS file_id, file.study_id AS file_study_id,
    file.series_uid AS file_series_uid, file.sop_uid AS file_sop_uid,
    NULL AS delivery_id, 0 AS destination_id, '' AS destination, spool.path AS spool,
    study.uid AS study_uid, NULL AS reencoded_path, NULL AS reencoded_digest, NULL AS need, 0 AS queued,
    unneeded_at AS settled_at
    FROM file JOIN spool ON spool.id = file.spool_id LEFT JOIN study ON study.id = file.study_id
    WHERE file.state IS NOT NULL"""
# For short looks: all rows, with what every one of them has.
ENTRIES = """(SELECT id, file_id, state, reason FROM delivery
    UNION ALL SELECT id, id, state, reason FROM file WHERE state IS NOT NULL) AS entry"""
_COUNTS = """SELECT spool_id, destination_id, inbox_id, state, reason, sum(entries), sum(size_bytes) FROM state_count
    GROUP BY spool_id, destination_id, inbox_id, state, reason"""
_KEPT = "SELECT path FROM file WHERE removed_at IS NULL UNION SELECT path FROM rendition WHERE removed_at IS NULL"
# Which sequence numbers the rows of which tables.
_NUMBERED: Mapping[str, Sequence[str]] = {
    "file": ("file", "delivery"),
    **{name: (name,) for name in ("spool", "inbox", "destination", "study", "candidate", "rendition", "attempt")},
}


def rows_of(ledger: sqlite3.Connection) -> dict[int, Row]:
    """Read all deliveries, and the files that ended without one, by id: these are of one sequence."""
    rows = [*dicts(ledger, _DELIVERIES), *dicts(ledger, _FILES)]
    return {row["id"]: row for row in sorted(rows, key=lambda row: row["id"])}


def known_paths(ledger: sqlite3.Connection) -> set[str]:
    """Every file that is there by what the ledger says."""
    return {told("path", path) for (path,) in ledger.execute(_KEPT)}


def problems_of_ledger(ledger: sqlite3.Connection) -> list[str]:
    """Say what is wrong with a ledger as a whole; nothing where all is well."""
    rows = rows_of(ledger)
    histories: dict[Life, list[Row]] = defaultdict(list)
    for move in dicts(ledger, "SELECT * FROM history ORDER BY id"):
        histories[life_of(move)].append(move)
    found = [*problems_of_sums(ledger, rows), *problems_of_rows(ledger, rows), *problems_of_files(ledger)]
    for life in histories.keys() | {life_of(row) for row in rows.values()}:
        found += problems_of_history(life, histories[life], rows)
    return [*found, *(["foreign_key_check"] if ledger.execute("PRAGMA foreign_key_check").fetchall() else [])]


def life_of(row: Row) -> Life:
    """Say of what a line of the history tells, or which lines tell of a row."""
    return row["file_id"], row["delivery_id"]


def problems_of_history(life: Life, moves: Sequence[Row], rows: Mapping[int, Row]) -> Iterator[str]:
    """Hold what is told to the table of moves: a chain that begins with no row and ends where the row is."""
    file_id, delivery_id = life
    number, legal = (file_id, FILE_MOVES) if delivery_id is None else (delivery_id, MOVES)
    before: str | None = None
    for move in moves:
        if move["before"] != before:
            yield f"row {number}: a move from {move['before']} when it was in {before}"
        pair = (State(before) if before else None, State(move["after"]))
        if pair not in legal and pair[0] != pair[1]:
            yield f"row {number}: no legal move {before} -> {move['after']}"
        if move["evidence"] and not told_evidence(move["evidence"]):
            yield f"row {number}: an evidence that says nothing"
        before = move["after"]
    row = rows.get(number)
    if delivery_id is None and row is not None and row["delivery_id"] is not None:
        return  # its deliveries tell of it since
    state = row["state"] if row is not None and life_of(row) == life else None
    if before != state:
        yield f"row {number}: its history ends in {before}, it is in {state}"


def problems_of_sums(ledger: sqlite3.Connection, rows: Mapping[int, Row]) -> Iterator[str]:
    """Hold what is kept in sum against the rows."""
    fresh: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0])
    of_study: dict[tuple[int, int, int], list[Row]] = defaultdict(list)
    for row in rows.values():
        sums = fresh[row["spool_id"], row["destination_id"], row["inbox_id"], row["state"], row["reason"] or ""]
        sums[0] += 1
        sums[1] += row["size_bytes"]
        if row["study_id"] is not None:
            of_study[_study_of(row)].append(row)
    kept = {tuple(row)[:5]: list(row)[5:] for row in ledger.execute(_COUNTS) if any(tuple(row)[5:])}
    if kept != fresh:
        yield f"the kept counts say {kept}, the rows {dict(fresh)}"
    in_flight = Counter(map(_study_of, dicts(ledger, "SELECT * FROM attempt WHERE finished_at IS NULL")))
    limits = {spool["id"]: _limits(spool) for spool in dicts(ledger, "SELECT * FROM spool")}
    for study in dicts(ledger, "SELECT study_sum.*, uid FROM study_sum JOIN study ON study.id = study_id"):
        key = _study_of(study)
        counted = _counted(study, of_study.pop(key, []), in_flight[key], limits[study["spool_id"]])
        if wrong := {name: (study[name], value) for name, value in counted.items() if study[name] != value}:
            yield f"study {study['uid']}: kept and counted differ in {wrong}"
    for left in of_study.values():
        yield f"study {left[0]['study_uid']} has rows and no sums"


def problems_of_rows(ledger: sqlite3.Connection, rows: Mapping[int, Row]) -> Iterator[str]:
    """Hold each row to what its state says, and all of them to one holder an identity at each destination."""
    deliveries = [row for row in rows.values() if row["delivery_id"] is not None]
    held = Counter((row["destination_id"], _uids(row)) for row in deliveries if row["state"] in HOLDING)
    for (_, (*_, sop_uid)), number in held.items():
        if number > 1:
            yield f"{sop_uid} is held by {number} rows"
    attempts = {attempt_id for (attempt_id,) in ledger.execute("SELECT id FROM attempt WHERE finished_at IS NULL")}
    for row in deliveries:
        for problem, is_so in _PROBLEMS.items():
            if is_so(row):
                yield f"row {row['id']} ({row['state']}) {problem}"
        if row["state"] == State.SENDING and row["attempt_id"] not in attempts:
            yield f"row {row['id']} (SENDING) has no attempt that is under way"
        if row["state"] == State.DUPLICATE and row["settled_at"] is None:
            # Nobody is forgotten: an unsettled duplicate has somebody who may still deliver its content.
            holder = rows.get(row["holder_id"])
            is_there = holder is not None and holder["destination_id"] == row["destination_id"]
            if holder is None or not is_there or holder["state"] not in {*HOLDING, State.CONFLICT}:
                yield f"row {row['id']} (DUPLICATE) waits for a row that delivers nothing"


def problems_of_files(ledger: sqlite3.Connection) -> Iterator[str]:
    """Hold each file to its deliveries, and every number to the sequence that it was taken from."""
    counted = "SELECT file_id, sum(settled_at IS NULL) FROM delivery GROUP BY file_id"
    needs = dict(tuple(row) for row in ledger.execute(counted))
    with_renditions = {row[0] for row in ledger.execute("SELECT file_id FROM rendition WHERE removed_at IS NULL")}
    for file in dicts(ledger, "SELECT file.*, uid AS study_uid FROM file LEFT JOIN study ON study.id = study_id"):
        needed_by = needs.get(file["id"], 0)
        is_kept = needed_by > 0 or file["state"] in {"REJECTED", "UNROUTED"}
        lies_there = (not file["in_place"] and file["removed_at"] is None) or file["id"] in with_renditions
        problems = {
            "has neither an end nor a delivery, or both": (file["state"] is None) != (file["id"] in needs),
            f"is needed by {needed_by} deliveries and counts {file['needed_by']}": file["needed_by"] != needed_by,
            "is unneeded, or is not, as it should be": (file["unneeded_at"] is None) != is_kept,
            "lies in the spool, or does not, as it should": file["in_spool"] != int(lies_there),
        }
        yield from (f"file {file['id']} {problem}" for problem, is_so in problems.items() if is_so)
    following = dict(tuple(row) for row in ledger.execute("SELECT name, next FROM sequence"))
    for name, tables in _NUMBERED.items():
        for table in tables:
            highest = ledger.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0]
            if following[name] <= highest:
                yield f"the sequence of {name} is at {following[name]}, and {table} has {highest}"


def at(microseconds: int) -> datetime:
    """Make an instant of what a ledger keeps."""
    return EPOCH + timedelta(microseconds=microseconds)


def dicts(ledger: sqlite3.Connection, sql: str, *values: Any) -> list[dict[str, Any]]:
    """Read rows by their columns' names, each value as it is in Python."""
    cursor = ledger.execute(sql, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, map(told, names, row), strict=True)) for row in cursor]


def _study_of(row: Row) -> tuple[int, int, int]:
    return row["study_id"], row["destination_id"], row["spool_id"]


def _uids(row: Row) -> tuple[str, str, str]:
    return row["study_uid"], row["series_uid"], row["sop_uid"]


def _hash_of(row: Row) -> bytes | None:
    if row["sop_uid"] is None:
        return None
    both = row["study_uid"], "\0".join(_uids(row))
    return b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in both)


def _counted(study: Row, rows: Sequence[Row], in_flight: int, limits: BatchLimits) -> dict[str, int | None]:
    """Say what a study's sums must be; of a queue without rows its ends, priority and inbox say nothing."""
    states = Counter(row["state"] for row in rows)
    queue = [row for row in rows if row["queued"]]
    inboxes = {row["inbox_id"] for row in rows}
    return {
        **{column: states[state] for column, state in _STATES.items()},
        "size_bytes": _sum(rows),
        "waiting": len(queue),
        "waiting_bytes": _sum(queue),
        "in_flight": in_flight,
        "oldest_at": min((row["admitted_at"] for row in queue), default=study["oldest_at"]),
        "newest_at": max((row["admitted_at"] for row in queue), default=study["newest_at"]),
        "priority": max((study["priority"], *(row["priority"] for row in queue))),
        # That of any of its files: the last that joined the queue may have left it since.
        "inbox_id": study["inbox_id"] if not queue or study["inbox_id"] in inboxes else min(inboxes),
        "due_at": _due_at(study, limits) if queue else None,
    }


def _sum(rows: Iterable[Row]) -> int:
    return sum(row["size_bytes"] for row in rows)


def _limits(spool: Row) -> BatchLimits:
    return BatchLimits(
        quiet_period=timedelta(microseconds=spool["quiet_period_us"]),
        max_wait=timedelta(microseconds=spool["max_wait_us"]),
        max_bytes=spool["max_bytes"],
        max_instances=spool["max_instances"],
    )


def _due_at(study: Row, limits: BatchLimits) -> int:
    queue = StudyQueue(
        study_uid=study["uid"],
        waiting=study["waiting"],
        waiting_bytes=study["waiting_bytes"],
        oldest_at=at(study["oldest_at"]),
        newest_at=at(study["newest_at"]),
        next_attempt_at=None if study["next_attempt_at"] is None else at(study["next_attempt_at"]),
        charged=study["charged"],
    )
    return (study_due_at(queue, limits) - EPOCH) // timedelta(microseconds=1)


def _waits(row: Row) -> bool:
    """Whether it waits to be sent; what has to be compared yet may wait to be read again before that."""
    need = None if row["reason"] == "not_compared" and row["need"] == "reread" else row["need"]
    return need is not None or row["next_attempt_at"] is not None


def _is_another(row: Row) -> bool:
    """Whether what it says of what is sent is not what its rendition, or its file, says."""
    sent = "reencoded" if row["rendition_id"] is not None else "file"
    of_file = row["file_id"] if row["rendition_id"] is None else row["rendition_of"]
    told = (row[f"{sent}_bytes"], row[f"{sent}_study_id"], of_file)
    return (row["size_bytes"], row["study_id"], row["file_id"]) != told


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
        row["settled_at"] is not None
        and row["state"] not in {State.CONFIRMED, State.DISCARDED, State.DUPLICATE}
        and (row["state"], row["reason"]) not in GIVEN_UP
    ),
    "is not what its file or rendition is": _is_another,
    "has another identity than its UIDs": lambda row: row["identity"] != _hash_of(row),
}
