"""A spool that has the id of another, made anew where the share of that one was only not mounted."""

from __future__ import annotations

import errno
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ingestd.config import load
from ingestd.daemon.daemon import Daemon, spool_of
from ingestd.inbox import Spool
from ingestd.ledger import LedgerError, Writer
from tests.fleet.gateways import Gateways
from tests.ledger_builders import open_shared
from tests.patience import PATIENCE
from tests.postgres import Cluster
from tests.running import wait_until
from tests.torture.failing import Fault, Injector
from tests.wire import Wire


def test_spool_with_the_id_of_one_that_others_work_on_is_not_worked_on_beside_them(both: Gateways, tmp_path: Path):
    """Files of the other were gone for whoever had this one, and FAILED where that one was to prove."""
    a = both.start("a")
    both.feed(2)
    both.wait_confirmed()
    another = tmp_path / "another"
    another.mkdir()
    (another / "spool.id").write_text((both.spool / "spool.id").read_text())

    b = both.start("b", spool={"path": str(another)})

    wait_until(lambda: "daemon.does_not_take_over" in b.log.read_text(), what="the word of it")
    bars = f"the spool here is another than the one that worker {both.worker_of(a)} works on"
    assert bars in b.log.read_text()
    assert bars in both.site("a").command("workers").stdout
    assert both.sql("SELECT count(*) FROM worker WHERE holds = 1 AND ended_at IS NULL AND id > 0") == [(1,)]
    assert not (another / "search.key").exists()
    both.feed(2)
    both.wait_confirmed()

    # Where nobody has the other any more, this one is its successor.
    assert a.terminate() == 0
    wait_until(lambda: both.claims().get(both.worker_of(b)), what="who goes on")


def test_worker_that_cannot_have_its_part_of_the_spool_is_not_at_work(both: Gateways, library: Path, tmp_path: Path):
    """Others took it for one on another spool, and none of them began; as it was started again and again, for ever."""
    a = both.start("a")
    is_read_only = Fault(call="mkdir", error=errno.EROFS, place="-", nth=1, times=1_000_000, process="daemon")
    injector = Injector(library, tmp_path / "rule", is_read_only, f"{both.spool}/scratch")

    b = both.start("b", wait=False, env=injector.environment)

    assert b.wait() != 0
    assert "read-only file system" in b.tail()
    at_work = "SELECT id FROM worker WHERE holds = 1 AND ended_at IS NULL AND id > 0"
    assert both.sql(at_work) == [(both.worker_of(a),)]


@pytest.mark.slow
def test_worker_that_was_at_work_when_the_spool_was_made_anew_ends_and_begins_anew(both: Gateways):
    """Its part of the spool was not there any more: it fetched copies for ever, wrote none, and nothing was proven."""
    compared = {"verify": "content"}
    a, b = both.start("a", reconcile=compared), both.start("b", reconcile=compared)
    both.feed(2)
    both.wait_confirmed()
    spool_id = (both.spool / "spool.id").read_text()
    assert b.terminate() == 0
    shutil.rmtree(both.spool)
    wait_until(lambda: both.sql("SELECT 1 FROM alarm WHERE kind = 'spool'"), what="the word of it")
    both.spool.mkdir(mode=0o700)
    (both.spool / "spool.id").write_text(spool_id)
    time.sleep(1.5)  # by now it has looked

    both.start("b", reconcile=compared)

    wait_until(lambda: not a.is_running(), what="its end")
    a = both.start("a", reconcile=compared)
    wait_until(lambda: both.worker_of(a) in both.claims(), what="that it works")
    both.feed(4)
    both.wait_confirmed()


def test_spool_that_another_makes_while_the_ledger_is_asked_for_one_is_no_other(
    wired: Gateways, wire: Wire, database: str
):
    """Of two gateways that began together, with no spool yet, one ended: its spool was not there, or had another id."""
    wire.delay_seconds = 0.3
    with ThreadPoolExecutor(1) as beside:
        found = beside.submit(spool_of, load(wired.site("b").config_file))
        wait_until(wire.is_used, what="who has found no spool, and asks", every=0.01)
        made = Spool(wired.spool)
        open_shared(database, wired.spool.parent, Writer(made.host, shares=True)).close()
        wire.delay_seconds = 0.0

        assert found.result(PATIENCE).host == made.host


def test_ledger_is_not_made_anew_in_a_database_that_lost_the_one_of_the_spool(
    both: Gateways, cluster: Cluster, database: str
):
    """It was made, and then refused: in the way of the backup that was to be put back, and told to be the spool's."""
    config = load(both.site("a").config_file)
    Daemon(config).close()
    name = database.rpartition("/")[2]
    cluster.drop(name)
    cluster.make(name)

    for _ in range(2):
        with pytest.raises(LedgerError, match="belongs to a ledger that is not there"):
            Daemon(config)
    assert cluster.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name) == [(0,)]

    (both.spool / "spool.ledger").unlink()
    Daemon(config).close()
