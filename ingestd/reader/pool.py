"""The reader pool: hands jobs to the children, watches over them, and turns their answers and deaths into results.

One thread does all of it and sleeps while nothing happens, though never long. A child's death is blamed on the one job
its board names; the others in its line are given to the next child.

A job that occupies its child for more than its turn, a few seconds, is slow. Where others stand behind it, or wait
while all children are at slow jobs, it is put aside: its child is ended, without blame, and the job goes to the slow
lane, which never has the last child (a lone child takes from it while nothing else waits). It begins anew with a turn
twice as long, so it is done some day, or meets its limits. In line small files go before large ones (``line``): many
slow files come together, and each costs a turn to be known.

Where the system fails the thread itself (its
selector, its pipes), all children are given up and it begins anew.
"""

from __future__ import annotations

import selectors
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import structlog

from ingestd import threads
from ingestd.clocks import boottime
from ingestd.instance.facts import Inspection, Verdict
from ingestd.reader.bell import Bell
from ingestd.reader.child_process import Child, Ticket
from ingestd.reader.files import errno_text
from ingestd.reader.jobs import InspectJob, Job, Read, ReaderLimits
from ingestd.reader.line import Line
from ingestd.reader.wire import Answer, Unintelligible, decode_answer

_WATCH_SECONDS = 0.5
# With nothing to do the supervisor still looks around this often: a ring may have been lost.
_IDLE_SECONDS = 2.0
# A round that takes longer than this makes no progress.
_ROUND_SECONDS_MOST = 60.0
_INTERRUPTED_MOST = 5
_TROUBLE_FAILURES = 2
_RESPAWN_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_CLOSE_SECONDS = 2.0

_log = structlog.get_logger()


class ReaderPool:
    """A few reader processes behind one queue. Thread-safe.

    The children start at once, in the background. ``wake`` is called from the supervisor's thread whenever ``collect``
    has something to give.
    """

    def __init__(self, *, processes: int = 2, limits: ReaderLimits | None = None, wake: Callable[[], object]) -> None:
        self._limits = limits or ReaderLimits()
        self._wake = wake
        self._lock = threading.Lock()
        self._queue = Line()
        self._slow: deque[Ticket] = deque()  # the supervisor's thread alone looks at it
        self._done: list[Read] = []
        self._serial = 0
        self._in_flight = 0
        self._closing = threading.Event()
        self._failures = 0  # children in a row that ended without an answer
        self._trouble = ""
        self._spawn_at = 0.0
        self._watch_at = 0.0
        self._children: list[Child | None] = [None] * processes
        self._ended: list[Child] = []  # killed, not reaped yet
        self._bell, self._selector = _bell_and_selector()
        self._round_at = boottime()
        self._thread = threading.Thread(target=self._run, name="readers", daemon=True)
        threads.start(self._thread)

    def submit(self, job: Job) -> None:
        """Put a job in line; never blocks. Its Read comes out of ``collect``, not in order."""
        self.submit_all([job])

    def submit_all(self, jobs: Sequence[Job]) -> None:
        """Put jobs in line, as ``submit`` does; the supervisor is woken once for all of them."""
        with self._lock:
            if self._closing.is_set():
                raise RuntimeError("the readers are closed")
            self._queue.add(Ticket(serial, job) for serial, job in enumerate(jobs, self._serial + 1))
            self._serial += len(jobs)
            self._in_flight += len(jobs)
            if jobs:
                self._bell.ring()

    def collect(self) -> list[Read]:
        """Give all results that have come since the last call; never blocks."""
        with self._lock:
            done, self._done = self._done, []
            self._in_flight -= len(done)
        return done

    @property
    def in_flight(self) -> int:
        """Jobs submitted whose result was not collected yet."""
        with self._lock:
            return self._in_flight

    @property
    def pids(self) -> list[int]:
        """The children that are running."""
        return [child.process.pid for child in list(self._children) if child is not None]

    def is_healthy(self) -> bool:
        """Whether jobs are being worked off: the supervisor goes round and children get through their start."""
        goes_round = self._thread.is_alive() and boottime() - self._round_at < _ROUND_SECONDS_MOST
        return goes_round and not self._closing.is_set() and self._failures < len(_RESPAWN_SECONDS) // 2

    @property
    def trouble(self) -> str:
        """Why no child can be started, "" while one is or may yet be."""
        return self._trouble

    def close(self) -> None:
        """End the children at once; jobs in flight get no result."""
        with self._lock:
            if not self._closing.is_set():
                self._closing.set()
                self._bell.ring()
        self._thread.join()

    # Everything below runs in the supervisor's thread.

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
        self._spawn_missing()
        self._hand_out()
        busy = self._ended or self._queue or self._slow or any(child and child.tickets for child in self._children)
        for key, _ in self._selector.select(_WATCH_SECONDS if busy or None in self._children else _IDLE_SECONDS):
            self._serve(key)
        self._watch()

    def _begin_anew(self, error: OSError) -> None:
        """Give up what cannot be relied on any more, the children with it; their jobs are read anew."""
        self._failures += 1
        self._look_for_trouble(errno_text(error))
        _log.error("reader.supervisor_failed", note=errno_text(error), failures=self._failures)
        for child in list(self._children):
            if child is not None:
                self._put_away(child)
                self._read_anew(child.tickets)
        while not self._closing.wait(_RESPAWN_SECONDS[min(self._failures, len(_RESPAWN_SECONDS) - 1)]):
            try:
                bell, selector = _bell_and_selector()
            except OSError as again:
                self._failures += 1
                self._look_for_trouble(errno_text(again))
                continue
            with self._lock:
                former, self._bell = self._bell, bell
                former.close()
            self._selector.close()
            self._selector = selector
            return

    def _spawn_missing(self) -> None:
        if None not in self._children or boottime() < self._spawn_at:
            return
        for place, child in enumerate(self._children):
            if child is None:
                self._spawn(place)

    def _spawn(self, place: int) -> None:
        try:
            child = Child(self._limits)
        except OSError as error:
            self._failed_start(errno_text(error))
            return
        self._children[place] = child
        self._selector.register(child.stdout, selectors.EVENT_READ, child)
        self._send(child)

    def _failed_start(self, why: str) -> None:
        self._failures += 1
        delay = _RESPAWN_SECONDS[min(self._failures, len(_RESPAWN_SECONDS) - 1)]
        self._spawn_at = boottime() + delay
        self._look_for_trouble(why)
        _log.warning("reader.start_failed", note=why, failures=self._failures, seconds=delay)

    def _look_for_trouble(self, why: str = "") -> None:
        """See whether any child has got through its start; one failure alone may be chance, two are trouble."""
        before = self._trouble
        if any(child is not None and child.board.is_ready for child in self._children):
            self._trouble = ""
            if before:
                self._failures = 0
        elif why and self._failures >= _TROUBLE_FAILURES:
            self._trouble = why
        if self._trouble != before:
            self._wake()

    def _hand_out(self) -> None:
        """Give waiting jobs to the children with room, to the one with the least in line first."""
        kept = self._kept_for_slow()
        touched: set[Child] = set()
        while True:
            free = [child for child in self._children if child is not None and child not in kept and child.has_room()]
            if not free:
                break
            with self._lock:
                if not self._queue:
                    break
                ticket = self._queue.take()
            child = min(free, key=lambda each: (each.ahead_bytes, len(each.tickets)))
            child.give(ticket)
            touched.add(child)
        touched |= self._hand_out_slow()
        for child in touched:
            self._send(child)

    def _kept_for_slow(self) -> list[Child]:
        """Which children get no more of the others' jobs, so that the slow lane comes to its turn under any load."""
        quick = [child for child in self._children if child is not None and child.slow is None]
        quick.sort(key=lambda each: len(each.tickets))
        return quick[: max(0, min(len(self._slow), len(quick) - 1))]

    def _hand_out_slow(self) -> set[Child]:
        """Give the slow lane the children it may have, one job to each."""
        touched: set[Child] = set()
        at_slow = sum(child is not None and child.slow is not None for child in self._children)
        for child in self._children:
            if not self._slow or at_slow >= max(1, len(self._children) - 1):
                break
            if child is not None and not child.tickets:
                child.give(self._slow.popleft())
                touched.add(child)
                at_slow += 1
        return touched

    def _send(self, child: Child) -> None:
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
            self._bell.heard()
        elif child not in self._children:
            return  # ended earlier in this round
        elif key.fd == child.stdin:
            self._send(child)
        else:
            self._receive(child)

    def _receive(self, child: Child) -> None:
        results: list[Read] = []
        try:
            lines = child.receive()
            for line in lines or ():
                answer = decode_answer(line)
                if answer.serial == 0:
                    child.last_words = answer.crashed
                    continue
                self._take(child.take_answered(answer.serial), answer, results)
        except Unintelligible as problem:
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
            self._end(child, blame=True, cause=child.last_words)

    def _take(self, ticket: Ticket, answer: Answer, results: list[Read]) -> None:
        if answer.short_of_memory:
            self._short_of_memory(ticket, results)
        elif answer.crashed:
            results.append(Read(job=ticket.job, died=True, cause=f"internal error: {answer.crashed}"))
        elif answer.refused and isinstance(ticket.job, InspectJob):
            results.append(Read(job=ticket.job, died=True, cause="an inspection was refused"))
        else:
            results.append(
                Read(
                    job=ticket.job,
                    inspection=answer.inspection,
                    canonical=answer.canonical,
                    sameness=answer.sameness,
                    differs=answer.differs,
                    waits=answer.waits,
                    refused=answer.refused,
                    lost=answer.lost,
                )
            )

    def _short_of_memory(self, ticket: Ticket, results: list[Read]) -> None:
        """Once more in a fresh child; twice is the file's doing, unless the host has no memory to give."""
        ticket.short_of_memory += 1
        if ticket.short_of_memory == 1:
            with self._lock:
                self._queue.put_back([ticket])
        elif _host_available_bytes() < self._limits.address_space_bytes:
            results.append(Read(job=ticket.job, waits="the host is short of memory"))
        elif isinstance(ticket.job, InspectJob):
            reason = f"reading it takes more than {self._limits.address_space_bytes >> 20} MB of memory"
            results.append(Read(job=ticket.job, inspection=Inspection(verdict=Verdict.HOSTILE, reason_text=reason)))
        else:
            results.append(Read(job=ticket.job, refused="it takes more memory than a reader may use"))

    def _watch(self) -> None:
        """Look after children that burn CPU, hang or are to be reaped; twice a second at most."""
        now = boottime()
        if now < self._watch_at:
            return
        self._watch_at = now + _WATCH_SECONDS
        self._ended = [child for child in self._ended if child.wait(0) is None]
        for child in list(self._children):
            if child is None:
                continue
            overdue = child.overdue(now)
            if overdue == "cpu":
                self._end(child, blame=True, cause="more CPU time than a file of its size may take")
            elif overdue == "stalled":
                self._end(child, blame=False, cause="reading stalled")
        self._put_aside_slow(now)
        if self._trouble:
            self._look_for_trouble()

    def _put_aside_slow(self, now: float) -> None:
        """Take the children that others wait for from jobs that have had their turn; the newest of those first."""
        at_work = [child for child in self._children if child is not None]
        all_slow = all(child.slow for child in at_work)
        over = [child for child in at_work if child.turn_is_over(now)]
        for child in sorted(over, key=lambda each: each.tickets[0].turns):
            with self._lock:
                waited_for = len(child.tickets) > 1 or (all_slow and bool(self._queue))
            if waited_for:
                self._put_aside(child)
                all_slow = False

    def _put_aside(self, child: Child) -> None:
        for fd in (child.stdout, child.stdin):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        self._put_away(child)
        slow, *behind = child.tickets
        slow.turns += 1
        self._slow.append(slow)
        with self._lock:
            self._queue.put_back(behind)

    def _end(self, child: Child, *, blame: bool, cause: str) -> None:
        """Give up a child: its job has died (or waits, where the file is not to blame), the others are read anew."""
        for fd in (child.stdout, child.stdin):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        serial = child.board.serial
        status = self._put_away(child)
        how = cause or _ended_how(status)
        at_hand = [ticket for ticket in child.tickets if ticket.serial == serial]
        died = [Read(job=ticket.job, died=True, cause=how) for ticket in at_hand]
        self._finish(died if blame else [Read(job=ticket.job, waits=cause) for ticket in at_hand])
        self._read_anew([ticket for ticket in child.tickets if ticket.serial != serial])
        if child.answered or serial:
            _log.warning("reader.ended", note=how, answered=child.answered)
        else:
            self._failed_start(how)

    def _put_away(self, child: Child) -> int | None:
        """Kill it and let go of it; what it was given is the caller's to see to. Says how it ended."""
        self._children[self._children.index(child)] = None
        child.kill()
        status = child.wait(0.2)
        if status is None:
            self._ended.append(child)
        child.close()
        return status

    def _read_anew(self, tickets: Iterable[Ticket]) -> None:
        """Put back in line what a child could not come to, for which it is not to blame."""
        again: list[Ticket] = []
        given_up: list[Read] = []
        for ticket in tickets:
            ticket.interrupted += 1
            if ticket.interrupted > _INTERRUPTED_MOST:
                given_up.append(Read(job=ticket.job, waits="the readers keep ending"))
            else:
                again.append(ticket)
        self._slow.extend(ticket for ticket in again if ticket.turns)
        again = [ticket for ticket in again if not ticket.turns]
        with self._lock:
            self._queue.put_back(again)
        self._finish(given_up)

    def _finish(self, results: list[Read]) -> None:
        if not results:
            return
        with self._lock:
            self._done.extend(results)
        self._wake()

    def _end_all(self) -> None:
        children = [child for child in self._children if child is not None]
        for child in children:
            child.kill()
        deadline = boottime() + _CLOSE_SECONDS
        for child in [*children, *self._ended]:
            child.wait(deadline - boottime())
        for child in children:
            child.close()
        self._children = [None] * len(self._children)
        self._selector.close()
        with self._lock:
            self._closing.set()
            self._bell.close()


def _bell_and_selector() -> tuple[Bell, selectors.BaseSelector]:
    """Make a bell and a selector that hears it."""
    bell = Bell()
    try:
        selector = selectors.DefaultSelector()
        selector.register(bell, selectors.EVENT_READ)
    except BaseException:
        bell.close()
        raise
    return bell, selector


def _ended_how(status: int | None) -> str:
    if status is None:
        return "the child does not end"
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def _host_available_bytes() -> int:
    """What the kernel says could be had without swapping; very much where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62
