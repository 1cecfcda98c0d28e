"""The reader pool: a few child processes behind one queue, and the thread that looks after them.

**Why processes.** A reader parses bytes that anybody may have written. Whatever they do to it (a crash of a C library,
memory without end, a loop without end, a disk that does not answer), a child ends of it and the daemon does not. A
child has hard limits on memory and descriptors, no secret in its environment and no say: every answer is checked again
before it is believed (``protocol``). Children are spawned, never forked, and die with their parent.

**The way of a job.** ``submit_all`` puts it in a list and rings. The thread gives it to the Schedule, which decides
which child gets it and when (``schedule``: fairness stands there). The child works off its jobs in order and may sit on
finished answers for a moment, so that many files share one fsync (``reply_buffer``); an answer has to be about the next
job in that child's line. Its Read goes to a list, ``wake`` is called, ``collect`` gives it away. The thread sleeps in
one selector over the bell (an eventfd) and all pipes, and looks around by itself every 0.5 s while there is work and
every 2 s otherwise: a ring that was lost, a stalled child and a dead one are found then at the latest.

**What a death means.** The one job that the child was at, as it said itself in the memory it shares with us
(``shared_progress``), has *died*: who submitted it counts that as poison. The others in its line were never looked at;
they are read anew by another child, and given up as ``waits`` after five such interruptions. So it is with a child that
used too much CPU for the work it did, or gave an answer no sane child gives. But a child that neither computes nor
reads (a stalled disk) or whose pipes fail is no fault of a file: its job ``waits``. A child that runs short of memory
says so and ends; its job is read once more in a fresh one, and only then is it the file's doing, unless the host itself
has no memory to give.

**What is bounded.** Jobs ahead of a child by number and bytes; CPU time and stalling of a job by the work it did; an
answer's length; the wait between two starts of children (doubling to 30 s while they fail). Jobs in line are not: who
submits bounds them. Two starts that failed in a row are ``trouble``, which a person is told; three, and the pool is not
healthy. Where the system fails the thread itself (its selector, its pipes) all children are given up and it begins
anew.
"""

from __future__ import annotations

import os
import selectors
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import structlog

from ingestd import threads
from ingestd.clocks import boottime
from ingestd.instance.facts import Inspection, Verdict
from ingestd.reader.child_process import ChildProcess, PendingJob
from ingestd.reader.files import errno_text
from ingestd.reader.protocol import InspectJob, Job, ProtocolError, Read, ReaderLimits, decode_answer, read_of
from ingestd.reader.schedule import Schedule

_WATCH_SECONDS = 0.5
_IDLE_SECONDS = 2.0
# A round that takes longer than this makes no progress.
_ROUND_SECONDS_MOST = 60.0
_INTERRUPTED_MOST = 5
_TROUBLE_FAILURES = 2
_UNHEALTHY_FAILURES = 3
_RESPAWN_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_CLOSE_SECONDS = 2.0

_log = structlog.get_logger()


class ReaderPool:
    """A few reader processes behind one queue. Thread-safe.

    The children start at once, in the background. ``wake`` is called from the pool's thread whenever ``collect`` has
    something to give, and when ``trouble`` changes.
    """

    def __init__(self, *, processes: int = 2, limits: ReaderLimits | None = None, wake: Callable[[], object]) -> None:
        self._processes = processes
        self._limits = limits or ReaderLimits()
        self._wake = wake
        self._lock = threading.Lock()  # for what other threads see: the next three, the bell and closing
        self._submitted: list[PendingJob] = []
        self._done: list[Read] = []
        self.in_flight = 0  # jobs submitted whose result was not collected yet
        self._serial = 0
        self._closing = threading.Event()
        self._schedule = Schedule(processes)
        self._children: list[ChildProcess] = []
        self._ended: list[ChildProcess] = []  # killed, not reaped yet
        self._failures = 0  # children in a row that ended without an answer
        self.trouble = ""  # why no child can be started, "" while one is or may yet be
        self._spawn_at = 0.0
        self._watch_at = 0.0
        self._bell, self._selector = _bell_and_selector()
        self._round_at = boottime()
        self._thread = threading.Thread(target=self._run, name="readers", daemon=True)
        threads.start(self._thread)

    def submit(self, job: Job) -> None:
        """Put a job in line; never blocks. Its Read comes out of ``collect``, not in order."""
        self.submit_all([job])

    def submit_all(self, jobs: Sequence[Job]) -> None:
        """Put jobs in line, as ``submit`` does; the pool's thread is woken once for all of them."""
        with self._lock:
            if self._closing.is_set():
                raise RuntimeError("the readers are closed")
            self._submitted += [PendingJob(serial, job) for serial, job in enumerate(jobs, self._serial + 1)]
            self._serial += len(jobs)
            self.in_flight += len(jobs)
            if jobs:
                os.eventfd_write(self._bell, 1)

    def collect(self) -> list[Read]:
        """Give all results that have come since the last call; never blocks."""
        with self._lock:
            done, self._done = self._done, []
            self.in_flight -= len(done)
        return done

    @property
    def pids(self) -> list[int]:
        """The children that are running."""
        return [child.process.pid for child in list(self._children)]

    def is_healthy(self) -> bool:
        """Whether jobs are being worked off: the pool's thread goes round and children get through their start."""
        goes_round = self._thread.is_alive() and boottime() - self._round_at < _ROUND_SECONDS_MOST
        return goes_round and not self._closing.is_set() and self._failures < _UNHEALTHY_FAILURES

    def close(self) -> None:
        """End the children at once; jobs in flight get no result."""
        with self._lock:
            if not self._closing.is_set():
                self._closing.set()
                os.eventfd_write(self._bell, 1)
        self._thread.join()

    # Everything below runs in the pool's thread.

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._round_at = boottime()
                try:
                    self._go_round()
                except OSError as error:
                    self._begin_anew(error)
        finally:
            self._end_all()

    def _go_round(self) -> None:
        if boottime() >= self._spawn_at:
            for _ in range(self._processes - len(self._children)):
                self._spawn()
        with self._lock:
            submitted, self._submitted = self._submitted, []
        self._schedule.add(submitted)
        for child in self._schedule.hand_out(self._children):
            self._send(child)
        busy = self._ended or self._schedule or any(child.jobs for child in self._children)
        watched = busy or len(self._children) < self._processes
        for key, _ in self._selector.select(_WATCH_SECONDS if watched else _IDLE_SECONDS):
            self._serve(key)
        if (now := boottime()) >= self._watch_at:
            self._watch_at = now + _WATCH_SECONDS
            self._watch(now)

    def _begin_anew(self, error: OSError) -> None:
        """Give up what cannot be relied on any more, the children with it; their jobs are read anew."""
        self._failures += 1
        self._look_for_trouble(errno_text(error))
        _log.error("reader.supervisor_failed", note=errno_text(error), failures=self._failures)
        for child in list(self._children):
            self._put_away(child)
            self._read_anew(child.jobs)
        while not self._closing.wait(self._respawn_seconds()):
            try:
                bell, selector = _bell_and_selector()
            except OSError as again:
                self._failures += 1
                self._look_for_trouble(errno_text(again))
                continue
            with self._lock:
                former, self._bell = self._bell, bell
                os.close(former)
            self._selector.close()
            self._selector = selector
            return

    def _spawn(self) -> None:
        try:
            child = ChildProcess(self._limits)
        except OSError as error:
            self._failed_start(errno_text(error))
            return
        self._children.append(child)
        self._selector.register(child.stdout, selectors.EVENT_READ, child)
        self._send(child)

    def _failed_start(self, why: str) -> None:
        self._failures += 1
        delay = self._respawn_seconds()
        self._spawn_at = boottime() + delay
        self._look_for_trouble(why)
        _log.warning("reader.start_failed", note=why, failures=self._failures, seconds=delay)

    def _respawn_seconds(self) -> float:
        return _RESPAWN_SECONDS[min(self._failures, len(_RESPAWN_SECONDS) - 1)]

    def _look_for_trouble(self, why: str = "") -> None:
        """See whether any child has got through its start; one failure alone may be chance, two are trouble."""
        before = self.trouble
        if any(child.progress.is_ready for child in self._children):
            self.trouble = ""
            if before:
                self._failures = 0
        elif why and self._failures >= _TROUBLE_FAILURES:
            self.trouble = why
        if self.trouble != before:
            self._wake()

    def _send(self, child: ChildProcess) -> None:
        # A child that is gone is noticed at its stdout, where its last answers still may stand.
        try:
            child.send()
        except OSError as error:
            self._end(child, blame=False, cause=f"nothing can be written to it: {errno_text(error)}")
            return
        registered = child.stdin in self._selector.get_map()
        if child.unsent and not registered:
            self._selector.register(child.stdin, selectors.EVENT_WRITE, child)
        elif not child.unsent and registered:
            self._selector.unregister(child.stdin)

    def _serve(self, key: selectors.SelectorKey) -> None:
        child = key.data
        if child is None:
            try:
                os.eventfd_read(self._bell)
            except BlockingIOError:
                pass
        elif child not in self._children:
            return  # ended earlier in this round
        elif key.fd == child.stdin:
            self._send(child)
        else:
            self._receive(child)

    def _receive(self, child: ChildProcess) -> None:
        results: list[Read] = []
        try:
            lines = child.receive()
            for line in lines or ():
                answer = decode_answer(line)
                if answer.serial == 0:
                    child.crash = answer.crashed
                    continue
                pending = child.take_answered(answer.serial)
                if not answer.short_of_memory:
                    results.append(read_of(pending.job, answer))
                elif (read := self._short_of_memory(pending)) is not None:
                    results.append(read)
        except ProtocolError as problem:
            self._finish(results)
            self._end(child, blame=True, cause=f"unintelligible answer: {problem}")
            return
        except OSError as error:
            self._end(child, blame=False, cause=f"its answers cannot be read: {errno_text(error)}")
            return
        if child.answered:
            self._failures = 0
        self._finish(results)
        if lines is None:
            self._end(child, blame=True, cause=child.crash)

    def _short_of_memory(self, pending: PendingJob) -> Read | None:
        """Once more in a fresh child; twice is the file's doing, unless the host has no memory to give."""
        job = pending.job
        pending.short_of_memory += 1
        if pending.short_of_memory == 1:
            self._schedule.put_back([pending])
            return None
        if _host_available_bytes() < self._limits.address_space_bytes:
            return Read(job=job, waits="the host is short of memory")
        if isinstance(job, InspectJob):
            reason = f"reading it takes more than {self._limits.address_space_bytes >> 20} MB of memory"
            return Read(job=job, inspection=Inspection(verdict=Verdict.HOSTILE, reason_text=reason))
        return Read(job=job, refused="it takes more memory than a reader may use")

    def _watch(self, now: float) -> None:
        """Look after children that burn CPU, hang, are to be reaped or have to make way."""
        self._ended = [child for child in self._ended if child.wait(0) is None]
        for child in list(self._children):
            overdue = child.overdue(now)
            if overdue == "cpu":
                self._end(child, blame=True, cause="more CPU time than a file of its size may take")
            elif overdue == "stalled":
                self._end(child, blame=False, cause="reading stalled")
        for child in self._schedule.to_make_way(self._children, now):
            self._put_away(child)
            child.jobs[0].turns += 1
            self._schedule.put_back(child.jobs)
        if self.trouble:
            self._look_for_trouble()

    def _end(self, child: ChildProcess, *, blame: bool, cause: str) -> None:
        """Give up a child: its job has died (or waits, where the file is not to blame), the others are read anew."""
        serial = child.progress.serial
        ended = self._put_away(child)
        how = cause or ended
        for pending in child.jobs:
            if pending.serial == serial:
                result = Read(job=pending.job, died=True, cause=how) if blame else Read(job=pending.job, waits=cause)
                self._finish([result])
        self._read_anew(pending for pending in child.jobs if pending.serial != serial)
        if child.answered or serial:
            _log.warning("reader.ended", note=how, answered=child.answered)
        else:
            self._failed_start(how)

    def _put_away(self, child: ChildProcess) -> str:
        """Kill it and let go of it; what it was given is the caller's to see to. Says how it ended."""
        for fd in (child.stdout, child.stdin):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        self._children.remove(child)
        child.kill()
        status = child.wait(0.2)
        child.close()
        if status is None:
            self._ended.append(child)
            return "the child does not end"
        return f"killed by signal {-status}" if status < 0 else f"exit status {status}"

    def _read_anew(self, jobs: Iterable[PendingJob]) -> None:
        """Put back in line what a child could not come to, for which it is not to blame."""
        again: list[PendingJob] = []
        given_up: list[Read] = []
        for pending in jobs:
            pending.interrupted += 1
            if pending.interrupted > _INTERRUPTED_MOST:
                given_up.append(Read(job=pending.job, waits="the readers keep ending"))
            else:
                again.append(pending)
        self._schedule.put_back(again)
        self._finish(given_up)

    def _finish(self, results: list[Read]) -> None:
        if results:
            with self._lock:
                self._done += results
            self._wake()

    def _end_all(self) -> None:
        for child in self._children:
            child.kill()
        deadline = boottime() + _CLOSE_SECONDS
        for child in [*self._children, *self._ended]:
            child.wait(deadline - boottime())
        for child in self._children:
            child.close()
        self._children = []
        self._selector.close()
        with self._lock:
            self._closing.set()
            os.close(self._bell)


def _bell_and_selector() -> tuple[int, selectors.BaseSelector]:
    """Make an eventfd to ring by any thread, and a selector that hears it."""
    bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        selector = selectors.DefaultSelector()
        selector.register(bell, selectors.EVENT_READ)
    except BaseException:
        os.close(bell)
        raise
    return bell, selector


def _host_available_bytes() -> int:
    """What the kernel says could be had without swapping; very much where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62
