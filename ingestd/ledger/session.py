"""One connection to the ledger: how statements are run, remembered and committed, and what is known of the hosts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import Executable

from ingestd.lifecycle import BatchLimits, LongestWaits

from . import dialect, errors, sqlite_file
from .schema import host as host_table
from .schema import meta

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine


PUT_META = dialect.upsert(meta)


class Queryable(Protocol):
    """Whatever ``queries`` are asked of.

    The ledger: each SELECT is a transaction of its own, a hint of how things stand. Or a transaction, which it begins:
    what is read so is what is written upon, since nobody else writes until the end of it.
    """

    host: str
    spool: Path | None
    longest: LongestWaits

    def spool_of(self, host: str) -> Path | None:
        """Say where a host's spool is, as it was last opened."""

    def fetch_all(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """Give all rows of a SELECT."""

    def fetch_one(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Any:
        """Give the first row of a SELECT, None where there is none."""

    def fetch_cached(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """Give all rows; asked again only when the ledger has changed, for statements built once, with few values."""


class Session:
    """A connection and what is remembered beside it. It belongs to the thread that opened it."""

    # Waits that pace are read by it: what lies further ahead than its kind can reach is due.
    longest = LongestWaits()

    def __init__(self, engine: Engine, file: Path, *, host: str, spool: Path | None) -> None:
        self.engine = engine
        self.connection = engine.connect()
        self.file = file
        self.host = host
        self.spool = spool
        self._writes = False
        self._limits: dict[str, BatchLimits] = {}
        self._spools: dict[str, Path] = {}
        # Answers that hold until the ledger changes, and the version that they are of; our own writes forget them.
        self._answers: dict[tuple[Executable, tuple[Any, ...]], Sequence[Any]] = {}
        self._version = 0
        self.labels_known: set[tuple[str, str, str]] = set()
        # An id that was given out is not given out again by this process: a late answer must not meet another file.
        self.first_candidate_id = 1
        # What the last transaction left in ``meta``, to be known by where its COMMIT failed; "": it changed nothing.
        self.last_mark = ""

    def fetch_all(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        try:
            return self.connection.execute(statement, values).all()
        except DBAPIError as error:
            raise errors.failure(error.orig, self.file) from None
        finally:
            if not self._writes:
                self.connection.rollback()

    def fetch_one(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Any:
        rows = self.fetch_all(statement, values)
        return rows[0] if rows else None

    def fetch_cached(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        if self._writes:
            return self.fetch_all(statement, values)
        version = sqlite_file.version(self.connection, self.file)
        if version != self._version:
            self._version = version
            self._answers.clear()
        asked = (statement, tuple(values.values()) if values else ())
        if asked not in self._answers:
            # Read behind the version: what is written in between is read once more.
            self._answers[asked] = self.fetch_all(statement, values)
        return self._answers[asked]

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK after whatever was raised; raises LedgerError."""
        assert not self._writes, "one transaction at a time"
        self.connection.info["writes"] = True
        self._writes = True
        self._answers.clear()
        # Another host's daemon may have been given other ones since; our own are changed by nobody else.
        self._limits = {host: limits for host, limits in self._limits.items() if host == self.host}
        self.last_mark = ""
        changes = sqlite_file.rows_changed(self.connection)
        try:
            with self.connection.begin():
                yield self.connection
                if self.host and sqlite_file.rows_changed(self.connection) > changes:
                    self.last_mark = secrets.token_hex(8)
                    self.connection.execute(PUT_META, {"key": self._mark_key, "value": self.last_mark})
        except DBAPIError as error:
            sqlite_file.undo(self.connection)
            raise errors.failure(error.orig, self.file) from None
        finally:
            self.connection.info["writes"] = False
            self._writes = False

    @property
    def _mark_key(self) -> str:
        return f"transaction {self.host}"

    def is_last(self, mark: str) -> bool:
        """Say whether the transaction with this mark is durable, and the last one of this host; raises LedgerError."""
        rows = self.fetch_all(select(meta.c.value).where(meta.c.key == self._mark_key))
        return any(row.value == mark for row in rows)

    def spool_of(self, host: str) -> Path | None:
        if host == self.host:
            return self.spool
        if host not in self._spools:
            rows = self.fetch_all(select(host_table.c.host, host_table.c.spool))
            self._spools.update((row.host, Path(row.spool)) for row in rows if row.spool)
        return self._spools.get(host)

    def limits_of(self, host: str) -> BatchLimits:
        """Say by which limits a host's batches are cut, as it was last opened."""
        if host not in self._limits:
            row = self.fetch_one(select(host_table).where(host_table.c.host == host))
            self._limits[host] = (
                BatchLimits()
                if row is None
                else BatchLimits(
                    quiet_period=timedelta(microseconds=row.quiet_period_us),
                    max_wait=timedelta(microseconds=row.max_wait_us),
                    max_bytes=row.max_bytes,
                    max_instances=row.max_instances,
                )
            )
        return self._limits[host]
