"""The update operation: gives every instance of some studies a new version with other attributes (AZURE.md 7.1)."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from ..dicom.attributes import Level
from ..dicom.dicom_json import from_json, to_json
from ..dicom.transcode import quietly
from .archive import Archive
from .examine import Examined, change_metadata, examine
from .files import StoredFile
from .index import CREATED, next_number, one
from .instances import forget_versions, metadata_bytes
from .store_rows import keep_version
from .tags import Tag, stored_tags

_IMPLEMENTATION_CLASS = "1.3.6.1.4.1.311.129"


def update(archive: Archive, given: dict[str, Any]) -> dict[str, Any]:
    """Give every instance of the studies a new latest version with the changed attributes."""
    updated_studies, failed, instances = 0, 0, 0
    errors: list[str] = []
    for study_uid in given["studies"]:
        try:
            count = _update_study(archive, study_uid, given)
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


def _update_study(archive: Archive, study_uid: str, given: dict[str, Any]) -> int:
    with archive.index.read() as tx:
        rows = tx.execute(
            "SELECT i.* FROM study s JOIN instance i ON i.study_key = s.key"
            f" WHERE s.study_uid = ? AND s.partition_key = ? AND i.status = {CREATED} AND i.watermark <= ?"
            " ORDER BY i.watermark",
            (study_uid, given["partition"], given["before"]),
        ).fetchall()
        tags = stored_tags(tx)
    return sum(_update_unless_gone(archive, row, given["change"], tags) for row in rows)


def _update_unless_gone(archive: Archive, row: sqlite3.Row, change: dict[str, Any], tags: list[Tag]) -> bool:
    try:
        return _update_instance(archive, row, change, tags)
    except (FileNotFoundError, LookupError):  # what file and metadata that are gone raise
        with archive.index.read() as tx:
            now = one(tx, "SELECT watermark FROM instance WHERE key = ?", (row["key"],))
        if now is not None and now["watermark"] == row["watermark"]:
            raise
        return False  # deleted or replaced meanwhile


def _update_instance(archive: Archive, row: sqlite3.Row, change: dict[str, Any], tags: list[Tag]) -> bool:
    descriptor, part = archive.files.new_part()
    os.close(descriptor)
    try:
        _rewrite(archive.file(row["watermark"]), part, change)
        found = examine(part, version=2, study_uid=None, tags=tags, hashed=False)
        # The service changes the metadata by itself: they hold a name that the file's character set does not.
        with archive.index.read() as tx:
            metadata = json.loads(metadata_bytes(tx, row["watermark"]))
        change_metadata(found, metadata | to_json(from_json(change)), tags)
        archive.files.write_early(part)
        with archive.index.write() as tx:
            watermark = next_number(tx, "watermark")
        archive.files.put([(part, watermark)])
        removed = _commit(archive, row, found, watermark)
    finally:
        part.unlink(missing_ok=True)
    archive.files.remove(removed)
    return watermark not in removed


def _commit(archive: Archive, row: sqlite3.Row, found: Examined, watermark: int) -> list[int]:
    """Make the new version the latest; the watermarks whose files are needed no more."""
    with archive.index.write() as tx:
        now = one(tx, "SELECT watermark, original_watermark FROM instance WHERE key = ?", (row["key"],))
        if now is None or now["watermark"] != row["watermark"]:
            return [watermark]  # deleted or replaced meanwhile
        first = now["original_watermark"]
        tx.execute(
            "UPDATE instance SET watermark = ?, original_watermark = ?, size_bytes = ? WHERE key = ?",
            (watermark, first if first is not None else now["watermark"], found.size_bytes, row["key"]),
        )
        identity = row["study_uid"], row["series_uid"], row["sop_uid"]
        archive.index.add_to_feed(tx, "Update", row["partition_key"], identity, watermark)
        keys = {Level.STUDY: row["study_key"], Level.SERIES: row["series_key"], Level.INSTANCE: row["key"]}
        keep_version(tx, found, keys, watermark)
        if first is None:
            return []
        forget_versions(tx, now["watermark"])
        return [int(now["watermark"])]


def _rewrite(source: StoredFile, target: Path, change: dict[str, Any]) -> None:
    """Write the file with other values; the pixel data is copied, not read."""
    import pydicom  # noqa: PLC0415 - its writer, only for updates
    from pydicom.uid import UID, DeflatedExplicitVRLittleEndian  # noqa: PLC0415

    with quietly(), source.open() as original, target.open("wb") as result:
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
