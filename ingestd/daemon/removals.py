"""Which kept files go, and when: ``retain`` after CONFIRMED (or DISCARDED) is committed, while nothing forbids.

One gate for all of them: whoever sees that our copies may be the only ones (a server that lost or altered files, a
clock that jumped, a disk of which nothing can be said) calls ``stop``, and ``allow`` once it no longer holds.
"""

from __future__ import annotations

from datetime import timedelta

import structlog

from ingestd.daemon.now import Now
from ingestd.inbox import Spool, SpoolError
from ingestd.ledger import Ledger, Moves, Removable
from ingestd.places import is_gone

_REMOVE_AT_ONCE = 500


class Removals:
    """Removes kept files from the spool. Main thread only."""

    def __init__(self, *, ledger: Ledger, spool: Spool, retain: timedelta) -> None:
        """Join the rooms; nothing stands in the way yet."""
        self._ledger = ledger
        self._spool = spool
        self._log = structlog.get_logger()
        self._stopped: set[str] = set()
        self._removed: list[Removable] = []
        self.retain = retain

    def stop(self, why: str) -> None:
        """Let no kept file go while this holds; ``why`` is a word, and to tell a person is the caller's business."""
        self._stopped.add(why)

    def allow(self, why: str) -> None:
        """This no longer stands in the way; what others stopped stays stopped."""
        self._stopped.discard(why)

    @property
    def may_remove(self) -> bool:
        """Whether nothing stands in the way."""
        return not self._stopped

    @property
    def has_work(self) -> bool:
        """Whether a transaction is wanted."""
        return bool(self._removed)

    def gather(self, now: Now, *, make_room: bool) -> None:
        """Remove what may go, with ``make_room`` before ``retain`` has passed; writes nothing to the ledger."""
        if not self.may_remove:
            return
        retain = timedelta(0) if make_room else self.retain
        removable = self._ledger.removable(before=now.utc - retain, limit=_REMOVE_AT_ONCE)
        paths = [path for row in removable for path in row.paths]
        if not paths:
            return
        try:
            self._spool.discard(*paths)
        except SpoolError as error:
            # The rest is gone all the same; these rows keep their file and are tried again.
            removable = [row for row in removable if all(is_gone(f"{self._spool.path}/{path}") for path in row.paths)]
            self._log.error("spool.not_removed", note=str(error))
        self._removed = removable
        if removable:
            self._log.info("spool.removed", files=sum(len(row.paths) for row in removable))

    def record(self, moves: Moves, now: Now) -> None:
        """Write which files are gone."""
        if self._removed:
            moves.mark_removed([row.entry_id for row in self._removed], now=now.utc)

    def committed(self) -> bool:
        """The transaction is durable; say whether more may go at once."""
        is_more = len(self._removed) >= _REMOVE_AT_ONCE
        self._removed = []
        return is_more
