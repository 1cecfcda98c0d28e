"""Extended query tags: attributes that a client makes searchable (AZURE.md 6)."""

from __future__ import annotations

import sqlite3
from typing import Any

from starlette.responses import Response

from ..dicom.dictionary import tag_of
from ..errors import Problem
from ..http.answers import PlainJson
from ..http.request import Action, Body, Route, ServiceRequest, route
from ..storage.index import one
from ..storage.operations import add_operation
from .new_tags import checked, entries_of, query_status, unparsable
from .operations import check_enabled, check_none_active, started
from .query import page

_MOST_TAGS = 128
_JSON = {"body": Body.SMALL, "consumes": ("application/json",), "partitioned": False}


def post_tags(request: ServiceRequest) -> Response:
    """``POST /extendedquerytags``: add tags; the files that are there already are indexed by an operation."""
    check_enabled(request)
    wanted = entries_of(request.json_content())
    with request.archive.index.write() as tx:
        check_none_active(request, tx, "reindex")
        entries = checked(wanted)
        paths = [entry["path"] for entry in entries]
        marks = ",".join("?" * len(paths))
        if one(tx, f"SELECT 1 FROM tag WHERE path IN ({marks})", tuple(paths)) is not None:
            raise Problem(409, "One or more extended query tags already exist.")
        if tx.execute("SELECT count(*) FROM tag").fetchone()[0] + len(entries) > _MOST_TAGS:
            # The original lets this through as an unexpected server error (sic, AZURE.md 6.2).
            raise Problem(503, f"Extended query tags exceeds max allowed count '{_MOST_TAGS}'.")
        operation_id = _add(tx, entries)
    request.archive.forget_tags()
    return started(request, operation_id)


def _add(tx: sqlite3.Connection, entries: list[dict[str, str]]) -> str:
    paths = [entry["path"] for entry in entries]
    operation_id = add_operation(
        tx, "reindex", {"paths": paths}, resources=[f"extendedquerytags/{path}" for path in paths]
    )
    for entry in entries:
        tx.execute(
            "INSERT INTO tag (path, vr, private_creator, level, status, operation_id) VALUES (?, ?, ?, ?, 'adding', ?)",
            (entry["path"], entry["vr"], entry.get("privatecreator"), entry["level"], operation_id),
        )
    return operation_id


def _shown(request: ServiceRequest, tx: sqlite3.Connection, row: sqlite3.Row) -> dict[str, Any]:
    errors = tx.execute("SELECT count(*) FROM tag_error WHERE tag_key = ?", (row["key"],)).fetchone()[0]
    href = f"{request.root_url}/extendedquerytags/{row['path']}"
    adding = row["status"] == "adding"
    return {
        "path": row["path"],
        "vr": row["vr"],
        "privateCreator": row["private_creator"],
        "level": row["level"],
        "status": row["status"],
        "errors": {"count": errors, "href": f"{href}/errors"} if errors else None,
        "operation": (
            {"id": row["operation_id"], "href": f"{request.root_url}/operations/{row['operation_id']}"}
            if adding
            else None
        ),
        "queryStatus": "enabled" if row["query_enabled"] else "disabled",
    }


def get_tags(request: ServiceRequest) -> Response:
    """``GET /extendedquerytags``."""
    limit, offset = page(request)
    with request.archive.index.read() as tx:
        rows = tx.execute("SELECT * FROM tag ORDER BY key LIMIT ? OFFSET ?", (limit, offset)).fetchall()
        return PlainJson([_shown(request, tx, row) for row in rows])


def _find(request: ServiceRequest, tx: sqlite3.Connection, *, ready: bool = False) -> sqlite3.Row:
    """The row of the path's tag; raises Problem 404, and 400 for a path that is none or a tag that must be ready."""
    tag = tag_of(request.params["tag"])
    if tag is None:
        raise unparsable(request.params["tag"])
    path = f"{tag:08X}"
    row = one(tx, "SELECT * FROM tag WHERE path = ?", (path,))
    if row is None:
        raise Problem(404, f"The specified extended query tag with tag path {path} cannot be found.")
    if ready and row["status"] != "ready":
        raise Problem(400, f"The extended query tag '{path}' is being processed.")
    return row


def get_tag(request: ServiceRequest) -> Response:
    """``GET /extendedquerytags/{tag}``."""
    with request.archive.index.read() as tx:
        return PlainJson(_shown(request, tx, _find(request, tx)))


def delete_tag(request: ServiceRequest) -> Response:
    """``DELETE /extendedquerytags/{tag}``, with its index."""
    with request.archive.index.write() as tx:
        row = _find(request, tx, ready=True)
        for table in ("tag_value", "tag_error"):
            tx.execute(f"DELETE FROM {table} WHERE tag_key = ?", (row["key"],))
        tx.execute("DELETE FROM tag WHERE key = ?", (row["key"],))
    request.archive.forget_tags()
    return Response(status_code=204)


def patch_tag(request: ServiceRequest) -> Response:
    """``PATCH /extendedquerytags/{tag}``: switch searching by it on or off."""
    status = query_status(request.json_content())
    with request.archive.index.write() as tx:
        row = _find(request, tx, ready=True)
        tx.execute("UPDATE tag SET query_enabled = ? WHERE key = ?", (status == "enabled", row["key"]))
        return PlainJson(_shown(request, tx, _find(request, tx)))


def get_errors(request: ServiceRequest) -> Response:
    """``GET /extendedquerytags/{tag}/errors``."""
    limit, offset = page(request)
    partitions = request.archive.settings.partitions
    with request.archive.index.read() as tx:
        row = _find(request, tx)
        rows = tx.execute(
            "SELECT e.created_at, e.message, i.study_uid, i.series_uid, i.sop_uid, p.name FROM tag_error e"
            " JOIN instance i ON i.watermark = e.watermark JOIN partition p ON p.key = i.partition_key"
            " WHERE e.tag_key = ? ORDER BY e.watermark LIMIT ? OFFSET ?",
            (row["key"], limit, offset),
        ).fetchall()
    return PlainJson(
        [
            {
                "partitionName": each["name"] if partitions else None,
                "studyInstanceUid": each["study_uid"],
                "seriesInstanceUid": each["series_uid"],
                "sopInstanceUid": each["sop_uid"],
                "createdTime": each["created_at"],
                "errorMessage": each["message"],
            }
            for each in rows
        ]
    )


ROUTES: list[Route] = [
    route("POST", "extendedquerytags", post_tags, Action.MANAGE_TAGS, **_JSON),
    route("GET", "extendedquerytags", get_tags, Action.READ, partitioned=False),
    route("GET", "extendedquerytags/{tag}", get_tag, Action.READ, partitioned=False),
    route("DELETE", "extendedquerytags/{tag}", delete_tag, Action.MANAGE_TAGS, partitioned=False),
    route("PATCH", "extendedquerytags/{tag}", patch_tag, Action.MANAGE_TAGS, **_JSON),
    route("GET", "extendedquerytags/{tag}/errors", get_errors, Action.READ, partitioned=False),
]
