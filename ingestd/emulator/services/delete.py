"""DELETE of studies, series and instances (AZURE.md 4)."""

# ruff: noqa: S608 - what is put into SQL here are this room's own names, never what a client sent

from __future__ import annotations

import sqlite3
from typing import Any

from starlette.responses import Response

from ..errors import INSTANCE_NOT_FOUND, SERIES_NOT_FOUND, STUDY_NOT_FOUND, Problem
from ..http.request import Action, Call, Route, route
from ..storage.archive import Service, drop_empty
from ..storage.index import CREATED, forget_versions, next_numbers, now_ticks


def delete(call: Call) -> Response:
    """``DELETE /studies/{study}[/series/{series}[/instances/{instance}]]``."""
    study, series, instance = call.uid("study"), call.optional_uid("series"), call.optional_uid("instance")
    where, parameters = "study_uid = ? AND partition_key = ?", [study, call.partition_key]
    if series is not None:
        where, parameters = where + " AND series_uid = ?", [*parameters, series]
    if instance is not None:
        where, parameters = where + " AND sop_uid = ?", [*parameters, instance]
    if not remove(call.service, where, tuple(parameters)):
        raise Problem(404, INSTANCE_NOT_FOUND if instance else SERIES_NOT_FOUND if series else STUDY_NOT_FOUND)
    return Response(status_code=204)


def remove(service: Service, where: str, parameters: tuple[Any, ...]) -> int:
    """Remove the matching instances, Creating ones without a feed entry; the number of rows that went."""
    with service.index.write() as tx:
        if "study_uid = ?" in where:
            where = f"study_key IN (SELECT key FROM study WHERE study_uid = ?) AND {where}"
            parameters = (parameters[0], *parameters)
        rows = tx.execute(f"SELECT * FROM instance WHERE {where} ORDER BY watermark", parameters).fetchall()
        for row in rows:
            _remove_row(service, tx, row)
        drop_empty(tx, sorted({row["study_key"] for row in rows}))
        _forget_values(tx, rows)
    service.files.remove(mark for row in rows for mark in (row["watermark"], row["original_watermark"]) if mark)
    return len(rows)


def expire(service: Service) -> None:
    """Remove the studies whose time is over (AZURE.md 1.9); the feed has them as deleted."""
    now = now_ticks()
    with service.index.read() as tx:
        rows = tx.execute("SELECT study_uid, partition_key FROM study WHERE expires_at <= ?", (now,)).fetchall()
    for row in rows:
        remove(service, "study_uid = ? AND partition_key = ?", (row["study_uid"], row["partition_key"]))
    service.look_for_expiry()


def _remove_row(service: Service, tx: sqlite3.Connection, row: sqlite3.Row) -> None:
    tx.execute("DELETE FROM instance WHERE key = ?", (row["key"],))
    forget_versions(tx, row["watermark"], row["original_watermark"])
    tx.execute("DELETE FROM tag_error WHERE watermark = ?", (row["watermark"],))
    if row["status"] == CREATED:
        tx.execute(
            "INSERT INTO feed (sequence, timestamp, action, partition_key, study_uid, series_uid, sop_uid, watermark)"
            " VALUES (?, ?, 'Delete', ?, ?, ?, ?, ?)",
            (
                next_numbers(tx, "sequence", 1),
                service.index.tick(),
                row["partition_key"],
                row["study_uid"],
                row["series_uid"],
                row["sop_uid"],
                row["watermark"],
            ),
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


ROUTES: list[Route] = [
    route("DELETE", path, delete, Action.DELETE)
    for path in (
        "studies/{study}",
        "studies/{study}/series/{series}",
        "studies/{study}/series/{series}/instances/{instance}",
    )
]
