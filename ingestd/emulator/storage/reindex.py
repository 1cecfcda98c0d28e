"""The reindex operation: gives new extended query tags the values of what is stored already (AZURE.md 6)."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from ..dicom.attributes import Level
from ..dicom.dicom_json import from_json
from ..dicom.minimum_rules import minimum
from .index import CREATED, Index, now_ticks, one, utc_text
from .instances import metadata_bytes
from .tags import Tag, keep_values, tag_of_row, tag_values

_CHUNK = 200


def reindex(index: Index, given: dict[str, Any]) -> dict[str, Any]:
    """Go through every instance, oldest first, then make the tags ready; what cannot be indexed is written down."""
    after = 0
    while True:
        with index.read() as tx:
            found = (one(tx, "SELECT * FROM tag WHERE path = ?", (path,)) for path in given["paths"])
            tags = [tag_of_row(row) for row in found if row is not None]
            rows = tx.execute(
                "SELECT key, study_key, series_key, watermark FROM instance"
                f" WHERE status = {CREATED} AND watermark > ? ORDER BY watermark LIMIT {_CHUNK}",
                (after,),
            ).fetchall()
        if not rows:
            break
        with index.write() as tx:
            for row in rows:
                _index_one(tx, row, tags)
        after = rows[-1]["watermark"]
    with index.write() as tx:
        for tag in tags:
            # A tag with errors cannot be searched until somebody says so (AZURE.md 6.3).
            failed = one(tx, "SELECT 1 FROM tag_error WHERE tag_key = ?", (tag.key,)) is not None
            tx.execute("UPDATE tag SET status = 'ready', query_enabled = ? WHERE key = ?", (not failed, tag.key))
    return {}


def _index_one(tx: sqlite3.Connection, row: sqlite3.Row, tags: list[Tag]) -> None:
    watermark = row["watermark"]
    if one(tx, "SELECT 1 FROM instance WHERE watermark = ?", (watermark,)) is None:
        return  # deleted or replaced meanwhile
    # Not the file: what version 2 dropped at the store is no error of the tag (dicom-server, InstanceReindexer).
    dataset = from_json(json.loads(metadata_bytes(tx, watermark)))
    good = []
    for tag in tags:
        element = dataset.by_tag.get(tag.tag)
        message = None if element is None else minimum(element, dataset.text, name=tag.name, vr=tag.vr)
        if message is None:
            good.append(tag)
        else:
            tx.execute(
                "INSERT OR REPLACE INTO tag_error VALUES (?, ?, ?, ?)",
                (tag.key, watermark, utc_text(now_ticks()), message.rpartition("': ")[2]),
            )
    keys = {Level.STUDY: row["study_key"], Level.SERIES: row["series_key"], Level.INSTANCE: row["key"]}
    keep_values(tx, tag_values(dataset, good), keys, watermark)
