"""Two gateways: real daemons with a configuration and a folder each, on one drop folder, one spool and one ledger."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from ingestd.config import Inbox
from ingestd.emulator import Emulator
from ingestd.ledger.study_locks import LOCK
from tests.builders import dataset_bytes, fresh_uid, part10
from tests.emulating import Identity, file_of, stores
from tests.invariants import Invariants, World, digest_of
from tests.ledgers import read_whole
from tests.patience import PATIENCE
from tests.running import QUICK_INBOX, Daemon, Site, wait_until
from tests.torture.feeding import Kind, Written
from tests.torture.watching import BETWEEN

LEASE = 2.0
# From the kill to the next post, beside the lease (issue's own figure).
GRACE = 15.0
_HOLDER = """SELECT worker_id FROM claim JOIN worker ON worker.id = worker_id
    WHERE starts_with(name, 'inbox ') AND ended_at IS NULL ORDER BY name"""


class Served:
    """The embedded server as ``Invariants`` ask it."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def stores(self) -> list[dict[str, Any]]:
        return stores(self._emulator.requests)

    def content(self, identity: Identity) -> bytes | None:
        return file_of(self._emulator.url, identity)


class Gateways:
    """``a`` and ``b``, and whatever other name is asked for; ``ledger`` is the direct way, ``by`` the daemons' own."""

    def __init__(
        self,
        folder: Path,
        server: Emulator,
        ledger: str,
        *,
        by: str = "",
        drop: str = "",
        more_drops: int = 0,
        **settings: Any,
    ) -> None:
        self._folder = folder
        self.server = server
        self.ledger = ledger
        self.drop = Path(drop or folder / "drop")
        self.spool = folder / "spool"
        self.drops = [self.drop, *(folder / f"drop{number}" for number in range(1, more_drops + 1))]
        for each in self.drops:
            each.mkdir(exist_ok=True)
        self.written: list[Written] = []
        self._settings: dict[str, Any] = {
            "inboxes": [{"path": str(each), **QUICK_INBOX} for each in self.drops],
            "spool": {"path": str(self.spool)},
            "ledger": by or ledger,
            "lease": f"{LEASE:.0f}s",
            **settings,
        }
        self._daemons: list[Daemon] = []
        self._keepers: list[threading.Thread] = []
        self._ended = threading.Event()

    def site(self, name: str, **settings: Any) -> Site:
        """Configure the gateway of this name."""
        return Site(self._folder / name, self.server.url, **{**self._settings, **settings})

    def start(self, name: str, *, wait: bool = True, env: Mapping[str, str] | None = None, **settings: Any) -> Daemon:
        """Start the daemon of this gateway; with ``wait`` it works or stands by on return."""
        daemon = self.site(name, **settings).start(wait=wait, env=env)
        self._daemons.append(daemon)
        return daemon

    def keep(self, *names: str, env: Mapping[str, str] | None = None) -> None:
        """Start these, and have each that ends be started again, as systemd does."""
        for name in names:
            keeper = threading.Thread(target=self._keep, args=(name, env))
            keeper.start()
            self._keepers.append(keeper)

    def _keep(self, name: str, env: Mapping[str, str] | None) -> None:
        daemon = self.start(name, wait=False, env=env)
        while not self._ended.wait(0.2):
            if not daemon.is_running():
                daemon.kill()
                daemon = self.start(name, wait=False, env=env)

    def running(self) -> list[Daemon]:
        """The daemons that live."""
        return [daemon for daemon in list(self._daemons) if daemon.process.poll() is None]

    def end(self) -> None:
        """Have all daemons end by themselves, and start none again."""
        self._ended.set()
        for keeper in self._keepers:
            keeper.join()
        for daemon in self.running():
            daemon.terminate()

    def close(self) -> None:
        self._ended.set()
        for keeper in self._keepers:
            keeper.join()
        for daemon in self._daemons:
            daemon.kill()

    def sql(self, statement: str, *values: Any) -> list[Any]:
        """Run a statement on the ledger, by the direct way; a ledger that was not made yet has no rows."""
        with suppress(psycopg.errors.UndefinedTable), psycopg.connect(self.ledger, autocommit=True) as connection:
            answer = connection.execute(statement, values)
            return answer.fetchall() if answer.description else []
        return []

    @contextmanager
    def writing(self) -> Iterator[psycopg.Connection]:
        """A transaction within which no worker writes."""
        with psycopg.connect(self.ledger) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(current_schema()))", [LOCK])
            yield connection

    def shift_clock(self, hours: int) -> None:
        """Have all that was written so far say a time that is so many hours later."""
        columns = """SELECT table_name, column_name FROM information_schema.columns
            WHERE table_schema = current_schema() AND data_type = 'bigint' AND column_name LIKE '%\\_at'"""
        with self.writing() as connection:
            # Of the history nothing is ever changed.
            for table, column in connection.execute(columns).fetchall():
                if table != "history":
                    connection.execute(f"UPDATE {table} SET {column} = {column} + %s", [hours * 3_600_000_000])

    def holder(self) -> int:
        """The number of the worker that has the drop folder (the first of several); 0: none does."""
        rows = self.sql(_HOLDER)
        return int(rows[0][0]) if rows else 0

    def claims(self) -> dict[int, set[str]]:
        """What each worker that has not ended has claimed; of inboxes, the names of their folders."""
        alive = "SELECT id FROM worker WHERE id > 0 AND holds = 1 AND ended_at IS NULL"
        found: dict[int, set[str]] = {number: set() for (number,) in self.sql(alive)}
        names = {f"inbox {Inbox(path=each).spool_name}": each.name for each in self.drops}
        for number, name in self.sql("SELECT worker_id, name FROM claim"):
            if number in found:
                found[number].add(names.get(name, name))
        return found

    def worker_of(self, daemon: Daemon) -> int:
        """The number of the worker that this daemon is now."""
        (number,) = self.sql("SELECT max(id) FROM worker WHERE split_part(process, ':', 3) = %s", str(daemon.pid))[0]
        return int(number or 0)

    def wait_held_by(self, daemon: Daemon, *, within_seconds: float = LEASE + GRACE) -> float:
        """Return when this daemon has the drop folder, and say how long that took."""
        began_at = time.monotonic()

        def is_held() -> bool:
            return daemon.is_running() and self.holder() == self.worker_of(daemon) != 0

        try:
            wait_until(is_held, what="the take-over", within_seconds=within_seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{daemon.tail()}") from None
        return time.monotonic() - began_at

    def put_elsewhere(self) -> None:
        """Have all processes so far look as those of another machine, of which nobody here can say whether they are."""
        self.sql("UPDATE worker SET machine = 'elsewhere', process = 'elsewhere-' || process WHERE id > 0")

    def feed(self, count: int = 1, *, study: str = "", rows: int = 16, drop: Path | None = None) -> list[Written]:
        """Drop so many files of one study, each renamed in whole; ``rows`` is the side of the picture."""
        study = study or fresh_uid(1)
        series = fresh_uid(2)
        return [self._put(study, series, rows, drop or self.drop) for _ in range(count)]

    def _put(self, study: str, series: str, rows: int, drop: Path) -> Written:
        sop = fresh_uid(3)
        uids = {"study_uid": study, "series_uid": series, "sop_uid": sop}
        dataset = dataset_bytes(**uids, rows=rows, columns=rows, pixels=os.urandom(rows * rows * 2))
        name = f"IM{len(self.written) + 1:04d}"
        aside = drop / f".{name}.part"
        aside.write_bytes(part10(dataset, sop_uid=sop))
        aside.rename(drop / name)
        self.written.append(Written(name=name, kind=Kind.NEW, **uids, sha256=digest_of(dataset)))
        return self.written[-1]

    def states(self) -> dict[str, int]:
        """How many deliveries are in each state."""
        return dict(self.sql("SELECT state, count(*) FROM delivery GROUP BY state"))

    def wait_for(self, *, within_seconds: float = PATIENCE, **states: int) -> None:
        """Return when the ledger has exactly these deliveries by state."""

        def has_come() -> bool:
            return self.states() == states

        try:
            wait_until(has_come, what=str(states), within_seconds=within_seconds, every=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}; the ledger has {self.states()}") from None

    def wait_confirmed(self, *, within_seconds: float = PATIENCE) -> None:
        """Return when all that was written is CONFIRMED."""
        self.wait_for(CONFIRMED=len(self.written), within_seconds=within_seconds)

    def is_at_rest(self) -> bool:
        """Whether nothing is under way any more: no file waits, no delivery is between two states."""
        if not all(path.name.startswith(".") for drop in self.drops for path in drop.iterdir()):
            return False
        return not self.sql("SELECT id FROM candidate") and not self.states().keys() & set(BETWEEN)

    def check(self, *, retain: timedelta | None = None, now: datetime | None = None) -> list[str]:
        """Hold everything against what was written, with nothing under way any more, and say what is wrong."""
        servers = {"default": Served(self.server)}
        world = World(
            spool=self.spool,
            drop=self.drop,
            more_drops=self.drops[1:],
            servers=servers,
            written=self.written,
            retain=retain,
        )
        with read_whole(self.ledger) as ledger:
            return Invariants(world).check_end(ledger, now=now)

    def posted(self) -> dict[str, int]:
        """How often the server was sent each instance to its end."""
        found: dict[str, int] = {}
        for line in stores(self.server.requests):
            found[line["sop"]] = found.get(line["sop"], 0) + 1
        return found


@contextmanager
def gateways(folder: Path, server: Emulator, ledger: str, **settings: Any) -> Iterator[Gateways]:
    """Gateways whose daemons end with the test."""
    both = Gateways(folder, server, ledger, **settings)
    try:
        yield both
    finally:
        both.close()


def through(url: str, port: int) -> str:
    """The same database by another port."""
    return re.sub(r":\d+/", f":{port}/", url, count=1)


@contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    """While it lasts the daemon does nothing, as one whose machine was suspended."""
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def stops_itself(daemon: Daemon) -> bool:
    """Whether all of its threads are stopped (proc_pid_stat(5))."""
    return Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
