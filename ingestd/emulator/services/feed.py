"""The change feed, versions 1 and 2 (AZURE.md 5).

An entry's state is not stored: it is what the instance is *now*, so that deleting or replacing an instance changes all
its earlier entries at once, as in the service.
"""

# ruff: noqa: S608 - what is put into SQL here are this room's own names, never what a client sent

from __future__ import annotations

import json
import re
import sqlite3
from datetime import UTC, datetime, timedelta

from starlette.responses import Response

from ..errors import Problem
from ..http.answers import PlainJson, raw_json
from ..http.request import Action, Call, Route, boolean, number, route
from ..storage.index import CREATED, DEFAULT_PARTITION, TICKS_PER_SECOND, now_ticks, utc_text
from ..storage.instances import metadata_bytes
from .query import page

_MOST_SEQUENCE = (1 << 63) - 1
_COLUMNS = (
    "f.sequence, f.timestamp, f.action, f.partition_key, f.study_uid, f.series_uid, f.sop_uid, f.watermark,"
    " i.watermark AS current"
)
_CURRENT = (
    " LEFT JOIN instance i ON i.sop_uid = f.sop_uid AND i.series_uid = f.series_uid AND i.study_uid = f.study_uid"
    f" AND i.partition_key = f.partition_key AND i.status = {CREATED}"
)


def get_changefeed(call: Call) -> Response:
    """``GET /changefeed``: one page."""
    with_metadata = boolean("includeMetadata", call.parameter("includeMetadata"), default=True)
    with call.service.index.read() as tx:
        rows = _page_v1(call, tx) if call.version == 1 else _page_v2(call, tx)
        names = _partition_names(tx)
        entries = [_entry(tx, row, names, with_metadata=with_metadata) for row in rows]
    return raw_json(entries, media_type=PlainJson.media_type)


def get_latest(call: Call) -> Response:
    """``GET /changefeed/latest``: the newest entry, 204 where there is none."""
    with_metadata = boolean("includeMetadata", call.parameter("includeMetadata"), default=True)
    order = "f.sequence DESC" if call.version == 1 else "f.timestamp DESC, f.sequence DESC"
    with call.service.index.read() as tx:
        row = tx.execute(
            f"SELECT {_COLUMNS} FROM feed f{_CURRENT} WHERE f.visible_at <= ? ORDER BY {order} LIMIT 1",
            (now_ticks(),),
        ).fetchone()
        if row is None:
            return Response(status_code=204)
        entry = _entry(tx, row, _partition_names(tx), with_metadata=with_metadata)
    return Response(entry, media_type=PlainJson.media_type)


def _page_v1(call: Call, tx: sqlite3.Connection) -> list[sqlite3.Row]:
    # The limit is the width of a range of sequence numbers, so gaps make short and empty pages.
    offset = number("offset", call.parameter("offset"), default=0, least=0, most=_MOST_SEQUENCE)
    limit = number("limit", call.parameter("limit"), default=10, least=1, most=100)
    return tx.execute(
        f"SELECT {_COLUMNS} FROM feed f{_CURRENT}"
        " WHERE f.sequence BETWEEN ? AND ? AND f.visible_at <= ? ORDER BY f.sequence",
        (min(offset + 1, _MOST_SEQUENCE), min(offset + limit, _MOST_SEQUENCE), now_ticks()),
    ).fetchall()


def _page_v2(call: Call, tx: sqlite3.Connection) -> list[sqlite3.Row]:
    limit, offset = page(call)
    start_text, end_text = call.parameter("startTime"), call.parameter("endTime")
    start = _instant("startTime", start_text)
    end = _instant("endTime", end_text)
    if start is not None and end is not None and end <= start:
        raise Problem(400, f"The start time '{start_text}' must occur strictly before the end time '{end_text}'.")
    return _window(
        tx,
        start if start is not None else 0,
        end if end is not None else _MOST_SEQUENCE,
        limit=limit,
        offset=offset,
    )


def _window(tx: sqlite3.Connection, start: int, end: int, *, limit: int, offset: int) -> list[sqlite3.Row]:
    # Positions have no gaps and grow with the timestamps, so a page deep inside a window is found by adding. Only
    # entries held back by a fault make it necessary to count.
    now = now_ticks()
    if tx.execute("SELECT 1 FROM feed WHERE visible_at > 0 AND visible_at > ? LIMIT 1", (now,)).fetchone() is not None:
        return tx.execute(
            f"SELECT {_COLUMNS} FROM feed f{_CURRENT} WHERE f.timestamp >= ? AND f.timestamp < ? AND f.visible_at <= ?"
            " ORDER BY f.position LIMIT ? OFFSET ?",
            (start, end, now, limit, offset),
        ).fetchall()
    first = tx.execute("SELECT position FROM feed WHERE timestamp >= ? ORDER BY timestamp LIMIT 1", (start,)).fetchone()
    if first is None:
        return []
    return tx.execute(
        f"SELECT {_COLUMNS} FROM feed f{_CURRENT} WHERE f.position >= ? AND +f.timestamp < ?"
        " ORDER BY f.position LIMIT ?",
        (min(first["position"] + offset, _MOST_SEQUENCE), end, limit),
    ).fetchall()


_INSTANT = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?\s*(Z|z|[+-]\d\d:?\d\d)?\Z")


def _instant(name: str, text: str | None) -> int | None:
    # ISO-8601 with zone, as ticks; decimals beyond 100 ns are cut.
    if text is None:
        return None
    # A plus that was not percent-encoded arrives as a space; the service cannot parse that either.
    found = _INSTANT.match(text.strip())
    if found is None:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text.strip()):
            raise Problem(400, f"The query parameter '{name}' is invalid. {_NO_ZONE}")
        raise Problem(400, f"The query parameter '{name}' is invalid. The value '{text}' is not valid for {name}.")
    if found[5] is None:
        raise Problem(400, f"The query parameter '{name}' is invalid. {_NO_ZONE}")
    zone = "+0000" if found[5] in "Zz" else found[5].replace(":", "")
    try:
        instant = datetime.strptime(f"{found[1]}T{found[2]}:{found[3] or '00'}{zone}", "%Y-%m-%dT%H:%M:%S%z")
    except ValueError as error:
        raise Problem(
            400, f"The query parameter '{name}' is invalid. The value '{text}' is not valid for {name}."
        ) from error
    seconds = (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    return seconds * TICKS_PER_SECOND + int((found[4] or "")[:7].ljust(7, "0"))


_NO_ZONE = "Date and time value must specify a time zone."


def _partition_names(tx: sqlite3.Connection) -> dict[int, str]:
    return {row["key"]: row["name"] for row in tx.execute("SELECT key, name FROM partition")}


def _entry(tx: sqlite3.Connection, row: sqlite3.Row, partitions: dict[int, str], *, with_metadata: bool) -> bytes:
    current = row["current"]
    state = "Deleted" if current is None else "Current" if current == row["watermark"] else "Replaced"
    entry = {
        "sequence": row["sequence"],
        "partitionName": partitions.get(row["partition_key"], DEFAULT_PARTITION),
        "studyInstanceUid": row["study_uid"],
        "seriesInstanceUid": row["series_uid"],
        "sopInstanceUid": row["sop_uid"],
        "action": row["action"],
        "timestamp": utc_text(row["timestamp"]),
        "state": state,
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
