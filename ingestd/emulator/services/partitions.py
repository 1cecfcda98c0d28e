"""Data partitions (AZURE.md 7.4): off unless asked for; then every DICOMweb path needs one."""

from __future__ import annotations

from starlette.responses import Response

from ..errors import Problem
from ..http.answers import PlainJson
from ..http.request import Action, Call, Route, route


def get_partitions(call: Call) -> Response:
    """``GET /partitions``."""
    if not call.service.settings.partitions:
        raise Problem(400, "Data partitions feature is disabled.")
    with call.service.index.read() as tx:
        rows = tx.execute("SELECT key, name, created_at FROM partition ORDER BY key").fetchall()
    return PlainJson(
        [{"partitionKey": row["key"], "partitionName": row["name"], "createdDate": row["created_at"]} for row in rows]
    )


ROUTES: list[Route] = [route("GET", "partitions", get_partitions, Action.READ, partitioned=False)]
