"""Who works is stopped for ten leases in the middle of something; another goes on in its place, and then it does."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.fleet.gateways import LEASE, Gateways, gateways, stopped, stops_itself
from tests.running import Daemon, wait_until
from tests.torture.failing import Fault, Injector
from tests.wire import Wire

TEN_LEASES = 10 * LEASE


def expect_end(daemon: Daemon) -> None:
    """It ends by itself, because another took over."""
    assert daemon.wait() != 0
    assert "was ended because it was silent" in daemon.tail()


def followed(both: Gateways, a: Daemon, b: Daemon, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Have ``a`` stopped for ten leases, while ``b`` takes over, and see it end."""
    with stopped(a):
        began_at = time.monotonic()
        both.wait_held_by(b)
        meanwhile()
        time.sleep(max(0.0, TEN_LEASES - (time.monotonic() - began_at)))
    expect_end(a)


def started_to_stop(both: Gateways, library: Path, call: str, folder: Path, **settings: object) -> Daemon:
    """Start ``a`` so that it stops itself before the first such call on a path in a folder."""
    fault = Fault(call=call, error=0, place="-", nth=1, process="daemon", times=1, seconds=0.0)
    injector = Injector(library, both.spool.parent / "rule", fault, str(folder))
    return both.start("a", env=injector.environment, **settings)


@pytest.mark.slow
def test_worker_that_was_stopped_sends_no_more_to_where_its_destination_was(both: Gateways):
    """Nobody had ended it: it went on, and what only the former address has was confirmed."""
    a = both.start("a")
    with Emulator(fsync=False) as elsewhere:
        with stopped(a):
            wait_until(lambda: "silent" in both.site("a").command("workers").stdout, what="that it counts as silent")
            moved = both.site("a").command("destination", "move", "default", elsewhere.url, "--yes")
            assert moved.returncode == 0, moved
            both.feed()

        expect_end(a)

        assert both.posted() == {}
        there = {"url": elsewhere.url, "auth": "none"}
        assert both.site("a", destination=there).command("config", "adopt").returncode == 0
        both.start("a", destination=there)
        both.wait_confirmed()
        assert both.posted() == {}


@pytest.mark.slow
def test_worker_that_was_stopped_renames_nothing_and_ends(both: Gateways, library: Path):
    a = started_to_stop(both, library, "rename", both.drop)
    b = both.start("b")
    both.put_elsewhere()
    both.feed(3)
    wait_until(lambda: stops_itself(a), what="the rename")

    with stopped(a):
        both.wait_held_by(b)
        both.wait_confirmed()
    expect_end(a)

    assert both.check() == []
    assert set(both.posted().values()) == {1}


@pytest.mark.slow
def test_rename_that_comes_ten_leases_late_loses_nothing(both: Gateways, library: Path):
    a = started_to_stop(both, library, "rename", both.drop)
    b = both.start("b")
    both.put_elsewhere()
    both.feed(3)
    wait_until(lambda: stops_itself(a), what="the rename")

    followed(both, a, b)

    both.wait_confirmed()
    assert both.check() == []


@pytest.fixture
def elsewhere(tmp_path: Path, server: Emulator, database: str) -> Iterator[Gateways]:
    """Gateways whose drop folder is on another filesystem, so that files are copied."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as drop, gateways(tmp_path, server, database, drop=drop) as both:
        assert Path(drop).stat().st_dev != tmp_path.stat().st_dev
        yield both


@pytest.mark.slow
@pytest.mark.parametrize("call, place", [("rename", "spool/scratch"), ("rename", "drop"), ("unlink", "drop")])
def test_copy_or_removal_that_comes_late_loses_nothing(elsewhere: Gateways, library: Path, call: str, place: str):
    folder = elsewhere.drop if place == "drop" else elsewhere.spool / "scratch"
    a = started_to_stop(elsewhere, library, call, folder)
    b = elsewhere.start("b")
    elsewhere.put_elsewhere()
    elsewhere.feed(3)
    wait_until(lambda: stops_itself(a), what="the call")

    followed(elsewhere, a, b)

    elsewhere.wait_confirmed()
    wait_until(elsewhere.is_at_rest, what="the removal of the sources")
    assert elsewhere.check() == []
    assert set(elsewhere.posted().values()) == {1}


@pytest.mark.slow
def test_post_that_was_stopped_is_sent_by_the_next_worker_alone(both: Gateways):
    both.server.faults.add("bandwidth", method="POST", bytes=1_000_000)
    a = both.start("a")
    both.put_elsewhere()
    both.feed(1, rows=2000)  # what does not go into the sockets' buffers at first does so after ten leases
    both.wait_for(SENDING=1)
    b = both.start("b")

    followed(both, a, b, both.server.faults.clear)
    time.sleep(6)

    assert both.posted() == {}, "its end never left"
    both.wait_confirmed()
    assert both.check() == []
    assert set(both.posted().values()) == {1}


@pytest.mark.slow
def test_unlink_that_comes_late_takes_nothing_of_others(both: Gateways, library: Path):
    retained = {"spool": {"path": str(both.spool), "retain": "1s"}}
    a = started_to_stop(both, library, "unlink", both.spool / "files", **retained)
    b = both.start("b", **retained)
    both.put_elsewhere()
    both.feed(3)
    wait_until(lambda: stops_itself(a), what="the unlink")

    followed(both, a, b, lambda: both.feed(2))

    removed = "SELECT count(*) FROM file WHERE removed_at IS NOT NULL"
    wait_until(lambda: both.sql(removed) == [(5,)], what="the removals")
    assert both.check(retain=timedelta(seconds=1), now=datetime.now(UTC)) == []
    assert set(both.posted().values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("forwarded", [False, True])
def test_commit_that_was_stopped_is_durable_and_acted_upon_by_one(wired: Gateways, wire: Wire, forwarded: bool):
    """``forwarded``: it was durable, and what waits for it would be done ten leases later."""
    a = wired.start("a")
    wired.put_elsewhere()

    with wire.held_commit(forwarded=forwarded, of=b"INSERT INTO attempt") as held:
        wired.feed(3)
        assert held.wait(20)
        with stopped(a):
            b = wired.start("b")
            wired.wait_held_by(b)
            time.sleep(TEN_LEASES)
    expect_end(a)

    wired.wait_confirmed()
    assert wired.check() == []
    assert set(wired.posted().values()) == {1}
