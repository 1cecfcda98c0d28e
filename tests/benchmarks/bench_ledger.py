"""Measure the ledger with a million rows: `python -m tests.benchmarks.bench_ledger [--rows N] [--folder FOLDER]`.

It judges nothing. The goals: the status queries together within 0.2 s, a start within 3 s, admission below 60 us a row.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ingestd.inbox import new_name
from ingestd.ledger import Choice, Ledger, NewCandidate, moves, queries, upgrade
from ingestd.ledger.schema import STATE_COLUMNS
from ingestd.lifecycle import (
    Arrival,
    Backoff,
    BatchResult,
    Content,
    Identity,
    Outcome,
    Reason,
    Sighting,
    SourceStat,
    State,
)

ROWS_A_STUDY = 200
BACKOFF = Backoff()
NOW = datetime.now(UTC)
ROOT = "1.2.840.113619.2.55.3.604688119.971"
_STUDY = f"'{ROOT}.1' || (n / {ROWS_A_STUDY})"
_SERIES = f"'{ROOT}.2' || (n / ({ROWS_A_STUDY} / 2))"
_SOP = f"'{ROOT}.3' || n || '.1234567'"


def fill(file: Path, rows: int) -> None:
    """Write rows as a busy year leaves them, past the ledger: 2 % waiting, some in every other state."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA cache_size=-400000")
    made = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall()
    connection.execute("BEGIN")
    for name, _sql in made:
        connection.execute(f"DROP INDEX {name}")
    start = int((NOW - timedelta(days=365)).timestamp() * 1e6)
    upgrade.add_functions(connection)
    for statement in _filling(rows, start):
        connection.execute(statement)
    for _name, sql in made:
        connection.execute(sql)
    connection.execute("COMMIT")
    connection.close()


def _filling(rows: int, start: int) -> Iterator[str]:
    """Give the statements that write so many rows of files and deliveries, and what is kept in sum of them."""
    yield "INSERT INTO inbox (id, spool_id, name) VALUES (1, 1, 'inbox-0'), (2, 1, 'inbox-1')"
    numbers = f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows})"
    yield f"{numbers} INSERT INTO study (id, uid) SELECT DISTINCT n / {ROWS_A_STUDY} + 1, {_STUDY} FROM numbers"
    yield f"""{numbers}
        INSERT INTO file (id, spool_id, inbox_id, relative_path, source, path, in_place, study_id, series_uid, sop_uid,
            sop_class_uid, transfer_syntax, digest, meta_digest, dataset_offset, size_bytes, modality,
            station, admitted_at, in_spool)
        SELECT n, 1, n % 2 + 1, 'export/' || (n / {ROWS_A_STUDY}) || '/IM' || n || '.dcm',
            pack_digits(n || ':524288:17000000' || n),
            pack_path(printf('files/inbox/%08x/%012x', n / 2048, n) || lower(hex(randomblob(10)))), 0,
            n / {ROWS_A_STUDY} + 1,
            pack_digits({_SERIES}), pack_digits({_SOP}), pack_digits('1.2.840.10008.5.1.4.1.1.2'),
            pack_digits('1.2.840.10008.1.2.1'),
            randomblob(32), randomblob(32), 400, 524288, CASE WHEN (n / {ROWS_A_STUDY}) % 3 THEN 'CT' ELSE 'MR' END,
            'STATION', {start} + n * 30000000 % 31000000000000, 1
        FROM numbers"""
    yield f"""
        WITH states AS (SELECT file.*, id AS n, CASE WHEN id > {rows} - {rows} / 50 THEN 'PENDING'
            WHEN id % 1000 = 1 THEN 'STORED' WHEN id % 1000 = 2 THEN 'UNCERTAIN' WHEN id % 1000 = 3 THEN 'FAILED'
            WHEN id % 1000 = 4 THEN 'DUPLICATE' WHEN id % 1000 = 5 THEN 'CONFLICT' WHEN id % 1000 = 6 THEN 'DELETED'
            WHEN id % 1000 = 7 THEN 'DISCARDED' ELSE 'CONFIRMED' END AS is_in FROM file)
        INSERT INTO delivery (id, file_id, destination_id, spool_id, state, reason, holds, study_id, identity,
            size_bytes, admitted_at, changed_at, queued, attempts, stored_at, confirmed_at, next_check_at, settled_at)
        SELECT id, id, 1, 1, is_in, CASE is_in WHEN 'PENDING' THEN NULL WHEN 'FAILED' THEN 'refused' ELSE 'feed' END,
            is_in IN ('PENDING', 'STORED', 'UNCERTAIN', 'CONFIRMED'), study_id,
            identity_hash({_STUDY}, {_SERIES}, {_SOP}), size_bytes, admitted_at, admitted_at, is_in = 'PENDING', 1,
            {start}, CASE WHEN is_in IN ('CONFIRMED', 'DELETED') THEN {start} END,
            CASE WHEN is_in IN ('STORED', 'UNCERTAIN') THEN {start} END,
            CASE WHEN is_in IN ('CONFIRMED', 'DISCARDED') THEN {start} END
        FROM states"""
    yield """UPDATE file SET needed_by = delivery.settled_at IS NULL, unneeded_at = delivery.settled_at
        FROM delivery WHERE delivery.id = file.id"""
    yield """INSERT INTO history (file_id, delivery_id, at, before, after, evidence)
        SELECT id, id, admitted_at, NULL, state_number('PENDING'), x'' FROM delivery
        UNION ALL SELECT id, id, changed_at, state_number('PENDING'), state_number(state), x''
        FROM delivery WHERE state <> 'PENDING'"""
    yield """INSERT INTO state_count SELECT 1, 1, inbox_id, delivery.state, coalesce(delivery.reason, ''), 0, count(*),
        sum(delivery.size_bytes) FROM delivery JOIN file ON file.id = file_id GROUP BY 3, 4, 5"""
    sums = ", ".join(f"sum(state = '{name[2:].upper()}')" for name in STATE_COLUMNS.values())
    yield f"""INSERT INTO study_sum SELECT study_id, 1, 1, sum(queued), sum(queued * size_bytes),
        min(CASE WHEN queued THEN admitted_at END), max(CASE WHEN queued THEN admitted_at END), 0, 1,
        min(CASE WHEN queued THEN admitted_at END), NULL, 0, 0, 0, min(admitted_at), max(changed_at), sum(size_bytes),
        {sums} FROM delivery GROUP BY study_id"""
    for kind, value in (("modality", "modality"), ("series", _SERIES)):
        of_each = f"SELECT DISTINCT '{kind}', {value}, study_id FROM (SELECT file.*, id AS n FROM file)"
        yield f"INSERT OR IGNORE INTO study_label {of_each}"
    yield "INSERT INTO study_label SELECT 'patient', lower(hex(randomblob(16))), id FROM study"
    for table in ("inbox", "study", "file"):
        yield f"UPDATE sequence SET next = (SELECT max(id) + 1 FROM {table}) WHERE name = '{table}'"


def clock(ask: Callable[[], object], *, times: int = 3) -> tuple[float, float]:
    """Say how long it took the first time, and how long it takes."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - begun)
    return taken[0], statistics.median(taken[1:] or taken)


def show(what: str, first: float, then: float) -> None:
    print(f"  {what:<44} first {first * 1000:8.1f} ms   then {then * 1000:8.1f} ms")


def bench_questions(file: Path, rows: int) -> None:
    url = f"sqlite:///{file}"
    print(f"status queries, {rows:,} rows, {file.stat().st_size / 1e9:.2f} GB")
    with Ledger.open(url, read_only=True) as ledger:
        patient = sqlite3.connect(file).execute("SELECT value FROM study_label WHERE kind = 'patient'").fetchone()[0]
        study_uid = f"{ROOT}.1{rows // ROWS_A_STUDY // 2}"
        questions: dict[str, Callable[[], object]] = {
            "status": lambda: queries.status(ledger),
            "studies, newest": lambda: queries.studies(ledger),
            "studies by state FAILED": lambda: queries.studies(ledger, Choice(state=State.FAILED)),
            "studies by state CONFIRMED": lambda: queries.studies(ledger, Choice(state=State.CONFIRMED)),
            "studies by modality": lambda: queries.studies(ledger, Choice(modality="MR")),
            "studies by patient": lambda: queries.studies(ledger, Choice(patient_hash=patient)),
            "studies by UID": lambda: queries.studies(ledger, Choice(study_uid=study_uid)),
            "studies since yesterday": lambda: queries.studies(ledger, Choice(since=NOW - timedelta(days=1))),
            "entries FAILED, 100": lambda: queries.entries(ledger, Choice(state=State.FAILED), limit=100),
            "entries of a study, 100": lambda: queries.entries(ledger, Choice(study_uid=study_uid), limit=100),
            "entries since yesterday, 100": lambda: queries.entries(
                ledger, Choice(since=NOW - timedelta(days=1)), limit=100
            ),
            "find by SOP Instance UID": lambda: queries.find(ledger, f"{ROOT}.3{rows // 2}.1234567"),
            "story": lambda: queries.story(ledger, rows // 2),
        }
        sums = [0.0, 0.0]
        for name, ask in questions.items():
            first, then = clock(ask)
            sums = [sums[0] + first, sums[1] + then]
            show(name, first, then)
        show("together", *sums)


def bench_daemon(file: Path, folder: Path) -> None:
    print("the daemon's start and its questions")

    def start() -> None:
        with Ledger.open(
            f"sqlite:///{file}", host="host", spool=folder, destinations={"default": "http://x/v2"}
        ) as ledger:
            with ledger.transaction() as tx:
                moves.recover(tx, now=NOW)
            queries.studies_due(ledger, now=NOW)

    show("open, recover, first studies due", *clock(start))
    with Ledger.open(f"sqlite:///{file}", host="host", spool=folder, destinations={"default": "http://x/v2"}) as ledger:
        for name, ask in {
            "studies due": lambda: queries.studies_due(ledger, now=NOW),
            "studies due at the end": lambda: queries.studies_due(ledger, now=NOW, flush=True),
            "unproven, 1,000": lambda: queries.unproven(ledger, now=NOW),
            "removable, 1,000": lambda: queries.removable(ledger, before=NOW),
            "unfinished": lambda: queries.unfinished(ledger),
        }.items():
            show(name, *clock(ask))


def arrival(number: int, candidate_id: int) -> Arrival:
    return Arrival(
        candidate_id=candidate_id,
        inbox="inbox",
        relative_path=f"new/IM{number:07d}.dcm",
        source=SourceStat(device=2049, inode=number, size_bytes=524_288, mtime_ns=time.time_ns()),
        path=f"files/inbox/{number // 2048:08x}/{new_name()}",
        in_place=False,
        source_removed=True,
        identity=Identity(
            study_uid=f"{ROOT}.7{number // 250:07d}",
            series_uid=f"{ROOT}.8{number // 125:07d}",
            sop_uid=f"{ROOT}.9{number:09d}.1234567",
        ),
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        content=Content(
            transfer_syntax="1.2.840.10008.1.2.1",
            digest=f"{number:064x}",
            meta_digest="00" * 32,
            dataset_offset=400,
            size_bytes=524_288,
        ),
        modality="CT",
        station="STATION",
        patient_hash="ab" * 16,
        accession_hash="cd" * 16,
    )


class Meter:
    """Sums of processor and wall time by step, per row."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def run(self, step: str, rows: int, act: Callable[[], object]) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        act()
        sums = self.sums.setdefault(step, [0.0, 0.0, 0.0])
        sums[0] += time.perf_counter() - wall
        sums[1] += time.process_time() - processor
        sums[2] += rows

    def show(self) -> None:
        for step, (wall, processor, rows) in self.sums.items():
            print(f"  {step:<44} {processor / rows * 1e6:7.1f} us CPU   {wall / rows * 1e6:7.1f} us wall, a row")


def bench_moves(file: Path, folder: Path, rows: int) -> None:
    print(f"moves, {rows:,} new rows in ticks of 500, beside what is there")
    meter = Meter()
    host = f"bench-{uuid.uuid4().hex}"
    with Ledger.open(
        f"sqlite:///{file}", host=host, spool=folder / host, destinations={"default": "http://x/v2"}
    ) as ledger:
        for start in range(0, rows, 500):
            numbers = range(start, start + 500)
            ids: list[int] = []

            def candidates(numbers: range = numbers, ids: list[int] = ids) -> None:
                with ledger.transaction() as tx:
                    ids += moves.add_candidates(
                        tx,
                        [
                            NewCandidate(
                                inbox="inbox",
                                relative_path=f"new/IM{number:07d}.dcm",
                                source=SourceStat(device=1, inode=number, size_bytes=1, mtime_ns=1),
                                target=f"{number:032x}",
                            )
                            for number in numbers
                        ],
                        now=NOW,
                    )

            def admit(numbers: range = numbers, ids: list[int] = ids) -> None:
                arrivals = [arrival(number, candidate_id) for number, candidate_id in zip(numbers, ids, strict=True)]
                with ledger.transaction() as tx:
                    moves.admit(tx, arrivals, now=NOW)

            meter.run("candidate", 500, candidates)
            meter.run("admit", 500, admit)
        later = NOW + timedelta(minutes=2)
        for study in queries.studies_due(ledger, now=later, limit=rows):
            send_study(ledger, study.study_uid, later, meter)
        prove(ledger, rows, later, meter)
    meter.show()


def send_study(ledger: Ledger, study_uid: str, now: datetime, meter: Meter) -> None:
    while True:
        with ledger.transaction() as tx:
            begun, processor = time.perf_counter(), time.process_time()
            batch = moves.claim(tx, study_uid, now=now)
        if batch is None:
            return
        sums = meter.sums.setdefault("claim", [0.0, 0.0, 0.0])
        sums[0] += time.perf_counter() - begun
        sums[1] += time.process_time() - processor
        sums[2] += len(batch.parts)
        result = BatchResult(
            batch=batch,
            outcomes=tuple(
                Outcome(delivery_id=part.delivery_id, state=State.STORED, reason=Reason.STORED_ANSWER)
                for part in batch.parts
            ),
            finished_at=now,
            http_status=200,
            answered=True,
        )

        def finish(result: BatchResult = result) -> None:
            with ledger.transaction() as tx:
                moves.finish(tx, result, now=now, backoff=BACKOFF, jitter=0.5)

        meter.run("finish", len(batch.parts), finish)


def prove(ledger: Ledger, rows: int, now: datetime, meter: Meter) -> None:
    sightings = [
        Sighting(identity=arrival(number, 0).identity, sequence=number + 1, action="create", state="current", at=now)
        for number in range(rows)
    ]

    def see() -> None:
        for start in range(0, rows, 500):
            with ledger.transaction() as tx:
                moves.record_sightings(tx, sightings[start : start + 500], now=now)

    meter.run("sighting", rows, see)

    def confirm() -> None:
        while unproven := queries.unproven(ledger, now=now):
            with ledger.transaction() as tx:
                moves.apply(
                    tx,
                    [
                        Outcome(
                            delivery_id=row.delivery_id,
                            state=State.CONFIRMED,
                            reason=Reason.FEED,
                            expected=row.state,
                            evidence_at=now,
                        )
                        for row in unproven
                    ],
                    now=now,
                    backoff=BACKOFF,
                    jitter=0.5,
                )

    meter.run("confirm (with asking which)", rows, confirm)


def bench_process(file: Path) -> None:
    script = (
        "from ingestd.ledger import Ledger, queries\n"
        f"with Ledger.open('sqlite:///{file}', read_only=True) as ledger:\n"
        "    queries.status(ledger); queries.studies(ledger)\n"
    )
    asked = [sys.executable, "-c", script]
    show("a process that asks for status and studies", *clock(lambda: subprocess.run(asked, check=True), times=5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--moves", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where to work; not on tmpfs, if the figures are to mean anything")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        file = folder / "ledger.db"
        Ledger.open(f"sqlite:///{file}", host="host", spool=folder, destinations={"default": "http://x/v2"}).close()
        begun = time.perf_counter()
        fill(file, options.rows)
        print(f"{options.rows:,} rows written in {time.perf_counter() - begun:.0f} s")
        bench_questions(file, options.rows)
        bench_process(file)
        bench_daemon(file, folder)
        bench_moves(file, folder, options.moves)


if __name__ == "__main__":
    main()
