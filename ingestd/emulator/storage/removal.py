"""Removes instances: what a DELETE names, what expires, what a fault takes back."""

from __future__ import annotations

import sqlite3

from .archive import Archive
from .index import CREATED, now_ticks
from .instances import drop_empty, forget_versions


def remove(
    archive: Archive, partition_key: int, study: str, series: str | None = None, instance: str | None = None
) -> int:
    """Remove the instances of that study, series or that one, Creating ones without a feed entry; how many went."""
    where = "study_key IN (SELECT key FROM study WHERE study_uid = ?) AND study_uid = ? AND partition_key = ?"
    parameters = [study, study, partition_key]
    for column, uid in (("series_uid", series), ("sop_uid", instance)):
        if uid is not None:
            where, parameters = f"{where} AND {column} = ?", [*parameters, uid]
    with archive.index.write() as tx:
        rows = tx.execute(f"SELECT * FROM instance WHERE {where} ORDER BY watermark", parameters).fetchall()
        for row in rows:
            _remove_row(archive, tx, row)
        drop_empty(tx, sorted({row["study_key"] for row in rows}))
        _forget_values(tx, rows)
    archive.files.remove(mark for row in rows for mark in (row["watermark"], row["original_watermark"]) if mark)
    return len(rows)


def expire(archive: Archive) -> None:
    """Remove the studies whose time is over (AZURE.md 1.9); the feed has them as deleted."""
    now = now_ticks()
    with archive.index.read() as tx:
        rows = tx.execute("SELECT study_uid, partition_key FROM study WHERE expires_at <= ?", (now,)).fetchall()
    for row in rows:
        remove(archive, row["partition_key"], row["study_uid"])
    archive.look_for_expiry()


def _remove_row(archive: Archive, tx: sqlite3.Connection, row: sqlite3.Row) -> None:
    tx.execute("DELETE FROM instance WHERE key = ?", (row["key"],))
    forget_versions(tx, row["watermark"], row["original_watermark"])
    tx.execute("DELETE FROM tag_error WHERE watermark = ?", (row["watermark"],))
    if row["status"] == CREATED:
        archive.index.add_to_feed(
            tx,
            "Delete",
            row["partition_key"],
            (row["study_uid"], row["series_uid"], row["sop_uid"]),
            row["watermark"],
        )


def _forget_values(tx: sqlite3.Connection, rows: list[sqlite3.Row]) -> None:
    # Keys are never used again (AUTOINCREMENT), so a value of something that is gone can only waste room.
    for level, table, column in (
        ("instance", "instance", "key"),
        ("series", "series", "series_key"),
        ("study", "study", "study_key"),
    ):
        for key in sorted({row[column] for row in rows}):
            tx.execute(
                "DELETE FROM tag_value WHERE resource_key = ? AND tag_key IN (SELECT key FROM tag WHERE level = ?)"
                f" AND NOT EXISTS (SELECT 1 FROM {table} WHERE key = ?)",
                (key, level, key),
            )
