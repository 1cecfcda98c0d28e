"""Extended query tags as storing and searching need them: which there are, and what a data set has for each."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..dicom.attributes import Level
from ..dicom.collation import comparable
from ..dicom.values import NUMBER_VRS, DataSet


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
