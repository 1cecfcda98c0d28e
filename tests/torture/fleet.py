"""The campaign against several workers on one ledger and as many drop folders: one is struck, again and again.

Killed, stopped for ten leases and continued, cut off from the database, a COMMIT lost or its answer, its clock an hour
off: each at a random moment, under files that keep arriving. Whoever ends is started again, and a clock stays off until
it is struck once more. At the end everything is held to the invariants.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from ingestd.emulator import Emulator
from tests.clocking import MovingClock
from tests.fleet.gateways import LEASE, Gateways, gateways, through
from tests.postgres import Cluster, fresh_database
from tests.running import Daemon, TookTooLongError, wait_until
from tests.torture.feeding import Feeder
from tests.torture.servers import FAULTS
from tests.wire import Wire

REST_SECONDS = 240.0  # what was being sent by whoever fell silent is asked about a minute later
HELD_WITHIN_SECONDS = 60.0
HOUR = timedelta(hours=1)


class Strike(StrEnum):
    """What is done to one of them."""

    KILL = "kill -9"
    STOP = "stopped for ten leases"
    CUT = "connections cut"
    LOSE = "COMMIT lost"
    LOSE_ANSWER = "answer to COMMIT lost"
    CLOCK = "clock an hour off, or right again"


_WEIGHTS = {Strike.KILL: 4, Strike.STOP: 1, Strike.CUT: 2, Strike.LOSE: 2, Strike.LOSE_ANSWER: 2, Strike.CLOCK: 3}


@dataclass(kw_only=True)
class FleetReport:
    """What a campaign came to."""

    seed: int
    workers: int
    strikes: Counter[Strike] = field(default_factory=Counter)
    ended: int = 0  # workers that did not end by themselves
    written: int = 0
    states: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        strikes = ", ".join(f"{strike} {count}" for strike, count in sorted(self.strikes.items()))
        states = ", ".join(f"{state} {rows}" for state, rows in sorted(self.states.items()))
        lines = [
            f"seed {self.seed}, {self.workers} workers: {strikes} in {self.seconds:.0f} s; {self.ended} were ended",
            f"files written: {self.written}; deliveries: {states}",
        ]
        return "\n".join([*lines, *(f"VIOLATION: {text}" for text in self.violations)])


class FleetCampaign:
    """So many strikes, from one seed."""

    def __init__(
        self, folder: Path, *, workers: int, strikes: int, seed: int, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._folder = folder
        self._strikes = strikes
        self._random = random.Random(seed)
        self._say = say
        self._report = FleetReport(seed=seed, workers=workers)
        self._clocks: dict[str, MovingClock] = {}

    def run(self) -> FleetReport:
        """Strike as often as asked, let everything come to rest, and check all of it; raises PostgresError."""
        report = self._report
        started_at = time.monotonic()
        faults = [fault.format(seed=report.seed) for fault in FAULTS]
        with (
            Cluster(self._folder / "postgres") as cluster,
            Wire(cluster.port) as wire,
            Emulator(faults=faults) as server,
        ):
            url = fresh_database(cluster)
            by, more = through(url, wire.port), self._report.workers - 1
            with gateways(self._folder, server, url, by=by, more_drops=more) as fleet:
                self._strike_all(fleet, wire)
                fleet.end()
                report.states = fleet.states()
                report.ended = len(fleet.sql("SELECT id FROM worker WHERE ended_at > 0 AND why_ended <> 'stopped'"))
                report.violations += fleet.check()
        report.seconds = time.monotonic() - started_at
        return report

    def _strike_all(self, fleet: Gateways, wire: Wire) -> None:
        for number in range(self._report.workers):
            (folder := self._folder / f"clock{number}").mkdir()
            self._clocks[f"gateway{number}"] = clock = MovingClock(folder)
            fleet.keep(f"gateway{number}", env=clock.env)
        feeder = Feeder(*fleet.drops, seed=self._report.seed)
        fleet.written = feeder.written
        feeder.start()
        try:
            # Each kind once, however few there are.
            kinds = [*Strike, *self._random.choices(list(_WEIGHTS), [*_WEIGHTS.values()], k=self._strikes)]
            for kind in kinds[: self._strikes]:
                struck = self._wait_for_one(fleet)
                time.sleep(self._random.uniform(0, 1.5))
                self._strike(kind, struck, wire)
                self._report.strikes[kind] += 1
                self._say(f"{self._report.strikes.total()}: {kind}; {fleet.states()}")
        finally:
            self._report.written = len(feeder.stop())
        for clock in self._clocks.values():
            clock.set(timedelta(0))
        try:
            wait_until(fleet.is_at_rest, what="rest", within_seconds=REST_SECONDS, every=0.2)
        except TookTooLongError:
            self._report.violations.append(f"no rest within {REST_SECONDS:.0f} s: {fleet.states()}")

    def _wait_for_one(self, fleet: Gateways) -> Daemon:
        there: list[Daemon] = []

        def is_there() -> bool:
            at_work = fleet.claims()
            if any(at_work.values()):
                there[:] = [daemon for daemon in fleet.running() if fleet.worker_of(daemon) in at_work]
            return bool(there)

        wait_until(is_there, what="a worker that has anything", within_seconds=HELD_WITHIN_SECONDS)
        return self._random.choice(there)

    def _strike(self, kind: Strike, struck: Daemon, wire: Wire) -> None:
        if kind is Strike.KILL:
            struck.process.send_signal(signal.SIGKILL)
        elif kind is Strike.STOP:
            struck.process.send_signal(signal.SIGSTOP)
            time.sleep(10 * LEASE)
            struck.process.send_signal(signal.SIGCONT)
        elif kind is Strike.CUT:
            wire.cut()
        elif kind is Strike.CLOCK:
            clock = self._clocks[struck.site.folder.name]
            clock.set(timedelta(0) if clock.by else self._random.choice([-HOUR, HOUR]))
        else:
            lost = wire.lose_commit() if kind is Strike.LOSE else wire.cut_at_commit()
            if not lost.wait(4 * LEASE):
                self._report.violations.append("no worker committed anything within four leases")
