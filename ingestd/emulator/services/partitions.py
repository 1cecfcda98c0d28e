"""Data partitions (AZURE.md 7.4): off unless asked for; then every DICOMweb path needs one."""

from __future__ import annotations

from starlette.responses import Response

from ..errors import Problem
from ..http.answers import PlainJson
from ..http.request import Action, Route, ServiceRequest, route

_DISABLED = "Data partitions feature is disabled."


def enter_partition(request: ServiceRequest, name: str, route: Route) -> None:
    """Note the partition of the path in the request; a store or a new workitem makes it. Raises Problem 400."""
    if not request.archive.settings.partitions:
        raise Problem(400, _DISABLED)
    if not 1 <= len(name) <= 64 or not all(c.isascii() and (c.isalnum() or c in "_.-") for c in name):
        raise Problem(400, "The specified PartitionName is invalid.")
    key = request.archive.partition_key(name, create=route.creates_partition)
    if key is None:
        raise Problem(400, "Specified PartitionName does not exist.")
    request.partition_key = key


def get_partitions(request: ServiceRequest) -> Response:
    """``GET /partitions``."""
    if not request.archive.settings.partitions:
        raise Problem(400, _DISABLED)
    with request.archive.index.read() as tx:
        rows = tx.execute("SELECT key, name, created_at FROM partition ORDER BY key").fetchall()
    return PlainJson(
        [{"partitionKey": row["key"], "partitionName": row["name"], "createdDate": row["created_at"]} for row in rows]
    )


ROUTES: list[Route] = [route("GET", "partitions", get_partitions, Action.READ, partitioned=False)]
