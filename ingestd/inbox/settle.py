"""When a file is finished: what was seen of it, when, and what that makes it.

Every file that was seen and not yet decided is one ``Sight``. It starts to settle when we first see it, on our own
boot clock (its mtime may lie in any year), and starts over whenever its device, inode, size or mtime differ from
what we saw last. Unchanged for ``settle`` and with no writer that the kernel knows of, it is handed out. One that the
reader finds short waits until it changes, or until ``incomplete_after`` has passed without a change.
"""
# ruff: noqa: PTH120 - descriptors and fast path strings; pathlib has neither

from __future__ import annotations

import errno
import fcntl
import heapq
import os
import signal
import stat
from collections import Counter
from enum import IntEnum

from .scan import FileStat, file_stat

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
RETRY_MOST = 600.0  # seconds between two tries at a file that cannot be opened, at most
HELD_RETRY_MOST = 30.0  # seconds between two looks at a file that a writer keeps open, at most


class Phase(IntEnum):
    """Where a sight is."""

    ASKED = 0  # the ledger is asked whether it knows the file
    SETTLING = 1
    HELD = 2  # unchanged for long enough, but a writer has it open
    OUT = 3  # handed out, not yet decided
    INCOMPLETE = 4  # the reader found it short, empty or all zeros
    UNREADABLE = 5  # cannot be opened


# The caller has its say next: what is seen meanwhile changes nothing.
NOT_OURS = frozenset({Phase.ASKED, Phase.OUT})
_DUE_SOON = frozenset({Phase.ASKED, Phase.SETTLING, Phase.HELD})


class Sight:
    """What we know of one file; ``since`` is when we first saw it as it is."""

    __slots__ = ("by_scan", "due", "final", "outside", "path", "phase", "since", "stat", "tries")

    def __init__(self, path: str, seen: FileStat, now: float, *, by_scan: bool) -> None:
        self.path = path
        self.stat = seen
        self.since = now
        self.due = now
        self.phase = Phase.SETTLING
        self.final = False
        self.by_scan = by_scan  # only the timer's scan found it so far
        self.outside = ""  # the absolute path of a file that lies in the spool
        self.tries = 0


class Sights:
    """All sights of one inbox, at most ``most`` of them beside as many that wait for a change."""

    def __init__(self, *, settle: float, incomplete_after: float, most: int) -> None:
        self.settle = settle
        self.incomplete_after = incomplete_after
        self.most = most
        self.vanished = 0
        self.given_up = 0  # sights let go because too many wait; a later scan finds their files again
        self._by_path: dict[str, Sight] = {}
        self._phases: Counter[Phase] = Counter()
        self._due: list[tuple[float, int, Sight]] = []
        self._ticket = 0

    def __len__(self) -> int:
        return len(self._by_path)

    def __contains__(self, path: str) -> bool:
        return path in self._by_path

    def get(self, path: str) -> Sight | None:
        """Find the sight of a path."""
        return self._by_path.get(path)

    def count(self, *phases: Phase) -> int:
        """Count the sights in these phases."""
        return sum(self._phases[phase] for phase in phases)

    @property
    def room(self) -> int:
        """How many more files may be watched."""
        waiting = self._phases[Phase.INCOMPLETE] + self._phases[Phase.UNREADABLE]
        return self.most - (len(self._by_path) - waiting)

    def need_no_look(self, path: str) -> bool:
        """Whether a scan may pass over this path: it is watched, and looked at again when it is due.

        Not so one that is handed out, whose name may be another file's by now, nor one that is left alone for long.
        """
        sight = self._by_path.get(path)
        return sight is not None and sight.phase in _DUE_SOON

    def add(self, path: str, seen: FileStat, now: float, *, by_scan: bool = False, ask: bool = False) -> Sight:
        """Watch a file that was not watched so far."""
        sight = Sight(path, seen, now, by_scan=by_scan)
        self._by_path[path] = sight
        if ask:
            sight.phase = Phase.ASKED
            self._phases[Phase.ASKED] += 1
        else:
            self._phases[Phase.SETTLING] += 1
            self._schedule(sight, now + self.settle)
        return sight

    def start_over(self, sight: Sight, seen: FileStat, now: float) -> None:
        """Settle anew: the file is another than the one we saw."""
        sight.stat = seen
        sight.since = now
        sight.final = False
        sight.tries = 0
        self._move(sight, Phase.SETTLING)
        self._schedule(sight, now + self.settle)

    def seen_again(self, sight: Sight, seen: FileStat, now: float) -> bool:
        """Compare with what was seen before; True when the file changed and settles anew.

        One that is handed out is left to its reader, who will see the change.
        """
        if sight.stat == seen or sight.phase in NOT_OURS:
            return False
        self.start_over(sight, seen, now)
        return True

    def take_due(self, now: float, most: int) -> list[Sight]:
        """Take up to ``most`` sights that are due; each must be scheduled again, handed out or forgotten."""
        taken: list[Sight] = []
        while self._due and len(taken) < most and self._due[0][0] <= now:
            due, _ticket, sight = heapq.heappop(self._due)
            if self._is_current(due, sight):
                taken.append(sight)
        return taken

    def next_due(self) -> float | None:
        """Say when the next sight is due."""
        while self._due:
            due, _ticket, sight = self._due[0]
            if self._is_current(due, sight):
                return due
            heapq.heappop(self._due)
        return None

    def held(self, sight: Sight, now: float) -> None:
        """Wait for a writer to close the file."""
        self._move(sight, Phase.HELD)
        sight.tries += 1
        wait = min(HELD_RETRY_MOST, self.settle * 2 ** min(sight.tries - 1, 10))
        self._schedule(sight, min(now + max(wait, 0.05), max(sight.since + self.incomplete_after, now + 0.05)))

    def hasten(self, sight: Sight, now: float) -> None:
        """Look at once whether the writer is gone: an event named a file that waits for that."""
        if sight.phase is Phase.HELD:
            sight.tries = 0
            self._schedule(sight, max(now, sight.since + self.settle))

    def answered_unknown(self, sight: Sight, now: float) -> None:
        """Settle a file that the ledger does not know."""
        if sight.phase is Phase.ASKED:
            self._move(sight, Phase.SETTLING)
            self._schedule(sight, max(sight.since + self.settle, now))

    def hand_out(self, sight: Sight) -> None:
        """Note that the caller has it now."""
        self._move(sight, Phase.OUT)
        sight.due = -1.0

    def wait_for_change(self, sight: Sight) -> None:
        """Wait until the file changes, or has not changed for ``incomplete_after``."""
        if self._phases[Phase.INCOMPLETE] >= self.most:
            self.give_up(sight)
            return
        self._move(sight, Phase.INCOMPLETE)
        sight.final = True
        self._schedule(sight, sight.since + self.incomplete_after)

    def wait_for_access(self, sight: Sight, now: float, first_wait: float) -> None:
        """Try again later, and ever later: the file cannot be opened or read."""
        if sight.phase is not Phase.UNREADABLE and self._phases[Phase.UNREADABLE] >= self.most:
            self.give_up(sight)
            return
        self._move(sight, Phase.UNREADABLE)
        sight.tries += 1
        self._schedule(sight, now + min(RETRY_MOST, first_wait * 2 ** min(sight.tries - 1, 10)))

    def give_up(self, sight: Sight) -> None:
        """Stop watching: there are too many; a later scan finds the file again."""
        self.given_up += 1
        self.forget(sight)

    def forget(self, sight: Sight) -> None:
        """Stop watching a file that is decided or gone."""
        if self._by_path.get(sight.path) is sight:
            del self._by_path[sight.path]
            self._phases[sight.phase] -= 1

    def _move(self, sight: Sight, phase: Phase) -> None:
        self._phases[sight.phase] -= 1
        sight.phase = phase
        self._phases[phase] += 1

    def _schedule(self, sight: Sight, due: float) -> None:
        sight.due = due
        self._ticket += 1
        heapq.heappush(self._due, (due, self._ticket, sight))
        if len(self._due) > 4 * len(self._by_path) + 1_000:
            # Files that change all the time leave stale entries behind.
            self._due = [entry for entry in self._due if self._is_current(entry[0], entry[2])]
            heapq.heapify(self._due)

    def _is_current(self, due: float, sight: Sight) -> bool:
        return sight.due == due and self._by_path.get(sight.path) is sight and sight.phase is not Phase.OUT


class Glance(IntEnum):
    """What one look at a file came to."""

    FILE = 0
    HELD = 1  # a file, and the kernel says that a writer has it open
    GONE = 2
    NOT_REGULAR = 3
    NO_ACCESS = 4


def glance(path: str, *, ask_kernel: bool) -> tuple[Glance, FileStat | None]:
    """Look at a file as it is now, without changing or following anything.

    ``ask_kernel`` also opens it and asks whether a writer has it open: only on local disks, where opening a file
    disturbs nobody.
    """
    try:
        if not ask_kernel:
            seen = os.lstat(path)
            return (Glance.FILE, file_stat(seen)) if stat.S_ISREG(seen.st_mode) else (Glance.NOT_REGULAR, None)
        descriptor = os.open(path, _OPEN_FILE)
    except OSError as error:
        return _verdict(error), None
    try:
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode):
            return Glance.NOT_REGULAR, None
        return (Glance.HELD if has_writer(descriptor) else Glance.FILE), file_stat(seen)
    except OSError:
        return Glance.NO_ACCESS, None
    finally:
        os.close(descriptor)


def glance_inside(prefix: str, path: str, device: int | None) -> tuple[Glance, FileStat | None]:
    """Look at a file that an event named, unless its folder lies on another device than the inbox.

    A file's own device does not tell: overlayfs gives files of a lower layer that layer's.
    """
    verdict, seen = glance(prefix + path, ask_kernel=False)
    if seen is not None and device is not None and seen[0] != device:
        try:
            if os.lstat(os.path.dirname(prefix + path)).st_dev != device:
                return Glance.NOT_REGULAR, None
        except OSError:
            return Glance.GONE, None
    return verdict, seen


def _verdict(error: OSError) -> Glance:
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return Glance.GONE
    # A link (ELOOP, by O_NOFOLLOW) or a socket (ENXIO); ENODEV is a device without a driver.
    if error.errno in {errno.ELOOP, errno.ENXIO, errno.ENODEV}:
        return Glance.NOT_REGULAR
    return Glance.NO_ACCESS


def has_writer(descriptor: int) -> bool:
    """Ask the kernel whether anybody has the file open for writing (fcntl(2), "Leases").

    A read lease is refused with EAGAIN then. Where it cannot tell (another owner's file, a filesystem without
    leases) the answer is no: the settle time and the digest at sending are what the promise rests on.
    """
    try:
        # Somebody who opens the file for writing in the microseconds that we hold the lease makes the kernel signal
        # us; by default with SIGIO, which would kill the process. SIGURG is ignored unless somebody asks for it.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
