"""One drop folder: hints and scans put files under observation, settled ones are handed out.

Everything is done in small jobs, one at a time: look at what events named, look again at what is due, go on with the
scan. Between jobs the caller has its turn, and however much lies in the folder, no more than a bounded part of it is
under observation; the scan stands still until there is room again.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ingestd.clocks import boottime
from ingestd.fs.mounts import Mount
from ingestd.lifecycle import SourceStat
from ingestd.workers import Workers

from .file_check import FileCheck, FileChecks
from .folder_health import ARM_WAIT, FolderHealth
from .hints import HintedPaths
from .scan import FileStat, Found, Names, Root, RootGone, Walk, is_same, root_of
from .scan_schedule import ScanSchedule
from .scan_statistics import ScanStatistics
from .tracker import WITH_CALLER, Phase, TrackedFile, Tracker
from .types import Candidate, InboxPolicy, InboxReport, Take

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
        spool_device: int,
        spool_mount: Mount | None,
        forbidden: Collection[tuple[int, int]],
        apart: Collection[str],
    ) -> None:
        self.policy = policy
        self.ready: deque[TrackedFile] = deque()
        self.asking: deque[TrackedFile] = deque()
        self.last_served = 0
        self._root = policy.path.absolute()
        self._root_path = str(self._root)
        self._prefix = self._root_path.rstrip("/") + "/"
        self._wake = wake
        self._spool_device = spool_device
        self._spool_mount = spool_mount
        self._names = Names(policy.ignore, only=policy.only)
        self._health = FolderHealth(policy, self._root_path, wake)
        self._health.look_at_mount()
        self._io = self._new_io()
        self._job_began = 0.0
        self.tracker = Tracker(
            settle=self._settle_seconds(), incomplete_after=policy.incomplete_after.total_seconds(), most=track_most
        )
        self._origins: dict[str, Candidate] = {}  # files in the spool, by their key in the tracker
        self._hinted = HintedPaths(self._names, apart)
        self._hinted_again: set[str] = set()  # changed while they were handed out
        self._next_look_at = 0.0
        self._statistics = ScanStatistics(self._health)
        self._scans = ScanSchedule(
            root_path=self._root_path,
            names=self._names,
            forbidden=forbidden,
            apart=apart,
            every=scan_every,
            unfinished_after=policy.unfinished_after.total_seconds(),
            emptied_after=policy.emptied_after.total_seconds() if policy.emptied_after is not None else None,
            tracker=self.tracker,
            hinted=self._hinted,
            statistics=self._statistics,
        )
        self._now = 0.0
        self._turn = 0

    def open(self, now: float) -> None:
        """Arm the observer."""
        self._health.arm(now, wait=ARM_WAIT)

    def close(self) -> None:
        """Stop everything."""
        self._health.disarm(wait=5)
        self._drop_walk()
        self._io.close()

    @property
    def alarm(self) -> str:
        """What is wrong with the folder, in words."""
        return self._health.alarm

    def tells_gone(self, place: str) -> bool | None:
        """Whether a file missing at this place is gone; None for a path outside, see ``Inboxes.tells_gone``."""
        if not place.startswith(self._prefix):
            return None
        if self.alarm:
            return False
        try:
            found = root_of(self._root_path)
            with os.scandir(self._root_path) as entries:
                is_empty = next(entries, None) is None
        except (RootGone, OSError):
            return False
        return not is_empty and self._health.root in {None, found}

    @property
    def is_working(self) -> bool:
        """Whether whoever looks at the folder is alive."""
        return self._io.is_healthy()

    def work(self, now: float, *, until: float, want: int) -> None:
        """Do jobs until ``until`` (``time.perf_counter``) or until there is nothing to do now."""
        self._now = now
        self._health.answers(boottime() - self._job_began if self._io.in_flight else 0.0, PATIENCE)
        if self._health.watcher is not None:
            mended = self._health.watcher.hints.take_mended()
            self.tracker.mended(mended, now)
            if self._statistics.folders_are_barred:
                for folder in (path for path, is_folder in mended.items() if is_folder):
                    self._hinted.name_folder(folder, deep=True)
            if self._hinted.take_from(self._health.watcher):
                self._scans.want()
        while self._finish():
            if now >= self._next_look_at:
                self._look_at_root(now)
            elif not self._begin_something(now, until, want):
                break
            if time.perf_counter() >= until:
                self._finish()
                break

    def next_at(self, now: float, *, want: int) -> float:
        """Say when there is something to do again."""
        if self._io.in_flight:
            return now + LOOK_EVERY
        times = [self._next_look_at]
        due = self.tracker.next_due() if want > 0 else None
        if due is not None:
            times.append(due)
        if self.tracker.room > 0 and len(self.asking) < ASK_MOST:
            if self._scans.walk is not None or self._hinted.folders or self._hinted.paths:
                times.append(now)
            times.append(self._scans.due_at())
        elif any(path in self.tracker for path in self._hinted.paths):
            times.append(now)
        return min(times)

    def is_settled(self) -> bool:
        """Whether nothing seen so far waits to settle, and no scan is under way."""
        waiting = self.tracker.count(Phase.SETTLING, Phase.BEING_WRITTEN, Phase.ASKED)
        return not waiting and not self.ready and self._scans.walk is None and not self._scans.is_wanted

    def is_drained(self, since: float) -> bool:
        """Whether a full scan begun since then is complete and everything that was found is decided."""
        if self.alarm:
            return True
        watcher, began_at = self._health.watcher, self._statistics.complete_began_at
        return (
            began_at is not None
            and began_at >= since
            and self._scans.walk is None
            and not self._hinted.folders
            and not self._hinted.paths
            and (watcher is None or watcher.hints.is_empty)
            and len(self.tracker) == self.tracker.count(Phase.UNREADABLE)
        )

    def barred(self) -> list[str]:
        """Name the files that cannot be read, or not be moved, by their paths."""
        paths = self.tracker.barred_paths()
        return [str(self._origins[path].path) if path in self._origins else self._prefix + path for path in paths]

    def take_emptied(self) -> list[str]:
        """Take which folders lay empty long enough."""
        emptied, self._scans.emptied = self._scans.emptied, []
        return emptied

    def folders_leave(self, count: int) -> None:
        """Note that so many folders go by our own hand."""
        self._statistics.take_folders(count)

    def ignore_inodes(self, *, ignored: bool) -> None:
        """Note whether inodes say nothing here, to be told."""
        self._statistics.ignores_inodes = ignored

    def scan_now(self) -> None:
        """Ask for a full scan."""
        self._scans.want_at_once()

    def candidate(self, file: TrackedFile, now: float) -> Candidate:
        """Make of a tracked file what the caller gets."""
        device, inode, size_bytes, mtime_ns, ctime_ns = file.stat
        source = SourceStat(device=device, inode=inode, size_bytes=size_bytes, mtime_ns=mtime_ns)
        final = now - file.since >= self.tracker.incomplete_after
        origin = self._origins.get(file.path)
        if origin is not None:
            return replace(origin, source=source, final=origin.final or final, ctime_ns=ctime_ns)
        policy = self.policy
        return Candidate(
            inbox=policy.name,
            relative_path=file.path,
            path=self._root / file.path,
            source=source,
            final=final,
            priority=policy.priority,
            in_place=policy.take is Take.IN_PLACE,
            ctime_ns=ctime_ns,
        )

    # What the caller says of a file it was handed.

    def done(self, candidate: Candidate) -> None:
        """Forget a file whose outcome is committed."""
        file = self._tracked(candidate)
        if file is not None:
            self._forget(file)
            if not candidate.in_spool and not candidate.in_place:
                self._statistics.take_one()
            if file.path in self._hinted_again:
                # The name was used again while we had the file that bore it before.
                self._hinted_again.discard(file.path)
                self._hinted.paths[file.path] = None

    def again(self, candidate: Candidate) -> None:
        """Observe a file anew."""
        file = self._tracked(candidate)
        if file is not None:
            self._hinted_again.discard(file.path)
            self.tracker.start_over(file, file.stat, self._now)
            if not candidate.in_spool:
                self._hinted.paths[file.path] = None
        elif candidate.in_spool:
            self.observe(candidate)

    def incomplete(self, candidate: Candidate) -> None:
        """Wait until the file changes or has not changed for ``incomplete_after``."""
        file = self._tracked(candidate)
        if file is None:
            return
        if file.path in self._hinted_again:
            self.again(candidate)
        else:
            self.tracker.wait_for_change(file)

    def unreadable(self, candidate: Candidate) -> None:
        """Try again later."""
        file = self._tracked(candidate)
        if file is not None:
            self._hinted_again.discard(file.path)
            self.tracker.wait_for_access(file, self._now)

    def observe(self, candidate: Candidate) -> None:
        """Settle a file that lies in the spool."""
        key = _key(candidate)
        source = candidate.source
        seen = (source.device, source.inode, source.size_bytes, source.mtime_ns, candidate.ctime_ns)
        if key not in self.tracker:
            self._origins[key] = candidate
            self.tracker.add(key, seen, self._now)

    def is_observing(self, path: str) -> bool:
        """Whether this file in the spool is under observation."""
        return _spool_key(path) in self._origins

    def answer(self, candidate: Candidate, *, is_known: bool) -> None:
        """Take the ledger's word on a file that it was asked about."""
        file = self._tracked(candidate)
        if file is None or file.phase is not Phase.ASKED:
            return
        if is_known:
            self._forget(file)
            if not candidate.in_place:
                self._statistics.take_one()  # it was copied, and is about to be removed
        else:
            self._statistics.files_seen += 1
            self.tracker.answered_unknown(file, self._now)

    def report(self) -> InboxReport:
        """Say how this inbox is doing."""
        return self._statistics.report(self.tracker, scanning=self._scans.walk is not None and self._scans.is_full)

    # Hints and the folder itself.

    def _look_at_root(self, now: float) -> None:
        self._next_look_at = now + LOOK_EVERY

        def seen(root: Root | RootGone) -> None:
            if isinstance(root, RootGone):
                self._root_gone(root, now)
            else:
                self._root_seen(root, now)
            if self._health.supervise(now):
                self._scans.want()

        self._start(lambda: _root_or_gone(self._root_path), seen)

    def _root_seen(self, root: Root, now: float) -> None:
        if self._health.root_seen(root, now):
            self.tracker.mended(("",), now)
            self._drop_walk()
            self._scans.want_at_once()
            if self._health.is_remote != (self._io.threads > 0):
                self._io.close()
                self._io = self._new_io()
            self.tracker.settle = self._settle_seconds()

    def _root_gone(self, error: RootGone, now: float) -> None:
        self._drop_walk()
        self._health.root_gone(error)
        self._scans.put_off(now + LOOK_EVERY)

    def _new_io(self) -> Workers[Callable[[], None]]:
        # A share that does not answer holds whoever touches it in the kernel, so a thread touches it alone; a local
        # disk is looked at directly, which costs no switch.
        return Workers(f"inbox-{self.policy.name}", wake=self._wake, threads=int(self._health.is_remote))

    def _settle_seconds(self) -> float:
        if self.policy.settle is not None:
            return self.policy.settle.total_seconds()
        return SETTLE_REMOTE if self._health.is_remote else SETTLE_LOCAL

    # Jobs.

    def _start(self, job: Callable[[], Seen], then: Callable[[Seen], None]) -> None:
        assert not self._io.in_flight, "one job at a time"
        self._job_began = boottime()
        self._io.submit(lambda: partial(then, job()))

    def _finish(self) -> bool:
        """Go on with what the job that ran has seen; True when none is running."""
        try:
            for go_on in self._io.collect():
                go_on()
        except RootGone as error:
            self._root_gone(error, self._now)
        return not self._io.in_flight

    def _begin_something(self, now: float, until: float, want: int) -> bool:
        """Start the next job; they take turns, so that none keeps the others waiting."""
        jobs = (
            lambda: self._look_at_hinted(now),
            lambda: self._look_at_due(now, want),
            lambda: self._go_on_scanning(now, until),
        )
        for _ in jobs:
            self._turn = (self._turn + 1) % len(jobs)
            if jobs[self._turn]():
                return True
        return False

    def _look_at_hinted(self, now: float) -> bool:
        if not self._hinted.paths:
            return False
        room, asks = self.tracker.room, len(self.asking) < ASK_MOST
        paths = []
        for path in list(self._hinted.paths)[:HINTED_AT_ONCE]:
            is_new = path not in self.tracker
            if is_new and (room <= 0 or not asks):
                continue
            room -= is_new
            del self._hinted.paths[path]
            paths.append(path)
        if not paths:
            if self.tracker.room <= 0:
                # Nobody can be taken under observation now; the scan will find them.
                self._hinted.paths.clear()
                self._scans.want()
            return False
        root = self._health.root
        checks = FileChecks(self._root_path, device=root.device if root else None)
        self._start(lambda: checks.inside(paths), lambda seen: self._hinted_seen(paths, seen, now))
        return True

    def _hinted_seen(self, paths: list[str], looked: list[tuple[FileCheck, FileStat | None]], now: float) -> None:
        for path, (verdict, seen) in zip(paths, looked, strict=True):
            file = self.tracker.get(path)
            if seen is not None:
                self._saw(Found(path, seen), now, by_scan=False, is_scan=False)
            elif file is not None and file.phase not in WITH_CALLER and verdict is not FileCheck.NO_ACCESS:
                self.tracker.vanished += verdict is FileCheck.GONE
                self._forget(file)
            elif file is None and verdict is FileCheck.NO_ACCESS:
                # Nobody observes it yet, and no event will name it again.
                self._scans.see_again(now)

    def _look_at_due(self, now: float, want: int) -> bool:
        due = self.tracker.take_due(now, min(CHECKS_AT_ONCE, want - len(self.ready)))
        if not due:
            return False
        inside = [file for file in due if file.path not in self._origins]
        spooled = [file for file in due if file.path in self._origins]
        paths, own = [file.path for file in inside], [str(self._origins[file.path].path) for file in spooled]
        checks = FileChecks(self._root_path, ask_kernel=not self._io.threads)
        self._start(
            lambda: [*checks.inside(paths), *map(checks.in_spool, own)],
            lambda seen: self._due_seen(inside + spooled, seen, now),
        )
        return True

    def _due_seen(self, due: list[TrackedFile], looked: list[tuple[FileCheck, FileStat | None]], now: float) -> None:
        for file, (verdict, seen) in zip(due, looked, strict=True):
            if self.tracker.get(file.path) is not file or file.phase in WITH_CALLER:
                continue
            if seen is None:
                if verdict is FileCheck.NO_ACCESS:
                    self.tracker.wait_for_access(file, now)
                else:
                    self.tracker.vanished += verdict is FileCheck.GONE
                    self._forget(file)
            elif not is_same(seen, file.stat):
                self.tracker.start_over(file, seen, now)
            elif verdict is FileCheck.BEING_WRITTEN and now < file.since + self.tracker.incomplete_after:
                self.tracker.wait_for_writer(file, now)
            else:
                file.stat = seen
                self._hand_out(file)

    def _hand_out(self, file: TrackedFile) -> None:
        self.tracker.hand_out(file)
        self.ready.append(file)
        if file.by_scan:
            file.by_scan = False
            self._statistics.found_by_scan += 1

    def _go_on_scanning(self, now: float, until: float) -> bool:
        walk = self._scans.begin(now, with_events=self._health.is_watching)
        if walk is None:
            return False
        room = self.tracker.room
        if room <= 0 or len(self.asking) >= ASK_MOST:
            self._scans.stand_still(now, self._drop_walk)
            return False
        self._scans.go_on()
        apart = self._io.threads > 0
        most = min(ENTRIES_AT_ONCE_APART if apart else ENTRIES_AT_ONCE, room)
        seconds = 1.0 if apart else max(0.002, until - time.perf_counter())
        self._start(lambda: walk.advance(most=most, seconds=seconds), lambda found: self._walked(walk, found, now))
        return True

    def _drop_walk(self) -> None:
        self._scans.drop(close=not self._io.in_flight)

    def _walked(self, walk: Walk, found: list[Found], now: float) -> None:
        if walk is not self._scans.walk:
            walk.close()  # given up while it was at work
            return
        if walk.root is not None and walk.root != self._health.root:
            self._root_seen(walk.root, now)
            if self._scans.walk is not walk:
                walk.close()
                return
        for one in found:
            self._saw(one, now, by_scan=self._scans.finds_missed, is_scan=True)
        if walk.is_complete:
            self._scans.end(walk, now)
            if self._scans.is_full:
                self.tracker.forget_before()

    def _saw(self, found: Found, now: float, *, by_scan: bool, is_scan: bool) -> None:
        path, seen = found
        file = self.tracker.get(path)
        if file is not None:
            if not by_scan:
                file.by_scan = False
            if file.phase is Phase.HANDED_OUT and not is_same(file.stat, seen):
                self._hinted_again.add(path)
            if not self.tracker.seen_again(file, seen, now) and not is_scan:
                self.tracker.hasten(file, now)
            return
        asks = self.policy.take is Take.IN_PLACE or not self._is_renamed(seen[0])
        file = self.tracker.add(path, seen, now, by_scan=by_scan, ask=asks)
        if asks:
            self.asking.append(file)
        else:
            self._statistics.files_seen += 1

    def _is_renamed(self, device: int) -> bool:
        """Whether a file is moved into the spool by a rename; else it is copied, and lies here a little longer."""
        mount, spool_mount = self._health.mount, self._spool_mount
        apart = mount is not None and spool_mount is not None and mount.mount_point != spool_mount.mount_point
        return device == self._spool_device and not apart

    def _tracked(self, candidate: Candidate) -> TrackedFile | None:
        return self.tracker.get(_key(candidate) if candidate.in_spool else candidate.relative_path)

    def _forget(self, file: TrackedFile) -> None:
        self.tracker.forget(file)
        self._origins.pop(file.path, None)


def _key(candidate: Candidate) -> str:
    return _spool_key(candidate.relative_path)


def _spool_key(path: str) -> str:
    """Name a file in the spool for the tracker, where no path of the inbox can collide with it."""
    return "\0" + path


def _root_or_gone(path: str) -> Root | RootGone:
    try:
        return root_of(path)
    except RootGone as error:
        return error
