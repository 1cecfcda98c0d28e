"""PENDING rows to posts and back: which study is claimed when, and what a post's result does to its rows.

The attempt row is committed before the sender hears of the batch (G5); results are written before anything new is
claimed. The destination's pause is kept here, and written for ``ingestd status``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from math import inf
from random import SystemRandom

from structlog.typing import FilteringBoundLogger

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.assignment import Assignment
from ingestd.daemon.circuit_breaker import BreakerDecision, CircuitBreaker
from ingestd.daemon.post_results import PostResults
from ingestd.daemon.reach import Reach
from ingestd.daemon.stage import Gate, RunProgress, Stage
from ingestd.ledger import Ledger, Transaction, moves, queries
from ingestd.lifecycle import (
    Backoff,
    Batch,
    BatchLimits,
    BatchResult,
    Pause,
    PauseCause,
    State,
    StudyQueue,
    TimeWindow,
    Turns,
    Unproven,
    clamp_retry_after,
    study_due_at,
)
from ingestd.logs import study_ref
from ingestd.sender import ProbeResult, Sender

# Studies looked at for one round of claims.
_STUDIES_AT_ONCE = 32
# What a Retry-After comes with: it is for all who send.
_SERVERS_WISH = {PauseCause.THROTTLED, PauseCause.UNAVAILABLE}
# What is to be posted, or may have to be again.
_TO_POST = (State.PENDING, State.SENDING, State.UNCERTAIN)


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
        window: TimeWindow | None,
        most_bytes: int | None,
        progress: RunProgress,
        gives_way: Callable[[], bool],
        reach: Reach,
        tells_gone: Callable[[str], bool],
        assignment: Assignment,
        log: FilteringBoundLogger,
    ) -> None:
        """Join sender and ledger; the server is probed first of all.

        ``gives_way`` says whether a destination of higher priority has something to post: one at a time goes then.
        ``tells_gone`` says whether a file that is not there is gone, or only its folder is away. Outside ``window``
        only what goes at once is claimed; a post that is out when it closes goes on to its end. ``most_bytes`` makes
        posts smaller than ``limits``. Where several send there (``assignment``), each has its part of what may be out.
        """
        self._assignment = assignment
        self._claims = claims
        self._window = window
        self._most_bytes = most_bytes
        self._at_once = False  # the window is closed
        self._progress = progress
        self._gives_way = gives_way
        self._reach = reach
        self._sender = sender
        self._ledger = ledger
        self._limits = limits
        self._backoff = backoff
        self.post_results = PostResults(alarms, most_attempts=most_attempts, tells_gone=tells_gone)
        self._log = log
        self._jitter = SystemRandom().random
        self.destination = CircuitBreaker(backoff=backoff, jitter=self._jitter)
        written = queries.destination(ledger)
        if written is not None and written.paused_since is not None:
            self.destination.take_over(Pause(cause=PauseCause(written.pause_cause), note=written.pause_note))
        self._results: list[tuple[BatchResult, BreakerDecision]] = []
        self._paused: Pause | None = None
        self._resumed = False
        self._answered = False
        self._kind: str | None = None
        self._due: list[StudyQueue] = []
        self._turns = Turns()
        self._wakes = False  # deferred rows' time has come
        self.results_written = 0  # posts whose results are durable, in this run
        self._probe_due = True
        self._waits_for_token = False
        self._held_up = ""  # the study that is waited for in the next turn
        self._room = self._sender.most_posts  # for posts of ours, beside those that others have out

    @property
    def in_hand(self) -> int:
        """Posts under way."""
        return self._sender.in_flight

    @property
    def is_idle(self) -> bool:
        """Whether no post is under way and no result waits to be written."""
        return not (self._sender.in_flight or self._results)

    @property
    def is_busy(self) -> bool:
        """Whether posts go out, or may; not while the destination is paused, or only tried again."""
        return self.destination.is_open and bool(self._sender.in_flight or self._due)

    def collect(self, now: Now) -> None:
        """Collect results and the probe's answer, and let them pause or open the destination; see what is due."""
        for collected in self._sender.collect():
            result = self.post_results.judge(collected, now)
            decision = self.destination.posted(result, now.mono)
            self._results.append((result, decision))
            self._note(result, decision)
            if result.pause is not None or _is_answer(result):
                self._reach.take(result.pause, now)
        probe = self._sender.collect_probe()
        if probe is not None:
            self._take_probe(probe, now)
        if self._is_hurried(now):
            self.destination.hurry(now.mono)
        self._sender.share(self._assignment.workers)
        self._room = self._room_beside_others(self._ledger) + len(self._results)
        self._heed_others(now)
        if self._is_untold(now):
            self._paused = self.destination.pause
        if self._probe_due or self.destination.may_probe(now.mono) or self._is_looked_for(now):
            self._probe_due = False
            self.destination.probing = True
            self._sender.submit_probe()
        wake_at = queries.next_wake_at(self._ledger, now=now.utc)
        self._wakes = wake_at is not None and wake_at <= now.utc
        self._due = self._choose(now)
        if self.destination.half_open and self.is_idle and not self._waits():
            self.destination.open()  # no post is there to end it, and it holds nothing up
            self._answered = True
            self._resumed = self._assignment.is_whole  # else what the server asked another to wait stays
            self._log.info("destination.resumed")

    def _waits(self) -> bool:
        """Whether anything is to be posted, now or later, or may have to be."""
        rows = queries.counts(self._ledger, destination_id=self._ledger.destination_id)
        return any(rows[state] for state in _TO_POST)

    def _is_hurried(self, now: Now) -> bool:
        """Whether a person has ended the pause that was written, in another process (``ingestd retry --now``)."""
        if self._paused is not None or not self.destination.wait_left(now.mono):
            return False
        written = queries.destination(self._ledger)
        return written is not None and written.paused_until is not None and written.paused_until <= now.utc

    def _is_untold(self, now: Now) -> bool:
        """Whether our pause, which ended for all as another worker was answered, is the destination's: none is now."""
        if self._reach.name in self._assignment.reached_elsewhere or not self.destination.wait_left(now.mono):
            return False
        written = queries.destination(self._ledger)
        return written is not None and written.paused_since is None

    def _is_looked_for(self, now: Now) -> bool:
        """Whether somebody does not reach the server, so that who does has to know it."""
        is_unreached = self._reach.name in self._assignment.unreached
        waits = self.destination.probing or self.destination.wait_left(now.mono) is not None
        return is_unreached and not waits and self._reach.is_stale(now)

    def _is_own(self, pause: Pause, now: Now) -> bool:
        """Whether only we get no answer of any kind, while another worker does: nothing is stopped."""
        is_cut_off = self._reach.has_answered(now) is False and pause.cause not in _SERVERS_WISH
        return is_cut_off and self._reach.name in self._assignment.reached_elsewhere

    def _heed_others(self, now: Now) -> None:
        """Wait as long as the server has told another worker to."""
        if self._assignment.workers == 1 or not self.destination.is_open or self._resumed:
            return
        written = queries.destination(self._ledger)
        if written is not None and written.pause_cause in _SERVERS_WISH and written.paused_until is not None:
            left = written.paused_until - now.utc
            if left > timedelta(0):
                pause = Pause(cause=PauseCause(written.pause_cause), note=written.pause_note)
                self.destination.take_over(pause, now.mono + clamp_retry_after(left).total_seconds())

    def _choose(self, now: Now) -> list[StudyQueue]:
        """Say which studies are due and may be posted now; asks for a token if there are any."""
        self._waits_for_token = False
        if not self._may_post:
            return []
        self._at_once = self._window is not None and not self._window.is_open(now.utc)
        due = queries.studies_due(
            self._ledger,
            now=now.utc,
            flush=self._progress.flushes,
            limit=_STUDIES_AT_ONCE,
            at_once=self._at_once,
        )
        due = self.destination.choose(self._turns.order(due, now=now.utc), in_flight=self._sender.in_flight)
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
        if not self._claims.is_open or self._free <= 0 or self._sender.profile is None:
            return False
        return self.destination.is_open or self.destination.half_open

    @property
    def _free(self) -> int:
        """How many posts may begin; never none for good, so that whoever gives way gets on all the same."""
        free = min(self._sender.free, self._room)
        one_at_a_time = not self.destination.is_open or self._gives_way()
        return min(free, 1 - self._sender.in_flight) if one_at_a_time else free

    def _room_beside_others(self, ledger: Ledger | Transaction) -> int:
        """Say how many posts may begin where there are more workers than may be out at once: none has a part then."""
        most = self._sender.most_posts
        return most - queries.posts_out(ledger) if self._assignment.workers > most else most

    is_of_studies = True

    @property
    def studies(self) -> Collection[str] | None:
        """Those of which results came, and one that others had to themselves when it was to be claimed last."""
        if self._wakes or self._assignment.workers > self._sender.most_posts:
            return None  # rows of any, or what all have out is to be counted
        held_up = [self._held_up] if self._held_up else []
        return [*held_up, *(result.batch.study_uid for result, _ in self._results)]

    def write(self, tx: Transaction, now: Now) -> None:
        """Write results, the destination's state and, last, the claims."""
        tx = tx.at(self._ledger.destination_id)
        if self._wakes:
            moves.wake(tx, now=now.utc)
        lost: list[tuple[int, int]] = []
        for result, decision in self._results:
            finished = moves.finish(tx, result, now=now.utc, backoff=self._backoff, jitter=self._jitter())
            if decision.charge_study:
                moves.charge_study(
                    tx, result.batch.study_uid, now=now.utc, backoff=self._backoff, jitter=self._jitter()
                )
            if finished.lost:
                lost.append((result.batch.attempt_id, finished.lost))
        if self._kind is not None:
            moves.set_destination_kind(tx, self._kind)
        if self.destination.pause is not None and self._paused is not None and not self._is_own(self._paused, now):
            wait = self.destination.wait_left(now.mono) or timedelta(0)
            moves.pause_destination(tx, self._paused, until=now.utc + wait, now=now.utc)
        elif self._resumed:
            moves.resume_destination(tx, now=now.utc)
        if self._answered:
            moves.destination_answered(tx, now=now.utc)
            if self.destination.is_open and not self._assignment.is_whole:
                moves.end_pause(tx, unless=_SERVERS_WISH, now=now.utc)
        claimed, held_up = self._claim(tx, now)
        tx.on_commit(partial(self._committed, claimed, lost, held_up))

    def _committed(self, claimed: Sequence[Batch], lost: Sequence[tuple[int, int]], held_up: str) -> None:
        """The attempts are durable: let the posts leave."""
        self._held_up = held_up
        self.results_written += len(self._results)
        due = {study.study_uid: study for study in self._due}
        for batch in claimed:
            self._turns.give(due[batch.study_uid])
        self._results, self._due = [], []
        self._paused = None
        self._resumed = self._answered = False
        self._kind = None
        for attempt_id, rows in lost:
            self._log.warning("batch.rows_moved_meanwhile", attempt_id=attempt_id, rows=rows)
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
        flush = self._progress.flushes
        due_at = now.mono_of(queries.next_study_at(self._ledger, now=now.utc, flush=flush))
        if self._window is None or self._window.is_open(now.utc):
            return due_at
        opens_at = now.mono_of(self._window.around(now.utc)[0])
        at_once_at = queries.next_study_at(self._ledger, now=now.utc, flush=flush, at_once=True)
        return min(max(due_at, opens_at), now.mono_of(at_once_at))

    def _claim(self, tx: Transaction, now: Now) -> tuple[list[Batch], str]:
        """Claim what may go, and say which study to wait for next, where others had all to themselves."""
        studies = self._due
        passed_over = ""
        free = min(self._free, self._room_beside_others(tx)) if studies else 0
        claimed: list[Batch] = []
        while free > 0 and studies:
            left: list[StudyQueue] = []
            for study in studies:
                if free <= 0:
                    break
                if not tx.may_change([study.study_uid]):
                    passed_over = passed_over or study.study_uid
                    continue
                batch = moves.claim(
                    tx, study.study_uid, now=now.utc, at_once=self._at_once, most_bytes=self._most_bytes
                )
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
                if rest.waiting > 0 and study_due_at(rest, self._limits, flush=self._progress.flushes) <= now.utc:
                    left.append(rest)
            studies = left
        return claimed, "" if claimed else passed_over

    def _take_probe(self, probe: ProbeResult, now: Now) -> None:
        self._reach.take(probe.pause, now)
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

    def _note(self, result: BatchResult, decision: BreakerDecision) -> None:
        stored = sum(outcome.state is State.STORED for outcome in result.outcomes)
        self._answered = self._answered or _is_answer(result)
        if decision.paused is not None:
            self._paused = decision.paused
            self._log.warning("destination.paused", cause=decision.paused.cause.value, note=decision.paused.note)
        if decision.resumed:
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

    def found(self, row: Unproven, now: Now) -> None:
        """Note that a file is there; was it met with silence, the server takes what it is sent all the same."""
        if self.post_results.found(row, now):
            self.destination.hurry(now.mono)


def _is_answer(result: BatchResult) -> bool:
    """Whether the server answered; where a whole post is refused, it may be none: a wrong address says 404."""
    return result.answered and not result.whole_batch_refused
