"""Which job goes to which child, and which makes way: a large or slow file holds up no other, nor is it forgotten.

What a job costs is known only once it was done, so three things are done about it:

- **Urgent before others, small before large.** Jobs wait in classes by their priority and the size of their file,
  files up to 1 MB in one, and beyond it each doubling in another; within a class, first come is first served. Every
  fourth pick takes whoever has waited longest, of whatever class, so a large file is read under any load.
- **Little ahead.** A child is given more than one job, so that it is never idle while its answer travels (``has_room``
  bounds their number and bytes), but none behind a job that has proved slow.
- **Turns.** A job has its child for a turn of two seconds. Where that is over while others stand behind it, or wait
  while all children are at slow jobs, it is put aside: its child is ended, without blame, and the job waits in the slow
  lane. There it begins anew with a turn twice as long each time, so it is done some day or meets the limits on a job.
  The slow lane never has the last child, and the children it may have get no other jobs until it has come to its turn;
  a lone child takes from it while nothing else waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from ingestd.reader.child_process import ChildProcess, PendingJob

# Files up to 1 MB are alike; beyond, each doubling is a class of its own.
_SMALL_BITS = 20
_FIRST_COME_EVERY = 4


class Schedule:
    """The jobs that no child has yet. Not thread-safe: the pool's thread owns it."""

    def __init__(self, processes: int) -> None:
        self._slow_children_most = max(1, processes - 1)
        self._classes: dict[tuple[int, int], deque[PendingJob]] = {}
        self._slow: deque[PendingJob] = deque()
        self._picks = 0

    def __bool__(self) -> bool:
        return bool(self._classes or self._slow)

    def add(self, jobs: Iterable[PendingJob]) -> None:
        for job in jobs:
            self._classes.setdefault(_class_of(job), deque()).append(job)

    def put_back(self, jobs: Iterable[PendingJob]) -> None:
        """Put jobs that were taken out in front again, in their order; those that have been slow, in the slow lane."""
        for job in reversed(list(jobs)):
            if job.turns:
                self._slow.append(job)
            else:
                self._classes.setdefault(_class_of(job), deque()).appendleft(job)

    def take(self) -> PendingJob:
        """Take the next one out that has not been slow."""
        self._picks += 1
        if self._picks % _FIRST_COME_EVERY:
            which = min(self._classes)
        else:
            which = min(self._classes, key=lambda each: self._classes[each][0].serial)
        job = self._classes[which].popleft()
        if not self._classes[which]:
            del self._classes[which]
        return job

    def hand_out(self, children: Sequence[ChildProcess]) -> set[ChildProcess]:
        """Give waiting jobs to the children with room, the one with the least ahead first; say who was given any."""
        given: set[ChildProcess] = set()
        quick = sorted((child for child in children if not child.is_slow), key=lambda each: len(each.jobs))
        kept_for_slow = quick[: max(0, min(len(self._slow), len(quick) - 1))]
        while self._classes:
            free = [child for child in children if child not in kept_for_slow and child.has_room()]
            if not free:
                break
            child = min(free, key=lambda each: (each.ahead_bytes, len(each.jobs)))
            child.give(self.take())
            given.add(child)
        at_slow = sum(child.is_slow for child in children)
        for child in children:
            if not self._slow or at_slow >= self._slow_children_most:
                break
            if not child.jobs:
                child.give(self._slow.popleft())
                given.add(child)
                at_slow += 1
        return given

    def to_make_way(self, children: Sequence[ChildProcess], now: float) -> list[ChildProcess]:
        """Say which children are to be taken from a job that has had its turn and others wait for; the newest first."""
        chosen: list[ChildProcess] = []
        others_wait = bool(self._classes) and all(child.is_slow for child in children)
        over = [child for child in children if child.turn_is_over(now)]
        for child in sorted(over, key=lambda each: each.jobs[0].turns):
            if len(child.jobs) > 1 or others_wait:
                chosen.append(child)
                others_wait = False  # the child that takes its place is at no slow job
        return chosen


def _class_of(job: PendingJob) -> tuple[int, int]:
    return -job.priority, max(_SMALL_BITS, job.size_bytes.bit_length())
