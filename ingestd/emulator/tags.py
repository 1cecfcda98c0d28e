"""Extended query tags: attributes that a client makes searchable (facts page 6)."""

# ruff: noqa: S608 - what is put into SQL here are this room's own names, never what a client sent

from __future__ import annotations

import json
import re
import sqlite3
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from starlette.responses import Response

from .answers import PlainJson
from .call import Action, Body, Call, Route, number, route
from .errors import Problem
from .index import one
from .indexed import CORE_BY_TAG, MODALITIES_IN_STUDY, Level
from .operations import active, add_operation, already_active, check_enabled, reference
from .validate import INDEXABLE_VRS

_MOST_TAGS = 128
_FIELDS = {"path": "Path", "vr": "VR", "privatecreator": "PrivateCreator", "level": "Level"}
_JSON = {"body": Body.SMALL, "consumes": ("application/json",), "partitioned": False}


def tag_path(text: str) -> str | None:
    """A tag's eight uppercase hex digits from those or from a keyword; None for anything else."""
    if re.fullmatch(r"[0-9A-Fa-f]{8}", text):
        return text.upper()
    number_ = tag_for_keyword(text)
    return None if number_ is None else f"{number_:08X}"


def json_of(call: Call) -> Any:
    """The request body as JSON; raises Problem 400 and, without a content type, 415."""
    if call.header("content-type") is None:
        raise Problem(415)
    try:
        return json.loads(call.body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "The syntax of the request body is invalid.") from error


def post_tags(call: Call) -> Response:
    """``POST /extendedquerytags``: add tags; the files that are there already are indexed by an operation."""
    check_enabled(call.service)
    wanted = json_of(call)
    if not isinstance(wanted, list) or not wanted or not all(isinstance(each, dict) for each in wanted):
        raise _invalid_field("extendedQueryTags", "The list of extended query tags must not be empty.")
    entries = [_entry(each) for each in wanted]
    _refuse_repeated(entries)
    with call.service.index.write() as tx:
        running = active(tx, "reindex")
        if running is not None:
            raise already_active(call, "Reindex", running)
        paths = [entry["path"] for entry in entries]
        marks = ",".join("?" * len(paths))
        if one(tx, f"SELECT 1 FROM tag WHERE path IN ({marks})", tuple(paths)) is not None:
            raise Problem(409, "One or more extended query tags already exist.")
        if tx.execute("SELECT count(*) FROM tag").fetchone()[0] + len(entries) > _MOST_TAGS:
            # The original lets this through as an unexpected server error (sic, facts page 6).
            raise Problem(503, f"Extended query tags exceeds max allowed count '{_MOST_TAGS}'.")
        operation_id = _add(tx, entries)
    call.service.forget_tags()
    call.service.operations.start(operation_id)
    return reference(call, operation_id)


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


def _refuse_repeated(entries: list[dict[str, str]]) -> None:
    seen = set()
    for entry in entries:
        if entry["path"] in seen:
            raise Problem(400, f"The extended query tag '{entry['path']}' has been specified before.")
        seen.add(entry["path"])


def _invalid_field(field: str, message: str) -> Problem:
    return Problem(400, f"The field '{field}' in request body is invalid: {message}")


def _entry(given: dict[str, Any]) -> dict[str, str]:
    """One tag of the request, checked and with its VR settled; raises Problem 400."""
    fields: dict[str, Any] = {}
    for name, value in given.items():
        known = name.lower()
        if known not in _FIELDS:
            raise _invalid_field(name, f"The property '{name}' is not supported.")
        if value is not None and not isinstance(value, str):
            raise _invalid_field(name, "The value must be a string.")
        fields[known] = value
    for required in ("path", "level"):
        if not (fields.get(required) or "").strip():
            name = _FIELDS[required]
            raise _invalid_field(
                name, f"The Dicom Tag Property {name} must be specified and must not be null, empty or whitespace."
            )
    level = fields["level"].strip().lower()
    if level not in set(Level):
        raise _invalid_field(
            "Level",
            f"Input Dicom Tag Level '{fields['level']}' is invalid. It must be 'Study', 'Series' or 'Instance'.",
        )
    return _settled(fields, level)


def _settled(fields: dict[str, Any], level: str) -> dict[str, str]:
    shown = fields["path"].strip()
    path = tag_path(shown)
    if path is None:
        raise _invalid_field("Path", f"The extended query tag '{shown}' is invalid as it cannot be parsed into a valid "
                             "DICOM Tag.")  # fmt: skip
    tag = int(path, 16)
    vr = (fields.get("vr") or "").strip().upper()
    creator = (fields.get("privatecreator") or "").strip()
    is_private = bool((tag >> 16) & 1)
    if is_private:
        _check_private(path, vr, creator)
    else:
        vr = _standard_vr(path, tag, vr, creator)
    if tag in CORE_BY_TAG or tag == MODALITIES_IN_STUDY:
        raise Problem(400, f"The query tag '{shown}' is already supported.")
    if vr == "SQ":
        raise Problem(400, "Sequential dicom tags are currently not supported.")
    if vr not in INDEXABLE_VRS:
        raise Problem(400, f"The VR code '{vr}' specified for tag '{shown}' is not supported.")
    entry = {"path": path, "vr": vr, "level": level}
    return entry | {"privatecreator": creator} if is_private and creator else entry


def _check_private(path: str, vr: str, creator: str) -> None:
    if not vr:
        raise Problem(400, f"The vr for tag '{path}' is missing.")
    is_creator = 0x10 <= int(path[4:], 16) <= 0xFF
    if is_creator:
        if creator:
            raise Problem(400, f"The private creator should be empty for private identification code '{path}'.")
        if vr != "LO":
            raise Problem(
                400, f"The VR code '{vr}' is incorrectly specified for '{path}'. The expected VR code is 'LO'."
            )
    elif not creator:
        raise Problem(400, f"The private creator for private tag '{path}' is missing.")
    elif len(creator) > 64:
        raise Problem(400, f"The private creator '{creator}' of tag '{path}' is not a valid LO attribute.")


def _standard_vr(path: str, tag: int, vr: str, creator: str) -> str:
    if creator:
        raise Problem(400, f"The private creator is specified for standard tag '{path}', which is not private.")
    try:
        expected = dictionary_VR(tag)
    except KeyError:
        expected = None
    if expected is None:
        if not vr:
            raise Problem(400, f"The vr for tag '{path}' is missing.")
        return vr
    if vr and vr not in expected.split(" or "):
        raise Problem(
            400, f"The VR code '{vr}' is incorrectly specified for '{path}'. The expected VR code is '{expected}'."
        )
    return vr or expected.split(" or ", maxsplit=1)[0]


def _shown(call: Call, row: sqlite3.Row, errors: int) -> dict[str, Any]:
    href = f"{call.root_url}/extendedquerytags/{row['path']}"
    adding = row["status"] == "adding"
    return {
        "path": row["path"],
        "vr": row["vr"],
        "privateCreator": row["private_creator"],
        "level": row["level"],
        "status": row["status"],
        "errors": {"count": errors, "href": f"{href}/errors"} if errors else None,
        "operation": (
            {"id": row["operation_id"], "href": f"{call.root_url}/operations/{row['operation_id']}"} if adding else None
        ),
        "queryStatus": "enabled" if row["query_enabled"] else "disabled",
    }


def _errors(tx: sqlite3.Connection, key: int) -> int:
    return int(tx.execute("SELECT count(*) FROM tag_error WHERE tag_key = ?", (key,)).fetchone()[0])


def _page(call: Call) -> tuple[int, int]:
    limit = number("limit", call.parameter("limit"), default=100, least=1, most=200)
    return limit, number("offset", call.parameter("offset"), default=0, least=0, most=(1 << 63) - 1)


def get_tags(call: Call) -> Response:
    """``GET /extendedquerytags``."""
    limit, offset = _page(call)
    with call.service.index.read() as tx:
        rows = tx.execute("SELECT * FROM tag ORDER BY key LIMIT ? OFFSET ?", (limit, offset)).fetchall()
        return PlainJson([_shown(call, row, _errors(tx, row["key"])) for row in rows])


def _find(call: Call, tx: sqlite3.Connection) -> sqlite3.Row:
    path = tag_path(call.params["tag"])
    if path is None:
        raise Problem(400, f"The tag path '{call.params['tag']}' is invalid.")
    row = one(tx, "SELECT * FROM tag WHERE path = ?", (path,))
    if row is None:
        raise Problem(404, f"The specified extended query tag with tag path '{path}' cannot be found.")
    return row


def get_tag(call: Call) -> Response:
    """``GET /extendedquerytags/{tag}``."""
    with call.service.index.read() as tx:
        row = _find(call, tx)
        return PlainJson(_shown(call, row, _errors(tx, row["key"])))


def delete_tag(call: Call) -> Response:
    """``DELETE /extendedquerytags/{tag}``, with its index."""
    with call.service.index.write() as tx:
        row = _find(call, tx)
        if row["status"] != "ready":
            raise Problem(400, f"The extended query tag '{row['path']}' is being processed.")
        for table in ("tag_value", "tag_error"):
            tx.execute(f"DELETE FROM {table} WHERE tag_key = ?", (row["key"],))
        tx.execute("DELETE FROM tag WHERE key = ?", (row["key"],))
    call.service.forget_tags()
    return Response(status_code=204)


def patch_tag(call: Call) -> Response:
    """``PATCH /extendedquerytags/{tag}``: switch searching by it on or off."""
    given = json_of(call)
    if not isinstance(given, dict) or [name.lower() for name in given] != ["querystatus"]:
        raise Problem(400, "The request body must have the property 'QueryStatus' and no other.")
    status = str(next(iter(given.values()))).lower()
    if status not in ("enabled", "disabled"):
        raise _invalid_field("QueryStatus", "It must be 'Enabled' or 'Disabled'.")
    with call.service.index.write() as tx:
        row = _find(call, tx)
        if row["status"] != "ready":
            raise Problem(400, f"The extended query tag '{row['path']}' is being processed.")
        tx.execute("UPDATE tag SET query_enabled = ? WHERE key = ?", (status == "enabled", row["key"]))
        row = _find(call, tx)
        return PlainJson(_shown(call, row, _errors(tx, row["key"])))


def get_errors(call: Call) -> Response:
    """``GET /extendedquerytags/{tag}/errors``."""
    limit, offset = _page(call)
    partitions = call.service.settings.partitions
    with call.service.index.read() as tx:
        row = _find(call, tx)
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
