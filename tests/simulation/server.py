"""The embedded server without sockets or threads of its own: a request is answered while it is made."""

from __future__ import annotations

import asyncio
import email.utils
import io
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import anyio.to_thread
import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from urllib3.response import HTTPResponse

from ingestd.dicomweb import deadlines, transport
from ingestd.dicomweb.connections import HttpSession
from ingestd.dicomweb.deadlines import Flight
from ingestd.emulator.app import App
from ingestd.emulator.faults import Faults
from ingestd.emulator.settings import Settings
from ingestd.emulator.storage.archive import Archive
from ingestd.emulator.storage.writer import Writer
from tests.emulating import Identity, stores
from tests.simulation.machine import Machine

ANY_ENCODING = {"accept": "application/dicom; transfer-syntax=*"}


class SimServer:
    """One server, and the way to it; ``name`` is that of its destination. ``is_away``: nothing listens there."""

    def __init__(self, machine: Machine, data: Path, name: str) -> None:
        self._machine = machine
        self.name = name
        self.host = f"{name}.sim:8080"
        self.url = f"http://{self.host}/v2"
        self.faults = Faults()
        self.is_away = False
        self.questions = 0  # requests that only ask, whatever came of them
        self._archive = Archive(data, Settings(fsync=False), faults=self.faults, log_to_disk=False)
        for pool in (self._archive.workers, self._archive.files._flushers):
            pool.shutdown()
        self._archive.workers = self._archive.files._flushers = _AtOnce()
        self._writer = Writer(self._archive)
        self._app = App(self._archive, self._writer, None)
        self._loop = asyncio.new_event_loop()

    def close(self) -> None:
        """Let go of everything."""
        self._writer.close()
        self._archive.close()
        self._loop.close()

    def stores(self) -> Sequence[dict[str, Any]]:
        """One line for each instance that some request brought, in order."""
        return stores(self._archive.log.lines())

    def content(self, identity: Identity) -> bytes | None:
        """The file it gives for an instance, as it was stored; None where it has none."""
        answer = self._behind("GET", identity)
        assert answer.is_whole, "nothing goes wrong behind everybody's back"
        return answer.body if answer.status == 200 else None

    def delete(self, identity: Identity) -> bool:
        """Delete an instance behind everybody's back; False where it has none."""
        return self._behind("DELETE", identity).status == 204

    def _behind(self, method: str, identity: Identity) -> _Said:
        study_uid, series_uid, sop_uid = identity
        path = f"/v2/studies/{study_uid}/series/{series_uid}/instances/{sop_uid}"
        with patch.object(self._archive, "faults", Faults()):
            return self.ask(method, path, headers=ANY_ENCODING)

    def ask(self, method: str, path: str, *, query: str = "", headers: Any = None, body: bytes = b"") -> _Said:
        """Make one request."""
        with self._machine.inside(now=False), patch.object(anyio.to_thread, "run_sync", _run_here):
            return self._loop.run_until_complete(self._ask(method, path, query, dict(headers or {}), body))

    async def _ask(self, method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> _Said:
        said = _Said()
        sent = iter([body])

        async def receive() -> dict[str, Any]:
            piece = next(sent, None)
            return {"type": "http.disconnect"} if piece is None else {"type": "http.request", "body": piece}

        async def send(message: dict[str, Any]) -> None:
            said.take(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("ascii"),
            "root_path": "",
            "query_string": query.encode("ascii"),
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
            "server": (f"{self.name}.sim", 8080),
            "client": ("client.sim", 1),
        }
        await self._app(scope, receive, send)
        said.headers.append(("date", email.utils.format_datetime(self._machine.utc, usegmt=True)))
        return said


@contextmanager
def installed(servers: Collection[SimServer], told: Callable[[str], object]) -> Iterator[None]:
    """Have every request of this process reach one of these, by its host."""

    class Session(HttpSession):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            for server in servers:
                self.mount(f"http://{server.host}/", _Adapter(server, told))

    with ExitStack() as stack:
        stack.enter_context(patch.object(transport, "HttpSession", Session))
        # A thread that shuts sockets whose time is over; there are none.
        stack.enter_context(patch.object(deadlines._watchdog, "watch", lambda _: None))
        yield


class _Said:
    """What came of a request: an answer, half of one, or nothing."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.is_whole = False

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
        else:
            self.body += message.get("body", b"")
            self.is_whole = not message.get("more_body", False)


class _Adapter(HTTPAdapter):
    """What is below requests: our server."""

    def __init__(self, server: SimServer, told: Callable[[str], object]) -> None:
        super().__init__()
        self._server = server
        self._told = told

    def send(self, request: requests.PreparedRequest, *_args: Any, **_kwargs: Any) -> requests.Response:
        url = urlsplit(request.url or "")
        self._server.questions += request.method == "GET"
        if self._server.is_away:
            self._told(f"{request.method} finds nobody at {self._server.name}")
            raise requests.ConnectionError(ConnectionRefusedError(111, "Connection refused"))
        body = request.body or b""
        content = body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else b"".join(body)
        flight = Flight.current()
        if flight is not None:
            flight.body_bytes_left = len(content)
        headers = {name: value if isinstance(value, str) else value.decode() for name, value in request.headers.items()}
        said = self._server.ask(request.method or "", url.path, query=url.query, headers=headers, body=content)
        self._told(f"{request.method} {said.status}{'' if said.is_whole else ' cut'} ({self._server.name})")
        if said.status is None:
            reset = ConnectionResetError(104, "Connection reset by peer")
            raise requests.ConnectionError(urllib3.exceptions.ProtocolError("Connection aborted.", reset))
        raw = HTTPResponse(
            body=io.BytesIO(said.body) if said.is_whole else _Broken(said.body),
            headers=said.headers,
            status=said.status,
            preload_content=False,
            decode_content=False,
            request_method=request.method,
        )
        return self.build_response(request, raw)


class _Broken(io.BytesIO):
    """A body that breaks off."""

    def read(self, size: int | None = -1, /) -> bytes:
        if data := super().read(size):
            return data
        raise ConnectionResetError(104, "Connection reset by peer")

    read1 = read


class _AtOnce:
    """An executor that does what it is given while it is given."""

    def submit(self, job: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(job(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whoever asks for the result gets it
            future.set_exception(error)
        return future

    def map(self, job: Callable[..., Any], *items: Any) -> list[Any]:
        return [job(*each) for each in zip(*items, strict=True)]

    def shutdown(self, **_: Any) -> None:
        pass


async def _run_here(job: Callable[..., Any], *args: Any, **_: Any) -> Any:
    return job(*args)
