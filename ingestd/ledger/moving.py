"""A filled ledger moves from an SQLite file to a PostgreSQL server: at no moment can both of them be written.

Behind each step a crash, or a server that is lost, leaves what stands there:

1. The SQLite ledger is held still (BEGIN IMMEDIATE), and its key copied. *Nothing has changed.*
2. One PostgreSQL transaction makes the tables, takes all rows over, reads them back and compares each with the one that
   it was, and marks the ledger as ``MOVING``, with which no ingestd opens it. *The SQLite ledger goes on; the next
   move drops what this one made, and begins anew.*
3. The transaction that has held the SQLite ledger still marks it as ``MOVED``, with which no ingestd opens it, has
   triggers refuse whoever has it open, and commits. *The next move goes on with step 4.*
4. The mark is taken off the new ledger, which is used from now on.

The SQLite file stays where it is, with all its rows: were it gone, an ingestd with the former configuration would make
another, and take in what lies in the spool.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sqlalchemy import Table, delete
from sqlalchemy.exc import DBAPIError

from ingestd.clocks import read_clocks

from . import baseline, sqlite_file
from .column_types import PathText, kept_as
from .database import Database, Tell
from .errors import LedgerError, LedgerMissing, LedgerOlder
from .ledger import MOVED, MOVING, database_of, expect_usable, make_tables
from .migrations import MIGRATIONS
from .postgres import Postgres
from .postgres_server import driver_of, psycopg
from .schema import meta, metadata
from .search_key import copy_key
from .session import PUT_META
from .sqlite import Sqlite

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

T = TypeVar("T")

_TELL_EVERY_SECONDS = 3.0
_ROWS_BETWEEN_LOOKS = 10_000
# PostgreSQL takes numbers from sequences of its own.
_TABLES = [table for table in metadata.tables.values() if table.name != "sequence"]
_WIRE_TYPES = {"BIGINT": "int8", "TEXT": "text", "BYTEA": "bytea"}
# What the SQLite ledger alone goes by, and what is said of the move.
_LEFT = {"meta": f" WHERE key NOT LIKE 'transaction %' AND key NOT IN ('{MOVED}', '{MOVING}')"}
_PATIENCE = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
# Foreign keys and indexes: how each goes, and how it comes back. Made once, behind the rows, they cost less than kept.
_KEPT_FOR_ROWS = """
    SELECT format('ALTER TABLE %I DROP CONSTRAINT %I', relname, conname),
        format('ALTER TABLE %I ADD CONSTRAINT %I %s', relname, conname, pg_get_constraintdef(pg_constraint.oid))
    FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
    WHERE contype = 'f' AND relnamespace = current_schema()::regnamespace
    UNION ALL SELECT format('DROP INDEX %I', relname), pg_get_indexdef(indexrelid)
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE relnamespace = current_schema()::regnamespace
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)"""
_IDENTITIES = """
    SELECT format('SELECT setval(pg_get_serial_sequence(%L, %L), max(%I)) FROM %I', table_name, column_name,
        column_name, table_name)
    FROM information_schema.columns WHERE table_schema = current_schema() AND is_identity = 'YES'"""


class Moved(NamedTuple):
    """What was taken over: rows by table, and how large the SQLite file is."""

    rows: dict[str, int]
    size_bytes: int
    seconds: float


def move(
    source_url: str, target_url: str, *, key: Path, expect_idle: Callable[[Path], object], tell: Tell | None = None
) -> Moved:
    """Take the ledger of an SQLite URL over into that of a PostgreSQL URL, which has none, and its key to ``key``.

    ``expect_idle`` raises where an ingestd runs on the spool at this path. ``tell`` hears how it goes on. A move that
    was cut short is finished by another call. Raises LedgerError, LedgerOlder: the ledger is of an older version.
    """
    began = read_clocks().mono
    source, target = database_of(source_url), database_of(target_url)
    if not isinstance(source, Sqlite) or not isinstance(target, Postgres):
        raise LedgerError("a ledger moves from sqlite:////FILE to postgresql://HOST/DATABASE")
    try:
        with _connected(source) as here, _connected(target) as there:
            with here.begin():
                source.begin(here, None)
                marks = _marks_of(source, here)
                _expect_newest(source, marks)
                for (path,) in here.exec_driver_sql("SELECT path FROM spool WHERE path <> ''").all():
                    expect_idle(Path(PathText.give(path)))
                way = _Way(source, target, here, there, tell or (lambda _: None))
                if MOVED not in marks:
                    copy_key(source.key_file(), key)
                    way.close(way.copy_all())
                elif _token(marks[MOVED]) != _token(_marks_of(target, there).get(MOVING, "")):
                    expect_usable(source.name, marks)
            way.finish()
            rows = {table.name: way.count(table) for table in _TABLES}
    except (sqlite3.Error, psycopg.Error, DBAPIError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise (source if isinstance(cause, sqlite3.Error) else target).failure(cause) from None
    return Moved(rows, source.file.stat().st_size, read_clocks().mono - began)


@contextmanager
def _connected(database: Database) -> Iterator[Connection]:
    engine = database.open_engine(create=False, read_only=False)
    with engine.connect() as connection:
        yield connection


def _marks_of(database: Database, connection: Connection) -> dict[str, str]:
    if not database.has_tables(connection):
        return {}
    return dict(tuple(row) for row in connection.exec_driver_sql("SELECT key, value FROM meta"))


def _token(mark: str) -> str:
    return mark.partition(" ")[0]


def _expect_newest(source: Sqlite, marks: dict[str, str]) -> None:
    if not marks:
        raise LedgerMissing(f"the ledger {source.name} is empty; there is nothing to move")
    schema = int(marks["schema"])
    if schema < len(MIGRATIONS):
        raise LedgerOlder(
            f"the ledger {source.name} is of an older ingestd (schema {schema}); start `ingestd run` once to bring it"
            " up to date"
        )
    if schema > len(MIGRATIONS):
        raise LedgerError(
            f"the ledger {source.name} was written by a newer ingestd (schema {schema}, this one knows"
            f" {len(MIGRATIONS)}); run that version, or a newer one"
        )


class _Way:
    """One ledger on its way, ``here`` in a transaction from first to last."""

    def __init__(self, source: Sqlite, target: Postgres, here: Connection, there: Connection, tell: Tell) -> None:
        self._source, self._target = source, target
        self._here, self._there = here, there
        self._rows_here, self._rows_there = sqlite_file.driver_of(here), driver_of(there)
        self._tell = tell
        self._told_at = read_clocks().mono

    def copy_all(self) -> str:
        """Have all of it there, compared and durable, and give the token by which this move is known."""
        token = secrets.token_hex(8)
        self._there.rollback()
        with self._there.begin():
            self._target.begin(self._there, None)
            self._run(_PATIENCE)
            self._drop_leftover()
            make_tables(self._target, self._there)
            left_out = self._rows_there.execute(_KEPT_FOR_ROWS).fetchall()
            for goes, _ in left_out:
                self._run(goes)
            for table in _TABLES:
                self._copy(table)
            for number, (_, comes) in enumerate(left_out, start=1):
                self._say(f"making indexes and keys, {number} of {len(left_out)}")
                self._run(comes)
            self._target.install_guards(self._there)
            self._set_sequences()
            for table in _TABLES:
                self._compare(table)
                self._run(f"ANALYZE {table.name}")
            self._mark(self._there, MOVING, f"{token} {self._source.name}")
        return token

    def close(self, token: str) -> None:
        """Have nobody write the SQLite ledger once this transaction is committed."""
        self._mark(self._here, MOVED, f"{token} {self._target.name}")
        for table in metadata.tables:
            for event in ("INSERT", "UPDATE", "DELETE"):
                self._here.exec_driver_sql(
                    f"CREATE TRIGGER moved_{table}_{event} BEFORE {event} ON {table}"
                    " BEGIN SELECT RAISE(ABORT, 'the ledger was moved'); END"
                )

    def finish(self) -> None:
        """Have the new ledger used from now on."""
        self._there.rollback()
        with self._there.begin():
            self._target.begin(self._there, None)
            self._there.execute(delete(meta).where(meta.c.key == MOVING))

    def count(self, table: Table) -> int:
        """Say how many rows of a table were moved."""
        (number,) = self._rows_here.execute(f"SELECT count(*) FROM {table.name}{_LEFT.get(table.name, '')}").fetchone()  # noqa: S608
        return int(number)

    def _drop_leftover(self) -> None:
        if not self._target.has_tables(self._there):
            return
        ours, theirs = _marks_of(self._source, self._here), _marks_of(self._target, self._there)
        former = theirs.get(MOVING, "").partition(" ")[2]
        # Another host's ledger may lie at the same path, moved already but for the last step.
        if (former, theirs["made_at"]) != (self._source.name, ours["made_at"]):
            raise LedgerError(
                f"there is a ledger in {self._target.name} already; a ledger moves to where none is: into a database,"
                " or a schema, of its own"
            )
        self._say("dropping what a move that was cut short left")
        self._run(f"DROP TABLE {', '.join([*(table.name for table in _TABLES), 'claim', 'worker'])}")
        self._run(f"DROP SEQUENCE {', '.join(f'{name}_number' for name in (*baseline.NUMBERED, 'worker'))}")

    def _copy(self, table: Table) -> None:
        # FREEZE: written as if it had been there for ever, so that no VACUUM writes it once more.
        into = f"COPY {table.name} ({_names(table)}) FROM STDIN (FORMAT BINARY, FREEZE)"
        try:
            with self._rows_there.cursor() as cursor, cursor.copy(into) as copy:
                copy.set_types(_types(table))
                for row in self._told(f"copying {table.name}", self._read(table)):
                    copy.write_row(row)
        except psycopg.DataError as error:
            raise LedgerError(
                f"the ledger {self._source.name} was not moved: {self._target.name} does not take a text of the table"
                f" {table.name} ({error.sqlstate}); make that database with ENCODING 'UTF8', and no text may have a NUL"
            ) from None

    def _compare(self, table: Table) -> None:
        """Raise LedgerError unless the table has the very rows that were to be moved."""
        chosen = f"COPY ({_selection(table)}) TO STDOUT (FORMAT BINARY)"
        with self._rows_there.cursor() as cursor, cursor.copy(chosen) as copy:
            copy.set_types(_types(table))
            pairs = zip_longest(self._read(table), copy.rows())
            for ours, theirs in self._told(f"comparing {table.name}", pairs):
                if ours != theirs:
                    raise self._difference(table, ours, theirs)

    def _difference(self, table: Table, ours: tuple[Any, ...] | None, theirs: tuple[Any, ...] | None) -> LedgerError:
        what = "has other rows"
        if ours is not None and theirs is not None:
            other = [column for column, *values in zip(table.columns, ours, theirs, strict=True) if len({*values}) > 1]
            if not any(column.primary_key for column in other):
                what = f"has another {other[0].name}"
        return LedgerError(
            f"the ledger {self._source.name} was not moved: the table {table.name} {what} in {self._target.name} than"
            " it was to have; nothing was left there, and this one can go on"
        )

    def _read(self, table: Table) -> Iterator[tuple[Any, ...]]:
        return self._rows_here.execute(_selection(table))

    def _set_sequences(self) -> None:
        for name, following in self._rows_here.execute("SELECT name, next FROM sequence"):
            self._rows_there.execute(f"SELECT setval('{name}_number', %s, false)", (following,))
        for (statement,) in self._rows_there.execute(_IDENTITIES).fetchall():
            self._run(statement)

    def _mark(self, connection: Connection, key: str, value: str) -> None:
        connection.execute(PUT_META, {"key": key, "value": value})

    def _run(self, statement: str) -> None:
        self._rows_there.execute(statement, prepare=False)

    def _told(self, doing: str, rows: Iterable[T]) -> Iterator[T]:
        self._say(doing)
        for number, row in enumerate(rows, start=1):
            if number % _ROWS_BETWEEN_LOOKS == 0:
                self._say(f"{doing}, {number:,} rows")
            yield row

    def _say(self, doing: str) -> None:
        now = read_clocks().mono
        if now - self._told_at >= _TELL_EVERY_SECONDS:
            self._told_at = now
            self._tell(f"moving the ledger: {doing}")


def _names(table: Table) -> str:
    return ", ".join(column.name for column in table.columns)


def _types(table: Table) -> list[str]:
    return [_WIRE_TYPES[kept_as(column.type)] for column in table.columns]


def _selection(table: Table) -> str:
    keys = ", ".join(column.name for column in table.primary_key)
    return f"SELECT {_names(table)} FROM {table.name}{_LEFT.get(table.name, '')} ORDER BY {keys}"  # noqa: S608
