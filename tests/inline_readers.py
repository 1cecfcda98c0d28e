"""Readers without processes: each job is done in the caller's thread, when the caller says so, in the order it likes.

All of a child is used but the process: the runner, the buffer of replies, and the lines that cross its pipes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ingestd.reader import Job, Read
from ingestd.reader.job_runner import JobRunner
from ingestd.reader.protocol import decode_answer, decode_job, encode_job, read_of
from ingestd.reader.reply_buffer import ReplyBuffer
from ingestd.reader.shared_progress import SharedProgress


class InlineReaders:
    """Can take the place of a ReaderPool (``ingestd.reader.Readers``)."""

    trouble = ""

    def __init__(self, *, wake: Callable[[], object]) -> None:
        self.waiting: list[Job] = []
        self.in_flight = 0
        self._wake = wake
        self._done: list[Read] = []
        self._lines: list[bytes] = []
        progress_fd = SharedProgress.create()
        self._progress = SharedProgress(progress_fd)
        os.close(progress_fd)
        self._replies = ReplyBuffer(self._progress, self._lines.append)
        self._runner = JobRunner(self._progress, self._replies)

    def submit_all(self, jobs: Sequence[Job]) -> None:
        self.waiting += jobs
        self.in_flight += len(jobs)

    def run(self, which: int = 0) -> None:
        """Do one of the jobs that wait."""
        job = self.waiting.pop(which)
        self._replies.add(self._runner.run(*decode_job(encode_job(1, job))))
        self._replies.flush()
        self._done.append(read_of(job, decode_answer(self._lines.pop())))
        self._wake()

    def put_off(self, which: int, why: str) -> None:
        """Give one of the jobs that wait back undone, as a pool does whose children keep ending."""
        self._done.append(Read(job=self.waiting.pop(which), waits=why))
        self._wake()

    def collect(self) -> list[Read]:
        done, self._done = self._done, []
        self.in_flight -= len(done)
        return done

    def is_healthy(self) -> bool:
        return True

    def close(self) -> None:
        self.waiting.clear()
        self._progress.close()
