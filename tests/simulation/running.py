"""The life of one seed: a daemon and its world live, come to rest, are looked at and judged."""

from __future__ import annotations

import json
import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import structlog

from ingestd.config import Config, parse
from ingestd.daemon import build
from tests.invariants import Invariants, World
from tests.kept import told
from tests.simulation.events import EXPLAINED, Chances, Events
from tests.simulation.files import Files
from tests.simulation.jobs import Jobs
from tests.simulation.machine import BOOTED_AT, Machine
from tests.simulation.process import Process
from tests.simulation.server import SimServer, installed

SETTINGS: dict[str, Any] = {
    "inboxes": [{"path": "./drop", "settle": "2s", "incomplete_after": "3m", "watch": "poll"}],
    "spool": {"path": "./spool", "low_water": "1MB"},
    "ledger": "sqlite:///ledger.db",
    "batch": {"quiet_period": "5s", "max_wait": "30s"},
    "retry": {"base": "2s", "cap": "20s"},
    "reconcile": {"interval": "5s", "lag": "30s", "grace": "2h", "absence_wait": "10s"},
    "shutdown_grace": "5s",
}
# Of two destinations, where a file goes by its station, if there are rules at all. No rule is for the last of them; a
# file of that waits for a person, so there are none where nobody decides anything.
ARCHIVE, RESEARCH = "archive", "research"
ROUTES = {"BOTH": (ARCHIVE, RESEARCH), "OLD": (ARCHIVE,), "NEW": (RESEARCH,), "TEST": ()}
UNROUTED = "UNKNOWN"
# What chance may bring, and how much of it.
EVENTS_MOST = 30
STEPS_MOST = 4_000
# No writer pauses for longer: a file that stands still for three minutes is complete, or will never be.
_PAUSE_SECONDS = 60.0
# How long a world without faults may take until all is settled.
SETTLED_WITHIN = timedelta(minutes=45)
CLOCK_SETTLED_WITHIN = timedelta(hours=3)
REST_STEPS_MOST = 40_000
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


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which destinations there are, of which kind each is, and whether rules say what goes where."""

    kinds: Mapping[str, str]
    has_rules: bool

    @classmethod
    def drawn(cls, dice: random.Random, destinations: int) -> Layout:
        """Draw it; ``destinations`` as ``Simulation`` has them."""
        are_two, kind, has_rules = dice.random() < 0.25, dice.choice(["azure", "other"]), dice.random() < 0.6
        if destinations == 2 or (are_two and not destinations):
            return cls(kinds={ARCHIVE: "azure", RESEARCH: kind}, has_rules=has_rules)
        return cls(kinds={"default": "azure"}, has_rules=False)

    def settings(self, servers: Sequence[SimServer]) -> dict[str, Any]:
        """What the configuration says of it."""
        rules = [{"when": {"station": station}, "to": list(names)} for station, names in ROUTES.items()]
        destinations = {
            server.name: {"url": server.url, "auth": "none", "kind": self.kinds[server.name]} for server in servers
        }
        return {"destinations": destinations, "rules": rules if self.has_rules else []}

    def stations(self, *, has_person: bool) -> tuple[str, ...]:
        """What files may be of."""
        if not self.has_rules:
            return ("STATION",)
        return (*ROUTES, UNROUTED) if has_person else tuple(ROUTES)


class Simulation:
    """The world of one seed. ``run`` it once."""

    def __init__(self, seed: int, folder: Path, elsewhere: Path | None = None, *, destinations: int = 0) -> None:
        """``destinations``: 1 or 2, if the seed is not to say how many there are."""
        self._outcome = Outcome(seed=seed)
        self._folder = folder
        self._machine = Machine(seed)
        self._machine.told = self._tell
        self._dice = self._machine.dice
        self._jobs = Jobs(self._machine, self._tell)
        # Drawn apart: a seed without these tells the story that it told before there were any.
        more = random.Random(f"more of {seed}")
        self._stays = more.random() < 0.15
        self._chances = Chances.drawn(self._dice, more)
        self._layout = Layout.drawn(more, destinations)
        is_elsewhere = self._dice.random() < 0.25
        self._drop = (elsewhere if is_elsewhere and elsewhere else folder) / "drop"
        self._last_move = 0
        self._servers: list[SimServer]
        self._files: Files
        self._world: World
        self._invariants: Invariants
        self._process: Process
        self._events: Events

    def run(self) -> Outcome:
        """Live through it."""
        with ExitStack() as stack:
            stack.enter_context(self._machine.installed())
            stack.enter_context(self._jobs.installed())
            stack.enter_context(_logging(self._logged))
            self._servers = [SimServer(self._machine, self._folder / name, name) for name in self._layout.kinds]
            for server in self._servers:
                stack.callback(server.close)
            stack.enter_context(installed(self._servers, self._tell))
            stack.enter_context(patch.object(build, "ReaderPool", self._jobs.readers))
            self._prepare()
            stack.callback(self._process.bury)
            try:
                self._live()
            except Exception as error:  # noqa: BLE001 - whatever ends the daemon is found, with its seed
                where = "".join(traceback.format_exception(error)[-6:])
                self._violated([f"unexpected {type(error).__name__}: {error}\n{where}"])
            self._outcome.posts = sum(len(server.stores()) for server in self._servers)
        self._outcome.files = len(self._files.written)
        self._outcome.deaths, self._outcome.ticks = self._process.deaths, self._process.ticks
        return self._outcome

    def _prepare(self) -> None:
        self._drop.mkdir()
        retain = self._dice.choice(["24h", "24h", "10m"])
        settings = {**SETTINGS, "spool": {**SETTINGS["spool"], "retain": retain}}
        settings["inboxes"] = [
            {**SETTINGS["inboxes"][0], "path": str(self._drop), "take": "in_place" if self._stays else "move"}
        ]
        settings |= self._layout.settings(self._servers)
        config = self._config(settings, SETTINGS["batch"]["quiet_period"])
        stations = self._layout.stations(has_person=self._chances.has_person)
        self._files = Files(self._drop, self._machine, stations)
        self._world = World(
            spool=self._folder / "spool",
            drop=self._drop,
            servers={server.name: server for server in self._servers},
            goes_to=(lambda file: ROUTES.get(file.station, ())) if self._layout.has_rules else None,
            written=self._files.written,
            retain=config.spool.retain,
            explained=EXPLAINED,
            clocks_agree=not self._chances.sets_clock,
            stays=self._stays,
        )
        self._invariants = Invariants(self._world)
        self._process = Process(config, machine=self._machine, jobs=self._jobs, told=self._tell)
        self._events = Events(
            self._chances,
            machine=self._machine,
            servers=self._servers,
            files=self._files,
            world=self._world,
            process=self._process,
            config_with=lambda quiet: self._config(settings, quiet),
            told=self._tell,
        )

    def _config(self, settings: dict[str, Any], quiet_period: str) -> Config:
        batch = {**settings["batch"], "quiet_period": quiet_period}
        return parse(json.dumps({**settings, "batch": batch}), base=self._folder)

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
                self._events.happen()
                self._look()
            elif chance < 0.6 and not len(self._jobs):
                self._machine.pass_time(self._dice.uniform(0, max(0.0, due - self._machine.mono)))
            else:
                if not len(self._jobs):
                    self._machine.pass_time(due - self._machine.mono)
                elif self._dice.random() < 0.3:
                    self._machine.pass_time(self._dice.choice([0.01, 0.5, 5.0]))
                due = self._step(self._process.tick) or self._machine.mono
        self._come_to_rest()

    def _grow_in_time(self) -> None:
        while self._files.growing and self._machine.mono - self._files.growing[0].at > _PAUSE_SECONDS:
            self._tell(f"-- {self._files.grow(self._files.growing[0])}")

    def _come_to_rest(self) -> None:
        self._tell("all is mended")
        self._process.is_calm = self._jobs.is_calm = True
        self._events.mend()
        # A command that comes between a jump of the clock and the tick that notices it is moved along with the clock.
        within = CLOCK_SETTLED_WITHIN if self._chances.sets_clock else SETTLED_WITHIN
        if len(self._servers) > 1 and self._dice.random() < 0.3:
            self._rest_without(self._dice.choice(self._servers), within)
        self._rest(self._is_settled, within)
        self._judge_the_end()

    def _rest_without(self, away: SimServer, within: timedelta) -> None:
        """One that is away holds up nothing of another."""
        self._tell(f"-- but {away.name} is away")
        away.is_away = True
        self._rest(lambda: not self._unsettled(but_for=away.name), within)
        if unsettled := self._unsettled(but_for=away.name):
            self._violated([f"{away.name} is away, and what is for the other does not come to rest: {unsettled}"])
        self._tell(f"-- {away.name} is back")
        away.is_away = False

    def _rest(self, is_over: Callable[[], bool], within: timedelta) -> None:
        until = self._machine.mono + within.total_seconds()
        for _ in range(REST_STEPS_MOST):
            if self._outcome.violations:
                return
            if len(self._jobs):
                self._step(self._jobs.run_one)
                continue
            due = self._step(self._process.tick) or self._machine.mono
            if len(self._jobs):
                continue
            if is_over() or self._machine.mono > until:
                return
            self._machine.pass_time(due - self._machine.mono)

    def _step(self, act: Callable[[], Any]) -> Any:
        came = self._process.step(act)
        self._look()
        return came

    # What is seen

    def _look(self) -> None:
        """Hold everything against the promises."""
        if not self._process.ask("SELECT 1 FROM sqlite_master WHERE name = 'history'"):
            return
        wanted = "SELECT id, coalesce(delivery_id, file_id), before, after, reason FROM history WHERE id > ?"
        for move in self._process.ask(wanted, self._last_move):
            self._last_move = move[0]
            before, after, reason = map(told, ("before", "after", "reason"), move[2:])
            self._tell(f"   row {move[1]}: {before} -> {after} {reason}")
        with self._machine.inside(now=False):
            self._violated(self._invariants.check(self._process.eyes, now=self._machine.utc))
        self._violated(self._events.wishes_slept_over())

    def _is_settled(self) -> bool:
        return not self._unsettled() and self._process.is_idle

    def _unsettled(self, *, but_for: str = "") -> list[str]:
        """Say what is on its way still, but for the deliveries to this destination."""
        marks = ",".join("?" * len(BETWEEN))
        deliveries = self._process.ask(
            f"SELECT 'row ' || delivery.id || ' ' || state FROM delivery"
            f" JOIN destination ON destination.id = destination_id"
            f" WHERE (state IN ({marks}) OR reason = 'not_compared') AND name != ?",
            *BETWEEN,
            but_for,
        )
        files = self._process.ask(
            "SELECT 'wish for row ' || id FROM file WHERE wish IS NOT NULL"
            " UNION ALL SELECT 'candidate ' || id FROM candidate"
        )
        dropped = self._unknown() if self._stays else self._lying()
        return [file.written.name for file in self._files.growing] + dropped + [text for (text,) in deliveries + files]

    def _lying(self) -> list[str]:
        """Name what still lies in the drop folder, and is to leave it: a source whose copy somebody took stays."""
        copied = self._process.ask("SELECT relative_path, path FROM file WHERE NOT source_removed")
        kept = {name for name, path in copied if str(self._world.spool / told("path", path)) in self._world.damaged}
        names = {path.name for path in self._world.drop.iterdir() if not path.name.startswith(".")}
        return sorted(names - kept)

    def _judge_the_end(self) -> None:
        if not self._is_settled():
            busy = self._process.busy_stages()
            self._violated([f"it does not come to rest: {self._unsettled()}, at work {busy}"])
        with self._machine.inside(now=False):
            if not (self._chances.has_person or self._world.damaged):
                self._violated(self._invariants.check_end(self._process.eyes, now=self._machine.utc))
            else:
                self._violated([f"{name} is lost" for name in self._unknown()])

    def _unknown(self) -> list[str]:
        """Name the files that were written and have no row."""
        names = {row[0] for row in self._process.ask("SELECT relative_path FROM file")}
        return [file.name for file in self._files.written if file.name not in names]

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
                for name in ("delivery_id", "attempt_id", "reason", "note", "error", "kind")
                if name in event
            }
            self._tell(f"   log {event['event']} {facts or ''}")
        raise structlog.DropEvent


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


def simulate(seed: int, folder: Path, elsewhere: Path | None = None, *, destinations: int = 0) -> Outcome:
    """Run one seed in an empty folder; ``elsewhere`` is one on another filesystem, for drop folders that are apart.

    ``destinations``: 1 or 2, if the seed is not to say how many there are.
    """
    return Simulation(seed, folder, elsewhere, destinations=destinations).run()
