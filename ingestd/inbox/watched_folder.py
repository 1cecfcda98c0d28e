"""One drop folder: hints and scans have its files tracked, those that have settled are handed out (see ``tracker``).

Everything is done in small jobs, one at a time: look at what events named, look again at what is due, go on with the
scan. Between jobs the caller has its turn, and however much lies in the folder, no more than a bounded part of it is
tracked; the scan stands still until there is room again.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import TypeVar

from ingestd.clocks import boottime
from ingestd.fs.mounts import Mount
from ingestd.workers import Workers

from .file_check import Checked, FileCheck, check_files
from .folder_health import FolderHealth
from .hints import HintedPaths, Hints
from .names import Names
from .scan_schedule import ScanSchedule
from .scan_statistics import ScanStatistics
from .tracker import WITH_CALLER, Phase, TrackedFile, Tracker
from .types import Candidate, InboxPolicy, InboxReport, Leave, Take
from .walk import Found, Root, RootGone, Walk, is_same, root_of

SETTLE_LOCAL = 2.0
SETTLE_REMOTE = 30.0
LOOK_EVERY = 5.0  # seconds between two looks at the folder itself
HINTED_AT_ONCE = 256
CHECKS_AT_ONCE = 128
ENTRIES_AT_ONCE = 500
ENTRIES_AT_ONCE_APART = 2_000
ASK_MOST = 1_000
PATIENCE = 30.0  # seconds after which a folder that does not answer is an alarm

Seen = TypeVar("Seen")


class WatchedFolder:
    """The state of one inbox. ``ready`` and ``asking`` are emptied by ``Inboxes``."""

    def __init__(
        self,
        policy: InboxPolicy,
        *,
        wake: Callable[[], object],
        scan_every: float,
        track_most: int,
        spool: os.stat_result,
        spool_mount: Mount | None,
        apart: Collection[str],
        scan_seconds: dict[str, float],
        is_too_long: Callable[[str], bool],
    ) -> None:
        self.policy = policy
        self.ready: deque[TrackedFile] = deque()
        self.asking: deque[TrackedFile] = deque()
        self.last_served = 0
        self._wake = wake
        self._spool_device = spool.st_dev
        self._spool_mount = spool_mount
        self.health = FolderHealth(policy, wake)
        self.tracker = Tracker(policy, settle=SETTLE_LOCAL, most=track_most)
        self._say_how_to_settle()
        self.statistics = ScanStatistics(self.health)
        names = Names(policy.ignore, only=policy.only, is_too_long=is_too_long)
        self._hinted = HintedPaths(names, apart)
        self.scans = ScanSchedule(
            every=scan_every,
            names=names,
            spool=(spool.st_dev, spool.st_ino),
            apart=apart,
            health=self.health,
            tracker=self.tracker,
            hinted=self._hinted,
            statistics=self.statistics,
            seconds=scan_seconds,
        )
        self._io = self._new_io()
        self._job_began = 0.0
        self._turn = 0
        self._next_look_at = 0.0
        self._now = 0.0

    def close(self, *, wait: float = 5.0) -> None:
        """Let go of it, and wait so many seconds at most until its observer has."""
        self.health.disarm(wait=wait)
        self._drop_walk()
        self._io.close()

    def is_healthy(self) -> bool:
        return self._io.is_healthy()

    def is_drained(self, since: float) -> bool:
        """Whether a full scan begun since then is complete and everything that was found is decided."""
        if self.health.alarm:
            return True
        watcher, began_at = self.health.watcher, self.statistics.complete_began_at
        return (
            began_at is not None
            and began_at >= since
            and self.scans.walk is None
            and not self._hinted.folders
            and not self._hinted.paths
            and (watcher is None or watcher.hints.is_empty)
            and len(self.tracker) == self.tracker.count(Phase.UNREADABLE)
        )

    def report(self) -> InboxReport:
        return self.statistics.report(self.tracker, scanning=self.scans.walk is not None and self.scans.is_full)

    def take_back(self, candidate: Candidate, leave: Leave) -> None:
        """Take back a file that was handed out, with what became of it."""
        file = self.tracker.get(candidate.relative_path, in_spool=candidate.in_spool)
        if file is None:
            if leave is Leave.AGAIN and candidate.in_spool:
                self.observe(candidate)
        elif leave is Leave.DONE:
            self.tracker.forget(file)
            if not candidate.in_spool and not candidate.in_place:
                self.statistics.files_taken += 1
            if file.has_changed:
                # The name was used again while we had the file that bore it before.
                self._hinted.paths[file.path] = None
        elif leave is Leave.UNREADABLE:
            self.tracker.wait_for_access(file, self._now)
        elif leave is Leave.INCOMPLETE and not file.has_changed:
            self.tracker.wait_for_change(file, self._now)
        else:
            self.tracker.start_over(file, file.stat, self._now)
            if not candidate.in_spool:
                self._hinted.paths[file.path] = None

    def observe(self, candidate: Candidate) -> None:
        self.tracker.add_spooled(candidate, self._now)

    def answer(self, candidate: Candidate, *, is_known: bool) -> None:
        """Take the ledger's word on a file that it was asked about."""
        file = self.tracker.get(candidate.relative_path, in_spool=candidate.in_spool)
        if file is None or file.phase is not Phase.ASKED:
            return
        if is_known:
            self.tracker.forget(file)
            if not candidate.in_place:
                self.statistics.files_taken += 1  # it was copied, and is about to be removed
        else:
            self.statistics.files_seen += 1
            self.tracker.answered_unknown(file, self._now)

    def work(self, now: float, *, until: float, want: int) -> None:
        """Do jobs until ``until`` (``time.perf_counter``) or until there is nothing to do now."""
        self._now = now
        self.health.answers(boottime() - self._job_began if self._io.in_flight else 0.0, PATIENCE)
        if self.health.watcher is not None and not self.health.watcher.hints.is_empty:
            self._take_hints(self.health.watcher.hints, now)
        while self._finish():
            if now >= self._next_look_at:
                self._look_at_root(now)
            elif not self._begin_something(now, until, want):
                break
            if time.perf_counter() >= until:
                self._finish()
                break

    def _take_hints(self, hints: Hints, now: float) -> None:
        mended = hints.take_mended()
        self.tracker.mended(mended, now)
        if self.statistics.folders_are_barred:
            for folder in (path for path, is_folder in mended.items() if is_folder):
                self._hinted.name_folder(folder, deep=True)
        if self._hinted.take_from(hints):
            self.scans.want()

    def next_at(self, now: float, *, want: int) -> float:
        """Say when there is something to do again."""
        if self._io.in_flight:
            return now + LOOK_EVERY
        times = [self._next_look_at]
        due = self.tracker.next_due() if want > 0 else None
        if due is not None:
            times.append(due)
        if self._room > 0:
            if self.scans.walk is not None or self._hinted.folders or self._hinted.paths:
                times.append(now)
            times.append(self.scans.wakes_at())
        elif any(path in self.tracker for path in self._hinted.paths):
            times.append(now)
        return min(times)

    @property
    def _room(self) -> int:
        """How many more files may be found now."""
        return self.tracker.room if len(self.asking) < ASK_MOST else 0

    def _new_io(self) -> Workers[Callable[[], None]]:
        # A share that does not answer holds whoever touches it in the kernel, so a thread touches it alone; a local
        # disk is looked at directly, which costs no switch.
        return Workers(f"inbox-{self.policy.name}", wake=self._wake, threads=int(self.health.is_remote))

    def _start(self, job: Callable[[], Seen], then: Callable[[Seen], None]) -> None:
        assert not self._io.in_flight, "one job at a time"
        self._job_began = boottime()
        self._io.submit(lambda: partial(then, job()))

    def _finish(self) -> bool:
        """Go on with what the job that ran has seen; True when none is running."""
        if self._io.in_flight:
            try:
                for go_on in self._io.collect():
                    go_on()
            except RootGone as error:
                self._root_gone(error, self._now)
        return not self._io.in_flight

    def _begin_something(self, now: float, until: float, want: int) -> bool:
        """Start the next job; they take turns, so that none keeps the others waiting."""
        jobs = (
            lambda: self._check_hinted(now),
            lambda: self._check_due(now, want),
            lambda: self._go_on_scanning(now, until),
        )
        for _ in jobs:
            self._turn = (self._turn + 1) % len(jobs)
            if jobs[self._turn]():
                return True
        return False

    def _look_at_root(self, now: float) -> None:
        self._next_look_at = now + LOOK_EVERY

        def seen(root: Root | RootGone) -> None:
            if isinstance(root, RootGone):
                self._root_gone(root, now)
            else:
                self._root_seen(root, now)
            if self.health.supervise(now):
                self.scans.want()

        self._start(lambda: root_of(self.health.root_path), seen)

    def _root_seen(self, root: Root, now: float) -> None:
        if self.health.root_seen(root, now):
            self.tracker.mended(("",), now)
            self._drop_walk()
            self.scans.want_at_once()
            if self.health.is_remote != (self._io.threads > 0):
                self._io.close()
                self._io = self._new_io()
            self._say_how_to_settle()

    def _root_gone(self, error: RootGone, now: float) -> None:
        self._drop_walk()
        self.health.root_gone(error)
        self.scans.put_off(now + LOOK_EVERY)

    def _say_how_to_settle(self) -> None:
        settle, is_remote = self.policy.settle, self.health.is_remote
        by_default = SETTLE_REMOTE if is_remote else SETTLE_LOCAL
        self.tracker.settle = by_default if settle is None else settle.total_seconds()
        self.tracker.by_ctime = self.policy.by_ctime and not is_remote  # another host's clock says nothing here

    def _check_hinted(self, now: float) -> bool:
        if not self._hinted.paths:
            return False
        paths = self._hinted.take_paths(HINTED_AT_ONCE, room=self._room, is_tracked=self.tracker.__contains__)
        if not paths:
            if self.tracker.room <= 0:
                # Nobody can be tracked in addition now; the scan will find them.
                self._hinted.paths.clear()
                self.scans.want()
            return False
        device = self.health.root.device if self.health.root is not None else None
        self._start(
            lambda: check_files(self.health.root_path, paths, device=device),
            lambda checked: self._hinted_checked(paths, checked, now),
        )
        return True

    def _hinted_checked(self, paths: list[str], checked: list[Checked], now: float) -> None:
        for path, (verdict, seen) in zip(paths, checked, strict=True):
            file = self.tracker.get(path)
            if seen is not None:
                self._saw(Found(path, seen), now, by_scan=False, is_scan=False)
            elif file is not None and file.phase not in WITH_CALLER and verdict is not FileCheck.NO_ACCESS:
                self.tracker.vanished += verdict is FileCheck.GONE
                self.tracker.forget(file)
            elif file is None and verdict is FileCheck.NO_ACCESS:
                # Nobody tracks it yet, and no event will name it again.
                self.scans.see_again(now)

    def _check_due(self, now: float, want: int) -> bool:
        due = self.tracker.take_due(now, min(CHECKS_AT_ONCE, want - len(self.ready)))
        if not due:
            return False
        paths = [file.path if file.origin is None else file.origin.path for file in due]
        self._start(
            lambda: check_files(self.health.root_path, paths, ask_kernel=not self._io.threads),
            lambda checked: self._due_checked(due, checked, now),
        )
        return True

    def _due_checked(self, due: list[TrackedFile], checked: list[Checked], now: float) -> None:
        for file, (verdict, seen) in zip(due, checked, strict=True):
            if self.tracker.get(file.path) is not file or file.phase in WITH_CALLER:
                continue
            if seen is None:
                if verdict is FileCheck.NO_ACCESS:
                    self.tracker.wait_for_access(file, now)
                else:
                    self.tracker.vanished += verdict is FileCheck.GONE
                    self.tracker.forget(file)
            elif not is_same(seen, file.stat):
                self.tracker.start_over(file, seen, now)
            elif file.phase is Phase.INCOMPLETE and now < file.since + self.tracker.incomplete_after:
                file.stat = seen
                self.tracker.wait_for_change(file, now)
            elif verdict is FileCheck.BEING_WRITTEN and now < file.since + self.tracker.incomplete_after:
                self.tracker.wait_for_writer(file, now)
            else:
                file.stat = seen
                self.tracker.hand_out(file)
                self.ready.append(file)
                if file.by_scan:
                    file.by_scan = False
                    self.statistics.found_by_scan += 1

    def _go_on_scanning(self, now: float, until: float) -> bool:
        walk = self.scans.begin(now, next_look_at=self._next_look_at)
        if walk is None:
            return False
        room = self._room
        if room <= 0:
            self.scans.stand_still(now, self._drop_walk)
            return False
        self.scans.go_on()
        apart = self._io.threads > 0
        most = min(ENTRIES_AT_ONCE_APART if apart else ENTRIES_AT_ONCE, room)
        seconds = 1.0 if apart else max(0.002, until - time.perf_counter())
        self._start(lambda: walk.advance(most=most, seconds=seconds), lambda found: self._walked(walk, found, now))
        return True

    def _drop_walk(self) -> None:
        self.scans.drop(close=not self._io.in_flight)

    def _walked(self, walk: Walk, found: list[Found], now: float) -> None:
        if walk is not self.scans.walk:
            walk.close()  # given up while it was at work
            return
        if walk.root is not None and walk.root != self.health.root:
            self._root_seen(walk.root, now)
            if self.scans.walk is not walk:
                walk.close()
                return
        for one in found:
            self._saw(one, now, by_scan=self.scans.finds_missed, is_scan=True)
        if walk.is_complete:
            self.scans.end(walk, now)
            if self.scans.is_full:
                self.tracker.forget_before()

    def _saw(self, found: Found, now: float, *, by_scan: bool, is_scan: bool) -> None:
        path, seen = found
        file = self.tracker.get(path)
        if file is not None:
            if not by_scan:
                file.by_scan = False
            if file.phase is Phase.HANDED_OUT and not is_same(file.stat, seen):
                file.has_changed = True
            if not self.tracker.seen_again(file, seen, now) and not is_scan:
                self.tracker.hasten(file, now)
            return
        asks = self.policy.take is Take.IN_PLACE or not self._is_renamed(seen[0])
        file = self.tracker.add(path, seen, now, by_scan=by_scan, ask=asks)
        if asks:
            self.asking.append(file)
        else:
            self.statistics.files_seen += 1

    def _is_renamed(self, device: int) -> bool:
        """Whether a file is moved into the spool by a rename; else it is copied, and lies here a little longer."""
        mount, spool_mount = self.health.mount, self._spool_mount
        apart = mount is not None and spool_mount is not None and mount.mount_point != spool_mount.mount_point
        return device == self._spool_device and not apart
