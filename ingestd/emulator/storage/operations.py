"""Long-running operations: reindexing and bulk update, on one worker thread, survivors of a restart.

An operation is a row that says what is to be done; the worker does it and writes down how it ended. What a crash
interrupted is done again from the start: every kind of work is made so that this does no harm.
"""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from .index import Index, now_ticks, one, utc_text

Work = Callable[[dict[str, Any]], dict[str, Any]]
UNFINISHED = "status IN ('notStarted', 'running')"


def add_operation(tx: sqlite3.Connection, kind: str, given: dict[str, Any], *, resources: list[str]) -> str:
    """Write a new operation's row and return its id: 32 hex digits."""
    operation_id = uuid.uuid4().hex
    now = utc_text(now_ticks())
    tx.execute(
        "INSERT INTO operation (id, type, status, created_at, updated_at, resources, input)"
        " VALUES (?, ?, 'notStarted', ?, ?, ?, ?)",
        (operation_id, kind, now, now, json.dumps(resources), json.dumps(given)),
    )
    return operation_id


class OperationWorker:
    """The worker of one server; its thread starts with the first operation."""

    def __init__(self, index: Index, *, delay_seconds: float) -> None:
        self._index = index
        self._delay_seconds = delay_seconds
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._kinds: dict[str, Work] = {}

    def register(self, kind: str, work: Work) -> None:
        """Say how operations of this kind are done: from what the row has as input to the results it shows."""
        self._kinds[kind] = work

    def resume(self) -> None:
        """Take up what an earlier run of the server left unfinished."""
        with self._index.read() as tx:
            rows = tx.execute(f"SELECT id FROM operation WHERE {UNFINISHED}").fetchall()
        for row in rows:
            self.start(row["id"])

    def start(self, operation_id: str) -> None:
        """Have an operation done whose row is committed."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="emulator-operations", daemon=True)
                self._thread.start()
        self._queue.put(operation_id)

    def close(self) -> None:
        """Finish what is queued and stop."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (operation_id := self._queue.get()) is not None:
            with self._index.write() as tx:
                row = one(tx, "SELECT type, input FROM operation WHERE id = ?", (operation_id,))
                assert row is not None, "operations are never deleted"
                _update(tx, operation_id, "running")
            time.sleep(self._delay_seconds)
            try:
                results = self._kinds[row["type"]](json.loads(row["input"]))
                status = "succeeded"
            except Exception as error:  # noqa: BLE001 - a failed operation is a state that clients can see
                traceback.print_exception(error)
                results, status = {"errors": ["The operation failed."]}, "failed"
            with self._index.write() as tx:
                _update(tx, operation_id, status, results=results, percent=100)


def _update(
    tx: sqlite3.Connection, operation_id: str, status: str, *, results: dict[str, Any] | None = None, percent: int = 0
) -> None:
    tx.execute(
        "UPDATE operation SET status = ?, updated_at = ?, percent = ?, results = ? WHERE id = ?",
        (status, utc_text(now_ticks()), percent, json.dumps(results) if results else None, operation_id),
    )
