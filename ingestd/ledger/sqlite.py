"""A ledger in an SQLite file: what ``database.Database`` asks, answered by ``sqlite_file`` and ``upgrade``."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select

from ingestd.clocks import Clock

from . import baseline, errors, sqlite_file, upgrade
from .database import Tell, Writer
from .errors import LedgerError
from .schema import meta
from .session import PUT_META

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from .membership import Member
    from .workers import Worker


class Sqlite:
    """The ledger of ``sqlite:////FILE``; its lock is the file's, and whoever has the spool is its only daemon."""

    words: Mapping[str, str] = upgrade.WORDS
    is_shared = False
    driver_error: type[Exception] = sqlite3.Error

    def __init__(self, url: str) -> None:
        self.file = sqlite_file.ledger_file(url)
        self.name = str(self.file)
        self.clock = Clock()

    def is_too_long(self, relative_path: str) -> bool:  # noqa: ARG002 - the kernel's longest is kept
        return False

    def open_engine(self, *, create: bool, read_only: bool, rehearsal: bool = False) -> Engine:
        return sqlite_file.open_engine(self.file, create=create, read_only=read_only, rehearsal=rehearsal)

    def failure(self, error: BaseException | None) -> LedgerError:
        return errors.failure(error, self.file)

    def begin(
        self,
        connection: Connection,
        writer: Writer | None,  # noqa: ARG002 - the file's lock is for all
        *,
        in_turns: bool = False,  # noqa: ARG002 - and what is committed is durable
        studies: Collection[str] | None = None,  # noqa: ARG002
    ) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.info["changes"] = sqlite_file.rows_changed(connection)

    def try_lock(self, connection: Connection, studies: Collection[str]) -> set[str]:  # noqa: ARG002
        return set(studies)

    def flush(self, connection: Connection, writer: Writer) -> None:
        """Do nothing: COMMIT has done it."""

    def mark(self, connection: Connection, writer: Writer) -> str:
        if not writer.host or sqlite_file.rows_changed(connection) == connection.info["changes"]:
            return ""
        mark = secrets.token_hex(8)
        connection.execute(PUT_META, {"key": _mark_key(writer), "value": mark})
        return mark

    def is_last(self, connection: Connection, writer: Writer, mark: str) -> bool:
        asked = select(meta.c.value).where(meta.c.key == _mark_key(writer))
        return bool(connection.execute(asked).scalar() == mark)

    def undo(self, connection: Connection) -> None:
        """Roll back what a COMMIT that failed left open: SQLite keeps it, SQLAlchemy takes it for ended."""
        driver = sqlite_file.driver_of(connection)
        if driver.in_transaction:
            driver.rollback()

    def version(self, connection: Connection, writer: Writer) -> int:  # noqa: ARG002 - it tells what others did
        return sqlite_file.version(connection, self.file)

    def take(self, connection: Connection, writer: Writer, spool_id: int) -> Writer:  # noqa: ARG002 - the spool's lock
        return writer

    def others(self, connection: Connection, writer: Writer, spool_id: int) -> Sequence[int]:  # noqa: ARG002 - as `take`
        return ()

    def agreed(self, connection: Connection) -> str | None:  # noqa: ARG002 - as `take`
        return None

    def trust(self, connection: Connection, writer: Writer) -> None:
        """Do nothing: a file loses no commit."""

    def beat(self, connection: Connection, writer: Writer) -> None:
        """Do nothing: nobody takes over."""

    def end(self, connection: Connection, writer: Writer) -> None:
        """Do nothing: whoever locks the spool is the next."""

    def workers(self, connection: Connection) -> Sequence[Worker] | None:  # noqa: ARG002 - whoever has locked the spool
        return None

    def living(self, connection: Connection) -> Sequence[Worker]:  # noqa: ARG002 - as `workers`
        return ()

    def machines(self, connection: Connection, workers: Collection[int]) -> Mapping[int, str]:  # noqa: ARG002 - as above
        return {}

    def members(self, connection: Connection, spool_id: int) -> Sequence[Member]:  # noqa: ARG002 - as `workers`
        return ()

    def key_file(self) -> Path:
        return self.file.with_name(self.file.name + ".key")

    def has_tables(self, connection: Connection) -> bool:
        return sqlite_file.has_tables(connection, self.file)

    def make_own(self, connection: Connection) -> None:
        sqlite_file.mark_as_ours(connection)
        connection.exec_driver_sql(
            "CREATE TABLE sequence (name TEXT NOT NULL PRIMARY KEY, next INTEGER NOT NULL) STRICT"
        )
        for name in baseline.NUMBERED:
            connection.exec_driver_sql("INSERT INTO sequence VALUES (?, 1)", (name,))

    def install_guards(self, connection: Connection) -> None:
        sqlite_file.install_guards(connection)

    def check_quickly(self, connection: Connection) -> None:
        sqlite_file.check_quickly(connection, self.file)

    def bring_up_to_date(self, connection: Connection, tell: Tell | None) -> None:
        try:
            upgrade.bring_up_to_date(sqlite_file.driver_of(connection), self.file, tell)
        except sqlite3.Error as error:
            raise errors.failure(error, self.file) from None

    def foretell(self, schema: int) -> str:
        return upgrade.foretell(self.file, schema)

    def back_up(self, connection: Connection, folder: Path) -> None:
        sqlite_file.copy(sqlite_file.driver_of(connection), self.file, folder / self.file.name)


def _mark_key(writer: Writer) -> str:
    return f"transaction {writer.host}"
