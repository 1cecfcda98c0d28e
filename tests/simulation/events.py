"""What may happen to the daemon of a seed: to its server, disk, clock and process, and what a person does."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ingestd.config import Config
from ingestd.ledger import RefusedMove, Transaction, moves
from tests.invariants import World
from tests.kept import told
from tests.recounting import ENTRIES, at
from tests.simulation.files import Files
from tests.simulation.machine import Machine
from tests.simulation.process import Process
from tests.simulation.server import SimServer

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
_NEEDS_PERSON = ("REJECTED", "UNROUTED", "CONFLICT", "FAILED", "DELETED")
_HELD = f"""coalesce(destination.name, ''), study.uid, file.series_uid, file.sop_uid
    FROM {ENTRIES} JOIN file ON file.id = entry.file_id LEFT JOIN study ON study.id = file.study_id
    LEFT JOIN delivery ON delivery.id = entry.id LEFT JOIN destination ON destination.id = destination_id"""


@dataclass(frozen=True, kw_only=True)
class Chances:
    """What may happen at all. ``has_person``: without, the end of each file is known beforehand."""

    has_person: bool
    sets_clock: bool
    has_deaths: bool
    has_faults: bool
    has_reloads: bool

    @classmethod
    def drawn(cls, dice: random.Random, more: random.Random) -> Chances:
        """Draw them; ``more`` for what came later."""
        return cls(
            has_person=dice.random() < 0.4,
            sets_clock=dice.random() < 0.2,
            has_deaths=dice.random() < 0.6,
            has_faults=dice.random() < 0.7,
            has_reloads=more.random() < 0.2,
        )


class Events:
    """Everything that ``chances`` allow, one by one; ``config_with`` gives the configuration with a quiet period."""

    def __init__(
        self,
        chances: Chances,
        *,
        machine: Machine,
        servers: Sequence[SimServer],
        files: Files,
        world: World,
        process: Process,
        config_with: Callable[[str], Config],
        told: Callable[[str], None],
    ) -> None:
        self._chances = chances
        self._machine = machine
        self._dice = machine.dice
        self._servers = servers
        self._files = files
        self._world = world
        self._process = process
        process.decide = self.decide
        self._config_with = config_with
        self._tell = told
        # Rows that a person wants looked at, and how many questions their server had been asked when that was said.
        self._wishes: dict[int, tuple[SimServer, int]] = {}

    def happen(self) -> None:
        """Have one of them happen."""
        chances = self._chances
        what: list[tuple[int, Callable[[], str]]] = [(10, self._files.drop_something)]
        if self._files.growing:
            what.append((10, self._files.grow_some))
        if chances.has_faults:
            what += [(4, self._server_fails), (2, self._server_goes), (3, self._commits_fail), (2, self._disk_fails)]
        if chances.has_deaths:
            what += [(5, self._will_die), (1, self._dies_now)]
        what.append((1, self._stops))
        if chances.sets_clock:
            what.append((3, self._set_clock))
        if chances.has_person:
            # What one feed tells must never reach the rows of another.
            what += [(2, self._damages), (1 if len(self._servers) == 1 else 5, self._server_loses)]
        if chances.has_reloads:
            what.append((4, self._reloads))
        if self._world.stays:
            what.append((3, self._copies_anew))
            if chances.has_person:
                what.append((1, self._removes))
        weights = [weight for weight, _ in what]
        happened = self._dice.choices([act for _, act in what], weights=weights)[0]()
        self._tell(f"-- {happened}")

    def mend(self) -> None:
        """Undo what was to go wrong yet."""
        self._machine.dies_at = self._machine.disk_fault = None
        self._machine.commit_faults.clear()
        for server in self._servers:
            server.faults.clear()
            server.is_away = False

    def _some_server(self) -> SimServer:
        return self._dice.choice(self._servers) if len(self._servers) > 1 else self._servers[0]

    def _server_fails(self) -> str:
        server, name = self._some_server(), self._dice.choice(sorted(SERVER_FAULTS))
        server.faults.add(name, count=self._dice.randint(1, 3), **SERVER_FAULTS[name])
        return f"{server.name}: {name}"

    def _server_goes(self) -> str:
        server = self._some_server()
        server.is_away = not server.is_away
        return f"{server.name} is {'away' if server.is_away else 'back'}"

    def _server_loses(self) -> str:
        rows = self._process.ask(f"SELECT entry.id, {_HELD} WHERE entry.state = 'CONFIRMED'")
        if not rows:
            return "nothing"
        number, destination, study_uid, series_uid, sop_uid = self._dice.choice(rows)
        self._world.meddled.add((destination, study_uid, series_uid, sop_uid))
        self._named(destination).delete((study_uid, series_uid, sop_uid))
        return f"somebody deletes what row {number} is, on its server"

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
        self._process.bury()
        return "dies"

    def _stops(self) -> str:
        return "stopped in order" if self._process.stop() else "nothing"

    def _reloads(self) -> str:
        quiet = self._dice.choice(["1s", "5s", "20s"])
        return f"SIGHUP: quiet_period {quiet}" if self._process.reload(self._config_with(quiet)) else "nothing"

    def _set_clock(self) -> str:
        by = timedelta(seconds=self._dice.choice([-86_400, -3_600, -60, 60, 3_600, 86_400]))
        self._machine.set_by += by
        return f"clock set by {by}"

    def _named(self, destination: str) -> SimServer:
        return next(server for server in self._servers if server.name == destination)

    # A person

    def _damages(self) -> str:
        rows = self._process.ask(
            "SELECT id, path FROM file WHERE state = 'REJECTED' AND removing_at IS NULL AND NOT in_place"
        )
        if not rows:
            return "nothing"
        number, path = self._dice.choice(rows)
        place = self._world.spool / told("path", path)
        self._world.damaged.add(str(place))
        if self._dice.random() < 0.5:
            place.unlink(missing_ok=True)
            return f"row {number}: its file is removed"
        with suppress(OSError), place.open("ab") as file:
            file.write(b"more")
        return f"row {number}: its file is altered"

    def _copies_anew(self) -> str:
        """What lies there comes from a backup: the same bytes, time and name, and another inode."""
        file = self._dice.choice(self._files.written) if self._files.written else None
        place = self._world.drop / file.name if file is not None else None
        if place is None or str(place) in self._world.damaged:
            return "nothing"
        aside = place.with_name(f".{place.name}.part")
        shutil.copy2(place, aside)
        aside.rename(place)
        return f"{place.name} is copied anew"

    def _removes(self) -> str:
        rows = self._process.ask("SELECT id, path FROM file WHERE in_place")
        left = [(number, path) for number, kept in rows if (path := told("path", kept)) not in self._world.damaged]
        if not left:
            return "nothing"
        number, path = self._dice.choice(left)
        self._world.damaged.add(path)
        Path(path).unlink()
        return f"row {number}: its file is removed where it lay"

    def decide(self) -> None:
        """A person decides about a row, between what a tick reads and what it writes."""
        if not self._chances.has_person or self._process.is_calm:
            return
        # Nothing is overlooked as easily as what is said of a row while an answer about it is in hand.
        answered = self._process.answered()
        wants_look = bool(answered) and self._dice.random() < 0.4
        if not wants_look and self._dice.random() >= 0.15:
            return
        rows = self._process.ask(
            f"SELECT entry.id, entry.state, {_HELD} WHERE entry.state NOT IN ('DUPLICATE', 'DISCARDED')"
        )
        if not rows:
            return
        needy = [row for row in rows if row[1] in _NEEDS_PERSON] or rows
        number, state, *held = self._dice.choice(needy if self._dice.random() < 0.7 else rows)
        decision = self._dice.choice([moves.retry, moves.discard, moves.replace, moves.admit_anyway, _asks_again])
        if wants_look and (looked_at := [row for row in rows if row[0] in answered]):
            (number, state, *held), decision = self._dice.choice(looked_at), _asks_again
        with self._machine.inside(now=False):
            try:
                with self._process.person.transaction() as tx:
                    decision(tx, number, now=self._machine.utc)
            except RefusedMove:
                said = "refused"
            else:
                said = "done"
                if decision is _asks_again and state in WAITING:
                    server = self._named(held[0])
                    self._wishes[number] = (server, server.questions)
                if decision is moves.replace:
                    self._world.meddled.add((held[0], held[1], held[2], held[3]))
        self._tell(f"-- a person: {decision.__name__} row {number} ({state}): {said}")

    def wishes_slept_over(self) -> list[str]:
        """A row that somebody wants looked at stays due until the server is asked."""
        slept_over = []
        due_of = "SELECT state IN (?, ?), next_check_at FROM delivery WHERE id = ?"
        for number, (server, questions) in list(self._wishes.items()):
            due = self._process.ask(due_of, *WAITING, number)
            if self._chances.sets_clock or server.questions > questions or not due or not due[0][0]:
                del self._wishes[number]
            elif due[0][1] is None or at(due[0][1]) > self._machine.utc:
                slept_over.append(f"row {number} was to be looked at, and was put off with nobody asked")
        return slept_over


def _asks_again(tx: Transaction, number: int, *, now: datetime) -> None:
    """As `ingestd reconcile` does."""
    moves.check_again(tx, [number], at=now)
