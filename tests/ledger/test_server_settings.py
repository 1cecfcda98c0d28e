"""Whatever a role or a database has set for its sessions, a ledger in it is written and read by settings of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from ingestd.ledger import LedgerAway, LedgerFenced, Writer, moves, queries
from ingestd.lifecycle import State
from tests.ledger_builders import NOW, admit, arrival, open_shared
from tests.patience import PATIENCE
from tests.running import wait_until

HOST = "host-a"
_WAITS = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


def have(database: str, name: str, value: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{database.rpartition("/")[2]}" SET {name} = {value}')


@pytest.mark.parametrize(
    "name, value", [("datestyle", "German"), ("standard_conforming_strings", "off"), ("array_nulls", "off")]
)
def test_what_is_written_is_read_as_it_was(database: str, tmp_path: Path, name: str, value: str):
    """The driver read no other style of dates, doubled a backslash in what it sent as bytes, and named nothing NULL."""
    have(database, name, value)

    with open_shared(database, tmp_path, Writer(HOST, shares=True)) as ledger:
        (number,) = admit(ledger, told := arrival(1))

        story = queries.story(ledger, number)
        assert story is not None
        assert (story.entry.path, story.entry.relative_path) == (told.path, told.relative_path)
        assert [each.host for each in ledger.workers() or ()] == [HOST]


@pytest.mark.parametrize("isolation", ["'repeatable read'", "serializable"])
def test_what_another_wrote_while_its_lock_was_waited_for_is_seen(database: str, tmp_path: Path, isolation: str):
    """The snapshot of such a transaction is that of its first statement, which waits for the lock."""
    have(database, "default_transaction_isolation", isolation)
    writer = Writer(HOST, shares=True)
    with open_shared(database, tmp_path, writer) as a, open_shared(database, tmp_path, writer) as b:

        def counted() -> int:
            with b.transaction() as tx:
                return queries.counts(tx)[State.PENDING]

        with ThreadPoolExecutor(1) as beside:
            with a.transaction() as tx:
                tx.begin()
                seen = beside.submit(counted)
                with psycopg.connect(database, autocommit=True) as connection:
                    wait_until(lambda: connection.execute(_WAITS).fetchone(), what="who waits for the lock")
                moves.admit(tx, [arrival(1)], now=NOW)
            assert seen.result(PATIENCE) == 1


def test_database_that_may_only_be_read_is_waited_for_and_called_no_standby(database: str, tmp_path: Path):
    have(database, "default_transaction_read_only", "on")

    with pytest.raises(LedgerAway, match="may only be read: its server has `default_transaction_read_only` on"):
        open_shared(database, tmp_path, Writer(HOST, shares=True))


def test_connection_that_finds_another_schema_first_is_not_written_by(database: str, tmp_path: Path):
    """Its locks, which are the schema's, kept nobody out who had connected before, and wrote the same tables."""
    with open_shared(database, tmp_path, Writer(HOST, shares=True)) as ledger:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA other")
        have(database, "search_path", "other, public")
        ledger.connection.invalidate()

        with pytest.raises(LedgerFenced, match="search_path"), ledger.transaction() as tx:
            tx.begin()


@pytest.mark.parametrize("code", ["25P03", "25P04"])
def test_transaction_that_the_server_ends_for_its_length_is_tried_again(database: str, tmp_path: Path, code: str):
    ends = text(f"DO $$ BEGIN RAISE SQLSTATE '{code}'; END $$")

    with (
        open_shared(database, tmp_path, Writer(HOST, shares=True)) as ledger,
        pytest.raises(LedgerAway, match=code),
    ):
        ledger.fetch_all(ends)
