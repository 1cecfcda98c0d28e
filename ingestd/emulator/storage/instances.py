"""Finds stored instances by their UIDs, and their metadata; only Created ones, and only in one partition."""

# ruff: noqa: S608 - what is put into SQL here are this room's own names, never what a client sent

from __future__ import annotations

import sqlite3
import zlib
from dataclasses import dataclass
from typing import Any

from ..errors import INSTANCE_NOT_FOUND, SERIES_NOT_FOUND, STUDY_NOT_FOUND, Problem
from ..http.request import Call
from .index import CREATED


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored instance, as far as retrieving it needs."""

    key: int
    study_uid: str
    series_uid: str
    sop_uid: str
    watermark: int
    original_watermark: int | None
    transfer_syntax: str
    size_bytes: int

    def version(self, *, original: bool) -> int:
        """The watermark of the version asked for: the one before bulk updates, or the latest."""
        return self.original_watermark if original and self.original_watermark is not None else self.watermark


_FIELDS = "key, study_uid, series_uid, sop_uid, watermark, original_watermark, transfer_syntax, size_bytes"


def find(call: Call) -> list[Stored]:
    """The instances of the study, series or instance that the path names, in order of storing; raises Problem 404."""
    study, series, instance = call.uid("study"), call.optional_uid("series"), call.optional_uid("instance")
    with call.service.index.read() as tx:
        found = find_in(tx, call.partition_key, study, series, instance)
    if not found:
        raise Problem(404, INSTANCE_NOT_FOUND if instance else SERIES_NOT_FOUND if series else STUDY_NOT_FOUND)
    return found


def find_in(
    tx: sqlite3.Connection, partition_key: int, study: str, series: str | None, instance: str | None
) -> list[Stored]:
    """The same for given UIDs, empty where there is none."""
    if instance is not None:
        sql = f"SELECT {_FIELDS} FROM instance WHERE sop_uid = ? AND series_uid = ? AND study_uid = ?"
        parameters: tuple[Any, ...] = (instance, series, study)
    else:
        sql = (
            f"SELECT {', '.join('i.' + field for field in _FIELDS.split(', '))} FROM study s"
            " JOIN instance i ON i.study_key = s.key WHERE s.study_uid = ?"
        )
        parameters = (study,)
        if series is not None:
            sql += " AND i.series_uid = ?"
            parameters += (series,)
    prefix = "" if instance is not None else "i."
    sql += f" AND {prefix}partition_key = ? AND {prefix}status = {CREATED} ORDER BY {prefix}watermark"
    return [Stored(*row) for row in tx.execute(sql, (*parameters, partition_key))]


def metadata_bytes(tx: sqlite3.Connection, watermark: int) -> bytes:
    """The stored metadata of a version as JSON text."""
    row = tx.execute("SELECT json FROM metadata WHERE watermark = ?", (watermark,)).fetchone()
    return zlib.decompress(row["json"])
