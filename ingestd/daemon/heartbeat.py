"""The ledger hears of us now and then, however little there is to write: others see by it that this worker lives.

From the loop, so that it says more than that a process is there. Where nobody else could take over (an SQLite ledger)
nothing is said.
"""

from __future__ import annotations

from ingestd.clocks import Now
from ingestd.daemon.stage import Stage
from ingestd.ledger import Ledger


class Heartbeat(Stage):
    """Beats where the ledger has heard nothing of us for a while; each transaction is a beat, too (``workers``)."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self, now: Now) -> None:
        """Beat where it is time, whoever holds the lock of all who write."""
        if now.mono >= self._beats_at:
            self._ledger.beat()

    def next_at(self, now: Now) -> float:
        """Say when it is time; not in a loop of its own where the ledger is away."""
        return max(self._beats_at, now.mono + min(1.0, self._ledger.beat_seconds))

    @property
    def _beats_at(self) -> float:
        return self._ledger.written_at + self._ledger.beat_seconds
