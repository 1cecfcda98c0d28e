"""All drop folders together: each gets its turn, the important ones first, and nobody starves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from pathlib import Path

from ingestd.clocks import boottime
from ingestd.fs.mounts import mount_of
from ingestd.fs.places import below, look
from ingestd.lifecycle import SourceStat

from .folder_health import ARM_WAIT
from .folder_views import UNSEEN, FolderViews, depth_of
from .tracker import Phase
from .types import Candidate, InboxError, InboxPolicy, InboxReport, Leave, Look, Take
from .watched_folder import WatchedFolder

WORK_SECONDS = 0.05  # one look, all inboxes together
LEAST_SECONDS = 0.005  # one look, each inbox
QUANTUM = 32  # files of one inbox before the next has its turn
FIRST_COME_EVERY = 4  # so many turns: one is that of the inbox whose oldest file has waited longest
ASK_AT_ONCE = 1_000


class Inboxes:
    """Every inbox, looked at by one thread (the caller's), or those of them that are ours to take from (``watch``).

    ``scan_every`` is how often each is scanned in full whatever the events say; a scan that takes long is followed by
    a longer pause (``scan_schedule``). ``track_most`` bounds the files of each inbox under observation, and so the
    memory; the rest is found when there is room. ``wake`` is called from other threads when a look would find
    something.

    Raises InboxError for inboxes that cannot be used together: one name twice, one folder twice, a folder inside the
    spool.
    """

    def __init__(
        self,
        policies: Sequence[InboxPolicy],
        *,
        spool: Path,
        wake: Callable[[], object],
        scan_every: timedelta = timedelta(seconds=30),
        track_most: int = 20_000,
        is_too_long: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """``is_too_long`` says of a file's path in its folder that nobody can keep it; it is left, and told of."""
        spool_stat, spool_mount = spool.stat(), mount_of(str(spool))
        places = check_places(policies, spool)
        scan_seconds: dict[str, float] = {}

        def folder_of(policy: InboxPolicy) -> WatchedFolder:
            return WatchedFolder(
                policy,
                wake=wake,
                scan_every=scan_every.total_seconds(),
                track_most=track_most,
                spool=spool_stat,
                spool_mount=spool_mount,
                apart=_inside(places[policy.name], [*places.values(), os.path.realpath(spool)]),
                scan_seconds=scan_seconds,
                is_too_long=is_too_long,
            )

        self._folder_of = folder_of
        self._configured = {policy.name: folder_of(policy) for policy in policies}
        self._folders = dict(self._configured)  # those that are watched
        self._turn = 0
        self._views = FolderViews(wake)

    def open(self) -> None:
        """Arm the observers; files that come from now on raise events, the first scan finds those before.

        It waits ``ARM_WAIT`` for all of them together; one that comes later is followed by a scan.
        """
        now = boottime()
        for folder in self._folders.values():
            folder.health.arm(now, wait=max(0.0, now + ARM_WAIT - boottime()))

    @property
    def watched(self) -> frozenset[str]:
        """The names of those that are watched."""
        return frozenset(self._folders)

    def watch(self, names: Collection[str]) -> None:
        """Watch these from now on, and no others; waits for nothing: observers that are armed late have a scan follow.

        Of one that is watched no more, what was handed out may be taken back all the same.
        """
        for name in self._folders.keys() - set(names):
            folder = self._folders.pop(name)
            folder.close(wait=0.0)
            self._configured[name] = self._folder_of(folder.policy)
        new = [name for name in self._configured if name in names and name not in self._folders]
        self._folders = {name: each for name, each in self._configured.items() if name in self._folders or name in new}
        now = boottime()
        for name in new:
            self._folders[name].health.arm(now)

    def take_over(self, other: Inboxes) -> None:
        """Come in the place of another, closed by now: since when its files are as they are need not be seen anew."""
        for name, folder in self._folders.items():
            if name in other._folders:
                folder.tracker.take_over(other._folders[name].tracker)

    def seen(self, now: float) -> dict[str, int]:
        """Say of each inbox how its folder looks from here, as ``FolderViews.seen`` does.

        Those that are not watched are looked at now and then.
        """
        others = [(name, each.policy.path) for name, each in self._configured.items() if name not in self._folders]
        healths = {name: folder.health for name, folder in self._folders.items()}
        watched = {name: UNSEEN if each.alarm else depth_of(each.mount) for name, each in healths.items()}
        return watched | self._views.seen(others, now)

    def close(self) -> None:
        """Stop the observers and let go of everything."""
        self._views.close()
        for folder in self._configured.values():
            folder.close()

    def look(self, *, now: float, room: int) -> Look:
        """Do a bounded piece of work (about 50 ms) and hand out at most ``room`` finished files.

        ``now`` is ``clocks.boottime()``. The higher priority first, and equal ones take turns; but every fourth turn
        is that of the inbox whose oldest file has waited longest.
        """
        folders = sorted(self._folders.values(), key=lambda folder: folder.last_served)
        for place, folder in enumerate(folders):
            # What one inbox leaves of the time is the next one's.
            share = WORK_SECONDS / len(folders) if place < len(folders) - 1 else WORK_SECONDS
            folder.work(now, until=time.perf_counter() + max(LEAST_SECONDS, share), want=room)
        ready = self._serve(now, room)
        asked: list[Candidate] = []
        for folder in folders:
            while folder.asking and len(asked) < ASK_AT_ONCE:
                file = folder.asking.popleft()
                if folder.tracker.get(file.path) is file:
                    asked.append(folder.tracker.candidate(file, now))
        want = room - len(ready)
        times = [folder.next_at(now, want=want) for folder in folders]
        if want > 0 and any(folder.ready for folder in folders):
            times.append(now)
        return Look(ready=tuple(ready), asked=tuple(asked), next_at=min(times, default=None))

    def answer_known(self, asked: Sequence[Candidate], known: Collection[Candidate]) -> None:
        """Answer for all of ``asked``: those in ``known`` are forgotten, the others settle."""
        are_known = frozenset(known)
        for candidate in asked:
            if folder := self._folders.get(candidate.inbox):
                folder.answer(candidate, is_known=candidate in are_known)

    def take_back(self, candidate: Candidate, leave: Leave) -> None:
        """Take back a file that was handed out, with what became of it."""
        if folder := self._folders.get(candidate.inbox):
            folder.take_back(candidate, leave)

    def has(self, inbox: str, relative_path: str, source: SourceStat) -> bool:
        """Whether this very file lies in an inbox that is configured."""
        folder = self._configured.get(inbox)
        try:
            return folder is not None and source.is_of(look(below(str(folder.policy.path), relative_path)))
        except OSError:
            return False

    def observe(self, candidate: Candidate) -> None:
        """Settle a file that lies in the spool already, as if it had been dropped now.

        Of an inbox that is no longer configured, nothing is observed: the next start finds the file again.
        """
        folder = self._folders.get(candidate.inbox)
        if folder is not None and candidate.in_spool:
            folder.observe(candidate)

    def is_observing(self, inbox: str, path: str) -> bool:
        """Whether this file in the spool is under observation."""
        folder = self._folders.get(inbox)
        return folder is not None and folder.tracker.get(path, in_spool=True) is not None

    def tells_gone(self, place: str) -> bool:
        """Whether a file that is not found at this place (or path) is gone for good.

        Not while the inbox that it lies in is missing, empty, mute or another folder than before: a share that is not
        mounted is no deletion.
        """
        answers = (folder.health.tells_gone(place) for folder in self._configured.values())
        return all(answer is not False for answer in answers)

    def take_emptied(self) -> list[tuple[str, list[str]]]:
        """Take, by inbox, which folders lay empty for ``emptied_after`` when last scanned, the deepest first."""
        emptied = [(name, folder.scans.take_emptied()) for name, folder in self._folders.items()]
        return [each for each in emptied if each[1]]

    def folders_leave(self, inbox: str, count: int) -> None:
        """Note that so many folders are about to be removed by us: it is no emptiness to wonder at."""
        if folder := self._folders.get(inbox):
            folder.statistics.folders_taken += count

    def ignore_inodes(self, inbox: str, *, ignored: bool) -> None:
        """Note whether inodes say nothing in this inbox: its report tells it."""
        if folder := self._folders.get(inbox):
            folder.statistics.ignores_inodes = ignored

    def barred(self) -> list[str]:
        """Name the files that cannot be read, or not be moved, by their paths."""
        return [path for folder in self._folders.values() for path in folder.tracker.barred()]

    def is_drained(self, since: float) -> bool:
        """Whether everything that lay in the inboxes when a scan last began, after ``since``, is decided.

        For each inbox: a full scan that began at or after ``since`` is complete without a fault, no hint is waiting,
        and of all files ever found none is settling, handed out, asked about or waiting to become whole. Files that
        cannot be read, and whatever is not a regular file, do not count; nor does an inbox with an alarm, of which
        ``reports`` tells.
        """
        return all(folder.is_drained(since) for folder in self._folders.values())

    def reports(self) -> list[InboxReport]:
        """Say how each inbox is doing, in the order they were given."""
        return [folder.report() for folder in self._folders.values()]

    def is_healthy(self) -> bool:
        """Whether everyone who looks at a folder is alive.

        A folder that is missing, mute or strangely empty is no fault of ours, and a restart would not bring it back:
        it is an ``alarm`` in ``reports``.
        """
        return all(folder.is_healthy() for folder in self._folders.values())

    def _serve(self, now: float, room: int) -> list[Candidate]:
        ready: list[Candidate] = []
        while len(ready) < room:
            waiting = [folder for folder in self._folders.values() if folder.ready]
            if not waiting:
                break
            self._turn += 1
            if self._turn % FIRST_COME_EVERY:
                folder = min(waiting, key=lambda folder: (-folder.policy.priority, folder.last_served))
            else:
                folder = min(waiting, key=lambda folder: folder.ready[0].since)
            folder.last_served = self._turn
            for _ in range(min(QUANTUM, len(folder.ready), room - len(ready))):
                file = folder.ready.popleft()
                if folder.tracker.get(file.path) is file and file.phase is Phase.HANDED_OUT:
                    ready.append(folder.tracker.candidate(file, now))
        return ready


def check_places(policies: Sequence[InboxPolicy], spool: Path) -> dict[str, str]:
    """Resolve every inbox's folder, or raise InboxError."""
    spool_place = os.path.realpath(spool)
    places: dict[str, str] = {}
    for policy in policies:
        place = os.path.realpath(policy.path)
        if policy.name in places:
            raise InboxError(f"two inboxes are named {policy.name!r}")
        if place in places.values():
            raise InboxError(f"two inboxes watch one folder: {policy.path}")
        if place == spool_place or place.startswith(spool_place + "/"):
            raise InboxError(f"the inbox {policy.path} lies inside the spool {spool}")
        if policy.take is Take.MOVE and _is_file(policy.path):
            raise InboxError(f"the inbox {policy.path} is a file, not a folder")
        places[policy.name] = place
    return places


def _is_file(path: Path) -> bool:
    """Whether it surely is one; what cannot be looked at now is that inbox's alarm, and no reason to refuse all."""
    try:
        return path.is_file()
    except OSError:
        return False


def _inside(place: str, others: Sequence[str]) -> frozenset[str]:
    """Those of ``others`` that lie inside ``place``, relative to it."""
    prefix = place.rstrip("/") + "/"
    return frozenset(other[len(prefix) :] for other in others if other.startswith(prefix))
