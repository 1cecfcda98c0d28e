"""The loop that turns the stages: take in -> send -> prove -> wait; at most two transactions a tick (``stage``).

A transaction that fails (disk full, ledger locked) leaves everything collected in place, shuts the intake, and is tried
again. The main thread is the only one that writes the ledger; readers are processes, posts and questions are threads,
and all of them only wake this one.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Collection, Sequence
from math import inf

from ingestd.clocks import Now, read_clocks
from ingestd.daemon.outage import Outage
from ingestd.daemon.stage import Stage
from ingestd.ledger import Ledger, LedgerError, Transaction

# With nothing to do the loop still looks around this often, and sooner where another process has written the ledger.
IDLE_SECONDS = 5.0
_NEWS_SECONDS = 1.0
# Under load, what finishes within the time of so many commits goes into one transaction: a slow disk makes larger ones.
_GROUP_COMMITS = 2
_GROUP_SECONDS_MOST = 0.04


class Wake:
    """A bell that any thread, or a signal handler, may ring; only the main thread waits for it."""

    def __init__(self) -> None:
        # A SimpleQueue, because a threading.Event set from a signal handler can die of RecursionError.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._rung = False

    def __call__(self) -> None:
        """Ring."""
        if not self._rung:
            self._rung = True
            self._bell.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait until it rings, at most so long; say whether it did."""
        try:
            self._bell.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return False
        # The queue is not emptied here: a ring that came in since would be taken out, its mark would stay, and no
        # ring would ever be heard again. What is left in it costs an empty tick.
        self._rung = False
        return True


class Loop:
    """Turns a list of stages; ``run`` and ``send`` and ``reconcile`` differ in the list, and in when they are done."""

    def __init__(self, stages: Sequence[Stage], *, ledger: Ledger, outage: Outage, wake: Wake) -> None:
        """``stages`` in the order in which they write."""
        self.stages: Sequence[Stage] = stages
        self._ledger = ledger
        self._outage = outage
        self._wake = wake
        self.idle_seconds = IDLE_SECONDS

    def run_until(self, done: Callable[[], bool], *, deadline: float = inf) -> None:
        """Turn until ``done`` says so after a tick, or until ``deadline`` (``Now.mono``); at least once.

        Raises LedgerError only for a ledger that cannot be used for a minute and is neither busy nor full.
        """
        while True:
            due = self.tick()
            if done() or read_clocks().mono >= deadline:
                return
            self.wait(min(due, deadline))

    def tick(self) -> float:
        """Do what is ready, once; say when (``Now.mono``) there is something to do by the clock."""
        now = self._ledger.clock.now()
        try:
            with self._ledger.one_look():
                return self._turn(now)
        except LedgerError as error:
            return self._outage.failed(error, now.mono)

    def _turn(self, now: Now) -> float:
        self._ledger.resolve()
        for stage in self.stages:
            stage.collect(now)
        if now.mono < self._outage.until:
            return self._outage.until
        of_studies = [stage for stage in self.stages if stage.is_of_studies] if self._ledger.in_turns else []
        if _studies_of(of_studies) is None:
            written = [self._write(self.stages, None, now)]
        else:
            others = [stage for stage in self.stages if stage not in of_studies]
            # By the first one a stage may have got something to do.
            written = [self._write(others, None, now), self._write(of_studies, _studies_of(of_studies), now)]
        if any(tx.has_begun for tx in written):
            self._outage.passed(now.mono, wrote=any(tx.wrote for tx in written))
        return min((stage.next_at(now) for stage in self.stages), default=inf)

    def _write(self, stages: Sequence[Stage], studies: Collection[str] | None, now: Now) -> Transaction:
        with self._ledger.transaction(studies) as tx:
            if self._outage.holds:
                # Also an empty transaction shows that the ledger works again.
                tx.begin()
            for stage in stages:
                stage.write(tx, now)
        return tx

    def wait(self, until: float) -> None:
        """Wait for a ring, the clock or what another process writes into the ledger.

        Under load a moment longer, so that one transaction carries more.
        """
        until = min(until, read_clocks().mono + self.idle_seconds)
        while not self._wake.wait(min(until - read_clocks().mono, _NEWS_SECONDS)):
            if read_clocks().mono >= until or self._ledger.has_news():
                return
        if sum(stage.in_hand for stage in self.stages) > 1:
            time.sleep(min(_GROUP_SECONDS_MOST, _GROUP_COMMITS * self._ledger.commit_seconds))


def _studies_of(stages: Sequence[Stage]) -> Collection[str] | None:
    """Say of which studies these will change files; None: of any, or there is no such stage."""
    each = [stage.studies for stage in stages]
    return {study for of_one in each for study in of_one or ()} if each and None not in each else None
