"""How many posts at once: one more while that helps, half of them when the server suffers (AIMD).

Pure: told what ended and when, on one clock. Growing is an experiment - one more post than before, for as
long as it takes to see two rounds of them end - and is taken back where throughput did not gain from it.
"""

from __future__ import annotations

_START = 4
# A round with one post more must move this much more, or it only makes the server hold more at once.
_WORTH_IT = 1.05
# Rounds at the found limit before one more is tried again.
_HOLD_ROUNDS = 16
# What a post and an instance cost beside their bytes, so that small files count for what they are.
_POST_COST = 50_000
_INSTANCE_COST = 10_000


class ConcurrencyLimit:
    """The adaptive limit on posts in flight."""

    def __init__(self, most: int) -> None:
        """Start at four; ``most`` is never passed."""
        self._most = max(1, most)
        self.value = min(_START, self._most)
        self._round_began: float | None = None
        self._ended = 0
        self._work = 0
        self._rate_before: float | None = None  # while one more is being tried: the rate without it
        self._hold = 0
        self._last_cut: float | None = None

    def succeeded(self, *, size_bytes: int, instances: int, in_flight: int, at: float) -> None:
        """Take a post that was answered; ``in_flight`` counts those at that moment, itself included."""
        if in_flight < self.value or self._round_began is None:
            # Not all places were taken: the rate of this time says nothing about the limit.
            self._begin_round(at)
            return
        self._ended += 1
        self._work += size_bytes + _POST_COST + _INSTANCE_COST * instances
        if self._ended >= 2 * self.value and at > self._round_began:
            self._end_round(self._work / (at - self._round_began))
            self._begin_round(at)

    def congested(self, *, began: float, at: float) -> None:
        """Halve the limit after 429, 503 or a deadline; posts that began before the last halving tell nothing new."""
        if self._last_cut is not None and began <= self._last_cut:
            return
        self._last_cut = at
        self.value = max(1, self.value // 2)
        self._rate_before = None
        self._hold = 0
        self._begin_round(at)

    def _begin_round(self, at: float) -> None:
        self._round_began = at
        self._ended = 0
        self._work = 0

    def _end_round(self, rate: float) -> None:
        if self._rate_before is not None and rate < self._rate_before * _WORTH_IT:
            self.value -= 1
            self._hold = _HOLD_ROUNDS
            self._rate_before = None
        elif self._hold:
            self._hold -= 1
        elif self.value < self._most:
            self._rate_before = rate
            self.value += 1
        else:
            self._rate_before = None
