"""The SQLite index: its tables, its connections, and the two counters everything is ordered by.

One writer connection behind a lock, a pool of readers. WAL, because readers then never wait for a store; the bug of
older SQLite libraries that needs two connections checkpointing at once cannot happen, because only the writer does.
An instance's row is *Creating* (status 0) until its file is in place and becomes *Created* (1) in the transaction
that also adds the feed entry, as in the service; nothing but DELETE and duplicate detection sees a Creating row.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ..dicom.collation import matches_fuzzily

CREATING, CREATED = 0, 1
DEFAULT_PARTITION = "Microsoft.Default"
TICKS_PER_SECOND = 10_000_000  # .NET ticks: 100 ns

_SCHEMA_VERSION = 2
# Small files are kept beside their rows: one flush of the log makes both durable, and there is no folder to flush.
_CONTENT = "CREATE TABLE content (watermark INTEGER PRIMARY KEY, file BLOB NOT NULL);"
_SCHEMA = f"""
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE partition (
    key INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_at TEXT NOT NULL);
CREATE TABLE study (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    partition_key INTEGER NOT NULL REFERENCES partition,
    study_uid TEXT NOT NULL,
    patient_id TEXT, patient_id_f TEXT,
    patient_name TEXT, patient_name_f TEXT,
    patient_birth_date TEXT, patient_birth_date_f TEXT,
    referring_physician_name TEXT, referring_physician_name_f TEXT,
    study_date TEXT, study_date_f TEXT,
    study_description TEXT, study_description_f TEXT,
    accession_number TEXT, accession_number_f TEXT,
    expires_at INTEGER,
    UNIQUE (partition_key, study_uid));
CREATE INDEX study_patient_id ON study (patient_id_f);
CREATE INDEX study_patient_name ON study (patient_name_f);
CREATE INDEX study_birth_date ON study (patient_birth_date_f);
CREATE INDEX study_referring ON study (referring_physician_name_f);
CREATE INDEX study_date ON study (study_date_f);
CREATE INDEX study_description ON study (study_description_f);
CREATE INDEX study_accession ON study (accession_number_f);
CREATE INDEX study_expiry ON study (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE series (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    study_key INTEGER NOT NULL REFERENCES study,
    series_uid TEXT NOT NULL,
    modality TEXT, modality_f TEXT,
    step_start_date TEXT, step_start_date_f TEXT,
    model_name TEXT, model_name_f TEXT,
    UNIQUE (study_key, series_uid));
CREATE INDEX series_uid ON series (series_uid);
CREATE INDEX series_modality ON series (modality_f);
CREATE INDEX series_start ON series (step_start_date_f);
CREATE INDEX series_model ON series (model_name_f);
CREATE TABLE instance (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    partition_key INTEGER NOT NULL,
    study_key INTEGER NOT NULL REFERENCES study,
    series_key INTEGER NOT NULL REFERENCES series,
    study_uid TEXT NOT NULL, series_uid TEXT NOT NULL, sop_uid TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL,
    transfer_syntax TEXT NOT NULL,
    status INTEGER NOT NULL,
    watermark INTEGER NOT NULL UNIQUE,
    original_watermark INTEGER,
    size_bytes INTEGER NOT NULL,
    UNIQUE (sop_uid, series_uid, study_uid, partition_key));
CREATE INDEX instance_study ON instance (study_key, watermark);
CREATE INDEX instance_series ON instance (series_key, watermark);
CREATE TABLE metadata (watermark INTEGER PRIMARY KEY, json BLOB NOT NULL);
{_CONTENT}
CREATE TABLE feed (
    position INTEGER PRIMARY KEY,
    sequence INTEGER NOT NULL UNIQUE,
    timestamp INTEGER NOT NULL,
    visible_at INTEGER NOT NULL DEFAULT 0,
    action TEXT NOT NULL,
    partition_key INTEGER NOT NULL,
    study_uid TEXT NOT NULL, series_uid TEXT NOT NULL, sop_uid TEXT NOT NULL,
    watermark INTEGER NOT NULL);
CREATE INDEX feed_time ON feed (timestamp);
CREATE INDEX feed_late ON feed (visible_at) WHERE visible_at > 0;
CREATE TABLE tag (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    path TEXT NOT NULL UNIQUE, vr TEXT NOT NULL, private_creator TEXT,
    level TEXT NOT NULL, status TEXT NOT NULL, query_enabled INTEGER NOT NULL DEFAULT 1,
    operation_id TEXT);
CREATE TABLE tag_value (
    tag_key INTEGER NOT NULL REFERENCES tag, resource_key INTEGER NOT NULL, watermark INTEGER NOT NULL,
    value, folded, PRIMARY KEY (tag_key, resource_key)) WITHOUT ROWID;
CREATE INDEX tag_value_folded ON tag_value (tag_key, folded);
CREATE TABLE tag_error (
    tag_key INTEGER NOT NULL REFERENCES tag, watermark INTEGER NOT NULL,
    created_at TEXT NOT NULL, message TEXT NOT NULL, PRIMARY KEY (tag_key, watermark)) WITHOUT ROWID;
CREATE TABLE operation (
    id TEXT PRIMARY KEY, type TEXT NOT NULL, status TEXT NOT NULL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL, percent INTEGER NOT NULL DEFAULT 0,
    resources TEXT NOT NULL DEFAULT '[]', results TEXT, input TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE workitem (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    partition_key INTEGER NOT NULL, uid TEXT NOT NULL, state TEXT NOT NULL,
    transaction_uid TEXT, json BLOB NOT NULL, watermark INTEGER NOT NULL,
    UNIQUE (partition_key, uid));
"""


class WrongSchema(Exception):
    """The index in the data folder was written by another version; ``ingestd emulate --reset`` starts anew."""


class Index:
    """The database of one server."""

    def __init__(self, path: Path, *, fsync: bool) -> None:
        self._path = path
        self._fsync = fsync
        self._lock = threading.Lock()
        self._readers: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._all: list[sqlite3.Connection] = []
        self._writer = self._connect()
        self._writer.execute("PRAGMA journal_mode=WAL")
        self._writer.execute(f"PRAGMA synchronous={'FULL' if fsync else 'NORMAL'}")
        self._writer.execute("PRAGMA wal_autocheckpoint=4000")
        self._create()
        self._last_tick: int = self._writer.execute("SELECT coalesce(max(timestamp), 0) FROM feed").fetchone()[0]

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=512)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA busy_timeout=10000")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA cache_size=-16000")
        connection.create_function("fuzzy", 2, matches_fuzzily, deterministic=True)
        self._all.append(connection)
        return connection

    def _create(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version == _SCHEMA_VERSION:
            return
        if version == 1:  # of which the second is the same and one table more
            self._writer.executescript(f"BEGIN;{_CONTENT}PRAGMA user_version={_SCHEMA_VERSION};COMMIT;")
            return
        if version != 0:
            raise WrongSchema(f"the index has schema {version}, this program writes {_SCHEMA_VERSION}")
        self._writer.executescript(
            f"BEGIN;{_SCHEMA};INSERT INTO partition VALUES (1, '{DEFAULT_PARTITION}', '{utc_text(now_ticks())}');"
            f"PRAGMA user_version={_SCHEMA_VERSION};COMMIT;"
        )

    @contextmanager
    def write(self, *, durable: bool = True, undo: Callable[[], object] = lambda: None) -> Iterator[sqlite3.Connection]:
        """One write transaction; commits at the end of the block, rolls back when it raises.

        One that is not durable survives the process but perhaps no power cut, until a durable one follows it. ``undo``
        is called after a rollback, before anybody else is given the numbers that were given here.
        """
        with self._lock:
            if self._fsync:
                self._writer.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # SQLite itself rolls back when the disk is full
                    self._writer.execute("ROLLBACK")
                undo()
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the index."""
        try:
            connection = self._readers.get_nowait()
        except Empty:
            connection = self._connect()
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.execute("PRAGMA query_only=ON")
        try:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")
        finally:
            self._readers.put(connection)

    def add_to_feed(
        self,
        tx: sqlite3.Connection,
        action: str,
        partition_key: int,
        identity: tuple[str, str, str],
        watermark: int,
        *,
        gap: int = 0,
        late_seconds: float = 0.0,
    ) -> None:
        """Add a feed entry, in the transaction that makes it true; its timestamp is later than every one before it.

        ``identity`` are study, series and SOP Instance UID; a fault may skip sequence numbers, or show the entry late.
        """
        self._last_tick = stamp = max(now_ticks(), self._last_tick + 1)
        tx.execute(
            "INSERT INTO feed (sequence, timestamp, visible_at, action, partition_key, study_uid, series_uid, sop_uid,"
            " watermark) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                next_number(tx, "sequence", gap=gap),
                stamp,
                stamp + int(late_seconds * TICKS_PER_SECOND) if late_seconds else 0,
                action,
                partition_key,
                *identity,
                watermark,
            ),
        )

    def close(self) -> None:
        """Close every connection; what is running on them must have ended."""
        for connection in self._all:
            connection.close()


def next_number(tx: sqlite3.Connection, counter: str, *, gap: int = 0) -> int:
    """A fresh number of a counter; counters never repeat, ``gap`` skips some."""
    tx.execute(
        "INSERT INTO counter VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        (counter, 1 + gap),
    )
    return counter_value(tx, counter)


def counter_value(tx: sqlite3.Connection, counter: str) -> int:
    row = tx.execute("SELECT value FROM counter WHERE name = ?", (counter,)).fetchone()
    return int(row[0]) if row else 0


def now_ticks() -> int:
    """Now, in 100 ns ticks since 1970."""
    return time.time_ns() // 100


def utc_text(ticks: int) -> str:
    """Ticks as the service writes instants: seven decimals and ``+00:00``."""
    seconds, fraction = divmod(ticks, TICKS_PER_SECOND)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:07d}+00:00"


def one(tx: sqlite3.Connection, sql: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Row | None:
    """The only row of a query, or None."""
    row: sqlite3.Row | None = tx.execute(sql, parameters).fetchone()
    return row
