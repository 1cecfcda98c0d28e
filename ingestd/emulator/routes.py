"""The routing table: every resource of the service, and those without a version in front."""

from __future__ import annotations

from starlette.responses import Response

from . import delete, feed, frames, operations, qido, rendered, stow, tags, wado
from .answers import PlainJson
from .call import Action, Call, Route, route


def get_health(call: Call) -> Response:
    """``GET /health/check``: whether the index answers."""
    with call.service.index.read() as tx:
        tx.execute("SELECT 1").fetchone()
    return PlainJson(
        {
            "overallStatus": "Healthy",
            "details": [{"name": "Index", "status": "Healthy", "description": "The index answers."}],
        }
    )


ROUTES: tuple[Route, ...] = (
    *stow.ROUTES,
    *wado.ROUTES,
    *frames.ROUTES,
    *rendered.ROUTES,
    *qido.ROUTES,
    *delete.ROUTES,
    *feed.ROUTES,
    *tags.ROUTES,
    *operations.ROUTES,
)
UNVERSIONED: tuple[Route, ...] = (route("GET", "health/check", get_health, Action.NONE),)
