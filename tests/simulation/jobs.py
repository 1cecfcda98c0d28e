"""What workers and readers would do beside the loop: each job runs when the seed says, and so does its answer come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from ingestd.workers import Workers
from tests.inline_readers import InlineReaders
from tests.simulation.machine import Machine

Job = Callable[[], Any]
# How often a thread is so fast that it has done a job before whoever submitted it goes on.
_AT_ONCE = 0.15
_ANSWER_WAITS = 0.3
_READER_ENDS = 0.03


class Jobs:
    """The jobs of one process."""

    def __init__(self, machine: Machine, told: Callable[[str], object]) -> None:
        self._machine = machine
        self._dice = machine.dice
        self._told = told
        self._waiting: list[tuple[Workers[Any], Job]] = []
        self._answers: list[tuple[Workers[Any], Job]] = []  # jobs that are done, as what gives what they came to
        self._readers: list[InlineReaders] = []
        self.is_calm = False  # nothing comes late any more, and no reader ends

    def __len__(self) -> int:
        return len(self._waiting) + len(self._answers) + sum(len(readers.waiting) for readers in self._readers)

    def forget(self) -> None:
        """The process is gone, and with it whatever worked for it."""
        self._waiting, self._answers = [], []
        for readers in self._readers:
            readers.close()
        self._readers = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Have every job come here."""

        def hand_over(workers: Workers[Any], job: Job) -> None:
            self._hand_over(workers, job)

        def close(workers: Workers[Any], timeout: float = 0.0) -> int:
            return self._close(workers, timeout)

        with ExitStack() as stack:
            stack.enter_context(patch.object(Workers, "hand_over", hand_over))
            stack.enter_context(patch.object(Workers, "close", close))
            stack.enter_context(patch.object(Workers, "start", lambda _: None))
            yield

    def readers(self, *, wake: Callable[[], object], **_: Any) -> InlineReaders:
        """Stand in for a ReaderPool."""
        self._readers.append(InlineReaders(wake=wake))
        return self._readers[-1]

    def run_one(self) -> None:
        """Do one thing that can be done now: a job, a reader's job, or the way of an answer."""
        doable: list[Callable[[], None]] = [
            partial(self._run, number) for number in range(len(self._waiting)) if self._may_run(number)
        ]
        doable += [partial(self._answer, number) for number in range(len(self._answers))]
        for readers in self._readers:
            doable += [partial(self._read, readers, which) for which in range(len(readers.waiting))]
        self._dice.choice(doable)()

    def _hand_over(self, workers: Workers[Any], job: Job) -> None:
        if not workers.threads:
            workers.run(job)
            self._machine.expect_alive()
            return
        self._waiting.append((workers, job))
        last = len(self._waiting) - 1
        if self._dice.random() < _AT_ONCE and self._may_run(last):
            self._run(last)

    def _close(self, workers: Workers[Any], timeout: float) -> int:
        """What was submitted is done in time, or cut off."""
        workers._closed = True
        mine = [job for whose, job in self._waiting if whose is workers]
        self._waiting = [each for each in self._waiting if each[0] is not workers]
        if timeout and self._dice.random() < 0.5:
            for job in mine:
                job()
        return len(mine)

    def _may_run(self, number: int) -> bool:
        """As many of a kind at once as there are threads, in the order in which they came."""
        workers = self._waiting[number][0]
        ahead = sum(whose is workers for whose, _ in self._waiting[:number])
        return ahead + sum(whose is workers for whose, _ in self._answers) < workers.threads

    def _run(self, number: int) -> None:
        workers, job = self._waiting.pop(number)
        self._told(f"job {workers.name}")
        self._machine.pass_time(0.001)
        try:
            with self._machine.inside():
                answer = partial(_give, job())
        except Exception as error:  # noqa: BLE001 - it is raised again where it is collected
            answer = partial(_raise, error)
        self._machine.expect_alive()
        self._answers.append((workers, answer))
        if self.is_calm or self._dice.random() >= _ANSWER_WAITS:
            self._answer(len(self._answers) - 1)

    def _answer(self, number: int) -> None:
        workers, answer = self._answers.pop(number)
        workers.run(answer)

    def _read(self, readers: InlineReaders, which: int) -> None:
        self._told(f"read {type(readers.waiting[which]).__name__}")
        self._machine.pass_time(0.001)
        if not self.is_calm and self._dice.random() < _READER_ENDS:
            readers.put_off(which, "the readers keep ending")
            return
        with self._machine.inside():
            readers.run(which)
        self._machine.expect_alive()


def _give(came: Any) -> Any:
    return came


def _raise(error: Exception) -> Any:
    raise error
