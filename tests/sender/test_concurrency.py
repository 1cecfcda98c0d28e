"""How many posts at once: grown while it helps, taken back where it does not, halved when the server suffers."""

from __future__ import annotations

from ingestd.sender.concurrency import ConcurrencyLimit


def run(limit: ConcurrencyLimit, rate_at: dict[int, float] | None, *, posts: int, at: float = 0.0) -> float:
    """Keep all places taken with posts of a megabyte; ``rate_at`` says how many a second end at which limit."""
    for _ in range(posts):
        rate = (rate_at or {}).get(limit.value, 10.0 * limit.value)
        at += 1.0 / rate
        limit.succeeded(size_bytes=1_000_000, instances=1, in_flight=limit.value, at=at)
    return at


def test_limit_starts_at_four_and_grows_while_throughput_does():
    limit = ConcurrencyLimit(8)
    assert limit.value == 4

    run(limit, None, posts=200)

    assert limit.value == 8


def test_limit_never_passes_what_was_configured():
    assert ConcurrencyLimit(1).value == 1
    limit = ConcurrencyLimit(5)
    run(limit, None, posts=500)
    assert limit.value == 5


def test_limit_stays_where_more_does_not_help():
    limit = ConcurrencyLimit(8)
    flat = {4: 10.0, 5: 15.0, 6: 15.1, 7: 15.1}
    limits = []
    at = 0.0
    for _ in range(400):
        at = run(limit, flat, posts=1, at=at)
        limits.append(limit.value)

    assert max(limits) == 6
    assert limits.count(5) > 300, "one more is tried now and then, and taken back"


def test_idle_places_teach_nothing():
    limit = ConcurrencyLimit(8)
    for number in range(300):
        limit.succeeded(size_bytes=1_000_000, instances=1, in_flight=1, at=float(number))

    assert limit.value == 4


def test_limit_is_halved_once_for_the_posts_of_one_moment():
    limit = ConcurrencyLimit(8)
    at = run(limit, None, posts=200)
    for _ in range(8):
        limit.congested(began=at - 1, at=at)

    assert limit.value == 4
    limit.congested(began=at + 1, at=at + 2)
    assert limit.value == 2
    for step in range(5):
        limit.congested(began=at + 3 + 2 * step, at=at + 4 + 2 * step)
    assert limit.value == 1


def test_limit_grows_again_after_the_server_has_recovered():
    limit = ConcurrencyLimit(8)
    at = run(limit, None, posts=200)
    limit.congested(began=at, at=at + 1)
    limit.congested(began=at + 2, at=at + 3)
    assert limit.value == 2

    run(limit, None, posts=300, at=at + 4)

    assert limit.value == 8
