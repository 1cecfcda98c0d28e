"""Operations as clients see them: ``/operations/{id}`` (AZURE.md 6.4). ``storage.operations`` does them."""

from __future__ import annotations

import json
import sqlite3

from starlette.responses import Response

from ..errors import Problem
from ..http.answers import PlainJson
from ..http.request import Action, Route, ServiceRequest, route
from ..storage.index import one
from ..storage.operations import UNFINISHED

_NAMES = {"reindex": "re-index", "update": "update"}  # what the service calls a kind in its refusal


def check_enabled(request: ServiceRequest) -> None:
    """Raise Problem 400 where operations are switched off."""
    if not request.archive.settings.operations:
        raise Problem(400, "Asynchronous operations are temporarily disabled. Please try again later.")


def check_none_active(request: ServiceRequest, tx: sqlite3.Connection, kind: str) -> None:
    """Raise Problem 409 while another operation of the kind is going on."""
    running = one(tx, f"SELECT id FROM operation WHERE type = ? AND {UNFINISHED}", (kind,))
    if running is not None:
        raise Problem(
            409,
            f"There is already an active {_NAMES[kind]} operation with ID '{running['id']}'.",
            headers={"Location": f"{request.root_url}/operations/{running['id']}"},
        )


def started(request: ServiceRequest, operation_id: str, *, location: bool = True) -> Response:
    """Start an operation whose row is committed: ``202 Accepted``, with where it can be watched."""
    request.archive.operations.start(operation_id)
    href = f"{request.root_url}/operations/{operation_id}"
    headers = {"Location": href} if location else None
    return PlainJson({"id": operation_id, "href": href}, status_code=202, headers=headers)


def get_operation(request: ServiceRequest) -> Response:
    """``GET /operations/{id}``: 202 while it is going on, 200 after."""
    operation_id = request.params["operation"].lower()
    with request.archive.index.read() as tx:
        row = one(tx, "SELECT * FROM operation WHERE id = ?", (operation_id,))
    if row is None:
        raise Problem(404, "The specified operation cannot be found.")
    going_on = row["status"] in ("notStarted", "running")
    status = "completed" if request.version == 1 and row["status"] == "succeeded" else row["status"]
    body = {
        "operationId": row["id"],
        "type": row["type"],
        "createdTime": row["created_at"],
        "lastUpdatedTime": row["updated_at"],
        "status": status,
        "percentComplete": row["percent"],
        "resources": [f"{request.root_url}/{path}" for path in json.loads(row["resources"])] or None,
        "results": json.loads(row["results"]) if row["results"] else None,
    }
    headers = {"Location": f"{request.root_url}/operations/{operation_id}"} if going_on else None
    return PlainJson(body, status_code=202 if going_on else 200, headers=headers)


ROUTES: list[Route] = [
    route("GET", "operations/{operation}", get_operation, Action.READ, partitioned=False),
]
