"""Jobs that may hang, done on threads of their own; whoever asked for them never waits, and collects what came of them.

A disk, a share or a server that does not answer holds its thread in the kernel, where nothing can free it. So the
threads here only ever do what they are given, and the thread that decides only ever submits and collects::

    workers = Workers[Answer]("ask", wake=wake, threads=2)
    workers.submit(lambda: ask(question))     ... wake() ...     for answer in workers.collect(): ...

Every job passes through ``Workers.hand_over``, and ``run`` is all that a thread does with it. A simulation that needs
no threads puts its own in the place of ``hand_over``: it keeps the jobs and runs them one by one in the order it likes.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ingestd import threads as starting
from ingestd.clocks import boottime

Result = TypeVar("Result")


class Workers(Generic[Result]):
    """Does jobs in the order they come, ``threads`` at once; used by one thread, and no method but ``close`` waits.

    ``threads`` 0: each is done while it is submitted, for what disturbs nobody. ``wake`` is called by the threads,
    when there is something to collect.
    """

    def __init__(self, name: str, *, wake: Callable[[], object], threads: int = 1) -> None:
        self.name = name
        self.threads = threads
        self.in_flight = 0  # jobs submitted and not yet collected
        self._wake = wake
        self._jobs: queue.SimpleQueue[Callable[[], Result] | None] = queue.SimpleQueue()
        self._ended: deque[tuple[Result] | BaseException] = deque()
        self._started: list[threading.Thread] = []
        self._closed = False

    def start(self) -> None:
        """Start the threads now, and not with the first job; raises NoThread where the system has none to give."""
        self._start(starting.start)

    def submit(self, job: Callable[[], Result]) -> None:
        """Have a job done; where no thread can be had for it now, that is tried again with every ``collect``."""
        assert not self._closed, "nothing is submitted to closed workers"
        self.in_flight += 1
        self.hand_over(job)

    def collect(self) -> list[Result]:
        """Take what the jobs that ended came to, in the order they ended.

        What a job raised is raised here, once, after the results before it were taken.
        """
        self._start_as_can()
        results: list[Result] = []
        while self._ended:
            ended = self._ended[0]
            if isinstance(ended, BaseException) and results:
                break
            self._ended.popleft()
            self.in_flight -= 1
            if isinstance(ended, BaseException):
                raise ended
            results.append(ended[0])
        return results

    def is_healthy(self) -> bool:
        """Whether every thread that was started lives, however long its job takes."""
        return self._closed or all(thread.is_alive() for thread in self._started)

    def close(self, timeout: float = 0.0) -> int:
        """End the threads after what was submitted, waiting up to ``timeout`` seconds; say how many jobs had no end.

        What ends in time can still be collected; a job that hangs is left to the end of the process.
        """
        self._closed = True
        for _ in self._started:
            self._jobs.put(None)
        deadline = boottime() + timeout
        for thread in self._started:
            thread.join(max(0.0, deadline - boottime()))
        return self.in_flight - len(self._ended)

    def hand_over(self, job: Callable[[], Result]) -> None:
        """Have a job run: by a thread, or here and now where there is none."""
        if not self.threads:
            self.run(job)
            return
        self._jobs.put(job)
        self._start_as_can()

    def run(self, job: Callable[[], Result]) -> None:
        """Do a job in this thread, and keep what it came to until it is collected."""
        try:
            self._ended.append((job(),))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the collecting thread
            self._ended.append(error)

    def _start_as_can(self) -> None:
        if len(self._started) < self.threads and not self._jobs.empty():
            try:
                self._start(threading.Thread.start)
            except RuntimeError:  # the system has no thread to give: the jobs wait
                return

    def _start(self, start: Callable[[threading.Thread], None]) -> None:
        for number in range(len(self._started), self.threads):
            name = self.name if self.threads == 1 else f"{self.name}-{number}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            start(thread)
            self._started.append(thread)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self.run(job)
            self._wake()


def start_all(*several: Workers[Any]) -> None:
    """Start the threads of all; raises NoThread where the system has none to give for some, and ends the others."""
    try:
        for workers in several:
            workers.start()
    except BaseException:
        for workers in several:
            workers.close()
        raise
