"""How many posts at once: grown while it helps, taken back where it does not, halved when the server suffers."""

from __future__ import annotations

from ingestd.sender.pace import Pace


def run(pace: Pace, rate_at: dict[int, float] | None, *, posts: int, at: float = 0.0) -> float:
    """Keep all places taken with posts of a megabyte; ``rate_at`` says how many a second end at which limit."""
    for _ in range(posts):
        rate = (rate_at or {}).get(pace.limit, 10.0 * pace.limit)
        at += 1.0 / rate
        pace.succeeded(size_bytes=1_000_000, instances=1, in_flight=pace.limit, at=at)
    return at


def test_limit_starts_at_four_and_grows_while_throughput_does():
    pace = Pace(8)
    assert pace.limit == 4

    run(pace, None, posts=200)

    assert pace.limit == 8


def test_limit_never_passes_what_was_configured():
    assert Pace(1).limit == 1
    pace = Pace(5)
    run(pace, None, posts=500)
    assert pace.limit == 5


def test_limit_stays_where_more_does_not_help():
    pace = Pace(8)
    flat = {4: 10.0, 5: 15.0, 6: 15.1, 7: 15.1}
    limits = []
    at = 0.0
    for _ in range(400):
        at = run(pace, flat, posts=1, at=at)
        limits.append(pace.limit)

    assert max(limits) == 6
    assert limits.count(5) > 300, "one more is tried now and then, and taken back"


def test_idle_places_teach_nothing():
    pace = Pace(8)
    for number in range(300):
        pace.succeeded(size_bytes=1_000_000, instances=1, in_flight=1, at=float(number))

    assert pace.limit == 4


def test_limit_is_halved_once_for_the_posts_of_one_moment():
    pace = Pace(8)
    at = run(pace, None, posts=200)
    for _ in range(8):
        pace.congested(began=at - 1, at=at)

    assert pace.limit == 4
    pace.congested(began=at + 1, at=at + 2)
    assert pace.limit == 2
    for step in range(5):
        pace.congested(began=at + 3 + 2 * step, at=at + 4 + 2 * step)
    assert pace.limit == 1


def test_limit_grows_again_after_the_server_has_recovered():
    pace = Pace(8)
    at = run(pace, None, posts=200)
    pace.congested(began=at, at=at + 1)
    pace.congested(began=at + 2, at=at + 3)
    assert pace.limit == 2

    run(pace, None, posts=300, at=at + 4)

    assert pace.limit == 8
