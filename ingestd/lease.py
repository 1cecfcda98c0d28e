"""Until when this process may act upon what the ledger has given it, where another may take that from it.

Read in any thread, before each act that no database can undo: a post's next bytes, a rename.
"""

from __future__ import annotations

from math import inf

from ingestd.clocks import boottime


class Lease:
    """For ever, unless it is renewed: then until the time that was said last (CLOCK_BOOTTIME, seconds)."""

    def __init__(self) -> None:
        self._until = inf

    def holds(self) -> bool:
        return boottime() < self._until

    def renew(self, until: float) -> None:
        self._until = until
