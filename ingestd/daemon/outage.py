"""When the ledger fails for a while, and when that is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ingestd.daemon.stage import Gate
from ingestd.ledger import LedgerAway, LedgerBusy, LedgerError, LedgerFenced, LedgerFull

# What shuts the intake while the ledger's database does not answer.
AWAY = "ledger_away"
_WAIT_SECONDS = 2.0
# A lost answer or a deadlock is over by the time that it is told; what lasts is tried every two seconds.
_AT_ONCE_SECONDS = 0.2
# What lasts so long is told to who asks for the status.
_TELL_AFTER_SECONDS = 5.0
# A ledger that is neither busy nor full, and can be written by nobody for so long, is opened anew by the next start.
_BROKEN_SECONDS = 60.0
# A ledger of which some parts cannot be read commits what touches others, and fails at the next round that looks there.
_SURE_SECONDS = 10.0


class Outage:
    """A stretch of failures: told once when it begins, and once when something was written and nothing failed since."""

    def __init__(
        self,
        log: Any,
        ledger: str,
        tell: Callable[[str], object] = lambda _: None,
        *,
        intake: Gate | None = None,
    ) -> None:
        """``tell`` hears what is to be told by other ways than the ledger, and "" when that is over.

        While the last try failed ``intake`` is shut: nothing new is taken up then.
        """
        self._intake = intake or Gate()
        self.holds = False  # whether the last try failed
        self._ledger = ledger
        self._tell = tell
        self._stands = False
        self.until = 0.0  # nothing is tried before
        self._log = log
        self._told_at: float | None = None
        self._broken_since: float | None = None
        self._failed_at = 0.0

    def failed(self, error: LedgerError, now: float) -> float:
        """Note a failure and say when to try again.

        Raises it once the ledger has been broken for too long, and at once where another took over.
        """
        if isinstance(error, LedgerFenced):
            raise error
        wait = _WAIT_SECONDS
        if self._told_at is None:
            self._told_at = now
            wait = _AT_ONCE_SECONDS if isinstance(error, LedgerBusy) else _WAIT_SECONDS
            # Any word may be part of the ledger's name.
            note = str(error).replace(f" {self._ledger}", "")
            self._log.error("ledger.failed", error=type(error).__name__, note=note)
        if self._broken_since is None:
            self._broken_since = now
        if not self._stands and now - self._told_at >= _TELL_AFTER_SECONDS:
            self._stands = True
            self._tell(" ".join(str(error).split()))
        if not isinstance(error, (LedgerBusy, LedgerFull)) and now - self._broken_since > _BROKEN_SECONDS:
            raise error
        self.holds = True
        self._intake.shut("ledger")
        if isinstance(error, LedgerAway):
            self._intake.shut(AWAY)
        self._failed_at = now
        self.until = now + wait
        return self.until

    def passed(self, now: float, *, wrote: bool) -> None:
        """Note a transaction that was committed; an empty one says little of what the next will meet."""
        self.holds = False
        self._intake.open("ledger")
        self._intake.open(AWAY)
        quiet_for = now - self._failed_at
        if wrote or quiet_for >= _BROKEN_SECONDS:
            self._broken_since = None
        if self._told_at is not None and quiet_for >= (_SURE_SECONDS if wrote else _BROKEN_SECONDS):
            self._told_at = None
            if self._stands:
                self._stands = False
                self._tell("")
            self._log.info("ledger.recovered_from_failure")
