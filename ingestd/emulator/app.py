"""The server as an ASGI application: the checks every request goes through, faults, and the log.

The order of refusals is the service's (AZURE.md 1.2, 0.4): route and version, then content type against what the
route consumes (415), token (401), Accept (406), partition (400), role (403), and only then what the endpoint says.
"""

from __future__ import annotations

import asyncio
import socket
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio.to_thread
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import INTERNAL, UNAVAILABLE, CutConnection, Problem
from .faults import FaultName
from .http.accept import accepts_json
from .http.answers import Streamed, plain
from .http.connection import TRANSPORT
from .http.logged_send import LoggedSend
from .http.request import Action, Body, Route, ServiceRequest, content_type_of, small_body
from .routes import SUPPORTED_VERSIONS, UNVERSIONED, find_route
from .services.partitions import enter_partition
from .services.stow import take_in
from .storage.archive import Archive
from .storage.removal import expire
from .storage.store import GROUP
from .storage.writer import Writer

if TYPE_CHECKING:  # its libraries only where tokens are asked for
    from .services.tokens import Tokens

_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "*, Authorization",
    "Access-Control-Expose-Headers": "*",
    "Access-Control-Max-Age": "600",
    "Cross-Origin-Resource-Policy": "cross-origin",
}


class App:
    """The ASGI application of one server; without ``tokens`` everybody may do everything."""

    def __init__(self, archive: Archive, writer: Writer, tokens: Tokens | None) -> None:
        self._archive = archive
        self._writer = writer
        self._tokens = tokens
        self._unversioned = UNVERSIONED + (() if tokens is None else tokens.routes())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = ServiceRequest(scope, receive, archive=self._archive, number=self._archive.log.begin())
        exchange = LoggedSend(send, lambda: self._log(request, exchange.status, "answered"))
        outcome = "cut"
        try:
            response = await self._answer(request)
            exchange.is_streamed = isinstance(response, Streamed)
            try:
                await self._send(request, response, exchange)
            finally:
                if isinstance(response, Streamed):
                    response.release()
        except ClientDisconnect:
            outcome = "client_gone"
        except CutConnection:
            outcome = "dropped"
        finally:
            if not exchange.is_complete:
                self._log(request, exchange.status, outcome)
        if outcome == "dropped":
            _cut(scope)
            await asyncio.sleep(0.001)  # let uvicorn see that the connection is gone before it misses an answer

    def _log(self, request: ServiceRequest, status: int | None, outcome: str) -> None:
        facts = {
            "method": request.method,
            "path": request.url.path,
            "query": request.url.query,
            "status": status,
            "outcome": outcome,
        }
        try:
            self._archive.log.add("request", [(request.number, facts)])
        except OSError as error:  # the disk is full: no reason to leave anybody without an answer
            traceback.print_exception(error)

    async def _send(self, request: ServiceRequest, response: Response, send: Send) -> None:
        response.headers.setdefault("api-supported-versions", SUPPORTED_VERSIONS)
        if self._archive.settings.cors:
            response.headers.update(_CORS)
        if request.fault(FaultName.HALF_ANSWER):
            body = response.body if hasattr(response, "body") else b""
            await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
            if len(body) > 1:
                await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            raise CutConnection
        await response(request.scope, request.receive, send)

    async def _answer(self, request: ServiceRequest) -> Response:
        try:
            await _fire_faults(request)
            return await self._dispatch(request)
        except Problem as problem:
            response = plain(problem.status, problem.message)
            response.headers.update(problem.headers)
            return response
        except (ClientDisconnect, CutConnection):
            raise
        except OSError as error:
            traceback.print_exception(error)
            return plain(503, UNAVAILABLE)
        except Exception as error:  # noqa: BLE001 - the place where a bug or an asked-for error becomes the service's 500
            traceback.print_exception(error)
            return plain(500, INTERNAL)

    async def _dispatch(self, request: ServiceRequest) -> Response:
        settings = self._archive.settings
        if request.method == "OPTIONS" and settings.cors:
            return Response(status_code=204)
        raw_query = request.url.query
        if "<" in raw_query or "%3c" in raw_query.lower():
            raise Problem(400, "The query string included invalid characters.")
        _check_audit_headers(request)
        route = find_route(request, self._unversioned)
        _check_content_type(request, route)
        tokens = self._tokens if route.action is not Action.NONE else None
        if tokens is not None:
            tokens.authenticate(request)
        if route.json_answer and not accepts_json(request.header("accept")):
            raise Problem(406)
        if route.action is not Action.NONE:
            if request.partition_name is not None:
                await anyio.to_thread.run_sync(enter_partition, request, request.partition_name, route)
            elif settings.partitions and route.partitioned:
                raise Problem(400, "PartitionName value is missing in the route segment.")
            if self._archive.has_expired():
                await anyio.to_thread.run_sync(expire, self._archive)
        if tokens is not None:
            tokens.authorize(request, route.action)
        if route.body is Body.STORE:
            await take_in(request, self._writer)
            if len(request.stored) <= GROUP:
                return route.endpoint(request)
        elif route.body is Body.SMALL:
            request.content = await small_body(request)
        return await anyio.to_thread.run_sync(route.endpoint, request)


async def _fire_faults(request: ServiceRequest) -> None:
    latency = request.fault(FaultName.LATENCY)
    if latency is not None:
        await asyncio.sleep(1.0 if latency.seconds is None else latency.seconds)
    if request.fault(FaultName.DROP_BEFORE_BODY):
        raise CutConnection
    for name, status, message in (
        (FaultName.THROTTLE, 429, "The service is throttling requests."),
        (FaultName.UNAVAILABLE, 503, UNAVAILABLE),
        (FaultName.NOT_FOUND, 404, "The specified instance cannot be found."),
    ):
        fault = request.fault(name)
        if fault is not None:
            headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            raise Problem(status, message, headers=headers)


def _check_content_type(request: ServiceRequest, route: Route) -> None:
    content_type = request.headers.get("content-type")
    if content_type and route.consumes and content_type_of(content_type).get_content_type() not in route.consumes:
        raise Problem(415)


def _check_audit_headers(request: ServiceRequest) -> None:
    # AZURE.md 0.3: at most 10 custom audit headers of at most 2,048 characters.
    audit = [item for item in request.headers.items() if item[0].lower().startswith("x-ms-azuredicom-audit-")]
    if len(audit) > 10:
        raise Problem(
            400,
            "The maximum number of custom audit headers allowed is 10. The number of custom audit headers supplied is "
            f"{len(audit)}.",
        )
    for name, value in audit:
        if len(value) > 2048:
            raise Problem(
                400,
                f"The maximum length of a custom audit header value is 2048. The supplied custom audit header '{name}' "
                f"has length of {len(value)}.",
            )


def _cut(scope: Scope) -> None:
    transport = scope.get(TRANSPORT)
    if transport is None:
        return
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        # A reset, not an orderly end: what a dead proxy or a crashed server looks like. The client may have ended it.
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    transport.abort()
