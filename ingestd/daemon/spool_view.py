"""How this host sees a spool that it shares with others: who does not see it neither takes it over nor keeps it.

It may be away, hang, be empty or read-only here alone. Whoever is about to begin looks at it in a thread
(``SpoolView``), has its row say what is wrong with it, so that nobody counts on it, and begins only where it sees it.
Whoever works on it says so, too (``membership``), and ends (``GivesBack``) once something was wrong with it for a lease
and another sees it well; where it hangs, it hangs the loop, too, which then beats no more.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

from ingestd.daemon.spool_disk import SpoolDisk
from ingestd.inbox import Spool
from ingestd.ledger import Ledger, LedgerError
from ingestd.workers import Workers

_LOOK_EVERY_SECONDS = 1.0
_PATIENCE_SECONDS = 5.0


class _Seen(NamedTuple):
    trouble: str
    barred: str = ""
    beside: frozenset[int] = frozenset()  # whose parts of it were looked for


class SpoolView:
    """Looks at a spool now and then, and never waits for it."""

    def __init__(self, spool: Spool, wake: Callable[[], object]) -> None:
        self._spool = spool
        self._workers = Workers[_Seen]("spool", wake=wake)
        self._asked_at = 0.0
        self._seen: _Seen | None = None
        # Who works on it: where one has no part here, it is another spool, made anew under the id of that one's.
        self.others: frozenset[int] = frozenset()

    def look(self, now: float) -> None:
        """Take up what the last look saw, and begin another where it is time (``Now.mono``)."""
        for seen in self._workers.collect():
            self._seen = seen
        if self._workers.in_flight:
            if now - self._asked_at >= _PATIENCE_SECONDS:
                self._seen = _Seen(f"the spool has not answered for {_PATIENCE_SECONDS:.0f} s", beside=self.others)
        elif now - self._asked_at >= _LOOK_EVERY_SECONDS or self.trouble is None:
            self._asked_at = now
            self._workers.submit(self._look)

    def _look(self) -> _Seen:
        others, trouble = self.others, self._spool.trouble()
        try:
            if not trouble and (worker := self._spool.lacks(others)) is not None:
                trouble = f"the spool here is another than the one that worker {worker} works on: mount that one here"
            self._spool.free_bytes()  # all else a share's client may answer from memory, while its server hangs
        except OSError:
            trouble = trouble or "the spool cannot be read"
        return _Seen(trouble, self._spool.barred(), others)

    @property
    def trouble(self) -> str | None:
        """What keeps the spool from being worked on here, "" nothing; None: it has not answered yet."""
        return self._seen.trouble if self._seen is not None and self._seen.beside == self.others else None

    @property
    def bars(self) -> str:
        """What keeps us from taking it over, to be seen by others; "" where it is there, and may be written."""
        if self.trouble is None or self._seen is None:
            return "the spool has not answered yet"
        return self._seen.trouble or self._seen.barred

    def close(self) -> None:
        self._workers.close()


class GivesBack:
    """Says when whoever works on a spool is to end, so that another goes on."""

    def __init__(self, ledger: Ledger, disk: SpoolDisk, *, lease: timedelta) -> None:
        self._ledger = ledger
        self._disk = disk
        self._lease_seconds = lease.total_seconds()
        self._ask_at = 0.0

    def is_due(self, now: float) -> bool:
        """Whether something has been wrong with the spool for a lease, and another sees it well."""
        since = self._disk.unwell_since
        if since is None or now - since < self._lease_seconds or now < self._ask_at:
            return False
        self._ask_at = now + _LOOK_EVERY_SECONDS
        try:
            workers = self._ledger.workers()
        except LedgerError:
            return False  # the loop meets it, too
        others = (each for each in workers or () if each.id != self._ledger.worker)
        return any(each.host == self._ledger.host and each.is_well for each in others)
