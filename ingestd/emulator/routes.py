"""The routing table: every resource of the service, and those without a version in front."""

from __future__ import annotations

from starlette.responses import Response

from .http.answers import PlainJson
from .http.request import Action, Call, Route, route
from .services import (
    delete,
    feed,
    frames,
    openapi,
    operations,
    page,
    partitions,
    qido,
    rendered,
    stow,
    tags,
    update,
    wado,
    workitems,
    worklist,
)


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
    *update.ROUTES,  # before the store: a study is not called $bulkUpdate
    *stow.ROUTES,
    *wado.ROUTES,
    *frames.ROUTES,
    *rendered.ROUTES,
    *qido.ROUTES,
    *delete.ROUTES,
    *feed.ROUTES,
    *tags.ROUTES,
    *operations.ROUTES,
    *workitems.ROUTES,
    *worklist.ROUTES,
    *partitions.ROUTES,
    *openapi.ROUTES,
)
UNVERSIONED: tuple[Route, ...] = (route("GET", "health/check", get_health, Action.NONE), *page.UNVERSIONED)
