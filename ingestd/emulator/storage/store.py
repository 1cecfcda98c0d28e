"""The Store Transaction's work on files and index (PS3.18 §10.5; AZURE.md 1.2, 1.8).

The parts of all requests that wait are taken in groups (``writer``). For each group, in one transaction: rows
*Creating*, files renamed into place, small ones into the index, then rows *Created* together with their feed entries,
metadata and index values. What a client sees is as if each part had been taken alone and in order; what a crash leaves
is files that no row knows, and the next start removes them. Only where a fault holds the instance Creating are there
two transactions, so that others meet it so.
"""

# ruff: noqa: S608 - what is put into SQL here are this room's own names, never what a client sent

from __future__ import annotations

import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ..dicom.attributes import SERIES_COLUMNS, STUDY_COLUMNS, CoreAttribute, Level
from ..dicom.collation import fold
from ..faults import FaultName
from .archive import Service, drop_empty, stored_tags
from .examine import (
    ALREADY_EXISTS,
    BEING_CREATED,
    PROCESSING_FAILURE,
    STUDY_MISMATCH,
    VALIDATION_FAILED,
    Examined,
    Tag,
    examine,
)
from .index import CREATED, CREATING, TICKS_PER_SECOND, forget_versions, next_numbers, one
from .instance_faults import alter_where_asked, ask_faults, belie_where_asked
from .reindex import put_value
from .store_job import Entry, Post, StoreRequest

GROUP = 64


def look_ahead(service: Service, post: Post) -> None:
    """Look at the parts that are to be stored next, unless that has been done."""
    if post.group:
        return
    request = post.request
    for part in post.parts[len(post.entries) : len(post.entries) + GROUP]:
        if part.looked_at is not None:
            found = part.looked_at.result()
        else:
            found = look_at(
                service, part.source, version=request.version, study_uid=request.study_uid, tags=request.tags
            )
        entry = Entry(examined=found)
        if entry.is_stored:
            ask_faults(service, request, entry)
        entry.refused = found.failure
        post.group.append(entry)


def commit(service: Service, posts: Sequence[Post]) -> None:
    """Store what can be stored of these posts' groups, as if one after the other; none when it raises."""
    if any(entry.commit_seconds for post in posts for entry in post.group):
        (post,) = posts
        _store_slowly(service, post)
    else:
        _store_at_once(service, posts)


def account_for(service: Service, posts: Sequence[Post]) -> None:
    """Write down what became of these posts' groups, once they are committed."""
    for post in posts:
        belie_where_asked(service, post.request, post.group)
    service.log.add_all("instance", [(post.request.number, _log_line(entry)) for post in posts for entry in post.group])
    for post in posts:
        for entry in post.group:
            entry.examined.metadata = b""
            entry.examined.source = b""
        post.entries.extend(post.group)
        post.group = []


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


def look_at(
    service: Service, source: Path | bytes, *, version: int, study_uid: str | None, tags: Sequence[Tag]
) -> Examined:
    """Examine one part and make it ready for its place: digest taken, preamble zeroed where that is the flavour."""
    if service.settings.is_managed:
        source = _without_preamble(source)
    if isinstance(source, Path):
        service.files.settle(source)  # the disk writes while the rest goes on
    return examine(
        source,
        version=version,
        study_uid=study_uid,
        tags=tags,
        mismatch=STUDY_MISMATCH if service.settings.is_managed else VALIDATION_FAILED,
    )


def _without_preamble(source: Path | bytes) -> Path | bytes:
    # The managed service zeroes the preamble (Azure conformance v2; AZURE.md 1.8).
    if isinstance(source, bytes):
        return bytes(128) + source[128:] if source[128:132] == b"DICM" else source
    descriptor = os.open(source, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.pread(descriptor, 4, 128) == b"DICM":
            os.pwrite(descriptor, bytes(128), 0)
    finally:
        os.close(descriptor)
    return source


def _store_at_once(service: Service, posts: Sequence[Post]) -> None:
    begun: list[list[Entry]] = []

    def undo() -> None:
        service.files.take_back(_on_disk(entry for post in posts for entry in post.group if entry.watermark))

    try:
        with service.index.write(undo=undo) as tx:
            begun = [_begin(tx, post.request, post.group) for post in posts]
            _place(service, [entry for entries in begun for entry in entries])
            finished = [_finish(service, tx, post, each) for post, each in zip(posts, begun, strict=True)]
    except BaseException:
        for entry in (entry for post in posts for entry in post.group):
            entry.watermark = entry.instance_key = entry.study_key = entry.series_key = entry.replaced = 0
            entry.examined.failure = entry.refused
        raise
    _clean_up(service, posts, begun, [mark for removed in finished for mark in removed])


def _store_slowly(service: Service, post: Post) -> None:
    # The first transaction need not be durable: what a power cut takes of it, it takes of the whole store.
    with service.index.write(durable=False) as tx:
        begun = _begin(tx, post.request, post.group)
    _place(service, begun)
    time.sleep(max((entry.commit_seconds for entry in begun), default=0.0))
    with service.index.write() as tx:
        removed = _finish(service, tx, post, begun)
    _clean_up(service, [post], [begun], removed)


def _on_disk(entries: Iterable[Entry]) -> Iterator[tuple[Path, int]]:
    for entry in entries:
        if isinstance(entry.examined.source, Path):
            yield entry.examined.source, entry.watermark


def _place(service: Service, begun: list[Entry]) -> None:
    for entry in begun:
        alter_where_asked(service, entry)
    service.files.put(_on_disk(begun))


def _finish(service: Service, tx: sqlite3.Connection, post: Post, begun: list[Entry]) -> list[int]:
    """Make what was begun visible; the watermarks whose files are needed no more."""
    if not begun:
        return []
    removed: list[int] = []
    # If the tags changed since the request began, the service fails its instances with 272 (AZURE.md 1.8).
    tags_changed = stored_tags(tx) != list(post.request.tags)
    for entry in begun:
        removed += _undo(tx, entry) if tags_changed else _commit(service, tx, post.request, entry)
    if removed:
        drop_empty(tx, sorted({entry.study_key for entry in begun}))
    _set_expiry(tx, post.request, begun)
    return removed


def _clean_up(service: Service, posts: Sequence[Post], begun: list[list[Entry]], removed: list[int]) -> None:
    service.files.remove(removed)
    if any(post.request.expires_at is not None for post in posts):
        service.look_for_expiry()
    for entry in (entry for entries in begun for entry in entries):
        if entry.lag_seconds:
            service.lag.hide(entry.examined.study_uid, entry.lag_seconds)


def _begin(tx: sqlite3.Connection, request: StoreRequest, group: list[Entry]) -> list[Entry]:
    begun: dict[tuple[str, str, str], Entry] = {}
    keys: dict[tuple[str, ...], int] = {}
    for entry in (entry for entry in group if entry.is_stored):
        found = entry.examined
        earlier = begun.get(found.identity)
        if earlier is not None and not request.replace:
            found.failure = ALREADY_EXISTS
            continue
        if earlier is not None:
            # PUT with one identity twice: the later part wins, the earlier one never becomes visible.
            entry.watermark = next_numbers(tx, "watermark", 1)
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
        entry.watermark = next_numbers(tx, "watermark", 1)
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
    if old["watermark"] == entry.watermark:
        tx.execute("UPDATE instance SET status = ? WHERE key = ?", (CREATED, entry.instance_key))
    else:
        tx.execute(
            "UPDATE instance SET status = ?, watermark = ?, original_watermark = NULL, size_bytes = ?,"
            " sop_class_uid = ?, transfer_syntax = ? WHERE key = ?",
            (
                CREATED,
                entry.watermark,
                found.size_bytes,
                found.sop_class_uid,
                found.transfer_syntax,
                entry.instance_key,
            ),
        )
    removed = [mark for mark in (old["watermark"], old["original_watermark"]) if mark and mark != entry.watermark]
    forget_versions(tx, *removed)
    if isinstance(found.source, bytes):
        tx.execute("INSERT INTO content VALUES (?, ?)", (entry.watermark, found.source))
    tx.execute("INSERT INTO metadata VALUES (?, ?)", (entry.watermark, zlib.compress(found.metadata, 1)))
    add_to_feed(service, tx, entry, request.partition_key, action="Update" if entry.replaced else "Create")
    latest_wins(tx, "study", STUDY_COLUMNS, found.columns, entry.study_key)
    # The one column that cannot be null: stored empty, it comes back as an element without a value (AZURE.md 3.2).
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
    # The last store decides for its study; one without the headers cancels an expiry (AZURE.md 1.9).
    for study_key in {entry.study_key for entry in begun if entry.is_stored}:
        tx.execute(
            "UPDATE study SET expires_at = ? WHERE key = ? AND expires_at IS NOT ?",
            (request.expires_at, study_key, request.expires_at),
        )
