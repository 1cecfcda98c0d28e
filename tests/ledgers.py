"""What the tests' ledgers are kept in: an SQLite file each, or a schema each of a PostgreSQL server.

``INGESTD_TEST_LEDGER=postgresql`` has every test that asks here run on PostgreSQL: on a server that its worker starts,
or on that of ``INGESTD_TEST_SERVER``, a URL of libpq with a database that is theirs.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from sqlalchemy import Engine, create_engine, event

from ingestd.ledger import Ledger, baseline, sqlite_file

ON_POSTGRESQL = os.environ.get("INGESTD_TEST_LEDGER") == "postgresql"
# What a database says that refuses to break a rule.
REFUSED: tuple[type[Exception], ...] = (sqlite3.IntegrityError,)
# What it says that cannot be used just now.
FAILED: type[Exception] = sqlite3.OperationalError
if ON_POSTGRESQL:
    import psycopg

    from ingestd.ledger import postgres, postgres_server, study_locks

    REFUSED = (psycopg.IntegrityError,)
    FAILED = psycopg.OperationalError
    # In the name of each schema, so that a folder called as one of a former run has a ledger of its own; processes that
    # a test starts find it here.
    _RUN = os.environ.setdefault("INGESTD_TEST_RUN", secrets.token_hex(8))

_READ = """SELECT (SELECT sum(seq_tup_read) + sum(idx_tup_fetch) FROM pg_stat_user_tables
        WHERE schemaname = current_schema())
    + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname = current_schema())"""

sqlite_only = pytest.mark.skipif(ON_POSTGRESQL, reason="it is about the file that SQLite keeps a ledger in")

by_lock_only = pytest.mark.skipif(
    ON_POSTGRESQL, reason="who works on a spool is known by its lock only where the ledger is SQLite's"
)


def share_what_is_compiled() -> None:
    """Have a ledger in a file find what an earlier one of this process has compiled, in place of a cache of its own.

    It is the same SQL for all of them, and to make it took half of the time of most tests that have a ledger.
    """
    first = create_engine("sqlite://", query_cache_size=5000)
    first.connect().close()  # by which its dialect, which is in each key, knows the driver

    def made(url: str, **options: Any) -> Engine:
        engine = create_engine(url, **options)
        engine.dialect, engine._compiled_cache = first.dialect, first._compiled_cache
        return engine

    sqlite_file.create_engine = made


def url_of(folder: Path) -> str:
    """Say where the ledger of this folder is kept."""
    return _schema_of(folder) if ON_POSTGRESQL else f"sqlite:///{folder / 'ledger.db'}"


@cache
def _schema_of(folder: Path) -> str:
    schema = f"t_{hashlib.sha256(os.fsencode(folder) + _RUN.encode()).hexdigest()[:24]}"
    server = os.environ["INGESTD_TEST_SERVER"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    return f"{server}?options=-csearch_path%3D{schema}"


def placed(text: str, folder: Path) -> str:
    """Have the configuration of a folder, which names ``sqlite:///ledger.db``, name where its ledger is kept."""
    return text.replace("sqlite:///ledger.db", url_of(folder)) if ON_POSTGRESQL else text


def agree_anew(folder: Path) -> None:
    """Have the configuration that is read next hold for all who share the ledger of this folder."""
    if ON_POSTGRESQL:
        with raw(url_of(folder)) as connection, suppress(psycopg.errors.UndefinedTable):
            connection.execute("DELETE FROM meta WHERE key = 'agreed'")


def key_of(folder: Path, spool: str = "") -> Path:
    """Say where the key of this folder's ledger lies, where that is given as ``search.key`` in this spool."""
    return folder / spool / "search.key" if ON_POSTGRESQL else folder / "ledger.db.key"


def remove_ledger(folder: Path) -> None:
    """Have the ledger of this folder be as before it was made."""
    if not ON_POSTGRESQL:
        return (folder / "ledger.db").unlink()
    with raw(url_of(folder)) as connection:
        (schema,) = connection.execute("SELECT current_schema()").fetchone()
        connection.execute(f"DROP SCHEMA {schema} CASCADE")
        connection.execute(f"CREATE SCHEMA {schema}")
    return None


def contents_of(url: str) -> dict[str, bytes]:
    """Give all that a ledger has in it: its file, or its tables."""
    if url.startswith("sqlite:///"):
        return {"": Path(url.removeprefix("sqlite:///")).read_bytes()}
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()").fetchall()
        found = {}
        for (table,) in rows:
            with connection.cursor().copy(f"COPY {table} TO STDOUT") as copy:
                found[table] = b"".join(copy)
    return found


def put_back(url: str, contents: Mapping[str, bytes]) -> None:
    """Have a ledger be as it was; what numbers are taken from stays where it is by now."""
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).write_bytes(contents[""])
        return
    with psycopg.connect(url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(f"TRUNCATE {', '.join(contents)}")
        for table, rows in contents.items():
            with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                copy.write(rows)


class _Postgres:
    """A connection that understands what the tests say to SQLite's: ``?`` for values, rows that are tuples."""

    def __init__(self, url: str) -> None:
        self._driver = psycopg.connect(url, autocommit=True)

    def execute(self, statement: str, values: Any = ()) -> Any:
        return self._driver.execute(statement.replace("%", "%%").replace("?", "%s"), values)

    def close(self) -> None:
        self._driver.close()


@contextmanager
def raw(ledger: Ledger | str) -> Iterator[Any]:
    """Open a ledger, or that of a URL, beside whoever has it, for SQL of the test's own; each statement commits."""
    url = ledger if isinstance(ledger, str) else url_in(ledger)
    if url.startswith("sqlite:///"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=30)) as connection:
            yield connection
        return
    with closing(_Postgres(url)) as opened:
        yield opened


def url_in(ledger: Ledger) -> str:
    """Say how an open ledger is opened once more."""
    if not ON_POSTGRESQL or not isinstance(ledger.database, postgres.Postgres):
        return f"sqlite:///{ledger.name}"
    return f"postgresql:///?{urlencode(ledger.database._said, quote_via=quote)}"


@contextmanager
def statements_of(ledger: Ledger) -> Iterator[list[str]]:
    """Give a list that has what a ledger is asked and told meanwhile."""
    statements: list[str] = []

    def remember(*said: Any) -> None:
        statements.append(said[2])

    event.listen(ledger.engine, "before_cursor_execute", remember)
    try:
        yield statements
    finally:
        event.remove(ledger.engine, "before_cursor_execute", remember)


def plan_for_many_rows(ledger: Ledger) -> None:
    """Have PostgreSQL go by indexes, row by row: of few rows it would read all. What it has planned is forgotten."""
    driver = postgres.driver_of(ledger.connection)
    for what in ("seqscan", "mergejoin", "hashjoin", "material"):
        driver.execute(f"SET enable_{what} = off", prepare=False)
    driver.execute("DISCARD PLANS", prepare=False)


def rows_read(ledger: Ledger, ask: Callable[[Ledger], object]) -> int:
    """Run this, by indexes alone, and count the rows and the entries of indexes that PostgreSQL reads for it."""
    plan_for_many_rows(ledger)
    driver = postgres.driver_of(ledger.connection)
    counted = []
    with raw(ledger) as other:
        # As autovacuum does: what an index leads to that is gone is read, too.
        tables = other.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()").fetchall()
        other.execute(f"VACUUM (ANALYZE) {', '.join(table for (table,) in tables)}")
        for do in (lambda _: None, ask):
            do(ledger)
            driver.execute("SELECT pg_stat_force_next_flush()", prepare=False)
            counted.append(other.execute(_READ).fetchone()[0])
    return int(counted[1] - counted[0])


@contextmanager
def kept_out(ledger: Ledger | str) -> Iterator[Callable[[], object]]:
    """Keep all that would write the ledger out, as another writer does, until the end or what this gives is called."""
    with raw(ledger) as other:
        if isinstance(other, sqlite3.Connection):
            other.execute("BEGIN EXCLUSIVE")
        else:
            other.execute("BEGIN")
            other.execute(f"SELECT pg_advisory_xact_lock({study_locks.LOCK}, hashtext(current_schema()))")
        yield lambda: other.execute("ROLLBACK")


def wait_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ledgers that are opened from now on wait 50 ms for another writer."""
    monkeypatch.setattr(sqlite_file, "_BUSY_MS", 50)
    if ON_POSTGRESQL:
        monkeypatch.setattr(postgres_server, "_SETTINGS", postgres_server._SETTINGS + "; SET lock_timeout = '50ms'")


@contextmanager
def read_whole(ledger: Ledger | str) -> Iterator[sqlite3.Connection]:
    """Give a ledger as an SQLite connection that is good for reading: the file, or a copy of what PostgreSQL has."""
    url = ledger if isinstance(ledger, str) else url_in(ledger)
    if url.startswith("sqlite:///"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            yield connection
        return
    import psycopg

    from ingestd.ledger import upgrade

    with closing(sqlite3.connect(":memory:")) as copy, psycopg.connect(url) as there:
        there.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        for statement in baseline.STATEMENTS:
            copy.execute(statement.format(**upgrade.WORDS))
        copy.execute("CREATE TABLE sequence (name TEXT NOT NULL PRIMARY KEY, next INTEGER NOT NULL) STRICT")
        tables = [row[0] for row in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            if table != "sequence":
                rows = there.execute(f"SELECT * FROM {table}").fetchall()
                copy.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows) if rows else 0
        for name in baseline.NUMBERED:
            (last, is_called) = there.execute(f"SELECT last_value, is_called FROM {name}_number").fetchone()
            copy.execute("INSERT INTO sequence VALUES (?, ?)", (name, last + int(is_called)))
        copy.commit()
        yield copy
