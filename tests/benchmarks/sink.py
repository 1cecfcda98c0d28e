"""The null STOW sink of the benchmark: started, asked what it was sent, and stopped.

``Sink`` compiles ``sink.c`` on the spot where a C compiler exists; elsewhere the same interface is served from
Python (``python -m tests.benchmarks.sink PORT DELAY_MS [PEM]``), slower but no less correct. ``sink.c`` opens with what
it answers.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ingestd.dicomweb.multipart import content_type_params

SOURCE = Path(__file__).with_name("sink.c")
READ_BYTES = 1 << 20
HEAD_BYTES = 4096
# What follows "--boundary" on its line: a delimiter's padding and end, or the closing one's, which may end the body.
LINE_BYTES = 256
REST_OF_LINE = re.compile(rb"(?P<closing>--)?[ \t]{0,250}(\r\n|(?(closing)\Z|(?!)))")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a sink shows under TLS: a PEM file with certificate and key, and one with the authority that signed it."""

    pem: Path
    authority: Path


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a sink was sent so far; ``seconds`` sums the time from a request's head to the end of its answer.

    ``handshakes`` are those of TLS connections that were used for more than asking this, ``resumed`` how many of them
    went on with an earlier session.
    """

    requests: int
    instances: int
    bytes: int
    seconds: float
    handshakes: int
    resumed: int


def local_certificate(folder: Path) -> Certificate:
    """Make a certificate for 127.0.0.1 and the authority that signs it, in ``folder``."""
    from tests.http_server import certificate  # brings pytest, which the sink's own process starts without

    authority = certificate(folder, "authority")
    server, _ = certificate(folder, "server", ca=authority)
    return Certificate(pem=server, authority=authority[0])


class Sink:
    """A null sink in a process of its own, for the length of a ``with`` block."""

    def __init__(
        self,
        *,
        delay_ms: int = 0,
        port: int = 0,
        compiled: bool | None = None,
        tls: Certificate | None = None,
    ) -> None:
        """``compiled``: True demands the C helper, False the Python one, None takes what is there; ``port`` 0: any.

        With ``tls`` it speaks TLS, for which the C helper needs OpenSSL's headers (Debian: libssl-dev).
        """
        self._delay_ms = delay_ms
        self._certificate = tls
        self._compiled = compiled
        self._folder = Path()
        self._process: subprocess.Popen[str] | None = None
        self.port = port

    @property
    def url(self) -> str:
        """The DICOMweb root, as a client is configured with it."""
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{self.port}/v2"

    @property
    def kind(self) -> str:
        """Say which helper serves: ``C`` or ``Python``."""
        return "C" if self._compiled else "Python"

    def counts(self) -> Counts:
        """Ask what was stored so far."""
        with urllib.request.urlopen(self.url.removesuffix("/v2") + "/count", timeout=30, context=self.trust) as answer:
            return Counts(**json.load(answer))

    @property
    def trust(self) -> ssl.SSLContext | None:
        """What a client needs to believe the certificate; None where there is no TLS."""
        return ssl.create_default_context(cafile=self._certificate.authority) if self._certificate else None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="sink-"))
        tls = self._certificate is not None
        program = compile_sink(self._folder, tls=tls) if self._compiled is not False else None
        if program is None and self._compiled:
            raise RuntimeError("no C compiler here, or no headers of OpenSSL, to build the sink with")
        self._compiled = program is not None
        command = [str(program)] if program else [sys.executable, "-m", "tests.benchmarks.sink"]
        self._process = subprocess.Popen(
            [
                *command,
                str(self.port),
                str(self._delay_ms),
                *([str(self._certificate.pem)] if self._certificate else []),
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=SOURCE.parents[2],
        )
        assert self._process.stdout is not None, "it is a pipe"
        said = self._process.stdout.readline().split()
        if said[:1] != ["listening"]:
            raise RuntimeError(f"the sink did not start: {said}")
        self.port = int(said[1])
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            assert self._process.stdout is not None, "it is a pipe"
            self._process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def compile_sink(folder: Path, *, tls: bool = False) -> Path | None:
    """Build the C helper into ``folder``; None where there is no compiler or it fails, as without OpenSSL's headers."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    program = folder / "sink"
    command = [compiler, "-O2", "-pthread", "-o", str(program), str(SOURCE)]
    command += ["-DTLS", "-lssl", "-lcrypto"] if tls else []
    done = subprocess.run(command, capture_output=True, check=False)
    return program if done.returncode == 0 else None


class _Totals:
    def __init__(self, delay_ms: int) -> None:
        self.delay_seconds = delay_ms / 1000
        self._lock = threading.Lock()
        self._counts = Counts(requests=0, instances=0, bytes=0, seconds=0.0, handshakes=0, resumed=0)

    def add(self, **more: float) -> None:
        with self._lock:
            self._counts = replace(self._counts, **{name: getattr(self._counts, name) + n for name, n in more.items()})

    def as_json(self) -> bytes:
        with self._lock:
            return json.dumps(asdict(self._counts)).encode()


class _BrokenOffError(Exception):
    """The body ended early; no answer is due."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, delay_ms: int, pem: str | None) -> None:
        super().__init__(("127.0.0.1", port), _Request)
        self.totals = _Totals(delay_ms)
        self._context: ssl.SSLContext | None = None
        if pem is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(pem)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in the connection's own thread, so that the next one is accepted meanwhile."""
        if self._context is None:
            super().finish_request(request, client_address)
            return
        with self._context.wrap_socket(request, server_side=True) as sock:
            super().finish_request(sock, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to talk about."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "null-sink"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server
    _is_counted = False

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class has the name
        """Keep quiet: what was stored is counted."""

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed and self.path != "/count" and isinstance(self.connection, ssl.SSLSocket) and not self._is_counted:
            self._is_counted = True
            self.server.totals.add(handshakes=1, resumed=int(bool(self.connection.session_reused)))
        return parsed

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/changefeed"):
            self._reply(200, "application/json; charset=utf-8", b"[]")
        elif path == "/count":
            self._reply(200, "application/json", self.server.totals.as_json())
        elif path.endswith("/changefeed/latest") or ("/studies" in path and "/instances/" not in path):
            self._reply(204)
        else:
            self._reply(404, "text/plain", b"nothing is kept here")

    def do_DELETE(self) -> None:
        self._reply(404, "text/plain", b"nothing is kept here")

    def do_POST(self) -> None:
        started = time.monotonic()
        media_type, parameters = content_type_params(self.headers.get("Content-Type", ""))
        boundary = parameters.get("boundary") if media_type.startswith("multipart/") else None
        self._seen = 0
        try:
            items = list(self._parts(b"\r\n--" + boundary.encode())) if boundary else [self._single()]
        except _BrokenOffError:
            self.close_connection = True
            return
        time.sleep(self.server.totals.delay_seconds)
        if not items or None in items:
            self._reply(400, "text/plain", b"a part without a UID")
            return
        content = json.dumps({"00081199": {"vr": "SQ", "Value": items}}, separators=(",", ":")).encode()
        # Whoever has the answer finds it counted.
        self.server.totals.add(requests=1, instances=len(items), bytes=self._seen)
        self._reply(200, "application/dicom+json; charset=utf-8", content)
        self.server.totals.add(seconds=time.monotonic() - started)

    def _parts(self, line: bytes) -> Iterator[dict[str, Any] | None]:
        chunks = self._chunks()
        window = bytearray(b"\r\n")  # the body's first byte is at the start of a line, too
        while True:
            at = window.find(line)
            if at < 0:
                del window[: -len(line)]
                window += _next(chunks)
                continue
            del window[:at]
            _fill(window, chunks, len(line) + LINE_BYTES)
            rest = REST_OF_LINE.match(bytes(window[len(line) : len(line) + LINE_BYTES]))
            del window[: len(line)]
            if rest is None:
                continue
            if rest["closing"]:
                for _ in chunks:
                    pass
                return
            _fill(window, chunks, HEAD_BYTES + len(line) + LINE_BYTES)
            view = bytes(window[: HEAD_BYTES + len(line) + LINE_BYTES])
            ends = (hit.start() for hit in re.finditer(re.escape(line), view) if REST_OF_LINE.match(view, hit.end()))
            yield _name(view[: min(next(ends, HEAD_BYTES), HEAD_BYTES)])

    def _single(self) -> dict[str, Any] | None:
        head = b""
        for chunk in self._chunks():
            head += chunk[: max(0, HEAD_BYTES - len(head))]
        return _name(head)

    def _chunks(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().partition(b";")[0] or b"0", 16):
                yield from self._exactly(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            yield from self._exactly(int(self.headers.get("Content-Length", "0")))

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            # read1 gives what is there; read would wait for all of it.
            chunk = self.rfile.read1(min(size, READ_BYTES))
            if not chunk:
                raise _BrokenOffError
            size -= len(chunk)
            self._seen += len(chunk)
            yield chunk

    def _reply(self, status: int, content_type: str = "", content: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("api-supported-versions", "1, 2")
        if content_type:
            self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


def _next(chunks: Iterator[bytes]) -> bytes:
    chunk = next(chunks, None)
    if chunk is None:
        raise _BrokenOffError
    return chunk


def _fill(window: bytearray, chunks: Iterator[bytes], size: int) -> None:
    while len(window) < size and (more := next(chunks, b"")):
        window += more


def _name(head: bytes) -> dict[str, Any] | None:
    instance = _uid(head, b"\x02\0\x03\0") or _uid(head, b"\x08\0\x18\0")
    if not instance:
        return None
    sop_class = _uid(head, b"\x02\0\x02\0") or _uid(head, b"\x08\0\x16\0")
    return {
        "00081150": {"vr": "UI", "Value": [sop_class]},
        "00081155": {"vr": "UI", "Value": [instance]},
        "00741048": {"vr": "SQ"},
    }


def _uid(head: bytes, tag: bytes) -> str:
    at = head.find(tag)
    if at < 0 or at + 8 > len(head):
        return ""
    length_at = at + 6 if head[at + 4 : at + 6] == b"UI" else at + 4
    length = int.from_bytes(head[length_at : length_at + 2], "little")
    value = head[at + 8 : at + 8 + length].rstrip(b"\0 ")
    return value.decode() if re.fullmatch(rb"[0-9.]{1,64}", value) else ""


def main(words: list[str]) -> None:
    """Serve from Python until killed."""
    port, delay_ms, *pem = words
    with _Server(int(port), int(delay_ms), pem[0] if pem else None) as server:
        print(f"listening {server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
