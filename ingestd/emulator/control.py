"""The control port: switches faults on and off, and shows the log, apart from the service's own port.

``GET /faults`` (what is on) · ``GET /faults/names`` (what there is) · ``POST /faults`` with
``{"name": "drop_after_store", "count": 3}`` · ``DELETE /faults[/{name}]`` · ``GET /requests``.

A browser on this machine reaches it too, with whatever page it shows. So it answers only under a name that cannot be
made to lead here from elsewhere (DNS rebinding), takes nothing from a page of another origin, and changes nothing
without ``X-Ingestd-Control``, which no form can send.
"""

from __future__ import annotations

import json
import re
from ipaddress import ip_address

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import Problem
from .faults import FaultName, Faults, UnknownFault
from .http.request import small_body
from .storage.archive import Archive

CONTROL_HEADER = "X-Ingestd-Control"
_MOST_BODY_BYTES = 64 << 10
_READING = frozenset({"GET", "HEAD"})
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]*)?", re.IGNORECASE)  # RFC 9110 §7.2: host[:port]


def control_app(archive: Archive, *, host: str) -> ASGIApp:
    """The application of the control port of a server that listens on ``host``."""
    faults: Faults = archive.faults

    async def listed(_: Request) -> Response:
        return JSONResponse(faults.listed())

    async def names(_: Request) -> Response:
        return JSONResponse({name: name.description for name in FaultName})

    async def add(request: Request) -> Response:
        try:
            given = json.loads(await small_body(request, most=_MOST_BODY_BYTES))
            name = given.pop("name")
            fault = faults.add(name, **given)
        except Problem as problem:
            return PlainTextResponse(problem.message, problem.status, problem.headers)
        except UnknownFault as error:
            return PlainTextResponse(str(error), status_code=400)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return PlainTextResponse('send JSON like {"name": "drop_after_store", "count": 3}', status_code=400)
        return JSONResponse(fault.facts(), status_code=201)

    async def clear(request: Request) -> Response:
        faults.clear(request.path_params.get("name"))
        return Response(status_code=204)

    async def requests(_: Request) -> Response:
        return JSONResponse(archive.log.lines())

    return _LocalOnly(
        Starlette(
            routes=[
                Route("/faults", listed, methods=["GET"]),
                Route("/faults", add, methods=["POST"]),
                Route("/faults", clear, methods=["DELETE"]),
                Route("/faults/names", names, methods=["GET"]),
                Route("/faults/{name}", clear, methods=["DELETE"]),
                Route("/requests", requests, methods=["GET"]),
            ]
        ),
        host=host,
    )


class _LocalOnly:
    """Lets through what is asked on purpose, on this machine or under the name that the server was given."""

    def __init__(self, app: ASGIApp, *, host: str) -> None:
        self._app = app
        self._host = _canonical(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope["method"], Headers(scope=scope), reached_at=(scope.get("server") or ("",))[0])
        app = self._app if refusal is None else PlainTextResponse(refusal, status_code=403)
        await app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers, *, reached_at: str) -> str | None:
        hosts = headers.getlist("host")
        # The number that the connection came to is no name that could be made to lead elsewhere.
        if len(hosts) != 1 or not (self._is_near(hosts[0]) or _name_in(hosts[0]) == _canonical(reached_at)):
            return (
                "the control port answers to localhost, to what --host names and to its own address: use one of these"
            )
        if not all(self._is_near_origin(origin) for origin in headers.getlist("origin")):
            return "the control port takes nothing from a page of another origin"
        if method not in _READING and CONTROL_HEADER not in headers:
            return f"what changes something needs a header that no form can send: {CONTROL_HEADER}: 1"
        return None

    def _is_near(self, authority: str) -> bool:
        name = _name_in(authority)
        return name is not None and (name in ("localhost", self._host) or _is_loopback(name))

    def _is_near_origin(self, origin: str) -> bool:
        scheme, slashes, authority = origin.partition("://")
        return bool(slashes) and scheme.lower() in ("http", "https") and self._is_near(authority)


def _name_in(authority: str) -> str | None:
    found = _AUTHORITY.fullmatch(authority)
    return None if found is None else _canonical(found[1])


def _canonical(name: str) -> str:
    bare = name.removeprefix("[").removesuffix("]").lower()
    try:
        address = ip_address(bare)
    except ValueError:
        return bare
    mapped = getattr(address, "ipv4_mapped", None)  # as a socket of both families calls a client of the older
    return str(address if mapped is None else mapped)


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
