"""Servers that a campaign delivers to: each is reached through a door that keeps a log of what it was sent.

A real Orthanc keeps no such log, and one that is killed may lose its last line. The door stands before the server,
answers what it answers and, where it gives no answer, hangs up as it would. A request that came whole goes on to the
server whatever becomes of who sent it, as what lies in a socket does.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import pydicom

from tests.emulating import EmulatorProcess, Identity, stores
from tests.invariants import Server, digest_of
from tests.orthanc import Orthanc

# Answers that come late leave time to be killed before one; each must be shorter than absence_wait, or a body that a
# dead daemon's kernel still delivers arrives after it was proven absent.
FAULTS = (
    "drop_after_store=probability:0.15,seed:{seed}",
    "latency=probability:0.5,seconds:0.08,method:POST,seed:{seed}",
)
RETAIN = timedelta(seconds=3)
_HOP_BY_HOP = frozenset({"connection", "expect", "host", "keep-alive", "transfer-encoding", "content-length"})


class Process(Protocol):
    """A server's own process."""

    @property
    def url(self) -> str: ...
    @property
    def pid(self) -> int: ...
    def restart(self) -> None: ...


class Door:
    """Passes requests on to ``url`` and notes, for each instance that one brought, what the server said of it.

    ``log_file`` has the lines that the embedded server's own request log has, with one result more: "unanswered". A
    line's ``at`` is when the request had come whole, ``answered_at`` when it was answered.
    """

    def __init__(self, url: str, log_file: Path) -> None:
        self.log_file = log_file
        self._behind = urlsplit(url)
        self._lines: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{self._behind.path}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def stores(self) -> list[dict[str, Any]]:
        """The lines about instances, in order."""
        with self._lock:
            return stores(self._lines)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                door._pass(self)

            do_POST = do_GET  # noqa: N815 - as its class has it

            def log_message(self, *_words: object) -> None:
                pass

        return Handler

    def _pass(self, request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        body = _body_of(request)
        if body is None:
            return  # cut short: the server would not have taken it
        came_at = _now()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        behind = http.client.HTTPConnection(self._behind.hostname or "", self._behind.port)
        try:
            behind.request(request.command, request.path, body=body or None, headers=headers)
            answer = behind.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self._note(request, body, came_at, status=None, said=b"")
            return
        finally:
            behind.close()
        self._note(request, body, came_at, status=answer.status, said=content)
        try:
            request.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_BY_HOP:
                    request.send_header(name, value)
            request.send_header("Content-Length", str(len(content)))
            request.send_header("Connection", "close")
            request.end_headers()
            request.wfile.write(content)
        except OSError:
            return  # who asked is no more

    def _note(
        self, request: BaseHTTPRequestHandler, body: bytes, came_at: str, *, status: int | None, said: bytes
    ) -> None:
        lines: list[dict[str, Any]] = [{"kind": "request", "at": came_at, "method": request.command, "status": status}]
        if request.command == "POST" and "/studies" in request.path:
            told = _told(status, said)
            for content in _files_of(request.headers.get("Content-Type", ""), body):
                header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
                sop_uid = str(header.SOPInstanceUID)
                result, reason = told(sop_uid)
                lines.append(
                    {
                        "kind": "instance",
                        "at": came_at,
                        "answered_at": _now(),
                        "study": str(header.StudyInstanceUID),
                        "series": str(header.SeriesInstanceUID),
                        "sop": sop_uid,
                        "sha256": digest_of(content),
                        "result": result,
                        "reason": reason,
                    }
                )
        with self._lock, self.log_file.open("a") as log:
            self._lines += lines
            log.writelines(json.dumps(line) + "\n" for line in lines)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _body_of(request: BaseHTTPRequestHandler) -> bytes | None:
    """The whole body; None where who sent it broke off."""
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        size = int(request.headers.get("Content-Length", 0))
        body = request.rfile.read(size)
        return body if len(body) == size else None
    pieces = []
    while True:
        head = request.rfile.readline()
        if not head.endswith(b"\n"):
            return None
        size = int(head.split(b";")[0], 16)
        piece = request.rfile.read(size + 2)
        if len(piece) != size + 2:
            return None
        if not size:
            return b"".join(pieces)
        pieces.append(piece[:-2])


def _files_of(content_type: str, body: bytes) -> list[bytes]:
    """The files of a Store Transaction (PS3.18 section 10.5.1)."""
    if not content_type.startswith("multipart/related"):
        return [body]
    boundary = content_type.partition("boundary=")[2].split(";")[0].strip('"').encode()
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary)[1:-1]
    return [part.partition(b"\r\n\r\n")[2] for part in parts]


def _told(status: int | None, said: bytes) -> Callable[[str], tuple[str, int | None]]:
    """What an answer says of each instance (PS3.18 section 10.5.3, table I.2-1)."""
    if status is None:
        return lambda _: ("unanswered", None)
    try:
        answer = json.loads(said)
    except ValueError:
        return lambda _: ("stored" if status < 300 else "failed", None)

    def of(sop_uid: str) -> tuple[str, int | None]:
        for item in answer.get("00081198", {}).get("Value", ()):
            if item["00081155"]["Value"][0] == sop_uid:
                return "failed", item["00081197"]["Value"][0]
        named = {item["00081155"]["Value"][0] for item in answer.get("00081199", {}).get("Value", ())}
        return ("stored" if sop_uid in named else "failed"), None

    return of


@dataclass(kw_only=True)
class Peer:
    """One server behind its door, as the count sees it."""

    process: Process
    door: Door
    give: Callable[[Identity], bytes | None]

    def stores(self) -> Sequence[Mapping[str, Any]]:
        """What it was sent."""
        return self.door.stores()

    def content(self, identity: Identity) -> bytes | None:
        """What it has."""
        return self.give(identity)


@dataclass(kw_only=True)
class Outages(threading.Thread):
    """One of the servers killed for a while and, later, frozen for a while.

    ``lock`` is held while it goes and comes: whoever asks servers takes it, and asks none of those that are ``away``.
    """

    process: Process
    name_of: str
    seconds: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    away: set[str] = field(default_factory=set)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(name="outages", daemon=True)
        self._ended = threading.Event()
        self.failure: Exception | None = None

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        """Kill it, let it come again, freeze it, let it go on."""
        try:
            for kind, goes, comes in (
                ("killed", signal.SIGKILL, self.process.restart),
                ("frozen", signal.SIGSTOP, lambda: os.kill(self.process.pid, signal.SIGCONT)),
            ):
                self._ended.wait(self.seconds / 3)
                with self.lock:
                    self.away.add(self.name_of)
                    os.kill(self.process.pid, goes)
                self._ended.wait(self.seconds)
                with self.lock:
                    comes()
                    self.away.discard(self.name_of)
                self.told.append(kind)
        except Exception as error:  # noqa: BLE001 - the campaign looks at it, and fails
            self.failure = error

    def stop(self) -> str:
        """Have it all end soon, with the server there again, and say what came of it; raises what made it fail."""
        self._ended.set()
        self.join()
        if self.failure is not None:
            raise self.failure
        return " and ".join(f"{kind} for {self.seconds:.0f} s" for kind in self.told) + f" ({self.name_of})"


@dataclass(kw_only=True)
class Targets:
    """What a campaign delivers to: the servers, by the name of the destination, and what is said of them.

    ``settings`` are what the configuration says of it, ``logs`` the servers' request logs. Each file is of one of the
    ``stations``, and goes where these say. ``retain`` None: no file is removed. A daemon has up to ``breath`` seconds
    to get on before it is aimed at, and each phase is to be met so often at least.
    """

    settings: Mapping[str, Any]
    servers: Mapping[str, Server]
    logs: Mapping[str, Path]
    stations: Mapping[str, Sequence[str]]
    retain: timedelta | None = None
    breath: float = 0.0
    least_per_phase: int = 5
    outages: Outages | None = None


@contextmanager
def one_server(folder: Path, seed: int) -> Iterator[Targets]:
    """The embedded server, whose answers come late or get lost."""
    with EmulatorProcess(folder / "server", faults=[fault.format(seed=seed) for fault in FAULTS]) as server:
        yield Targets(
            settings={"destination": {"url": server.url, "auth": "none"}},
            servers={"default": server},
            logs={"default": server.log_file},
            stations={"STATION": ("default",)},
        )


@contextmanager
def two_servers(folder: Path, seed: int, *, away: str = "research", seconds: float = 60.0) -> Iterator[Targets]:
    """The same, proven by its change feed, and a real Orthanc, by queries; one is ``away`` twice for so long."""
    with ExitStack() as stack:
        faults = [fault.format(seed=seed) for fault in FAULTS]
        archive = stack.enter_context(EmulatorProcess(folder / "archive", faults=faults))
        research = stack.enter_context(Orthanc(folder=folder))

        def of_orthanc(identity: Identity) -> bytes | None:
            try:
                return research.file_of(identity[2])
            except LookupError:
                return None

        peers: dict[str, Peer] = {}
        gives: dict[str, tuple[Process, Callable[[Identity], bytes | None]]] = {
            "archive": (archive, archive.content),
            "research": (research, of_orthanc),
        }
        for name, (process, give) in gives.items():
            door = stack.enter_context(Door(process.url, folder / f"{name}.jsonl"))
            peers[name] = Peer(process=process, door=door, give=give)
        stations = {"CT1": ("archive", "research"), "CT2": ("archive",), "MR1": ("research",), "TEST": ()}
        yield Targets(
            settings={
                "destinations": {name: {"url": peer.door.url, "auth": "none"} for name, peer in peers.items()},
                "rules": [{"when": {"station": station}, "to": [*to]} for station, to in stations.items()],
                "spool": {"retain": f"{RETAIN.seconds}s"},
                # What a dead daemon's socket holds reaches a server that was frozen when that goes on.
                "reconcile": {"absence_wait": "2s"},
            },
            servers=peers,
            logs={name: peer.door.log_file for name, peer in peers.items()},
            stations=stations,
            retain=RETAIN,
            breath=6.0,
            least_per_phase=2,  # it is quick, and behind a door: most aims miss
            outages=Outages(process=peers[away].process, name_of=away, seconds=seconds),
        )
