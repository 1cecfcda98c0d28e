"""The process of a seed: the daemon that begins, ticks, dies or is stopped, and what its ledger shows from outside."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from ingestd.clocks import Now
from ingestd.config import Config
from ingestd.daemon.daemon import Daemon
from ingestd.daemon.notify import Notifier
from ingestd.daemon.service import _Service
from ingestd.daemon.signals import Asked
from ingestd.daemon.stage import Stage
from ingestd.ledger import Ledger, LedgerError, Transaction
from tests.simulation.jobs import Jobs
from tests.simulation.machine import Died, Machine

_TICK_SECONDS = 0.001
_CALM_SECONDS = 60.0


class Process:
    """One process at a time: who steps on after one died begins the next. ``decide`` is called within each tick."""

    def __init__(self, config: Config, *, machine: Machine, jobs: Jobs, told: Callable[[str], None]) -> None:
        self._config = config
        self._machine = machine
        self._jobs = jobs
        self._tell = told
        self._person: Ledger | None = None
        self._eyes: sqlite3.Connection | None = None
        self._service: _Service | None = None  # the hand-over that is under way
        self.daemon: Daemon | None = None
        self.decide: Callable[[], None] = lambda: None
        self.is_calm = False  # nothing may happen any more
        self.deaths = 0
        self.ticks = 0

    @property
    def is_idle(self) -> bool:
        """Whether no stage has anything to do."""
        return self.daemon is not None and not self.busy_stages()

    def busy_stages(self) -> list[str]:
        """Name the stages that have something to do."""
        stages = self.daemon.loop.stages if self.daemon is not None else ()
        return [type(stage).__name__ for stage in stages if not stage.is_idle]

    def tick(self) -> float:
        """Turn the loop once; say when it wants to be turned again (the machine's ``mono``)."""
        daemon = self.daemon or self._begin()
        self.ticks += 1
        self._machine.pass_time(_TICK_SECONDS)
        due = daemon.loop.tick()
        if self._service is not None and self._service.is_over():
            return self._hand_over(self._service)
        # With nothing that may happen any more, it is enough to look when a stage says so.
        return min(due, self._machine.mono + (_CALM_SECONDS if self.is_calm else daemon.loop.idle_seconds))

    def step(self, act: Callable[[], Any]) -> Any:
        """Do what the process does; None where it died of it."""
        came: Any = None
        try:
            with self._machine.inside():
                came = act()
            self._machine.expect_alive()
        except Died as died:
            self._tell(f"-- the process dies {died}")
            self.bury()
        except LedgerError as error:
            # The service ends, and is started again.
            self._tell(f"-- the process ends: {type(error).__name__}")
            self.bury()
        return came

    def stop(self) -> bool:
        """Stop it in order; False, and nothing is done, where that has to wait for a post."""
        if self.daemon is None or not self.daemon.stages.no_post_is_out:
            return False
        daemon, self.daemon = self.daemon, None
        try:
            with self._machine.inside():
                daemon.stop(timedelta(0))
        except (Died, LedgerError):
            pass
        self.daemon = daemon
        self.bury()
        return True

    def reload(self, config: Config) -> bool:
        """Have it go on with another configuration, as SIGHUP does; False, and nothing is done, where none runs."""
        if self.daemon is None:
            return False
        self._config = config
        # What is said to the service manager goes nowhere, and the only signal is this one.
        signals: Any = SimpleNamespace(asked=Asked.RELOAD)
        following = self._service.following if self._service is not None else None
        self._service = _Service(self.daemon, signals, Notifier(), reread=lambda: config, adopt=lambda _: None)
        self._service.following = following
        return True

    def _hand_over(self, service: _Service) -> float:
        """As ``run_forever`` does."""
        before, following = self.daemon, service.following
        assert before is not None
        assert following is not None
        before.stop(before.config.shutdown_grace, hand_over=True)
        self._tell("another configuration holds")
        self.daemon, self._service = following, None
        self._start(following)
        return self._machine.mono

    def bury(self) -> None:
        """Let go of what the kernel would take back."""
        self.deaths += 1
        self._machine.dies_at = None
        with self._machine.inside(now=False):
            for ledger in (self._person, self._eyes, self.daemon.ledger if self.daemon is not None else None):
                if ledger is not None:
                    ledger.close()
            self._person = self._eyes = None
            for daemon in (self.daemon, self._service.following if self._service is not None else None):
                if daemon is not None:
                    daemon.workers.inboxes.close()
                    for server in daemon.workers.servers.values():
                        server.client.close()
            if self.daemon is not None:
                self.daemon.spool.unlock()
            self.daemon = self._service = None
            self._jobs.forget()

    def _begin(self) -> Daemon:
        self._machine.reborn()
        self._tell("a process begins")
        self.daemon = Daemon(self._config)
        self._start(self.daemon)
        return self.daemon

    def _start(self, daemon: Daemon) -> None:
        daemon.loop.stages = [*daemon.loop.stages, _Person(self.decide)]
        daemon.start()

    # What is seen of it

    @property
    def person(self) -> Ledger:
        """The ledger as a command opens it. Not inside the process."""
        if self._person is None:
            self._person = Ledger.open(self._config.ledger, create=False)
        return self._person

    @property
    def eyes(self) -> sqlite3.Connection | None:
        """The ledger, for who writes nothing; None where there was none when it was last asked something."""
        return self._eyes

    def ask(self, statement: str, *values: object) -> list[Any]:
        """Ask the ledger something; nothing where it is not there yet."""
        with self._machine.inside(now=False):
            file = self._config.ledger_file
            if self._eyes is None:
                if file is None or not file.exists() or not file.stat().st_size:
                    return []
                self._eyes = sqlite3.connect(f"file:{file}?mode=rw", uri=True, isolation_level=None)
            try:
                return [tuple(row) for row in self._eyes.execute(statement, values).fetchall()]
            except sqlite3.OperationalError:
                return []  # it has no tables yet

    def answered(self) -> set[int]:
        """Give the rows that the tick has answers about."""
        servers = self.daemon.stages.servers.values() if self.daemon is not None else ()
        answers = [answer for server in servers for answer in server.verification._answers]
        return {row.delivery_id for answer in answers for row in answer.question.rows}


class _Person(Stage):
    """Comes last of those that collect: the tick has read what it goes by, and has written nothing."""

    def __init__(self, decide: Callable[[], None]) -> None:
        self._decide = decide

    def collect(self, now: Now) -> None:
        self._decide()

    def write(self, tx: Transaction, now: Now) -> None:
        pass
