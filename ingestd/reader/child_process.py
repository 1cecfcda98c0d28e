"""One child process as its parent sees it: its pipes, its progress, what it was given and has not answered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import ingestd
from ingestd.clocks import boottime
from ingestd.reader.protocol import LINE_MOST, InspectJob, Job, ProtocolError, ReaderLimits, encode_job, encode_limits
from ingestd.reader.shared_progress import SharedProgress

# What a child needs of the environment; not the daemon's secrets.
_ENVIRONMENT = (
    *("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "TMPDIR", "TZ"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "PYTHONPATH", "PYTHONPYCACHEPREFIX"),
)
_UNKNOWN_SIZE = 1 << 23
# Canonical digests, comparisons and re-encodings look at every element, some of them in two files.
_HEAVY = 6
# A job at hand for longer is slow.
_TURN_SECONDS = 2.0
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class PendingJob:
    """A job on its way, under the pool's own number."""

    serial: int
    job: Job
    interrupted: int = 0  # how often its child died of another job while it was in line
    short_of_memory: int = 0
    turns: int = 0  # how often it was put aside because it took long while others waited

    @property
    def size_bytes(self) -> int:
        """How much work it is, as far as we know."""
        if isinstance(self.job, InspectJob) and self.job.expect is not None:
            return self.job.expect.size_bytes
        return _UNKNOWN_SIZE

    @property
    def priority(self) -> int:
        return self.job.priority if isinstance(self.job, InspectJob) else 0

    @property
    def turn_seconds(self) -> float:
        """How long it may occupy a reader that others wait for; longer each time, so that it is done some day."""
        return _TURN_SECONDS * 2.0**self.turns

    @property
    def patience(self) -> int:
        """By what the limits on time are multiplied."""
        return 1 if isinstance(self.job, InspectJob) else _HEAVY


class ChildProcess:
    """A running child. Not thread-safe: the pool's thread owns it."""

    def __init__(self, limits: ReaderLimits) -> None:
        self._limits = limits
        self.jobs: deque[PendingJob] = deque()
        self.answered = 0
        self.crash = ""  # why it ended, if it could say so
        self.ahead_bytes = 0
        self.unsent = bytearray()  # waits for room in the pipe
        self._part = b""
        self._watched_serial = 0
        self._watched_work = 0
        self._cpu_at_begin = 0.0
        self._cpu_seen = 0.0
        self._moved_at = 0.0
        self._begun_at = 0.0
        progress_fd = SharedProgress.create()
        try:
            self.process = subprocess.Popen(
                # -P: no module is ever imported from the current folder.
                [sys.executable, "-P", "-m", "ingestd.reader"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(progress_fd,),
                start_new_session=True,
                cwd="/",
                env=_environment(),
                bufsize=0,
            )
            self.progress = SharedProgress(progress_fd)
        finally:
            os.close(progress_fd)
        assert self.process.stdin is not None, "asked for above"
        assert self.process.stdout is not None, "asked for above"
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)
        self.unsent += encode_limits(limits, progress_fd)

    def has_room(self) -> bool:
        """Whether it may be given another job now: enough to be never idle, little behind a long one."""
        if not self.jobs:
            return True
        if self.is_slow:
            return False
        return len(self.jobs) < self._limits.ahead_jobs and self.ahead_bytes < self._limits.ahead_bytes

    @property
    def is_slow(self) -> bool:
        """Whether the job at hand has proved to take long, now or before."""
        return bool(self.jobs) and (self.jobs[0].turns > 0 or self.turn_is_over(boottime()))

    def turn_is_over(self, now: float) -> bool:
        """Whether the job at hand has had its time; others that wait may have the reader."""
        if not self.jobs or self.jobs[0].serial != self._watched_serial:
            return False
        pending = self.jobs[0]
        return self.progress.serial == pending.serial and now - self._begun_at > pending.turn_seconds

    def give(self, pending: PendingJob) -> None:
        """Put a job in line; ``send`` writes it."""
        self.jobs.append(pending)
        self.ahead_bytes += pending.size_bytes
        self.unsent += encode_job(pending.serial, pending.job)

    def send(self) -> None:
        """Write what the pipe takes; nothing to a child that is gone."""
        while self.unsent:
            try:
                sent = os.write(self.stdin, self.unsent)
            except (BlockingIOError, BrokenPipeError):
                return
            del self.unsent[:sent]

    def receive(self) -> list[bytes] | None:
        """Give the lines that have come in; None at the end. Raises ProtocolError for a line that does not end."""
        try:
            chunk = os.read(self.stdout, LINE_MOST)
        except BlockingIOError:
            return []
        if not chunk:
            return None
        *lines, self._part = (self._part + chunk).split(b"\n")
        if len(self._part) > LINE_MOST:
            raise ProtocolError("a line without end")
        return lines

    def take_answered(self, serial: int) -> PendingJob:
        """Give back the job that was answered. Raises ProtocolError unless it is the next in line."""
        if not self.jobs or self.jobs[0].serial != serial:
            raise ProtocolError("an answer out of turn")
        pending = self.jobs.popleft()
        self.ahead_bytes -= pending.size_bytes
        self.answered += 1
        return pending

    def overdue(self, now: float) -> str:
        """Say "" while the job at hand is within its limits, else "cpu" or "stalled"."""
        serial = self.progress.serial
        pending = next((each for each in self.jobs if each.serial == serial), None)
        if pending is None and self.jobs:
            pending = self.jobs[0]  # not even begun: the child does not get through its start, or never got the job
        if pending is None:
            self._watched_serial = 0
            return ""
        work, cpu = self.progress.work_bytes, self._cpu_seconds()
        if pending.serial != self._watched_serial:
            self._watched_serial, self._begun_at = pending.serial, now
            self._watched_work, self._cpu_at_begin, self._cpu_seen, self._moved_at = work, cpu, cpu, now
            return ""
        if work != self._watched_work or cpu != self._cpu_seen:
            self._watched_work, self._cpu_seen, self._moved_at = work, cpu, now
        limits = self._limits
        allowed = pending.patience * (limits.seconds + work / limits.bytes_per_second)
        if cpu - self._cpu_at_begin > allowed:
            return "cpu"
        if now - self._moved_at > pending.patience * limits.stall_seconds:
            return "stalled"
        return ""

    def _cpu_seconds(self) -> float:
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_bytes()
        except OSError:
            return self._cpu_seen
        user, system = stat.rpartition(b")")[2].split()[11:13]
        return (int(user) + int(system)) / _CLOCK_TICKS

    def kill(self) -> None:
        """End it at once; a child that hangs in the kernel ends when the kernel lets it."""
        try:
            self.process.send_signal(signal.SIGKILL)
        except OSError:
            pass

    def close(self) -> None:
        """Give its pipes and its page back."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.progress.close()

    def wait(self, seconds: float) -> int | None:
        """Reap it; None if it does not end in time."""
        try:
            return self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None


def _environment() -> dict[str, str]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # The child finds the very package its parent runs from, installed or not.
    here = str(Path(ingestd.__file__).resolve().parent.parent)
    known = environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = here + (os.pathsep + known if known else "")
    return environment
