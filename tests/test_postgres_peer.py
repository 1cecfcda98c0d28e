"""The real PostgreSQL of the tests dies, hangs and follows as they rely on, and its wire loses what it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.postgres import Cluster
from tests.running import PROJECT, wait_until
from tests.wire import Wire


@pytest.fixture
def url(database: str) -> str:
    """A database with one empty table, by its direct address."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n integer)")
    return database


@pytest.fixture
def wire(cluster: Cluster) -> Iterator[Wire]:
    with Wire(cluster.port) as wire:
        yield wire


def by(wire: Wire, url: str) -> psycopg.Connection:
    return psycopg.connect(url, port=wire.port)


def kept(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [n for (n,) in connection.execute("SELECT n FROM kept ORDER BY n")]


def test_commit_whose_answer_is_lost_has_happened(url: str, wire: Wire):
    with by(wire, url) as connection:
        connection.execute("INSERT INTO kept VALUES (1)")
        connection.commit()
        cut = wire.cut_at_commit()
        connection.execute("INSERT INTO kept VALUES (2)")

        with pytest.raises(psycopg.OperationalError):
            connection.commit()

    assert cut.is_set()
    assert kept(url) == [1, 2]
    with by(wire, url) as connection:
        connection.execute("INSERT INTO kept VALUES (3)")
    assert kept(url) == [1, 2, 3]


def test_commit_that_is_lost_on_its_way_has_not_happened(url: str, wire: Wire):
    lost = wire.lose_commit(skip=1)
    with by(wire, url) as connection:
        connection.execute("INSERT INTO kept VALUES (1)")
        connection.commit()
        connection.execute("INSERT INTO kept VALUES (2)")
        assert not lost.is_set()

        with pytest.raises(psycopg.OperationalError):
            connection.commit()

    assert lost.is_set()
    assert kept(url) == [1]


def test_large_statements_and_answers_pass_a_wire_whole_and_a_commit_in_a_text_is_none(url: str, wire: Wire):
    lost = wire.lose_commit()
    text = "COMMIT\0Q\0\0\0\x0bCOMMIT".replace("\0", "0") + "x" * 3_000_000
    with by(wire, url) as connection:
        assert connection.execute("SELECT %s || 'COMMIT'", [text]).fetchone() == (text + "COMMIT",)
        connection.rollback()

    assert not lost.is_set()


def test_cut_resets_whoever_is_connected_and_nobody_after(url: str, wire: Wire):
    connection = by(wire, url)

    wire.cut()

    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    connection.close()
    by(wire, url).close()


def test_wire_that_refuses_is_as_a_port_on_which_nobody_listens(url: str, wire: Wire):
    with by(wire, url) as connection:
        wire.refuse(True)

        with pytest.raises(psycopg.OperationalError, match="Connection refused"):
            by(wire, url)
        connection.execute("SELECT 1")

    wire.refuse(False)
    by(wire, url).close()


def test_delay_is_each_ways(url: str, wire: Wire):
    with by(wire, url) as connection:
        wire.delay_seconds = 0.1
        began_at = time.monotonic()
        connection.execute("SELECT 1")  # with its BEGIN: two round trips

        assert time.monotonic() - began_at >= 0.4
        wire.delay_seconds = 0


def test_ended_connections_are_gone(cluster: Cluster, url: str):
    connection = psycopg.connect(url)

    cluster.terminate_backends(connection.info.dbname)

    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    connection.close()


def test_database_is_made_from_another_and_dropped_under_whoever_uses_it(cluster: Cluster, url: str):
    cluster.execute("INSERT INTO kept VALUES (7)", url.rpartition("/")[2])

    cluster.make("copied", url.rpartition("/")[2])

    connection = psycopg.connect(cluster.url("copied"))
    assert kept(cluster.url("copied")) == [7]
    cluster.drop("copied")
    assert cluster.execute("SELECT FROM pg_database WHERE datname = 'copied'") == []
    connection.close()


def test_server_that_was_killed_keeps_what_was_committed(tmp_path: Path):
    with Cluster(tmp_path / "one") as cluster:
        cluster.execute("CREATE TABLE kept (n integer)")
        cluster.execute("INSERT INTO kept VALUES (1)")
        with psycopg.connect(cluster.url("postgres")) as connection:
            connection.execute("INSERT INTO kept VALUES (2)")

            cluster.kill()

            assert not cluster.is_running
            with pytest.raises(psycopg.OperationalError):
                connection.commit()
        cluster.start()
        assert kept(cluster.url("postgres")) == [1]


def test_server_that_is_paused_answers_once_it_goes_on(tmp_path: Path):
    with ThreadPoolExecutor() as threads, Cluster(tmp_path / "one") as cluster:
        cluster.pause()

        answer = threads.submit(cluster.execute, "SELECT 1")

        with pytest.raises(TimeoutError):
            answer.result(timeout=0.5)
        cluster.go_on()
        assert answer.result(timeout=10) == [(1,)]


def test_standby_follows_refuses_writes_and_takes_over(tmp_path: Path):
    with Cluster(tmp_path / "primary", settings={"max_connections": "20"}) as primary:
        primary.execute("CREATE TABLE kept (n integer)")
        standby = primary.standby(tmp_path / "standby")
        primary.execute("INSERT INTO kept VALUES (1)")

        wait_until(lambda: kept(standby.url("postgres")) == [1], what="the row at the standby")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            standby.execute("INSERT INTO kept VALUES (2)")

        standby.stop()
        primary.execute("INSERT INTO kept VALUES (2)")
        primary.kill()
        standby.start()
        standby.promote()
        standby.execute("INSERT INTO kept VALUES (3)")
        assert kept(standby.url("postgres")) == [1, 3]
    assert not standby.is_running
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("paused", [False, True])
def test_nothing_outlives_whoever_started_it(tmp_path: Path, paused: bool):
    script = f"""if True:
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(PROJECT)!r})
        from tests.postgres import Cluster
        with Cluster(Path({str(tmp_path / "one")!r})) as cluster:
            if {paused}:
                cluster.pause()
            print(cluster._keeper.pid, flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        keeper = psutil.Process(int(starter.stdout.readline()))
        started = keeper.children(recursive=True)
        os.kill(starter.pid, signal.SIGKILL)

    assert len(started) > 5
    assert psutil.wait_procs(started, timeout=20)[1] == []
    wait_until(lambda: not any(tmp_path.iterdir()), what="the end of its folder")
