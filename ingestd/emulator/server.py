"""Runs one emulator: in a thread of this process for tests and demos, or in front for ``ingestd emulate``."""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import uvicorn
from starlette.types import ASGIApp

from .app import App
from .control import control_app
from .faults import Fault, Faults
from .http.connection import BodyTimeout, connections
from .settings import Flavour, Settings
from .storage.archive import Archive, InUse
from .storage.index import WrongSchema
from .storage.tags import reindex
from .storage.update import update
from .storage.writer import Writer

if TYPE_CHECKING:
    from .services.tokens import Tokens

_START_LIMIT_SECONDS = 20.0
# Between two looks whether the server still runs.
_LOOK_SECONDS = 1.0


class EmulatorFailed(Exception):
    """The emulator could not start."""


class Emulator:
    """An Azure DICOM service of one's own: ``with Emulator() as server: ...server.url``.

    Keeps its data in ``data`` or, without it, in a temporary folder that goes away with it. ``faults`` are names as
    on the command line (``"drop_after_store=3"``) or ``Fault`` objects; ``server.faults`` changes them while it runs.
    ``server.requests`` is the log. The other settings are those of ``Settings``.
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Iterable[Fault | str] = (),
        flavour: Flavour | str = Flavour.MANAGED,
        **settings: Any,
    ) -> None:
        self._data = data
        self._host, self._port = host, port
        self._settings = Settings(flavour=Flavour(flavour), **settings)
        self.faults = Faults(faults)
        self._stack = contextlib.ExitStack()
        self._archive: Archive | None = None
        self._control_port: int | None = None
        self._tokens: Tokens | None = None

    @property
    def root(self) -> str:
        """``http://host:port``, without a version."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def url(self) -> str:
        """The address to give a client; ends in ``/v2``."""
        return f"{self.root}/v2"

    @property
    def port(self) -> int:
        return self._port

    @property
    def control_url(self) -> str | None:
        """The address of the control port, where there is one."""
        return None if self._control_port is None else f"{self.root.rpartition(':')[0]}:{self._control_port}"

    @property
    def tokens(self) -> Tokens:
        """What makes and checks this server's tokens (``auth=True``)."""
        from .services.tokens import Tokens  # noqa: PLC0415 - its libraries only where tokens are asked for

        if self._tokens is None:
            self._tokens = Tokens(self.data, issuer=self.root, lifetime_seconds=self._settings.token_lifetime)
        return self._tokens

    @property
    def data(self) -> Path:
        return self._running.data

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The request log so far: ``request`` and ``instance`` lines in the order in which they happened."""
        return self._running.log.lines()

    @property
    def _running(self) -> Archive:
        if self._archive is None:
            raise EmulatorFailed("the emulator is not running")
        return self._archive

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Open the data folder and listen; raises EmulatorFailed."""
        self._start()

    def stop(self) -> None:
        """Finish what is being answered, then stop."""
        self._stack.close()
        self._archive = None

    def serve(self, ready: Callable[[Emulator], object]) -> None:
        """Run until SIGTERM or SIGINT; ``ready`` is called once it listens. Raises EmulatorFailed."""
        # A SimpleQueue, because a threading.Event set from a signal handler may wait for itself.
        asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        with _on_signals(lambda: asked.put(None)):
            server = self._start()
            try:
                ready(self)
                while server.thread.is_alive():
                    with contextlib.suppress(queue.Empty):
                        return asked.get(timeout=_LOOK_SECONDS)
                raise EmulatorFailed("the emulator ended by itself")
            finally:
                self.stop()

    def _start(self) -> _Server:
        try:
            return self._open_and_listen()
        except BaseException:
            self.stop()
            raise

    def _open_and_listen(self) -> _Server:
        data = self._data
        if data is None:
            data = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ingestd-emulator-")))
        listener = _listen(self._host, self._port)
        self._stack.callback(listener.close)
        self._port = listener.getsockname()[1]
        try:
            self._archive = Archive(data, self._settings, faults=self.faults, log_to_disk=self._data is not None)
        except WrongSchema as error:
            raise EmulatorFailed(f"cannot use {data}: {error}; start with --reset to begin anew") from error
        except (InUse, OSError, sqlite3.Error) as error:
            raise EmulatorFailed(f"cannot use {data}: {error}") from error
        self._stack.callback(self._archive.close)
        self._archive.operations.register("reindex", partial(reindex, self._archive.index))
        self._archive.operations.register("update", partial(update, self._archive))
        if self._settings.control_port is not None:
            control = _listen(self._host, self._settings.control_port)
            self._stack.callback(control.close)
            self._control_port = control.getsockname()[1]
            self._serve(control_app(self._archive, host=self._host), control, name="emulator-control")
        writer = Writer(self._archive)
        self._stack.callback(writer.close)
        app = App(self._archive, writer, self.tokens if self._settings.auth else None)
        self._archive.operations.resume()
        return self._serve(app, listener, name="emulator")

    def _serve(self, app: ASGIApp, listener: socket.socket, *, name: str) -> _Server:
        server = _Server(app, listener, patience_seconds=self._settings.patience_seconds, name=name)
        self._stack.callback(server.end)
        server.expect()
        return server


class _Server(uvicorn.Server):
    """uvicorn's server in a thread, without its signal handling: ours is the caller's business."""

    def __init__(self, app: ASGIApp, listener: socket.socket, *, patience_seconds: float, name: str) -> None:
        super().__init__(
            uvicorn.Config(
                BodyTimeout(app, seconds=patience_seconds),
                http=connections(patience_seconds),
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=120,
                timeout_graceful_shutdown=10,
            )
        )
        self.thread = threading.Thread(target=self.run, kwargs={"sockets": [listener]}, name=name, daemon=True)
        self.thread.start()

    def expect(self) -> None:
        """Return when it answers; raises EmulatorFailed."""
        deadline = time.monotonic() + _START_LIMIT_SECONDS
        while not self.started:
            if not self.thread.is_alive() or time.monotonic() > deadline:
                raise EmulatorFailed("the emulator did not start to listen")
            time.sleep(0.002)

    def end(self) -> None:
        self.should_exit = True
        self.thread.join()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle off; without, each small answer waits 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise EmulatorFailed(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


@contextlib.contextmanager
def _on_signals(end: Callable[[], None]) -> Iterator[None]:
    earlier = {number: signal.signal(number, lambda *_: end()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
