"""Whether a server is reached from here, by what was asked of it: the others go by it, too (``membership``).

Only its answers count, whatever was asked: a post, the cheap GET, a question about a row. That nothing was asked says
nothing, and nor does a server that asks us to slow down.
"""

from __future__ import annotations

from datetime import timedelta
from math import inf

from ingestd.clocks import Now
from ingestd.lifecycle import Pause, PauseCause

# A server that is only started anew hands nothing to and fro.
_LEASES = 3


class Reach:
    """What is known of one server. Main thread only."""

    def __init__(self, name: str, lease: timedelta) -> None:
        """Begin with nothing known; three leases of failures and no answer are enough to know it by."""
        self.name = name
        self._look_every = lease.total_seconds()
        self._lately = _LEASES * self._look_every
        self._asked_at = self._answered_at = -inf
        self._failed_since: float | None = None  # the first failure since the last answer

    def take_over(self, before: Reach) -> None:
        """Know what another of this process knew."""
        self._asked_at, self._answered_at = before._asked_at, before._answered_at
        self._failed_since = before._failed_since

    def take(self, pause: Pause | None, now: Now) -> None:
        """Note that the server answered, or ``pause``: why no request of any kind would have been answered."""
        self._asked_at = now.mono
        if pause is None:
            self._answered_at = now.mono
        if pause is None or pause.cause is PauseCause.THROTTLED:
            self._failed_since = None
        elif self._failed_since is None:
            self._failed_since = now.mono

    def has_answered(self, now: Now) -> bool | None:
        """Say whether it answered lately, or only failed for as long; None: nobody knows."""
        if now.mono - self._answered_at < self._lately:
            return True
        # By the last that failed: where nothing was asked since, it may be reached again.
        failed_for = 0.0 if self._failed_since is None else self._asked_at - self._failed_since
        return False if failed_for >= self._lately else None

    def was_asked_after(self, since: float, now: Now) -> bool:
        """Whether it was asked after that (``Now.mono``), where it only failed lately."""
        return self.has_answered(now) is not False or self._asked_at > since

    def is_stale(self, now: Now) -> bool:
        """Whether a look would tell anything new."""
        return now.mono - self._asked_at >= self._look_every
