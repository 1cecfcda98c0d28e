"""The campaign: start the daemon, wait for a phase, wait a little at random, kill it, look, start it again."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.invariants import Findings, Invariants, World
from tests.running import Daemon, Site, TookTooLongError, kill_session, session_members, wait_until
from tests.torture.feeding import Feeder
from tests.torture.servers import Targets, one_server
from tests.torture.watching import RequestTail, Scene, Watch, ledger_copy

LEAST_PER_PHASE = 5
# Aims that miss still kill; this many times --kills at most are tried until every phase was met often enough.
TRIES_FACTOR = 3
AIM_SECONDS = 4.0
REST_SECONDS = 120.0
SETTINGS = {
    "inboxes": [{"path": "./drop", "settle": "60ms", "incomplete_after": "2s"}],
    "batch": {"quiet_period": "50ms", "max_wait": "300ms", "max_instances": 40},
    "retry": {"base": "100ms", "cap": "500ms"},
    "reconcile": {"interval": "150ms", "lag": "500ms", "grace": "5s", "absence_wait": "600ms"},
    "reader": {"processes": 1},
}


class Phase(StrEnum):
    """Where a kill is aimed at."""

    ADMISSION = "admission"
    POSTING = "posting"
    ANSWER_UNREAD = "answer unread"
    RECONCILING = "reconciling"
    RECOVERY = "recovery"


@dataclass(kw_only=True)
class Report:
    """What a campaign came to."""

    seed: int
    least_per_phase: int = LEAST_PER_PHASE
    kills: int = 0
    with_children: int = 0
    children_alone: int = 0
    by_phase: Counter[Phase] = field(default_factory=Counter)
    missed: Counter[Phase] = field(default_factory=Counter)
    written: int = 0
    removed: int = 0  # files that went, being delivered wherever they were to go
    outages: str = ""
    seconds: float = 0.0
    findings: Findings = field(default_factory=Findings)

    @property
    def every_phase_was_met(self) -> bool:
        """Whether each phase was really met often enough."""
        return all(self.by_phase[phase] >= self.least_per_phase for phase in Phase)

    def __str__(self) -> str:
        phases = ", ".join(f"{phase} {self.by_phase[phase]}" for phase in Phase)
        missed = sum(self.missed.values())
        killed = f"{self.with_children} with children; {self.children_alone} times a child alone"
        lines = [
            f"seed {self.seed}: {self.kills} kills in {self.seconds:.0f} s ({killed})",
            f"met in: {phases}; elsewhere {missed}",
            f"files written: {self.written}, removed: {self.removed}; {self.findings}",
            *([f"of its servers one was {self.outages}"] if self.outages else []),
        ]
        return "\n".join([*lines, *(f"VIOLATION: {text}" for text in self.findings.violations)])


class Campaign:
    """One run of so many kills, from one seed."""

    def __init__(
        self,
        folder: Path,
        *,
        kills: int,
        seed: int,
        say: Callable[[str], None] = lambda _: None,
        targets: Callable[[Path, int], AbstractContextManager[Targets]] = one_server,
        files: int = 0,
    ) -> None:
        """Kill so often at least, and until so many files were written and every outage of a server is over."""
        self._folder = folder
        self._kills = kills
        self._files = files
        self._random = random.Random(seed)
        self._say = say
        self._targets = targets
        self._start_seconds = 1.0
        self._report = Report(seed=seed)

    def run(self) -> Report:
        """Kill as often as asked, let everything come to rest, and check all of it."""
        started = time.monotonic()
        report = self._report
        with self._targets(self._folder, report.seed) as targets:
            self._install(targets)
            self._feeder.start()
            if self._outages is not None:
                self._outages.start()
            try:
                while self._goes_on():
                    self._kill_in(self._choose())
            finally:
                written = self._feeder.stop()
                if self._outages is not None:
                    report.outages = self._outages.stop()
            report.written = len(written)
            self._say(f"{report.kills} kills done, {len(written)} files written; waiting until all is at rest")
            self._come_to_rest(report.findings)
            with ledger_copy(self._site) as ledger:
                self._invariants.check_end(ledger, now=datetime.now(UTC))
                report.removed = _removed(ledger)
        if not report.every_phase_was_met:
            report.findings.violations.append("some phase was not met often enough; the run proves less than it should")
        report.seconds = time.monotonic() - started
        return report

    def _install(self, targets: Targets) -> None:
        settings = {
            name: {**SETTINGS.get(name, {}), **what} for name, what in targets.settings.items() if name != "rules"
        }
        rules = {"rules": targets.settings["rules"]} if "rules" in targets.settings else {}
        self._site = Site(self._folder / "site", "", **{**SETTINGS, **settings, **rules})
        self._watch = Watch(self._site)
        self._requests = [RequestTail(name, log) for name, log in targets.logs.items()]
        self._feeder = Feeder(self._site.drop, seed=self._report.seed, stations=tuple(targets.stations))
        self._outages = targets.outages
        self._report.least_per_phase = targets.least_per_phase
        self._breath = targets.breath
        world = World(
            spool=self._site.spool,
            drop=self._site.drop,
            servers=targets.servers,
            written=self._feeder.written,
            goes_to=lambda file: targets.stations[file.station],
            retain=targets.retain,
            away=self._outages.away if self._outages is not None else (),
        )
        self._invariants = Invariants(world, self._report.findings)

    def _goes_on(self) -> bool:
        if self._report.kills >= max(self._kills, self._files // 10) * TRIES_FACTOR:
            return False
        if self._outages is not None and self._outages.is_alive():
            return True
        is_enough = self._report.kills >= self._kills and len(self._feeder.written) >= self._files
        return not (is_enough and self._report.every_phase_was_met)

    def _choose(self) -> Phase:
        """Aim where it was met least, but for every third kill anywhere."""
        if self._random.random() < 0.34:
            return self._random.choice(list(Phase))
        least = min(self._report.by_phase[phase] for phase in Phase)
        return self._random.choice([phase for phase in Phase if self._report.by_phase[phase] == least])

    def _kill_in(self, phase: Phase) -> None:
        daemon = self._site.start(wait=False)
        try:
            was_there = self._aim(daemon, phase)
            if not daemon.is_running():
                self._report.findings.violations.append(
                    f"the daemon ended by itself with {daemon.process.returncode}: {daemon.tail(5)}"
                )
            is_ready = "READY=1" in daemon.listen()
            self._strike(daemon)
        finally:
            daemon.kill(children=False)
        self._report.kills += 1
        with self._outages.lock if self._outages is not None else nullcontext(), ledger_copy(self._site) as ledger:
            self._invariants.check(ledger, now=datetime.now(UTC))
        scene = self._watch.scene()
        self._new_lines()
        met = was_there and self._is(phase, scene, is_ready=is_ready)
        (self._report.by_phase if met else self._report.missed)[phase] += 1
        self._say(f"kill {self._report.kills}: aimed at {phase}, {'met' if met else 'missed'}; {scene.states}")

    def _aim(self, daemon: Daemon, phase: Phase) -> bool:
        """Wait for the phase and a random while into it; says whether its sign was seen."""
        if phase is Phase.RECOVERY:
            if not self._comes(lambda: self._watch.is_locked_by(daemon.pid) or not daemon.is_running(), every=0.002):
                return False
            time.sleep(self._random.uniform(0, max(0.02, self._start_seconds)))
            return True
        locked_at = self._wait_ready(daemon)
        if locked_at is None:
            return False
        time.sleep(self._random.uniform(0, self._breath))
        if self._random.random() < 0.06:
            self._kill_a_child(daemon)
        self._new_lines()
        longest = {Phase.ADMISSION: 0.06, Phase.POSTING: 0.08, Phase.ANSWER_UNREAD: 0.003, Phase.RECONCILING: 0.05}
        if not self._comes(lambda: self._shows(phase) or not daemon.is_running(), every=0.001):
            return False
        time.sleep(self._random.uniform(0, longest[phase]))
        return True

    def _wait_ready(self, daemon: Daemon) -> float | None:
        """Wait until the daemon is ready, and learn how long that takes once it has the lock."""
        if not self._comes(lambda: self._watch.is_locked_by(daemon.pid) or not daemon.is_running(), every=0.005):
            return None
        locked_at = time.monotonic()
        try:
            daemon.wait_ready()
        except (TookTooLongError, AssertionError) as error:
            self._report.findings.violations.append(f"not ready: {error}")
            return None
        self._start_seconds = 0.5 * self._start_seconds + 0.5 * (time.monotonic() - locked_at)
        return locked_at

    def _shows(self, phase: Phase) -> bool:
        if phase is Phase.ADMISSION:
            return self._watch.has_candidates()
        if phase is Phase.POSTING:
            return self._watch.has_rows_in("SENDING")
        lines = self._new_lines()
        if phase is Phase.ANSWER_UNREAD:
            return any(line["kind"] == "instance" and line["result"] == "stored" for line in lines)
        asked = any(line["kind"] == "request" and line["method"] == "GET" for line in lines)
        return asked and self._watch.has_rows_in("STORED", "UNCERTAIN")

    def _new_lines(self) -> list[dict[str, Any]]:
        return [line for requests in self._requests for line in requests.new_lines()]

    def _stored(self) -> set[tuple[str, str]]:
        return set().union(*(requests.stored for requests in self._requests))

    def _is(self, phase: Phase, scene: Scene, *, is_ready: bool) -> bool:
        """Whether what the killed daemon left is that phase, half done."""
        if phase is Phase.RECOVERY:
            return not is_ready
        if phase is Phase.ADMISSION:
            return bool(scene.candidates or scene.orphans)
        if phase is Phase.POSTING:
            return bool(scene.sending - self._stored())
        if phase is Phase.ANSWER_UNREAD:
            return bool(scene.sending & self._stored())
        return bool(scene.states.get("STORED") or scene.states.get("UNCERTAIN"))

    def _strike(self, daemon: Daemon) -> None:
        """Kill the daemon; one time in three its children with it, and sometimes them first."""
        if self._random.random() < 0.33:
            self._report.with_children += 1
            if self._random.random() < 0.5:
                for child in daemon.children():
                    _kill(child)
            kill_session(daemon.pid)
        else:
            _kill(daemon.pid)

    def _kill_a_child(self, daemon: Daemon) -> None:
        """Kill a reader alone; seldom, because a file that kills its reader twice is rightly rejected."""
        if self._report.children_alone < 3 and (children := daemon.children()):
            _kill(self._random.choice(children))
            self._report.children_alone += 1

    def _come_to_rest(self, findings: Findings) -> None:
        daemon = self._site.start()
        with daemon:
            try:
                wait_until(self._watch.is_at_rest, what="rest", within_seconds=REST_SECONDS, every=0.1)
            except TookTooLongError:
                findings.violations.append(f"no rest within {REST_SECONDS:.0f} s: {self._site.states()}")
            code = daemon.terminate()
        if code != 0:
            findings.violations.append(f"the last daemon ended with {code}: {daemon.tail(5)}")
        if left := session_members(daemon.pid):
            findings.violations.append(f"{len(left)} processes outlived the daemon")

    @staticmethod
    def _comes(condition: Callable[[], bool], *, every: float) -> bool:
        try:
            return wait_until(condition, what="the phase", within_seconds=AIM_SECONDS, every=every)
        except TookTooLongError:
            return False


def _removed(ledger: sqlite3.Connection | None) -> int:
    if ledger is None:
        return 0
    return int(ledger.execute("SELECT count(*) FROM file WHERE removed_at IS NOT NULL").fetchone()[0])


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
