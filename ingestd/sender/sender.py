"""Sender: posts batches, as many at once as the server likes, and makes the probe that ends a pause.

The main thread submits and collects; workers read files and do HTTP. A post's result is complete when it is collected:
an Outcome for each of its parts, whatever happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from http import HTTPStatus

from ingestd.clocks import boottime
from ingestd.dicomweb import DicomWebClient, DicomWebError, StorePart, Throttled, Unavailable
from ingestd.error_location import location_of
from ingestd.fs.places import open_file
from ingestd.lifecycle import Batch, BatchResult, Outcome, Part, Pause, PauseCause, Reason, ServerProfile, State
from ingestd.outages import pause_of
from ingestd.sender.concurrency import ConcurrencyLimit
from ingestd.sender.existence_check import ask_present, leave_out_what_is_there
from ingestd.sender.failures import judge_crash, judge_failure
from ingestd.sender.profile import look_in, probe_profile
from ingestd.sender.store_response import Terms, judge_answer
from ingestd.workers import Workers, start_all

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
        self._utc_now = utc_now
        self._reencode_refused = reencode_refused
        self._file_meta = file_meta
        self._most_posts = max(1, most_posts)
        self._concurrency = ConcurrencyLimit(most_posts)
        self._posts = Workers[_Ended]("ingestd-post", wake=wake, threads=self._most_posts)
        self._probes = Workers[ProbeResult]("ingestd-probe", wake=wake)
        self._tokens = Workers[Pause | None]("ingestd-token", wake=wake)
        self._began: dict[str, tuple[float, int]] = {}  # of what is out, by claim token: when submitted, how large
        self._token_at: float | None = None
        self._closed = False
        self._workers = 1
        start_all(self._posts, self._probes, self._tokens)

    @property
    def limit(self) -> int:
        """How many posts at once the server likes, as far as is known."""
        return self._concurrency.value

    @property
    def most_posts(self) -> int:
        """How many may be out at once, of all who send there."""
        return self._most_posts

    @property
    def in_flight(self) -> int:
        """Batches submitted and not yet collected."""
        return self._posts.in_flight

    @property
    def free(self) -> int:
        """How many batches may be submitted now."""
        if self._closed or self.profile is None:
            return 0
        return max(0, min(self.limit, max(1, self._most_posts // self._workers)) - self.in_flight)

    def share(self, workers: int) -> None:
        """Take only our part of what the server is sent at once, where so many processes send."""
        self._workers = workers
        if self._client.transport.pace is not None:
            self._client.transport.pace.workers = workers

    def submit(self, batch: Batch) -> None:
        """Post a batch; its attempt row is durable already."""
        assert self.profile is not None, "the server's profile is known before anything is claimed"
        began = boottime()
        self._began[batch.claim_token] = (began, batch.size_bytes)
        self._posts.submit(partial(self._post, batch, self.profile, began))

    def collect(self) -> list[BatchResult]:
        """Return the posts that have ended since, oldest first; never blocks."""
        collected: list[BatchResult] = []
        all_ended = self._posts.collect()
        for place, ended in enumerate(all_ended):
            result, now = ended.result, boottime()
            if ended.congested:
                self._concurrency.congested(began=ended.began, at=now)
            elif result.answered:
                self._concurrency.succeeded(
                    size_bytes=result.batch.size_bytes,
                    instances=len(result.batch.parts),
                    in_flight=self.in_flight + len(all_ended) - place,
                    at=now,
                )
            collected.append(result)
        return collected

    def prepare(self) -> bool | Pause:
        """Say whether a token is at hand; to be asked before every claim.

        False: it is being fetched, and ``wake`` follows. A Pause says, once, that it could not be had.
        """
        for refused in self._tokens.collect():
            self._token_at = boottime() if refused is None else None
            if refused is not None:
                return refused
        age = None if self._token_at is None else boottime() - self._token_at
        if (age is None or age > _TOKEN_FRESH_SECONDS / 2) and not self._tokens.in_flight:
            self._tokens.submit(self._fetch_token)
        return age is not None and age <= _TOKEN_FRESH_SECONDS

    def submit_probe(self) -> None:
        """Make the cheap authenticated GET, and find the profile anew unless it was given."""
        self._probes.submit(partial(self._probe, self.profile, asks=self._asks_profile))

    def collect_probe(self) -> ProbeResult | None:
        """Return what a probe came to, once; takes over the profile that it found."""
        found: ProbeResult | None = None
        for found in self._probes.collect():
            self.profile = found.profile or self.profile
        return found

    def is_healthy(self) -> bool:
        """Say whether every worker lives and no post is past every deadline it has."""
        if self._closed:
            return True
        now = boottime()
        return all(workers.is_healthy() for workers in (self._posts, self._probes, self._tokens)) and all(
            now - began < 2 * self._seconds_for(size) + _SLACK_SECONDS for began, size in list(self._began.values())
        )

    def _seconds_for(self, size_bytes: int) -> float:
        """Say how long the transfer of so many bytes may take, among the others that share the line."""
        transport = self._client.transport
        waits = transport.pace.seconds_for(size_bytes, shared_by=self._most_posts) if transport.pace else 0.0
        return transport.timeouts.seconds_for(size_bytes) + waits

    def close(self, grace: timedelta) -> int:
        """Take nothing more, wait for the posts in flight, and say how many were given up: their rows stay SENDING.

        What ended in time can still be collected.
        """
        self._closed = True
        deadline = boottime() + grace.total_seconds()
        given_up = self._posts.close(grace.total_seconds())
        for workers in (self._probes, self._tokens):
            workers.close(max(0.0, deadline - boottime()))
        return given_up

    def _fetch_token(self) -> Pause | None:
        try:
            self._client.prepare()
        except DicomWebError as error:
            return pause_of(error)
        except Exception as error:  # noqa: BLE001 - the credential libraries raise what they like
            note = f"no token could be had: {location_of(error)}; it is tried again"
            return Pause(cause=PauseCause.NO_TOKEN, note=note)
        return None

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

    def _post(self, batch: Batch, profile: ServerProfile, began: float) -> _Ended:
        """Post, judge whatever comes of it, and say whether the server has too much to do; raises nothing."""
        terms = Terms(profile=profile, reencode_refused=self._reencode_refused, now=self._utc_now())
        posted, left_out = _without_replacements(batch)
        congested = False
        try:
            if not profile.refuses_duplicates:
                terms = replace(terms, present_before=ask_present(self._client, posted))
                posted, there = leave_out_what_is_there(posted, terms)
                left_out += there
            result = self._store(posted, terms)
        except DicomWebError as error:
            # The query before the post has no body: what fails there is proven not sent.
            result = judge_failure(posted, error, terms=replace(terms, now=self._utc_now()))
            congested = _says_too_much(error)
        except Exception as error:  # noqa: BLE001 - our own fault; the rows must not hang in SENDING for it
            result = judge_crash(posted, location_of(error), terms=replace(terms, now=self._utc_now()))
        finally:
            # Not when it is collected: nothing is, while the ledger is away.
            del self._began[batch.claim_token]
        outcomes = result.outcomes + left_out
        return _Ended(replace(result, batch=batch, outcomes=outcomes, seconds=boottime() - began), began, congested)

    def _store(self, batch: Batch, terms: Terms) -> BatchResult:
        if not batch.parts:
            return BatchResult(batch=batch, outcomes=(), finished_at=self._utc_now(), answered=True)
        parts = []
        for part in batch.parts:
            prefix = b""
            if part.generated_meta:
                assert self._file_meta is not None, "files without File Meta are admitted where somebody can make one"
                prefix = self._file_meta(part)
            content = part.content
            parts.append(
                StorePart(
                    path=part.path,
                    opener=open_file,
                    size_bytes=content.size_bytes,
                    sop_uid=part.identity.sop_uid,
                    dataset_offset=content.dataset_offset,
                    digest=content.digest,
                    meta_digest=content.meta_digest,
                    prefix=prefix,
                )
            )
        upsert = batch.parts[0].replaces  # then all do, see _without_replacements
        answer = self._client.store(parts, upsert=upsert, at_once=batch.at_once)
        result = judge_answer(batch, answer, terms=replace(terms, now=self._utc_now()))
        return _to_be_compared(result) if upsert else result


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
    others: list[Part] = []
    held_back: list[Outcome] = []
    for part in batch.parts:
        if not part.replaces:
            others.append(part)
            continue
        held_back.append(
            Outcome(
                delivery_id=part.delivery_id,
                state=State.PENDING,
                reason=Reason.NOT_SENT,
                note="it takes another object's place and is sent alone",
                alone=True,
            )
        )
    if not others or not held_back:
        return batch, ()
    return replace(batch, parts=tuple(others)), tuple(held_back)
