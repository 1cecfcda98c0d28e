"""A filled SQLite ledger moves into PostgreSQL: every row arrives as it was, and no two are ever used."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ingestd.ledger import (
    Choice,
    Ledger,
    LedgerBusy,
    LedgerError,
    LedgerMissing,
    LedgerOlder,
    moves,
    queries,
    upgrade,
)
from ingestd.ledger.column_types import PathText
from ingestd.ledger.schema import metadata
from ingestd.lifecycle import Route, State
from tests.former_ledgers import make_former_ledger
from tests.ledger_builders import LATER, URL, admit, arrival, entry_in, state_of
from tests.ledgers import read_whole
from tests.recounting import problems_of_ledger

# Of the module that needs psycopg, which may not be installed.
moving = pytest.importorskip("ingestd.ledger.moving")

OTHER_URL = "http://research.example/v2"
SPOOL = Path("/srv/ingestd/spool-host-a")
ODD = "äß\N{REPLACEMENT CHARACTER}--\udcff/日本 \\N\t\n'\"{}"
PATIENT = "00" * 16


def open_here(url: str, folder: Path, **more: Any) -> Ledger:
    return Ledger.open(
        url,
        host="host-a",
        destinations={"default": URL, "research": OTHER_URL},
        spool=SPOOL,
        key=folder / "search.key",
        **more,
    )


@pytest.fixture
def source(tmp_path: Path) -> str:
    """The URL of a ledger with every kind of row, older and newer ones, at two destinations."""
    file = make_former_ledger(tmp_path / "ledger.db")
    with closing(sqlite3.connect(file, isolation_level=None)) as driver:
        upgrade.bring_up_to_date(driver, file)
    with open_here(f"sqlite:///{file}", tmp_path) as ledger:
        for number, state in enumerate(State, start=500):
            entry_in(ledger, state, number, study=number)
        route = Route(rule=1, text="both", destinations=("default", "research"))
        named = arrival(700, study=700, relative_path=ODD, patient_hash=PATIENT)
        admit(ledger, *(replace(each, route=route) for each in (named, arrival(701, study=700))))
    return f"sqlite:///{file}"


def moved(source: str, target: str, folder: Path, **more: Any) -> Any:
    return moving.move(source, target, key=folder / "search.key", expect_idle=lambda _: None, **more)


def rows_of(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row by table, but for what is said of the move itself and of an SQLite ledger's transactions."""
    found = {}
    with read_whole(url) as whole:
        for table in metadata.tables.values():
            names = ", ".join(column.name for column in table.columns)
            found[table.name] = sorted(whole.execute(f"SELECT {names} FROM {table.name}"), key=repr)
    found["meta"] = [row for row in found["meta"] if row[0] in ("schema", "made_at", "search_key")]
    return found


def problems_of(url: str) -> list[str]:
    with read_whole(url) as whole:
        return problems_of_ledger(whole)


def test_every_row_arrives_as_it_was(source: str, database: str, tmp_path: Path):
    before = rows_of(source)
    assert all(before[table] for table in before), "every table has rows"

    told = moved(source, database, tmp_path)

    assert rows_of(database) == before
    assert problems_of(database) == problems_of(source)
    assert told.rows == {name: len(rows) for name, rows in before.items() if name != "sequence"}


def test_ledger_that_was_moved_goes_on_with_its_numbers_and_guards(source: str, database: str, tmp_path: Path):
    moved(source, database, tmp_path)

    with open_here(database, tmp_path) as ledger:
        with ledger.transaction() as tx:
            moves.recover(tx, now=LATER)
        before = {each.delivery_id for each in queries.entries(ledger, limit=10_000)}
        number = admit(ledger, arrival(800, study=800))[0]
        assert number > max(before)
        assert state_of(ledger, entry_in(ledger, State.CONFIRMED, 801, study=801)) is State.CONFIRMED
        with pytest.raises(LedgerError), ledger.begin() as connection:
            connection.exec_driver_sql("DELETE FROM history")
        with pytest.raises(LedgerError), ledger.begin() as connection:
            connection.exec_driver_sql("UPDATE delivery SET file_id = 999999")
    assert problems_of(database) == problems_of(source)


def test_same_answers_come_from_both(source: str, database: str, tmp_path: Path):
    def answers(url: str) -> list[object]:
        with Ledger.open(url, read_only=True, key=tmp_path / "search.key") as ledger:
            return [
                queries.status(ledger),
                queries.studies(ledger, Choice(patient_hash=PATIENT)),
                queries.entries(ledger, limit=10_000),
                [queries.story(ledger, each.delivery_id) for each in queries.entries(ledger, limit=10_000)],
                ledger.search_key.hash("patient", "DOE"),
            ]

    before = answers(source)
    moved(source, database, tmp_path)

    assert answers(database) == before


def test_odd_text_survives(source: str, database: str, tmp_path: Path):
    moved(source, database, tmp_path)

    with read_whole(database) as whole:
        paths = {PathText.give(path) for (path,) in whole.execute("SELECT relative_path FROM file")}
    assert ODD in paths


def test_indexes_and_keys_are_those_of_a_ledger_that_is_made_there(source: str, database: str, tmp_path: Path):
    import psycopg

    def made(schema: str) -> set[str]:
        with psycopg.connect(database, options=f"-csearch_path={schema}") as there:
            indexes = there.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()").fetchall()
            keys = there.execute(
                "SELECT conrelid::regclass::text || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM"
                " pg_constraint WHERE connamespace = current_schema()::regnamespace"
            ).fetchall()
            return {text.replace(f"{schema}.", "") for (text,) in (*indexes, *keys)}

    with psycopg.connect(database, autocommit=True) as there:
        there.execute("CREATE SCHEMA fresh")
    open_here(f"{database}?options=-csearch_path%3Dfresh", tmp_path).close()
    (tmp_path / "search.key").unlink()

    moved(source, database, tmp_path)

    assert made("public") == made("fresh")


def test_nobody_goes_on_with_the_former_one(source: str, database: str, tmp_path: Path):
    """A daemon that nobody saw would write what is lost: it is refused, with its ledger open, and at its next start."""
    with open_here(source, tmp_path) as still_open:
        moved(source, database, tmp_path)

        with pytest.raises(LedgerError):
            admit(still_open, arrival(900, study=900))
        with pytest.raises(LedgerError), still_open.transaction() as tx:
            moves.destination_answered(tx.at(1), now=LATER + timedelta(days=1))
    for more in ({}, {"read_only": True}):
        with pytest.raises(LedgerError, match="was moved to postgresql://"):
            Ledger.open(source, **more)  # type: ignore[arg-type]
    with pytest.raises(LedgerError, match="was moved to postgresql://"):
        Ledger.rehearse(source, host="host-a", destinations={"default": URL}, spool=SPOOL)
    with pytest.raises(LedgerError, match="was moved to postgresql://"):
        moved(source, database, tmp_path)


def test_nobody_writes_it_while_it_is_moved(
    source: str, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = moving._Way._copy

    def tried(self: Any, table: Any) -> None:
        if table.name == "history":
            with closing(sqlite3.connect(source.removeprefix("sqlite:///"), timeout=0)) as other:
                refused.append(other.execute("SELECT count(*) FROM file").fetchone())
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    other.execute("UPDATE file SET note = 'written meanwhile'")
        copy(self, table)

    refused: list[object] = []
    monkeypatch.setattr(moving._Way, "_copy", tried)
    moved(source, database, tmp_path)

    assert refused, "nobody tried"


def killed(point: str, move: Callable[[], object]) -> None:
    """Have a process move, that is killed when it comes to this point."""
    pid = os.fork()
    if not pid:
        try:
            setattr(moving._Way, point, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            move()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("point", ["_copy", "_compare", "_mark"])
def test_killed_in_the_middle_it_leaves_nothing_there(source: str, database: str, tmp_path: Path, point: str):
    before = rows_of(source)

    killed(point, lambda: moved(source, database, tmp_path))

    with pytest.raises(LedgerMissing):
        Ledger.open(database, create=False)
    with open_here(source, tmp_path):
        pass
    moved(source, database, tmp_path)
    assert rows_of(database) == before


def test_killed_before_the_former_one_is_closed_that_one_goes_on(source: str, database: str, tmp_path: Path):
    killed("close", lambda: moved(source, database, tmp_path))

    with pytest.raises(LedgerError, match="that was cut short"):
        open_here(database, tmp_path)
    with open_here(source, tmp_path) as ledger:
        admit(ledger, arrival(900, study=900))
    before = rows_of(source)
    moved(source, database, tmp_path)
    assert rows_of(database) == before
    open_here(database, tmp_path).close()


def test_killed_at_the_very_end_neither_is_used_until_it_is_called_again(source: str, database: str, tmp_path: Path):
    before = rows_of(source)
    killed("finish", lambda: moved(source, database, tmp_path))

    with pytest.raises(LedgerError, match="that was cut short"):
        open_here(database, tmp_path)
    with pytest.raises(LedgerError, match="was moved to postgresql://"):
        open_here(source, tmp_path)
    moved(source, database, tmp_path)
    assert rows_of(database) == before
    open_here(database, tmp_path).close()


@pytest.mark.parametrize("at_the_same_path", [False, True])
def test_what_another_ledgers_move_left_is_not_dropped(
    source: str, database: str, tmp_path: Path, at_the_same_path: bool
):
    """Of two hosts' ledgers at one path the second dropped what the first had moved, all but for the last step."""
    killed("finish", lambda: moved(source, database, tmp_path))
    before = rows_of(database)
    other = tmp_path / "other"
    other.mkdir()
    if at_the_same_path:
        for name in ("ledger.db", "ledger.db.key", "search.key"):
            (tmp_path / name).rename(other / name)
    url = source if at_the_same_path else f"sqlite:///{other}/ledger.db"
    open_here(url, tmp_path).close()

    with pytest.raises(LedgerError, match="already"):
        moved(url, database, tmp_path if at_the_same_path else other)

    assert rows_of(database) == before


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1"])
def test_text_that_the_database_does_not_take_is_told(source: str, database: str, tmp_path: Path, encoding: str):
    import psycopg

    with psycopg.connect(database, autocommit=True) as there:
        there.execute(
            f"CREATE DATABASE other_encoding ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    if encoding == "UTF8":
        with closing(sqlite3.connect(source.removeprefix("sqlite:///"), isolation_level=None)) as here:
            here.execute("UPDATE file SET station = 'a' || char(0) || 'b' WHERE id = (SELECT max(id) FROM file)")
    try:
        with pytest.raises(LedgerError, match="does not take a text of the table file"):
            moved(source, database.rpartition("/")[0] + "/other_encoding", tmp_path)
    finally:
        with psycopg.connect(database, autocommit=True) as there:
            there.execute("DROP DATABASE other_encoding WITH (FORCE)")


@pytest.mark.parametrize(
    "statement, what",
    [
        ("UPDATE file SET note = note || ' '", "table file has another note"),
        ("UPDATE delivery SET charged = charged + 1 WHERE id = (SELECT max(id) FROM delivery)", "another charged"),
        ("UPDATE file SET digest = sha256(digest) WHERE digest IS NOT NULL", "another digest"),
        ("DELETE FROM trust", "table trust has other rows"),
        ("INSERT INTO meta VALUES ('more', '')", "table meta has other rows"),
    ],
)
def test_row_that_was_changed_on_the_way_is_found(
    source: str, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, what: str
):
    set_sequences = moving._Way._set_sequences

    def changing(self: Any) -> None:
        set_sequences(self)
        for guard in ("file", "delivery"):
            self._run(f"ALTER TABLE {guard} DISABLE TRIGGER USER")
        self._run(statement)

    monkeypatch.setattr(moving._Way, "_set_sequences", changing)
    with pytest.raises(LedgerError, match=what):
        moved(source, database, tmp_path)
    monkeypatch.undo()

    with pytest.raises(LedgerMissing):
        Ledger.open(database, create=False)
    with open_here(source, tmp_path) as ledger:
        admit(ledger, arrival(900, study=900))


def test_there_is_no_ledger_yet_where_one_moves_to(source: str, database: str, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with open_here(database, elsewhere) as ledger:
        admit(ledger, arrival(1))
    before = rows_of(database)

    with pytest.raises(LedgerError, match="already"):
        moved(source, database, tmp_path)

    assert rows_of(database) == before
    open_here(source, tmp_path).close()


def test_key_is_copied_for_nobody_else_to_read(source: str, database: str, tmp_path: Path):
    moved(source, database, tmp_path)

    assert (tmp_path / "search.key").read_bytes() == (tmp_path / "ledger.db.key").read_bytes()
    assert (tmp_path / "search.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "key, place, what",
    [(b"k" * 32, b"o" * 32, "another key"), (b"k", None, "cut short"), (None, None, "No such")],
)
def test_ledger_stays_where_its_key_cannot_be_copied(
    source: str, database: str, tmp_path: Path, key: bytes | None, place: bytes | None, what: str
):
    (tmp_path / "ledger.db.key").unlink()
    for name, content in (("ledger.db.key", key), ("search.key", place)):
        if content is not None:
            (tmp_path / name).write_bytes(content)

    with pytest.raises(LedgerError, match=what):
        moved(source, database, tmp_path)

    with pytest.raises(LedgerMissing):
        Ledger.open(database, create=False)
    Ledger.open(source).close()


def test_older_ledger_is_brought_up_to_date_first(database: str, tmp_path: Path):
    file = make_former_ledger(tmp_path / "ledger.db")

    with pytest.raises(LedgerOlder, match="start `ingestd run` once"):
        moved(f"sqlite:///{file}", database, tmp_path)


def test_ledger_that_somebody_uses_is_not_moved(source: str, database: str, tmp_path: Path):
    def runs(spool: Path) -> None:
        seen.append(spool)
        raise LedgerBusy("somebody runs")

    seen: list[Path] = []
    with pytest.raises(LedgerBusy):
        moving.move(source, database, key=tmp_path / "search.key", expect_idle=runs)

    assert seen == [SPOOL]
    open_here(source, tmp_path).close()
