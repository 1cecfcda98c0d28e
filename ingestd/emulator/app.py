"""The server as an ASGI application: routing, the checks every request goes through, faults, and the log.

The order of refusals is the service's (AZURE.md 1.2, 0.4): route and version, then content type against what the
route consumes (415), token (401), Accept (406), partition (400), role (403), and only then what the endpoint says.
"""

from __future__ import annotations

import asyncio
import json
import socket
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from email.message import Message
from functools import lru_cache, partial
from typing import Any

import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope, Send

from .errors import INTERNAL, UNAVAILABLE, Problem, Vanish
from .faults import FaultName
from .http.accept import accepts_json
from .http.answers import Streamed, plain
from .http.connection import TRANSPORT
from .http.request import SUPPORTED_VERSIONS, Action, Body, Call, Route, match, small_body, version_of
from .routes import ROUTES, UNVERSIONED
from .services.delete import expire
from .services.page import HOME, VIEWER
from .services.stow import request_of
from .services.upload import Spool, body_kind
from .storage.archive import Service
from .storage.store import GROUP, look_at
from .storage.writer import Writer

_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "*, Authorization",
    "Access-Control-Expose-Headers": "*",
    "Access-Control-Max-Age": "600",
    "Cross-Origin-Resource-Policy": "cross-origin",
}


class App:
    """The ASGI application of one server."""

    def __init__(self, service: Service, writer: Writer) -> None:
        self._service = service
        self._writer = writer
        self._unversioned = UNVERSIONED
        if service.settings.auth:
            from .services.tokens import UNVERSIONED as TOKENS  # noqa: PLC0415 - its libraries only where tokens are asked for

            self._unversioned += tuple(TOKENS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        number = self._service.log.begin()
        exchange = _Exchange(send, lambda: self._log(request, number, exchange.status, "answered"))
        outcome = "cut"
        try:
            response = await self._answer(request, number)
            exchange.holds_back = isinstance(response, Streamed)
            try:
                await self._send(scope, receive, exchange, request, response)
            finally:
                if isinstance(response, Streamed):
                    response.release()
        except ClientDisconnect:
            outcome = "client_gone"
        except Vanish:
            outcome = "dropped"
        finally:
            if not exchange.is_complete:
                self._log(request, number, exchange.status, outcome)
        if outcome == "dropped":
            _cut(scope)
            await asyncio.sleep(0.001)  # let uvicorn see that the connection is gone before it misses an answer

    def _log(self, request: Request, number: int, status: int | None, outcome: str) -> None:
        facts = {
            "method": request.method,
            "path": request.url.path,
            "query": request.url.query,
            "status": status,
            "outcome": outcome,
        }
        try:
            self._service.log.add("request", number, facts)
        except OSError as error:  # the disk is full: no reason to leave anybody without an answer
            _report(error)

    async def _send(
        self, scope: Scope, receive: Receive, exchange: _Exchange, request: Request, response: Response
    ) -> None:
        response.headers.setdefault("api-supported-versions", SUPPORTED_VERSIONS)
        if self._service.settings.cors:
            response.headers.update(_CORS)
        facts = {"method": request.method, "path": request.url.path}
        if self._service.faults.take(FaultName.HALF_ANSWER, **facts):
            body = response.body if hasattr(response, "body") else b""
            head = Response(status_code=response.status_code)
            head.raw_headers = response.raw_headers
            await exchange({"type": "http.response.start", "status": head.status_code, "headers": head.raw_headers})
            if len(body) > 1:
                await exchange({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            raise Vanish
        await response(scope, receive, exchange)

    async def _answer(self, request: Request, number: int) -> Response:
        try:
            await self._strike_before(request)
            return await self._dispatch(request, number)
        except Problem as problem:
            response = plain(problem.status, problem.message)
            response.headers.update(problem.headers)
            return response
        except (ClientDisconnect, Vanish):
            raise
        except OSError as error:
            _report(error)
            return plain(503, UNAVAILABLE)
        except Exception as error:  # noqa: BLE001 - the place where a bug or an asked-for error becomes the service's 500
            _report(error)
            return plain(500, INTERNAL)

    async def _strike_before(self, request: Request) -> None:
        faults = self._service.faults
        facts = {"method": request.method, "path": request.url.path}
        latency = faults.take(FaultName.LATENCY, **facts)
        if latency is not None:
            await asyncio.sleep(1.0 if latency.seconds is None else latency.seconds)
        if faults.take(FaultName.DROP_BEFORE_BODY, **facts):
            raise Vanish
        for name, status, message in (
            (FaultName.THROTTLE, 429, "The service is throttling requests."),
            (FaultName.UNAVAILABLE, 503, UNAVAILABLE),
            (FaultName.NOT_FOUND, 404, "The specified instance cannot be found."),
        ):
            fault = faults.take(name, **facts)
            if fault is not None:
                headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
                raise Problem(status, message, headers=headers)

    async def _dispatch(self, request: Request, number: int) -> Response:
        if request.method == "OPTIONS" and self._service.settings.cors:
            return Response(status_code=204)
        raw_query = request.url.query
        if "<" in raw_query or "%3c" in raw_query.lower():
            raise Problem(400, "The query string included invalid characters.")
        _check_audit_headers(request)
        call = Call(service=self._service, request=request, number=number)
        found = _find_route(call, self._unversioned)
        _check_content_type(request, found)
        self._service.guard.authenticate(call, found.action)
        if found.json_answer and not accepts_json(call.header("accept")):
            raise Problem(406)
        if found.action is not Action.NONE:
            if call.in_partition:
                await anyio.to_thread.run_sync(_settle_partition, call, found)
            elif self._service.settings.partitions and found.partitioned:
                raise Problem(400, "PartitionName value is missing in the route segment.")
            if self._service.has_expired():
                await anyio.to_thread.run_sync(expire, self._service)
        self._service.guard.authorize(call, found.action)
        if found.body is Body.STORE:
            return await self._store(call, found)
        if found.body is Body.SMALL:
            call.body = await small_body(request)
        return await anyio.to_thread.run_sync(found.endpoint, call)

    async def _store(self, call: Call, found: Route) -> Response:
        service, request = self._service, call.request
        study_uid = call.optional_uid("study")
        kind = body_kind(call.header("content-type"))
        facts = {"method": request.method, "path": request.url.path}
        cut = service.faults.take(FaultName.DROP_DURING_BODY, **facts)

        def saw(size: int) -> None:
            if cut is not None and size >= (1 if cut.bytes is None else cut.bytes):
                raise Vanish

        slow = service.faults.take(FaultName.BANDWIDTH, **facts)
        call.tags = service.tags()
        look = partial(look_at, service, version=call.version, study_uid=study_uid, tags=call.tags)
        with Spool(
            service.files,
            limit=service.settings.file_limit,
            look_at=lambda path: service.workers.submit(look, path),
        ) as spool:
            body = request.stream() if slow is None else _slowly(request, slow.bytes or 65536)
            await spool.take(kind, body, saw=saw)
            if service.faults.take(FaultName.DROP_AFTER_BODY, **facts):
                raise Vanish
            if fault := service.faults.take(FaultName.ERROR_BEFORE_STORE, **facts):
                raise Problem(fault.status or 500, INTERNAL)
            call.stored = await self._writer.store(request_of(call), spool.parts)
        if len(call.stored) <= GROUP:
            return found.endpoint(call)
        return await anyio.to_thread.run_sync(found.endpoint, call)


class _Exchange:
    """Remembers what has been sent, and has an answer logged before its last byte leaves.

    One without a body is whole with its head, which waits for that. Of a streamed answer each piece is held back until
    the next one: with the last piece the client has all that it was promised, although the server is still to learn
    that nothing follows.
    """

    def __init__(self, send: Send, log: Callable[[], None]) -> None:
        self._send = send
        self._log = log
        self._head: AsgiMessage | None = None
        self._held: bytes | None = None
        self.holds_back = False
        self.status: int | None = None
        self.is_complete = False

    async def __call__(self, message: AsgiMessage) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status in (204, 304) or (b"content-length", b"0") in message["headers"]:
                self._head = message
                return
        elif message["type"] == "http.response.body":
            if not message.get("more_body", False):
                self.is_complete = True
                self._log()
            if self.holds_back:
                self._held, message["body"] = message["body"], self._held
                if self.is_complete:
                    message["body"] = (message["body"] or b"") + self._held
                elif message["body"] is None:
                    return
        if self._head is not None:
            head, self._head = self._head, None
            await self._send(head)
        await self._send(message)


def _find_route(call: Call, unversioned: Sequence[Route]) -> Route:
    decoded = call.request.scope["path"].strip("/")  # a trailing slash is tolerated
    segments = decoded.split("/")
    for candidate in unversioned:
        params = match(candidate.pattern, segments)
        if params is not None and candidate.method == call.request.method:
            call.params = params
            return candidate
    version = version_of(segments[0])
    if version is None:
        if call.request.method == "GET" and (not decoded or call.service.settings.viewer is not None):
            return VIEWER if call.service.settings.viewer is not None else HOME
        raise Problem(404)
    if version == 0:
        raise _unsupported_version(call, segments[0])
    call.version, call.segment = version, segments[0]
    rest = segments[1:]
    if rest[:1] and rest[0].lower() == "partitions" and len(rest) > 2:
        call.in_partition, call.partition_name = True, rest[1]
        rest = rest[2:]
    return _match_route(call, rest)


def _match_route(call: Call, segments: list[str]) -> Route:
    allowed = []
    for candidate in ROUTES:
        params = match(candidate.pattern, segments)
        if params is None or call.version not in candidate.versions:
            continue
        if call.in_partition and not candidate.partitioned:
            continue
        if candidate.method == call.request.method:
            call.params = params
            return candidate
        allowed.append(candidate.method)
    if allowed:
        raise Problem(405, headers={"Allow": ", ".join(sorted(set(allowed)))})
    raise Problem(404)


def _unsupported_version(call: Call, segment: str) -> Problem:
    message = (
        f"The HTTP resource that matches the request URI '{call.request.url}' does not support the API version "
        f"'{segment[1:]}'."
    )
    body = {"error": {"code": "UnsupportedApiVersion", "message": message, "innerError": None}}
    return Problem(400, json.dumps(body), headers={"Content-Type": "application/json; charset=utf-8"})


def _check_content_type(request: Request, found: Route) -> None:
    content_type = request.headers.get("content-type")
    if not content_type or not found.consumes:
        return
    if _media_type(content_type) not in found.consumes:
        raise Problem(415)


@lru_cache(maxsize=256)
def _media_type(content_type: str) -> str:
    message = Message()
    message["Content-Type"] = content_type
    return message.get_content_type()


def _settle_partition(call: Call, found: Route) -> None:
    if not call.service.settings.partitions:
        raise Problem(400, "Data partitions feature is disabled.")
    call.partition_key = _partition_key(call, found)


def _partition_key(call: Call, found: Route) -> int:
    name = call.partition_name
    if not 1 <= len(name) <= 64 or not all(c.isascii() and (c.isalnum() or c in "_.-") for c in name):
        raise Problem(400, "The specified PartitionName is invalid.")
    key = call.service.partition_key(name, create=found.creates_partition)
    if key is None:
        raise Problem(400, "Specified PartitionName does not exist.")
    return key


def _check_audit_headers(request: Request) -> None:
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


async def _slowly(request: Request, per_second: int) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        await asyncio.sleep(len(chunk) / per_second)
        yield chunk


def _cut(scope: dict[str, Any] | Scope) -> None:
    transport = scope.get(TRANSPORT)
    if transport is None:
        return
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        # A reset, not an orderly end: what a dead proxy or a crashed server looks like.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    transport.abort()


def _report(error: Exception) -> None:
    if "asked for" not in str(error):
        traceback.print_exception(error)
