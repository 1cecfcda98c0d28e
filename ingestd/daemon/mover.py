"""Moves files into the spool, or aside, on threads of its own, so that a slow disk or a long copy never stops the loop.

Renames are grouped: a folder is made durable once for all files that came in together. Files from another filesystem
are copied in a second lane, so that a 4 GB copy does not hold up a thousand renames.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

import structlog

from ingestd.inbox import Candidate, Expect, NotTaken, Removal, Spool, Taken, WhyNot
from ingestd.lifecycle import SourceStat

_GROUP_MOST = 256
Context = TypeVar("Context")


@dataclass(frozen=True, slots=True)
class _Order(Generic[Context]):
    context: Context
    candidate: Candidate
    expect: Expect
    aside: bool


class _Lane(Generic[Context]):
    def __init__(self, name: str, spool: Spool, done: Callable[[list[tuple[Context, Taken | NotTaken]]], None]) -> None:
        self._spool = spool
        self._done = done
        self._orders: SimpleQueue[_Order[Context] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def put(self, order: _Order[Context] | None) -> None:
        self._orders.put(order)

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            group = [order]
            ended = False
            while len(group) < _GROUP_MOST:
                try:
                    more = self._orders.get_nowait()
                except Empty:
                    break
                if more is None:
                    ended = True
                    break
                group.append(more)
            for aside in (False, True):
                self._carry_out([order for order in group if order.aside is aside], aside=aside)
            if ended:
                return

    def _carry_out(self, orders: Sequence[_Order[Context]], *, aside: bool) -> None:
        if not orders:
            return
        carry = self._spool.set_aside if aside else self._spool.take_in
        outcomes: Sequence[Taken | NotTaken]
        try:
            outcomes = carry([(order.candidate, order.expect) for order in orders])
        except Exception as error:  # noqa: BLE001 - the lane must outlive one bad group; the files lie where they lay
            structlog.get_logger().error("inbox.move_failed", error=type(error).__name__, files=len(orders))
            note = f"moving it into the spool failed ({type(error).__name__}); it is tried again"
            outcomes = [NotTaken(candidate=order.candidate, why=WhyNot.ERROR, note=note) for order in orders]
        self._done([(order.context, outcome) for order, outcome in zip(orders, outcomes, strict=True)])


class _Removals:
    """The lane that touches inboxes on other filesystems; a share that hangs holds up nothing but itself."""

    def __init__(self, spool: Spool, wake: Callable[[], object]) -> None:
        self._spool = spool
        self._wake = wake
        self._jobs: SimpleQueue[Callable[[Spool], object] | None] = SimpleQueue()
        self._finished: SimpleQueue[tuple[int, Removal]] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="remover", daemon=True)
        self.thread.start()

    def put(self, job: Callable[[Spool], object] | None) -> None:
        self._jobs.put(job)

    def put_row(self, entry_id: int, remove: Callable[[Spool], Removal]) -> None:
        self._jobs.put(lambda spool: self._finished.put((entry_id, remove(spool))))

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
    """Takes files in and sets files aside; each order comes back once, with the context it was given."""

    def __init__(self, spool: Spool, *, wake: Callable[[], object]) -> None:
        """Start both lanes."""
        self._wake = wake
        self._device = spool.path.stat().st_dev
        self._finished: SimpleQueue[tuple[Context, Taken | NotTaken]] = SimpleQueue()
        self._renames: _Lane[Context] = _Lane("mover", spool, self._done)
        self._copies: _Lane[Context] = _Lane("copier", spool, self._done)
        self._removals = _Removals(spool, wake)
        self.in_flight = 0

    def take_in(self, context: Context, candidate: Candidate, expect: Expect) -> None:
        """Bring a whole file into the spool."""
        self._put(_Order(context, candidate, expect, aside=False))

    def set_aside(self, context: Context, candidate: Candidate, expect: Expect) -> None:
        """Bring a refused file into ``rejected/``."""
        self._put(_Order(context, candidate, expect, aside=True))

    def collect(self) -> list[tuple[Context, Taken | NotTaken]]:
        """Take what is done; never blocks."""
        done: list[tuple[Context, Taken | NotTaken]] = []
        while True:
            try:
                done.append(self._finished.get_nowait())
            except Empty:
                self.in_flight -= len(done)
                return done

    def recover_removals(self, root: Path, unremoved: Collection[SourceStat]) -> None:
        """Settle the removals of this inbox that the last run did not finish."""
        self._removals.put(lambda spool: spool.recover_removals(root, unremoved))

    def remove_source(self, entry_id: int, root: Path, relative_path: str, source: SourceStat) -> None:
        """Remove a copied source from its inbox, after a last look."""
        self._removals.put_row(entry_id, lambda spool: spool.remove_source(root, relative_path, source))

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

    def _put(self, order: _Order[Context]) -> None:
        self.in_flight += 1
        lane = self._renames if order.candidate.source.device == self._device else self._copies
        lane.put(order)

    def _done(self, outcomes: list[tuple[Context, Taken | NotTaken]]) -> None:
        for outcome in outcomes:
            self._finished.put(outcome)
        self._wake()
