"""What waits for a window or a rate is told as that: no trouble before a day is over, and in words and in JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingestd.ledger import moves
from ingestd.lifecycle import AT_ONCE, Pause, PauseCause, Reason, State
from tests.commanding import CONFIG, OTHER_STUDY, Rows, command_in

HOUR = timedelta(hours=1)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[[str], Rows]]:
    """Rows of an installation whose destination has these keys too, and whose daemon runs."""
    with ExitStack() as stack:

        def make(more: str) -> Rows:
            url = next(line for line in CONFIG.splitlines() if line.startswith("destination:"))
            rows = Rows(tmp_path, CONFIG.replace(url, url.rstrip().removesuffix("}") + f", {more}}}"))
            stack.callback(rows.close)
            stack.enter_context(rows.daemon())
            return rows

        yield make


def window(opens: timedelta, closes: timedelta) -> str:
    now = datetime.now(UTC)
    return f'window: "{now + opens:%H:%M}-{now + closes:%H:%M}", time_zone: UTC'


OPENS_LATER = (2 * HOUR, 4 * HOUR)
JUST_OPENED = (timedelta(minutes=-5), 4 * HOUR)
LONG_OPEN = (-3 * HOUR, 4 * HOUR)


def waits(rows: Rows, since: timedelta) -> None:
    rows.now = datetime.now(UTC) - since
    rows.admit("waits")


def kinds(rows: Rows, capfd: pytest.CaptureFixture[str]) -> list[str]:
    said = command_in(rows.folder, capfd)("status", "--json").json
    return [line["kind"] for line in said["stopped_because"]]


@pytest.mark.parametrize(
    "hours, since, told",
    [
        (OPENS_LATER, 23 * HOUR, []),
        (OPENS_LATER, 25 * HOUR, ["too_old"]),
        (JUST_OPENED, 6 * HOUR, []),
        (JUST_OPENED, 25 * HOUR, ["too_old"]),
        (LONG_OPEN, 6 * HOUR, ["too_old"]),
        (LONG_OPEN, 2 * HOUR, ["too_old"]),
        (LONG_OPEN, timedelta(minutes=1), []),
    ],
)
def test_age_counts_from_the_opening_and_a_day_is_told_whatever(site, capfd, hours, since, told):
    rows = site(window(*hours))
    waits(rows, since)

    assert kinds(rows, capfd) == told


def test_what_lies_in_a_folder_waits_for_no_window(site, capfd):
    rows = site(window(*OPENS_LATER))
    rows.report(files_seen=1, oldest_at=datetime.now(UTC) - HOUR)

    assert kinds(rows, capfd) == ["too_old"]


@pytest.mark.parametrize(
    "cause, told", [(PauseCause.UNREACHABLE, []), (PauseCause.NOT_AUTHORIZED, ["paused"])], ids=str
)
def test_pause_in_a_closed_window_is_told_where_a_person_must_act(site, capfd, cause, told):
    """No post can end it before the window opens."""
    rows = site(window(*OPENS_LATER))
    since = datetime.now(UTC) - HOUR
    with rows.ledger.transaction() as tx:
        moves.pause_destination(tx, Pause(cause=cause, note="what it said"), until=since, now=since)

    assert kinds(rows, capfd) == told


@pytest.mark.parametrize("answered, told", [(timedelta(minutes=1), []), (2 * HOUR, ["too_old"])])
def test_what_a_rate_holds_is_no_trouble_while_the_server_answers(site, capfd, answered, told):
    rows = site("rate: 1MB/s")
    waits(rows, 5 * HOUR)
    with rows.ledger.transaction() as tx:
        moves.destination_answered(tx, now=datetime.now(UTC) - answered)

    assert kinds(rows, capfd) == told


def test_status_says_what_waits_for_its_window(site, capfd):
    rows = site(window(*OPENS_LATER))
    command = command_in(rows.folder, capfd)
    assert "waits for its window" not in command("status").out
    waits(rows, HOUR)

    told = command("status", "--json").json["destination"]
    opens = told["window"][:5]
    assert f"waits for its window, opens at {opens} (UTC), in 1 h 5" in command("status").out
    assert (told["time_zone"], told["rate_bytes_per_second"]) == ("UTC", None)
    assert datetime.fromisoformat(told["opens_at"]) > datetime.now(UTC)


def test_status_says_how_much_waits_for_the_rate(site, capfd):
    rows = site(f"rate: 10kB/s, {window(*LONG_OPEN)}")
    waits(rows, HOUR)
    command = command_in(rows.folder, capfd)

    assert "held to 10kB/s: 1.0 kB on the way (0 s at least)" in command("status").out
    told = command("status", "--json").json["destination"]
    assert (told["rate_bytes_per_second"], told["opens_at"]) == (10_000, None)


def test_explain_says_what_a_file_waits_for(site, capfd):
    rows = site(window(*OPENS_LATER))
    waits(rows, HOUR)
    at_once, sent = rows.admit("at_once", study=OTHER_STUDY, priority=AT_ONCE), rows.admit("sent", study="1.2.3")
    rows.finish(rows.claim("1.2.3"), State.STORED, Reason.STORED_ANSWER)
    command = command_in(rows.folder, capfd)

    said = command("explain", "waits").out
    assert "it is sent when its study is due; but waits for its window, opens at" in said
    for other in (at_once, sent):
        assert "window" not in command("explain", str(other)).out


def test_explain_says_what_a_file_goes_at(site, capfd):
    rows = site("rate: 10kB/s")
    waits(rows, HOUR)

    said = command_in(rows.folder, capfd)("explain", "waits").out
    assert "but held to 10kB/s: 1.0 kB on the way" in said


@pytest.mark.parametrize("hours, now", [(OPENS_LATER, "closed now, and opens at"), (LONG_OPEN, "open now")])
def test_check_says_what_a_destination_is_held_to(site, capfd, hours, now):
    rows = site(f"rate: 8MB/s, {window(*hours)}")
    said = command_in(rows.folder, capfd)("check").out

    assert "what is sent leaves at 8MB/s at most" in " ".join(said.split())
    assert now in " ".join(said.split())
