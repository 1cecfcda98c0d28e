"""The change feed, versions 1 and 2 (AZURE.md 5).

An entry's state is not stored: it is what the instance is *now*, so that deleting or replacing an instance changes all
its earlier entries at once, as in the service.
"""

from __future__ import annotations

import json
import re
import sqlite3
from datetime import UTC, datetime, timedelta

from starlette.responses import Response

from ..errors import Problem, bad_parameter
from ..http.answers import PlainJson, raw_json
from ..http.request import Action, Route, ServiceRequest, route
from ..storage.index import CREATED, TICKS_PER_SECOND, now_ticks, utc_text
from ..storage.instances import metadata_bytes
from .query import page

_MOST_SEQUENCE = (1 << 63) - 1
_SELECT = (
    "SELECT f.sequence, f.timestamp, f.action, f.study_uid, f.series_uid, f.sop_uid, f.watermark, p.name AS partition,"
    " i.watermark AS current FROM feed f LEFT JOIN partition p ON p.key = f.partition_key"
    " LEFT JOIN instance i ON i.sop_uid = f.sop_uid AND i.series_uid = f.series_uid AND i.study_uid = f.study_uid"
    f" AND i.partition_key = f.partition_key AND i.status = {CREATED}"
)


def get_changefeed(request: ServiceRequest) -> Response:
    """``GET /changefeed``: one page."""
    with_metadata = request.flag("includeMetadata", default=True)
    with request.archive.index.read() as tx:
        rows = _page_v1(request, tx) if request.version == 1 else _page_v2(request, tx)
        entries = [_entry(tx, row, with_metadata=with_metadata) for row in rows]
    return raw_json(entries, media_type=PlainJson.media_type)


def get_latest(request: ServiceRequest) -> Response:
    """``GET /changefeed/latest``: the newest entry, 204 where there is none."""
    with_metadata = request.flag("includeMetadata", default=True)
    order = "f.sequence DESC" if request.version == 1 else "f.timestamp DESC, f.sequence DESC"
    with request.archive.index.read() as tx:
        row = tx.execute(f"{_SELECT} WHERE f.visible_at <= ? ORDER BY {order} LIMIT 1", (now_ticks(),)).fetchone()
        if row is None:
            return Response(status_code=204)
        entry = _entry(tx, row, with_metadata=with_metadata)
    return Response(entry, media_type=PlainJson.media_type)


def _page_v1(request: ServiceRequest, tx: sqlite3.Connection) -> list[sqlite3.Row]:
    # The limit is the width of a range of sequence numbers, so gaps make short and empty pages.
    offset = request.integer("offset", default=0, least=0)
    limit = request.integer("limit", default=10, least=1, most=100)
    return tx.execute(
        f"{_SELECT} WHERE f.sequence BETWEEN ? AND ? AND f.visible_at <= ? ORDER BY f.sequence",
        (min(offset + 1, _MOST_SEQUENCE), min(offset + limit, _MOST_SEQUENCE), now_ticks()),
    ).fetchall()


def _page_v2(request: ServiceRequest, tx: sqlite3.Connection) -> list[sqlite3.Row]:
    limit, offset = page(request)
    start_text, end_text = request.parameter("startTime"), request.parameter("endTime")
    start = 0 if start_text is None else _instant("startTime", start_text)
    end = _MOST_SEQUENCE if end_text is None else _instant("endTime", end_text)
    if start_text is not None and end <= start:
        raise Problem(400, f"The start time '{start_text}' must occur strictly before the end time '{end_text}'.")
    # Positions have no gaps and grow with the timestamps, so a page deep inside a window is found by adding. Only
    # entries held back by a fault make it necessary to count.
    now = now_ticks()
    if tx.execute("SELECT 1 FROM feed WHERE visible_at > 0 AND visible_at > ? LIMIT 1", (now,)).fetchone() is not None:
        return tx.execute(
            f"{_SELECT} WHERE f.timestamp >= ? AND f.timestamp < ? AND f.visible_at <= ?"
            " ORDER BY f.position LIMIT ? OFFSET ?",
            (start, end, now, limit, offset),
        ).fetchall()
    first = tx.execute("SELECT position FROM feed WHERE timestamp >= ? ORDER BY timestamp LIMIT 1", (start,)).fetchone()
    if first is None:
        return []
    return tx.execute(
        f"{_SELECT} WHERE f.position >= ? AND +f.timestamp < ? ORDER BY f.position LIMIT ?",
        (min(first["position"] + offset, _MOST_SEQUENCE), end, limit),
    ).fetchall()


_INSTANT = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?\s*(Z|z|[+-]\d\d:?\d\d)?\Z")
_NO_ZONE = "Date and time value must specify a time zone."


def _instant(name: str, text: str) -> int:
    # ISO-8601 with zone, as ticks; decimals beyond 100 ns are cut.
    # A plus that was not percent-encoded arrives as a space; the service cannot parse that either.
    found = _INSTANT.match(text.strip())
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text.strip()) or (found is not None and found[5] is None):
        raise bad_parameter(name, _NO_ZONE)
    unreadable = bad_parameter(name, f"The value '{text}' is not valid for {name}.")
    if found is None:
        raise unreadable
    try:
        zone = "+0000" if found[5] in "Zz" else found[5].replace(":", "")
        instant = datetime.strptime(f"{found[1]}T{found[2]}:{found[3] or '00'}{zone}", "%Y-%m-%dT%H:%M:%S%z")
    except ValueError as error:
        raise unreadable from error
    seconds = (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    return seconds * TICKS_PER_SECOND + int((found[4] or "")[:7].ljust(7, "0"))


def _entry(tx: sqlite3.Connection, row: sqlite3.Row, *, with_metadata: bool) -> bytes:
    current = row["current"]
    entry = {
        "sequence": row["sequence"],
        "partitionName": row["partition"],
        "studyInstanceUid": row["study_uid"],
        "seriesInstanceUid": row["series_uid"],
        "sopInstanceUid": row["sop_uid"],
        "action": row["action"],
        "timestamp": utc_text(row["timestamp"]),
        "state": "Deleted" if current is None else "Current" if current == row["watermark"] else "Replaced",
    }
    text = json.dumps(entry, separators=(",", ":")).encode()
    if with_metadata and current is not None:
        # The metadata is JSON already; parsing two hundred of them only to write them again takes 100 ms.
        text = text[:-1] + b',"metadata":' + metadata_bytes(tx, current) + b"}"
    return text


ROUTES: list[Route] = [
    route("GET", "changefeed", get_changefeed, Action.READ, partitioned=False),
    route("GET", "changefeed/latest", get_latest, Action.READ, partitioned=False),
]
