"""DELETE of studies, series and instances (AZURE.md 4)."""

from __future__ import annotations

from starlette.responses import Response

from ..errors import not_found
from ..http.request import Action, Route, ServiceRequest, route
from ..storage.removal import remove
from .wado import RESOURCES


def delete(request: ServiceRequest) -> Response:
    """``DELETE /studies/{study}[/series/{series}[/instances/{instance}]]``."""
    resource = request.resource()
    if not remove(request.archive, request.partition_key, *resource):
        raise not_found(*resource[1:])
    return Response(status_code=204)


ROUTES: list[Route] = [route("DELETE", path, delete, Action.DELETE) for path in RESOURCES]
