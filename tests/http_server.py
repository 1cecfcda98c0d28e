"""A loopback HTTP server under a test's command, down to single bytes; knows nothing of DICOM or of our client.

    with ScriptedServer(answer(b'{}')) as server:        # each connection's requests get the next step
        ... server.url, server.requests

A step is bytes to send once the request has been read whole, or a function of the ``Conversation``.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

Step = bytes | Callable[["Conversation"], object]


def answer(
    body: bytes = b"",
    *,
    status: str = "200 OK",
    content_type: str = "application/dicom+json",
    headers: dict[str, str] | None = None,
    length: int | None = None,
) -> bytes:
    """A whole response with a Content-Length (a wrong one if ``length`` is given)."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    lines.extend(f"{name}: {value}" for name, value in (headers or {}).items())
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@dataclass
class Request:
    """A request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def method(self) -> str:
        return self.line.split(" ")[0]

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]


class Conversation:
    """One connection, with what a step needs to play its part."""

    def __init__(self, sock: socket.socket, server: ScriptedServer) -> None:
        self.sock = sock
        self.server = server
        self.request = Request("", {})
        self._buffer = b""

    def read_head(self) -> bool:
        """Read a request's head; False when the client has gone."""
        while b"\r\n\r\n" not in self._buffer:
            data = self.sock.recv(65_536)
            if not data:
                return False
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self.request = Request(lines[0], headers)
        self.server.requests.append(self.request)
        return True

    def read_body(self, size: int | None = None) -> bytes:
        """Read the body, or its first ``size`` bytes; what came stays in ``request.body`` if the client breaks off."""
        length = int(self.request.headers.get("content-length", "0"))
        wanted = length if size is None else min(size, length)
        pieces = [self._buffer[:wanted]]
        self._buffer = self._buffer[wanted:]
        have = len(pieces[0])
        try:
            while have < wanted:
                data = self.sock.recv(min(1 << 20, wanted - have))
                if not data:
                    break
                pieces.append(data)
                have += len(data)
        finally:
            self.request.body = b"".join(pieces)
        return self.request.body

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def hang_up(self, *, reset: bool = False) -> None:
        """Close, with a reset if asked."""
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.sock.close()

    def wait_for_end(self) -> bytes:
        """Read and return everything until the client hangs up."""
        pieces, self._buffer = [self._buffer], b""
        try:
            while data := self.sock.recv(1 << 20):
                pieces.append(data)
        except OSError:
            pass
        return b"".join(pieces)


@dataclass
class ScriptedServer:
    """Plays its steps one after the other, one per request; the last is repeated."""

    steps: list[Step] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    connections: int = 0
    tls: ssl.SSLContext | None = None

    def __init__(self, *steps: Step, tls: ssl.SSLContext | None = None) -> None:
        self.steps = list(steps)
        self.requests = []
        self.errors = []
        self.connections = 0
        self.tls = tls
        self._played = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v2"

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        thread = threading.Thread(target=self._accept)
        thread.start()
        self._threads.append(thread)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.add(sock)
            thread = threading.Thread(target=self._talk, args=(sock,))
            thread.start()
            self._threads.append(thread)

    def _talk(self, sock: socket.socket) -> None:
        try:
            if self.tls is not None:
                plain, sock = sock, self.tls.wrap_socket(sock, server_side=True)
                with self._lock:  # the plain one is a husk now
                    self._open.discard(plain)
                    self._open.add(sock)
            conversation = Conversation(sock, self)
            while conversation.read_head():
                with self._lock:
                    step = self.steps[min(self._played, len(self.steps) - 1)]
                    self._played += 1
                if callable(step):
                    step(conversation)
                    if sock.fileno() < 0:
                        return
                else:
                    conversation.read_body()
                    conversation.send(step)
        except (OSError, ssl.SSLError):
            pass  # the client hung up
        except BaseException as error:  # noqa: BLE001 - shown by the test that asks
            self.errors.append(error)
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()


def certificate(
    folder: Path, name: str, *, san: str = "IP:127.0.0.1", ca: tuple[Path, Path] | None = None
) -> tuple[Path, Path]:
    """Make a certificate and key (PEM) with openssl, signed by itself or by ``ca``; the first file also has the key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    command += ["-keyout", str(key), "-out", str(cert), "-addext", f"subjectAltName={san}"]
    if ca is not None:
        command += ["-CA", str(ca[0]), "-CAkey", str(ca[1])]
    subprocess.run(command, check=True, capture_output=True)
    cert.write_text(cert.read_text() + key.read_text())
    return cert, key


def server_context(cert: tuple[Path, Path], *, client_ca: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*cert)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context
