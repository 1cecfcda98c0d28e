"""One seed: a daemon, its world, what happens to them, and what is found."""

from __future__ import annotations

import errno
import json
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import structlog

from ingestd.clocks import Now
from ingestd.config import Config, parse
from ingestd.daemon import build
from ingestd.daemon.daemon import Daemon
from ingestd.daemon.stage import Stage
from ingestd.ledger import Ledger, LedgerError, RefusedMove, Transaction, moves
from tests.invariants import Invariants, World
from tests.recounting import at
from tests.simulation.files import Files
from tests.simulation.jobs import Jobs
from tests.simulation.machine import BOOTED_AT, Died, Machine
from tests.simulation.server import URL, SimServer

SETTINGS: dict[str, Any] = {
    "inboxes": [{"path": "./drop", "settle": "2s", "incomplete_after": "3m", "watch": "poll"}],
    "spool": {"path": "./spool", "low_water": "1MB"},
    "destination": {"url": URL, "auth": "none", "kind": "azure"},
    "ledger": "sqlite:///ledger.db",
    "batch": {"quiet_period": "5s", "max_wait": "30s"},
    "retry": {"base": "2s", "cap": "20s"},
    "reconcile": {"interval": "5s", "lag": "30s", "grace": "2h", "absence_wait": "10s"},
    "shutdown_grace": "5s",
}
# What chance may bring, and how much of it.
EVENTS_MOST = 30
STEPS_MOST = 4_000
_TICK_SECONDS = 0.001
_CALM_SECONDS = 60.0
# No writer pauses for longer: a file that stands still for three minutes is complete, or will never be.
_PAUSE_SECONDS = 60.0
# How long a world without faults may take until all is settled.
SETTLED_WITHIN = timedelta(minutes=45)
# Faults of the server after which what was sent may be sent again: each is an answer, or what stands for one.
SERVER_FAULTS: dict[str, dict[str, Any]] = {
    "unavailable": {},
    "throttle": {"retry_after": "7"},
    "error_before_store": {},
    "error_after_store": {},
    "drop_before_body": {},
    "drop_during_body": {},
    "drop_after_body": {},
    "drop_after_store": {},
    "half_answer": {},
    "missing_uid": {},
    "being_created": {},
    "processing_failure": {},
    "late_feed": {"seconds": 20.0},
    "feed_gap": {},
    "index_lag": {"seconds": 20.0},
    "not_found": {"method": "GET"},
}
# A verdict of the server, a person: beside absence these may have a file sent again.
EXPLAINED = frozenset(
    {"server_error", "being_created", "retried", "replaced", "refused", "not_sent", "dropped_again", "holder_gone"}
)
WAITING = ("UNCERTAIN", "STORED")
BETWEEN = ("PENDING", "SENDING", "UNCERTAIN", "STORED")


@dataclass(kw_only=True)
class Outcome:
    """What a seed came to; it is well where nothing was violated."""

    seed: int
    violations: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    deaths: int = 0
    files: int = 0
    posts: int = 0
    ticks: int = 0


class Simulation:
    """The world of one seed. ``run`` it once."""

    def __init__(self, seed: int, folder: Path, elsewhere: Path | None = None) -> None:
        self._outcome = Outcome(seed=seed)
        self._folder = folder
        self._machine = Machine(seed)
        self._machine.told = self._tell
        self._dice = self._machine.dice
        self._jobs = Jobs(self._machine, self._tell)
        self._daemon: Daemon | None = None
        self._person: Ledger | None = None
        self._eyes: sqlite3.Connection | None = None
        self._last_move = 0
        # Rows that a person wants looked at: since when, and how many questions the server had been asked by then.
        self._wishes: dict[int, tuple[datetime, int]] = {}
        # Whether anybody meddles: without, the end of each file is known beforehand.
        self._has_person = self._dice.random() < 0.4
        self._sets_clock = self._dice.random() < 0.2
        self._has_deaths = self._dice.random() < 0.6
        self._has_faults = self._dice.random() < 0.7
        self._is_elsewhere = self._dice.random() < 0.25
        self._elsewhere = elsewhere
        self._is_quiet = False
        self._server: SimServer
        self._files: Files
        self._invariants: Invariants
        self._world: World
        self._config: Config

    def run(self) -> Outcome:
        """Live through it."""
        with ExitStack() as stack:
            stack.enter_context(self._machine.installed())
            stack.enter_context(self._jobs.installed())
            stack.enter_context(_logging(self._logged))
            self._server = SimServer(self._machine, self._folder / "server")
            stack.callback(self._server.close)
            stack.enter_context(self._server.installed(self._tell))
            stack.enter_context(self._with_jobs())
            stack.callback(self._bury)
            self._prepare()
            try:
                self._live()
            except Exception as error:  # noqa: BLE001 - whatever ends the daemon is found, with its seed
                where = "".join(traceback.format_exception(error)[-6:])
                self._violated([f"unexpected {type(error).__name__}: {error}\n{where}"])
            self._outcome.posts = len(self._server.stores())
        self._outcome.files = len(self._files.written)
        return self._outcome

    @contextmanager
    def _with_jobs(self) -> Iterator[None]:
        with patch.object(build, "ReaderPool", self._jobs.readers):
            yield

    def _prepare(self) -> None:
        drop = (self._elsewhere if self._is_elsewhere and self._elsewhere else self._folder) / "drop"
        drop.mkdir()
        retain = self._dice.choice(["24h", "24h", "10m"])
        settings = {**SETTINGS, "spool": {**SETTINGS["spool"], "retain": retain}}
        settings["inboxes"] = [{**SETTINGS["inboxes"][0], "path": str(drop)}]
        self._config = parse(json.dumps(settings), base=self._folder)
        self._files = Files(drop, self._machine)
        self._world = World(
            spool=self._folder / "spool",
            drop=drop,
            server=self._server,
            written=self._files.written,
            retain=self._config.spool.retain,
            explained=EXPLAINED,
            clocks_agree=not self._sets_clock,
        )
        self._invariants = Invariants(self._world)

    # What happens

    def _live(self) -> None:
        events = self._dice.randint(5, EVENTS_MOST)
        self._tell(self._files.new_study())
        due = self._machine.mono
        for _ in range(STEPS_MOST):
            if self._outcome.violations:
                return
            if events <= 0 and not self._files.growing:
                break
            self._grow_in_time()
            chance = self._dice.random()
            if chance < 0.4 and len(self._jobs):
                self._step(self._jobs.run_one)
            elif chance < 0.5:
                events -= 1
                self._happen()
            elif chance < 0.6 and not len(self._jobs):
                self._machine.pass_time(self._dice.uniform(0, max(0.0, due - self._machine.mono)))
            else:
                if not len(self._jobs):
                    self._machine.pass_time(due - self._machine.mono)
                elif self._dice.random() < 0.3:
                    self._machine.pass_time(self._dice.choice([0.01, 0.5, 5.0]))
                due = self._step(self._tick) or self._machine.mono
        self._come_to_rest()

    def _grow_in_time(self) -> None:
        while self._files.growing and self._machine.mono - self._files.growing[0].at > _PAUSE_SECONDS:
            self._tell(f"-- {self._files.grow(self._files.growing[0])}")

    def _come_to_rest(self) -> None:
        self._tell("all is mended")
        self._is_quiet = self._jobs.is_calm = True
        self._machine.dies_at = self._machine.disk_fault = None
        self._machine.commit_faults.clear()
        self._server.faults.clear()
        self._server.is_away = False
        until = self._machine.mono + SETTLED_WITHIN.total_seconds()
        for _ in range(STEPS_MOST):
            if self._outcome.violations:
                return
            if len(self._jobs):
                self._step(self._jobs.run_one)
                continue
            due = self._step(self._tick) or self._machine.mono
            if len(self._jobs):
                continue
            if self._is_settled():
                break
            if self._machine.mono > until:
                break
            self._machine.pass_time(due - self._machine.mono)
        self._judge_the_end()

    def _happen(self) -> None:
        what: list[tuple[int, Callable[[], str]]] = [(10, self._files.drop_something)]
        if self._files.growing:
            what.append((10, self._files.grow_some))
        if self._has_faults:
            what += [(4, self._server_fails), (2, self._server_goes), (3, self._commits_fail), (2, self._disk_fails)]
        if self._has_deaths:
            what += [(5, self._will_die), (1, self._dies_now)]
        what.append((1, self._stops))
        if self._sets_clock:
            what.append((3, self._set_clock))
        if self._has_person:
            what += [(2, self._damages), (1, self._server_loses)]
        weights = [weight for weight, _ in what]
        happened = self._dice.choices([act for _, act in what], weights=weights)[0]()
        self._tell(f"-- {happened}")
        self._look()

    def _server_fails(self) -> str:
        name = self._dice.choice(sorted(SERVER_FAULTS))
        self._server.faults.add(name, count=self._dice.randint(1, 3), **SERVER_FAULTS[name])
        return f"server: {name}"

    def _server_goes(self) -> str:
        self._server.is_away = not self._server.is_away
        return f"server is {'away' if self._server.is_away else 'back'}"

    def _server_loses(self) -> str:
        rows = self._ask("SELECT id, study_uid, series_uid, sop_uid FROM instance WHERE state = 'CONFIRMED'")
        if not rows:
            return "nothing"
        entry_id, study_uid, series_uid, sop_uid = self._dice.choice(rows)
        self._world.meddled.add((study_uid, series_uid, sop_uid))
        self._server.delete((study_uid, series_uid, sop_uid))
        return f"somebody deletes what row {entry_id} is, on the server"

    def _commits_fail(self) -> str:
        faults = [self._dice.choice(["", "busy", "full", "unknown"]) for _ in range(self._dice.randint(1, 3))]
        self._machine.commit_faults += faults
        return f"commits: {faults}"

    def _disk_fails(self) -> str:
        number = self._dice.choice([errno.EIO, errno.ENOSPC])
        self._machine.disk_fault = (self._machine.steps + self._dice.randint(1, 10), number)
        return f"disk: {errno.errorcode[number]}"

    def _will_die(self) -> str:
        self._machine.dies_at = self._machine.steps + self._dice.randint(1, 25)
        self._machine.dies_after = self._dice.random() < 0.5
        return f"dies {'after' if self._machine.dies_after else 'before'} step {self._machine.dies_at}"

    def _dies_now(self) -> str:
        self._bury()
        return "dies"

    def _stops(self) -> str:
        if self._daemon is None or not self._daemon.stages.posting.is_idle:
            return "nothing"
        daemon, self._daemon = self._daemon, None
        try:
            with self._machine.inside():
                daemon.stop(timedelta(0))
        except (Died, LedgerError):
            pass
        self._daemon = daemon
        self._bury()
        return "stopped in order"

    def _set_clock(self) -> str:
        by = timedelta(seconds=self._dice.choice([-86_400, -3_600, -60, 60, 3_600, 86_400]))
        self._machine.set_by += by
        return f"clock set by {by}"

    def _damages(self) -> str:
        rows = self._ask(
            "SELECT id, path FROM instance WHERE state = 'REJECTED' AND removed_at IS NULL AND NOT in_place"
        )
        if not rows:
            return "nothing"
        entry_id, path = self._dice.choice(rows)
        place = self._world.spool / path
        self._world.damaged.add(str(place))
        if self._dice.random() < 0.5:
            place.unlink(missing_ok=True)
            return f"row {entry_id}: its file is removed"
        with suppress(OSError), place.open("ab") as file:
            file.write(b"more")
        return f"row {entry_id}: its file is altered"

    def decide(self) -> None:
        """A person decides about a row, between what a tick reads and what it writes."""
        if not self._has_person or self._is_quiet:
            return
        # Nothing is overlooked as easily as what is said of a row while an answer about it is in hand.
        answered = self._answered()
        wants_look = bool(answered) and self._dice.random() < 0.4
        if not wants_look and self._dice.random() >= 0.15:
            return
        rows = self._ask(
            "SELECT id, state, study_uid, series_uid, sop_uid FROM instance"
            " WHERE state NOT IN ('DUPLICATE', 'DISCARDED')"
        )
        if not rows:
            return
        needy = [row for row in rows if row[1] in ("REJECTED", "CONFLICT", "FAILED", "DELETED")] or rows
        entry_id, state, *identity = self._dice.choice(needy if self._dice.random() < 0.7 else rows)
        decision = self._dice.choice([moves.retry, moves.discard, moves.replace, moves.admit_anyway, _asks_again])
        if wants_look and (looked_at := [row for row in rows if row[0] in answered]):
            (entry_id, state, *identity), decision = self._dice.choice(looked_at), _asks_again
        with self._machine.inside(now=False):
            if self._person is None:
                self._person = Ledger.open(self._config.ledger, create=False)
            try:
                with self._person.transaction() as tx:
                    decision(tx, entry_id, now=self._machine.utc)
            except RefusedMove:
                said = "refused"
            else:
                said = "done"
                if decision is _asks_again and state in WAITING:
                    self._wishes[entry_id] = (self._machine.utc, self._server.questions)
                if decision is moves.replace:
                    self._world.meddled.add((identity[0], identity[1], identity[2]))
        self._tell(f"-- a person: {decision.__name__} row {entry_id} ({state}): {said}")

    def _answered(self) -> set[int]:
        """The rows that the tick has answers about."""
        answers = self._daemon.stages.verification._answers if self._daemon is not None else []
        return {row.entry_id for answer in answers for row in answer.question.rows}

    # The process

    def _tick(self) -> float:
        daemon = self._daemon or self._begin()
        self._outcome.ticks += 1
        self._machine.pass_time(_TICK_SECONDS)
        due = daemon.loop.tick()
        # With nothing that may happen any more, it is enough to look when a stage says so.
        return min(due, self._machine.mono + (_CALM_SECONDS if self._is_quiet else daemon.loop.idle_seconds))

    def _begin(self) -> Daemon:
        self._machine.reborn()
        self._tell("a process begins")
        self._daemon = Daemon(self._config)
        self._daemon.loop.stages = [*self._daemon.loop.stages, _Person(self.decide)]
        self._daemon.start()
        return self._daemon

    def _step(self, act: Callable[[], Any]) -> Any:
        came: Any = None
        try:
            with self._machine.inside():
                came = act()
            self._machine.expect_alive()
        except Died as died:
            self._tell(f"-- the process dies {died}")
            self._bury()
        except LedgerError as error:
            # The service ends, and is started again.
            self._tell(f"-- the process ends: {type(error).__name__}")
            self._bury()
        self._look()
        return came

    def _bury(self) -> None:
        """Let go of what the kernel would take back."""
        self._outcome.deaths += 1
        self._machine.dies_at = None
        with self._machine.inside(now=False):
            for ledger in (self._person, self._eyes, self._daemon.ledger if self._daemon is not None else None):
                if ledger is not None:
                    ledger.close()
            self._person = self._eyes = None
            if self._daemon is not None:
                self._daemon.workers.inboxes.close()
                self._daemon.workers.client.close()
                self._daemon.spool.unlock()
            self._daemon = None
            self._jobs.forget()

    # What is seen

    def _ask(self, statement: str, *values: object) -> list[Any]:
        with self._machine.inside(now=False):
            file = self._folder / "ledger.db"
            if self._eyes is None:
                if not file.exists() or not file.stat().st_size:
                    return []
                self._eyes = sqlite3.connect(f"file:{file}?mode=rw", uri=True, isolation_level=None)
            try:
                return [tuple(row) for row in self._eyes.execute(statement, values).fetchall()]
            except sqlite3.OperationalError:
                return []  # it has no tables yet

    def _look(self) -> None:
        """Hold everything against the promises."""
        if not self._ask("SELECT 1 FROM sqlite_master WHERE name = 'history'"):
            return
        for move in self._ask("SELECT id, entry_id, before, after, reason FROM history WHERE id > ?", self._last_move):
            self._last_move = move[0]
            self._tell(f"   row {move[1]}: {move[2]} -> {move[3]} {move[4]}")
        with self._machine.inside(now=False):
            self._violated(self._invariants.check(self._eyes, now=self._machine.utc))
        self._violated(self._wishes_slept_over())

    def _wishes_slept_over(self) -> list[str]:
        """A row that somebody wants looked at stays due until the server is asked."""
        slept_over = []
        for entry_id, (since, questions) in list(self._wishes.items()):
            due = self._ask("SELECT state IN (?, ?), next_check_at FROM instance WHERE id = ?", *WAITING, entry_id)
            if self._sets_clock or self._server.questions > questions or not due or not due[0][0]:
                del self._wishes[entry_id]
            elif due[0][1] is None or at(due[0][1]) > since:
                slept_over.append(f"row {entry_id} was to be looked at, and was put off with nobody asked")
        return slept_over

    def _is_settled(self) -> bool:
        if self._files.growing or self._lying():
            return False
        marks = ",".join("?" * len(BETWEEN))
        rows = self._ask(f"SELECT count(*) FROM instance WHERE state IN ({marks}) OR wish IS NOT NULL", *BETWEEN)
        candidates = self._ask("SELECT count(*) FROM candidate")
        return rows == [(0,)] and candidates == [(0,)] and self._is_idle()

    def _lying(self) -> list[str]:
        return sorted(path.name for path in self._world.drop.iterdir() if not path.name.startswith("."))

    def _is_idle(self) -> bool:
        return self._daemon is not None and all(stage.is_idle for stage in self._daemon.loop.stages)

    def _judge_the_end(self) -> None:
        if not self._is_settled():
            rows = self._ask("SELECT state, reason, count(*) FROM instance GROUP BY 1, 2")
            idle = [
                type(stage).__name__
                for stage in (self._daemon.loop.stages if self._daemon is not None else ())
                if not stage.is_idle
            ]
            self._violated([f"it does not come to rest: rows {rows}, in the drop {self._lying()}, at work {idle}"])
        with self._machine.inside(now=False):
            if not (self._has_person or self._world.damaged):
                self._violated(self._invariants.check_end(self._eyes, now=self._machine.utc))
            else:
                self._violated(self._each_has_a_row())

    def _each_has_a_row(self) -> list[str]:
        names = {row[0] for row in self._ask("SELECT relative_path FROM instance")}
        return [f"{file.name} is lost" for file in self._files.written if file.name not in names]

    def _violated(self, violations: list[str]) -> None:
        for violation in violations:
            self._tell(f"!! {violation}")
        self._outcome.violations += violations

    def _tell(self, what: str) -> None:
        self._outcome.trace.append(f"{self._machine.mono - BOOTED_AT:10.3f} {what}")

    def _logged(self, _logger: object, level: str, event: Any) -> Any:
        if level in {"warning", "error", "critical"}:
            facts = {
                name: event[name]
                for name in ("entry_id", "attempt_id", "reason", "note", "error", "kind")
                if name in event
            }
            self._tell(f"   log {event['event']} {facts or ''}")
        raise structlog.DropEvent


def _asks_again(tx: Transaction, entry_id: int, *, now: datetime) -> None:
    """As `ingestd reconcile` does."""
    moves.check_again(tx, [entry_id], at=now)


class _Person(Stage):
    """Comes last of those that collect: the tick has read what it goes by, and has written nothing."""

    def __init__(self, decide: Callable[[], None]) -> None:
        self._decide = decide

    def collect(self, now: Now) -> None:
        self._decide()

    def write(self, tx: Transaction, now: Now) -> None:
        pass


@contextmanager
def _logging(logged: Callable[[object, str, Any], Any]) -> Iterator[None]:
    former = structlog.get_config()
    structlog.configure(
        processors=[logged], wrapper_class=structlog.make_filtering_bound_logger(0), cache_logger_on_first_use=False
    )
    try:
        yield
    finally:
        structlog.configure(**former)


def simulate(seed: int, folder: Path, elsewhere: Path | None = None) -> Outcome:
    """Run one seed in an empty folder; ``elsewhere`` is one on another filesystem, for drop folders that are apart."""
    return Simulation(seed, folder, elsewhere).run()
