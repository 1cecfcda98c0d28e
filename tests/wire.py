"""A wire to a PostgreSQL server that can be slow, cut, or lose a COMMIT: a proxy on the loopback interface.

To a DICOMweb server, too, which it can keep one of several clients from.

Of the protocol (PostgreSQL's frontend/backend protocol 3.0, unencrypted) so much is read as shows a COMMIT sent as a
simple query, which is how psycopg sends it, and the end of the answer to it.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import struct
import threading
from asyncio import Queue, StreamReader, StreamWriter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104
_READY_FOR_QUERY = b"Z\0\0\0\5"
Pieces = Queue[tuple[float, bytes]]


@dataclass
class _Cut:
    """What is to happen at a COMMIT."""

    forwarded: bool
    skip: int
    done: threading.Event = field(default_factory=threading.Event)
    # Set: the connection lasts, and what was held goes on.
    goes_on: asyncio.Event | None = None
    of: bytes = b""  # what its transaction has to have sent


class _CutHereError(Exception):
    """The connection is to be reset now."""


class Wire:
    """One port that leads to ``to_port``, served by a thread of its own.

    Each piece arrives ``delay_seconds`` later than it was sent, in either direction: 0.001 makes a round trip 2 ms
    longer. It may be changed, as may ``to_port``, which is for new connections.
    """

    def __init__(self, to_port: int, *, delay_seconds: float = 0.0) -> None:
        self.to_port = to_port
        self.delay_seconds = delay_seconds
        # Never listening, it keeps the port ours while connections are refused.
        self._place = _bound(0)
        self.port: int = self._place.getsockname()[1]
        # select(2) waits for microseconds, where epoll(7) rounds up to the next millisecond.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire", daemon=True)
        self._server: asyncio.Server | None = None
        self._carried: set[asyncio.Task[Any]] = set()
        self._armed: _Cut | None = None
        self.barred = b""  # whoever sends this is cut off there

    def __enter__(self) -> Self:
        self._thread.start()
        self.refuse(False)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.refuse(True)
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._place.close()

    def refuse(self, refused: bool) -> None:
        """Refuse new connections, as a host on which nothing listens, or take them again; those there are stay."""
        self._do(self._refuse(refused))

    def is_used(self) -> bool:
        """Whether anybody is connected."""
        return bool(self._carried)

    def cut(self) -> None:
        """Reset all connections, at both ends."""
        self._do(self._cut())

    def cut_at_commit(self, *, skip: int = 0) -> threading.Event:
        """Have the next COMMIT, after so many others, reach the server and its client be reset instead of answered.

        The event is set by the time that the client sees it; the server has answered by then.
        """
        return self._arm(_Cut(forwarded=True, skip=skip))

    def lose_commit(self, *, skip: int = 0) -> threading.Event:
        """Have both ends be reset instead of the next COMMIT, after so many others, reaching the server."""
        return self._arm(_Cut(forwarded=False, skip=skip))

    @contextmanager
    def held_commit(self, *, forwarded: bool, of: bytes) -> Iterator[threading.Event]:
        """Hold the next COMMIT, or with ``forwarded`` the answer to it, until the end of the block.

        It is that of a transaction that has sent these bytes. The event is set once there is something to hold.
        """
        goes_on = asyncio.Event()
        try:
            yield self._arm(_Cut(forwarded=forwarded, skip=0, goes_on=goes_on, of=of))
        finally:
            self._armed = None
            self._loop.call_soon_threadsafe(goes_on.set)

    def _arm(self, cut: _Cut) -> threading.Event:
        self._armed = cut
        return cut.done

    def due(self, transaction: bytes) -> _Cut | None:
        """What is to happen at the COMMIT that has just come, of this transaction; it is counted by this."""
        cut = self._armed
        if cut is not None and cut.of not in transaction:
            return None
        if cut is not None and cut.skip:
            cut.skip -= 1
            return None
        self._armed = None
        return cut

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(timeout=10)

    async def _refuse(self, refused: bool) -> None:
        if refused and self._server is not None:
            self._server.close()
            self._server = None
        elif not refused and self._server is None:
            listening = _bound(self.port)
            self._server = await asyncio.start_server(self._serve, sock=listening)

    async def _cut(self) -> None:
        cut = set(self._carried)
        for link in cut:
            link.cancel()
        await asyncio.gather(*cut, return_exceptions=True)
        await asyncio.sleep(0)  # in which their sockets are closed

    async def _serve(self, *client: StreamReader | StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._carried.add(link)
        try:
            await _Link(self).carry(*client)
        except asyncio.CancelledError:
            pass  # it was cut
        finally:
            self._carried.discard(link)


class _Link:
    """One connection: two ends, two directions."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._cut: _Cut | None = None
        self._sent = _Frontend()
        self._answer = b""

    async def carry(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Carry what comes from either end until both have said all, or one is reset: then the other one is too."""
        ends = [writer]
        broken = True
        up, down = Pieces(64), Pieces(64)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._wire.to_port)
            ends.append(server_writer)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._take(reader, up))
                tasks.create_task(self._give(up, server_writer, self._is_to_go_up))
                tasks.create_task(self._take(server_reader, down))
                tasks.create_task(self._give(down, writer, self._is_to_go_down))
            broken = False
        except* (OSError, _CutHereError):
            pass
        finally:
            if self._cut is not None:
                self._cut.done.set()  # first, so that whoever sees the reset finds it set
            for end in ends:
                _end(end, reset=broken)

    async def _take(self, reader: StreamReader, pieces: Pieces) -> None:
        clock = asyncio.get_running_loop()
        piece = b"some"
        while piece:
            piece = await reader.read(1 << 16)
            await pieces.put((clock.time() + self._wire.delay_seconds, piece))

    async def _give(
        self, pieces: Pieces, writer: StreamWriter, is_to_go: Callable[[bytes], Coroutine[Any, Any, bool]]
    ) -> None:
        clock = asyncio.get_running_loop()
        piece = b"some"
        while piece:
            due_at, piece = await pieces.get()
            await asyncio.sleep(due_at - clock.time())
            if await is_to_go(piece):
                writer.write(piece)
                await writer.drain()
        writer.write_eof()

    async def _is_to_go_up(self, piece: bytes) -> bool:
        if self._wire.barred and self._wire.barred in piece:
            raise _CutHereError
        if self._sent.has_commit(piece):
            self._cut = self._wire.due(self._sent.take_transaction())
            if self._cut is not None and not self._cut.forwarded:
                await self._hold(self._cut)
        return True

    async def _hold(self, cut: _Cut) -> None:
        if cut.goes_on is None:
            raise _CutHereError
        cut.done.set()
        await cut.goes_on.wait()
        self._cut = None

    async def _is_to_go_down(self, piece: bytes) -> bool:
        if self._cut is None or not self._cut.forwarded:
            return True
        if self._cut.goes_on is not None:
            await self._hold(self._cut)
            return True
        self._answer += piece
        if not piece or _READY_FOR_QUERY in self._answer:
            raise _CutHereError
        return False


class _Frontend:
    """What a client has sent, message by message."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._is_in = False
        self._transaction = bytearray()

    def has_commit(self, piece: bytes) -> bool:
        """Whether this piece brought the end of a COMMIT."""
        self._rest += piece
        found = False
        while message := self._message():
            self._transaction += message
            if not self._is_in:
                # A request to encrypt, which the server declines, or the start.
                self._is_in = int.from_bytes(message[4:8]) not in (_SSL_REQUEST, _GSS_REQUEST)
            elif message[:1] == b"Q":
                found = found or message[5:].strip(b"\0; \n").upper() == b"COMMIT"
        return found

    def take_transaction(self) -> bytes:
        """All that was sent since this was called last."""
        taken, self._transaction = bytes(self._transaction), bytearray()
        return taken

    def _message(self) -> bytes:
        """Take off the next message that is whole; empty where none is."""
        head = 1 if self._is_in else 0  # the first ones have no type before the length
        size = head + int.from_bytes(self._rest[head : head + 4])
        if len(self._rest) < max(size, head + 4):
            return b""
        message = bytes(self._rest[:size])
        del self._rest[:size]
        return message


def _end(writer: StreamWriter, *, reset: bool) -> None:
    if not reset:
        writer.close()
        return
    with suppress(OSError):  # it may be closed already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _bound(port: int) -> socket.socket:
    # With its protocol named, for asyncio to send at once what comes: else a long answer waits 40 ms for an ACK.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound
