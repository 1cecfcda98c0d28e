"""Operations as clients see them: ``/operations/{id}`` (AZURE.md 6.4). ``worker.py`` does them."""

from __future__ import annotations

import json
import sqlite3
import uuid
from typing import Any

from starlette.responses import Response

from ..errors import Problem
from ..http.answers import PlainJson
from ..http.request import Action, Call, Route, route
from ..storage.archive import Service
from ..storage.index import now_ticks, one, utc_text

_DISABLED = "Asynchronous operations are temporarily disabled. Please try again later."


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
