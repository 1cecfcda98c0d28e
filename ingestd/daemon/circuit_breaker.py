"""Whether the destination may be sent to: one pause for all files, ended half-open (DESIGN.md 4.6, 4.7).

What says nothing about a file - no connection, 401/403, 429, 503, no token - pauses the destination and charges no
file. A pause ends half-open: a cheap GET, then one post of another study than the one that met it; only a post that
was answered opens the destination again, or whoever knows that none is left. Times are ``Now.mono``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from ingestd.lifecycle import Backoff, BatchResult, Pause, PauseCause, StudyQueue, clamp_retry_after

# A probe is cheap: a server that is away, or has broken down, is looked for at least this often. One that does not let
# us in is not, since accounts are locked for it.
PROBE_AT_LEAST_EVERY = timedelta(seconds=60)
AWAY = frozenset({PauseCause.UNREACHABLE, PauseCause.UNAVAILABLE})
# A study whose post meets this many pauses while the cheap GET works is suspected to be their cause, and charged.
_PAUSES_UNTIL_CHARGED = 3
# 400, 404, 406 or 415 for this many different studies in a row is the configuration's fault, not the files'.
_REFUSED_STUDIES_UNTIL_MISCONFIGURED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakerDecision:
    """What one post did to the destination's state."""

    paused: Pause | None = None
    resumed: bool = False
    charge_study: bool = False


class CircuitBreaker:
    """Open, paused until, or half-open; changed by what posts and probes came to."""

    def __init__(self, *, backoff: Backoff, jitter: Callable[[], float]) -> None:
        """Start open."""
        self._backoff = backoff
        self._jitter = jitter
        self._pauses_in_row = 0
        self._met_by: dict[str, int] = {}
        self._last_met: str | None = None
        self._refused: list[str] = []
        self.pause: Pause | None = None
        self.paused_until: float | None = None
        self.probing = False
        self.half_open = False

    @property
    def is_open(self) -> bool:
        """Whether any number of posts may start."""
        return self.pause is None

    def may_probe(self, now: float) -> bool:
        """Whether the wait is over and the cheap GET is due."""
        return self.paused_until is not None and now >= self.paused_until and not self.probing and not self.half_open

    def choose(self, studies: list[StudyQueue], *, in_flight: int) -> list[StudyQueue]:
        """Keep the studies that may be posted now: all when open, one when half-open, none when paused.

        Half-open prefers a study other than the one that met the pause, so that one poisonous study cannot keep
        everything else waiting.
        """
        if self.is_open:
            return studies
        if not self.half_open or in_flight or not studies:
            return []
        others = [study for study in studies if study.study_uid != self._last_met]
        return (others or studies)[:1]

    def take_over(self, pause: Pause, until: float = 0.0) -> None:
        """Go on with a pause of the last run, or of another worker: it ends as any other does, after a look."""
        self.pause, self.paused_until = pause, until

    def pause_for(self, pause: Pause, now: float) -> Pause:
        """Stop sending for the server's wish or the backoff, whichever is longer."""
        self._pauses_in_row += 1
        wait = self._backoff.wait(self._pauses_in_row, jitter=self._jitter())
        if pause.cause in AWAY:
            wait = min(wait, PROBE_AT_LEAST_EVERY)
        if pause.retry_after is not None:
            wait = max(wait, clamp_retry_after(pause.retry_after))
        self.pause = pause
        self.paused_until = now + wait.total_seconds()
        self.probing = self.half_open = False
        return pause

    def probed(self, pause: Pause | None, now: float) -> Pause | None:
        """Take the cheap GET's answer: half-open when it worked, a longer pause when not."""
        self.probing = False
        if pause is not None:
            return self.pause_for(pause, now)
        self.half_open = True
        return None

    def open(self) -> None:
        """End the pause."""
        self.pause = self.paused_until = None
        self.half_open = False

    def posted(self, result: BatchResult, now: float) -> BreakerDecision:
        """Take what a post came to."""
        study = result.batch.study_uid
        if result.pause is not None:
            # Posts that were in flight when the pause began tell nothing new: they neither lengthen nor count.
            if self.pause is not None and not self.half_open:
                return BreakerDecision()
            met = self._met_by.get(study, 0) + 1
            self._met_by[study] = met
            self._last_met = study
            self.pause_for(result.pause, now)
            return BreakerDecision(paused=result.pause, charge_study=met >= _PAUSES_UNTIL_CHARGED)
        if result.whole_batch_refused and not result.content_refused:
            return self._refused_whole(study, now)
        if not result.answered:
            return BreakerDecision()
        self._refused.clear()
        self._met_by.pop(study, None)
        self._pauses_in_row = 0
        if self.pause is None:
            return BreakerDecision()
        self.open()
        self._met_by.clear()
        return BreakerDecision(resumed=True)

    def hurry(self, now: float) -> None:
        """Let the probe be due: a person does not want to wait."""
        if self.paused_until is not None:
            self.paused_until = min(self.paused_until, now)

    def wait_left(self, now: float) -> timedelta | None:
        """How long until the probe is due; None when open, half-open or probing."""
        if self.paused_until is None or self.probing or self.half_open:
            return None
        return timedelta(seconds=max(0.0, self.paused_until - now))

    def _refused_whole(self, study: str, now: float) -> BreakerDecision:
        if study not in self._refused:
            self._refused.append(study)
        if len(self._refused) < _REFUSED_STUDIES_UNTIL_MISCONFIGURED:
            return BreakerDecision()
        self._refused.clear()
        pause = Pause(
            cause=PauseCause.MISCONFIGURED,
            note="the server refused whole posts of three studies in a row; check url, version and headers with "
            "`ingestd check`; nothing is lost, sending is tried again by itself",
        )
        self.pause_for(pause, now)
        return BreakerDecision(paused=pause)
