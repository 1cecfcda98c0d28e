"""Extended query tags as storing and searching need them: which there are, and what a data set has for each.

The reindex operation gives new ones the values of what is stored already (AZURE.md 6).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..dicom.attributes import Level
from ..dicom.collation import comparable
from ..dicom.dicom_json import from_json
from ..dicom.minimum_rules import minimum
from ..dicom.values import NUMBER_VRS, DataSet
from .index import CREATED, Index, now_ticks, one, utc_text
from .instances import metadata_bytes


@dataclass(frozen=True, slots=True)
class Tag:
    """An extended query tag as far as storing and searching need it."""

    key: int
    tag: int
    vr: str
    level: Level
    name: str


@dataclass(frozen=True, slots=True)
class TagValue:
    """What an extended query tag has as its value in one instance, as it is and as searches compare it."""

    tag: Tag
    value: str | float
    folded: str | float


def tag_of_row(row: sqlite3.Row) -> Tag:
    return Tag(row["key"], int(row["path"], 16), row["vr"], Level(row["level"]), row["path"])


def stored_tags(tx: sqlite3.Connection) -> list[Tag]:
    """The tags that stores must index: those being added and those that are ready."""
    return [tag_of_row(row) for row in tx.execute("SELECT * FROM tag WHERE status IN ('adding', 'ready') ORDER BY key")]


def tag_values(dataset: DataSet, tags: Sequence[Tag], *, without: frozenset[int] = frozenset()) -> list[TagValue]:
    """The tags' values in one data set, first values only."""
    values = []
    for tag in tags:
        element = dataset.by_tag.get(tag.tag)
        if element is None or element.vr != tag.vr or tag.tag in without:
            continue
        if tag.vr in NUMBER_VRS:
            numbers = dataset.numbers(tag.tag, tag.vr)
            if numbers:
                values.append(TagValue(tag, numbers[0], numbers[0]))
            continue
        strings = dataset.strings(tag.tag)
        if strings and strings[0]:
            folded = comparable(strings[0], tag.vr)
            if folded is not None:
                values.append(TagValue(tag, strings[0], folded))
    return values


def keep_values(tx: sqlite3.Connection, values: Sequence[TagValue], keys: Mapping[Level, int], watermark: int) -> None:
    """Write the values of a stored version, whose study, series and instance have these keys; the newest one wins."""
    for value in values:
        tx.execute(
            "INSERT INTO tag_value VALUES (?, ?, ?, ?, ?) ON CONFLICT (tag_key, resource_key) DO UPDATE SET"
            " watermark = excluded.watermark, value = excluded.value, folded = excluded.folded"
            " WHERE excluded.watermark >= tag_value.watermark",
            (value.tag.key, keys[value.tag.level], watermark, value.value, value.folded),
        )


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
