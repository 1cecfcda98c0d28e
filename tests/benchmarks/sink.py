"""The null STOW sink of the benchmark: started, asked what it was sent, and stopped.

``Sink`` compiles ``sink.c`` on the spot where a C compiler exists; elsewhere the same interface is served from
Python (``python -m tests.benchmarks.sink PORT DELAY_MS``), slower but no less correct. ``sink.c`` opens with what it
answers.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SOURCE = Path(__file__).with_name("sink.c")
READ_BYTES = 1 << 20
HEAD_BYTES = 4096
BOUNDARY = re.compile(r'boundary="?([^";,]+)"?', re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a sink was sent so far; ``seconds`` sums the time from a request's head to the end of its answer."""

    requests: int
    instances: int
    bytes: int
    seconds: float


class Sink:
    """A null sink in a process of its own, for the length of a ``with`` block."""

    def __init__(self, *, delay_ms: int = 0, port: int = 0, compiled: bool | None = None) -> None:
        """``compiled``: True demands the C helper, False the Python one, None takes what is there; ``port`` 0: any."""
        self._delay_ms = delay_ms
        self._compiled = compiled
        self._folder = Path()
        self._process: subprocess.Popen[str] | None = None
        self.port = port

    @property
    def url(self) -> str:
        """The DICOMweb root, as a client is configured with it."""
        return f"http://127.0.0.1:{self.port}/v2"

    @property
    def kind(self) -> str:
        """Say which helper serves: ``C`` or ``Python``."""
        return "C" if self._compiled else "Python"

    def counts(self) -> Counts:
        """Ask what was stored so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/count", timeout=30) as answer:
            return Counts(**json.load(answer))

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="sink-"))
        program = compile_sink(self._folder) if self._compiled is not False else None
        if program is None and self._compiled:
            raise RuntimeError("no C compiler here to build the sink with")
        self._compiled = program is not None
        command = [str(program)] if program else [sys.executable, "-m", "tests.benchmarks.sink"]
        self._process = subprocess.Popen(
            [*command, str(self.port), str(self._delay_ms)],
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


def compile_sink(folder: Path) -> Path | None:
    """Build the C helper into ``folder``; None where there is no compiler or it fails."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    program = folder / "sink"
    done = subprocess.run(
        [compiler, "-O2", "-pthread", "-o", str(program), str(SOURCE)], capture_output=True, check=False
    )
    return program if done.returncode == 0 else None


class _Totals:
    def __init__(self, delay_ms: int) -> None:
        self.delay_seconds = delay_ms / 1000
        self._lock = threading.Lock()
        self._requests = self._instances = self._bytes = 0
        self._seconds = 0.0

    def add(self, *, instances: int, size_bytes: int, seconds: float) -> None:
        with self._lock:
            self._requests += 1
            self._instances += instances
            self._bytes += size_bytes
            self._seconds += seconds

    def as_json(self) -> bytes:
        with self._lock:
            counts = {"requests": self._requests, "instances": self._instances, "bytes": self._bytes}
            return json.dumps({**counts, "seconds": self._seconds}).encode()


class _BrokenOffError(Exception):
    """The body ended early; no answer is due."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, delay_ms: int) -> None:
        super().__init__(("127.0.0.1", port), _Request)
        self.totals = _Totals(delay_ms)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to talk about."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "null-sink"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class has the name
        """Keep quiet: what was stored is counted."""

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
        boundary = BOUNDARY.search(self.headers.get("Content-Type", ""))
        self._seen = 0
        try:
            items = list(self._parts(b"--" + boundary[1].strip().encode())) if boundary else [self._single()]
        except _BrokenOffError:
            self.close_connection = True
            return
        time.sleep(self.server.totals.delay_seconds)
        if None in items:
            self._reply(400, "text/plain", b"a part without a UID")
            return
        content = json.dumps({"00081199": {"vr": "SQ", "Value": items}}, separators=(",", ":")).encode()
        self._reply(200, "application/dicom+json; charset=utf-8", content)
        self.server.totals.add(instances=len(items), size_bytes=self._seen, seconds=time.monotonic() - started)

    def _parts(self, delimiter: bytes) -> Iterator[dict[str, Any] | None]:
        chunks = self._chunks()
        window = bytearray()
        while True:
            at = window.find(delimiter)
            if at < 0:
                del window[: -len(delimiter)]
                window += _next(chunks)
                continue
            del window[: at + len(delimiter)]
            while len(window) < 2:
                window += _next(chunks)
            if window.startswith(b"--"):
                for _ in chunks:
                    pass
                return
            while len(window) < HEAD_BYTES and (more := next(chunks, b"")):
                window += more
            end = window.find(delimiter, 0, HEAD_BYTES)
            yield _name(bytes(window[: end if end >= 0 else HEAD_BYTES]))

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
    with _Server(int(words[0]), int(words[1])) as server:
        print(f"listening {server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
