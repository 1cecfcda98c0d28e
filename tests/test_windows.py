"""The hours of a destination: open and closed as the clock on the wall of its zone says, whatever that clock does."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest

from ingestd.lifecycle import TimeWindow

ZURICH = ZoneInfo("Europe/Zurich")
NIGHT = TimeWindow(opens=time(19), closes=time(7), zone=ZURICH)
DAY = TimeWindow(opens=time(7), closes=time(19), zone=ZURICH)
SMALL_HOURS = TimeWindow(opens=time(2, 30), closes=time(4), zone=ZURICH)


def at(text: str, zone: ZoneInfo = ZURICH, *, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).astimezone(UTC)


@pytest.mark.parametrize(
    "window, when, is_open",
    [
        (NIGHT, "2026-01-10T18:59:59", False),
        (NIGHT, "2026-01-10T19:00:00", True),
        (NIGHT, "2026-01-11T00:00:00", True),
        (NIGHT, "2026-01-11T06:59:59", True),
        (NIGHT, "2026-01-11T07:00:00", False),
        (DAY, "2026-07-10T06:59:59", False),
        (DAY, "2026-07-10T07:00:00", True),
        (DAY, "2026-07-10T19:00:00", False),
    ],
)
def test_window_is_open_from_its_first_instant_to_before_its_last(window, when, is_open):
    assert window.is_open(at(when)) is is_open


def test_window_says_when_it_opens_and_closes():
    assert NIGHT.around(at("2026-01-10T12:00")) == (at("2026-01-10T19:00"), at("2026-01-11T07:00"))
    assert NIGHT.around(at("2026-01-11T03:00")) == (at("2026-01-10T19:00"), at("2026-01-11T07:00"))
    assert NIGHT.around(at("2026-01-11T07:00")) == (at("2026-01-11T19:00"), at("2026-01-12T07:00"))


def test_night_is_an_hour_shorter_in_spring_and_longer_in_autumn():
    for day, hours in (("2026-03-28", 11), ("2026-10-24", 13), ("2026-11-24", 12)):
        opens, closes = NIGHT.around(at(f"{day}T20:00"))

        assert closes - opens == timedelta(hours=hours)


def test_end_that_the_clock_leaves_out_is_when_it_is_set_forward():
    """02:30 does not exist on 29 March: at 02:00 it is 03:00."""
    opens, closes = SMALL_HOURS.around(at("2026-03-29T01:00"))

    assert (opens, closes) == (at("2026-03-29T03:00"), at("2026-03-29T04:00"))


def test_end_that_comes_twice_counts_the_first_time():
    """From 02:00 to 03:00 comes twice on 25 October."""
    until = TimeWindow(opens=time(22), closes=time(2, 30), zone=ZURICH)

    assert SMALL_HOURS.around(at("2026-10-25T01:00")) == (at("2026-10-25T02:30"), at("2026-10-25T04:00"))
    assert until.around(at("2026-10-25T01:00"))[1] == at("2026-10-25T02:30")
    assert not until.is_open(at("2026-10-25T02:10", fold=1))


def test_window_that_the_clock_leaves_out_whole_is_the_next_days():
    brief = TimeWindow(opens=time(2, 10), closes=time(2, 50), zone=ZURICH)

    assert brief.around(at("2026-03-29T00:00"))[0] == at("2026-03-30T02:10")


def test_day_that_a_zone_left_out_closes_nothing():
    """Samoa had no 30 December 2011."""
    night = TimeWindow(opens=time(19), closes=time(7), zone=ZoneInfo("Pacific/Apia"))

    assert night.is_open(at("2011-12-31T03:00", night.zone))
    assert night.is_open(at("2011-12-29T20:00", night.zone))


def changes_of(zone: ZoneInfo) -> list[datetime]:
    """Find by halves when the clock of a zone was set, over two years."""
    found = []
    day = datetime(2025, 1, 1, tzinfo=UTC)
    while day.year < 2027:
        low, high = day, day + timedelta(days=1)
        if low.astimezone(zone).utcoffset() != high.astimezone(zone).utcoffset():
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) / 2
                same = middle.astimezone(zone).utcoffset() == low.astimezone(zone).utcoffset()
                low, high = (middle, high) if same else (low, middle)
            found.append(high.replace(microsecond=0))
        day += timedelta(days=1)
    return found


ENDS = [(time(19), time(7)), (time(2, 30), time(3, 15)), (time(0), time(1, 30)), (time(1, 45), time(1, 15))]


def test_around_each_change_of_each_zone_it_is_open_as_the_wall_says():
    """Where an hour comes twice, what the wall says in its first coming holds; else always."""
    seen = set()
    for zone in map(ZoneInfo, sorted(available_timezones())):
        changes = changes_of(zone)
        alike = (*changes, *(change.astimezone(zone).utcoffset() for change in changes))
        if alike not in seen:
            seen.add(alike)
            for change in changes:
                for opens, closes in ENDS:
                    assert_open_as_the_wall_says(TimeWindow(opens=opens, closes=closes, zone=zone), change)


def assert_open_as_the_wall_says(window: TimeWindow, change: datetime) -> None:
    for minutes in range(-300, 300, 17):
        when = change + timedelta(minutes=minutes)
        local = when.astimezone(window.zone)
        begins, ends = window.around(when)

        assert max(begins, when) < ends
        if local.utcoffset() == local.replace(fold=1 - local.fold).utcoffset():  # it comes once
            is_late = local.time() >= window.opens
            says = is_late and local.time() < window.closes
            if window.opens > window.closes:
                says = is_late or local.time() < window.closes
            assert window.is_open(when) is says, (window, when)
