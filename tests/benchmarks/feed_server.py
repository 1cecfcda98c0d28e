"""A server that proves: it reads what it is posted, keeps the UIDs alone, and tells of them in a change feed (v2).

``FeedServer`` runs it in a process of its own (``python -m tests.benchmarks.feed_server``). It is Python and shares the
machine: a rate against it is that of both, and is to be held against another rate against it only.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from bisect import bisect_left
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.running import PROJECT

# Explicit VR Little Endian, as ``files`` makes them: class, instance, study and series, in the order of their tags.
UIDS = re.compile(
    rb"\x08\0\x16\0UI..([0-9.]+)\0*\x08\0\x18\0UI..([0-9.]+)\0*\x08\0.*?"
    rb"\x20\0\x0d\0UI..([0-9.]+)\0*\x20\0\x0e\0UI..([0-9.]+)",
    re.DOTALL,
)
JSON = "application/json; charset=utf-8"


class FeedServer:
    """One such server, for the length of a ``with`` block."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.benchmarks.feed_server"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
        assert self._process.stdout is not None, "it is a pipe"
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}/v2"
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stdout is not None, "it is a pipe"
        self._process.stdout.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self._lock = threading.Lock()
        # In the order of their sequence, which is that of their time.
        self._times: list[str] = []
        self._uids: list[tuple[bytes, bytes, bytes]] = []

    def add(self, stored: list[tuple[bytes, bytes, bytes]]) -> None:
        with self._lock:
            now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
            self._times += [now] * len(stored)
            self._uids += stored

    def page(self, start: str, end: str, offset: int, limit: int) -> list[dict[str, Any]]:
        with self._lock:
            first = bisect_left(self._times, start) + offset
            last = min(first + limit, bisect_left(self._times, end) if end else len(self._times))
            return [self._entry(place) for place in range(first, last)]

    def latest(self) -> dict[str, Any] | None:
        with self._lock:
            return self._entry(len(self._times) - 1) if self._times else None

    def _entry(self, place: int) -> dict[str, Any]:
        study, series, sop = self._uids[place]
        return {
            "sequence": place + 1,
            "studyInstanceUid": study.decode(),
            "seriesInstanceUid": series.decode(),
            "sopInstanceUid": sop.decode(),
            "action": "create",
            "timestamp": self._times[place],
            "state": "current",
        }


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class has the name
        """Keep quiet: the feed tells."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = {name.lower(): values[0] for name, values in parse_qs(url.query).items()}
        if url.path.endswith("/changefeed"):
            start, end = asked.get("starttime", ""), asked.get("endtime", "")
            page = self.server.page(start, end, int(asked.get("offset", 0)), int(asked.get("limit", 100)))
            self._reply(200, JSON, page)
        elif url.path.endswith("/changefeed/latest") and (latest := self.server.latest()) is not None:
            self._reply(200, JSON, latest)
        else:
            self._reply(204)

    def do_DELETE(self) -> None:
        self._reply(404)

    def do_POST(self) -> None:
        # Each part has them in its head, and noise is no such run of tags: one search takes them all.
        found = UIDS.findall(self._body())
        self.server.add([(study, series, sop) for _, sop, study, series in found])
        items = [
            {
                "00081150": {"vr": "UI", "Value": [sop_class.decode()]},
                "00081155": {"vr": "UI", "Value": [sop.decode()]},
                "00741048": {"vr": "SQ"},
            }
            for sop_class, sop, _, _ in found
        ]
        self._reply(200, "application/dicom+json; charset=utf-8", {"00081199": {"vr": "SQ", "Value": items}})

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = bytearray()
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(body)

    def _reply(self, status: int, content_type: str = "", content: object = None) -> None:
        body = b"" if content is None else json.dumps(content, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("api-supported-versions", "1, 2")
        if content_type:
            self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def main() -> None:
    """Serve until killed; the first line says the port."""
    with _Server() as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
