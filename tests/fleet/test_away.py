"""The ledger's database alone is away, for longer than all that is waited for: files wait, and nothing else happens."""

from __future__ import annotations

import os
import time

import psutil
import pytest

from tests.fleet.gateways import LEASE, Gateways
from tests.patience import PATIENCE
from tests.running import Daemon, wait_until
from tests.wire import Wire

AWAY_SECONDS = float(os.environ.get("INGESTD_AWAY_SECONDS", "3600"))
WATCHDOG = 120.0  # systemd/ingestd.service
# What a file that waits may take of a worker's memory, and what else it may come to.
BYTES_A_FILE, BYTES = 4_000, 16_000_000


class Watched:
    """A worker as systemd sees it: it has to be heard of within so many seconds."""

    def __init__(self, both: Gateways, name: str, lease: float, within_seconds: float) -> None:
        usec = str(int(within_seconds * 1e6))
        self.daemon: Daemon = both.start(name, env={"WATCHDOG_USEC": usec}, lease=f"{lease:.0f}s")
        self._within = within_seconds
        self._heard, self._heard_at = 0, time.monotonic()

    def expect_alive(self) -> None:
        assert self.daemon.is_running(), self.daemon.tail()
        heard = self.daemon.heard.count("WATCHDOG=1")
        if heard > self._heard:
            self._heard, self._heard_at = heard, time.monotonic()
        assert time.monotonic() - self._heard_at < self._within, "systemd would have ended it"

    @property
    def memory(self) -> int:
        return int(psutil.Process(self.daemon.pid).memory_info().rss)

    @property
    def failures_told(self) -> int:
        return self.daemon.log.read_text().count('"ledger.failed"')


def stay_away(both: Gateways, wire: Wire, *, seconds: float, lease: float, watchdog: float, pace: float) -> str:
    """Have the database be away for so long, while a file comes every ``pace`` seconds; say what that came to."""
    both.server.faults.add("bandwidth", method="POST", bytes=4_000_000, count=1)  # it would take eight seconds
    workers = [Watched(both, name, lease, watchdog) for name in ("a", "b")]
    both.feed(5)
    both.feed(1, rows=4000)
    wait_until(lambda: both.states().get("SENDING"), what="a post")
    wire.refuse(True)
    wire.cut()
    before = (both.states(), both.sql("SELECT max(id) FROM history"))
    memory = [worker.memory for worker in workers]
    began_at, written = time.monotonic(), len(both.written)

    while time.monotonic() - began_at < seconds:
        both.feed(1)
        for worker in workers:
            worker.expect_alive()
        time.sleep(pace)
    came = len(both.written) - written
    assert (both.states(), both.sql("SELECT max(id) FROM history")) == before
    assert len([path for path in both.drop.iterdir() if not path.name.startswith(".")]) >= came
    more = [worker.memory - then for worker, then in zip(workers, memory, strict=True)]
    told = [worker.failures_told for worker in workers]
    assert max(more) < BYTES + came * BYTES_A_FILE
    assert max(told) <= 2

    wire.refuse(False)
    began_at = time.monotonic()
    both.wait_confirmed(within_seconds=PATIENCE + came / 10)
    took = time.monotonic() - began_at
    for worker in workers:
        worker.expect_alive()
    assert both.check() == []
    assert set(both.posted().values()) == {1}
    return f"away for {seconds:.0f} s: {came} files came and were confirmed in {took:.0f} s; memory {more}, told {told}"


@pytest.mark.slow
def test_database_that_is_away_for_many_leases_and_watchdogs_is_waited_for(wired: Gateways, wire: Wire):
    print(stay_away(wired, wire, seconds=6 * LEASE, lease=LEASE, watchdog=5.0, pace=0.1))


@pytest.mark.long
def test_database_that_is_away_for_an_hour_is_waited_for(wired: Gateways, wire: Wire):
    print(stay_away(wired, wire, seconds=AWAY_SECONDS, lease=60.0, watchdog=WATCHDOG, pace=0.5))
