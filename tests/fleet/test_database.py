"""The ledger's database goes away, comes back, loses an answer, is full, is another: nothing is lost meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import psycopg
import pytest

from ingestd.emulator import Emulator
from tests.fleet.gateways import LEASE, LOCK, Gateways, gateways, stopped, through
from tests.postgres import Cluster
from tests.running import Daemon, wait_until
from tests.wire import Wire

# Who tries again every two seconds has not fallen silent by then.
PATIENT = {"lease": "6s"}
_WRITTEN = "SELECT (SELECT max(id) FROM history), (SELECT count(*) FROM attempt), (SELECT count(*) FROM candidate)"


def has_told(daemon: Daemon, words: str) -> bool:
    assert daemon.is_running(), daemon.tail()
    return words in daemon.tail(1000)


@contextmanager
def small_disk() -> Iterator[Path]:
    """A filesystem of 64 MB in memory, which anybody may reach, and a folder in it."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a filesystem")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        Path(name).chmod(0o755)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", name], check=True)
        try:
            (folder := Path(name, "data")).mkdir(mode=0o700)
            yield folder
        finally:
            subprocess.run(["umount", "-l", name], check=True)


def fill(file: Path) -> None:
    """Write until nothing more goes in."""
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def go_away(wire: Wire) -> None:
    wire.refuse(True)
    wire.cut()


@pytest.mark.slow
def test_database_that_is_away_for_longer_than_a_lease_is_waited_for(wired: Gateways, wire: Wire):
    wired.server.faults.add("bandwidth", method="POST", bytes=4_000_000, count=1)  # it would take eight seconds
    a, b = wired.start("a", **PATIENT), wired.start("b", **PATIENT)
    wired.feed(1, rows=4000)
    wired.wait_for(SENDING=1)

    go_away(wire)
    wired.feed(2)
    time.sleep(10)

    assert wired.posted() == {}
    assert wired.states() == {"SENDING": 1}
    assert len([path for path in wired.drop.iterdir() if not path.name.startswith(".")]) == 2
    wire.refuse(False)
    wired.wait_confirmed()
    assert a.is_running()
    assert b.is_running()
    assert wired.check() == []


@pytest.mark.slow
def test_who_could_not_write_while_the_database_was_away_is_not_taken_for_silent(wired: Gateways, wire: Wire):
    """Whoever came back first ended the others, which had written nothing for a lease: nobody could."""
    a, b = wired.start("a", **PATIENT), wired.start("b", **PATIENT)
    written = "SELECT writes FROM worker WHERE id = %s AND ended_at IS NULL"
    ((before,),) = wired.sql(written, wired.worker_of(a))
    ((of_b,),) = wired.sql(written, wired.worker_of(b))

    go_away(wire)
    time.sleep(7)
    with stopped(b):
        wire.refuse(False)
        wait_until(lambda: wired.sql(written, wired.worker_of(a))[0][0] > before + 2, what="the first to come back")

    wait_until(lambda: wired.sql(written, wired.worker_of(b)) > [(of_b + 2,)], what="the other")


@pytest.mark.slow
def test_database_that_is_away_at_the_start_and_while_standing_by_is_waited_for(wired: Gateways, wire: Wire):
    wire.refuse(True)
    a = wired.start("a", wait=False)
    wait_until(lambda: has_told(a, "ledger.failed"), what="the word of it")
    wire.refuse(False)
    a.wait_ready()
    b = wired.start("b")

    go_away(wire)
    time.sleep(1.5 * LEASE)
    wait_until(lambda: has_told(b, "ledger.failed"), what="the word of it")
    wire.refuse(False)
    wired.feed()
    wired.wait_confirmed()

    wired.put_elsewhere()
    a.kill()
    wired.wait_held_by(b)
    assert wired.check() == []


def test_worker_ends_when_it_is_told_to_also_while_the_database_is_away(wired: Gateways, wire: Wire):
    a, b = wired.start("a"), wired.start("b")
    go_away(wire)
    for daemon in (a, b):
        wait_until(lambda daemon=daemon: has_told(daemon, "ledger.failed"), what="the word of it")

    for daemon in (a, b):
        began_at = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - began_at < 5


def test_reload_that_is_asked_for_while_the_database_is_away_is_done_once_it_is_back(wired: Gateways, wire: Wire):
    """It was refused, and a changed configuration was told of with which nothing was wrong."""
    a = wired.start("a", env={"WATCHDOG_USEC": "300000"})

    def turns() -> int:
        return a.is_running() and a.heard.count("WATCHDOG=1")

    go_away(wire)
    wait_until(lambda: has_told(a, "ledger.failed"), what="the word of it")
    a.process.send_signal(signal.SIGHUP)
    before = turns()
    wait_until(lambda: turns() > before + 2, what="a turn that has heard it")
    wire.refuse(False)

    wait_until(lambda: a.log.read_text().count('"daemon.started"') == 2, what="the reload")
    assert not has_told(a, "config.refused")


def test_configuration_that_is_adopted_just_when_the_database_is_lost_is_read_once_it_is_back(
    wired: Gateways, wire: Wire
):
    """The worker ended its work instead, to stand by, and let its posts go."""
    a = wired.start("a")
    number = wired.worker_of(a)
    site = wired.site("a", reconcile={"verify": "presence"})
    wire.barred = b"FROM clock"  # as rooms are made anew

    assert site.command("config", "adopt").returncode == 0
    wait_until(lambda: a.log.read_text().count('"config.reread"') > 1, what="another try")
    wire.barred = b""

    wait_until(lambda: a.log.read_text().count('"daemon.started"') == 2, what="the reload")
    assert wired.worker_of(a) == number


@pytest.mark.slow
def test_worker_asks_a_database_that_answers_nothing_once_before_it_ends(
    tmp_path: Path, server: Emulator, database: str, wire: Wire
):
    """As of a host that is off: each step of a turn, and of the end, waited for a connection of its own, for 10 s."""
    by = through(database, wire.port) + "?connect_timeout=2"
    with gateways(tmp_path, server, database, by=by) as both, socket.create_server(("127.0.0.1", 0)) as nobody:
        nobody.settimeout(0)
        daemon = both.start("a")
        wire.to_port = nobody.getsockname()[1]
        wire.cut()
        wait_until(lambda: has_told(daemon, "ledger.failed"), what="the word of it")

        assert daemon.terminate() == 0
        asked = 0
        with suppress(BlockingIOError):
            while True:
                nobody.accept()[0].close()
                asked += 1
        assert asked in {1, 2}  # a machine that is slow may be in the next turn by then


@pytest.mark.slow
def test_database_that_hangs_for_some_leases_is_waited_for(tmp_path: Path, server: Emulator):
    with Cluster(tmp_path / "postgres") as cluster:
        cluster.make("ledger")
        with gateways(tmp_path, server, cluster.url("ledger")) as both:
            both.keep("a", "b")
            both.feed(20)
            wait_until(lambda: both.states().get("CONFIRMED"), what="the first")

            cluster.pause()
            both.feed(20)
            time.sleep(5 * LEASE)
            cluster.go_on()

            both.wait_confirmed()
            assert both.check() == []
            assert set(both.posted().values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_database_that_is_restarted_under_load_loses_nothing(
    tmp_path: Path, server: Emulator, mode: Literal["immediate", "fast"]
):
    with Cluster(tmp_path / "postgres", durable=True) as cluster:
        cluster.make("ledger")
        with gateways(tmp_path, server, cluster.url("ledger"), **PATIENT) as both:
            a, b = both.start("a"), both.start("b")
            for _ in range(3):
                both.feed(20)
                time.sleep(0.7)
                cluster.stop(mode)
                both.feed(20)
                time.sleep(0.5)
                cluster.start()
            both.wait_confirmed()
            assert a.is_running()
            assert b.is_running()
            assert both.check() == []


@pytest.mark.slow
def test_commits_whose_answers_are_lost_and_commits_that_are_lost_send_nothing_twice(wired: Gateways, wire: Wire):
    wired.start("a")
    for number in range(6):
        cut = wire.cut_at_commit(skip=number) if number % 2 else wire.lose_commit(skip=number)
        wired.feed(2)
        assert cut.wait(20)
        wired.wait_confirmed()

    assert wired.check() == []
    assert set(wired.posted().values()) == {1}
    assert wired.sql("SELECT id FROM attempt WHERE finished_at IS NULL") == []


@pytest.mark.slow
def test_lock_that_another_holds_for_too_long_is_waited_for_again(both: Gateways):
    both.start("a").terminate()
    with both.writing() as connection:
        a = both.start("a", wait=False)
        connection.execute("SELECT pg_sleep(13)")
        assert has_told(a, "ledger.failed")
    a.wait_ready()
    with both.writing() as connection:
        both.feed(2)
        connection.execute("SELECT pg_sleep(13)")
        assert has_told(a, "ledger.failed")
        assert both.states() == {}
    both.wait_confirmed()
    assert both.check() == []


@pytest.mark.slow
def test_deadlock_is_tried_again(both: Gateways):
    """The worker has the lock of all writers and waits for a table; whoever has that table waits for the lock."""
    waits = """SELECT pid FROM pg_locks AS one JOIN pg_locks AS other USING (pid)
        WHERE one.relation = 'delivery'::regclass AND NOT one.granted AND other.locktype = 'advisory'"""
    a = both.start("a")
    both.feed(1)
    both.wait_confirmed()
    with psycopg.connect(both.ledger) as other:
        other.execute("SET deadlock_timeout = '60s'")
        other.execute("LOCK TABLE delivery IN SHARE MODE")
        both.feed(2)
        wait_until(lambda: both.sql(waits), what="the worker at the table", every=0.01)
        other.execute("SELECT pg_advisory_xact_lock(%s, hashtext(current_schema()))", [LOCK])
    both.wait_confirmed()
    assert has_told(a, "ledger.failed")
    assert both.check() == []


def test_program_that_is_older_than_the_ledger_writes_nothing_more_and_says_why(both: Gateways):
    a, b = both.start("a"), both.start("b")
    both.feed()
    both.wait_confirmed()

    with both.writing() as connection:
        connection.execute("UPDATE meta SET value = (value::int + 1)::text WHERE key = 'schema'")
        before = connection.execute(_WRITTEN).fetchall()
    both.feed(2)

    for daemon in (a, b):
        assert daemon.wait() != 0
        assert "newer ingestd" in daemon.tail()
    assert both.sql(_WRITTEN) == before
    assert both.states() == {"CONFIRMED": 1}


@pytest.mark.slow
@pytest.mark.parametrize("hours", [-1, 1])
def test_clock_of_the_last_worker_that_was_an_hour_off_holds_nothing_up(both: Gateways, hours: int):
    """What it wrote lies an hour ahead, or behind; everything that waits by it is due within its own longest wait."""
    a, b = both.start("a"), both.start("b")
    both.feed(2)
    both.wait_confirmed()
    both.put_elsewhere()
    both.server.faults.add("unavailable", method="POST", retry_after="1")
    both.feed(2)
    wait_until(lambda: both.sql("SELECT id FROM attempt WHERE error <> ''"), what="a post that failed")

    a.kill()
    both.server.faults.clear()
    both.shift_clock(hours)

    both.wait_held_by(b)
    both.feed(2)
    both.wait_confirmed()
    assert both.states() == {"CONFIRMED": 6}


@pytest.mark.slow
def test_search_key_that_is_missing_or_another_is_told_and_stops_no_delivery(both: Gateways):
    both.start("a")
    both.feed(1)
    both.wait_confirmed()
    key = both.spool / "search.key"
    was = key.read_bytes()

    key.unlink()
    b = both.start("b")
    both.feed(1)
    both.wait_confirmed()
    alarms = "SELECT kind FROM alarm WHERE kind = 'key_made_anew'"
    wait_until(lambda: both.sql(alarms), what="the alarm")

    key.write_bytes(was)
    b.terminate()
    both.start("b")
    wait_until(lambda: not both.sql(alarms), what="its end")
    assert both.check() == []


@pytest.mark.slow
def test_database_whose_disk_is_full_is_waited_for(tmp_path: Path, server: Emulator):
    with small_disk() as disk, Cluster(tmp_path / "postgres") as cluster:
        shutil.chown(disk, "postgres")
        cluster.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        cluster.execute("CREATE DATABASE ledger TABLESPACE small")
        with gateways(tmp_path, server, cluster.url("ledger"), **PATIENT) as both:
            a, b = both.start("a"), both.start("b")
            both.feed(2)
            both.wait_confirmed()
            filler = disk / "filler"
            fill(filler)
            shutil.chown(filler, "postgres")

            both.feed(400)
            wait_until(lambda: has_told(a, "LedgerFull"), what="the word of it")
            filler.unlink()

            both.wait_confirmed()
            assert b.is_running()
            assert both.check() == []
