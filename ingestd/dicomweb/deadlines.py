"""The one clock that can end a request: requests and urllib3 only limit single socket operations.

A server that sends a byte a second, or reads one, or floods ``100 Continue``, holds a call for ever whatever its
timeouts. So each request in flight has a ``Flight`` with a deadline of its own, and one thread of the process looks at
all of them and shuts the socket of any that is late; the call then ends with an ordinary error, in its own thread.

While a caller works on what it has read, or a body waits for its place on a line that is held to a rate, the clock
stands still: neither is a slow server.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from ingestd import threads
from ingestd.clocks import boottime
from ingestd.dicomweb.pacing import Pace

LOOK_EVERY_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """How long a request may take: single socket operations, and the whole of it.

    ``connect`` also bounds each send (requests applies it so), so it must cover a stall in the middle of an upload.
    A request may take ``total`` plus its size divided by ``min_rate``, in bytes per second; ``idle`` is how long an
    unused connection is kept.
    """

    connect: timedelta = timedelta(seconds=30)
    read: timedelta = timedelta(seconds=60)
    total: timedelta = timedelta(seconds=60)
    min_rate: int = 32_768
    idle: timedelta = timedelta(seconds=30)

    def seconds_for(self, size_bytes: int) -> float:
        """Say how many seconds the transfer of so many bytes may take in all."""
        return self.total.total_seconds() + size_bytes / self.min_rate


class Flight:
    """One request on its way: its socket, its deadline, and how much of its body may have left this machine."""

    def __init__(
        self,
        timeouts: Timeouts,
        *,
        size_bytes: int,
        pace: Pace | None = None,
        may_send: Callable[[], bool] = lambda: True,
    ) -> None:
        self.timeouts = timeouts
        self.may_send = may_send
        self.pace = pace  # of its body; None: as fast as the line is
        self.size_bytes = size_bytes  # of the body
        self.body_bytes_left = 0
        self.is_late = False
        self._received = 0
        self._waited = 0.0
        self._wait_began = 0.0
        self._expires_at: float | None = boottime() + timeouts.seconds_for(size_bytes)
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        _watchdog.watch(self)
        _local.flight = self
        return self

    def __exit__(self, *_exc: object) -> None:
        self.leave_thread()
        self.finish()

    @staticmethod
    def current() -> Flight | None:
        """Return the request that this thread is sending, if any."""
        flight: Flight | None = getattr(_local, "flight", None)
        return flight

    def leave_thread(self) -> None:
        """Stop being this thread's current request, and the clock until the next ``begin_wait``: the head is there."""
        if self.current() is self:
            _local.flight = None
        self._expires_at = None

    def attach(self, sock: socket.socket) -> None:
        """Take the socket that carries this request; raises TimeoutError if it is too late already.

        It is a duplicate that is kept, so that shutting it can never hit a number that was closed and reused.
        """
        duplicate = socket.socket(fileno=os.dup(sock.fileno()))
        with _watchdog.lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = duplicate
            if self.is_late:
                duplicate.shutdown(socket.SHUT_RDWR)
        if self.is_late:
            raise TimeoutError

    def abort(self) -> None:
        """Break the connection with a reset, so that no server takes what left for a whole request."""
        with _watchdog.lock:
            if self._socket is not None:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def begin_wait(self) -> None:
        """Let the clock run: the caller now waits for the server."""
        self._wait_began = boottime()
        allowed = self.timeouts.seconds_for(self._received)
        self._expires_at = self._wait_began + allowed - self._waited

    def end_wait(self, received: int) -> None:
        """Stop the clock: so many bytes came."""
        self._expires_at = None
        self._waited += boottime() - self._wait_began
        self._received += received

    def wait_for_place(self, size_bytes: int) -> None:
        """Wait until so many bytes of the body may leave; the clock stands still meanwhile."""
        seconds = self.pace.take(size_bytes) if self.pace is not None else 0.0
        if seconds and self._expires_at is not None:
            began, expires_at, self._expires_at = boottime(), self._expires_at, None
            time.sleep(seconds)
            self._expires_at = expires_at + boottime() - began

    def finish(self) -> None:
        """Forget the socket and the deadline."""
        with _watchdog.lock:
            _watchdog.watched.discard(self)
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def look(self, now: float) -> None:
        """Shut the socket if the deadline has passed; called by the watchdog, which holds the lock."""
        if self.is_late or self._expires_at is None or now < self._expires_at:
            return
        self.is_late = True
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other side was faster


class _Watchdog:
    """One daemon thread, started with the first request, asleep while none is in flight."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.watched: weakref.WeakSet[Flight] = weakref.WeakSet()  # an answer that nobody closed may go
        self._some = threading.Condition(self.lock)
        self._thread: threading.Thread | None = None

    def watch(self, flight: Flight) -> None:
        with self.lock:
            self.watched.add(flight)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="dicomweb-deadlines", daemon=True)
                threads.start(self._thread)
            elif len(self.watched) == 1:
                self._some.notify()

    def _run(self) -> None:
        with self.lock:
            while True:
                while not self.watched:
                    self._some.wait()
                now = boottime()
                for flight in self.watched:
                    flight.look(now)
                self._some.wait(LOOK_EVERY_SECONDS)


_watchdog = _Watchdog()
_local = threading.local()
