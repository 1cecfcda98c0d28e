"""The destination's pause: one for all files, ended half-open."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ingestd.daemon.circuit_breaker import CircuitBreaker
from ingestd.lifecycle import (
    Backoff,
    Batch,
    BatchResult,
    Content,
    Identity,
    Outcome,
    Part,
    Pause,
    PauseCause,
    Reason,
    State,
    StudyQueue,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UNREACHABLE = Pause(cause=PauseCause.UNREACHABLE, note="no connection")


def destination() -> CircuitBreaker:
    return CircuitBreaker(backoff=Backoff(base=timedelta(seconds=10), cap=timedelta(minutes=10)), jitter=lambda: 0.0)


def study(uid: str) -> StudyQueue:
    return StudyQueue(study_uid=uid, waiting=1, waiting_bytes=1, oldest_at=NOW, newest_at=NOW)


def result(uid: str, *, pause: Pause | None = None, answered: bool = False, refused: bool = False) -> BatchResult:
    part = Part(
        delivery_id=1,
        identity=Identity(study_uid=uid, series_uid="1.2", sop_uid="1.3"),
        path="a",
        content=Content(transfer_syntax="1", digest="a", meta_digest="b", dataset_offset=0, size_bytes=1),
    )
    batch = Batch(attempt_id=1, claim_token="t", study_uid=uid, parts=(part,), started_at=NOW)
    state = State.STORED if answered else State.PENDING
    outcome = Outcome(delivery_id=1, state=state, reason=Reason.STORED_ANSWER if answered else Reason.NOT_SENT)
    return BatchResult(
        batch=batch,
        outcomes=(outcome,),
        finished_at=NOW,
        pause=pause,
        answered=answered,
        whole_batch_refused=refused,
    )


def test_open_destination_lets_every_study_go() -> None:
    assert destination().choose([study("1"), study("2")], in_flight=3) == [study("1"), study("2")]


def test_pause_lets_nothing_go_and_doubles() -> None:
    state = destination()

    state.posted(result("1", pause=UNREACHABLE), 100.0)

    assert state.choose([study("1")], in_flight=0) == []
    assert state.paused_until == 110.0
    assert not state.may_probe(109.0)
    assert state.may_probe(110.0)

    state.probing = True
    state.probed(UNREACHABLE, 110.0)

    assert state.paused_until == 130.0


@pytest.mark.parametrize("cause", list(PauseCause))
def test_a_server_that_is_away_is_probed_every_minute_and_one_that_refuses_us_ever_less_often(cause: PauseCause):
    """Seen: after an outage of six and a half minutes sending resumed two minutes late. A probe is cheap."""
    state = destination()
    waits = []
    for _ in range(10):
        state.pause_for(Pause(cause=cause, note=""), 0.0)
        assert state.paused_until is not None
        waits.append(state.paused_until)

    longest = 60.0 if cause in {PauseCause.UNREACHABLE, PauseCause.UNAVAILABLE} else 600.0
    assert (waits[0], max(waits)) == (10.0, longest)


def test_retry_after_stands_where_the_probe_would_come_sooner():
    state = destination()

    state.pause_for(Pause(cause=PauseCause.UNAVAILABLE, note="", retry_after=timedelta(minutes=5)), 0.0)

    assert state.paused_until == 300.0


def test_half_open_tries_another_study_than_the_one_that_met_the_pause() -> None:
    state = destination()
    state.posted(result("1", pause=UNREACHABLE), 100.0)
    state.probing = True

    state.probed(None, 110.0)

    assert state.choose([study("1"), study("2"), study("3")], in_flight=0) == [study("2")]
    assert state.choose([study("1")], in_flight=0) == [study("1")]
    assert state.choose([study("2")], in_flight=1) == []


def test_answered_post_opens_again() -> None:
    state = destination()
    state.posted(result("1", pause=UNREACHABLE), 100.0)
    state.probing = True
    state.probed(None, 110.0)

    verdict = state.posted(result("2", answered=True), 111.0)

    assert verdict.resumed
    assert state.is_open
    assert state.choose([study("1"), study("2")], in_flight=1) == [study("1"), study("2")]


def test_bad_requests_while_searches_are_answered_are_no_fault_of_the_configuration() -> None:
    state = destination()

    verdicts = [
        state.posted(replace(result(uid, refused=True), content_refused=True, answered=True), 100.0) for uid in "12345"
    ]

    assert [verdict.paused for verdict in verdicts] == [None] * 5
    assert state.is_open


def test_posts_in_flight_when_the_pause_began_do_not_lengthen_it() -> None:
    state = destination()
    state.posted(result("1", pause=UNREACHABLE), 100.0)

    verdict = state.posted(result("2", pause=UNREACHABLE), 101.0)

    assert verdict.paused is None
    assert state.paused_until == 110.0


def test_retry_after_is_honoured_and_clamped() -> None:
    state = destination()

    state.pause_for(Pause(cause=PauseCause.THROTTLED, note="", retry_after=timedelta(seconds=40)), 0.0)
    assert state.paused_until == 40.0

    state = destination()
    state.pause_for(Pause(cause=PauseCause.THROTTLED, note="", retry_after=timedelta(days=9)), 0.0)
    assert state.paused_until == 900.0


def test_study_in_flight_at_three_pauses_while_the_get_works_is_charged() -> None:
    state = destination()
    charged = []
    for at in (100.0, 200.0, 300.0):
        charged.append(state.posted(result("1", pause=UNREACHABLE), at).charge_study)
        state.probing = True
        state.probed(None, at + 50)

    assert charged == [False, False, True]


@pytest.mark.parametrize("uids", [("1", "2", "3")])
def test_three_studies_refused_in_a_row_are_the_configurations_fault(uids: tuple[str, ...]) -> None:
    state = destination()

    verdicts = [state.posted(result(uid, refused=True), 100.0) for uid in uids]

    assert [verdict.paused is not None for verdict in verdicts] == [False, False, True]
    assert state.pause is not None
    assert state.pause.cause is PauseCause.MISCONFIGURED


def test_one_study_refused_again_and_again_is_not_the_configurations_fault() -> None:
    state = destination()

    for _ in range(5):
        assert state.posted(result("1", refused=True), 100.0).paused is None
