"""The child: reads jobs from stdin, files from the disk, and writes answers to stdout, until stdin ends.

It runs with hard limits on memory and descriptors, in a session of its own, and dies with its parent. It holds no
secret and prints nothing: an unexpected exception is reported by its class and place, as its text may hold values.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from functools import partial

from ingestd.fs.durable import write_all
from ingestd.reader.cores import leave_no_core
from ingestd.reader.job_runner import JobRunner
from ingestd.reader.protocol import decode_job, decode_limits
from ingestd.reader.reply_buffer import ReplyBuffer
from ingestd.reader.shared_progress import SharedProgress

_PR_SET_PDEATHSIG = 1
_READ_MOST = 1 << 16
EXIT_SHORT_OF_MEMORY = 77


def main() -> int:
    """Serve until stdin ends."""
    leave_no_core()
    parent = os.getppid()
    # SIGKILL when the thread that started us is gone: stdin's end tells as much, but only between jobs.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 1
    # pydicom imports numpy where it is installed; nothing here looks at pixels, and it would cost 30 MB a child.
    sys.modules["numpy"] = None  # type: ignore[assignment]
    # A writer that opens a file while we hold a lease on it makes the kernel send SIGIO, which kills by default.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    lines = _Lines(0)
    first = lines.next()
    if first is None:
        return 0
    progress_fd, limits = decode_limits(first)
    progress = SharedProgress(progress_fd)
    os.close(progress_fd)
    resource.setrlimit(resource.RLIMIT_AS, (limits.address_space_bytes, limits.address_space_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits.open_files, limits.open_files))
    progress.stand_ready()
    _serve(lines, progress)
    return 0


def _serve(lines: _Lines, progress: SharedProgress) -> None:
    """Work off jobs in order; answers go out when no job waits, when enough have come together, or soon."""
    replies = ReplyBuffer(progress, partial(write_all, 1))
    runner = JobRunner(progress, replies)
    while (line := lines.next()) is not None:
        serial, job = decode_job(line)
        reply = runner.run(serial, job)
        replies.add(reply)
        if reply.answer.short_of_memory:
            replies.flush()
            # Start afresh: what is fragmented now would fail the next file too.
            os._exit(EXIT_SHORT_OF_MEMORY)
        if lines.waiting:
            replies.flush_when_due()
        else:
            replies.flush()


class _Lines:
    """Lines from a pipe, many to a read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: list[bytes] = []
        self._part = b""

    @property
    def waiting(self) -> bool:
        """Whether a whole line stands ready."""
        return bool(self._lines)

    def next(self) -> bytes | None:
        """Give the next line; None at the end."""
        while not self._lines:
            chunk = os.read(self._fd, _READ_MOST)
            if not chunk:
                return None
            *whole, self._part = (self._part + chunk).split(b"\n")
            self._lines = whole[::-1]
        return self._lines.pop()
