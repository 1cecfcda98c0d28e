"""The one place that reads the clocks: what time it is for people, and the clock that every duration runs on.

Wall time is for the ledger and for people: it may be set, by hand or by NTP, by any amount in either direction. What
lasts is measured on CLOCK_BOOTTIME, which nobody can set and which goes on while the machine sleeps. Both are slewed
together, so their difference changes only when somebody sets the wall clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf


def boottime() -> float:
    """Seconds since the machine started, sleep included: for every duration, and for nothing that is kept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def utc_now() -> datetime:
    """Say what time it is, for people and for the ledger."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Now:
    """One instant on both clocks: ``utc`` for the ledger, ``mono`` (CLOCK_BOOTTIME, seconds) for every duration."""

    utc: datetime
    mono: float

    def mono_of(self, utc: datetime | None) -> float:
        """Say when (``mono``) it is that time for people, at the earliest now; inf for never."""
        return inf if utc is None else self.mono + max(0.0, (utc - self.utc).total_seconds())


def read_clocks() -> Now:
    """Say what time it is."""
    return Now(utc=utc_now(), mono=boottime())


class Clock:
    """What time it is by this machine, until another's clock is heard; by that one from then on."""

    def __init__(self) -> None:
        self._ahead: float | None = None  # of CLOCK_BOOTTIME, in seconds

    def hear(self, utc: datetime, *, asked: float) -> None:
        """Go by a clock that showed this at some moment since ``asked`` (``boottime``)."""
        most, least = utc.timestamp() - asked, utc.timestamp() - boottime()
        ahead = utc_now().timestamp() - boottime() if self._ahead is None else self._ahead
        self._ahead = min(max(ahead, least), most)

    def now(self) -> Now:
        """Say what time it is."""
        if self._ahead is None:
            return read_clocks()
        mono = boottime()
        return Now(utc=datetime.fromtimestamp(mono + self._ahead, UTC), mono=mono)

    def utc(self) -> datetime:
        """Say what time it is, for people and for the ledger."""
        return self.now().utc
