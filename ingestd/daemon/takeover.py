"""Files of ours that are duplicates of what another process was to send: while it does not run, we send them ourselves.

``ingestd send`` has a host of its own in the ledger. Interrupted, and not run again (the medium was taken out), its
rows would wait for ever, and with them each file of the same content that was dropped since, or of what may be that.
"""

from __future__ import annotations

from functools import partial

import structlog

from ingestd.clocks import Now
from ingestd.daemon.stage import Stage
from ingestd.fs.places import is_gone
from ingestd.ledger import Ledger, Transaction, moves, queries
from ingestd.locks import who_runs

_LOOK_EVERY_SECONDS = 1.0


class Takeover(Stage):
    """Takes over what nobody runs for."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._log = structlog.get_logger()
        self._waiting: dict[int, str] = {}  # our duplicate: the host that its holder waits for
        self._look_at = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to take over; looks again, so that a single run does not end too soon."""
        self._look()
        return not self._waiting

    def collect(self, now: Now) -> None:
        """Look for what waits; writes nothing to the ledger."""
        if now.mono >= self._look_at:
            self._look_at = now.mono + _LOOK_EVERY_SECONDS
            self._look()

    def write(self, tx: Transaction, now: Now) -> None:
        """Take over what was found."""
        if self._waiting:
            taken = moves.take_over(tx, self._waiting, hosts=set(self._waiting.values()), now=now.utc)
            tx.on_commit(partial(self._done, taken))

    def _done(self, taken: int) -> None:
        if taken:
            self._log.warning("ledger.taken_over", files=taken)
        self._waiting = {}

    def _look(self) -> None:
        found = queries.waiting_elsewhere(self._ledger)
        if found:
            # Whoever runs unseen loses nothing: a row that was moved under it is left alone.
            idle = {host for _, host, _ in found} - self._working()
            # One that was not compared is compared first, as long as there is a file to compare it with.
            found = [each for each in found if each[1] in idle and (each[2] is None or is_gone(each[2]))]
        self._waiting = {delivery_id: host for delivery_id, host, _ in found}

    def _working(self) -> set[str]:
        workers = self._ledger.workers()
        if workers is not None:
            return {worker.host for worker in workers if worker.holds and worker.is_alive}
        return {host for host, spool in queries.spools(self._ledger).items() if who_runs(spool) is not None}
