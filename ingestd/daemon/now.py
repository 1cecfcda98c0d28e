"""The one place that reads the clocks: what time it is, for people and for durations."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Now:
    """One instant on both clocks: ``utc`` for the ledger, ``mono`` (seconds) for every duration."""

    utc: datetime
    mono: float


def read_clocks() -> Now:
    """Say what time it is."""
    return Now(utc=utc_now(), mono=time.monotonic())


def utc_now() -> datetime:
    """Say what time it is, for people."""
    return datetime.now(UTC)
