"""When a file is finished: what was seen of it, when, and what that makes it.

Every file that was seen and not yet decided is one ``Sight``. It starts to settle when we first see it, on our own
boot clock (its mtime may lie in any year), and starts over whenever its device, inode, size or mtime differ from
what we saw last. Unchanged for ``settle`` and with no writer that the kernel knows of, it is handed out. One that the
reader finds short waits until it changes, or until ``incomplete_after`` has passed without a change.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterator
from datetime import timedelta
from enum import IntEnum

from ingestd.lifecycle import Backoff

from .scan import FileStat, is_same

# Between two tries at a file that cannot be opened or moved: most such faults pass at once, and whoever mended
# a folder where no events tell of it stands waiting.
RETRY = Backoff(base=timedelta(seconds=1), cap=timedelta(seconds=60))
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

    __slots__ = ("barred", "by_scan", "due", "final", "hastened", "outside", "path", "phase", "since", "stat", "tries")

    def __init__(self, path: str, seen: FileStat, now: float, *, by_scan: bool) -> None:
        self.path = path
        self.stat = seen
        self.since = now
        self.due = now
        self.phase = Phase.SETTLING
        self.final = False
        self.by_scan = by_scan  # only the timer's scan found it so far
        self.outside = ""  # the absolute path of a file that lies in the spool
        self.barred = False  # the last try to open it, to read it or to move it failed
        self.tries = 0
        self.hastened = 0  # how many of these tries a new ctime brought about


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
        self._before: dict[str, tuple[FileStat, float]] = {}  # what another saw, and since when

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

    def barred(self) -> int:
        """Count the files that could not be opened, read or moved when that was last tried, whatever they wait for."""
        return sum(sight.barred for sight in self._by_path.values())

    def oldest_since(self) -> float | None:
        """Say since when the file that waits longest lies here unchanged; None when nothing waits."""
        return min((sight.since for sight in self._by_path.values()), default=None)

    def barred_paths(self) -> list[str]:
        """Name the files that could not be opened, read or moved."""
        return [sight.path for sight in self._by_path.values() if sight.barred]

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
        known = self._before.pop(path, None)
        if known is not None and known[0] == seen:
            sight.since = known[1]
        self._by_path[path] = sight
        if ask:
            sight.phase = Phase.ASKED
            self._phases[Phase.ASKED] += 1
        else:
            self._phases[Phase.SETTLING] += 1
            self._schedule(sight, max(sight.since + self.settle, now))
        return sight

    def take_over(self, other: Sights) -> None:
        """Go by what another, in whose place we come, knows of files that we find as it saw them last."""
        self._before = other._before | {path: (sight.stat, sight.since) for path, sight in other._by_path.items()}

    def forget_before(self) -> None:
        """Let go of what another knew: all that is still there was seen."""
        self._before = {}

    def start_over(self, sight: Sight, seen: FileStat, now: float) -> None:
        """Settle anew: the file is another than the one we saw."""
        sight.stat = seen
        sight.since = now
        sight.final = False
        sight.barred = False
        sight.tries = sight.hastened = 0
        self._move(sight, Phase.SETTLING)
        self._schedule(sight, now + self.settle)

    def seen_again(self, sight: Sight, seen: FileStat, now: float) -> bool:
        """Compare with what was seen before; True when the file changed and settles anew.

        One that is handed out is left to its reader, who will see the change.
        """
        if sight.phase in NOT_OURS:
            return False
        if is_same(sight.stat, seen):
            is_touched = sight.stat != seen
            sight.stat = seen
            if is_touched and sight.phase is Phase.UNREADABLE and 2 * sight.hastened < sight.tries:
                # Only its ctime is another: somebody gave it other rights, or another owner. Or we did, when we moved
                # it and had to give it back; so every other try waits for its time.
                sight.hastened += 1
                self._schedule(sight, now)
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

    def mended(self, paths: Collection[str], now: float) -> None:
        """Try at once what is barred at one of these paths or below it ("": all): it may have other rights by now."""
        if not paths:
            return
        for sight in self._by_path.values():
            if sight.barred and any(above in paths for above in _ways(sight.path)):
                sight.tries = sight.hastened = 0
                if sight.phase is Phase.UNREADABLE:
                    self._schedule(sight, now)

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

    def wait_for_access(self, sight: Sight, now: float) -> None:
        """Try again later, and ever later: the file cannot be opened or read."""
        if sight.phase is not Phase.UNREADABLE and self._phases[Phase.UNREADABLE] >= self.most:
            self.give_up(sight)
            return
        self._move(sight, Phase.UNREADABLE)
        sight.barred = True
        sight.tries += 1
        self._schedule(sight, now + RETRY.wait(sight.tries, jitter=0.0).total_seconds())

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


def _ways(path: str) -> Iterator[str]:
    """Name a path, the folders that it lies in, and the inbox itself ("")."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""
