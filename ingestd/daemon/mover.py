"""Moves files into the spool, or aside, on threads of its own, so that a slow disk or a long copy never stops the loop.

Each kind of work has a lane, ``Workers`` with one thread, so that none waits for another: renames, copies from another
filesystem (a 4 GB copy does not hold up a thousand renames), and what touches inboxes on other filesystems (a share
that hangs holds up nothing but itself).

Files are grouped: a folder is made durable once for all that lie in a lane by the time that it comes to them, at most
256. So whoever submits leaves files in the lane's line and as many jobs as they can need; a job takes what is there,
which may be more than came with it, and one that finds nothing left has nothing to do.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import structlog

from ingestd.inbox import Brought, Candidate, Expect, NotTaken, Removal, Spool, WhyNot, remove_folders
from ingestd.workers import Workers, start_all

_GROUP_MOST = 256
Context = TypeVar("Context")


# With the file's name in the spool.
Item: TypeAlias = tuple[Context, Candidate, Expect, str]
Outcome: TypeAlias = tuple[Context, Brought]


class _Lane(Generic[Context]):
    def __init__(self, name: str, spool: Spool, wake: Callable[[], object]) -> None:
        self._spool = spool
        self._line: deque[tuple[Item[Context], bool]] = deque()
        self.workers = Workers[list[Outcome[Context]]](name, wake=wake)

    def put(self, items: Sequence[Item[Context]], *, aside: bool) -> None:
        self._line.extend((item, aside) for item in items)
        for _ in range(0, len(items), _GROUP_MOST):
            self.workers.submit(self._carry_out_group)

    def _carry_out_group(self) -> list[Outcome[Context]]:
        group: list[tuple[Item[Context], bool]] = []
        while self._line and len(group) < _GROUP_MOST:
            group.append(self._line.popleft())
        outcomes: list[Outcome[Context]] = []
        for aside in (False, True):
            if items := [item for item, goes_aside in group if goes_aside is aside]:
                outcomes += self._carry_out(items, aside=aside)
        return outcomes

    def _carry_out(self, items: Sequence[Item[Context]], *, aside: bool) -> Iterator[Outcome[Context]]:
        carry = self._spool.set_aside if aside else self._spool.take_in
        outcomes: Sequence[Brought]
        try:
            outcomes = carry([(candidate, expect, target) for _, candidate, expect, target in items])
        except Exception as error:  # noqa: BLE001 - the lane must outlive one bad group; the files lie where they lay
            structlog.get_logger().error("inbox.move_failed", error=type(error).__name__, files=len(items))
            note = f"moving it into the spool failed ({type(error).__name__}); it is tried again"
            outcomes = [NotTaken(candidate=candidate, why=WhyNot.ERROR, note=note) for _, candidate, _, _ in items]
        return ((context, outcome) for (context, *_), outcome in zip(items, outcomes, strict=True))


class Mover(Generic[Context]):
    """Takes files in and sets files aside; each file comes back once, with the context it was given."""

    def __init__(self, spool: Spool, *, wake: Callable[[], object]) -> None:
        """Start the lanes; raises NoThread."""
        self._spool = spool
        self._device = spool.path.stat().st_dev
        self._renames: _Lane[Context] = _Lane("mover", spool, wake)
        self._copies: _Lane[Context] = _Lane("copier", spool, wake)
        self._removals = Workers[tuple[int, Removal] | Path]("remover", wake=wake)
        self._beside_of: Counter[Path] = Counter()  # by the root of the inbox
        self._lanes = (self._renames.workers, self._copies.workers, self._removals)
        start_all(*self._lanes)

    def take_in(self, items: Sequence[Item[Context]]) -> None:
        """Bring whole files into the spool."""
        self._put(items, aside=False)

    def set_aside(self, items: Sequence[Item[Context]]) -> None:
        """Bring refused files into ``rejected/``."""
        self._put(items, aside=True)

    def collect(self) -> list[Outcome[Context]]:
        """Take what is done; never blocks."""
        groups = self._renames.workers.collect() + self._copies.workers.collect()
        return [outcome for group in groups for outcome in group]

    def recover_removals(self, root: Path, unremoved: Sequence[tuple[Expect, str]]) -> None:
        """Settle the removals of this inbox that the last run did not finish."""
        self._beside(root, lambda: self._spool.recover_removals(root, unremoved))

    def remove_folders(self, inbox: str, root: Path, folders: Sequence[str]) -> None:
        """Remove emptied folders of an inbox, those that are empty still."""

        def remove() -> None:
            removed = remove_folders(root, folders)
            if removed:
                structlog.get_logger().info("inbox.folders_removed", inbox=inbox, count=removed)

        self._beside(root, remove)

    def look_aside(self, root: Path) -> None:
        """See whether somebody else still has the name of our folder in this inbox."""
        self._beside(root, lambda: self._spool.aside.look(str(root)))

    def remove_source(self, file_id: int, root: Path, relative_path: str, read: Expect, copy: str) -> None:
        """Remove a copied source from its inbox, after a last look."""
        self._remove_row(
            file_id,
            lambda: self._spool.remove_source(root, relative_path, read.source, read=read, copy=copy),
        )

    def is_squatted(self, root: Path) -> bool:
        """Say whether somebody else has the name of our folder in this inbox, as far as was seen."""
        return self._spool.aside.is_squatted(str(root))

    def collect_removals(self) -> list[tuple[int, Removal]]:
        """Take the removals that are done, by row; never blocks."""
        removed = []
        for done in self._removals.collect():
            if isinstance(done, Path):
                self._beside_of[done] -= 1
            else:
                removed.append(done)
        return removed

    def is_busy_in(self, root: Path) -> bool:
        """Whether something is under way in an inbox beside the removal of sources."""
        return self._beside_of[root] > 0

    def is_healthy(self) -> bool:
        """Whether all lanes live."""
        return all(workers.is_healthy() for workers in self._lanes)

    def close(self, timeout: float) -> None:
        """Finish what is at hand, at most ``timeout`` seconds a lane; what is cut off is adopted at the next start."""
        for workers in self._lanes:
            workers.close(timeout)

    def _put(self, items: Sequence[Item[Context]], *, aside: bool) -> None:
        renamed: list[Item[Context]] = []
        copied: list[Item[Context]] = []
        for item in items:
            (renamed if item[1].source.device == self._device else copied).append(item)
        # All at once: each job wakes its lane's thread, which wants the interpreter at once.
        self._renames.put(renamed, aside=aside)
        self._copies.put(copied, aside=aside)

    def _remove_row(self, file_id: int, remove: Callable[[], Removal]) -> None:
        def job() -> tuple[int, Removal]:
            # Also where it fails: a row that never came back would never be tried again.
            return file_id, _tried(remove) or Removal.WAITS

        self._removals.submit(job)

    def _beside(self, root: Path, job: Callable[[], object]) -> None:
        def tried() -> Path:
            _tried(job)
            return root

        self._beside_of[root] += 1
        self._removals.submit(tried)


Result = TypeVar("Result")


def _tried(job: Callable[[], Result]) -> Result | None:
    try:
        return job()
    except Exception as error:  # noqa: BLE001 - the source stays where it is, and is tried again
        structlog.get_logger().error("inbox.removal_failed", error=type(error).__name__)
        return None
