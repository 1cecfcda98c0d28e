"""One queue to the reader processes for everything that needs a file read; each answer goes back to who asked.

A job's key is ours: it leads back to the owner and the context in which the question was asked.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from enum import StrEnum
from typing import TypeVar

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.stage import Stage
from ingestd.reader import Job, Read, Readers

Context = TypeVar("Context")


class Owner(StrEnum):
    """Who asked; what there is several of names itself."""

    ADMISSION = "admission"
    REENCODING = "reencoding"
    RETENTION = "retention"


class ReaderClient(Stage):
    """Hands jobs to the readers and sorts their answers by owner; used by the main thread only."""

    def __init__(self, readers: Readers, alarms: Alarms) -> None:
        """Use these readers, whose answers nobody else may collect."""
        self._readers = readers
        self._alarms = alarms
        self._keys = itertools.count(1)
        self._asked: dict[int, tuple[Hashable, object]] = {}
        self._answers: defaultdict[Hashable, list[tuple[object, Read]]] = defaultdict(list)

    @property
    def in_flight(self) -> int:
        """Jobs asked and not yet answered."""
        return self._readers.in_flight

    def ask(self, owner: Hashable, context: object, make_job: Callable[[int], Job]) -> None:
        self.ask_all(owner, [context], lambda key, _: make_job(key))

    def ask_all(self, owner: Hashable, contexts: Iterable[Context], make_job: Callable[[int, Context], Job]) -> None:
        """Submit one job for each context; ``make_job`` builds it with its key."""
        jobs = []
        for context in contexts:
            key = next(self._keys)
            self._asked[key] = (owner, context)
            jobs.append(make_job(key, context))
        self._readers.submit_all(jobs)

    def collect(self, now: Now) -> None:  # noqa: ARG002 - the readers have their own clock
        """Sort what the readers have finished; tell where none can be started."""
        trouble = self._readers.trouble
        self._alarms.set(
            "readers",
            note=f"no reader can be started: {trouble}" if trouble else "",
            next_step="a reader is a process of this same Python: see that it is there and may be run, that ingestd was"
            " not replaced while it ran (restart it then), and that memory and processes are to be had",
        )
        for read in self._readers.collect():
            owner, context = self._asked.pop(read.job.key)
            self._answers[owner].append((context, read))

    def take(self, owner: Hashable) -> list[tuple[object, Read]]:
        """Take the answers of one owner, with the contexts they were asked in."""
        return self._answers.pop(owner, [])
