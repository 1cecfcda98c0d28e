"""PENDING rows to posts and back: which study is claimed when, and what a post's result does to its rows.

The attempt row is committed before the sender hears of the batch (G5); results are written before anything new is
claimed. The destination's pause is kept here, and written for ``ingestd status``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from math import inf
from random import SystemRandom

import structlog

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.circuit_breaker import BreakerDecision, CircuitBreaker
from ingestd.daemon.silence import Silence
from ingestd.daemon.stage import Ending, Gate, Stage
from ingestd.ledger import Ledger, Transaction, moves, queries
from ingestd.lifecycle import (
    Backoff,
    Batch,
    BatchLimits,
    BatchResult,
    Outcome,
    Part,
    Pause,
    PauseCause,
    Reason,
    State,
    StudyQueue,
    Unproven,
    study_due_at,
)
from ingestd.logs import study_ref
from ingestd.sender import ProbeResult, Sender, give_up

# "While others succeed": a post of another study was answered with something stored within this time.
_OTHERS_SUCCEED_WITHIN = timedelta(hours=1)
# Files whose folder is away are tried again after this long.
_AWAY_WAIT = timedelta(minutes=1)
_AWAY_NOTE = "the folder that it lies in is away or empty: not mounted? It is sent when it is there again"
_GONE_NOTE = "its file is no longer where it was taken in; the server is asked whether it has it all the same"
# Whole posts refused, and none taken in between, before that is told; fewer may be one bad file that stands alone soon.
_REFUSED_IN_ROW_UNTIL_TOLD = 10
# Studies looked at for one round of claims.
_STUDIES_AT_ONCE = 32


class Posting(Stage):
    """Claims studies that are due, hands them to the sender, writes what came of it."""

    def __init__(
        self,
        *,
        sender: Sender,
        ledger: Ledger,
        limits: BatchLimits,
        backoff: Backoff,
        most_attempts: int,
        alarms: Alarms,
        claims: Gate,
        ending: Ending,
        tells_gone: Callable[[str], bool],
    ) -> None:
        """Join sender and ledger; the server is probed first of all.

        ``tells_gone`` says whether a file that is not there is gone, or only its folder is away.
        """
        self._claims = claims
        self._ending = ending
        self._tells_gone = tells_gone
        self._sender = sender
        self._ledger = ledger
        self._limits = limits
        self._backoff = backoff
        self._most_attempts = most_attempts
        self._alarms = alarms
        self.silence = Silence(alarms)
        self._log = structlog.get_logger()
        self._jitter = SystemRandom().random
        self.destination = CircuitBreaker(backoff=backoff, jitter=self._jitter)
        written = queries.destination(ledger)
        if written is not None and written.paused_since is not None:
            self.destination.take_over(Pause(cause=PauseCause(written.pause_cause), note=written.pause_note))
        self._results: list[tuple[BatchResult, BreakerDecision]] = []
        self._paused: Pause | None = None
        self._resumed = False
        self._answered = False
        self._refused_in_row = 0
        self._kind: str | None = None
        self._due: list[StudyQueue] = []
        self._wakes = False  # deferred rows' time has come
        self.results_written = 0  # posts whose results are durable, in this run
        self._last_stored: dict[str, float] = {}  # when (``Now.mono``)
        self._probe_due = True
        self._waits_for_token = False

    @property
    def in_hand(self) -> int:
        """Posts under way."""
        return self._sender.in_flight

    @property
    def is_idle(self) -> bool:
        """Whether no post is under way and no result waits to be written."""
        return not (self._sender.in_flight or self._results)

    def collect(self, now: Now) -> None:
        """Collect results and the probe's answer, and let them pause or open the destination; see what is due."""
        for collected in self._sender.collect():
            others_succeed = self.others_succeed(collected.batch.study_uid, now)
            result = give_up(collected, others_succeed=others_succeed, most_attempts=self._most_attempts)
            result = self._ask_first(self._wait_for_folders(result))
            result = self.silence.judge(result, stored_lately=self.others_succeed("", now))
            verdict = self.destination.posted(result, now.mono)
            self._results.append((result, verdict))
            self._note(result, verdict, now)
        probe = self._sender.collect_probe()
        if probe is not None:
            self._take_probe(probe, now)
        if self._is_hurried(now):
            self.destination.hurry(now.mono)
        if self._probe_due or self.destination.may_probe(now.mono):
            self._probe_due = False
            self.destination.probing = True
            self._sender.submit_probe()
        wake_at = queries.next_wake_at(self._ledger, now=now.utc)
        self._wakes = wake_at is not None and wake_at <= now.utc
        self._due = self._choose(now)

    def _is_hurried(self, now: Now) -> bool:
        """Whether a person has ended the pause that was written, in another process (``ingestd retry --now``)."""
        if self._paused is not None or not self.destination.wait_left(now.mono):
            return False
        written = queries.destination(self._ledger)
        return written is not None and written.paused_until is not None and written.paused_until <= now.utc

    def _choose(self, now: Now) -> list[StudyQueue]:
        """Say which studies are due and may be posted now; asks for a token if there are any."""
        self._waits_for_token = False
        if not self._may_post:
            return []
        due = queries.studies_due(self._ledger, now=now.utc, flush=self._ending.flushes, limit=_STUDIES_AT_ONCE)
        due = self.destination.choose(due, in_flight=self._sender.in_flight)
        if not due:
            return []
        token = self._sender.prepare()
        if isinstance(token, Pause):
            self._paused = self.destination.pause_for(token, now.mono)
            self._log.warning("destination.paused", cause=token.cause.value, note=token.note)
            return []
        self._waits_for_token = not token
        return due if token else []

    @property
    def _may_post(self) -> bool:
        if not self._claims.is_open or self._sender.free <= 0 or self._sender.profile is None:
            return False
        return self.destination.is_open or (self.destination.half_open and not self._sender.in_flight)

    def write(self, tx: Transaction, now: Now) -> None:
        """Write results, the destination's state and, last, the claims."""
        if self._wakes:
            moves.wake(tx, now=now.utc)
        for result, verdict in self._results:
            finished = moves.finish(tx, result, now=now.utc, backoff=self._backoff, jitter=self._jitter())
            if verdict.charge_study:
                moves.charge_study(
                    tx, result.batch.study_uid, now=now.utc, backoff=self._backoff, jitter=self._jitter()
                )
            if finished.lost:
                self._log.warning("batch.rows_moved_meanwhile", attempt_id=result.batch.attempt_id, rows=finished.lost)
        if self._kind is not None:
            moves.set_destination_kind(tx, self._kind)
        if self.destination.pause is not None and self._paused is not None:
            wait = self.destination.wait_left(now.mono) or timedelta(0)
            moves.pause_destination(tx, self._paused, until=now.utc + wait, now=now.utc)
        elif self._resumed:
            moves.resume_destination(tx, now=now.utc)
        elif self._answered:
            moves.destination_answered(tx, now=now.utc)
        tx.on_commit(partial(self._committed, self._claim(tx, now)))

    def _committed(self, claimed: Sequence[Batch]) -> None:
        """The attempts are durable: let the posts leave."""
        self.results_written += len(self._results)
        self._results, self._due = [], []
        self._paused = None
        self._resumed = self._answered = False
        self._kind = None
        for batch in claimed:
            self._sender.submit(batch)
            self._log.info(
                "batch.claimed",
                study=study_ref(batch.study_uid),
                attempt_id=batch.attempt_id,
                instances=len(batch.parts),
                bytes=batch.size_bytes,
            )

    def next_at(self, now: Now) -> float:
        return min(self._next_post_at(now), now.mono_of(queries.next_wake_at(self._ledger, now=now.utc)))

    def _next_post_at(self, now: Now) -> float:
        wait = self.destination.wait_left(now.mono)
        if wait is not None:
            return now.mono + wait.total_seconds()
        if not self._may_post or self._waits_for_token or self.destination.probing:
            # A post's end, the token or the probe's answer wakes us.
            return inf
        return now.mono_of(queries.next_study_at(self._ledger, now=now.utc, flush=self._ending.flushes))

    def _claim(self, tx: Transaction, now: Now) -> list[Batch]:
        free = self._sender.free if self.destination.is_open else min(1, self._sender.free)
        studies = self._due
        claimed: list[Batch] = []
        while free > 0 and studies:
            left: list[StudyQueue] = []
            for study in studies:
                if free <= 0:
                    break
                batch = moves.claim(tx, study.study_uid, now=now.utc)
                if batch is None:
                    continue
                claimed.append(batch)
                free -= 1
                rest = replace(
                    study,
                    waiting=study.waiting - len(batch.parts),
                    waiting_bytes=study.waiting_bytes - batch.size_bytes,
                )
                # What is left is claimed now only if it is due by itself; else it waits for more of its kind.
                if rest.waiting > 0 and study_due_at(rest, self._limits, flush=self._ending.flushes) <= now.utc:
                    left.append(rest)
            studies = left
        return claimed

    def _take_probe(self, probe: ProbeResult, now: Now) -> None:
        was_paused = self.destination.pause is not None
        pause = self.destination.probed(probe.pause, now.mono)
        if probe.profile is not None:
            self._kind = probe.profile.kind.value
        if pause is not None:
            if not was_paused:
                self._log.warning("destination.paused", cause=pause.cause.value, note=pause.note)
            self._paused = pause
        elif not was_paused:
            # Nothing had paused it: the first look at the server, not the end of an outage.
            self.destination.half_open = False
            self._answered = True

    def _wait_for_folders(self, result: BatchResult) -> BatchResult:
        """Keep the files of a folder that is away waiting."""
        if not any(outcome.reason is Reason.GONE for outcome in result.outcomes):
            return result
        paths = {part.entry_id: part.path for part in result.batch.parts}

        def settled(outcome: Outcome) -> Outcome:
            is_out = outcome.reason in (Reason.GONE, Reason.NOT_SENT)
            if not is_out or self._tells_gone(paths[outcome.entry_id]):
                return outcome
            return replace(outcome, state=State.PENDING, reason=Reason.NOT_SENT, note=_AWAY_NOTE, wait=_AWAY_WAIT)

        return replace(result, outcomes=tuple(settled(outcome) for outcome in result.outcomes))

    def _ask_first(self, result: BatchResult) -> BatchResult:
        """Ask the server before a file is given up: it, or a proxy before it, may have stored what it refused.

        And a ledger put back from a backup waits with files that were sent, confirmed and removed since.
        """
        parts = {part.entry_id: part for part in result.batch.parts}

        def asked(outcome: Outcome, part: Part) -> Outcome:
            is_gone = outcome.reason is Reason.GONE
            if outcome.state is not State.FAILED or not (is_gone or result.body_bytes_left or part.attempts):
                return outcome
            note = _GONE_NOTE if is_gone else outcome.note
            uncertain = replace(outcome, state=State.UNCERTAIN, note=note, wait=timedelta(0))
            return replace(uncertain, needs_content_check=True)

        outcomes = tuple(asked(outcome, parts[outcome.entry_id]) for outcome in result.outcomes)
        return replace(result, outcomes=outcomes)

    def _note(self, result: BatchResult, verdict: BreakerDecision, now: Now) -> None:
        stored = sum(outcome.state is State.STORED for outcome in result.outcomes)
        self._answered = self._answered or (result.answered and not result.whole_batch_refused)
        self._count_refused(result)
        if stored:
            self._remember_stored(result.batch.study_uid, now)
        if verdict.paused is not None:
            self._paused = verdict.paused
            self._log.warning("destination.paused", cause=verdict.paused.cause.value, note=verdict.paused.note)
        if verdict.resumed:
            self._resumed = True
            self._log.info("destination.resumed")
        level = self._log.info if stored == len(result.outcomes) else self._log.warning
        level(
            "batch.stored" if stored else "batch.deferred",
            study=study_ref(result.batch.study_uid),
            attempt_id=result.batch.attempt_id,
            instances=len(result.outcomes),
            stored=stored,
            bytes=result.batch.size_bytes,
            seconds=round(result.seconds, 3),
            http_status=result.http_status,
            error=result.error,
        )

    def _count_refused(self, result: BatchResult) -> None:
        """Tell of a server that refuses whatever is posted to it: behind a wrong address nothing ever succeeds."""
        if result.whole_batch_refused:
            self._refused_in_row += 1
        elif result.answered:
            self._refused_in_row = 0
        every = self._refused_in_row >= _REFUSED_IN_ROW_UNTIL_TOLD
        self._alarms.set(
            "refused",
            note=f"the server refuses every post whole (last with HTTP {result.http_status})" if every else "",
            next_step="the address is likely to be wrong: `ingestd check`; sending is tried again by itself",
        )

    def takes_others(self, row: Unproven, now: Now) -> bool:
        """Whether what the server does to a row is that file's own fault, as it takes others."""
        return not self.silence.is_outage and self.others_succeed(row.identity.study_uid, now)

    def found(self, row: Unproven, now: Now) -> None:
        """Note that a file is there; was it met with silence, the server takes what it is sent all the same."""
        if not self.silence.knows(row.entry_id):
            return
        if self.silence.is_outage:
            self.destination.hurry(now.mono)
        self.silence.end()
        self._remember_stored(row.identity.study_uid, now)

    def _remember_stored(self, study_uid: str, now: Now) -> None:
        self._last_stored[study_uid] = now.mono
        if len(self._last_stored) > _STUDIES_AT_ONCE:
            del self._last_stored[next(iter(self._last_stored))]

    def others_succeed(self, study_uid: str, now: Now) -> bool:
        """Whether posts of other studies were stored lately: what fails alone is then its own fault."""
        return any(
            study != study_uid and now.mono - at < _OTHERS_SUCCEED_WITHIN.total_seconds()
            for study, at in self._last_stored.items()
        )
