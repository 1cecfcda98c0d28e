"""A server of the ledger's that follows another: it may only be read, until it takes that one's place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.fleet.gateways import gateways
from tests.postgres import Cluster
from tests.running import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Cluster, Cluster]]:
    """A primary that answers no COMMIT before its standby has it, and the standby."""
    with Cluster(tmp_path / "primary") as primary:
        primary.make("ledger")
        standby = primary.standby(tmp_path / "standby")
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.execute("SELECT pg_reload_conf()")
        yield primary, standby


def test_failover_that_loses_no_commit_loses_nothing(tmp_path: Path, server: Emulator, pair: tuple[Cluster, Cluster]):
    primary, standby = pair
    by = f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/ledger"
    with gateways(tmp_path, server, f"{by}?target_session_attrs=read-write", by=by) as both:
        both.keep("a", "b")
        both.feed(20)
        both.wait_confirmed()
        both.feed(20)
        time.sleep(0.7)

        primary.kill()
        both.feed(20)
        standby.promote()

        both.wait_confirmed()
        assert both.check() == []
        primary.start()
        primary.stop()


def test_ledger_that_is_on_a_standby_is_told_and_waited_for(
    tmp_path: Path, server: Emulator, pair: tuple[Cluster, Cluster]
):
    primary, standby = pair
    with gateways(tmp_path, server, primary.url("ledger")) as first:
        first.start("a").terminate()
    followed = (tmp_path / "drop").rename(tmp_path / "former")
    with gateways(tmp_path, server, standby.url("ledger")) as both:
        b = both.start("b", wait=False)
        wait_until(lambda: "standby" in b.tail() or not b.is_running(), what="the word of it")
        assert b.is_running(), b.tail()
        time.sleep(1)
        assert b.is_running(), b.tail()

        primary.stop("immediate")
        standby.promote()

        b.wait_ready()
        both.feed(2)
        both.wait_confirmed()
        assert both.check() == []
        primary.start()
    assert list(followed.iterdir()) == []
