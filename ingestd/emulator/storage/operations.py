"""Does long-running operations: reindexing and bulk update, on one worker thread, survivors of a restart.

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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .index import now_ticks, one, utc_text

if TYPE_CHECKING:
    from .archive import Service

Work = Callable[["Service", str, dict[str, Any]], dict[str, Any]]


class Operations:
    """The worker of one server; it starts with the first operation."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._kinds: dict[str, Work] = {}

    def register(self, kind: str, work: Work) -> None:
        """Say how operations of this kind are done."""
        self._kinds[kind] = work

    def resume(self) -> None:
        """Take up what an earlier run of the server left unfinished."""
        with self._service.index.read() as tx:
            rows = tx.execute("SELECT id FROM operation WHERE status IN ('notStarted', 'running')").fetchall()
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
            self._do(operation_id)

    def _do(self, operation_id: str) -> None:
        index = self._service.index
        with index.write() as tx:
            row = one(tx, "SELECT type, input FROM operation WHERE id = ?", (operation_id,))
            assert row is not None, "operations are never deleted"
            _update(tx, operation_id, "running")
        time.sleep(self._service.settings.operation_delay)
        try:
            results = self._kinds[row["type"]](self._service, operation_id, json.loads(row["input"]))
            status = "succeeded"
        except Exception as error:  # noqa: BLE001 - a failed operation is a state that clients can see
            traceback.print_exception(error)
            results, status = {"errors": ["The operation failed."]}, "failed"
        with index.write() as tx:
            _update(tx, operation_id, status, results=results, percent=100)


def _update(
    tx: sqlite3.Connection, operation_id: str, status: str, *, results: dict[str, Any] | None = None, percent: int = 0
) -> None:
    tx.execute(
        "UPDATE operation SET status = ?, updated_at = ?, percent = ?, results = ? WHERE id = ?",
        (status, utc_text(now_ticks()), percent, json.dumps(results) if results else None, operation_id),
    )
