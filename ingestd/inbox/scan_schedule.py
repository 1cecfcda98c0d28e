"""When an inbox is scanned: at the start, when somebody asks, by the timer; and how a scan stands still.

By the timer is every ``every`` seconds, and after a pause of ``SHARE`` times the scan's length. Where events come for
all of the folder, and no scan ever found what they should have named, the scan is only there to find that they failed:
all inboxes together then take one part in ``RESTING_SHARE`` of a core, and none rests longer than ``RESTING_MOST``.

A scan that is due by the clock alone begins with a look at the folder itself, hardly later and up to one look earlier:
all inboxes are looked at in one turn, and a hundred scans that woke us each for itself would have all hundred looked at
each time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import timedelta
from math import inf

from ingestd.clocks import utc_now
from ingestd.lifecycle import Backoff

from .folder_health import FolderHealth
from .hints import HintedPaths
from .names import Names
from .scan_statistics import ScanStatistics
from .tracker import Tracker
from .walk import Walk

SHARE = 20  # a scan is followed by a pause this many times as long, at least
RESTING_SHARE = 500  # the pause where events come, in times of what one scan of each inbox takes
RESTING_MOST = 900.0  # seconds of it at most, unless SHARE alone makes more
LATE_MOST = 0.5  # seconds that one by the clock waits for the next look at the folder; else it comes with the last one
LEAST_PAUSE = 0.2  # seconds between two scans that were asked for
AGAIN_AFTER_FAULT = timedelta(seconds=1)  # to the next scan, doubled by each in a row: what was not listed may be new
STAND_MOST = 60.0  # seconds a scan may stand still with folders open


class ScanSchedule:
    """The scan of one inbox that is under way, and the next.

    A scan of the whole folder is *full*; a folder that an event named is walked alone. One walk at a time.
    """

    def __init__(
        self,
        *,
        every: float,
        names: Names,
        spool: tuple[int, int],
        apart: Collection[str],
        health: FolderHealth,
        tracker: Tracker,
        hinted: HintedPaths,
        statistics: ScanStatistics,
        seconds: dict[str, float],
    ) -> None:
        """``spool``: its device and inode; ``apart``: what else in the folder is none of ours, by relative path.

        ``seconds``: how long the last scan of each inbox took, by its name; kept by all of them.
        """
        self.walk: Walk | None = None
        self.is_full = False
        self.finds_missed = False  # what this scan finds, events should have named
        self.is_wanted = True
        self._every = every
        self._after_fault = Backoff(base=AGAIN_AFTER_FAULT, cap=timedelta(seconds=every))
        self._names = names
        self._forbidden = frozenset({spool})
        self._apart = apart
        self._health = health
        self._tracker = tracker
        self._hinted = hinted
        self._statistics = statistics
        self._seconds = seconds
        self._emptied: list[str] = []
        self._next_at = 0.0
        self._not_before = 0.0
        self._rests_until = 0.0  # while events can be relied on
        self._began_at = 0.0
        self._began_given_up = 0
        self._faulty = 0  # how often something was hidden since the last scan that saw all
        self._standing_since: float | None = None

    def take_emptied(self) -> list[str]:
        """Take which folders the last full scan found to have lain empty long enough, the deepest first."""
        emptied, self._emptied = self._emptied, []
        return emptied

    def want(self) -> None:
        self.is_wanted = True

    def want_at_once(self) -> None:
        self.is_wanted = True
        self._not_before = 0.0

    def put_off(self, until: float) -> None:
        """Scan in full, but not before then: the folder cannot be listed."""
        self.is_wanted = True
        self._not_before = self._next_at = until
        self._rests_until = 0.0

    def see_again(self, now: float) -> None:
        """Scan in full soon, and ever later while it is wanted again: a fault of the disk's hid something."""
        self._faulty += 1
        wait = self._after_fault.wait(self._faulty, jitter=0.0)
        self._next_at = min(self._next_at, max(self._not_before, now + wait.total_seconds()))
        self._rests_until = 0.0

    def due_at(self) -> float:
        if self.is_wanted:
            return min(self._next_at, self._not_before)
        if self._rests_until > self._next_at and self._health.hears_all and not self._statistics.found_by_scan:
            return self._rests_until
        return self._next_at

    def wakes_at(self) -> float:
        """Say when to begin a scan whatever else there is to do; inf for one that the clock alone asks for."""
        return inf if self._is_by_clock else self.due_at()

    def begin(self, now: float, *, next_look_at: float) -> Walk | None:
        """Give the walk under way, or begin the next if one is due; by the clock: with a look at the folder."""
        if self.walk is not None or self._tracker.room <= 0:
            return self.walk
        if now >= self.due_at() or (self._is_by_clock and next_look_at > self.due_at() + LATE_MOST):
            self.finds_missed = self._health.is_watching and self._is_by_clock
            self.is_wanted = False
            self.is_full = True
            self._began_at = now
            self._began_given_up = self._tracker.given_up
            self._statistics.begin_scan()
            self.walk = self._new_walk("", deep=True)
        elif self._hinted.folders:
            folder = next(iter(self._hinted.folders))
            self.is_full = self.finds_missed = False
            self.walk = self._new_walk(folder, deep=self._hinted.folders.pop(folder))
        return self.walk

    def go_on(self) -> None:
        self._standing_since = None

    def stand_still(self, now: float, let_go: Callable[[], None]) -> None:
        """Keep the walk for a while; then let go of its open folders, which keep a share from being unmounted."""
        if self._standing_since is None:
            self._standing_since = now
        elif now - self._standing_since > STAND_MOST:
            let_go()
            self.want()

    def drop(self, *, close: bool) -> None:
        """Give up the walk; ``close`` unless somebody is still at work on it."""
        if self.walk is not None and close:
            self.walk.close()
        self.walk = None
        self._standing_since = None

    def end(self, walk: Walk, now: float) -> None:
        """Note that the walk has seen everything."""
        self.walk = None
        if not self.is_full:
            if walk.counts.faults:
                self.see_again(now)  # no event names that folder again
            return
        self._next_at = now + max(self._every, SHARE * walk.seconds)
        self._not_before = now + max(LEAST_PAUSE, SHARE / 2 * walk.seconds)
        self._seconds[self._health.policy.name] = walk.seconds
        self._rests_until = now + min(RESTING_MOST, RESTING_SHARE * sum(self._seconds.values()))
        self._statistics.end_scan(walk, now)
        if walk.counts.faults:
            self.see_again(now)
        else:
            self._faulty = 0
        self._emptied = walk.emptied
        if self._tracker.given_up == self._began_given_up and not walk.counts.faults:
            self._statistics.complete_began_at = self._began_at

    @property
    def _is_by_clock(self) -> bool:
        """Whether nobody asked for the next scan, nor did a fault."""
        return not (self.is_wanted or self._faulty)

    def _new_walk(self, start: str, *, deep: bool) -> Walk:
        policy = self._health.policy
        after = policy.emptied_after if deep and not start else None
        # Against the clock that stamps files, since nobody saw these come.
        now = utc_now().timestamp()
        return Walk(
            root_path=self._health.root_path,
            names=self._names,
            start=start,
            deep=deep,
            passes_over=self._tracker.need_no_look,
            forbidden=self._forbidden,
            apart=self._apart,
            stale_before=now - policy.unfinished_after.total_seconds(),
            emptied_before=now - after.total_seconds() if after is not None else 0.0,
        )
