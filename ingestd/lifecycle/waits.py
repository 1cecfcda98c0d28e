"""How long what failed has to wait, and from when a time counts whose clock may have been set."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

RETRY_AFTER_LEAST = timedelta(seconds=1)
RETRY_AFTER_MOST = timedelta(minutes=15)


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """Doubling waits with jitter: ``base``, 2 x base, ... up to ``cap``."""

    base: timedelta = timedelta(seconds=5)
    cap: timedelta = timedelta(minutes=15)

    def wait(self, attempt: int, *, jitter: float) -> timedelta:
        """Wait before try ``attempt`` + 1 (attempt counts from 1); ``jitter`` in [0, 1) takes off up to half of it."""
        doubled = min(self.cap, self.base * (1 << min(max(attempt, 1) - 1, 30)))
        return doubled * (1 - jitter / 2)

    def charged_wait(self, charged: int, *, jitter: float) -> timedelta:
        """Wait after this charged attempt on one file, four times as long with each, so that ten of them span hours.

        A server that is in trouble for an hour must not turn a good file into a FAILED one.
        """
        return min(self.longest, self.base * (1 << min(2 * (max(charged, 1) - 1), 30))) * (1 - jitter / 2)

    @property
    def longest(self) -> timedelta:
        """The longest wait of them all."""
        return 4 * self.cap


@dataclass(frozen=True, kw_only=True, slots=True)
class LongestWaits:
    """How far ahead each kind of wait that paces can lie: one that lies further was set by another clock, and is over.

    ``quiet`` is a study's quiet period, ``backoff`` what a study or row waits to be sent again, ``check`` what a row
    waits until the server is asked about it.
    """

    quiet: timedelta = timedelta(seconds=5)
    backoff: timedelta = timedelta(hours=1)
    check: timedelta = timedelta(hours=1)


def clamp_retry_after(asked: timedelta) -> timedelta:
    """Honour a Retry-After within reason: at least a second, at most a quarter of an hour."""
    return min(max(asked, RETRY_AFTER_LEAST), RETRY_AFTER_MOST)


@dataclass(frozen=True, kw_only=True, slots=True)
class Jump:
    """The wall clock was set: what it showed right after (``at``), and how far it went (``by``; negative: back).

    What came before it is told by what was on record, not by the time: rows up to ``last_file_id``, attempts up to
    ``last_attempt_id``.
    """

    at: datetime
    by: timedelta
    last_file_id: int = 0
    last_attempt_id: int = 0


def surely_since(since: datetime, *, now: datetime, jump: Jump | None) -> datetime:
    """Say from when a time counts that must have passed for certain: anew across a jump of the wall clock."""
    if jump is None or jump.at > now:
        return min(since, now)
    return max(since, jump.at) if since <= now else jump.at
