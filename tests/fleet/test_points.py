"""A worker is stopped at each point of a file's way, another goes on in its place, and then it does, or is killed.

The long way to what ``test_stopped`` does at chosen points and the torture at random ones: `pytest -m long`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.fleet.gateways import Gateways, gateways, stopped, stops_itself, through
from tests.fleet.test_stopped import TEN_LEASES, expect_end
from tests.running import Daemon, wait_until
from tests.torture.failing import Fault, Injector
from tests.wire import Wire

pytestmark = pytest.mark.long

RETAIN = timedelta(seconds=1)
FILES = 3
# By what only the transaction has sent in which it comes about.
COMMITS = {
    "candidate": b"INSERT INTO candidate",
    "admitted": b"INSERT INTO file",
    "claimed": b"INSERT INTO attempt",
    "answer read": b"UPDATE attempt",
    "marked to be removed": b"SET removing_at",
    "removed": b"removed_at=coalesce",
}
CALLS = {"renamed": ("rename", "drop"), "synced": ("fsync", "files"), "unlinked": ("unlink", "files")}


@pytest.fixture
def one(tmp_path: Path, server: Emulator, database: str, wire: Wire) -> Iterator[Gateways]:
    """Gateways whose worker proves and removes at once."""
    spool = {"path": str(tmp_path / "spool"), "retain": f"{RETAIN.total_seconds():.0f}s"}
    with gateways(tmp_path, server, database, by=through(database, wire.port), spool=spool) as found:
        yield found


def followed(one: Gateways, a: Daemon, *, killed: bool) -> None:
    """Another takes all that ``a`` had, which then goes on ten leases late, or is killed."""
    with stopped(a):
        began_at = time.monotonic()
        b = one.start("b")
        one.wait_held_by(b)
        if killed:
            a.kill()
            return
        time.sleep(max(0.0, TEN_LEASES - (time.monotonic() - began_at)))


def expect_all(one: Gateways, a: Daemon, *, killed: bool) -> None:
    if not killed:
        expect_end(a)
    removed = "SELECT count(*) FROM file WHERE removed_at IS NOT NULL"
    wait_until(lambda: one.sql(removed) == [(FILES,)], what="the removals")
    assert one.states() == {"CONFIRMED": FILES}
    assert one.check(retain=RETAIN, now=datetime.now(UTC)) == []
    assert set(one.posted().values()) == {1}


@pytest.mark.parametrize("killed", [False, True], ids=["goes on", "killed"])
@pytest.mark.parametrize("forwarded", [False, True], ids=["before COMMIT", "behind COMMIT"])
@pytest.mark.parametrize("point", COMMITS)
def test_worker_that_is_stopped_at_a_commit(one: Gateways, wire: Wire, point: str, forwarded: bool, killed: bool):
    a = one.start("a")
    one.put_elsewhere()

    with wire.held_commit(forwarded=forwarded, of=COMMITS[point]) as held:
        one.feed(FILES)
        assert held.wait(30)
        followed(one, a, killed=killed)

    expect_all(one, a, killed=killed)


@pytest.mark.parametrize("killed", [False, True], ids=["goes on", "killed"])
@pytest.mark.parametrize("point", CALLS)
def test_worker_that_is_stopped_before_a_call(one: Gateways, library: Path, point: str, killed: bool):
    call, place = CALLS[point]
    folder = one.drop if place == "drop" else one.spool / place
    stops = Fault(call=call, error=0, place="-", nth=1, times=1)
    a = one.start("a", env=Injector(library, one.spool.parent / "rule", stops, str(folder)).environment)
    one.put_elsewhere()
    one.feed(FILES)
    wait_until(lambda: stops_itself(a), what="the call")

    followed(one, a, killed=killed)

    expect_all(one, a, killed=killed)
