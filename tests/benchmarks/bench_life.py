"""Measure the whole life of a file in the ledger: `python -m tests.benchmarks.bench_life [--ledger postgresql]`.

Candidate, admission, claim, finish, sighting, confirmation, removal: in batches of 50 beside ``--rows`` that are there,
a transaction each, or with ``--joined`` all in one as a daemon's tick has them. Without ``--ledger`` the ledger is an
SQLite file; ``postgresql`` starts a durable server on the same disk with its default settings; a URL names an empty
database of a server on this machine. It judges nothing. The goals of PostgreSQL: 1,000 files/s, the server's backend
<= 250 us and <= 12 KB of WAL a file, COMMIT p50 <= 2 ms, <= 40 statements a tick, HOT >= 99 % on worker and counters.

``--held-open`` has the files come twice, ten times a tenth: to a ledger that nobody else reads, and while a backup has
its snapshot open, so that of what is written over meanwhile nothing can be taken away. The goal is a rate that falls by
no more than 30 %, with ``--batches 4000``.

``--workers 4`` compares one worker with four that share the spool, in turns; ``--commit-ms 100`` has the server wait so
long before each COMMIT is durable (``commit_delay``). The goal then is 3.5 x with four.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sqlite3
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
from sqlalchemy import event

from ingestd.inbox import Spool
from ingestd.ledger import Ledger, NewCandidate, Transaction, Writer, moves, queries
from ingestd.ledger.dialect import WITHOUT_ANSWER
from ingestd.lifecycle import Batch, BatchResult, Outcome, Reason, Sighting, SourceStat, State, Unproven
from tests.benchmarks import many_rows
from tests.benchmarks.bench_ledger import BACKOFF, NOW, arrival, fill
from tests.postgres import Cluster
from tests.wire import Wire

FILES = 50
# Rows that are written one by one; what is more is copied by the database.
_FILLED = 100_000
SERVER = "http://127.0.0.1:9/v2"  # nobody answers there
LATER = NOW + timedelta(minutes=2)
_FEED_COMES = timedelta(minutes=5)
_A_LOT_EVERY = timedelta(milliseconds=100)
_PARTS = 10
HOT_TABLES = ("worker", "state_count", "study_sum", "delivery", "file")
# What else a machine's administrator sets; the shared_buffers of the tests' servers are small.
SETTINGS = {"shared_buffers": "128MB"}


def _open(url: str, folder: Path, *, shares: bool = False) -> Ledger:
    spool = Spool(folder / "spool")
    writer = Writer(spool.host, shares=shares)
    key = spool.path / "search.key"
    return Ledger.open(url, host=spool.host, spool=spool.path, destinations={"default": SERVER}, key=key, writer=writer)


def copy_over(file: Path, url: str) -> None:
    """Write the rows of an SQLite ledger over those of one in PostgreSQL that has just been made."""
    with closing(sqlite3.connect(file)) as source, psycopg.connect(url, autocommit=True) as there:
        there.execute("SET session_replication_role = replica")
        names = [row[0] for row in source.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in names:
            rows = source.execute(f"SELECT * FROM {table}")
            if table in ("sequence", "spool", "destination", "meta", "verification"):
                continue
            columns = ", ".join(column[0] for column in rows.description)
            with there.cursor().copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)


@dataclass
class Lot:
    """A batch on its way."""

    number: int
    candidates: list[int] = field(default_factory=list)
    batch: Batch | None = None
    ids: list[int] = field(default_factory=list)
    due: list[Unproven] = field(default_factory=list)

    @property
    def files(self) -> range:
        return range(self.number * FILES, (self.number + 1) * FILES)

    @property
    def came_at(self) -> datetime:
        return NOW + self.number % 1_000_000 * _A_LOT_EVERY

    @property
    def later(self) -> datetime:
        return self.came_at + timedelta(minutes=2)

    def studies_of(self, step: Step) -> list[str]:
        """Say of which studies a step is, as the daemon's stages do."""
        return [] if step is Lot.candidate else [arrival(self.files[0], 0).identity.study_uid]

    def candidate(self, tx: Transaction) -> None:
        found = [
            NewCandidate(
                inbox="inbox",
                relative_path=f"new/IM{number:07d}.dcm",
                source=SourceStat(device=1, inode=number, size_bytes=1, mtime_ns=1),
                target=f"{number:032x}",
            )
            for number in self.files
        ]
        self.candidates = moves.add_candidates(tx, found, now=self.came_at)

    def admit(self, tx: Transaction) -> None:
        read = [arrival(number, candidate) for number, candidate in zip(self.files, self.candidates, strict=True)]
        admitted = moves.admit(tx, read, now=self.came_at)
        self.ids = [each.number for each in admitted if each.number is not None]

    def claim(self, tx: Transaction) -> None:
        study = arrival(self.files[0], 0).identity.study_uid
        self.batch = moves.claim(tx, study, now=self.later)
        assert self.batch is not None
        assert len(self.batch.parts) == FILES

    def finish(self, tx: Transaction) -> None:
        assert self.batch is not None
        outcomes = tuple(
            Outcome(delivery_id=part.delivery_id, state=State.STORED, reason=Reason.STORED_ANSWER, wait=_FEED_COMES)
            for part in self.batch.parts
        )
        result = BatchResult(
            batch=self.batch, outcomes=outcomes, finished_at=self.later, http_status=200, answered=True
        )
        moves.finish(tx, result, now=self.later, backoff=BACKOFF, jitter=0.5)

    def see(self, tx: Transaction) -> None:
        at = self.later
        seen = [
            Sighting(identity=arrival(number, 0).identity, sequence=number + 1, action="create", state="current", at=at)
            for number in self.files
        ]
        assert moves.record_sightings(tx, seen, now=at) == FILES

    def ask(self, ledger: Ledger) -> None:
        ours, since = set(self.ids), self.later - timedelta(seconds=10)  # as the daemon does
        self.due = [row for row in queries.unproven(ledger, now=self.later, since=since) if row.delivery_id in ours]

    def confirm(self, tx: Transaction) -> None:
        found = [
            Outcome(
                delivery_id=row.delivery_id,
                state=State.CONFIRMED,
                reason=Reason.FEED,
                expected=row.state,
                evidence_at=self.later,
            )
            for row in self.due
        ]
        assert moves.apply(tx, found, now=self.later, backoff=BACKOFF, jitter=0.5).moved == FILES

    def let_go(self, tx: Transaction) -> None:
        assert len(moves.mark_removing(tx, self.ids, now=self.later)) == FILES

    def remove(self, tx: Transaction) -> None:
        assert moves.mark_removed(tx, self.ids, now=self.later) == FILES


Step: TypeAlias = Callable[[Lot, Transaction], None]
STEPS: tuple[Step, ...] = (
    *(Lot.candidate, Lot.admit, Lot.claim, Lot.finish, Lot.see, Lot.confirm, Lot.let_go, Lot.remove),
)


class Counts:
    """What is counted on a connection: statements as the server gets them, commits."""

    def __init__(self, ledger: Ledger) -> None:
        self.statements = self.executions = 0
        self.commits: list[float] = []
        self.ledger = ledger
        event.listen(ledger.engine, "before_cursor_execute", self._executed)

    def _executed(self, *said: Any) -> None:
        self.executions += WITHOUT_ANSWER not in said[4].execution_options  # the others are waited for together
        self.statements += len(said[3]) if said[5] else 1

    @contextmanager
    def transaction(self, studies: Collection[str] | None = None) -> Iterator[Transaction]:
        with self.ledger.transaction(studies) as tx:
            yield tx
        self.commits.append(self.ledger.commit_seconds)


def live(counts: Counts, batches: int, meter: dict[str, float], *, joined: bool, first: int = 0) -> None:
    """Have so many batches live from the candidates to their removal."""
    if not joined:
        for number in range(first, first + batches):
            lot = Lot(number)
            for step in STEPS:
                begun = time.perf_counter()
                if step is Lot.confirm:
                    lot.ask(counts.ledger)
                with counts.transaction(lot.studies_of(step)) as tx:
                    step(lot, tx)
                meter[step.__name__] += time.perf_counter() - begun
        return
    lots = [Lot(number) for number in range(first, first + batches)]
    for tick in range(batches + len(STEPS) - 1):
        if 0 <= (seen := tick - STEPS.index(Lot.confirm)) < batches:
            lots[seen].ask(counts.ledger)
        with counts.transaction() as tx:
            # In the order in which a daemon's stages write: what came of the last tick.
            for place in reversed(range(len(STEPS))):
                if 0 <= tick - place < batches:
                    begun = time.perf_counter()
                    STEPS[place](lots[tick - place], tx)
                    meter[STEPS[place].__name__] += time.perf_counter() - begun


def settle_what_is_there(ledger: Ledger) -> None:
    """Have nothing in the ledger that is due but what comes to it."""
    while found := queries.unproven(ledger, now=LATER):
        with ledger.transaction() as tx:
            asked = [
                Outcome(delivery_id=row.delivery_id, state=State.CONFIRMED, reason=Reason.FEED, evidence_at=LATER)
                for row in found
            ]
            moves.apply(tx, asked, now=LATER, backoff=BACKOFF, jitter=0.5)


class Server:
    """What a backend of a server on this machine, and the server, have spent."""

    def __init__(self, ledger: Ledger, url: str) -> None:
        self._url = url
        self._pid = int(ledger.connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
        ledger.connection.rollback()
        self._begun = self._now()

    def cpu(self) -> float:
        """Say how many seconds of CPU the backend has had."""
        return int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[0]) / 1e9

    def _now(self) -> tuple[float, float, dict[str, tuple[int, int]]]:
        cpu = self.cpu()
        with psycopg.connect(self._url, autocommit=True) as beside:
            time.sleep(1.1)  # a backend tells of its updates once a second
            wal = beside.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
            asked = "SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
            updates = {name: (all_, hot) for name, all_, hot in beside.execute(asked)}
        assert wal is not None
        return cpu, float(wal[0]), updates

    def show(self, files: int) -> None:
        (cpu, wal, updates), (now_cpu, now_wal, now_updates) = self._begun, self._now()
        print(f"  the backend {(now_cpu - cpu) / files * 1e6:.0f} us CPU, WAL {(now_wal - wal) / files:,.0f} B a file")
        for table in HOT_TABLES:
            count, hot = (now - then for now, then in zip(now_updates[table], updates[table], strict=True))
            if count:
                print(f"  {table:<12} {count / files:6.2f} updates a file, HOT {hot / count:7.2%}")


def measure(url: str, folder: Path, batches: int, *, joined: bool, is_away: bool, first: int = 0) -> None:
    with _open(url, folder) as ledger:
        settle_what_is_there(ledger)
        counts = Counts(ledger)
        warm = 20
        live(counts, warm, defaultdict(float), joined=joined, first=first)
        server = Server(ledger, url) if url.startswith("postgres") and not is_away else None
        counts.statements = counts.executions = 0
        counts.commits.clear()
        meter: dict[str, float] = defaultdict(float)
        wall, cpu = time.perf_counter(), time.process_time()
        live(counts, batches, meter, joined=joined, first=first + warm)
        files = batches * FILES
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        commits = sorted(counts.commits)
        told = (statistics.median(commits), commits[len(commits) * 99 // 100])
        ends = len(commits) * 2
        print(
            f"{'one commit a tick' if joined else 'a commit a step'}: {files / wall:,.0f} files/s,"
            f" client {cpu / files * 1e6:.0f} us CPU, commit p50 {told[0] * 1e3:.2f} ms, p99 {told[1] * 1e3:.2f} ms,"
            f" a batch {(counts.statements + ends) / batches:.1f} statements in"
            f" {(counts.executions + ends) / batches:.1f} round trips"
        )
        print("  " + ", ".join(f"{name} {seconds / files * 1e6:.0f}" for name, seconds in meter.items()) + " us wall")
        if is_away:
            print(f"  an answer takes {round_trip_of(ledger) * 1e3:.2f} ms")
        if server is not None:
            server.show(files)


def round_trip_of(ledger: Ledger) -> float:
    """Say how long the server takes for an answer that costs it nothing, in seconds."""
    took = []
    for _ in range(100):
        begun = time.perf_counter()
        ledger.connection.exec_driver_sql("SELECT 1")
        took.append(time.perf_counter() - begun)
    ledger.connection.rollback()
    return statistics.median(took)


@contextmanager
def snapshot(url: str) -> Iterator[None]:
    """Read as pg_dump does: all of it as it was at one moment, until the end of the block."""
    with psycopg.connect(url) as backup:
        backup.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        backup.read_only = True
        backup.execute("SELECT count(*) FROM meta")
        yield
        backup.rollback()


def hold_open(url: str, folder: Path, batches: int, *, joined: bool) -> None:
    with _open(url, folder) as ledger:
        settle_what_is_there(ledger)
        counts = Counts(ledger)
        first = _PARTS
        live(counts, first, defaultdict(float), joined=joined)
        for name, held in (("read by nobody else", nullcontext()), ("a snapshot held open", snapshot(url))):
            with held:
                print(f"{name}:")
                server, begun = Server(ledger, url), time.perf_counter()
                for _ in range(_PARTS):
                    meter: dict[str, float] = defaultdict(float)
                    wall, cpu, part = time.perf_counter(), server.cpu(), batches // _PARTS
                    live(counts, part, meter, joined=joined, first=first)
                    first, files = first + part, part * FILES
                    rate, cpu = files / (time.perf_counter() - wall), (server.cpu() - cpu) / files
                    steps = ", ".join(f"{step} {seconds / files * 1e6:.0f}" for step, seconds in meter.items())
                    print(f"  {rate:5,.0f} files/s, the backend {cpu * 1e6:.0f} us CPU; us wall: {steps}", flush=True)
                print(f"  in all {_PARTS * files / (time.perf_counter() - begun):,.0f} files/s")
                server.show(_PARTS * files)


def _work(url: str, folder: Path, batches: int, part: int, workers: int, begin: Any) -> None:
    with _open(url, folder, shares=True) as ledger:
        ledger.in_turns = workers > 1
        begin.wait()
        live(Counts(ledger), batches, defaultdict(float), joined=False, first=part * 1_000_000)


def rate_of(url: str, folder: Path, batches: int, *, workers: int, part: int) -> float:
    """Say how many files a second so many workers bring through, each as many as the others."""
    context = multiprocessing.get_context("spawn")
    begin = context.Barrier(workers + 1)
    each = [
        context.Process(target=_work, args=(url, folder, batches, part + number, workers, begin))
        for number in range(workers)
    ]
    for process in each:
        process.start()
    begin.wait()
    begun = time.perf_counter()
    for process in each:
        process.join()
    assert all(process.exitcode == 0 for process in each)
    return workers * batches * FILES / (time.perf_counter() - begun)


def _carry(port: int, seconds: float, told: Any) -> None:
    with Wire(port, delay_seconds=seconds) as wire:
        told.send(wire.port)
        told.recv()


@contextmanager
def far(port: int, *, round_trip: float) -> Iterator[int]:
    """Give a port that leads to this one and is so many seconds away: a process, for a thread would wait for ours."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_carry, args=(port, round_trip / 2, there))
    process.start()
    try:
        yield here.recv()
    finally:
        here.send("end")
        process.join()


def compare(url: str, folder: Path, batches: int, *, workers: int, rounds: int) -> None:
    with _open(url, folder) as ledger:
        settle_what_is_there(ledger)
    parts = itertools.count(1, workers)
    for _ in range(rounds):
        one = rate_of(url, folder, batches, workers=1, part=next(parts))
        all_ = rate_of(url, folder, batches, workers=workers, part=next(parts))
        print(f"1 worker {one:,.0f} files/s, {workers} workers {all_:,.0f}: {all_ / one:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ledger", default="", help="postgresql, or the URL of an empty database; else SQLite")
    parser.add_argument("--rows", type=int, default=100_000, help="so many are there")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--joined", action="store_true", help="one transaction a tick; else one a step")
    parser.add_argument("--look", action="store_true", help="time `ingestd status`, and a daemon's start to READY, too")
    parser.add_argument("--delay", type=float, default=0.0, help="make the round trip so many ms longer")
    parser.add_argument("--held-open", action="store_true", help="once more while a backup has its snapshot open")
    parser.add_argument("--workers", type=int, default=0, help="compare one with so many")
    parser.add_argument("--commit-ms", type=int, default=0, help="have each COMMIT be durable so many ms later")
    parser.add_argument("--folder", type=Path, help="where to work; not on tmpfs, if the figures are to mean anything")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        folder.chmod(0o711)
        file = folder / "ledger.db"
        _open(f"sqlite:///{file}", folder).close()
        fill(file, min(options.rows, _FILLED) if options.ledger else options.rows)
        url, away = f"sqlite:///{file}", 0
        if options.ledger:
            url = options.ledger
            if url == "postgresql":
                late = {"commit_delay": str(options.commit_ms * 1000), "commit_siblings": "0"}
                cluster = stack.enter_context(Cluster(folder / "server", settings={**SETTINGS, **late}, durable=True))
                cluster.make("ledger")
                url = cluster.url("ledger")
                if options.delay:
                    away = stack.enter_context(far(cluster.port, round_trip=options.delay / 1000))
            _open(url, folder).close()
            copy_over(file, url)
            many_rows.settle(url)
            if options.rows > _FILLED:
                many_rows.multiply(url, options.rows // _FILLED)
                many_rows.settle(url)
            if away:
                url = cluster.url("ledger", port=away)
        if options.workers:
            compare(url, folder, options.batches, workers=options.workers, rounds=options.rounds)
            return
        if options.held_open:
            hold_open(url, folder, options.batches, joined=options.joined)
            return
        for number in range(options.rounds):
            first = number * (options.batches + 20)
            measure(url, folder, options.batches, joined=options.joined, is_away=bool(away), first=first)
        if options.look:
            print(many_rows.look(url, folder, SERVER))


if __name__ == "__main__":
    main()
