"""The one place that reads the clocks: what time it is for people, and the clock that every duration runs on.

Wall time is for the ledger and for people: it may be set, by hand or by NTP, by any amount in either direction. What
lasts is measured on CLOCK_BOOTTIME, which nobody can set and which goes on while the machine sleeps. Both are slewed
together, so their difference changes only when somebody sets the wall clock.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def boottime() -> float:
    """Seconds since the machine started, sleep included: for every duration, and for nothing that is kept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def utc_now() -> datetime:
    """Say what time it is, for people and for the ledger."""
    return datetime.now(UTC)
