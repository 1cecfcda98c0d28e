"""Bulk update of patient and study attributes (AZURE.md 7.1): version 2 only, an operation, two versions kept."""

# ruff: noqa: S608 - what is put into SQL here are this room's own names, never what a client sent

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import zlib
from pathlib import Path
from typing import Any

from starlette.responses import Response

from ..dicom.attributes import SERIES_COLUMNS, STUDY_COLUMNS
from ..dicom.parser import Openable
from ..dicom.transcode import quietly
from ..dicom.validation import is_valid_uid, no_uid, rule_of, tag_text
from ..dicom.values import METADATA_TEXT, elements_of, to_json
from ..errors import SYNTAX, Problem
from ..http.answers import DicomJson
from ..http.request import Action, Body, Call, Route, route
from ..storage.archive import Service, stored_tags
from ..storage.examine import Examined, Tag, change_metadata, examine
from ..storage.index import CREATED, counter_value, forget_versions, next_numbers, one
from ..storage.instances import metadata_bytes
from ..storage.store import add_to_feed, keep_values, latest_wins
from ..storage.store_job import Entry
from .body import dataset_of, json_of
from .operations import active, add_operation, already_active, check_enabled, reference

_MOST_STUDIES = 50
_IMPLEMENTATION_CLASS = "1.3.6.1.4.1.311.129"
# What may be changed: patient identification and demographics, and three attributes of the study.
ALLOWED = frozenset({
    0x00080050, 0x00080090, 0x00081030, 0x00100010, 0x00100020, 0x00100021, 0x00100022, 0x00100030, 0x00100032,
    0x00100040, 0x00100200, 0x00101000, 0x00101001, 0x00101005, 0x00101010, 0x00101020, 0x00101030, 0x00101040,
    0x00101060, 0x00101080, 0x00101081, 0x00101090, 0x00102150, 0x00102152, 0x00102154, 0x00102160, 0x00102180,
    0x001021F0, 0x00102201, 0x00102292, 0x00102295, 0x00102297, 0x00102298, 0x00102299, 0x00104000, 0x00403001,
})  # fmt: skip


def post_bulk_update(call: Call) -> Response:
    """``POST /studies/$bulkUpdate``."""
    check_enabled(call.service)
    given = json_of(call)
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
    return _start(call, [uid.rstrip(" ") for uid in studies], change)


def _start(call: Call, studies: list[str], change: dict[str, Any]) -> Response:
    with call.service.index.write() as tx:
        running = active(tx, "update")
        if running is not None:
            raise already_active(call, "update", running)
        given: dict[str, Any] = {
            "studies": list(dict.fromkeys(studies)),
            "change": change,
            "partition": call.partition_key,
            # Only what was stored before: done again after a crash, nothing is updated twice.
            "before": counter_value(tx, "watermark"),
        }
        operation_id = add_operation(tx, "update", given, resources=[f"studies/{uid}" for uid in given["studies"]])
    call.service.operations.start(operation_id)
    return reference(call, operation_id, location=False)


def _errors_of(change: dict[str, Any]) -> list[str]:
    errors = []
    for key, element in change.items():
        tag = int(key, 16)
        message = _value_error(element) if tag in ALLOWED else "Updating the tag is not supported"
        if message is not None:
            errors.append(f"DICOM100: {tag_text(tag)} - {message}")
    return errors


def _value_error(element: dict[str, Any]) -> str | None:
    vr = str(element.get("vr", ""))
    rule = rule_of(vr)
    for value in element.get("Value", ()):
        text = "=".join(map(str, value.values())) if isinstance(value, dict) else str(value)
        detail = rule(text) if rule is not None and text else None
        if detail is not None:
            return f'Content "{text}" does not validate VR {vr}: {detail}'
    return None


def update(service: Service, operation_id: str, given: dict[str, Any]) -> dict[str, Any]:
    """Give every instance of the studies a new latest version with the changed attributes."""
    del operation_id
    updated_studies, failed, instances = 0, 0, 0
    errors: list[str] = []
    for study_uid in given["studies"]:
        try:
            count = _update_study(service, study_uid, given)
        except Exception as error:  # noqa: BLE001 - one study that cannot be changed does not keep the others from it
            failed += 1
            errors.append(f"Failed to update instances for study {study_uid}: {type(error).__name__}")
            continue
        instances += count
        updated_studies += count > 0
    results: dict[str, Any] = {
        "studyProcessed": len(given["studies"]),
        "studyUpdated": updated_studies,
        "studyFailed": failed,
        "instanceUpdated": instances,
    }
    return results | {"errors": errors} if errors else results


def _update_study(service: Service, study_uid: str, given: dict[str, Any]) -> int:
    with service.index.read() as tx:
        rows = tx.execute(
            "SELECT i.* FROM study s JOIN instance i ON i.study_key = s.key"
            f" WHERE s.study_uid = ? AND s.partition_key = ? AND i.status = {CREATED} AND i.watermark <= ?"
            " ORDER BY i.watermark",
            (study_uid, given["partition"], given["before"]),
        ).fetchall()
        tags = stored_tags(tx)
    return sum(_update_where_still_there(service, row, given["change"], tags) for row in rows)


def _update_where_still_there(service: Service, row: sqlite3.Row, change: dict[str, Any], tags: list[Tag]) -> bool:
    try:
        return _update_instance(service, row, change, tags)
    except (FileNotFoundError, TypeError):  # what file and metadata that are gone raise
        with service.index.read() as tx:
            now = one(tx, "SELECT watermark FROM instance WHERE key = ?", (row["key"],))
        if now is not None and now["watermark"] == row["watermark"]:
            raise
        return False  # deleted or replaced meanwhile


def _update_instance(service: Service, row: sqlite3.Row, change: dict[str, Any], tags: list[Tag]) -> bool:
    descriptor, part = service.files.new_part()
    os.close(descriptor)
    try:
        _rewrite(service.kept(row["watermark"]), part, change)
        found = examine(part, version=2, study_uid=None, tags=tags, hashed=False)
        # The service changes the metadata by itself: they hold a name that the file's character set does not.
        with service.index.read() as tx:
            metadata = json.loads(metadata_bytes(tx, row["watermark"]))
        metadata |= to_json(elements_of(change), big_endian=False, text=METADATA_TEXT)
        change_metadata(found, dict(sorted(metadata.items())), tags=tags)
        service.files.settle(part)
        with service.index.write() as tx:
            watermark = next_numbers(tx, "watermark", 1)
        service.files.put([(part, watermark)])
        removed = _commit(service, row, found, watermark)
    finally:
        part.unlink(missing_ok=True)
    service.files.remove(removed)
    return watermark not in removed


def _commit(service: Service, row: sqlite3.Row, found: Examined, watermark: int) -> list[int]:
    """Make the new version the latest; the watermarks whose files are needed no more."""
    with service.index.write() as tx:
        now = one(tx, "SELECT watermark, original_watermark FROM instance WHERE key = ?", (row["key"],))
        if now is None or now["watermark"] != row["watermark"]:
            return [watermark]  # deleted or replaced meanwhile
        first = now["original_watermark"]
        tx.execute(
            "UPDATE instance SET watermark = ?, original_watermark = ?, size_bytes = ? WHERE key = ?",
            (watermark, first if first is not None else now["watermark"], found.size_bytes, row["key"]),
        )
        tx.execute("INSERT INTO metadata VALUES (?, ?)", (watermark, zlib.compress(found.metadata, 1)))
        entry = Entry(
            examined=found,
            watermark=watermark,
            instance_key=row["key"],
            study_key=row["study_key"],
            series_key=row["series_key"],
        )
        add_to_feed(service, tx, entry, row["partition_key"], action="Update")
        latest_wins(tx, "study", STUDY_COLUMNS, found.columns, row["study_key"])
        latest_wins(tx, "series", SERIES_COLUMNS, found.columns, row["series_key"])
        keep_values(tx, entry)
        if first is None:
            return []
        forget_versions(tx, now["watermark"])
        return [int(now["watermark"])]


def _rewrite(source: Openable, target: Path, change: dict[str, Any]) -> None:
    """Write the file with other values; the pixel data is copied, not read."""
    import pydicom  # noqa: PLC0415 - its writer, only for updates
    from pydicom.uid import UID, DeflatedExplicitVRLittleEndian  # noqa: PLC0415

    with quietly(), source.open("rb") as original, target.open("wb") as result:
        dataset = pydicom.dcmread(original, stop_before_pixels=True)
        deflated = dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
        rest_at = original.tell()
        if deflated:
            # What follows cannot be copied out of a deflated stream.
            original.seek(0)
            dataset = pydicom.dcmread(original)
        for element in pydicom.Dataset.from_json(json.dumps(change)):
            dataset[element.tag] = element
        dataset.file_meta.ImplementationClassUID = UID(_IMPLEMENTATION_CLASS)
        dataset.save_as(result, enforce_file_format=True)
        if not deflated:
            original.seek(rest_at)
            shutil.copyfileobj(original, result, 1 << 20)


def _not_in_version_1(call: Call) -> Response:
    del call
    raise Problem(404)


_PATH = "studies/$bulkupdate"
_JSON_BODY = {"body": Body.SMALL, "consumes": ("application/json",)}
ROUTES: list[Route] = [
    route("POST", _PATH, post_bulk_update, Action.WRITE, versions=frozenset({2}), **_JSON_BODY),
    route("POST", _PATH, _not_in_version_1, Action.NONE, versions=frozenset({1})),
]
