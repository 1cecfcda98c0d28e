"""A destination's window and rate in the daemon: what waits, what goes, and what a person asks for now."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from ingestd.config import load
from ingestd.daemon import once_policies, run_once
from ingestd.daemon.settings import most_posts_of
from ingestd.emulator import Emulator
from tests.builders import write_instance
from tests.clocking import MovingClock, sets_clock
from tests.emulating import stores
from tests.running import QUICK_INBOX, Site, wait_until

HOURS = timedelta(hours=1)


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def window(*, opens_in: timedelta, closes_in: timedelta) -> dict[str, Any]:
    now = datetime.now(UTC)
    hours = "-".join(f"{now + each:%H:%M}" for each in (opens_in, closes_in))
    return {"window": hours, "time_zone": "UTC"}


OPEN = {"opens_in": -2 * HOURS, "closes_in": 2 * HOURS}
CLOSED = {"opens_in": 5 * HOURS, "closes_in": 7 * HOURS}


@sets_clock
@pytest.mark.slow
def test_what_comes_while_the_window_is_closed_goes_when_it_opens(tmp_path: Path, server: Emulator):
    clock = MovingClock(tmp_path)
    site = Site(tmp_path / "site", server.url, destination=window(**CLOSED))
    with site.start(env=clock.env):
        write_instance(site.drop / "image")
        site.wait_for({"PENDING": 1})
        with pytest.raises(AssertionError):
            site.wait_for({"CONFIRMED": 1}, within_seconds=2)
        assert stores(server.requests) == []

        clock.set(5 * HOURS + timedelta(minutes=1))

        site.wait_for({"CONFIRMED": 1})


def test_open_window_holds_nothing(tmp_path: Path, server: Emulator):
    site = Site(tmp_path / "site", server.url, destination=window(**OPEN))
    with site.start():
        write_instance(site.drop / "image")

        site.wait_for({"CONFIRMED": 1})


@sets_clock
def test_what_was_sent_before_the_window_closed_is_proven_after(tmp_path: Path, server: Emulator):
    """Asking is not sending: the change feed is read at any time."""
    clock = MovingClock(tmp_path)
    server.faults.add("late_feed", seconds=3.0)
    site = Site(tmp_path / "site", server.url, destination=window(**OPEN))
    with site.start(env=clock.env):
        write_instance(site.drop / "image")
        site.wait_for({"STORED": 1})

        clock.set(3 * HOURS)

        site.wait_for({"CONFIRMED": 1})


def test_single_run_is_asked_for_now_and_waits_for_no_window(tmp_path: Path, server: Emulator):
    site = Site(tmp_path / "site", server.url, destination=window(**CLOSED))
    write_instance(site.drop / "image")
    config = load(site.config_file)

    result = run_once(config, timeout=timedelta(seconds=20), policies=once_policies(config))

    assert result.done
    assert len(stores(server.requests)) == 1


def test_posts_on_a_slow_line_are_few(tmp_path: Path):
    def most(rate: str | None) -> int:
        site = Site(tmp_path / "site", "http://127.0.0.1:1/v2", destination={"rate": rate, "max_posts": 8})
        return most_posts_of(load(site.config_file).destination, 64_000_000)

    assert [most(rate) for rate in (None, "100MB/s", "5MB/s", "100kB/s")] == [8, 8, 4, 4]


def test_post_on_a_slow_line_is_small(tmp_path: Path, server: Emulator):
    """A batch of 64 MB at 10 kB/s is two hours: nobody could stop the daemon, and nothing could overtake it."""
    site = Site(tmp_path / "site", server.url, destination={"rate": "10kB/s"})
    for number in range(4):
        write_instance(site.drop / f"image{number}", study_uid="1.2.3", pixels=bytes(60_000))

    def most() -> int | None:
        with site.ledger() as ledger:
            return ledger.fetch_all(text("SELECT max(instances) AS most FROM attempt"))[0].most

    with site.start():
        wait_until(lambda: most() == 2, what="a post of two")
    assert most() == 2


@pytest.mark.parametrize("study_uid", ["1.2.3", "1.2.4"], ids=["same study", "another"])
def test_what_goes_at_once_waits_for_no_window_and_takes_nothing_with_it(
    tmp_path: Path, server: Emulator, study_uid: str
):
    stat = tmp_path / "stat"
    stat.mkdir()
    site = Site(
        tmp_path / "site",
        server.url,
        destination=window(**CLOSED),
        inboxes=[{"path": "./drop", **QUICK_INBOX}, {"path": str(stat), **QUICK_INBOX, "priority": "at_once"}],
    )
    write_instance(site.drop / "waits", study_uid="1.2.3")
    with site.start() as daemon:
        site.wait_for({"PENDING": 1})
        write_instance(stat / "goes", study_uid=study_uid)

        site.wait_for({"PENDING": 1, "CONFIRMED": 1})
        ticks = cpu_seconds(daemon.pid)
        time.sleep(1.0)
        assert cpu_seconds(daemon.pid) - ticks < 0.5  # and it sleeps until the window opens

    assert [entry.relative_path for entry in site.entries() if entry.state == "CONFIRMED"] == ["goes"]
