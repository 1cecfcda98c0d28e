"""The rows of a store: *Creating*, then *Created* with everything that makes an instance visible (AZURE.md 1.8)."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from ..dicom.attributes import SERIES_COLUMNS, STUDY_COLUMNS, CoreAttribute, Level
from ..dicom.collation import fold
from ..faults import FaultName
from .examine import ALREADY_EXISTS, BEING_CREATED, PROCESSING_FAILURE, Examined
from .index import CREATED, CREATING, Index, next_number, one
from .instances import drop_empty, forget_versions, keep_metadata
from .store_job import PartResult, StoreRequest
from .tags import keep_values, stored_tags


def begin(tx: sqlite3.Connection, request: StoreRequest, group: list[PartResult]) -> list[PartResult]:
    """Give each instance that may be stored its watermark and row; those that got one, the others are refused."""
    begun: dict[tuple[str, str, str], PartResult] = {}
    keys: dict[tuple[str, ...], int] = {}
    for result in (result for result in group if result.is_stored):
        found = result.examined
        earlier = begun.get(found.identity)
        if earlier is not None:
            if not request.replace:
                found.failure = ALREADY_EXISTS
                continue
            # PUT with one identity twice: the later part wins, the earlier one never becomes visible.
            result.instance_key, result.study_key = earlier.instance_key, earlier.study_key
            result.series_key, result.replaced = earlier.series_key, earlier.replaced
        else:
            row = one(
                tx,
                "SELECT key, study_key, series_key, status, watermark FROM instance"
                " WHERE sop_uid = ? AND series_uid = ? AND study_uid = ? AND partition_key = ?",
                (found.sop_uid, found.series_uid, found.study_uid, request.partition_key),
            )
            if row is not None:
                if row["status"] == CREATING or not request.replace:
                    found.failure = BEING_CREATED if row["status"] == CREATING else ALREADY_EXISTS
                    continue
                result.replaced = row["watermark"]
                result.instance_key, result.study_key = row["key"], row["study_key"]
                result.series_key = row["series_key"]
        result.watermark = next_number(tx, "watermark")
        if not result.instance_key:
            _insert(tx, request, result, keys)
        begun[found.identity] = result
    return list(begun.values())


def _insert(
    tx: sqlite3.Connection, request: StoreRequest, result: PartResult, keys: dict[tuple[str, ...], int]
) -> None:
    found = result.examined
    result.study_key = _key_of(
        tx, keys, "study", ("partition_key", "study_uid"), (request.partition_key, found.study_uid)
    )
    result.series_key = _key_of(tx, keys, "series", ("study_key", "series_uid"), (result.study_key, found.series_uid))
    cursor = tx.execute(
        "INSERT INTO instance (partition_key, study_key, series_key, study_uid, series_uid, sop_uid, sop_class_uid,"
        " transfer_syntax, status, watermark, size_bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            request.partition_key,
            result.study_key,
            result.series_key,
            *found.identity,
            found.sop_class_uid,
            found.transfer_syntax,
            CREATING,
            result.watermark,
            found.size_bytes,
        ),
    )
    result.instance_key = cursor.lastrowid or 0


def _key_of(
    tx: sqlite3.Connection,
    keys: dict[tuple[str, ...], int],
    table: str,
    columns: tuple[str, str],
    values: tuple[int, str],
) -> int:
    cached = keys.get((table, str(values[0]), values[1]))
    if cached is not None:
        return cached
    row = one(tx, f"SELECT key FROM {table} WHERE {columns[0]} = ? AND {columns[1]} = ?", values)
    if row is not None:
        key = int(row["key"])
    else:
        cursor = tx.execute(f"INSERT INTO {table} ({columns[0]}, {columns[1]}) VALUES (?, ?)", values)
        key = int(cursor.lastrowid or 0)
    keys[table, str(values[0]), values[1]] = key
    return key


def finish(index: Index, tx: sqlite3.Connection, request: StoreRequest, begun: list[PartResult]) -> list[int]:
    """Make what was begun visible; the watermarks whose files are needed no more."""
    if not begun:
        return []
    unneeded: list[int] = []
    # If the tags changed since the request began, the service fails its instances with 272 (AZURE.md 1.8).
    tags_changed = stored_tags(tx) != list(request.tags)
    for result in begun:
        unneeded += _take_back(tx, result) if tags_changed else _create(index, tx, request, result)
    if unneeded:
        drop_empty(tx, sorted({result.study_key for result in begun}))
    # The last store decides for its study; one without the headers cancels an expiry (AZURE.md 1.9).
    for study_key in {result.study_key for result in begun if result.is_stored}:
        tx.execute(
            "UPDATE study SET expires_at = ? WHERE key = ? AND expires_at IS NOT ?",
            (request.expires_at, study_key, request.expires_at),
        )
    return unneeded


def _take_back(tx: sqlite3.Connection, result: PartResult) -> list[int]:
    """Take back what ``begin`` did for an instance that is refused after all; the file that nobody needs."""
    result.examined.failure = PROCESSING_FAILURE
    tx.execute("DELETE FROM instance WHERE key = ? AND status = ?", (result.instance_key, CREATING))
    return [result.watermark]


def _create(index: Index, tx: sqlite3.Connection, request: StoreRequest, result: PartResult) -> list[int]:
    found = result.examined
    if FaultName.STUCK_CREATING in result.faults and not result.replaced:
        found.failure = PROCESSING_FAILURE
        return []
    if FaultName.LOSE_STORED in result.faults:
        tx.execute("DELETE FROM instance WHERE key = ?", (result.instance_key,))
        return [result.watermark]
    old = one(tx, "SELECT status, watermark, original_watermark FROM instance WHERE key = ?", (result.instance_key,))
    if old is None or (old["status"] == CREATED and not request.replace):
        # Somebody deleted the Creating row meanwhile: the service answers 272 and keeps nothing.
        found.failure = PROCESSING_FAILURE
        return [result.watermark]
    if old["watermark"] == result.watermark:
        tx.execute("UPDATE instance SET status = ? WHERE key = ?", (CREATED, result.instance_key))
    else:
        tx.execute(
            "UPDATE instance SET status = ?, watermark = ?, original_watermark = NULL, size_bytes = ?,"
            " sop_class_uid = ?, transfer_syntax = ? WHERE key = ?",
            (
                CREATED,
                result.watermark,
                found.size_bytes,
                found.sop_class_uid,
                found.transfer_syntax,
                result.instance_key,
            ),
        )
    unneeded = [mark for mark in (old["watermark"], old["original_watermark"]) if mark and mark != result.watermark]
    forget_versions(tx, *unneeded)
    if isinstance(found.source, bytes):
        tx.execute("INSERT INTO content VALUES (?, ?)", (result.watermark, found.source))
    skips = result.faults.get(FaultName.FEED_GAP)
    index.add_to_feed(
        tx,
        "Update" if result.replaced else "Create",
        request.partition_key,
        found.identity,
        result.watermark,
        gap=0 if skips is None else 1000 if skips.numbers is None else skips.numbers,
        late_seconds=result.seconds(FaultName.LATE_FEED, 5.0),
    )
    keys = {Level.STUDY: result.study_key, Level.SERIES: result.series_key, Level.INSTANCE: result.instance_key}
    keep_version(tx, found, keys, result.watermark)
    return unneeded


def keep_version(tx: sqlite3.Connection, found: Examined, keys: Mapping[Level, int], watermark: int) -> None:
    """Write what searches and metadata know of a stored version: its metadata, columns and tags' values."""
    keep_metadata(tx, watermark, found.metadata)
    _latest_wins(tx, "study", STUDY_COLUMNS, found.columns, keys[Level.STUDY])
    # The one column that cannot be null: stored empty, it comes back as an element without a value (AZURE.md 3.2).
    tx.execute(
        "UPDATE study SET patient_id = '', patient_id_f = '' WHERE key = ? AND patient_id IS NULL", (keys[Level.STUDY],)
    )
    _latest_wins(tx, "series", SERIES_COLUMNS, found.columns, keys[Level.SERIES])
    keep_values(tx, found.values, keys, watermark)


def _latest_wins(
    tx: sqlite3.Connection,
    table: str,
    attributes: Sequence[CoreAttribute],
    columns: Mapping[str, str],
    key: int,
) -> None:
    """Write the non-empty values of a study or series over the older ones (AZURE.md 1.8)."""
    pairs = [
        (attribute.column, columns[attribute.column], fold(columns[attribute.column], attribute.vr))
        for attribute in attributes
        if attribute.column in columns
    ]
    if not pairs:
        return
    sets = ", ".join(f"{column} = ?, {column}_f = ?" for column, _, _ in pairs)
    values = [value for _, raw, folded in pairs for value in (raw, folded)]
    # Most instances say what the one before them said; writing that again would touch every index of the table.
    differs = " OR ".join(f"{column} IS NOT ?" for column, _, _ in pairs)
    tx.execute(
        f"UPDATE {table} SET {sets} WHERE key = ? AND ({differs})", (*values, key, *(raw for _, raw, _ in pairs))
    )
