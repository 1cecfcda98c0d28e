"""Sender: worker threads that post batches, as many at once as the server likes, and the probe that ends a pause.

The main thread submits and collects; a worker reads files and does HTTP, and only ever appends to a deque and calls
``wake``. A post's result is complete when it is collected: an Outcome for each of its parts, whatever happened.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from http import HTTPStatus

from ingestd import threads
from ingestd.clocks import boottime
from ingestd.dicomweb import DicomWebClient, DicomWebError, StorePart, Throttled, Unavailable
from ingestd.error_location import location_of
from ingestd.fs.places import open_file
from ingestd.lifecycle import Batch, BatchResult, Outcome, Part, Pause, PauseCause, Reason, ServerProfile, State
from ingestd.outages import pause_of
from ingestd.sender.before import ask_present, leave_out_what_is_there
from ingestd.sender.failures import judge_crash, judge_failure
from ingestd.sender.pace import Pace
from ingestd.sender.profile import look_in, probe_profile
from ingestd.sender.verdicts import Terms, judge_answer

# A token that was at hand so recently is not asked for again; from half of it on it is looked after in the background.
_TOKEN_FRESH_SECONDS = 60.0
# What a healthy post may take beyond the client's own deadlines: a second try with a new token, queries, the disk.
_SLACK_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeResult:
    """What the cheap GET came to: a reason to stay paused, or None; the server's profile where it was asked for."""

    pause: Pause | None
    profile: ServerProfile | None = None


@dataclass(frozen=True, slots=True)
class _Ended:
    """A post that has ended, and whether by a server that has too much to do."""

    result: BatchResult
    began: float
    congested: bool


class Sender:
    """Posts batches on worker threads. Every method is for one thread, the daemon's main one, and returns at once."""

    def __init__(
        self,
        client: DicomWebClient,
        *,
        profile: ServerProfile | None,
        wake: Callable[[], object],
        utc_now: Callable[[], datetime],
        most_posts: int = 8,
        reencode_refused: bool = True,
        file_meta: Callable[[Part], bytes] | None = None,
    ) -> None:
        """Start the workers; with ``profile`` None nothing may be submitted until a probe has found one."""
        self.profile = profile
        self._asks_profile = profile is None
        self._client = client
        self._wake = wake
        self._utc_now = utc_now
        self._reencode_refused = reencode_refused
        self._file_meta = file_meta
        self._pace = Pace(most_posts)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._errands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._results: deque[_Ended] = deque()
        self._probes: deque[ProbeResult] = deque()
        self._tokens: deque[Pause | None] = deque()
        self._began: dict[str, tuple[float, int]] = {}  # claim token -> when submitted, how large
        self._token_at: float | None = None
        self._token_asked = False
        self._closed = False
        self._threads = [
            threading.Thread(target=_work, args=(self._jobs,), name=f"ingestd-post-{number}", daemon=True)
            for number in range(max(1, most_posts))
        ]
        self._threads.append(threading.Thread(target=_work, args=(self._errands,), name="ingestd-errands", daemon=True))
        for thread in self._threads:
            threads.start(thread)

    @property
    def limit(self) -> int:
        """How many posts at once the server likes, as far as is known."""
        return self._pace.limit

    @property
    def in_flight(self) -> int:
        """Batches submitted and not yet collected."""
        return len(self._began)

    @property
    def free(self) -> int:
        """How many batches may be submitted now."""
        if self._closed or self.profile is None:
            return 0
        return max(0, self._pace.limit - self.in_flight)

    def submit(self, batch: Batch) -> None:
        """Post a batch; its attempt row is durable already."""
        assert not self._closed, "nothing is submitted to a closed sender"
        assert self.profile is not None, "the server's profile is known before anything is claimed"
        profile, began = self.profile, boottime()
        self._began[batch.claim_token] = (began, batch.size_bytes)

        def post() -> None:
            result, congested = self._post(batch, profile)
            result = replace(result, seconds=boottime() - began)
            self._results.append(_Ended(result, began, congested))
            self._wake()

        self._jobs.put(post)

    def collect(self) -> list[BatchResult]:
        """Return the posts that have ended since, oldest first; never blocks."""
        collected: list[BatchResult] = []
        while self._results:
            ended = self._results.popleft()
            self._learn(ended)
            self._began.pop(ended.result.batch.claim_token, None)
            collected.append(ended.result)
        return collected

    def prepare(self) -> bool | Pause:
        """Say whether a token is at hand; to be asked before every claim.

        False: it is being fetched, and ``wake`` follows. A Pause says, once, that it could not be had.
        """
        refused = self._take_tokens()
        if refused is not None:
            return refused
        age = None if self._token_at is None else boottime() - self._token_at
        if (age is None or age > _TOKEN_FRESH_SECONDS / 2) and not self._token_asked:
            self._token_asked = True
            self._errands.put(self._fetch_token)
        return age is not None and age <= _TOKEN_FRESH_SECONDS

    def submit_probe(self) -> None:
        """Make the cheap authenticated GET, and find the profile anew unless it was given."""
        asks = self._asks_profile
        profile = self.profile

        def probe() -> None:
            self._probes.append(self._probe(profile, asks=asks))
            self._wake()

        self._errands.put(probe)

    def collect_probe(self) -> ProbeResult | None:
        """Return what a probe came to, once; takes over the profile that it found."""
        if not self._probes:
            return None
        found = self._probes.popleft()
        if found.profile is not None:
            self.profile = found.profile
        return found

    def is_healthy(self) -> bool:
        """Say whether every worker lives and no post is past every deadline it has."""
        if self._closed:
            return True
        now = boottime()
        timeouts = self._client.transport.timeouts
        patience = {token: 2 * timeouts.seconds_for(size) + _SLACK_SECONDS for token, (_, size) in self._began.items()}
        return all(thread.is_alive() for thread in self._threads) and all(
            now - began < patience[token] for token, (began, _) in self._began.items()
        )

    def close(self, grace: timedelta) -> int:
        """Take nothing more, wait for the posts in flight, and say how many were given up: their rows stay SENDING.

        What ended in time can still be collected.
        """
        self._closed = True
        for _ in self._threads[:-1]:
            self._jobs.put(None)
        self._errands.put(None)
        deadline = boottime() + grace.total_seconds()
        for thread in self._threads:
            thread.join(max(0.0, deadline - boottime()))
        return len(self._began) - len(self._results)

    def _learn(self, ended: _Ended) -> None:
        """Let the pace know how the server took it."""
        now = boottime()
        result = ended.result
        if ended.congested:
            self._pace.congested(began=ended.began, at=now)
        elif result.answered:
            self._pace.succeeded(
                size_bytes=result.batch.size_bytes,
                instances=len(result.batch.parts),
                in_flight=self.in_flight,
                at=now,
            )

    def _take_tokens(self) -> Pause | None:
        while self._tokens:
            answer = self._tokens.popleft()
            self._token_asked = False
            if answer is not None:
                self._token_at = None
                return answer
            self._token_at = boottime()
        return None

    def _fetch_token(self) -> None:
        pause: Pause | None = None
        try:
            self._client.prepare()
        except DicomWebError as error:
            pause = pause_of(error)
        except Exception as error:  # noqa: BLE001 - the credential libraries raise what they like
            note = f"no token could be had: {location_of(error)}; it is tried again"
            pause = Pause(cause=PauseCause.NO_TOKEN, note=note)
        self._tokens.append(pause)
        self._wake()

    def _probe(self, profile: ServerProfile | None, *, asks: bool) -> ProbeResult:
        try:
            self._client.prepare()
            if asks:
                return ProbeResult(pause=None, profile=probe_profile(self._client))
            look_in(self._client, profile)
        except DicomWebError as error:
            return ProbeResult(pause=pause_of(error))
        except Exception as error:  # noqa: BLE001 - a worker never dies; the place is told
            note = f"the server could not be asked: unexpected {location_of(error)}; it is tried again"
            return ProbeResult(pause=Pause(cause=PauseCause.UNREACHABLE, note=note))
        return ProbeResult(pause=None)

    def _post(self, batch: Batch, profile: ServerProfile) -> tuple[BatchResult, bool]:
        """Post, judge whatever comes of it, and say whether the server has too much to do; raises nothing."""
        terms = Terms(profile=profile, reencode_refused=self._reencode_refused, now=self._utc_now())
        posted, settled = _without_replacements(batch)
        congested = False
        try:
            if not profile.refuses_duplicates:
                terms = replace(terms, present_before=ask_present(self._client, posted))
                posted, there = leave_out_what_is_there(posted, terms)
                settled += there
            if not posted.parts:
                nothing = BatchResult(batch=batch, outcomes=settled, finished_at=self._utc_now(), answered=True)
                return nothing, False
            upsert = all(part.replaces for part in posted.parts)
            answer = self._client.store([self._store_part(part) for part in posted.parts], upsert=upsert)
            result = judge_answer(posted, answer, terms=replace(terms, now=self._utc_now()))
            if upsert:
                result = _to_be_compared(result)
        except DicomWebError as error:
            # The query before the post has no body: what fails there is proven not sent.
            result = judge_failure(posted, error, terms=replace(terms, now=self._utc_now()))
            congested = _says_too_much(error)
        except Exception as error:  # noqa: BLE001 - our own fault; the rows must not hang in SENDING for it
            result = judge_crash(posted, location_of(error), terms=replace(terms, now=self._utc_now()))
        return replace(result, batch=batch, outcomes=result.outcomes + settled), congested

    def _store_part(self, part: Part) -> StorePart:
        content = part.content
        prefix = b""
        if part.generated_meta:
            assert self._file_meta is not None, "files without File Meta are admitted where somebody can make one"
            prefix = self._file_meta(part)
        return StorePart(
            path=part.path,
            opener=open_file,
            size_bytes=content.size_bytes,
            sop_uid=part.identity.sop_uid,
            dataset_offset=content.dataset_offset,
            digest=content.digest,
            meta_digest=content.meta_digest,
            prefix=prefix,
        )


def _to_be_compared(result: BatchResult) -> BatchResult:
    """It took the place of something: the feed shows both, and only the content tells which one is there."""
    outcomes = tuple(
        replace(outcome, needs_content_check=True, wait=timedelta(0)) if outcome.state is State.STORED else outcome
        for outcome in result.outcomes
    )
    return replace(result, outcomes=outcomes)


def _says_too_much(error: DicomWebError) -> bool:
    if isinstance(error, Unavailable) and (error.timed_out or error.status == HTTPStatus.SERVICE_UNAVAILABLE):
        return True
    return isinstance(error, Throttled)


def _without_replacements(batch: Batch) -> tuple[Batch, tuple[Outcome, ...]]:
    """Leave out parts that are to replace something from a batch of others: PUT would replace the others too."""
    replacing = [part for part in batch.parts if part.replaces]
    if not replacing or len(batch.parts) == 1 or len(replacing) == len(batch.parts):
        return batch, ()
    held_back = tuple(
        Outcome(
            entry_id=part.entry_id,
            state=State.PENDING,
            reason=Reason.NOT_SENT,
            note="it takes another object's place and is sent alone",
            alone=True,
        )
        for part in replacing
    )
    return replace(batch, parts=tuple(part for part in batch.parts if not part.replaces)), held_back


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """Do one job after the other until told to stop."""
    while (job := jobs.get()) is not None:
        job()
