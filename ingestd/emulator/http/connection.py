"""One connection: uvicorn's HTTP protocol, and how much one client may cost before it has asked for anything.

uvicorn bounds neither the length of a request's head nor the time that one takes, a body may stand still for ever, and
so may the reader of an answer. The bounds here are those of Kestrel, under which the original server runs.

Time counts only while it is the client's turn: however slow the server is, nobody is cut for it. Whose turn it is:

  - **to ask**: from the connection's begin, and from the end of an answer, until a head is whole. ``_asking`` runs; a
    head that has begun ends in 408, an idle connection is closed;
  - **to send the body**: while the application receives. ``BodyTimeout`` has the client's patience as an account: time
    takes from it, bytes give to it, so that slow but steady goes on and standing still does not;
  - **to read**: while bytes wait in the transport's buffer. ``_reading`` looks whether enough of them went since it
    looked last. The buffer is asyncio's own while an answer is made, so that the next piece is made while one is sent;
    behind the last one it is none at all, so that any byte that waits counts as a pause.

What a head may hold is counted where the parser hands it on, and, since a parser may take bytes for long before it
hands anything on, also where they come in (``_swallowed``).
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from time import monotonic
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ..errors import Problem

TRANSPORT = "ingestd.transport"  # where the protocol puts the connection, so that a fault can cut it
_MOST_CONNECTIONS = 256
_MOST_FIELDS = 100
_MOST_HEAD_BYTES = 40 << 10  # Kestrel: 32 KB of fields after a line of 8 KB
_LEAST_BYTES_PER_SECOND = 240


class _TooMuch(Exception):
    """The head goes on beyond what is read of one."""


class ClientConnection(HttpToolsProtocol):
    """One client's connection; ``patience_seconds`` is set by ``connections``."""

    patience_seconds: float

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._refusal: tuple[int, str] | None = None
        self._head_is_open = False
        self._head_bytes = self._fields = 0
        self._swallowed = 0  # bytes that the parser took and of which nothing has come out yet
        self._asking: TimerHandle | None = None  # runs while it is the client's turn to ask
        self._reading: TimerHandle | None = None  # runs while it is the client's turn to read
        self.idle_since = 0.0

    @property
    def is_owed_an_answer(self) -> bool:
        """Whether a request is being answered, or waits for it."""
        # uvicorn declares the cycle, and has none before the first request.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        self._wait_for_request()
        if len(self.connections) > _MOST_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._asking, self._reading):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._swallowed += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self.transport.is_closing():
            return
        if self._swallowed > _MOST_HEAD_BYTES:
            self._refuse(431)
        elif self.is_owed_an_answer:
            if self._asking is not None:
                self._asking.cancel()
                self._asking = None
        elif self._asking is None:
            self._wait_for_request()

    def _parse(self, data: bytes) -> None:
        # Nothing is upgraded to; the parser, however, takes no body where that is asked for, as Java's client does
        # ("h2c"). So such a head is read anew without the field, and what follows after it.
        while data:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    raise HttpParserError from None
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets them
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = [b": ".join(field) for field in self.headers if field[0] != b"upgrade"]
        return b"\r\n".join((line, *fields, b"", b""))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    # What the parser calls.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[TRANSPORT] = self.transport  # type: ignore[literal-required]
        self._head_is_open = True
        self._head_bytes = self._fields = self._swallowed = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url), status=414)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count fields, also behind the body; those are none of the head's (RFC 9110 §6.5.1)."""
        self._fields += 1
        self._count(len(name) + len(value) + len(": \r\n"), status=431)
        if self._head_is_open:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._head_is_open, self._swallowed = False, 0
        self.transport.set_write_buffer_limits()  # asyncio's own, so that the next piece is made while one is sent
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._swallowed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._swallowed = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _count(self, size: int, *, status: int) -> None:
        self._head_bytes += size
        if self._head_bytes > _MOST_HEAD_BYTES or self._fields > _MOST_FIELDS:
            self._refusal = (status, "")
            raise _TooMuch

    # What uvicorn calls.

    def on_response_complete(self) -> None:
        """Note since when nobody has asked anything, and wait for the reader of the last bytes too."""
        self.idle_since = self.loop.time()
        self.transport.set_write_buffer_limits(high=0)  # any byte that waits is a pause from here on
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser could not read, or was told to read no further."""
        self._refuse(*(self._refusal or (400, msg)))

    # Patience and its end.

    def _refuse(self, status: int, message: str = "") -> None:
        if self.is_owed_an_answer:
            self.transport.abort()  # another answer must not stand in the middle of that one
            return
        head = [b": ".join(field) for field in self.server_state.default_headers]
        head += [b"content-type: text/plain; charset=utf-8", b"content-length: %d" % len(message), b"connection: close"]
        self.transport.write(STATUS_LINE[status] + b"\r\n".join(head) + b"\r\n\r\n" + message.encode())
        self.transport.close()

    def _wait_for_request(self) -> None:
        self._asking = self.loop.call_later(self.patience_seconds, self._end_asking)

    def _end_asking(self) -> None:
        if self._head_is_open:
            self._refuse(408)
        else:
            self.transport.close()

    def _wait_for_reader(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._reading = self.loop.call_later(self.patience_seconds, self._end_reading, waiting)

    def _end_reading(self, waited: int) -> None:
        read = waited - self.transport.get_write_buffer_size()
        if read < self.patience_seconds * _LEAST_BYTES_PER_SECOND:
            self.transport.abort()
        else:
            self._wait_for_reader()

    def _make_room(self) -> None:
        """Let go of whoever has had all answers and asked nothing for longest, else of this one."""
        others = (each for each in self.connections if isinstance(each, ClientConnection) and each is not self)
        idle = [each for each in others if not (each.is_owed_an_answer or each.transport.get_write_buffer_size())]
        if idle:
            longest = min(idle, key=lambda each: each.idle_since)
            longest.transport.abort()
        else:
            longest = self
            self._refuse(503)
        self.connections.discard(longest)  # now: more may come before asyncio tells of its end


def connections(patience_seconds: float) -> type[ClientConnection]:
    """The protocol of a server that waits that long for a head, and for a body or a reader that stands still."""
    return type("Connection", (ClientConnection,), {"patience_seconds": patience_seconds})


class BodyTimeout:
    """Answers 408 for a body that stands still, or comes at less than 240 bytes a second for long."""

    def __init__(self, app: ASGIApp, *, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; its app meets Problem 408 where it receives."""
        left = self._seconds  # what the client has of our patience: time takes, bytes give
        is_awaited = True

        async def receive_in_time() -> Message:
            nonlocal left, is_awaited
            if not is_awaited:
                return await receive()
            began_at = monotonic()
            try:
                async with asyncio.timeout(left):
                    message = await receive()
            except TimeoutError as error:
                text = "Reading the request body timed out due to data arriving too slowly."
                raise Problem(408, text, headers={"Connection": "close"}) from error
            is_awaited = bool(message.get("more_body"))
            gained = len(message.get("body", b"")) / _LEAST_BYTES_PER_SECOND
            left = min(self._seconds, left + gained - (monotonic() - began_at))
            return message

        async def send_from_now_on(message: Message) -> None:
            nonlocal is_awaited
            is_awaited = False  # who answers listens for the client's leaving only
            await send(message)

        await self._app(scope, receive_in_time, send_from_now_on)
