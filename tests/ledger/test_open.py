"""A ledger is opened so that a commit is a commit, or refused in words that say what to do."""

from __future__ import annotations

import itertools
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect
from sqlalchemy.exc import IntegrityError
from structlog.testing import capture_logs

from ingestd.ledger import Ledger, LedgerBusy, LedgerError, LedgerMissing, OtherDestination, moves, queries, schema
from ingestd.ledger.migrations import MIGRATIONS
from ingestd.lifecycle import FILE_MOVES, MOVES, BatchLimits, State
from tests.ledger_builders import (
    LATER,
    NOW,
    URL,
    admit,
    arrival,
    assert_ledger_holds,
    entry_in,
    identity,
    open_ledger,
    send,
)
from tests.ledgers import ON_POSTGRESQL, REFUSED, key_of, raw, statements_of, url_of, wait_little


def test_missing_key_of_a_filled_ledger_is_told_and_never_made_anew_in_silence(tmp_path: Path):
    """Its reader heard that there is no ledger, and the daemon made another key without a word."""
    ledger = open_ledger(tmp_path)
    before = ledger.search_key.hash("patient", "PID")
    admit(ledger, arrival(1))
    ledger.close()
    key = key_of(tmp_path)
    key.unlink()

    with Ledger.open(url_of(tmp_path), read_only=True, key=key) as reader:  # noqa: SIM117
        with pytest.raises(LedgerError, match="put it back") as told:
            reader.search_key.hash("patient", "PID")
    with capture_logs() as lines, open_ledger(tmp_path) as writer:
        after = writer.search_key.hash("patient", "PID")

    assert not isinstance(told.value, LedgerMissing)
    assert before != after
    assert [line["event"] for line in lines] == ["ledger.key_made_anew"]


def test_tables_are_as_the_statements_expect_them(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        found = inspect(ledger.connection)
        for table in schema.metadata.sorted_tables:
            if ON_POSTGRESQL and table is schema.sequence:
                continue
            names = {column["name"] for column in found.get_columns(table.name)}
            assert names == {column.name for column in table.columns}, table.name
            keys = found.get_pk_constraint(table.name)["constrained_columns"]
            assert keys == [column.name for column in table.primary_key], table.name


def test_read_only_open_needs_a_ledger(tmp_path: Path):
    with pytest.raises(LedgerMissing, match=r"`ingestd run` (makes|fills) it"):
        Ledger.open(url_of(tmp_path), read_only=True)
    with pytest.raises(LedgerMissing):
        Ledger.open(url_of(tmp_path), create=False)
    assert list(tmp_path.iterdir()) == []


def test_read_only_ledger_refuses_to_write(tmp_path: Path):
    with open_ledger(tmp_path):
        pass
    with Ledger.open(url_of(tmp_path), read_only=True) as reader, pytest.raises(LedgerError, match="for reading only"):
        reader.transaction().__enter__()


def test_reader_sees_what_is_committed_beside_an_open_transaction(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        admit(ledger, arrival(1))
        with Ledger.open(url_of(tmp_path), read_only=True) as reader, ledger.transaction() as tx:
            moves.admit(tx, [arrival(2)], now=NOW)
            assert queries.counts(reader)[State.PENDING] == 1
        with Ledger.open(url_of(tmp_path), read_only=True) as reader:
            assert queries.counts(reader)[State.PENDING] == 2


def test_other_destination_is_refused_with_the_way_out(tmp_path: Path):
    with open_ledger(tmp_path):
        pass
    with pytest.raises(OtherDestination, match="destination move NAME URL`; another server needs a name of its own"):
        open_ledger(tmp_path, destination="http://other.example/v2")
    with pytest.raises(OtherDestination):
        Ledger.open(url_of(tmp_path), destinations={"default": "http://other.example/v2"}, read_only=True)
    with Ledger.open(url_of(tmp_path), destinations={"default": URL + "/"}, read_only=True) as reader:
        destination = queries.destination(reader)
        assert destination is not None
        assert destination.url == URL


def set_schema(folder: Path, value: int) -> None:
    with raw(url_of(folder)) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(value),))


def know(monkeypatch: pytest.MonkeyPatch, *more: tuple[str, ...]) -> None:
    """Be a version with these migrations more."""
    for module in ("ledger", "postgres" if ON_POSTGRESQL else "upgrade"):
        monkeypatch.setattr(f"ingestd.ledger.{module}.MIGRATIONS", (*MIGRATIONS, *more))


def test_whoever_takes_files_in_says_where_they_go_unless_the_ledger_knows(tmp_path: Path):
    """The first admission failed, with a foreign key."""
    with pytest.raises(LedgerError, match="knows no destination"):
        Ledger.open(url_of(tmp_path), host="host-a", spool=tmp_path, key=tmp_path / "search.key")
    with open_ledger(tmp_path):
        pass

    with Ledger.open(url_of(tmp_path), host="host-a", spool=tmp_path, key=tmp_path / "search.key") as ledger:
        admit(ledger, arrival(1))
        assert queries.counts(ledger)[State.PENDING] == 1


@pytest.mark.parametrize("read_only", [False, True])
def test_ledger_of_a_newer_version_is_left_alone(tmp_path: Path, *, read_only: bool):
    with open_ledger(tmp_path):
        pass
    set_schema(tmp_path, len(MIGRATIONS) + 1)
    with pytest.raises(LedgerError, match="was written by a newer ingestd"):
        Ledger.open(url_of(tmp_path), read_only=read_only)


def test_reader_does_not_migrate(tmp_path: Path):
    with open_ledger(tmp_path):
        pass
    set_schema(tmp_path, len(MIGRATIONS) - 1)
    with pytest.raises(LedgerError, match="start `ingestd run` once"):
        Ledger.open(url_of(tmp_path), read_only=True)


def test_migration_that_fails_leaves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with open_ledger(tmp_path):
        pass
    with monkeypatch.context() as patched:
        know(patched, ("CREATE TABLE extra (id {int} NOT NULL) {strict}", "CREATE NONSENSE"))
        with pytest.raises(LedgerError):
            open_ledger(tmp_path)
    with open_ledger(tmp_path) as ledger:
        assert "extra" not in inspect(ledger.connection).get_table_names()


def test_next_version_migrates_a_filled_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with open_ledger(tmp_path) as ledger:
        entry_in(ledger, State.CONFIRMED)
    know(monkeypatch, ("CREATE TABLE extra (id {int} NOT NULL) {strict}",))
    for _ in range(2):
        with open_ledger(tmp_path) as ledger:
            assert queries.counts(ledger)[State.CONFIRMED] == 1
            assert ledger._schema() == len(MIGRATIONS) + 1


def test_database_of_another_program_is_not_touched(tmp_path: Path):
    with raw(url_of(tmp_path)) as connection:
        connection.execute("CREATE TABLE meta (x TEXT)")
        for read_only in (True, False):
            with pytest.raises(LedgerError, match="of another program"):
                Ledger.open(url_of(tmp_path), read_only=read_only)
        connection.execute("DROP TABLE meta")
    open_ledger(tmp_path).close()


def test_writer_that_is_kept_out_for_too_long_is_told_to_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wait_little(monkeypatch)
    with open_ledger(tmp_path) as ledger, open_ledger(tmp_path, host="host-b") as other:
        with ledger.transaction() as tx:
            moves.admit(tx, [arrival(1)], now=NOW)
            with pytest.raises(LedgerBusy, match="try again"):
                admit(other, arrival(2))
        admit(other, arrival(2))


def guard_of(connection: Any, name: str) -> str:
    """What the database has a trigger do, in its own words."""
    asked = "SELECT sql FROM sqlite_master WHERE name = ?"
    if ON_POSTGRESQL:
        asked = (
            "SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid WHERE tgname = ?"
            " AND relnamespace = current_schema()::regnamespace"
        )
    (said,) = connection.execute(asked, (name,)).fetchone()
    return said


def test_database_itself_refuses_moves_that_the_table_lacks(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        entry_in(ledger, State.CONFIRMED)
    with raw(url_of(tmp_path)) as connection:
        for table, moves_of in (("delivery", MOVES), ("file", FILE_MOVES)):
            when = re.split(" BEGIN | EXECUTE ", guard_of(connection, f"{table}_moves").split(" WHEN ")[1])[0]
            for before, after in itertools.product(State, State):
                asked = re.sub(r"old\.state", f"'{before}'", when, flags=re.IGNORECASE)
                asked = re.sub(r"new\.state", f"'{after}'", asked, flags=re.IGNORECASE)
                (refused,) = connection.execute(f"SELECT {asked}").fetchone()
                assert bool(refused) is not (before is after or (before, after) in moves_of), (table, before, after)
        with pytest.raises(REFUSED, match="no such move"):
            connection.execute("UPDATE delivery SET state = 'SENDING'")
        for statement in ("DELETE FROM history", "UPDATE history SET note = 'x'", "DELETE FROM attempt"):
            with pytest.raises(REFUSED, match="append-only"):
                connection.execute(statement)
        for table in ("delivery", "file"):
            with pytest.raises(REFUSED, match="no row is deleted"):
                connection.execute(f"DELETE FROM {table}")


def test_guards_follow_the_table_of_moves(tmp_path: Path):
    with open_ledger(tmp_path):
        pass
    with raw(url_of(tmp_path)) as connection:
        before = guard_of(connection, "delivery_moves")
        if ON_POSTGRESQL:
            connection.execute("DROP TRIGGER delivery_moves ON delivery")
            others = "BEFORE UPDATE ON delivery FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        else:
            connection.execute("DROP TRIGGER delivery_moves")
            others = "BEFORE UPDATE ON delivery BEGIN SELECT 1; END"
        connection.execute(f"CREATE TRIGGER delivery_moves {others}")
    with open_ledger(tmp_path):
        pass
    with raw(url_of(tmp_path)) as connection:
        assert guard_of(connection, "delivery_moves") == before


def test_errors_show_no_values(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        entry_in(ledger, State.PENDING)
        with ledger.begin(), pytest.raises(IntegrityError) as error:
            ledger.connection.execute(
                schema.file.update().values(state="NONSENSE", note="Mueller^Hans", sop_uid=identity(1).sop_uid)
            )
    assert "Mueller" not in str(error.value)
    assert identity(1).sop_uid not in str(error.value)


def test_waiting_rows_do_not_slow_a_start_that_has_the_same_limits(tmp_path: Path):
    limits = BatchLimits(quiet_period=timedelta(seconds=7))
    with open_ledger(tmp_path, limits=limits) as ledger:
        admit(ledger, *(arrival(number, study=number) for number in range(20)))
    with open_ledger(tmp_path, limits=limits) as ledger:
        with statements_of(ledger) as statements, ledger.transaction() as tx:
            moves.recover(tx, now=LATER)
        assert not [each for each in statements if "FROM delivery" in each and "claim_token IS NOT NULL" not in each]
        send(ledger, 3)
        assert_ledger_holds(ledger)


def test_empty_mount_point_in_place_of_the_spool_is_refused_while_files_wait(tmp_path: Path):
    """Its disk was not mounted: a new spool was made on the bare folder, and the real one's files were stranded."""
    spool = tmp_path / "spool"

    def opened(host: str, spool: Path) -> Ledger:
        key = tmp_path / "search.key"
        return Ledger.open(url_of(tmp_path), host=host, destinations={"default": URL}, spool=spool, key=key)

    with opened("real", spool) as ledger:
        admit(ledger, arrival(1))

    with pytest.raises(LedgerError, match=r"wait \(1\).* mount it"):
        opened("other", spool)

    if ON_POSTGRESQL:
        with pytest.raises(LedgerError, match="mount that one here"):
            opened("other", tmp_path / "elsewhere")
    else:
        with opened("other", tmp_path / "elsewhere") as ledger:
            assert queries.status(ledger).oldest_unconfirmed_at is not None
    with opened("real", spool) as ledger:
        assert queries.counts(ledger)[State.PENDING] == 1
