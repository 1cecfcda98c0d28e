"""What a worker says of whether it reaches a server, and what it keeps to itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingestd.clocks import Now, read_clocks
from ingestd.daemon.reach import Reach
from ingestd.ledger import queries
from ingestd.lifecycle import Pause, PauseCause
from tests.daemon.test_verification import rooms, turn_until
from tests.ledgers import by_lock_only
from tests.ports import own_port
from tests.running import Site
from tests.serving import only_server

LEASE = timedelta(seconds=60)
AWAY = Pause(cause=PauseCause.UNREACHABLE, note="no route")


def at(seconds: float) -> Now:
    return Now(utc=datetime(2026, 1, 1, tzinfo=UTC), mono=seconds)


@pytest.fixture
def reach() -> Reach:
    return Reach("default", LEASE)


def test_nothing_is_known_before_anything_was_asked(reach):
    assert reach.has_answered(at(0)) is None
    assert reach.is_stale(at(0))


def test_server_is_failed_at_only_after_three_leases_of_failures(reach):
    reach.take(None, at(0))
    for seconds in range(10, 190, 10):
        reach.take(AWAY, at(seconds))
        assert reach.has_answered(at(seconds)) is (True if seconds < 180 else None)
    reach.take(AWAY, at(190))
    assert reach.has_answered(at(190)) is False


def test_server_that_came_back_for_another_is_asked_once_more_before_that_counts(reach):
    reach.take(AWAY, at(0))
    reach.take(AWAY, at(200))
    assert not reach.was_asked_after(210, at(220))
    reach.take(AWAY, at(230))
    assert reach.was_asked_after(210, at(240))


def test_first_answer_ends_it(reach):
    reach.take(AWAY, at(0))
    reach.take(AWAY, at(200))
    assert reach.has_answered(at(200)) is False
    reach.take(None, at(201))
    assert reach.has_answered(at(201)) is True
    reach.take(AWAY, at(202))
    assert reach.has_answered(at(202)) is True


def test_one_failure_with_nothing_asked_since_says_nothing(reach):
    reach.take(AWAY, at(0))
    assert reach.has_answered(at(10_000)) is None


def test_answer_of_long_ago_says_nothing(reach):
    reach.take(None, at(0))
    assert reach.has_answered(at(180)) is None


def test_server_that_asks_to_slow_down_is_reached_and_not_failed_at(reach):
    for seconds in (0, 200):
        reach.take(Pause(cause=PauseCause.THROTTLED, note="429"), at(seconds))
    assert reach.has_answered(at(200)) is None


def test_failures_of_before_a_server_asked_to_slow_down_count_no_more(reach):
    reach.take(AWAY, at(0))
    reach.take(Pause(cause=PauseCause.THROTTLED, note="429"), at(100))
    reach.take(AWAY, at(200))
    assert reach.has_answered(at(200)) is None


@by_lock_only
@pytest.mark.parametrize("elsewhere", [False, True])
def test_pause_of_one_is_not_the_destinations_while_another_is_answered(tmp_path: Path, elsewhere: bool):
    """`status` said once a minute that sending was stopped, while the others sent."""
    site = Site(tmp_path / "site", f"http://127.0.0.1:{own_port()}/v2")
    with rooms(site) as daemon:
        daemon.assignment.reached_elsewhere = frozenset(daemon.assignment.reach if elsewhere else ())
        daemon.assignment.reach["default"].take(AWAY, at(read_clocks().mono - 1000))
        destination = only_server(daemon).posting.destination
        turn_until(daemon, lambda: destination.pause, what="the pause")

        written = queries.destination(daemon.ledger)

    assert written is not None
    assert (written.paused_since is None) == elsewhere
