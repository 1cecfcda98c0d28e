"""Moves files into the spool, or aside, on threads of its own, so that a slow disk or a long copy never stops the loop.

Renames are grouped: a folder is made durable once for all files that came in together. Files from another filesystem
are copied in a second lane, so that a 4 GB copy does not hold up a thousand renames.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import structlog

from ingestd import threads
from ingestd.inbox import Brought, Candidate, Expect, NotTaken, Removal, Spool, WhyNot

_GROUP_MOST = 256
Context = TypeVar("Context")


Item: TypeAlias = tuple[Context, Candidate, Expect]
Outcome: TypeAlias = tuple[Context, Brought]


class _Order(NamedTuple, Generic[Context]):
    """Files that came together and go the same way."""

    items: Sequence[Item[Context]]
    aside: bool


class _Lane(Generic[Context]):
    def __init__(self, name: str, spool: Spool, done: Callable[[list[Outcome[Context]]], None]) -> None:
        self._spool = spool
        self._done = done
        self._orders: SimpleQueue[_Order[Context] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        threads.start(self.thread)

    def put(self, order: _Order[Context] | None) -> None:
        self._orders.put(order)

    def _work(self) -> None:
        ended = False
        while not ended:
            orders, ended = self._wait_for_orders()
            for aside in (False, True):
                items = [item for order in orders if order.aside is aside for item in order.items]
                for start in range(0, len(items), _GROUP_MOST):
                    self._carry_out(items[start : start + _GROUP_MOST], aside=aside)

    def _wait_for_orders(self) -> tuple[list[_Order[Context]], bool]:
        """Take every order that is there, at least one; True when they were the last."""
        orders: list[_Order[Context]] = []
        while True:
            try:
                order = self._orders.get(block=not orders)
            except Empty:
                return orders, False
            if order is None:
                return orders, True
            orders.append(order)

    def _carry_out(self, items: Sequence[Item[Context]], *, aside: bool) -> None:
        carry = self._spool.set_aside if aside else self._spool.take_in
        outcomes: Sequence[Brought]
        try:
            outcomes = carry([(candidate, expect) for _, candidate, expect in items])
        except Exception as error:  # noqa: BLE001 - the lane must outlive one bad group; the files lie where they lay
            structlog.get_logger().error("inbox.move_failed", error=type(error).__name__, files=len(items))
            note = f"moving it into the spool failed ({type(error).__name__}); it is tried again"
            outcomes = [NotTaken(candidate=candidate, why=WhyNot.ERROR, note=note) for _, candidate, _ in items]
        self._done([(context, outcome) for (context, _, _), outcome in zip(items, outcomes, strict=True)])


class _Removals:
    """The lane that touches inboxes on other filesystems; a share that hangs holds up nothing but itself."""

    def __init__(self, spool: Spool, wake: Callable[[], object]) -> None:
        self._spool = spool
        self._wake = wake
        self._jobs: SimpleQueue[Callable[[Spool], object] | None] = SimpleQueue()
        self._finished: SimpleQueue[tuple[int, Removal]] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="remover", daemon=True)
        threads.start(self.thread)

    def put(self, job: Callable[[Spool], object] | None) -> None:
        self._jobs.put(job)

    def put_row(self, entry_id: int, remove: Callable[[Spool], Removal]) -> None:
        def job(spool: Spool) -> None:
            removal = Removal.WAITS  # also where it fails: a row that never came back would never be tried again
            try:
                removal = remove(spool)
            finally:
                self._finished.put((entry_id, removal))

        self._jobs.put(job)

    def collect(self) -> list[tuple[int, Removal]]:
        done: list[tuple[int, Removal]] = []
        while True:
            try:
                done.append(self._finished.get_nowait())
            except Empty:
                return done

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job(self._spool)
            except Exception as error:  # noqa: BLE001 - the source stays where it is, and is tried again
                structlog.get_logger().error("inbox.removal_failed", error=type(error).__name__)
            self._wake()


class Mover(Generic[Context]):
    """Takes files in and sets files aside; each file comes back once, with the context it was given."""

    def __init__(self, spool: Spool, *, wake: Callable[[], object]) -> None:
        """Start both lanes."""
        self._wake = wake
        self._spool = spool
        self._device = spool.path.stat().st_dev
        self._finished: SimpleQueue[list[Outcome[Context]]] = SimpleQueue()
        self._renames: _Lane[Context] = _Lane("mover", spool, self._done)
        self._copies: _Lane[Context] = _Lane("copier", spool, self._done)
        self._removals = _Removals(spool, wake)
        self.in_flight = 0

    def take_in(self, items: Sequence[Item[Context]]) -> None:
        """Bring whole files into the spool."""
        self._put(items, aside=False)

    def set_aside(self, items: Sequence[Item[Context]]) -> None:
        """Bring refused files into ``rejected/``."""
        self._put(items, aside=True)

    def collect(self) -> list[Outcome[Context]]:
        """Take what is done; never blocks."""
        done: list[Outcome[Context]] = []
        while True:
            try:
                done += self._finished.get_nowait()
            except Empty:
                self.in_flight -= len(done)
                return done

    def recover_removals(self, root: Path, unremoved: Sequence[tuple[Expect, str]]) -> None:
        """Settle the removals of this inbox that the last run did not finish."""
        self._removals.put(lambda spool: spool.recover_removals(root, unremoved))

    def remove_folders(self, inbox: str, root: Path, folders: Sequence[str]) -> None:
        """Remove emptied folders of an inbox, those that are empty still."""

        def remove(spool: Spool) -> None:
            removed = spool.remove_folders(root, folders)
            if removed:
                structlog.get_logger().info("inbox.folders_removed", inbox=inbox, count=removed)

        self._removals.put(remove)

    def look_aside(self, root: Path) -> None:
        """See whether somebody else still has the name of our folder in this inbox."""
        self._removals.put(lambda spool: spool.look_aside(root))

    def remove_source(self, entry_id: int, root: Path, relative_path: str, read: Expect, copy: str) -> None:
        """Remove a copied source from its inbox, after a last look."""
        self._removals.put_row(
            entry_id,
            lambda spool: spool.remove_source(root, relative_path, read.source, read=read, copy=copy),
        )

    def is_squatted(self, root: Path) -> bool:
        """Say whether somebody else has the name of our folder in this inbox, as far as was seen."""
        return self._spool.is_squatted(root)

    def collect_removals(self) -> list[tuple[int, Removal]]:
        """Take the removals that are done, by row; never blocks."""
        return self._removals.collect()

    def is_healthy(self) -> bool:
        """Whether all lanes live."""
        return all(lane.thread.is_alive() for lane in (self._renames, self._copies, self._removals))

    def close(self, timeout: float) -> None:
        """Finish the orders at hand, at most ``timeout`` seconds; what is cut off is adopted at the next start."""
        self._removals.put(None)
        for lane in (self._renames, self._copies):
            lane.put(None)
        for thread in (self._renames.thread, self._copies.thread, self._removals.thread):
            thread.join(timeout)

    def _put(self, items: Sequence[Item[Context]], *, aside: bool) -> None:
        self.in_flight += len(items)
        renamed: list[Item[Context]] = []
        copied: list[Item[Context]] = []
        for item in items:
            (renamed if item[1].source.device == self._device else copied).append(item)
        # One order for all: each put wakes the lane, which wants the interpreter at once.
        if renamed:
            self._renames.put(_Order(renamed, aside))
        if copied:
            self._copies.put(_Order(copied, aside))

    def _done(self, outcomes: list[Outcome[Context]]) -> None:
        self._finished.put(outcomes)
        self._wake()
