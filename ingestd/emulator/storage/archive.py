"""One server's state: its folders, index, log and faults, and what it does when it starts and stops."""

# ruff: noqa: S608 - what is put into SQL here are this room's own names, never what a client sent

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..dicom.attributes import Level
from ..faults import Faults
from ..http.guard import Guard, Open
from ..settings import Settings
from .examine import Tag
from .files import Files, Kept
from .index import CREATING, Index, now_ticks, utc_text
from .index_delay import Lag
from .operations import Operations
from .request_log import RequestLog


class Service:
    """What every request works on."""

    def __init__(self, data: Path, settings: Settings, *, faults: Faults, log_to_disk: bool) -> None:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _locked(data / "lock")
        self.data = data
        self.settings = settings
        self.faults = faults
        self.index = Index(data / "index.sqlite", fsync=settings.fsync)
        self.files = Files(data, fsync=settings.fsync)
        self.guard: Guard = Open()
        self.lag = Lag()
        self.log = RequestLog(data / "requests.jsonl" if log_to_disk else None)
        self._partitions: dict[str, int] = {}
        self._partition_lock = threading.Lock()
        self.workers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="emulator-examine")
        self.operations = Operations(self)
        self._expiry_at: int | None = None
        self._tags: list[Tag] | None = None
        self._tags_generation = 0
        self._recover()
        self.look_for_expiry()

    def _recover(self) -> None:
        """Make index and files agree again after a crash; a clean stop left nothing to do."""
        with self.index.write() as tx:
            row = tx.execute("SELECT value FROM counter WHERE name = 'running'").fetchone()
            was_running = bool(row and row[0])
            tx.execute("INSERT OR REPLACE INTO counter VALUES ('running', 1)")
            if was_running and not self.settings.crash_leaves_creating:
                tx.execute("DELETE FROM instance WHERE status = ?", (CREATING,))
                drop_empty(tx)
            known = (
                {mark for row in tx.execute("SELECT watermark, original_watermark FROM instance") for mark in row}
                if was_running
                else None
            )
        if known is not None:
            self.files.sweep({mark for mark in known if mark is not None})

    def kept(self, watermark: int) -> Kept:
        """The file of a stored version."""
        return Kept(self.index, self.files.path(watermark), watermark)

    def tags(self) -> list[Tag]:
        """The extended query tags that stores must index now."""
        known = self._tags
        if known is not None:
            return known
        generation = self._tags_generation
        with self.index.read() as tx:
            known = stored_tags(tx)
        if generation == self._tags_generation:
            self._tags = known
        return known

    def forget_tags(self) -> None:
        """The tags have changed: to be called after the transaction that changed them."""
        self._tags_generation += 1
        self._tags = None

    def look_for_expiry(self) -> None:
        """Find out when the next study expires."""
        with self.index.read() as tx:
            row = tx.execute("SELECT min(expires_at) FROM study WHERE expires_at IS NOT NULL").fetchone()
        self._expiry_at = row[0]

    def has_expired(self) -> bool:
        """Whether some study's time is over."""
        return self._expiry_at is not None and self._expiry_at <= now_ticks()

    def partition_key(self, name: str, *, create: bool = False) -> int | None:
        """The key of a partition, None when there is none of that name."""
        key = self._partitions.get(name)
        if key is not None:
            return key
        with self._partition_lock, self.index.write() as tx:
            row = tx.execute("SELECT key FROM partition WHERE name = ?", (name,)).fetchone()
            if row is not None:
                key = int(row[0])
            elif create:
                cursor = tx.execute(
                    "INSERT INTO partition (name, created_at) VALUES (?, ?)", (name, utc_text(now_ticks()))
                )
                key = cursor.lastrowid
        if key is not None:
            self._partitions[name] = key
        return key

    def partition_names(self) -> dict[int, str]:
        """Every partition's name by its key."""
        with self.index.read() as tx:
            return {int(row["key"]): str(row["name"]) for row in tx.execute("SELECT key, name FROM partition")}

    def close(self) -> None:
        """Stop cleanly: nothing may be running any more."""
        self.operations.close()
        self.workers.shutdown(cancel_futures=True)
        with self.index.write() as tx:
            tx.execute("INSERT OR REPLACE INTO counter VALUES ('running', 0)")
        self.index.close()
        self.files.close()
        self.log.close()
        os.close(self._lock)


class InUse(Exception):
    """Another emulator works in this data folder."""


def _locked(path: Path) -> int:
    # Two servers on one folder would clear away each other's unfinished parts.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise InUse(f"another emulator works in {path.parent}") from error
    return descriptor


def stored_tags(tx: sqlite3.Connection) -> list[Tag]:
    """The extended query tags that stores must index: those being added and those that are ready."""
    return [
        Tag(row["key"], int(row["path"], 16), row["vr"], Level(row["level"]), row["path"])
        for row in tx.execute("SELECT * FROM tag WHERE status IN ('adding', 'ready') ORDER BY key")
    ]


def drop_empty(tx: sqlite3.Connection, study_keys: Sequence[int] | None = None) -> None:
    """Remove series without instances and studies without series; with keys, only among those studies."""
    within = "" if study_keys is None else f" AND study_key IN ({','.join(map(str, study_keys))})"
    tx.execute(
        f"DELETE FROM series WHERE NOT EXISTS (SELECT 1 FROM instance WHERE instance.series_key = series.key){within}"
    )
    within = "" if study_keys is None else f" AND key IN ({','.join(map(str, study_keys))})"
    tx.execute(f"DELETE FROM study WHERE NOT EXISTS (SELECT 1 FROM series WHERE series.study_key = study.key){within}")


def reset(data: Path) -> None:
    """Remove everything an emulator keeps in a data folder, and nothing else that may be there."""
    for name in ("files", "incoming", "keys"):
        shutil.rmtree(data / name, ignore_errors=True)
    for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "requests.jsonl"):
        (data / name).unlink(missing_ok=True)
