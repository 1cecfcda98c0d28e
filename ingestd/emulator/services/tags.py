"""Extended query tags: attributes that a client makes searchable (AZURE.md 6).

First the resource, then how what a client sends of it is judged, in the service's order and words (AZURE.md 6.2).
"""

from __future__ import annotations

import sqlite3
from typing import Any

from pydicom.valuerep import VR
from starlette.responses import Response

from ..dicom.attributes import CORE_BY_TAG, MODALITIES_IN_STUDY, Level
from ..dicom.dictionary import dictionary_vr, is_private, is_private_creator, tag_of
from ..dicom.minimum_rules import INDEXABLE_VRS
from ..errors import Problem
from ..http.answers import PlainJson
from ..http.request import Action, Body, Route, ServiceRequest, route
from ..storage.index import one
from ..storage.operations import add_operation
from .operations import check_enabled, check_none_active, started
from .query import page

_MOST_TAGS = 128
_JSON = {"body": Body.SMALL, "consumes": ("application/json",), "partitioned": False}


def post_tags(request: ServiceRequest) -> Response:
    """``POST /extendedquerytags``: add tags; the files that are there already are indexed by an operation."""
    check_enabled(request)
    wanted = _entries_of(request.json_content())
    with request.archive.index.write() as tx:
        check_none_active(request, tx, "reindex")
        entries = _all_checked(wanted)
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
        raise _unparsable(request.params["tag"])
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
    status = _query_status(request.json_content())
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


_FIELDS = {"path": "Path", "vr": "VR", "privatecreator": "PrivateCreator", "level": "Level"}
_LEVELS = ", ".join(f"'{level.capitalize()}'" for level in sorted(Level))
# What a reader of JSON calls the beginning of a value that is no string and not null.
_TOKENS = {bool: "True", int: "Number", float: "Number", list: "StartArray", dict: "StartObject"}


def _invalid_field(field: str, message: str) -> Problem:
    """The refusal of a body because of one of its fields."""
    return Problem(400, f"The field '{field}' in request body is invalid: {message}")


def _unparsable(path: str) -> Problem:
    """The refusal of a path that names no tag."""
    return Problem(400, f"The extended query tag '{path}' is invalid as it cannot be parsed into a valid Dicom Tag.")


def _entries_of(body: Any) -> list[dict[str, str]]:
    """The fields of each tag that the body tells of, with lowercase names; raises Problem 400.

    A path that begins with "$" is the reader's of the JSON, one without is that of the check of what was read.
    """
    if not isinstance(body, list) or not all(isinstance(each, dict) for each in body):
        raise _invalid_field("$", "The JSON value could not be converted to a list of extended query tags.")
    entries = [_read(f"$[{number}]", each) for number, each in enumerate(body)]
    for number, entry in enumerate(entries):
        for required in ("path", "level"):
            if not entry.get(required, "").strip():
                raise _invalid_field(
                    f"[{number}].{_FIELDS[required]}",
                    f"The Dicom Tag Property {_FIELDS[required]} must be specified and must not be null, empty or "
                    "whitespace.",
                )
    return entries


def _read(place: str, given: dict[str, Any]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in given.items():
        known = name.lower()
        if known not in _FIELDS or value is None:
            continue
        if not isinstance(value, str):
            token = "False" if value is False else _TOKENS[type(value)]
            raise _invalid_field(f"{place}.{name}", f"Expected token type 'String' but read '{token}' instead.")
        if known == "level" and value.lower() not in set(Level):
            raise _invalid_field(
                f"{place}.{name}", f"Expected value '{value}' to be one of the following values: [{_LEVELS}]"
            )
        fields[known] = value
    return fields


def _query_status(body: Any) -> str:
    """Whether a tag shall be ``enabled`` or ``disabled``; raises Problem 400."""
    if not isinstance(body, dict):
        raise _invalid_field("$", "The JSON value could not be converted to the status of a tag.")
    status = None
    for name, value in body.items():
        if name.lower() != "querystatus" or value is None:
            continue
        status = value.lower() if isinstance(value, str) else ""
        if status not in ("enabled", "disabled"):
            raise _invalid_field(f"$.{name}", 'The value is not valid. It need to be one of "Disabled","Enabled".')
    for name in body:
        if name.lower() != "querystatus":
            raise _invalid_field(name, f'The field is not supported: "{name}".')
    if status is None:
        raise _invalid_field("QueryStatus", "The QueryStatus field is required.")
    return status


def _all_checked(entries: list[dict[str, str]]) -> list[dict[str, str]]:
    """The tags as they are kept, each with its eight hex digits and its VR; raises Problem 400."""
    found: list[dict[str, str]] = []
    for entry in entries:
        tag = _checked(entry)
        if any(tag["path"] == other["path"] for other in found):
            raise Problem(400, f"The extended query tag '{entry['path']}' has been specified before.")
        found.append(tag)
    if not found:
        raise Problem(400, "The extended query tag(s) is missing.")
    return found


def _checked(entry: dict[str, str]) -> dict[str, str]:
    path = entry["path"]
    if "." in path:
        raise Problem(
            400,
            f"Dicom element '{path}' failed validation for VR 'SQ': Sequential dicom tags are currently not supported.",
        )
    tag = tag_of(path)
    if tag is None:
        raise _unparsable(path)
    if tag in CORE_BY_TAG or tag == MODALITIES_IN_STUDY:
        raise Problem(400, f"The query tag '{path}' is already supported.")
    creator = entry.get("privatecreator", "").strip()
    _check_creator(path, tag, creator)
    vr = _vr(path, tag, entry.get("vr", "").strip())
    kept = {"path": f"{tag:08X}", "vr": vr, "level": entry["level"].lower()}
    return kept | {"privatecreator": creator} if creator else kept


def _check_creator(path: str, tag: int, creator: str) -> None:
    if not is_private(tag) or is_private_creator(tag):
        kind = "private identification code" if is_private(tag) else "standard tag"
        if creator:
            raise Problem(400, f"The private creator is not empty for {kind} '{path}'.")
    elif not creator:
        raise Problem(400, f"The private creator for private tag '{path}' is missing.")
    elif len(creator) > 64 or "\\" in creator:
        raise Problem(400, f"The private creator for tag '{path}' is not a valid LO attribute.")


def _vr(path: str, tag: int, given: str) -> str:
    vr = given.upper()
    if vr and vr not in VR.__members__:
        raise Problem(400, f"The VR code '{given}' for tag '{path}' is invalid.")
    expected = ["LO"] if is_private_creator(tag) else (dictionary_vr(tag) or "").split(" or ")
    if not vr and not expected[0]:
        raise Problem(400, f"The vr for tag '{path}' is missing.")
    if vr and expected[0] and vr not in expected:
        raise Problem(
            400,
            f"The VR code '{given}' is incorrectly specified for '{path}'. The expected VR code for it is "
            f"'{expected[0]}'. Retry this request either with the correct VR code or without specifying it.",
        )
    vr = vr or expected[0]
    if vr not in INDEXABLE_VRS:
        raise Problem(400, f"The VR code '{vr}' specified for tag '{path}' is not supported.")
    return vr


ROUTES: list[Route] = [
    route("POST", "extendedquerytags", post_tags, Action.MANAGE_TAGS, **_JSON),
    route("GET", "extendedquerytags", get_tags, Action.READ, partitioned=False),
    route("GET", "extendedquerytags/{tag}", get_tag, Action.READ, partitioned=False),
    route("DELETE", "extendedquerytags/{tag}", delete_tag, Action.MANAGE_TAGS, partitioned=False),
    route("PATCH", "extendedquerytags/{tag}", patch_tag, Action.MANAGE_TAGS, **_JSON),
    route("GET", "extendedquerytags/{tag}/errors", get_errors, Action.READ, partitioned=False),
]
