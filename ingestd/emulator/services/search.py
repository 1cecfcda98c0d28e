"""Asks the index a QIDO question and puts the answer together (AZURE.md 3.2, 3.3).

Two ways to an answer, as in the original: when every returned attribute is an index column (the version 2 defaults, the
computed counts), the study and series tables give it - latest value wins. As soon as one other attribute is wanted, the
stored metadata of one instance is read: the newest match of that study or series.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..dicom.attributes import CORE, CORE_BY_TAG, MODALITIES_IN_STUDY, SERIES_INSTANCES, STUDY_INSTANCES, Level
from ..dicom.dicom_json import element, json_bytes, person_name
from ..storage.index import CREATED
from ..storage.instances import metadata_bytes

_COMPUTED = frozenset({MODALITIES_IN_STUDY, STUDY_INSTANCES, SERIES_INSTANCES})


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """One attribute's condition: a test of its column, which stands where the ``{0}`` is, and the values in it."""

    tag: int
    level: Level
    extended: sqlite3.Row | None
    test: str
    values: list[str | float]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is searched, and what is wanted of what is found."""

    level: Level
    partition_key: int
    study_uid: str | None
    series_uid: str | None
    filters: list[Filter]
    fields: frozenset[int]
    limit: int
    offset: int


def known_tags(tx: sqlite3.Connection) -> dict[int, sqlite3.Row]:
    """Every extended query tag by its number, with whether it is ready and in use, and how many instances it failed."""
    rows = tx.execute(
        "SELECT t.*, t.status = 'ready' AND t.query_enabled AS is_usable,"
        " (SELECT count(*) FROM tag_error e WHERE e.tag_key = t.key) AS errors FROM tag t"
    )
    return {int(row["path"], 16): row for row in rows}


def run(tx: sqlite3.Connection, question: Question, *, hidden: Collection[str] = ()) -> list[bytes]:
    """The answer's datasets as JSON text, newest first; ``hidden`` studies are not found (a fault)."""
    where, parameters = _conditions(question, hidden)
    rows = tx.execute(
        f"{_SELECT[question.level]} WHERE {where} ORDER BY {_ORDER[question.level]} DESC LIMIT ? OFFSET ?",
        (*parameters, question.limit, question.offset),
    ).fetchall()
    if question.level is not Level.INSTANCE and question.fields <= _KNOWN_TO_TABLES[question.level]:
        return [json_bytes(_from_columns(tx, row, question)) for row in rows]
    return [json_bytes(_from_metadata(tx, row, question)) for row in rows]


_IS_CREATED = {
    Level.STUDY: f"EXISTS (SELECT 1 FROM instance x WHERE x.study_key = s.key AND x.status = {CREATED})",
    Level.SERIES: f"EXISTS (SELECT 1 FROM instance x WHERE x.series_key = e.key AND x.status = {CREATED})",
    Level.INSTANCE: f"i.status = {CREATED}",
}
_SELECT = {
    Level.STUDY: "SELECT s.*, s.key AS study_key FROM study s",
    Level.SERIES: (
        "SELECT s.*, e.*, s.key AS study_key, e.key AS series_key FROM series e JOIN study s ON s.key = e.study_key"
    ),
    Level.INSTANCE: (
        "SELECT i.watermark, i.study_key, i.series_key, i.study_uid, i.series_uid FROM instance i"
        " JOIN series e ON e.key = i.series_key JOIN study s ON s.key = i.study_key"
    ),
}
_ORDER = {Level.STUDY: "s.key", Level.SERIES: "e.key", Level.INSTANCE: "i.watermark"}


def _conditions(question: Question, hidden: Collection[str]) -> tuple[str, list[Any]]:
    conditions = ["s.partition_key = ?", _IS_CREATED[question.level]]
    values: list[Any] = [question.partition_key]
    if question.study_uid is not None:
        conditions.append("s.study_uid = ?")
        values.append(question.study_uid)
    if question.series_uid is not None:
        conditions.append("e.series_uid = ?")
        values.append(question.series_uid)
    for filter_ in question.filters:
        condition, more = _condition(filter_)
        conditions.append(condition)
        values.extend(more)
    if hidden:
        conditions.append(f"s.study_uid NOT IN ({','.join('?' * len(hidden))})")
        values.extend(hidden)
    return " AND ".join(conditions), values


_ALIAS = {Level.STUDY: "s", Level.SERIES: "e", Level.INSTANCE: "i"}


def _condition(filter_: Filter) -> tuple[str, list[str | float]]:
    if filter_.tag == MODALITIES_IN_STUDY:
        return f"s.key IN (SELECT study_key FROM series WHERE {filter_.test.format('modality_f')})", filter_.values
    if filter_.extended is not None:
        of_tag = f"SELECT v.resource_key FROM tag_value v WHERE v.tag_key = ? AND {filter_.test.format('v.folded')}"
        return f"{_ALIAS[filter_.level]}.key IN ({of_tag})", [filter_.extended["key"], *filter_.values]
    attribute = CORE_BY_TAG[filter_.tag]
    column = f"{_ALIAS[attribute.level]}.{attribute.column}"
    return filter_.test.format(column if attribute.vr == "UI" else f"{column}_f"), filter_.values


# The attributes that the tables of studies and of series with their studies give.
_IN_TABLES = {
    Level.STUDY: [attribute for attribute in CORE if attribute.level is Level.STUDY],
    Level.SERIES: [attribute for attribute in CORE if attribute.level is not Level.INSTANCE],
}
_KNOWN_TO_TABLES = {
    level: {attribute.tag for attribute in attributes} | {MODALITIES_IN_STUDY, STUDY_INSTANCES}
    for level, attributes in _IN_TABLES.items()
}
_KNOWN_TO_TABLES[Level.SERIES].add(SERIES_INSTANCES)


def _from_columns(tx: sqlite3.Connection, row: sqlite3.Row, question: Question) -> dict[str, Any]:
    answer = {
        f"{attribute.tag:08X}": _shown(attribute.vr, row[attribute.column])
        for attribute in _IN_TABLES[question.level]
        if attribute.tag in question.fields and row[attribute.column] is not None
    }
    return answer | _computed(tx, row, question)


def _shown(vr: str, value: str) -> dict[str, Any]:
    return element(vr, [person_name(value) if vr == "PN" else value] if value else [])


def _computed(tx: sqlite3.Connection, row: sqlite3.Row, question: Question) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    if MODALITIES_IN_STUDY in question.fields:
        modalities = [
            each[0]
            for each in tx.execute(
                "SELECT DISTINCT modality FROM series WHERE study_key = ? AND modality IS NOT NULL ORDER BY modality",
                (row["study_key"],),
            )
        ]
        answer["00080061"] = element("CS", modalities)
    if STUDY_INSTANCES in question.fields:
        answer["00201208"] = {"vr": "IS", "Value": [_count(tx, "study_key", row["study_key"])]}
    if SERIES_INSTANCES in question.fields and question.level is not Level.STUDY:
        answer["00201209"] = {"vr": "IS", "Value": [_count(tx, "series_key", row["series_key"])]}
    return answer


def _count(tx: sqlite3.Connection, column: str, key: int) -> int:
    # Creating rows count, too, as in the service (AZURE.md 3.3).
    count: int = tx.execute(f"SELECT count(*) FROM instance WHERE {column} = ?", (key,)).fetchone()[0]
    return count


def _from_metadata(tx: sqlite3.Connection, row: sqlite3.Row, question: Question) -> dict[str, Any]:
    watermark = row["watermark"] if question.level is Level.INSTANCE else _newest_match(tx, row, question)
    metadata = json.loads(metadata_bytes(tx, watermark))
    answer = {key: value for key, value in metadata.items() if int(key, 16) in question.fields}
    if question.fields & _COMPUTED:
        if question.level is not Level.INSTANCE:
            answer |= _from_columns(tx, row, question)
        else:
            answer |= _computed(tx, row, question)
    return answer


def _newest_match(tx: sqlite3.Connection, row: sqlite3.Row, question: Question) -> int:
    column = "study_key" if question.level is Level.STUDY else "series_key"
    newest: int = tx.execute(
        f"SELECT watermark FROM instance WHERE {column} = ? AND status = {CREATED} ORDER BY watermark DESC LIMIT 1",
        (row[column],),
    ).fetchone()[0]
    return newest
