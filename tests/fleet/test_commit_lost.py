"""What became of a COMMIT whose answer was lost is found out by the worker's own count, once (``Ledger.resolve``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ingestd.ledger import (
    Ledger,
    LedgerAway,
    LedgerBusy,
    LedgerError,
    LedgerFenced,
    Writer,
    moves,
    postgres,
    postgres_server,
    queries,
    study_locks,
)
from ingestd.ledger.pipeline import PipelinedConnection
from ingestd.lifecycle import State
from tests.fleet.gateways import through
from tests.ledger_builders import NOW, arrival
from tests.postgres import Cluster
from tests.wire import Wire

DESTINATIONS = {"default": "http://127.0.0.1:9/v2"}


def opened(folder: Path, url: str, **more: object) -> Ledger:
    return Ledger.open(
        url,
        host="host-a",
        destinations=DESTINATIONS,
        spool=folder / "spool",
        key=folder / "search.key",
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def ledger(tmp_path: Path, database: str, wire: Wire) -> Iterator[Ledger]:
    with opened(tmp_path, through(database, wire.port)) as ledger:
        yield ledger


def write(ledger: Ledger, number: int, done: list[int]) -> None:
    with ledger.transaction() as tx:
        moves.admit(tx, [arrival(number)], now=NOW)
        tx.on_commit(lambda: done.append(number))


def fail(ledger: Ledger, number: int, done: list[int]) -> None:
    with pytest.raises(LedgerAway):
        write(ledger, number, done)
    assert done == []


def pending(ledger: Ledger) -> int:
    return queries.counts(ledger).get(State.PENDING, 0)


@pytest.mark.parametrize("came", [True, False])
def test_what_waits_is_done_late_and_once_where_the_answer_alone_was_lost(ledger: Ledger, wire: Wire, came: bool):
    done: list[int] = []
    cut = wire.cut_at_commit() if came else wire.lose_commit()
    fail(ledger, 1, done)
    assert cut.is_set()

    ledger.resolve()
    ledger.resolve()

    assert done == [1] * came
    assert pending(ledger) == int(came)
    write(ledger, 2, done)
    assert done == [*([1] * came), 2]


def test_it_is_asked_again_while_the_database_is_away(ledger: Ledger, wire: Wire):
    done: list[int] = []
    wire.cut_at_commit()
    fail(ledger, 1, done)
    wire.refuse(True)

    for _ in range(2):
        with pytest.raises(LedgerAway):
            write(ledger, 2, done)
    assert done == []

    wire.refuse(False)
    write(ledger, 2, done)
    assert done == [1, 2]
    assert pending(ledger) == 2


def test_what_others_wrote_since_is_no_proof(ledger: Ledger, wire: Wire, database: str):
    done: list[int] = []
    wire.lose_commit()
    fail(ledger, 1, done)
    with psycopg.connect(database) as other:
        other.execute("UPDATE worker SET writes = writes + 1 WHERE id = 0")

    ledger.resolve()

    assert done == []


def test_who_was_ended_meanwhile_knows_what_was_durable_and_writes_no_more(ledger: Ledger, wire: Wire, database: str):
    done: list[int] = []
    wire.cut_at_commit()
    fail(ledger, 1, done)
    with psycopg.connect(database) as other:
        other.execute("UPDATE worker SET ended_at = 1, why_ended = 'silent' WHERE holds = 1")

    with pytest.raises(LedgerFenced):
        write(ledger, 2, done)

    assert done == [1]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have half a second be the longest that anybody waits for the lock of all writers."""
    for module, name in ((postgres_server, "_SETTINGS"), (postgres, "_END_IDLE")):
        monkeypatch.setattr(module, name, getattr(module, name).replace("10s", "500ms"))


def stand_still(url: str) -> psycopg.Connection:
    """Take the lock of all writers, write several rows, and do nothing more."""
    other = psycopg.connect(url)
    other.execute("SELECT pg_advisory_xact_lock(%s, hashtext(current_schema()))", [study_locks.LOCK])
    other.execute("UPDATE worker SET wrote_at = wrote_at")
    other.cursor().executemany("INSERT INTO meta VALUES (%s, 'x')", [("one",), ("two",)])
    return other


def stand_still_in_a_pipeline(url: str) -> psycopg.Connection:
    """Beside others, with what was written not asked about."""
    other = PipelinedConnection.connect(url)
    for lock in study_locks.waiting_for(["1.2.3"]):
        other.execute(lock)
    other.send("INSERT INTO meta VALUES ('one', 'x')", None, 1)
    return other


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("stands", [stand_still, stand_still_in_a_pipeline])
def test_whoever_holds_the_lock_and_stands_still_is_ended_by_whoever_waits(
    tmp_path: Path, database: str, stands: Callable[[str], psycopg.Connection]
):
    with opened(tmp_path, database, writer=Writer("host-a")) as ledger:
        done: list[int] = []
        other = stands(database)
        began_at = time.monotonic()

        write(ledger, 1, done)

        assert done == [1]
        assert time.monotonic() - began_at < 5
        with pytest.raises(psycopg.OperationalError):
            other.execute("SELECT 1")
        other.close()


@pytest.mark.usefixtures("impatient")
def test_whoever_is_at_work_under_the_lock_is_waited_for(tmp_path: Path, database: str):
    with opened(tmp_path, database) as ledger, psycopg.connect(database) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s, hashtext(current_schema()))", [study_locks.LOCK])
        done: list[int] = []
        other.pgconn.send_query(b"SELECT pg_sleep(1.5)")

        with pytest.raises(LedgerBusy):
            write(ledger, 1, done)

        other.pgconn.get_result()
        other.pgconn.get_result()
        other.rollback()
        write(ledger, 1, done)
        assert done == [1]


@pytest.mark.usefixtures("impatient")
def test_connection_of_which_only_the_server_knows_still_is_ended_to_find_out(
    tmp_path: Path, database: str, wire: Wire
):
    """As behind a firewall that forgot it: the transaction before stands open, and has the worker's row."""
    with opened(tmp_path, through(database, wire.port)) as ledger:
        done: list[int] = []
        wire.lose_commit()
        fail(ledger, 1, done)
        other = stand_still(database)

        ledger.resolve()

        assert done == []
        other.close()


@pytest.fixture
def beside(tmp_path: Path, database: str, wire: Wire) -> Iterator[Ledger]:
    """A ledger of a worker beside others: what is committed is durable by a statement behind it."""
    with opened(tmp_path, through(database, wire.port)) as ledger:
        ledger.in_turns = True
        yield ledger


def test_connection_that_is_lost_beneath_is_told_of_and_made_anew(ledger: Ledger, wire: Wire):
    """SQLAlchemy knows of what it has asked itself: the rest of what the driver says is ours to tell."""
    with ledger.asking():
        postgres_server.driver_of(ledger.connection).execute("BEGIN")
        ledger.connection.exec_driver_sql("SELECT 1")
        wire.cut()
    assert pending(ledger) == 0

    wire.cut()
    with pytest.raises(LedgerAway), ledger.asking():
        postgres_server.driver_of(ledger.connection).execute("SELECT 1")
    with pytest.raises(LedgerAway):
        pending(ledger)
    assert pending(ledger) == 0


@pytest.mark.parametrize("came", [True, False])
def test_what_waits_beside_others_is_done_late_and_once_where_the_answer_alone_was_lost(
    beside: Ledger, wire: Wire, came: bool
):
    test_what_waits_is_done_late_and_once_where_the_answer_alone_was_lost(beside, wire, came)


def test_what_was_committed_and_is_not_known_to_be_durable_is_done_when_that_is_known(
    beside: Ledger, monkeypatch: pytest.MonkeyPatch
):
    done: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(beside.database, "flush", lambda connection, _: connection.exec_driver_sql("SELECT 1 / 0"))
        with pytest.raises(LedgerError):
            write(beside, 1, done)
        with pytest.raises(LedgerError):
            beside.resolve()
        assert done == []

    beside.resolve()

    assert done == [1]
    write(beside, 2, done)
    assert done == [1, 2]


def test_nobody_waits_while_what_another_wrote_becomes_durable_and_nothing_of_it_is_done_before(
    tmp_path: Path, beside: Ledger, database: str, monkeypatch: pytest.MonkeyPatch
):
    done: list[int] = []
    flush = beside.database.flush

    def seen(*ours: Any) -> None:
        with Ledger.open(database, create=False) as person, person.transaction() as tx:
            tx.begin()
            assert pending(person) == 1
        assert done == []
        flush(*ours)

    monkeypatch.setattr(beside.database, "flush", seen)
    write(beside, 1, done)
    assert done == [1]


@pytest.mark.slow
def test_what_a_server_that_died_had_not_written_yet_is_not_done(tmp_path: Path):
    """Its own log is written by itself within ten seconds; what nobody waited for goes with it."""
    late = {"wal_writer_delay": "10s", "full_page_writes": "on"}
    with Cluster(tmp_path / "postgres", settings=late, durable=True) as cluster:
        cluster.make("ledger")
        with opened(tmp_path, cluster.url("ledger")) as ledger:
            done: list[int] = []
            write(ledger, 1, done)
            ledger.in_turns = True

            def dies(*ours: Any) -> None:
                cluster.stop("immediate")
                flush(*ours)

            flush, ledger.database.flush = ledger.database.flush, dies  # type: ignore[method-assign]
            with pytest.raises(LedgerAway):
                write(ledger, 2, done)
            ledger.database.flush = flush  # type: ignore[method-assign]
            cluster.start()

            ledger.resolve()

            assert done == [1]
            write(ledger, 3, done)
            assert (done, pending(ledger)) == ([1, 3], 2)
