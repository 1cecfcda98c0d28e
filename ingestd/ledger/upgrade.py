"""A ledger of an older ingestd is brought up to date where it lies: wholly or not at all.

One BEGIN IMMEDIATE holds all of it: the space is looked at, a copy is kept beside the ledger, the statements are run,
the foreign keys are checked, COMMIT. Whoever is killed in between leaves what was there before. The copy is made under
the lock, by a second connection, so that it is what is migrated.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from ingestd.clocks import read_clocks
from ingestd.fs.mounts import free_space

from . import errors, sqlite_file
from .column_types import Digits, PathText, SpoolPath, StateNumber, Word
from .database import Tell
from .errors import LedgerError, LedgerFull
from .identity import hash_of_uids
from .migrations import MIGRATIONS

WORDS = {
    "int": "INTEGER",
    "text": "TEXT",
    "bytes": "BLOB",
    "key": "INTEGER PRIMARY KEY",
    "counted": "INTEGER PRIMARY KEY",
    "strict": "STRICT",
    "and_id": "",  # SQLite's indexes end with the row's number anyhow
}
_TELL_EVERY_SECONDS = 3.0
# Steps of SQLite's machine between two looks at the clock: some 10 ms.
_STEPS = 200_000
# Measured with 1,000,000 files (1.5 GB): 0.5 and 1.0 of the size, 27 MB/s.
_GROWTH = 0.75
_JOURNAL = 1.0
_SPARE_BYTES = 16_000_000
_BYTES_A_SECOND = 20_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What it takes to bring a ledger up to date, by its size.

    The copy is as large as the ledger, the new tables stand beside the old ones until the end, and the rollback journal
    has the old pages that are written over.
    """

    ledger_bytes: int

    @property
    def room_bytes(self) -> int:
        return int(self.ledger_bytes * (1 + _GROWTH + _JOURNAL)) + _SPARE_BYTES

    @property
    def seconds(self) -> int:
        return 1 + self.ledger_bytes // _BYTES_A_SECOND

    def expect_room(self, file: Path) -> int:
        """Say how many bytes are free beside the ledger; LedgerFull where they are too few."""
        try:
            free = free_space(file.parent).free_bytes
        except OSError as error:
            raise errors.disk_failed(file, "looked at", error) from None
        if free < self.room_bytes:
            raise LedgerFull(
                f"the ledger {file} is of an older ingestd, and to bring it up to date takes"
                f" {_in_megabytes(self.room_bytes)} beside it for a while, where {_in_megabytes(free)} are free;"
                " nothing was changed: make room and start again"
            )
        return free


def add_functions(driver: sqlite3.Connection) -> None:
    """Give a connection the functions that the migrations' statements call."""
    driver.create_function("identity_hash", 3, hash_of_uids, deterministic=True)
    driver.create_function("from_hex", 1, sqlite_file.from_hex, deterministic=True)
    driver.create_function("source_without_device", 1, _without_device, deterministic=True)
    for name, keep in (
        ("pack_digits", Digits.keep),
        ("pack_evidence", _packed_evidence),
        ("pack_path", lambda text: SpoolPath.keep(PathText.give(text))),
        ("state_number", StateNumber.keep),
        ("short_word", Word.keep),
    ):
        driver.create_function(name, 1, _unless_null(keep), deterministic=True)


def _unless_null(keep: Callable[[str], str | bytes | int]) -> Callable[[str | None], str | bytes | int | None]:
    return lambda text: None if text is None else keep(text)


def _packed_evidence(text: str) -> bytes:
    """Pack what a move rests on; of a sighting in the feed its numbers, which were a list in JSON."""
    return Digits.keep(text.strip("[]").replace(",", ":") if text.startswith("[") else text)


def _without_device(source: str) -> str:
    return source.partition(":")[2]


def needs_of(file: Path) -> Needs:
    """Say what it takes; raises LedgerError."""
    try:
        return Needs(ledger_bytes=file.stat().st_size)
    except OSError as error:
        raise errors.disk_failed(file, "looked at", error) from None


def foretell(file: Path, schema: int) -> str:
    """Say what ``bring_up_to_date`` would do; LedgerFull where it would find too little room."""
    needs = needs_of(file)
    free = needs.expect_room(file)
    return (
        f"the ledger {file} is of an older ingestd (schema {schema}); `ingestd run` brings it up to date in about"
        f" {needs.seconds} s, keeps a copy as {copy_of(file, schema).name} beside it, and needs"
        f" {_in_megabytes(needs.room_bytes)} there meanwhile ({_in_megabytes(free)} are free)"
    )


def copy_of(file: Path, schema: int) -> Path:
    """Say where the ledger is kept as it was."""
    return file.with_name(f"{file.name}.schema-{schema}")


def bring_up_to_date(driver: sqlite3.Connection, file: Path, tell: Tell | None = None) -> None:
    """Migrate a ledger that has tables to the newest schema, if it is of an older one.

    Raises LedgerError, LedgerFull before anything was touched where there is too little room, and sqlite3's errors;
    whatever is raised, the ledger is as it was.
    """
    if _schema_of(driver) >= len(MIGRATIONS):
        return
    pragmas = {name: driver.execute(f"PRAGMA {name}").fetchone()[0] for name in ("cache_size", "temp_store")}
    # Within a transaction they cannot be set. Sorting in files: a ledger of many millions is no matter of memory.
    driver.execute("PRAGMA foreign_keys=OFF")
    driver.execute("PRAGMA temp_store=FILE")
    driver.execute("PRAGMA cache_size=-128000")
    try:
        driver.execute("BEGIN IMMEDIATE")
        # Another process may have done it while this one waited for the lock.
        schema = _schema_of(driver)
        if schema < len(MIGRATIONS):
            _Upgrade(driver, file, schema, tell).run()
        driver.execute("COMMIT")
    finally:
        driver.set_progress_handler(None, 0)
        with suppress(sqlite3.Error):
            driver.rollback()
        for name, value in pragmas.items():
            driver.execute(f"PRAGMA {name}={value}")
        driver.execute("PRAGMA foreign_keys=ON")


def _schema_of(driver: sqlite3.Connection) -> int:
    return int(driver.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()[0])


class _Upgrade:
    """One ledger on its way, within the transaction."""

    def __init__(self, driver: sqlite3.Connection, file: Path, schema: int, tell: Tell | None) -> None:
        import structlog  # noqa: PLC0415 - as in `Ledger.resolve`: lines that few see

        self._driver = driver
        self._file = file
        self._schema = schema
        self._tell = tell or (lambda _: None)
        self._told_at = 0.0
        self._doing = ""
        self._log = structlog.get_logger()

    def run(self) -> None:
        began = read_clocks().mono
        # History is the one table that every schema has.
        has_rows = self._driver.execute("SELECT 1 FROM history LIMIT 1").fetchone() is not None
        if has_rows:
            needs_of(self._file).expect_room(self._file)
            size = self._file.stat().st_size
            self._log.info("ledger.migrating", schema_before=self._schema, schema=len(MIGRATIONS), bytes=size)
            self._keep_copy()
        self._run_statements()
        if has_rows:
            seconds = round(read_clocks().mono - began, 1)
            self._log.info("ledger.migrated", schema_before=self._schema, schema=len(MIGRATIONS), seconds=seconds)

    def _keep_copy(self) -> None:
        began = read_clocks().mono
        self._begin("keeping a copy of it")
        place = copy_of(self._file, self._schema)
        try:
            with closing(sqlite_file.reading(self._file)) as reader:
                sqlite_file.copy(reader, self._file, place, told=self._go_on)
        except OSError as error:
            raise errors.disk_failed(place, "written", error) from None
        seconds = round(read_clocks().mono - began, 1)
        self._log.info("ledger.copied", schema=self._schema, bytes=place.stat().st_size, seconds=seconds)

    def _run_statements(self) -> None:
        add_functions(self._driver)
        self._driver.set_progress_handler(self._go_on, _STEPS)
        statements = [statement for migration in MIGRATIONS[self._schema :] for statement in migration]
        for number, statement in enumerate(statements, start=1):
            self._begin(f"step {number} of {len(statements)}")
            self._driver.execute(statement.format(**WORDS))
        self._begin("checking it")
        if lost := self._driver.execute("PRAGMA foreign_key_check").fetchone():
            raise LedgerError(
                f"the ledger {self._file} was not brought up to date: a row of its table {lost[0]} belongs to one of"
                f" {lost[2]} that is not there; it is as it was, and the ingestd that wrote it can go on with it"
            )
        self._driver.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(len(MIGRATIONS)),))
        self._begin("committing it")

    def _begin(self, doing: str) -> None:
        self._doing = doing
        self._go_on()

    def _go_on(self) -> None:
        now = read_clocks().mono
        if now - self._told_at >= _TELL_EVERY_SECONDS or not self._told_at:
            self._told_at = now
            self._tell(f"bringing the ledger up to date: {self._doing}")


def _in_megabytes(number: int) -> str:
    return f"{-(-number // 1_000_000)} MB"
