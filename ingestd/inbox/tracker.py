"""When a file is finished: what was seen of it, when, and what that makes it.

Theory of operation. Nobody tells us that the last byte of a file was written, and no single sign can be relied on:

- The *size* stands still while a writer waits for its network, and is final at once where space is reserved first.
- The *mtime* is what the writer says it is: copiers set it to that of the original, in any year.
- The *ctime* cannot be set back. But a new owner, a link, a rename, our own included, give a new one too, and on some
  shares it never stands still. So it starts nothing anew; it is kept, and proves later that bytes are those read.
- *Device and inode* tell that another file came under the name, of the same length and with the old mtime.
- A *read lease* is refused while anybody on this machine has the file open for writing. That "yes" is certain; a "no"
  is not: of writers on other hosts, and of other owners' files, the kernel says nothing. Only local disks are asked,
  since the file has to be opened for it.
- *Quiet*: device, inode, size and mtime have been as they are for ``settle`` (2 s; 30 s on a network mount, whose
  client may show old attributes for a while), by our own boot clock since we first saw them so. Where a person said
  which files are to go (``by_ctime``), a ctime on a local disk tells of the time before: a file that has lain still for
  ``settle`` already is quiet when it is first seen.

Quiet, and without a writer that the kernel knows of, a file is handed out. That is still a guess, and it may be wrong
without harm: the reader finds where the file ends, it is taken only if it still is what was read, and its digest is
compared when it is sent. Too early costs a second reading, too late costs time, neither costs an image. One that is
short, empty or zeros waits for a change; unchanged for ``incomplete_after`` it is handed out as ``final``. So is one
whose writer holds it open that long without a change: a modality that never closes what it wrote loses nothing.

We learn of files from events, which are hints, and from scans, which are the truth::

    inotify      does not name what lay there when it was armed, what comes into a new folder before that is watched
                 too, what is written by other hosts or below FUSE, folders beyond fs.inotify.max_user_watches or that
                 we may not list; and its queue overflows, which it tells
    watchdog     passes over folders that it could not watch; our subclasses count them (see ``watch``)
    poll         on network mounts there are no events: a file is seen by the next scan
    scan         misses what comes while it runs behind its back, and what a failing disk hides: the next one sees both

A full scan runs at the start, when events were lost or a fault hid something, when the folder is another than before,
and by the timer in any case, which bounds what a lost event can cost. What it finds although events are on is counted
(``found_by_scan``). Files that are tracked already are passed over; each is checked again when it is due::

    seen --> SETTLING --- quiet ---> check --> HANDED_OUT --- done ---> forgotten
     |        ^  ^  ^                 | | |        | | '-- again: SETTLING
     |        |  |  '---- changed ----' | |        | '-- cannot be read: UNREADABLE, tried ever later
     |        |  |                      | |        '-- short: INCOMPLETE, until it changes, goes or is final
     |        |  |  has a writer: BEING_WRITTEN '-- cannot be opened: UNREADABLE
     |        |  '-- the ledger does not know it
     '--> ASKED --- the ledger knows it ---> forgotten    (in_place, or on another filesystem than the spool)
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import IntEnum

from ingestd.clocks import utc_now
from ingestd.lifecycle import Backoff, SourceStat

from .types import Candidate, InboxPolicy, Take
from .walk import FileStat, is_same

# Between two tries at a file that cannot be opened or moved: most such faults pass at once, and whoever mended
# a folder where no events tell of it stands waiting.
RETRY = Backoff(base=timedelta(seconds=1), cap=timedelta(seconds=60))
WRITER_RETRY_MOST = 30.0  # seconds between two looks at a file that a writer keeps open, at most
LOOK_EVERY = 30.0  # seconds between two looks at a file that waits for a change: no event tells that it went


class Phase(IntEnum):
    """Where a file is."""

    ASKED = 0  # the ledger is asked whether it knows the file
    SETTLING = 1
    BEING_WRITTEN = 2  # unchanged for long enough, but a writer has it open
    HANDED_OUT = 3  # handed out, not yet decided
    INCOMPLETE = 4  # the reader found it short, empty or all zeros
    UNREADABLE = 5  # cannot be opened


# The caller has its say next: what is seen meanwhile changes nothing.
WITH_CALLER = frozenset({Phase.ASKED, Phase.HANDED_OUT})
_SPOOL = "\0"  # before a path in the spool, so that none of the inbox collides with it
_DUE_SOON = frozenset({Phase.ASKED, Phase.SETTLING, Phase.BEING_WRITTEN})


@dataclass(slots=True, eq=False)
class TrackedFile:
    """What we know of one file."""

    path: str
    stat: FileStat
    since: float  # when we first saw it as it is; ``by_ctime``: how long it has surely been so, at most ``settle``
    due: float
    by_scan: bool  # only the timer's scan found it so far
    origin: Candidate | None  # what it was when it came into the spool, if it lies there
    phase: Phase = Phase.SETTLING
    has_changed: bool = False  # it was seen as another while it was handed out
    barred: bool = False  # the last try to open it, to read it or to move it failed
    tries: int = 0
    hastened: int = 0  # how many of these tries a new ctime brought about


class Tracker:
    """All files of one inbox, at most ``most`` of them beside as many that wait for a change."""

    def __init__(self, policy: InboxPolicy, *, settle: float, most: int) -> None:
        self.settle = settle
        self.by_ctime = False  # whether a file's ctime tells how long it has been quiet
        self.incomplete_after = policy.incomplete_after.total_seconds()
        self.most = most
        self.vanished = 0
        self.given_up = 0  # files let go because too many wait; a later scan finds them again
        self._policy = policy
        self._root = str(policy.path.absolute()).rstrip("/")
        self._by_path: dict[str, TrackedFile] = {}
        self._phases = dict.fromkeys(Phase, 0)  # how many files are in each
        self._due: list[tuple[float, int, TrackedFile]] = []
        self._ticket = 0
        self._before: dict[str, tuple[FileStat, float]] = {}  # what another saw, and since when

    def __len__(self) -> int:
        return len(self._by_path)

    def __contains__(self, path: str) -> bool:
        return path in self._by_path

    def get(self, path: str, *, in_spool: bool = False) -> TrackedFile | None:
        """Find what is tracked at a path relative to the inbox, or to the spool."""
        return self._by_path.get(_SPOOL + path if in_spool else path)

    def candidate(self, file: TrackedFile, now: float) -> Candidate:
        """Say of a file what the caller is told."""
        device, inode, size_bytes, mtime_ns, ctime_ns = file.stat
        source = SourceStat(device=device, inode=inode, size_bytes=size_bytes, mtime_ns=mtime_ns)
        final = now - file.since >= self.incomplete_after
        origin, policy = file.origin, self._policy
        if origin is not None:
            return replace(origin, source=source, final=origin.final or final, ctime_ns=ctime_ns)
        return Candidate(
            inbox=policy.name,
            relative_path=file.path,
            path=f"{self._root}/{file.path}",
            source=source,
            final=final,
            priority=policy.priority,
            in_place=policy.take is Take.IN_PLACE,
            ctime_ns=ctime_ns,
        )

    def count(self, *phases: Phase) -> int:
        return sum(self._phases[phase] for phase in phases)

    def oldest_since(self) -> float | None:
        """Say since when the file that waits longest lies here unchanged; None when nothing waits."""
        return min((file.since for file in self._by_path.values()), default=None)

    def barred(self) -> list[str]:
        """Name the files that could not be opened, read or moved when that was last tried, whatever they wait for."""
        barred = [file for file in self._by_path.values() if file.barred]
        return [file.origin.path if file.origin is not None else f"{self._root}/{file.path}" for file in barred]

    @property
    def room(self) -> int:
        """How many more files may be watched."""
        waiting = self._phases[Phase.INCOMPLETE] + self._phases[Phase.UNREADABLE]
        return self.most - (len(self._by_path) - waiting)

    def need_no_look(self, path: str) -> bool:
        """Whether a scan may pass over this path: it is watched, and looked at again when it is due.

        Not so one that is handed out, whose name may be another file's by now, nor one that is left alone for long.
        """
        file = self._by_path.get(path)
        return file is not None and file.phase in _DUE_SOON

    def add(
        self,
        path: str,
        seen: FileStat,
        now: float,
        *,
        by_scan: bool = False,
        ask: bool = False,
        origin: Candidate | None = None,
    ) -> TrackedFile:
        """Track a file that was not tracked so far; ``ask``: it settles once the ledger does not know it."""
        file = self._by_path[path] = TrackedFile(path, seen, since=now, due=now, by_scan=by_scan, origin=origin)
        known = self._before.pop(path, None)
        if known is not None and known[0] == seen:
            file.since = known[1]
        elif self.by_ctime:
            file.since -= min(self.settle, max(0.0, utc_now().timestamp() - seen[4] / 1e9))
        if ask:
            file.phase = Phase.ASKED
            self._phases[Phase.ASKED] += 1
        else:
            self._phases[Phase.SETTLING] += 1
            self._schedule(file, max(file.since + self.settle, now))
        return file

    def add_spooled(self, candidate: Candidate, now: float) -> None:
        """Track a file that lies in the spool, unless it is tracked already."""
        path, source = _SPOOL + candidate.relative_path, candidate.source
        if path not in self._by_path:
            seen = (source.device, source.inode, source.size_bytes, source.mtime_ns, candidate.ctime_ns)
            self.add(path, seen, now, origin=candidate)

    def take_over(self, other: Tracker) -> None:
        """Go by what another, in whose place we come, knows of files that we find as it saw them last."""
        self._before = other._before | {path: (file.stat, file.since) for path, file in other._by_path.items()}

    def forget_before(self) -> None:
        """Let go of what another knew: all that is still there was seen."""
        self._before = {}

    def start_over(self, file: TrackedFile, seen: FileStat, now: float) -> None:
        """Settle anew: the file is another than the one we saw."""
        file.stat = seen
        file.since = now
        file.barred = file.has_changed = False
        file.tries = file.hastened = 0
        self._move(file, Phase.SETTLING, now + self.settle)

    def seen_again(self, file: TrackedFile, seen: FileStat, now: float) -> bool:
        """Compare with what was seen before; True when the file changed and settles anew.

        One that is handed out is left to its reader, who will see the change.
        """
        if file.phase in WITH_CALLER:
            return False
        if is_same(file.stat, seen):
            is_touched = file.stat != seen
            file.stat = seen
            if is_touched and file.phase is Phase.UNREADABLE and 2 * file.hastened < file.tries:
                # Only its ctime is another: somebody gave it other rights, or another owner. Or we did, when we moved
                # it and had to give it back; so every other try waits for its time.
                file.hastened += 1
                self._schedule(file, now)
            return False
        self.start_over(file, seen, now)
        return True

    def take_due(self, now: float, most: int) -> list[TrackedFile]:
        """Take up to ``most`` files that are due; each must be scheduled again, handed out or forgotten."""
        taken: list[TrackedFile] = []
        while self._due and len(taken) < most and self._due[0][0] <= now:
            due, _ticket, file = heapq.heappop(self._due)
            if self._is_current(due, file):
                taken.append(file)
        return taken

    def next_due(self) -> float | None:
        """Say when the next file is due."""
        while self._due:
            due, _ticket, file = self._due[0]
            if self._is_current(due, file):
                return due
            heapq.heappop(self._due)
        return None

    def wait_for_writer(self, file: TrackedFile, now: float) -> None:
        """Wait for a writer to close the file."""
        file.tries += 1
        wait = min(WRITER_RETRY_MOST, self.settle * 2 ** min(file.tries - 1, 10))
        due = min(now + max(wait, 0.05), max(file.since + self.incomplete_after, now + 0.05))
        self._move(file, Phase.BEING_WRITTEN, due)

    def hasten(self, file: TrackedFile, now: float) -> None:
        """Look at once whether the writer is gone: an event named a file that waits for that."""
        if file.phase is Phase.BEING_WRITTEN:
            file.tries = 0
            self._schedule(file, max(now, file.since + self.settle))

    def mended(self, paths: Collection[str], now: float) -> None:
        """Try at once what is barred at one of these paths or below it ("": all): it may have other rights by now."""
        if not paths:
            return
        for file in self._by_path.values():
            if file.barred and any(above in paths for above in _path_and_above(file.path)):
                file.tries = file.hastened = 0
                if file.phase is Phase.UNREADABLE:
                    self._schedule(file, now)

    def answered_unknown(self, file: TrackedFile, now: float) -> None:
        """Settle a file that the ledger does not know."""
        self._move(file, Phase.SETTLING, max(file.since + self.settle, now))

    def hand_out(self, file: TrackedFile) -> None:
        """Note that the caller has it now."""
        self._phases[file.phase] -= 1
        self._phases[Phase.HANDED_OUT] += 1
        file.phase = Phase.HANDED_OUT

    def wait_for_change(self, file: TrackedFile, now: float) -> None:
        """Wait until the file changes, or goes, or has not changed for ``incomplete_after``."""
        if file.phase is not Phase.INCOMPLETE and self._phases[Phase.INCOMPLETE] >= self.most:
            self._give_up(file)
            return
        self._move(file, Phase.INCOMPLETE, min(now + LOOK_EVERY, file.since + self.incomplete_after))

    def wait_for_access(self, file: TrackedFile, now: float) -> None:
        """Try again later, and ever later: the file cannot be opened or read."""
        if file.phase is not Phase.UNREADABLE and self._phases[Phase.UNREADABLE] >= self.most:
            self._give_up(file)
            return
        file.barred = True
        file.has_changed = False
        file.tries += 1
        self._move(file, Phase.UNREADABLE, now + RETRY.wait(file.tries, jitter=0.0).total_seconds())

    def _give_up(self, file: TrackedFile) -> None:
        """Stop watching: there are too many; a later scan finds the file again."""
        self.given_up += 1
        self.forget(file)

    def forget(self, file: TrackedFile) -> None:
        """Stop watching a file that is decided or gone."""
        if self._by_path.get(file.path) is file:
            del self._by_path[file.path]
            self._phases[file.phase] -= 1

    def _move(self, file: TrackedFile, phase: Phase, due: float) -> None:
        self._phases[file.phase] -= 1
        self._phases[phase] += 1
        file.phase = phase
        self._schedule(file, due)

    def _schedule(self, file: TrackedFile, due: float) -> None:
        file.due = due
        self._ticket += 1
        heapq.heappush(self._due, (due, self._ticket, file))
        if len(self._due) > 4 * len(self._by_path) + 1_000:
            # Files that change all the time leave stale entries behind.
            self._due = [entry for entry in self._due if self._is_current(entry[0], entry[2])]
            heapq.heapify(self._due)

    def _is_current(self, due: float, file: TrackedFile) -> bool:
        return file.due == due and self._by_path.get(file.path) is file and file.phase is not Phase.HANDED_OUT


def _path_and_above(path: str) -> Iterator[str]:
    """Name a path, the folders that it lies in, and the inbox itself ("")."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""
