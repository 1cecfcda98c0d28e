"""The Store Transaction's work on files and index (PS3.18 §10.5; facts page 1.2, 1.8).

A request's parts are taken in groups. For each group: rows *Creating* in one transaction, files renamed into place,
then rows *Created* together with their feed entries, metadata and index values in a second one. What a client sees is
as if each part had been taken alone and in order; what a crash leaves is Creating rows without effect.
"""

# ruff: noqa: S608 - what is put into SQL here are this room's own names, never what a client sent

from __future__ import annotations

import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import dcmread

from .delete import remove
from .examine import (
    ALREADY_EXISTS,
    BEING_CREATED,
    PROCESSING_FAILURE,
    STUDY_MISMATCH,
    VALIDATION_FAILED,
    Examined,
    Tag,
    dataset_digest,
    examine,
)
from .faults import FaultName
from .folding import fold
from .index import CREATED, CREATING, TICKS_PER_SECOND, next_numbers, one
from .indexed import SERIES_COLUMNS, STUDY_COLUMNS, CoreAttribute, Level
from .reindex import put_value
from .service import Service, drop_empty, stored_tags
from .spool import Part

_GROUP = 64
PATIENT_NAME = 0x00100010


@dataclass(kw_only=True)
class StoreRequest:
    """What all parts of one request share."""

    number: int
    version: int
    study_uid: str | None
    partition_key: int
    replace: bool  # PUT
    expires_at: int | None  # ticks
    tags: Sequence[Tag] = ()
    method: str = "POST"
    path: str = ""


@dataclass(kw_only=True, slots=True)
class Entry:
    """What became of one part."""

    examined: Examined
    watermark: int = 0
    instance_key: int = 0
    study_key: int = 0
    series_key: int = 0
    replaced: int = 0  # the watermark that a PUT took the place of
    faults: set[FaultName] = field(default_factory=set)
    late_seconds: float = 0.0  # late_feed
    commit_seconds: float = 0.0  # commit_delay
    lag_seconds: float = 0.0  # index_lag
    gap: int = 0  # feed_gap
    cut: int = 0  # cut_stored

    @property
    def is_stored(self) -> bool:
        """Whether the answer lists it as stored."""
        return self.examined.failure == 0


def store(service: Service, request: StoreRequest, parts: Sequence[Part]) -> list[Entry]:
    """Store what can be stored of these parts, in order, and say what became of each."""
    entries: list[Entry] = []
    for at in range(0, len(parts), _GROUP):
        group = _examine(service, request, parts[at : at + _GROUP])
        _store_group(service, request, group)
        _belie_where_asked(service, request, group)
        service.log.add_all("instance", request.number, [_log_line(entry) for entry in group])
        for entry in group:
            entry.examined.metadata = b""
        entries.extend(group)
    return entries


def _belie_where_asked(service: Service, request: StoreRequest, group: list[Entry]) -> None:
    for entry in group:
        if FaultName.REFUSE_STORED in entry.faults and entry.is_stored:
            entry.examined.failure = VALIDATION_FAILED
        # As when the service's own cleanup of a failed entry meets a commit that had succeeded (facts page 1.8).
        if FaultName.UNDONE in entry.faults and entry.is_stored:
            entry.examined.failure = PROCESSING_FAILURE
            where = "study_uid = ? AND series_uid = ? AND sop_uid = ? AND partition_key = ?"
            remove(service, where, (*entry.examined.identity, request.partition_key))


def _log_line(entry: Entry) -> dict[str, object]:
    found = entry.examined
    return {
        "study": found.study_uid,
        "series": found.series_uid,
        "sop": found.sop_uid,
        "sha256": found.dataset_sha256,
        "transfer_syntax": found.transfer_syntax,
        "result": "stored" if entry.is_stored else "refused",
        "reason": found.failure,
        "warning": found.warning,
        "watermark": entry.watermark,
        "faults": sorted(entry.faults),
    }


def settle(service: Service, path: Path) -> str:
    """Make a spooled part ready for its place: digest taken, preamble zeroed where that is the flavour, durable.

    All of it waits for the disk or hashes, so it goes on beside the reading of the parts that follow. The digest is
    the SHA-256 of the data set's bytes, empty where the file cannot be read that far.
    """
    digest = dataset_digest(path)
    if digest:
        if service.settings.is_managed:
            _zero_preamble(path)
        service.files.settle(path)
    return digest


def _zero_preamble(path: Path) -> None:
    # The managed service zeroes the preamble (Azure conformance v2; facts page 1.8).
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.pread(descriptor, 4, 128) == b"DICM":
            os.pwrite(descriptor, bytes(128), 0)
    finally:
        os.close(descriptor)


def _settled(service: Service, parts: Sequence[Part]) -> Iterator[str]:
    """The parts' digests in order; what was not settled while it came in is now, several at once."""
    if len(parts) == 1 and parts[0].finished is None:
        return iter([settle(service, parts[0].path)])
    begun = [part.finished or service.workers.submit(settle, service, part.path) for part in parts]
    return (future.result() for future in begun)


def _examine(service: Service, request: StoreRequest, parts: Sequence[Part]) -> list[Entry]:
    entries = []
    settled = _settled(service, parts)
    for part in parts:
        found = examine(
            part.path,
            version=request.version,
            study_uid=request.study_uid,
            tags=request.tags,
            mismatch=STUDY_MISMATCH if service.settings.is_managed else VALIDATION_FAILED,
        )
        found.dataset_sha256 = next(settled)
        entry = Entry(examined=found)
        if entry.is_stored:
            _ask_faults(service, request, entry)
        entries.append(entry)
    return entries


def _ask_faults(service: Service, request: StoreRequest, entry: Entry) -> None:
    def take(name: FaultName) -> bool:
        fault = service.faults.take(name, method=request.method, path=request.path, uids=entry.examined.identity)
        if fault is None:
            return False
        entry.faults.add(name)
        if name is FaultName.LATE_FEED:
            entry.late_seconds = 5.0 if fault.seconds is None else fault.seconds
        elif name is FaultName.COMMIT_DELAY:
            entry.commit_seconds = 1.0 if fault.seconds is None else fault.seconds
        elif name is FaultName.INDEX_LAG:
            entry.lag_seconds = 5.0 if fault.seconds is None else fault.seconds
        elif name is FaultName.FEED_GAP:
            entry.gap = 1000 if fault.numbers is None else fault.numbers
        elif name is FaultName.CUT_STORED:
            entry.cut = 1 if fault.bytes is None else fault.bytes
        return True

    if take(FaultName.BEING_CREATED):
        entry.examined.failure = BEING_CREATED
    elif take(FaultName.PROCESSING_FAILURE):
        entry.examined.failure = PROCESSING_FAILURE
    else:
        for name in (
            FaultName.STUCK_CREATING,
            FaultName.REFUSE_STORED,
            FaultName.UNDONE,
            FaultName.LATE_FEED,
            FaultName.FEED_GAP,
            FaultName.COMMIT_DELAY,
            FaultName.INDEX_LAG,
            FaultName.LOSE_STORED,
            FaultName.ALTER_STORED,
            FaultName.CHANGE_STORED,
            FaultName.CUT_STORED,
        ):
            take(name)


def _store_group(service: Service, request: StoreRequest, group: list[Entry]) -> None:
    # The first transaction need not be durable: what a power cut takes of it, it takes of the whole store.
    with service.index.write(durable=False) as tx:
        begun = _begin(tx, request, group)
    if not begun:
        return
    for entry in begun:
        _alter_where_asked(entry)
    service.files.put((entry.examined.path, entry.watermark) for entry in begun)
    _wait_for_commit(begun)
    removed: list[int] = []
    with service.index.write() as tx:
        # If the tags changed since the request began, the service fails its instances with 272 (facts page 1.8).
        tags_changed = stored_tags(tx) != list(request.tags)
        for entry in begun:
            removed += _undo(tx, entry) if tags_changed else _commit(service, tx, request, entry)
        if removed:
            drop_empty(tx, sorted({entry.study_key for entry in begun}))
        _set_expiry(tx, request, begun)
    if request.expires_at is not None:
        service.look_for_expiry()
    service.files.remove(removed)
    lag = max((entry.lag_seconds for entry in begun), default=0.0)
    if lag:
        for study_uid in {entry.examined.study_uid for entry in begun if entry.lag_seconds}:
            service.lag.hide(study_uid, lag)


def _begin(tx: sqlite3.Connection, request: StoreRequest, group: list[Entry]) -> list[Entry]:
    begun: dict[tuple[str, str, str], Entry] = {}
    keys: dict[tuple[str, ...], int] = {}
    stored = [entry for entry in group if entry.is_stored]
    watermark = next_numbers(tx, "watermark", len(stored)) if stored else 0
    for entry in stored:
        found = entry.examined
        earlier = begun.get(found.identity)
        if earlier is not None and not request.replace:
            found.failure = ALREADY_EXISTS
            continue
        if earlier is not None:
            # PUT with one identity twice: the later part wins, the earlier one never becomes visible.
            entry.watermark, watermark = watermark, watermark + 1
            entry.instance_key, entry.study_key = earlier.instance_key, earlier.study_key
            entry.series_key, entry.replaced = earlier.series_key, earlier.replaced
            begun[found.identity] = entry
            continue
        row = one(
            tx,
            "SELECT key, study_key, series_key, status, watermark FROM instance"
            " WHERE sop_uid = ? AND series_uid = ? AND study_uid = ? AND partition_key = ?",
            (found.sop_uid, found.series_uid, found.study_uid, request.partition_key),
        )
        if row is not None and (row["status"] == CREATING or not request.replace):
            found.failure = BEING_CREATED if row["status"] == CREATING else ALREADY_EXISTS
            continue
        entry.watermark, watermark = watermark, watermark + 1
        if row is not None:
            entry.replaced = row["watermark"]
            entry.instance_key, entry.study_key, entry.series_key = row["key"], row["study_key"], row["series_key"]
        else:
            _insert(tx, request, entry, keys)
        begun[found.identity] = entry
    return list(begun.values())


def _insert(tx: sqlite3.Connection, request: StoreRequest, entry: Entry, keys: dict[tuple[str, ...], int]) -> None:
    found = entry.examined
    entry.study_key = _key_of(
        tx, keys, "study", ("partition_key", "study_uid"), (request.partition_key, found.study_uid)
    )
    entry.series_key = _key_of(tx, keys, "series", ("study_key", "series_uid"), (entry.study_key, found.series_uid))
    cursor = tx.execute(
        "INSERT INTO instance (partition_key, study_key, series_key, study_uid, series_uid, sop_uid, sop_class_uid,"
        " transfer_syntax, status, watermark, size_bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            request.partition_key,
            entry.study_key,
            entry.series_key,
            found.study_uid,
            found.series_uid,
            found.sop_uid,
            found.sop_class_uid,
            found.transfer_syntax,
            CREATING,
            entry.watermark,
            found.size_bytes,
        ),
    )
    entry.instance_key = cursor.lastrowid or 0


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


def _alter_where_asked(entry: Entry) -> None:
    if not entry.faults & {FaultName.ALTER_STORED, FaultName.CHANGE_STORED, FaultName.CUT_STORED}:
        return
    descriptor = os.open(entry.examined.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if FaultName.ALTER_STORED in entry.faults:
            _flip(descriptor, size - 1)
        if FaultName.CHANGE_STORED in entry.faults:
            _flip(descriptor, _place_of_name(descriptor))
        os.ftruncate(descriptor, max(0, size - entry.cut))
    finally:
        os.close(descriptor)


def _flip(descriptor: int, at: int) -> None:
    os.pwrite(descriptor, bytes([os.pread(descriptor, 1, at)[0] ^ 1]), at)


def _place_of_name(descriptor: int) -> int:
    """Where the value of PatientName begins."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        element: Any = dcmread(file, stop_before_pixels=True, force=True).get_item(PATIENT_NAME)
    assert element is not None, "only what has a name can be given another one"
    return int(element.value_tell)


def _wait_for_commit(begun: list[Entry]) -> None:
    seconds = max((entry.commit_seconds for entry in begun), default=0.0)
    if seconds:
        time.sleep(seconds)


def _undo(tx: sqlite3.Connection, entry: Entry) -> list[int]:
    """Take back what ``_begin`` did for an instance that is refused after all; the file that nobody needs."""
    entry.examined.failure = PROCESSING_FAILURE
    tx.execute("DELETE FROM instance WHERE key = ? AND status = ?", (entry.instance_key, CREATING))
    return [entry.watermark]


def _commit(service: Service, tx: sqlite3.Connection, request: StoreRequest, entry: Entry) -> list[int]:
    found = entry.examined
    if FaultName.STUCK_CREATING in entry.faults and not entry.replaced:
        found.failure = PROCESSING_FAILURE
        return []
    if FaultName.LOSE_STORED in entry.faults:
        tx.execute("DELETE FROM instance WHERE key = ?", (entry.instance_key,))
        return [entry.watermark]
    old = one(
        tx,
        "SELECT status, watermark, original_watermark FROM instance WHERE key = ?",
        (entry.instance_key,),
    )
    if old is None or (old["status"] == CREATED and not request.replace):
        # Somebody deleted the Creating row meanwhile: the service answers 272 and keeps nothing.
        found.failure = PROCESSING_FAILURE
        return [entry.watermark]
    tx.execute(
        "UPDATE instance SET status = ?, watermark = ?, original_watermark = NULL, size_bytes = ?,"
        " sop_class_uid = ?, transfer_syntax = ? WHERE key = ?",
        (CREATED, entry.watermark, found.size_bytes, found.sop_class_uid, found.transfer_syntax, entry.instance_key),
    )
    removed = [mark for mark in (old["watermark"], old["original_watermark"]) if mark and mark != entry.watermark]
    for mark in removed:
        tx.execute("DELETE FROM metadata WHERE watermark = ?", (mark,))
    tx.execute("INSERT INTO metadata VALUES (?, ?)", (entry.watermark, zlib.compress(found.metadata, 1)))
    add_to_feed(service, tx, entry, request.partition_key, action="Update" if entry.replaced else "Create")
    latest_wins(tx, "study", STUDY_COLUMNS, found.columns, entry.study_key)
    # The one column that cannot be null: stored empty, it comes back as an element without a value (facts page 3.2).
    tx.execute(
        "UPDATE study SET patient_id = '', patient_id_f = '' WHERE key = ? AND patient_id IS NULL", (entry.study_key,)
    )
    latest_wins(tx, "series", SERIES_COLUMNS, found.columns, entry.series_key)
    keep_values(tx, entry)
    return removed


def add_to_feed(service: Service, tx: sqlite3.Connection, entry: Entry, partition_key: int, *, action: str) -> None:
    """Add a feed entry for a stored version, in the transaction that makes it visible."""
    found = entry.examined
    stamp = service.index.tick()
    visible_at = stamp + int(entry.late_seconds * TICKS_PER_SECOND) if entry.late_seconds else 0
    tx.execute(
        "INSERT INTO feed (sequence, timestamp, visible_at, action, partition_key, study_uid, series_uid, sop_uid,"
        " watermark) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            next_numbers(tx, "sequence", 1, gap=entry.gap),
            stamp,
            visible_at,
            action,
            partition_key,
            found.study_uid,
            found.series_uid,
            found.sop_uid,
            entry.watermark,
        ),
    )


def latest_wins(
    tx: sqlite3.Connection,
    table: str,
    attributes: Sequence[CoreAttribute],
    columns: dict[str, str],
    key: int,
) -> None:
    """Write the non-empty values of a study or series over the older ones (facts page 1.8)."""
    pairs = [
        (attribute.column, columns[attribute.column], fold(columns[attribute.column], attribute.vr))
        for attribute in attributes
        if attribute.column in columns
    ]
    if not pairs:
        return
    sets = ", ".join(f"{column} = ?, {column}_f = ?" for column, _, _ in pairs)
    values = [value for _, raw, folded in pairs for value in (raw, folded)]
    tx.execute(f"UPDATE {table} SET {sets} WHERE key = ?", (*values, key))


def keep_values(tx: sqlite3.Connection, entry: Entry) -> None:
    """Write the extended query tags' values of a stored version; the newest version of a resource wins."""
    keys: dict[Level, Callable[[], int]] = {
        Level.STUDY: lambda: entry.study_key,
        Level.SERIES: lambda: entry.series_key,
        Level.INSTANCE: lambda: entry.instance_key,
    }
    for value in entry.examined.values:
        put_value(tx, value.tag, keys[value.tag.level](), entry.watermark, value.value, value.folded)


def _set_expiry(tx: sqlite3.Connection, request: StoreRequest, begun: list[Entry]) -> None:
    # The last store decides for its study; one without the headers cancels an expiry (facts page 1.9).
    for study_key in {entry.study_key for entry in begun if entry.is_stored}:
        tx.execute("UPDATE study SET expires_at = ? WHERE key = ?", (request.expires_at, study_key))
