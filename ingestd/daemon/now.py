"""One instant of a tick, on both clocks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ingestd.clocks import boottime, utc_now

__all__ = ["Now", "read_clocks", "utc_now"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Now:
    """One instant on both clocks: ``utc`` for the ledger, ``mono`` (CLOCK_BOOTTIME, seconds) for every duration."""

    utc: datetime
    mono: float


def read_clocks() -> Now:
    """Say what time it is."""
    return Now(utc=utc_now(), mono=boottime())
