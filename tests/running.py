"""ingestd as a person runs it: a folder with a configuration, and real processes started on it.

``Site`` is one installation (configuration, drop folder, spool, ledger); ``Daemon`` is one ``ingestd run`` on it, with
the service manager's socket to listen to. Nothing here reaches into the program: it is told by its configuration and
signals, and asked through its commands and its ledger.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import pytest

from ingestd.cli import main
from ingestd.ledger import Entry, Ledger, LedgerMissing, Story, queries
from tests import forking
from tests.forking import Forked
from tests.ledgers import ON_POSTGRESQL, agree_anew, placed, url_of
from tests.patience import PATIENCE
from tests.recounting import ENTRIES

T = TypeVar("T")
PROGRAM = (sys.executable, "-m", "ingestd")
PROJECT = Path(__file__).resolve().parents[1]
# What a test can wait for; production's defaults are minutes.
QUICK: Mapping[str, Any] = {
    "batch": {"quiet_period": "100ms", "max_wait": "1s"},
    "retry": {"base": "200ms", "cap": "1s"},
    "reconcile": {"interval": "200ms", "lag": "1s", "grace": "5s", "absence_wait": "500ms"},
    "shutdown_grace": "5s",
    "logging": {"format": "json"},
}
QUICK_INBOX: Mapping[str, Any] = {"settle": "100ms", "incomplete_after": "2s"}
# The commands that only read and write the ledger: a process of its own costs each of them ten times the time.
OF_THE_LEDGER = frozenset({"status", "explain", "retry", "resolve"})


class TookTooLongError(AssertionError):
    """What was waited for did not come."""


def wait_until(
    condition: Callable[[], T], *, what: str, within_seconds: float = PATIENCE, every: float | None = None
) -> T:
    """Return the condition's first true value; raises TookTooLongError, naming ``what``, when it does not come.

    It is looked at ``every`` so many seconds where that is given, as by whoever takes the time that something takes;
    else ever more rarely: what is asked wants the CPU too.
    """
    began_at = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - began_at
        if waited > within_seconds:
            raise TookTooLongError(f"{what} did not come within {within_seconds:.0f} s")
        time.sleep(max(0.02, waited / 20) if every is None else every)
    return value


class Site:
    """One installation of ingestd in a folder of its own."""

    def __init__(self, folder: Path, url: str, **settings: Any) -> None:
        """Make the folders and the configuration; ``settings`` are sections merged over ``QUICK``."""
        self.folder = folder
        self.drop = folder / "drop"
        self.spool = folder / "spool"
        self.ledger_file = folder / "ledger.db"
        self.ledger_url = url_of(folder)
        self.config_file = folder / "config.yaml"
        self.url = url
        folder.mkdir(parents=True, exist_ok=True)
        self.drop.mkdir(exist_ok=True)
        self.configure(**settings)

    def configure(self, **settings: Any) -> None:
        """Write the configuration anew; YAML takes JSON as it is."""
        config: dict[str, Any] = {
            "inboxes": [{"path": "./drop", **QUICK_INBOX}],
            "spool": {"path": "./spool", "low_water": "10MB"},
            "destination": {"url": self.url, "auth": "none"},
            "ledger": placed("sqlite:///ledger.db", self.folder),
            # A reader takes 0.15 s of CPU to start. What is measured has as many as elsewhere, and so has tests/line.
            **({"reader": {"processes": 1}} if forking.allowed else {}),
        }
        if "destinations" in settings:
            del config["destination"]
        for name, section in (*QUICK.items(), *settings.items()):
            known = config.get(name)
            both = isinstance(known, dict) and isinstance(section, Mapping)
            config[name] = {**(known or {}), **section} if both else section
        self.config_file.write_text(json.dumps(config, indent=1))
        agree_anew(self.folder)

    def command(
        self, *words: str, within_seconds: float = PATIENCE, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command of ingestd on this installation and return what it said."""
        if words[0] in OF_THE_LEDGER and env is None:
            return self._asked_here(words)
        told = [*words, "-c", str(self.config_file)]
        return run_program(told, cwd=self.folder, env=env, within_seconds=within_seconds)

    def _asked_here(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main([words[0], "-c", str(self.config_file), *words[1:]])
        return subprocess.CompletedProcess(words, int(ended.value.code or 0), out.getvalue(), err.getvalue())

    def run_once(self, *, within_seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run ``run --once`` and return what it said."""
        return self.command("run", "--once", "--timeout", f"{within_seconds:.0f}s", within_seconds=within_seconds + 20)

    def start(
        self, *words: str, wait: bool = True, env: Mapping[str, str] | None = None, program: Path | None = None
    ) -> Daemon:
        """Start ``ingestd run``; with ``wait`` it has said READY on return. ``program``: what it takes Python for."""
        daemon = Daemon(self, words, env=env, program=program)
        if wait:
            try:
                daemon.wait_ready()
            except BaseException:
                daemon.kill()
                raise
        return daemon

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger, to read."""
        with Ledger.open(self.ledger_url, create=False, read_only=True, key=self.spool / "search.key") as ledger:
            yield ledger

    def status(self) -> dict[str, Any]:
        """What `status --json` says."""
        told: dict[str, Any] = json.loads(self.command("status", "--json").stdout)
        return told

    def stopped(self) -> set[str]:
        """The kinds of the lines "Stopped because ..." that `status` has."""
        return {line["kind"] for line in self.status()["stopped_because"]}

    def states(self) -> dict[str, int]:
        """How many rows are in each state; states without rows are left out, and a ledger not made yet has none."""
        try:
            with self.ledger() as ledger:
                return {str(state): rows for state, rows in queries.counts(ledger).items() if rows}
        except LedgerMissing:
            return {}

    def _states_at_a_glance(self) -> dict[str, int] | None:
        """The rows counted without opening the ledger as ingestd does, which takes ten times as long."""
        if ON_POSTGRESQL:
            return None
        try:
            with closing(sqlite3.connect(f"{self.ledger_file.as_uri()}?mode=ro", uri=True)) as ledger:
                return dict(ledger.execute(f"SELECT state, count(*) FROM {ENTRIES} GROUP BY state").fetchall())
        except sqlite3.Error:
            return None

    def entries(self) -> list[Entry]:
        """Every row of the ledger, by id."""
        rows: list[Entry] = []
        with self.ledger() as ledger:
            while page := queries.entries(ledger, after=rows[-1] if rows else None):
                rows.extend(page)
        return sorted(rows, key=lambda entry: entry.delivery_id)

    def stories(self) -> list[Story]:
        """Every row of the ledger with its history, by id."""
        with self.ledger() as ledger:
            stories = [queries.story(ledger, entry.delivery_id) for entry in self.entries()]
        return [story for story in stories if story is not None]

    def entry_of(self, relative_path: str) -> Entry:
        """The newest row of a dropped file, by its name in the drop folder."""
        return [entry for entry in self.entries() if entry.relative_path == relative_path][-1]

    def wait_for(self, states: Mapping[str, int], *, within_seconds: float = PATIENCE) -> None:
        """Return when the ledger has exactly these rows by state."""

        def has_come() -> bool:
            return self._states_at_a_glance() in (None, states) and self.states() == states

        try:
            wait_until(has_come, what=str(states), within_seconds=within_seconds)
        except TookTooLongError as error:
            raise TookTooLongError(f"{error}; the ledger has {self.states()}") from None


class Daemon:
    """One ``ingestd run`` in a session of its own."""

    def __init__(
        self,
        site: Site,
        words: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        program: Path | None = None,
    ) -> None:
        self.site = site
        self.log = site.folder / "daemon.log"
        self._address = site.folder / "notify"
        self._address.unlink(missing_ok=True)
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.setblocking(False)
        self._ear.bind(str(self._address))
        self.heard: list[str] = []
        with self.log.open("ab") as log:
            self.process = start_program(
                ["run", "-c", str(site.config_file), *words],
                out=log,
                err=log,
                cwd=site.folder,
                notify=self._address,
                env=env,
                program=program,
            )
        self.started_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Process id of the daemon itself."""
        return self.process.pid

    def is_running(self) -> bool:
        """Whether it still lives."""
        self.listen()  # who never takes anything in makes a sender wait
        return self.process.poll() is None

    def listen(self) -> list[str]:
        """Take in what was told to the service manager and return all of it, a line each."""
        while self._ear.fileno() >= 0:
            try:
                message = self._ear.recv(65536)
            except BlockingIOError:
                break
            self.heard.extend(message.decode().splitlines())
        return self.heard

    def wait_ready(self, *, within_seconds: float = PATIENCE) -> float:
        """Return the seconds from start to READY."""

        def is_ready() -> bool:
            return "READY=1" in self.listen() or not self.is_running()

        wait_until(is_ready, what="READY", within_seconds=within_seconds, every=0.002)
        if "READY=1" not in self.heard:
            raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.tail()}")
        return time.monotonic() - self.started_at

    def terminate(self, *, within_seconds: float = PATIENCE) -> int:
        """Ask it to end as systemd does, and return its exit code."""
        self.process.terminate()
        return self.wait(within_seconds=within_seconds)

    def wait(self, *, within_seconds: float = PATIENCE) -> int:
        """Return its exit code when it has ended."""
        code = self.process.wait(within_seconds)
        self._hang_up()
        return code

    def kill(self, *, children: bool = True) -> None:
        """Kill it with SIGKILL, with or without its children."""
        if children:
            kill_session(self.pid)
        elif self.is_running():
            self.process.kill()
        self.process.wait()
        self._hang_up()

    def children(self) -> list[int]:
        """Process ids of everything it started, directly or not, that still lives."""
        return descendants(self.pid)

    def tail(self, lines: int = 40) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _hang_up(self) -> None:
        self.listen()
        self._ear.close()
        self._address.unlink(missing_ok=True)


def run_program(
    words: Sequence[str],
    *,
    script: str | None = None,
    cwd: Path = PROJECT,
    env: Mapping[str, str] | None = None,
    within_seconds: float = PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """Run ingestd, or a script in its place, and return what it said."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start_program(words, script=script, out=out, err=err, cwd=cwd, env=env)
        try:
            code = process.wait(within_seconds)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(process.args, code, out.read().decode(), err.read().decode())


def start_program(
    words: Sequence[str],
    *,
    script: str | None = None,
    out: IO[bytes],
    err: IO[bytes],
    cwd: Path = PROJECT,
    notify: Path | None = None,
    env: Mapping[str, str] | None = None,
    program: Path | None = None,
) -> subprocess.Popen[bytes] | Forked:
    """Start ingestd, or a script; with ``notify`` as a service manager that listens there does, in its own session.

    With an ``env`` or a ``program`` (what it takes Python for) of its own it gets an interpreter of its own, as does
    what is measured or tortured outside the tests.
    """
    around = environment({**({"NOTIFY_SOCKET": str(notify)} if notify else {}), **(env or {})})
    if forking.allowed and env is None and program is None:
        return Forked(words, script=script, out=out, err=err, cwd=cwd, env=around, session=notify is not None)
    return subprocess.Popen(
        [str(program or PROGRAM[0]), *(PROGRAM[1:] if script is None else ("-c", script)), *words],
        executable=PROGRAM[0],
        stdout=out,
        stderr=err,
        cwd=cwd,
        env=around,
        start_new_session=notify is not None,
    )


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment a command runs in: this one, the project importable, nothing of a service manager."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NOTIFY_", "WATCHDOG_"))}
    paths = filter(None, (str(PROJECT), inherited.get("PYTHONPATH")))
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths), **(more or {})}


def descendants(pid: int) -> list[int]:
    """Process ids of all living descendants of a process, from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (fields := _stat_fields(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        born = parents.get(queue.pop(), [])
        found.extend(born)
        queue.extend(born)
    return found


def session_members(session: int) -> list[int]:
    """Process ids of all living members of a session; a dead daemon's children keep its session."""
    members = []
    for entry in os.scandir("/proc"):
        fields = _stat_fields(int(entry.name)) if entry.name.isdigit() else None
        if fields and int(fields[3]) == session and fields[0] != "Z":
            members.append(int(entry.name))
    return members


def kill_session(session: int) -> None:
    """Kill every member of a session with SIGKILL, those started meanwhile too."""
    while members := session_members(session):
        for member in members:
            try:
                os.kill(member, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _stat_fields(pid: int) -> list[str] | None:
    """State, parent, group and session of a process (proc(5), /proc/pid/stat from its third field on)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def filesystem_of(path: Path) -> str:
    """The type of the filesystem that a path lies on, as /proc/self/mountinfo names it."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kind = ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            kind = fields[fields.index("-") + 1]
    return kind


def remove_tree(folder: Path) -> None:
    """Remove a folder with everything in it, as far as it is there."""
    shutil.rmtree(folder, ignore_errors=True)
