"""One server's archive: its folders, index, log and faults, and what it does when it starts and stops."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..faults import Faults
from ..settings import Settings
from .files import Files, StoredFile
from .index import CREATING, Index, now_ticks, utc_text
from .instances import drop_empty
from .operations import OperationWorker
from .request_log import RequestLog
from .tags import Tag, stored_tags


class InUse(Exception):
    """Another emulator works in this data folder."""


class IndexDelay:
    """Studies that searches do not see yet, and until when: the ``index_lag`` fault."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._lock = threading.Lock()

    def hide(self, study_uid: str, seconds: float) -> None:
        with self._lock:
            self._until[study_uid] = max(self._until.get(study_uid, 0.0), time.monotonic() + seconds)

    def hidden(self) -> list[str]:
        """The studies hidden now."""
        if not self._until:
            return []
        now = time.monotonic()
        with self._lock:
            self._until = {uid: until for uid, until in self._until.items() if until > now}
            return list(self._until)


class Archive:
    """What every request works on."""

    def __init__(self, data: Path, settings: Settings, *, faults: Faults, log_to_disk: bool) -> None:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _locked(data / "lock")
        self.data = data
        self.settings = settings
        self.faults = faults
        self.index = Index(data / "index.sqlite", fsync=settings.fsync)
        self.files = Files(data, fsync=settings.fsync)
        self.index_delay = IndexDelay()
        self.log = RequestLog(data / "requests.jsonl" if log_to_disk else None)
        self._partitions: dict[str, int] = {}
        self._partition_lock = threading.Lock()
        self.workers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="emulator-examine")
        self.operations = OperationWorker(self.index, delay_seconds=settings.operation_delay)
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
            if not was_running:
                return
            if not self.settings.crash_leaves_creating:
                tx.execute("DELETE FROM instance WHERE status = ?", (CREATING,))
                drop_empty(tx)
            rows = tx.execute("SELECT watermark, original_watermark FROM instance").fetchall()
        self.files.sweep({mark for row in rows for mark in row if mark is not None})

    def file(self, watermark: int) -> StoredFile:
        return StoredFile(self.index, self.files.path(watermark), watermark)

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


def _locked(path: Path) -> int:
    # Two servers on one folder would clear away each other's unfinished parts.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise InUse(f"another emulator works in {path.parent}") from error
    return descriptor


def reset(data: Path) -> None:
    """Remove everything an emulator keeps in a data folder, and nothing else that may be there."""
    for name in ("files", "incoming", "keys"):
        shutil.rmtree(data / name, ignore_errors=True)
    for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "requests.jsonl"):
        (data / name).unlink(missing_ok=True)
