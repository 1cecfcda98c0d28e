"""Statements to PostgreSQL of which nobody wants an answer: sent at once, heard of with the next, or before COMMIT."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import bindparam, select, update

from ingestd.ledger import Ledger, LedgerAway, LedgerError, Writer, dialect
from ingestd.ledger.schema import meta
from ingestd.lifecycle import IllegalMove
from tests.fleet.gateways import through
from tests.ledger_builders import open_shared
from tests.postgres import Cluster
from tests.wire import Wire

SET = update(meta).where(meta.c.key == bindparam("b_key")).values(value=bindparam("b_value"))
TAKE_A_KEY_THAT_IS_THERE = update(meta).where(meta.c.key == "made_at").values(key="schema")
GET = select(meta.c.value).where(meta.c.key == "made_at")


@pytest.fixture
def wire(cluster: Cluster) -> Iterator[Wire]:
    with Wire(cluster.port) as running:
        yield running


@pytest.fixture
def ledger(tmp_path: Path, database: str, wire: Wire) -> Iterator[Ledger]:
    with open_shared(through(database, wire.port), tmp_path, Writer("host-a", shares=True)) as opened:
        yield opened


def put(ledger: Ledger, *values: str, rows: int | None = 1, key: str = "made_at") -> None:
    for value in values:
        dialect.write(ledger.connection, SET, {"b_key": key, "b_value": value}, rows=rows)


def value(database: str) -> str:
    with psycopg.connect(database) as other:
        (found,) = other.execute("SELECT value FROM meta WHERE key = 'made_at'").fetchone() or ("",)
    return str(found)


def test_what_was_sent_is_seen_by_the_next_that_is_asked_and_is_durable_by_commit(ledger: Ledger, database: str):
    before = value(database)
    with ledger.begin():
        put(ledger, "1", "2")
        assert ledger.fetch_one(GET).value == "2"
        put(ledger, "3")
        put(ledger, "nobody's", key="no such key", rows=None)
        assert value(database) == before
    assert value(database) == "3"


def test_none_of_it_is_waited_for_by_itself(ledger: Ledger, wire: Wire, database: str):
    put_once, delay = 20, 0.05
    with ledger.begin():
        put(ledger, *map(str, range(put_once)))  # as often as has it prepared
    wire.delay_seconds = delay
    with ledger.begin():
        begun = time.perf_counter()
        put(ledger, *map(str, range(put_once)))
        assert ledger.fetch_one(GET).value == str(put_once - 1)
        assert time.perf_counter() - begun < put_once * delay


def begin_and(ledger: Ledger, *acts: Callable[[], object]) -> None:
    with ledger.begin():
        for act in acts:
            act()


@pytest.mark.parametrize("is_asked", [True, False])
@pytest.mark.parametrize("fault", ["rows", "error"])
def test_what_hits_other_rows_or_fails_takes_all_of_it_back_and_the_next_transaction_works(
    ledger: Ledger, database: str, fault: str, is_asked: bool
):
    before = value(database)

    def fails() -> None:
        if fault == "rows":
            put(ledger, "2", key="no such key")
        else:
            dialect.write(ledger.connection, TAKE_A_KEY_THAT_IS_THERE, {})

    def ask() -> None:
        if is_asked:
            ledger.fetch_one(GET)

    with pytest.raises(IllegalMove if fault == "rows" else LedgerError):
        begin_and(ledger, lambda: put(ledger, "1"), fails, lambda: put(ledger, "3"), ask)

    assert value(database) == before
    begin_and(ledger, lambda: put(ledger, "4"))
    assert value(database) == "4"


def test_connection_that_is_lost_with_something_sent_is_told_of_and_made_anew(
    ledger: Ledger, wire: Wire, database: str
):
    before = value(database)
    with pytest.raises(LedgerAway):
        begin_and(ledger, lambda: put(ledger, "1"), wire.cut)
    assert value(database) == before
    begin_and(ledger, lambda: put(ledger, "2"))
    assert value(database) == "2"


def test_what_was_raised_in_between_takes_back_what_was_sent(ledger: Ledger, database: str):
    before = value(database)
    with pytest.raises(KeyError):
        begin_and(ledger, lambda: put(ledger, "1"), lambda: {}["raised"])
    assert ledger.fetch_one(GET).value == value(database) == before
