"""The control port: switches faults on and off, and shows the log, apart from the service's own port.

``GET /faults`` (what is on) · ``GET /faults/names`` (what there is) · ``POST /faults`` with
``{"name": "drop_after_store", "count": 3}`` · ``DELETE /faults[/{name}]`` · ``GET /requests``.
"""

from __future__ import annotations

import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .faults import DESCRIPTIONS, Faults, UnknownFault
from .service import Service


def control_app(service: Service) -> Starlette:
    """The application of a server's control port."""
    faults: Faults = service.faults

    async def listed(_: Request) -> Response:
        return JSONResponse(faults.listed())

    async def names(_: Request) -> Response:
        return JSONResponse({str(name): sentence for name, sentence in DESCRIPTIONS.items()})

    async def add(request: Request) -> Response:
        try:
            given = json.loads(await request.body())
            name = given.pop("name")
            fault = faults.add(name, **given)
        except UnknownFault as error:
            return PlainTextResponse(str(error), status_code=400)
        except (ValueError, KeyError, TypeError, AttributeError):
            return PlainTextResponse('send JSON like {"name": "drop_after_store", "count": 3}', status_code=400)
        return JSONResponse(fault.facts(), status_code=201)

    async def clear(request: Request) -> Response:
        faults.clear(request.path_params.get("name"))
        return Response(status_code=204)

    async def requests(_: Request) -> Response:
        return JSONResponse(service.log.lines())

    return Starlette(
        routes=[
            Route("/faults", listed, methods=["GET"]),
            Route("/faults", add, methods=["POST"]),
            Route("/faults", clear, methods=["DELETE"]),
            Route("/faults/names", names, methods=["GET"]),
            Route("/faults/{name}", clear, methods=["DELETE"]),
            Route("/requests", requests, methods=["GET"]),
        ]
    )
