"""System calls that fail: ``python -m tests.torture --faults N --seed S``.

``failing.c`` is compiled and preloaded; one rule a trial says which call fails, on which path, in which process, the
how-manieth, and how often. Each trial drops a few files, has the real ``run --once`` or the daemon meet the fault, and
then asks: was every file all the while in the drop folder or in a row, were the words right, and is everything complete
and nothing posted twice after one clean ``run --once``?
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.builders import dataset_bytes, part10
from tests.emulating import EmulatorProcess
from tests.invariants import Findings, digest_of
from tests.recounting import ENTRIES
from tests.running import Daemon, Site, TookTooLongError, session_members, wait_until
from tests.torture.feeding import ROOT, Kind, Written
from tests.torture.watching import Watch, invariants_of, ledger_copy

SOURCE = Path(__file__).with_suffix(".c")
OTHER_FILESYSTEM = Path("/dev/shm")
STATE_BYTES = 64 + 4096
SETTINGS: Mapping[str, Any] = {
    "batch": {"quiet_period": "50ms", "max_wait": "300ms"},
    "retry": {"base": "100ms", "cap": "500ms"},
    "reconcile": {"interval": "150ms", "lag": "300ms", "grace": "5s", "absence_wait": "400ms"},
    "reader": {"processes": 1},
    "shutdown_grace": "5s",
}
# A fault that is over is forgotten within so many seconds: the longest wait that one failed call is followed by.
REST_SECONDS = 25.0
END_SECONDS = 30.0
# What no fault of the disk may be called: each sends a person the wrong way.
WRONG_WORDS = ("Traceback", "a fault in ingestd", "is damaged", "no permission to ")

_numbers = itertools.count(1)
_DISK = (errno.EIO, errno.ESTALE)
_SHARE = (errno.EIO, errno.ESTALE, errno.ENOTCONN)
_FULL = (errno.EIO, errno.ENOSPC, errno.EDQUOT)
_HANDLES = (errno.EIO, errno.EMFILE, errno.ENFILE)
# Where: which calls, with which errors. What is under a folder is each its own story, so the spool's rooms stand apart.
CALLS: Mapping[str, Mapping[str, Sequence[int]]] = {
    "drop": {
        "open": (*_HANDLES, errno.ESTALE, errno.ENOTCONN),
        **dict.fromkeys(("stat", "fstat", "read", "pread", "rename", "unlink", "readdir", "fsync", "link"), _SHARE),
        "mkdir": (errno.EIO, errno.EROFS),
    },
    "spool": {
        "open": _HANDLES,
        **dict.fromkeys(("stat", "fstat", "read", "pread", "fsync", "rename", "unlink", "readdir", "statvfs"), _DISK),
        **dict.fromkeys(("write", "pwrite", "mkdir", "link", "ftruncate"), _FULL),
        "chmod": (errno.EIO, errno.EPERM),
        "flock": (errno.EIO, errno.ENOLCK),
        "rmdir": (errno.EIO,),
    },
    "ledger.db": {
        "open": _HANDLES,
        **dict.fromkeys(("stat", "fstat", "access", "read", "pread", "fsync", "fdatasync", "unlink"), _DISK),
        **dict.fromkeys(("write", "pwrite", "ftruncate"), _FULL),
        "fcntl": (errno.EIO, errno.ENOLCK),
    },
    "pipe:": {"write": (errno.EIO, errno.EAGAIN), "read": (errno.EIO, errno.EAGAIN)},
    "-": {"thread": (errno.EAGAIN,), "epoll": (errno.ENOMEM, errno.EBADF)},
}
READER_CALLS = frozenset({"open", "fstat", "read", "pread", "fsync", "fcntl"})


class NoCompilerError(Exception):
    """There is no gcc to make the library with; the message says how to get one."""


def compile_library(folder: Path) -> Path:
    """Make the library that fails calls; raises NoCompilerError."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise NoCompilerError(
            "system calls are made to fail by a library that gcc compiles: apt-get install gcc libc6-dev"
        )
    library = folder / "failing.so"
    words = [
        compiler,
        "-shared",
        "-fPIC",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        str(library),
        str(SOURCE),
        "-ldl",
    ]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise NoCompilerError(f"gcc could not compile {SOURCE.name} (apt-get install libc6-dev):\n{made.stderr}")
    return library


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Which call fails, where, with what, when, how often and in which process."""

    call: str
    error: int
    place: str  # "drop", "spool", "ledger.db", or how the path begins that stands for what has none
    nth: int
    times: int = 1
    seconds: float = 0.0
    process: str = "daemon"

    def __str__(self) -> str:
        often = f"{self.times} times" if self.times else f"for {self.seconds} s"
        name = errno.errorcode[self.error]
        return f"{self.call} -> {name}, {self.place}, from the {self.nth}. on, {often}, in {self.process}"


class Injector:
    """The library with one rule, in a folder of its own."""

    def __init__(self, library: Path, folder: Path, fault: Fault, prefix: str) -> None:
        folder.mkdir(parents=True)
        self._preload = folder / library.name
        os.link(library, self._preload)
        self._state = folder / "state"
        self._state.write_bytes(bytes(STATE_BYTES))
        (folder / "rule").write_text(
            f"{fault.call} {fault.error} {fault.nth} {fault.times} {fault.seconds} {fault.process} {prefix}\n"
        )

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be under the rule, with all its children."""
        return {"LD_PRELOAD": str(self._preload)}

    @property
    def calls(self) -> int:
        """How many calls there were that the rule is about."""
        return int(struct.unpack_from("<Q", self._state.read_bytes())[0])

    @property
    def failed(self) -> int:
        """How many of them failed."""
        return int(struct.unpack_from("<Q", self._state.read_bytes(), 8)[0])

    @property
    def last(self) -> str:
        """The call and the path that failed last."""
        return os.fsdecode(self._state.read_bytes()[64:].split(b"\0", 1)[0])


class Trial:
    """One site, a few files, one fault."""

    def __init__(self, folder: Path, server: EmulatorProcess, fault: Fault, library: Path) -> None:
        self.fault = fault
        self._server = server
        self._root = f"{ROOT}.9.{os.getpid()}.{next(_numbers)}"
        self._site = Site(folder / "site", server.url)
        self._watch = Watch(self._site)
        self._library = library
        self._folder = folder
        self._daemon: Daemon | None = None
        self.problems: list[str] = []
        self.written: list[Written] = []
        self.findings = Findings()
        self.injector: Injector

    def run(self, *, once: bool, mixed: bool, elsewhere: bool, late: bool) -> None:
        """Meet the fault, look, and make everything complete.

        ``once``: by ``run --once``, else by the daemon. ``mixed``: with files that need a person. ``elsewhere``: the
        drop folder is on another filesystem. ``late``: the files come when the daemon stands ready.
        """
        with self._drop_folder(elsewhere=elsewhere):
            place = self.fault.place
            known = {"drop": self._site.drop, "spool": self._site.spool, "ledger.db": self._site.ledger_file}
            prefix = str(known.get(place, place))
            self.injector = Injector(self._library, self._folder / "rule", self.fault, prefix)
            needs_person = 1 if mixed else 0
            if once:
                self._write(mixed=mixed)
                self._meet_once(needs_person)
            else:
                self._meet_daemon(mixed=mixed, late=late)
            self._complete(needs_person)

    @contextmanager
    def _drop_folder(self, *, elsewhere: bool) -> Iterator[None]:
        inbox = {"settle": "60ms", "incomplete_after": "1s"}
        if not elsewhere:
            self._site.configure(inboxes=[{"path": "./drop", **inbox}], **SETTINGS)
            yield
            return
        with tempfile.TemporaryDirectory(prefix="ingestd-drop-", dir=OTHER_FILESYSTEM) as name:
            self._site.drop = Path(name) / "drop"
            self._site.drop.mkdir()
            self._site.configure(inboxes=[{"path": str(self._site.drop), **inbox}], **SETTINGS)
            yield

    def _say(self, text: str) -> None:
        self.problems.append(text)

    def _write(self, *, mixed: bool) -> None:
        """Two studies, a second copy, clutter; with ``mixed`` a cut file and another content of an instance, too."""
        first = self._write_instance(Kind.NEW, 1, 1)
        for study, instance in ((1, 2), (1, 3), (2, 4)):
            self._write_instance(Kind.NEW, study, instance)
        content = (self._site.drop / first.name).read_bytes() if (self._site.drop / first.name).exists() else b""
        content = content or self._content(1, 1, Kind.NEW)[0]
        self._put(Kind.DUPLICATE, content, first)
        self._put(Kind.CLUTTER, b"not an image\n" * 40)
        if mixed:
            self._write_instance(Kind.CONFLICT, 1, 1)
            self._put(Kind.TRUNCATED, content[: len(content) * 2 // 3])

    def _content(self, study: int, instance: int, kind: Kind) -> tuple[bytes, Written]:
        uids = {"study_uid": f"{self._root}.1.{study}", "series_uid": f"{self._root}.2.{study}"}
        sop_uid = f"{self._root}.3.{instance}"
        pixels = hashlib.shake_128(f"{kind} {instance}".encode()).digest(32 * 32 * 2)
        dataset = dataset_bytes(**uids, sop_uid=sop_uid, rows=32, columns=32, instance_number=instance, pixels=pixels)
        digest = digest_of(dataset)
        return part10(dataset, sop_uid=sop_uid), Written(name="", kind=kind, **uids, sop_uid=sop_uid, sha256=digest)

    def _write_instance(self, kind: Kind, study: int, instance: int) -> Written:
        content, written = self._content(study, instance, kind)
        return self._put(kind, content, written)

    def _put(self, kind: Kind, content: bytes, like: Written | None = None) -> Written:
        name = f"IM{len(self.written) + 1:04d}"
        aside = self._site.drop / f".{name}.part"
        aside.write_bytes(content)
        aside.rename(self._site.drop / name)
        uids = {"study_uid": like.study_uid, "series_uid": like.series_uid, "sop_uid": like.sop_uid} if like else {}
        self.written.append(Written(name=name, kind=kind, **uids, sha256=like.sha256 if like else ""))
        return self.written[-1]

    def _meet_once(self, needs_person: int) -> None:
        words = ("run", "--once", "--timeout", f"{END_SECONDS:.0f}s")
        try:
            ended = self._site.command(*words, within_seconds=END_SECONDS + 20, env=self.injector.environment)
        except subprocess.TimeoutExpired:
            self._say("run --once did not end")
            return
        said = ended.stdout + ended.stderr
        self._judge_words(said)
        if ended.returncode == 70 or ended.returncode < 0:
            self._say(f"run --once ended with {ended.returncode}: {ended.stderr[-300:]}")
        left = self._in_drop()
        # With a file left it may end well only where it says what stopped it, and then not with 0.
        if left and (ended.returncode == 0 or (ended.returncode == 1 and "alarm.raised" not in said)):
            self._say(f"run --once ended with {ended.returncode} and left {len(left)} files: {said[-300:]}")
        if ended.returncode in {0, 1} and ended.returncode < needs_person:
            self._say(f"run --once ended with {ended.returncode} though files need a person")
        # A run that ended with an error has told; where it ended well, nothing may be out of sight.
        if ended.returncode in {0, 1}:
            self._judge_visible()

    def _meet_daemon(self, *, mixed: bool, late: bool) -> None:
        if not late:
            self._write(mixed=mixed)
        with self._site.start(wait=False, env=self.injector.environment) as daemon:
            self._daemon = daemon
            is_ready = self._wait_ready(daemon)
            if late:
                self._write(mixed=mixed)
            if is_ready:
                self._wait_rest(daemon)
                self._end(daemon)
            self._daemon = None
            self._judge_words(daemon.tail(1000))
            if left := session_members(daemon.pid):
                self._say(f"{len(left)} processes outlived the daemon")

    def _wait_ready(self, daemon: Daemon) -> bool:
        try:
            daemon.wait_ready()
        except AssertionError:
            if daemon.is_running():
                self._say(f"not ready: {daemon.tail(5)}")
                return True
            code = daemon.process.returncode
            # Without spool or ledger there is nothing to begin with; an inbox's trouble is its own.
            if code in {0, 70} or code < 0 or self.fault.place == "drop":
                self._say(f"the daemon did not start ({code}): {daemon.tail(5)}")
            return False
        return True

    def _wait_rest(self, daemon: Daemon) -> None:
        def is_done() -> bool:
            return self._is_complete() or not daemon.is_running()

        try:
            wait_until(is_done, what="rest", within_seconds=REST_SECONDS + self.fault.seconds, every=0.1)
        except TookTooLongError:
            states = self._ask(f"SELECT state, count(*) FROM {ENTRIES} GROUP BY state")
            told = f"in the drop {len(self._in_drop())}, told as unreadable {self._told_unreadable()}"
            self._say(f"no rest {REST_SECONDS:.0f} s later; rows {states}, {told}")
        if daemon.is_running():
            self._judge_visible()

    def _end(self, daemon: Daemon) -> None:
        if not daemon.is_running():
            self._say(f"the daemon ended by itself ({daemon.process.returncode}): {daemon.tail(5)}")
            return
        try:
            code = daemon.terminate()
        except subprocess.TimeoutExpired:
            self._say("the daemon did not end when asked to")
            return
        if code != 0:
            self._say(f"the daemon ended with {code}: {daemon.tail(5)}")

    def _judge_words(self, said: str) -> None:
        for words in WRONG_WORDS:
            if words in said:
                at = said.index(words)
                self._say(f"wrong words: {said[max(0, at - 100) : at + 200]!r}")

    def _in_drop(self) -> set[str]:
        return {path.name for path in self._site.drop.iterdir() if not path.name.startswith(".")}

    def _ask(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the ledger: where it lies while the daemon writes it, a copy afterwards (it may want rolling back)."""
        if self._daemon is None:
            with ledger_copy(self._site) as copy:
                return copy.execute(sql).fetchall() if copy else []
        try:
            with closing(sqlite3.connect(f"file:{self._site.ledger_file}?mode=ro", uri=True, timeout=2)) as ledger:
                return ledger.execute(sql).fetchall()
        except sqlite3.DatabaseError:
            return []

    def _is_complete(self) -> bool:
        """Whether every file has its end, or lies in the drop folder, told: what fails again is tried ever later."""
        lying = self._in_drop()
        seen = len(self._rows() | lying) >= len(self.written) > 0
        return seen and self._watch.has_nothing_under_way() and len(lying) <= self._told_unreadable()

    def _told_unreadable(self) -> int:
        told = self._ask("SELECT counts FROM inbox WHERE at IS NOT NULL")
        return sum(json.loads(text).get("unreadable", 0) for (text,) in told)

    def _rows(self) -> set[str]:
        return {name for (name,) in self._ask("SELECT relative_path FROM file")}

    def _judge_visible(self) -> None:
        """Every file lies where it was dropped, or has a row; one on its way from here to there is given a moment."""

        def unseen() -> set[str]:
            lying = self._in_drop()
            return {file.name for file in self.written} - lying - self._rows()

        try:
            wait_until(lambda: not unseen(), what="sight of every file", within_seconds=3.0, every=0.2)
        except TookTooLongError:
            self._say(f"in no visible state: {sorted(unseen())}, {len(self._watch.spool_files())} files in the spool")

    def _complete(self, needs_person: int) -> None:
        try:
            ended = self._site.run_once(within_seconds=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._say("the clean run did not end")
            return
        if ended.returncode not in {0, needs_person}:
            self._say(f"the clean run ended with {ended.returncode}: {ended.stdout[-300:]}{ended.stderr[-300:]}")
        ours = _Ours(self._server, self._root)
        with ledger_copy(self._site) as ledger:
            invariants_of(self._site, ours, self.written, self.findings).check_end(ledger)
        self.problems += self.findings.violations


class _Ours:
    """What one trial sent to the server that all trials share."""

    def __init__(self, server: EmulatorProcess, root: str) -> None:
        self._server = server
        self._root = root
        self.content = server.content

    def stores(self) -> list[dict[str, Any]]:
        return [line for line in self._server.stores() if str(line["sop"]).startswith(f"{self._root}.")]


@dataclass(kw_only=True)
class FaultReport:
    """What a campaign came to."""

    seed: int
    trials: int = 0
    fired: int = 0
    seconds: float = 0.0
    by_call: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        calls = ", ".join(f"{call} {count}" for call, count in sorted(self.by_call.items()))
        lines = [
            f"seed {self.seed}: {self.trials} runs with a failing call in {self.seconds:.0f} s, {self.fired} met it",
            f"met in: {calls}",
        ]
        return "\n".join([*lines, *(f"VIOLATION: {text}" for text in self.violations)])


class FaultCampaign:
    """So many trials, or as many as the time allows, from one seed."""

    def __init__(
        self, folder: Path, *, trials: int, seed: int, seconds: float = 0.0, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._folder = folder
        self._trials = trials
        self._seconds = seconds or float("inf")
        self._random = random.Random(seed)
        self._say = say
        self._report = FaultReport(seed=seed)
        # How many calls a rule has met before: the next one is put among them.
        self._calls: dict[tuple[str, str, str, bool, bool], int] = {}

    def run(self) -> FaultReport:
        """Try so many faults; raises NoCompilerError."""
        library = compile_library(self._folder)
        report = self._report
        started = time.monotonic()
        with EmulatorProcess(self._folder / "server") as server:
            while report.trials < self._trials and time.monotonic() - started < self._seconds:
                self._try(server, library)
        report.seconds = time.monotonic() - started
        return report

    def _try(self, server: EmulatorProcess, library: Path) -> None:
        report, chance = self._report, self._random
        report.trials += 1
        once, elsewhere = chance.random() < 0.5, chance.random() < 0.4 and _is_other_filesystem(self._folder)
        fault = self._choose(once=once, elsewhere=elsewhere)
        mixed, late = chance.random() < 0.4, chance.random() < 0.6
        folder = self._folder / f"trial{report.trials}"
        trial = Trial(folder, server, fault, library)
        trial.run(once=once, mixed=mixed, elsewhere=elsewhere, late=late)
        kind = (fault.call, fault.place, fault.process, once, elsewhere)
        self._calls[kind] = max(self._calls.get(kind, 0), trial.injector.calls)
        failed = trial.injector.failed
        report.fired += failed > 0
        report.by_call[fault.call] += failed > 0
        how = f"{'run --once' if once else 'daemon'}{', other filesystem' if elsewhere else ''}"
        self._say(f"{report.trials}: {fault}; {how}: {f'failed {failed}' if failed else 'not met'}")
        for problem in trial.problems:
            report.violations.append(f"trial {report.trials} ({fault}; {how}; {trial.injector.last}): {problem}")
            self._say(report.violations[-1])
        if not trial.problems:
            shutil.rmtree(folder)

    def _choose(self, *, once: bool, elsewhere: bool) -> Fault:
        chance = self._random
        place = chance.choices(list(CALLS), weights=[30, 30, 25, 8, 7])[0]
        call = chance.choice(list(CALLS[place]))
        process = (
            "reader" if place in {"drop", "spool"} and call in READER_CALLS and chance.random() < 0.35 else "daemon"
        )
        most = self._calls.get((call, place, process, once, elsewhere), 12) or 3
        often = chance.choice(({"times": 1}, {"times": 1}, {"times": 3}, {"times": 0, "seconds": 1.5}))
        nth = 1 + int(most * chance.random() ** 2)
        return Fault(
            call=call,
            error=chance.choice(CALLS[place][call]),
            place=place,
            nth=nth,
            process=process,
            times=int(often["times"]),
            seconds=float(often.get("seconds", 0.0)),
        )


def _is_other_filesystem(folder: Path) -> bool:
    return OTHER_FILESYSTEM.is_dir() and OTHER_FILESYSTEM.stat().st_dev != folder.stat().st_dev
