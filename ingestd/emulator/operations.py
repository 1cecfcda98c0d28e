"""Long-running operations: reindexing and bulk update, done on one worker thread, survivors of a restart.

An operation is a row that says what is to be done; the worker does it and writes down how far it got. What a crash
interrupted is done again from the start: every step is idempotent.
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
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from .answers import PlainJson
from .call import Action, Call, Route, route
from .errors import Problem
from .index import now_ticks, one, utc_text

if TYPE_CHECKING:
    from .service import Service

Work = Callable[["Service", str, dict[str, Any]], dict[str, Any]]
_DISABLED = "Asynchronous operations are temporarily disabled. Please try again later."


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
        """Finish the operation that is running and stop; the others are taken up at the next start."""
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


def check_enabled(service: Service) -> None:
    """Raise Problem 400 where operations are switched off."""
    if not service.settings.operations:
        raise Problem(400, _DISABLED)


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


def active(tx: sqlite3.Connection, kind: str) -> str | None:
    """The id of an unfinished operation of this kind."""
    row = one(tx, "SELECT id FROM operation WHERE type = ? AND status IN ('notStarted', 'running')", (kind,))
    return None if row is None else str(row["id"])


def reference(call: Call, operation_id: str, *, location: bool = True) -> Response:
    """``202 Accepted`` with where the operation can be watched."""
    href = f"{call.root_url}/operations/{operation_id}"
    headers = {"Location": href} if location else None
    return PlainJson({"id": operation_id, "href": href}, status_code=202, headers=headers)


def already_active(call: Call, kind: str, operation_id: str) -> Problem:
    """The refusal while another operation of the kind is going on."""
    return Problem(
        409,
        f"There is already an active {kind} operation with ID '{operation_id}'.",
        headers={"Location": f"{call.root_url}/operations/{operation_id}"},
    )


def get_operation(call: Call) -> Response:
    """``GET /operations/{id}``: 202 while it is going on, 200 after."""
    operation_id = call.params["operation"].lower()
    with call.service.index.read() as tx:
        row = one(tx, "SELECT * FROM operation WHERE id = ?", (operation_id,))
    if row is None:
        raise Problem(404, "The specified operation cannot be found.")
    going_on = row["status"] in ("notStarted", "running")
    status = "completed" if call.version == 1 and row["status"] == "succeeded" else row["status"]
    body = {
        "operationId": row["id"],
        "type": row["type"],
        "createdTime": row["created_at"],
        "lastUpdatedTime": row["updated_at"],
        "status": status,
        "percentComplete": row["percent"],
        "resources": [f"{call.root_url}/{path}" for path in json.loads(row["resources"])] or None,
        "results": json.loads(row["results"]) if row["results"] else None,
    }
    headers = {"Location": f"{call.root_url}/operations/{operation_id}"} if going_on else None
    return PlainJson(body, status_code=202 if going_on else 200, headers=headers)


ROUTES: list[Route] = [
    route("GET", "operations/{operation}", get_operation, Action.READ, partitioned=False),
]
