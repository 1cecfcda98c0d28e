"""Bulk update of patient and study attributes (AZURE.md 7.1): version 2 only, an operation, two versions kept."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from ..dicom.dicom_json import dataset_of
from ..dicom.full_rules import broken_text_rule
from ..dicom.minimum_rules import comment, is_valid_uid, no_uid
from ..errors import SYNTAX, Problem
from ..http.answers import DicomJson
from ..http.request import Action, Body, Route, ServiceRequest, route
from ..storage.index import counter_value
from ..storage.operations import add_operation
from .operations import check_enabled, check_none_active, started

_MOST_STUDIES = 50
# What may be changed: patient identification and demographics, and three attributes of the study.
_ALLOWED = frozenset({
    0x00080050, 0x00080090, 0x00081030, 0x00100010, 0x00100020, 0x00100021, 0x00100022, 0x00100030, 0x00100032,
    0x00100040, 0x00100200, 0x00101000, 0x00101001, 0x00101005, 0x00101010, 0x00101020, 0x00101030, 0x00101040,
    0x00101060, 0x00101080, 0x00101081, 0x00101090, 0x00102150, 0x00102152, 0x00102154, 0x00102160, 0x00102180,
    0x001021F0, 0x00102201, 0x00102292, 0x00102295, 0x00102297, 0x00102298, 0x00102299, 0x00104000, 0x00403001,
})  # fmt: skip


def post_bulk_update(request: ServiceRequest) -> Response:
    """``POST /studies/$bulkUpdate``."""
    check_enabled(request)
    given = request.json_content()
    fields = {name.lower(): value for name, value in given.items()} if isinstance(given, dict) else {}
    studies: Any = fields.get("studyinstanceuids")
    change: Any = fields.get("changedataset")
    for name, value in (("StudyInstanceUids", studies), ("ChangeDataset", change)):
        if not value:
            raise Problem(400, f"The required field '{name}' is missing or empty.")
    if not isinstance(studies, list):
        raise Problem(400, SYNTAX)
    change = dataset_of(change)
    if len(studies) > _MOST_STUDIES:
        raise Problem(400, f"StudyInstanceUids count exceeded maximum length '{_MOST_STUDIES}'")
    for uid in studies:
        if not isinstance(uid, str) or not is_valid_uid(uid):
            raise Problem(400, no_uid("StudyInstanceUid"))
    errors = _errors_of(change)
    if errors:
        items = [{"00000902": {"vr": "LO", "Value": [error]}} for error in errors]
        return DicomJson({"00741048": {"vr": "SQ", "Value": items}}, status_code=400)
    studies = list(dict.fromkeys(uid.rstrip(" ") for uid in studies))
    with request.archive.index.write() as tx:
        check_none_active(request, tx, "update")
        given = {
            "studies": studies,
            "change": change,
            "partition": request.partition_key,
            # Only what was stored before: done again after a crash, nothing is updated twice.
            "before": counter_value(tx, "watermark"),
        }
        operation_id = add_operation(tx, "update", given, resources=[f"studies/{uid}" for uid in studies])
    return started(request, operation_id, location=False)


def _errors_of(change: dict[str, Any]) -> list[str]:
    errors = []
    for key, element in change.items():
        tag = int(key, 16)
        message = _value_error(element) if tag in _ALLOWED else "Updating the tag is not supported"
        if message is not None:
            errors.append(comment(tag, message))
    return errors


def _value_error(element: dict[str, Any]) -> str | None:
    for value in element.get("Value", ()):
        text = "=".join(map(str, value.values())) if isinstance(value, dict) else str(value)
        message = broken_text_rule(str(element.get("vr", "")), text)
        if message is not None:
            return message
    return None


def _not_in_version_1(request: ServiceRequest) -> Response:
    del request
    raise Problem(404)


_PATH = "studies/$bulkupdate"
_JSON_BODY = {"body": Body.SMALL, "consumes": ("application/json",)}
ROUTES: list[Route] = [
    route("POST", _PATH, post_bulk_update, Action.WRITE, versions=frozenset({2}), **_JSON_BODY),
    route("POST", _PATH, _not_in_version_1, Action.NONE, versions=frozenset({1})),
]
