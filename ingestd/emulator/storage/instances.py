"""The index's rows of stored instances: found by their UIDs, read, and removed with what hangs on them."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from .index import CREATED


@dataclass(frozen=True, slots=True)
class InstanceRow:
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


_SELECT = (
    "SELECT i.key, i.study_uid, i.series_uid, i.sop_uid, i.watermark, i.original_watermark, i.transfer_syntax,"
    " i.size_bytes FROM"
)
_CREATED = f"i.partition_key = ? AND i.status = {CREATED} ORDER BY i.watermark"


def find_created(
    tx: sqlite3.Connection, partition_key: int, study: str, series: str | None, instance: str | None
) -> list[InstanceRow]:
    """The Created instances of a study, a series or one of them, in order of storing; empty where there is none."""
    if instance is not None:
        where, values = (
            "instance i WHERE i.sop_uid = ? AND i.series_uid = ? AND i.study_uid = ?",
            [instance, series, study],
        )
    else:
        where, values = "study s JOIN instance i ON i.study_key = s.key WHERE s.study_uid = ?", [study]
        if series is not None:
            where, values = f"{where} AND i.series_uid = ?", [*values, series]
    rows = tx.execute(f"{_SELECT} {where} AND {_CREATED}", (*values, partition_key))
    return [InstanceRow(*row) for row in rows]


def metadata_bytes(tx: sqlite3.Connection, watermark: int) -> bytes:
    """The stored metadata of a version as JSON text; raises LookupError where the version is gone."""
    row = tx.execute("SELECT json FROM metadata WHERE watermark = ?", (watermark,)).fetchone()
    if row is None:
        raise LookupError(watermark)
    return zlib.decompress(row["json"])


def keep_metadata(tx: sqlite3.Connection, watermark: int, metadata: bytes) -> None:
    tx.execute("INSERT INTO metadata VALUES (?, ?)", (watermark, zlib.compress(metadata, 1)))


def forget_versions(tx: sqlite3.Connection, *watermarks: int | None) -> None:
    """Remove what the index keeps of these versions of an instance: metadata, and the file where it is a small one."""
    for watermark in watermarks:
        tx.execute("DELETE FROM metadata WHERE watermark = ?", (watermark,))
        tx.execute("DELETE FROM content WHERE watermark = ?", (watermark,))


def drop_empty(tx: sqlite3.Connection, study_keys: Sequence[int] | None = None) -> None:
    """Remove series without instances and studies without series; with keys, only among those studies."""
    within = "" if study_keys is None else f" AND study_key IN ({','.join(map(str, study_keys))})"
    tx.execute(
        f"DELETE FROM series WHERE NOT EXISTS (SELECT 1 FROM instance WHERE instance.series_key = series.key){within}"
    )
    within = within.replace("study_key", "key")
    tx.execute(f"DELETE FROM study WHERE NOT EXISTS (SELECT 1 FROM series WHERE series.study_key = study.key){within}")
