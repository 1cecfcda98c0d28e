"""A real PostgreSQL, started for some tests and gone afterwards; ``tests.wire`` makes the way to it slow or cuts it.

Debian's package ``postgresql`` is needed, of which the programs are used and no cluster or service. Where it is not
installed, tests that ask for the fixture ``cluster`` are skipped with the reason; with ``INGESTD_REQUIRE_PEERS=1`` they
fail instead.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil
import psycopg

from tests.patience import PATIENCE
from tests.ports import own_port
from tests.running import wait_until

KEEPER = Path(__file__).with_name("keeper.py")
USER = "postgres"
SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %d ",
    "wal_retrieve_retry_interval": "100ms",  # a standby that asks too early waits for 5 s else
}
_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_numbers = count(1)


class PostgresError(RuntimeError):
    """A program of PostgreSQL's did not do what it was started for."""


def why_no_postgres() -> str:
    """Say what is missing to run PostgreSQL here; empty when nothing is."""
    return "" if _programs() else "initdb is neither in PATH nor under /usr/lib/postgresql (Debian package postgresql)"


def fresh_database(cluster: Cluster) -> str:
    """Make a database that nobody has used and return its URL; it goes with the cluster, or is dropped before."""
    name = f"fresh_{next(_numbers)}"
    cluster.make(name)
    return cluster.url(name)


class Cluster:
    """One PostgreSQL server on a port of the loopback interface, with data and log in a folder that goes with it.

    Anybody may log in there as the superuser ``postgres``. Started by root, it runs as a user without rights.
    ``settings`` go into postgresql.conf last. Unless ``durable``, nothing is synced: what was committed outlives
    ``kill``, but not the machine.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None, durable: bool = False) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "postgres.log"
        self.port = 0
        self._settings = {**SETTINGS, "fsync": "on" if durable else "off", **(settings or {})}
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._was_killed = False
        self._standbys: list[Cluster] = []

    def __enter__(self) -> Self:
        if not self.is_running:
            self._make_data()
            self._run("initdb", "-D", self.data, "-U", USER, "-A", "trust", "--locale=C", "--encoding=UTF8", "-N")
            with (self.data / "postgresql.conf").open("a") as configuration:
                configuration.writelines(f"{name} = '{value}'\n" for name, value in self._settings.items())
            self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for standby in self._standbys:
            standby.__exit__(None, None, None)
        if self._was_killed:
            with suppress(PostgresError):
                self.start()  # takes away the shared memory that it left
        if self.is_running:
            self.go_on()
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def is_running(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    def url(self, database: str, *, port: int | None = None) -> str:
        """The address of a database, by a ``Wire``'s port where one is given."""
        return f"postgresql://{USER}@127.0.0.1:{port or self.port}/{database}"

    def execute(self, sql: str, database: str = "postgres", values: Sequence[Any] | None = None) -> list[Any]:
        """Run a statement by itself, on a connection of its own, and return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            answer = connection.execute(sql, values)
            return answer.fetchall() if answer.description else []

    def make(self, database: str, template: str | None = None) -> None:
        """Make a database; a template that anybody is connected to cannot be copied."""
        # WAL_LOG, the default, takes 25 ms and 4.7 MB of WAL, and this one 15 ms and 0.6 MB where nothing is synced.
        self.execute(f'CREATE DATABASE "{database}" TEMPLATE "{template or "template1"}" STRATEGY FILE_COPY')

    def drop(self, database: str) -> None:
        """Drop a database, if it is there, whoever is connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def terminate_backends(self, database: str) -> None:
        """End all connections to a database as an administrator does, and return when they are gone."""
        ended = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        self.execute(f"{ended} WHERE datname = %s AND pid <> pg_backend_pid()", values=[database])

    def start(self) -> None:
        """Start the server on what its folder holds, and return when it answers; raises PostgresError."""
        assert not self.is_running, "it runs"
        self.port = self.port or own_port()
        command = [*_unprivileged(), _program("postgres"), "-D", self.data, "-p", str(self.port)]
        with self.log.open("ab") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", KEEPER, str(os.getpid()), self.folder, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )
        self._pid = wait_until(self._ready, what="PostgreSQL", within_seconds=PATIENCE, every=0.01)
        self._was_killed = False

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Have it end, rolling back what is open; ``immediate`` writes no checkpoint, as a crash."""
        self._signal(_SIGNALS[mode])

    def kill(self) -> None:
        """End all of its processes by SIGKILL."""
        self.pause()  # so that none of them does anything between the end of another and its own
        self._signal(signal.SIGKILL)
        self._was_killed = True

    def pause(self) -> None:
        """Stop all of its processes where they are; new connections are taken by the kernel, and hang too."""
        os.kill(self._pid, signal.SIGSTOP)  # first, so that it starts no others
        self._signal_children(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have all of its processes go on."""
        self._signal_children(signal.SIGCONT)
        os.kill(self._pid, signal.SIGCONT)

    def standby(self, folder: Path) -> Cluster:
        """Start a server that follows this one and answers reads; it ends with this one, unless before."""
        standby = Cluster(folder)
        standby._make_data()
        self._run("pg_basebackup", "-D", standby.data, "-d", self.url(""), "-R", "-c", "fast", "-N")
        self._standbys.append(standby)
        standby.start()
        return standby

    def promote(self) -> None:
        """Have a standby take writes, and return when it does."""
        self.execute("SELECT pg_promote()")

    def _make_data(self) -> None:
        if reason := why_no_postgres():
            raise PostgresError(reason)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(self.data, _unprivileged_user())

    def _run(self, program: str, *words: str | Path) -> None:
        command = [*_unprivileged(), _program(program), *words]
        ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", env=_environment())
        if ran.returncode:
            raise PostgresError(f"{program} ended with {ran.returncode}: {ran.stderr}")

    def _ready(self) -> int:
        """Its process id once it takes connections, and 0 before; what an earlier one wrote is not believed."""
        assert self._keeper is not None
        if self._keeper.poll() is not None:
            raise PostgresError(f"PostgreSQL on port {self.port} ended; it said:\n{self.log.read_text()[-2000:]}")
        with suppress(FileNotFoundError, psutil.NoSuchProcess):
            told = (self.data / "postmaster.pid").read_text().split("\n")
            if len(told) > 7 and told[7].strip() == "ready":
                pids = {child.pid for child in psutil.Process(self._keeper.pid).children()}
                return int(told[0]) if int(told[0]) in pids else 0
        return 0

    def _signal(self, number: signal.Signals) -> None:
        assert self._keeper is not None
        os.kill(self._pid, number)
        self._keeper.wait(PATIENCE)

    def _signal_children(self, number: signal.Signals) -> None:
        for child in psutil.Process(self._pid).children():
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)


def _programs() -> Path | None:
    """The folder of PostgreSQL's programs, of which Debian has only the clients' in PATH."""
    if in_path := shutil.which("initdb"):
        return Path(in_path).resolve().parent
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in found), key=lambda folder: int(folder.parent.name), default=None)


def _program(name: str) -> Path:
    folder = _programs()
    assert folder is not None, "looked at before"
    return folder / name


def _unprivileged_user() -> str:
    return "postgres" if any(user.pw_name == "postgres" for user in pwd.getpwall()) else "nobody"


def _unprivileged() -> list[str]:
    """What a command begins with to run without rights where we are root, as which PostgreSQL does not run.

    But for the right to pass folders: those of pytest are root's alone.
    """
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam(_unprivileged_user())
    rights = [f"--{kind}-caps=+dac_read_search" for kind in ("inh", "ambient")]
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *rights]


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LC_ALL": "C"}
