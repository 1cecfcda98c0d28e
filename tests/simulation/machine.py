"""The machine that a simulated process runs on: its clocks, its random numbers, and when it dies.

``Machine.installed`` puts it in the place of what Python gives: one door for each (``ingestd.clocks`` looks its modules
up with every call, so that who imported ``boottime`` itself is told the virtual time, too).

A process dies at a *durable step*: an fsync, a rename, a link, a removal, a folder made, a COMMIT; before it or just
after. ``Died`` is no Exception, so nobody catches it; what a ``finally`` would still do on the disk is not done, since
from then on each of these calls raises it again.
"""

from __future__ import annotations

import errno
import os
import random
import secrets
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from math import ceil
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from ingestd import clocks
from ingestd.emulator.storage import request_log
from ingestd.ledger import sqlite_file

BEGINNING = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
BOOTED_AT = 1_000.0
DURABLE = ("fsync", "fdatasync", "rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir")
COMMIT = "COMMIT"
# How SQLite says it: the code's name is what ingestd goes by.
COMMIT_FAULTS = {"busy": "SQLITE_BUSY", "full": "SQLITE_FULL", "unknown": "SQLITE_IOERR_FSYNC"}


class Died(BaseException):
    """The process is no more."""


class Machine:
    """Clocks, chance, and the life of the one process on it."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self._us = int(BOOTED_AT * 1e6)
        self.set_by = timedelta(0)  # how far somebody set the wall clock
        self.is_inside = False  # whether the process is at work, and not its world
        self.is_dead = False
        self.steps = 0  # durable ones, of this life
        self.dies_at: int | None = None
        self.dies_after = False  # the step was taken
        self.died_of = ""
        self.commit_faults: list[str] = []  # what the next commits come to; "": nothing
        self.disk_fault: tuple[int, int] | None = None  # at which step, which errno
        self.told: Callable[[str], object] = lambda _: None
        self._thread = threading.get_ident()

    @property
    def utc(self) -> datetime:
        """What the wall clock shows."""
        return BEGINNING + timedelta(microseconds=self._us - int(BOOTED_AT * 1e6)) + self.set_by

    def utc_seconds(self) -> float:
        """The same, since 1970."""
        return self.utc.timestamp()

    def pass_time(self, seconds: float) -> None:
        """Let both clocks go on."""
        # Whole microseconds, never too few: who waits for a moment between two of them would wait for ever.
        self._us += ceil(max(0.0, seconds) * 1e6)

    @property
    def mono(self) -> float:
        """What the clock shows that nobody can set (seconds)."""
        return self._us / 1e6

    @contextmanager
    def inside(self, *, now: bool = True) -> Iterator[None]:
        """Do what the process does; ``now`` False: what the world does, in the middle of it."""
        was, self.is_inside = self.is_inside, now
        try:
            yield
        finally:
            self.is_inside = was

    def reborn(self) -> None:
        """Begin another process."""
        self.is_dead, self.steps, self.dies_at, self.disk_fault = False, 0, None, None

    def expect_alive(self) -> None:
        """Raise Died again: what catches everything has no say in it."""
        if self.is_dead:
            raise Died(self.died_of)

    def step(self, name: str, take: Callable[[], Any]) -> Any:
        """Take a durable step, or die at it."""
        if not self.is_inside or threading.get_ident() != self._thread:
            return take()
        self.expect_alive()
        self.steps += 1
        if self.dies_at is not None and self.steps >= self.dies_at:
            if self.dies_after:
                take()
            self.is_dead, self.died_of = True, f"{'after' if self.dies_after else 'before'} {name}"
            raise Died(self.died_of)
        if self.disk_fault is not None and name != COMMIT and self.steps >= self.disk_fault[0]:
            number, self.disk_fault = self.disk_fault[1], None
            self.told(f"{name} fails: {errno.errorcode[number]}")
            raise OSError(number, os.strerror(number))
        return take()

    def commit(self, commit: Callable[[], object]) -> None:
        """Commit a transaction of the ledger, as well as this machine can."""
        if not self.is_inside:
            commit()
            return
        fault = self.commit_faults.pop(0) if self.commit_faults and not self.is_dead else ""
        if fault:
            self.told(f"commit fails: {fault}")
            if fault == "unknown":
                self.step(COMMIT, commit)
            error = sqlite3.OperationalError(fault)
            error.sqlite_errorname = COMMIT_FAULTS[fault]
            raise error
        self.step(COMMIT, commit)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Be the machine that everything in this process runs on."""
        with ExitStack() as stack:

            def put(target: Any, name: str, value: Any) -> None:
                stack.enter_context(patch.object(target, name, value))

            put(clocks, "datetime", self._datetime())
            put(request_log, "datetime", self._datetime())
            slow = self._time()
            for name, module in sorted(sys.modules.items()):
                if name.startswith("ingestd.") and getattr(module, "time", None) is time:
                    put(module, "time", slow)
                if name.startswith("ingestd.") and hasattr(module, "SystemRandom"):
                    put(module, "SystemRandom", lambda: self.dice)
            put(secrets, "token_hex", lambda size=32: self.dice.randbytes(size).hex())
            put(secrets, "token_bytes", self.dice.randbytes)
            put(uuid, "uuid4", lambda: uuid.UUID(bytes=self.dice.randbytes(16), version=4))
            for name in DURABLE:
                put(os, name, self._durable(name, getattr(os, name)))
            open_engine = sqlite_file.open_engine

            def opened(*args: Any, **kwargs: Any) -> Any:
                engine = open_engine(*args, **kwargs)
                commit = engine.dialect.do_commit
                engine.dialect.do_commit = lambda connection: self.commit(partial(commit, connection))
                return engine

            put(sqlite_file, "open_engine", opened)
            yield

    def _durable(self, name: str, take: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            return self.step(name, lambda: take(*args, **kwargs))

        return stepped

    def _datetime(self) -> Any:
        machine = self

        class Datetime(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:
                return machine.utc.astimezone(tz)

        return Datetime

    def _time(self) -> Any:
        virtual = {
            "clock_gettime": lambda _: self.mono,
            "monotonic": lambda: self.mono,
            "perf_counter": lambda: self.mono,
            "time": self.utc_seconds,
            "time_ns": lambda: int(self.utc_seconds() * 1e6) * 1_000,
            "sleep": lambda _: None,
        }
        return SimpleNamespace(**{**vars(time), **virtual})
