"""The reindex operation: gives new extended query tags the values of what is stored already (AZURE.md 6)."""

# ruff: noqa: S608 - what is put into SQL here are this room's own names, never what a client sent

from __future__ import annotations

import json
import sqlite3
from typing import Any

from ..dicom.attributes import Level
from ..dicom.validation import minimum
from ..dicom.values import METADATA_TEXT, elements_of
from .archive import Service
from .examine import Tag, tag_values
from .index import CREATED, now_ticks, one, utc_text
from .instances import metadata_bytes

_CHUNK = 200
_KEYS = {Level.STUDY: "study_key", Level.SERIES: "series_key", Level.INSTANCE: "key"}


def reindex(service: Service, operation_id: str, given: dict[str, Any]) -> dict[str, Any]:
    """Go through every instance, oldest first, then make the tags ready; what cannot be indexed is written down."""
    del operation_id
    after = 0
    while True:
        with service.index.read() as tx:
            tags = _tags(tx, given["paths"])
            rows = tx.execute(
                "SELECT key, study_key, series_key, watermark FROM instance"
                f" WHERE status = {CREATED} AND watermark > ? ORDER BY watermark LIMIT {_CHUNK}",
                (after,),
            ).fetchall()
        if not rows:
            break
        with service.index.write() as tx:
            for row in rows:
                _index_one(tx, row, tags)
        after = rows[-1]["watermark"]
    with service.index.write() as tx:
        for tag in tags:
            # A tag with errors cannot be searched until somebody says so (AZURE.md 6.3).
            failed = one(tx, "SELECT 1 FROM tag_error WHERE tag_key = ?", (tag.key,)) is not None
            tx.execute("UPDATE tag SET status = 'ready', query_enabled = ? WHERE key = ?", (not failed, tag.key))
    return {}


def _tags(tx: sqlite3.Connection, paths: list[str]) -> list[Tag]:
    found = []
    for path in paths:
        row = one(tx, "SELECT * FROM tag WHERE path = ?", (path,))
        if row is not None:
            found.append(Tag(row["key"], int(path, 16), row["vr"], Level(row["level"]), path))
    return found


def _index_one(tx: sqlite3.Connection, row: sqlite3.Row, tags: list[Tag]) -> None:
    still_there = one(tx, "SELECT 1 FROM instance WHERE watermark = ?", (row["watermark"],))
    if still_there is None:
        return
    # Not the file: what version 2 dropped at the store is no error of the tag (dicom-server, InstanceReindexer).
    by_tag = {element.tag: element for element in elements_of(json.loads(metadata_bytes(tx, row["watermark"])))}
    good = []
    for tag in tags:
        element = by_tag.get(tag.tag)
        message = None if element is None else minimum(element, METADATA_TEXT, name=tag.name, vr=tag.vr)
        if message is None:
            good.append(tag)
        else:
            _note(tx, tag, row["watermark"], message.rpartition("': ")[2])
    for value in tag_values(by_tag, METADATA_TEXT, tags=good, big_endian=False):
        put_value(tx, value.tag, row[_KEYS[value.tag.level]], row["watermark"], value.value, value.folded)


def put_value(
    tx: sqlite3.Connection, tag: Tag, resource_key: int, watermark: int, value: str | float, folded: str | float
) -> None:
    """Write a tag's value of a resource; the newest version of it wins."""
    tx.execute(
        "INSERT INTO tag_value VALUES (?, ?, ?, ?, ?) ON CONFLICT (tag_key, resource_key) DO UPDATE SET"
        " watermark = excluded.watermark, value = excluded.value, folded = excluded.folded"
        " WHERE excluded.watermark >= tag_value.watermark",
        (tag.key, resource_key, watermark, value, folded),
    )


def _note(tx: sqlite3.Connection, tag: Tag, watermark: int, message: str) -> None:
    tx.execute(
        "INSERT OR REPLACE INTO tag_error VALUES (?, ?, ?, ?)", (tag.key, watermark, utc_text(now_ticks()), message)
    )
