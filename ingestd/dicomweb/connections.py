"""urllib3 connections as a sender of large bodies needs them, and the requests session that uses them.

What differs from requests as it comes: no environment (a ``.netrc`` entry would replace our token), no redirects (a
POST answered 302 would become a GET without a body and return 200), no retries, no cookies; a deadline for the whole
request (``deadlines``); a count of the body bytes that may have left; keepalive and TCP_USER_TIMEOUT; an idle
connection is not used again; and an answer that comes while the body is still on its way is read at once instead of
being lost in the reset that follows it.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from datetime import timedelta
from http import cookiejar
from typing import TYPE_CHECKING, Any

import requests
from requests_toolbelt.adapters.socket_options import TCPKeepAliveAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.wait import wait_for_read

from ingestd.clocks import boottime
from ingestd.dicomweb.deadlines import Flight, Timeouts
from ingestd.dicomweb.errors import SendingEnded

if TYPE_CHECKING:
    from urllib3.response import HTTPResponse

# How long an answer is waited for after the server has stopped reading our body.
ANSWER_AFTER_STALL_SECONDS = 5.0
# A socket's timeout holds for a whole ``sendall``, so a slow line must not be given much at once: 30 s for this many
# bytes is 8.7 kB/s, well below the least rate that a request's deadline allows.
SEND_SIZE = 262_144


class _EarlyAnswer(Exception):
    """The server answered, or hung up, before it had the whole body."""


class _FinalResponse(http.client.HTTPResponse):
    """Passes over every interim answer (RFC 9110 §15.2), not only 100 as http.client does."""

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]  # private, and so without a type
            if status == http.client.CONTINUE or not 100 < status < 200:
                return version, status, reason
            http.client.parse_headers(self.fp)


class _Connection(HTTPConnection):
    """What a connection does more than urllib3's."""

    response_class = _FinalResponse
    idle: timedelta = timedelta(seconds=30)
    _used_at: float = 0.0
    _in_body: bool = False
    _is_spent: bool = False  # it holds the rest of a request that the server did not want
    _stalled: bool = False

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        flight = Flight.current()
        if flight is not None:
            flight.attach(sock)  # before a TLS handshake, which may drip as well
        self._is_spent = self._stalled = False
        self._used_at = boottime()
        return sock

    @property
    def is_connected(self) -> bool:
        """False for a connection that should not carry another request; the pool then opens a new one."""
        idle_seconds = boottime() - self._used_at
        return not self._is_spent and idle_seconds < self.idle.total_seconds() and super().is_connected

    def request(self, *args: Any, **kwargs: Any) -> None:
        flight = Flight.current()
        if flight is not None and self.sock is not None:
            flight.attach(self.sock)
        self._in_body = False
        try:
            super().request(*args, **kwargs)
        except _EarlyAnswer:
            self._is_spent = True
        except TimeoutError:
            if not self._in_body:
                raise
            # It reads no more, but may have said why (413): look once, briefly, before giving up.
            self._is_spent = self._stalled = True
        except OSError:
            self._is_spent = True
            raise
        finally:
            self._in_body = False

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        super().endheaders(*args, **kwargs)
        self._in_body = True

    def send(self, data: Any) -> None:
        flight = Flight.current()
        if not self._in_body or flight is None:
            super().send(data)
            return
        view = memoryview(data)
        size = SEND_SIZE if flight.pace is None else min(SEND_SIZE, flight.pace.piece)
        while view:
            piece, view = view[:size], view[size:]
            flight.wait_for_place(len(piece))
            if not flight.may_send():
                raise SendingEnded
            if self._has_answer():
                raise _EarlyAnswer
            flight.body_bytes_left += len(piece)  # before sending: what was begun may have left
            super().send(piece)

    def _has_answer(self) -> bool:
        """Whether a final answer (or the end) waits to be read. Under TLS that cannot be told without reading."""
        if self.sock is None or type(self.sock) is not socket.socket or not wait_for_read(self.sock, 0.0):
            return False
        try:
            head = self.sock.recv(10, socket.MSG_PEEK)
        except OSError:
            return False
        # An interim answer (1xx) is no reason to stop: ``HTTP/1.1 1``.
        return not (len(head) == 10 and head.startswith(b"HTTP/1.") and head.endswith(b"1"))

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # urllib3 changes the type as well
        if self._stalled:
            self.timeout = ANSWER_AFTER_STALL_SECONDS
        response = super().getresponse()
        self._used_at = boottime()
        return response


class _TlsConnection(_Connection, HTTPSConnection):
    """The same under TLS, with the context of the connection before it while the files behind that are as they were.

    To read the public authorities takes 18 ms of CPU. A context is for one thread: urllib3 writes to it at each use.
    """

    kept: list[tuple[list[Any], ssl.SSLContext]]  # the thread's last context, and the files as they were before it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._files = (self.ca_certs, self.ca_cert_dir, self.cert_file, self.key_file)

    def connect(self) -> None:
        seen = [_seen(file) for file in self._files]
        known = next((context for files, context in self.kept if files == seen), None)
        self.ssl_context = known
        # urllib3 reads what is named here into the context, whoever made that.
        self.ca_certs, self.ca_cert_dir, self.cert_file, self.key_file = self._files if known is None else [None] * 4
        super().connect()
        assert isinstance(self.sock, ssl.SSLSocket), "an https connection has no other"
        self.kept[:] = [(seen, self.sock.context)]


def _seen(file: str | None) -> tuple[str, int, int, int, int] | None:
    if file is None:
        return None
    found = os.stat(file)  # noqa: PTH116 - a link is followed: renewal often is another target
    return file, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class _Adapter(TCPKeepAliveAdapter):  # type: ignore[misc]  # requests-toolbelt has no types
    """Mounts our connections; requests' own adapter has no retries by default, and that stays so."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._idle = timeouts.idle
        user_timeout_ms = int(max(timeouts.connect, timeouts.read).total_seconds() * 1000)
        options = [
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            # Sent but never acknowledged: the connection is dead, whatever the state of our buffers.
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms),
        ]
        super().__init__(socket_options=options, idle=20, interval=10, count=3)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        plain = type("_Plain", (_Connection,), {"idle": self._idle})
        tls = type("_Tls", (_TlsConnection,), {"idle": self._idle, "kept": []})
        self.poolmanager.pool_classes_by_scheme = {
            "http": type("_PlainPool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
            "https": type("_TlsPool", (HTTPSConnectionPool,), {"ConnectionCls": tls}),
        }


class HttpSession(requests.Session):
    """A requests session that does what it is told and nothing more. For one thread."""

    def __init__(self, *, timeouts: Timeouts, verify: bool | str, cert: tuple[str, str] | str | None) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self.verify = verify
        self.cert = cert
        self.headers.clear()
        self.headers.update({"User-Agent": "ingestd", "Accept-Encoding": "identity", "Accept": "*/*"})
        self.mount("https://", _Adapter(timeouts))
        self.mount("http://", _Adapter(timeouts))

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002 - requests' signature
        """Say that nothing is a redirect: requests would read the whole body of one even when told not to follow."""
        return None
