"""The embedded server in a process of its own, as a person starts it, and what is done behind ingestd's back."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.forking import Forked
from tests.patience import PATIENCE
from tests.ports import own_port
from tests.running import start_program

Identity = tuple[str, str, str]


class EmulatorProcess:
    """One ``ingestd emulate`` on a free port; ``requests.jsonl`` in its data folder tells what it was sent.

    ``faults`` are the command's ``--fault`` words, ``words`` anything else. The port stays the same over a restart.
    """

    def __init__(self, data: Path, *, faults: Sequence[str] = (), words: Sequence[str] = ()) -> None:
        self.data = data
        self.port = own_port()
        self._words = (*words, *(word for fault in faults for word in ("--fault", fault)))
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._read = 0  # so many bytes of the request log, as these lines
        self._lines: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        """The DICOMweb root."""
        return f"http://127.0.0.1:{self.port}/v2"

    @property
    def log_file(self) -> Path:
        """Its request log."""
        return self.data / "requests.jsonl"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *words: str) -> None:
        """Start it, with these words beside its own, and return when it answers."""
        self.data.mkdir(parents=True, exist_ok=True)
        with (self.data / "emulator.log").open("ab") as log:
            told = ["emulate", "--port", str(self.port), "--data", str(self.data), *self._words, *words]
            self._process = start_program(told, out=log, err=log)
        give_up_at = time.monotonic() + PATIENCE
        while True:
            try:
                get(f"{self.url}/changefeed/latest")
            except OSError as error:
                if isinstance(error, urllib.error.HTTPError) and error.code == HTTPStatus.NOT_FOUND:
                    return  # it answers: it was told to have no feed
                if self._process.poll() is not None or time.monotonic() > give_up_at:
                    said = (self.data / "emulator.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"the emulator did not start ({self._process.poll()}):\n{said}") from None
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Ask it to end."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def pid(self) -> int:
        """Process id, while it runs."""
        assert self._process is not None, "it was started"
        return self._process.pid

    def restart(self) -> None:
        """End it, however it is, and start it again with the same data."""
        self.stop()
        self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While it lasts the server takes connections and answers nothing."""
        assert self._process is not None, "it was started"
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def lines(self) -> list[dict[str, Any]]:
        """Its request log so far, without a half-written last line."""
        if self.log_file.exists():
            with self.log_file.open("rb") as file:
                file.seek(self._read)
                whole, _, _ = file.read().rpartition(b"\n")
            if whole:
                self._read += len(whole) + 1
                self._lines += map(json.loads, whole.split(b"\n"))
        return list(self._lines)

    def stores(self) -> list[dict[str, Any]]:
        """The log's lines about instances: one for each that some request brought, in order."""
        return stores(self.lines())

    def content(self, identity: Identity) -> bytes | None:
        """The file that it gives for an instance; None where it has none."""
        return file_of(self.url, identity)


def stores(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a request log about instances: one for each that some request brought, in order."""
    return [dict(line) for line in lines if line["kind"] == "instance"]


def get(url: str, *, accept: str = "application/json") -> bytes:
    """GET a whole answer; raises urllib's HTTPError."""
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def file_of(url: str, identity: Identity) -> bytes | None:
    """The file that a server gives for an instance, in the encoding it was stored in; None where it has none."""
    try:
        return get(_instance_url(url, identity), accept="application/dicom; transfer-syntax=*")
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404:
                return None
        raise


def post(url: str, content: bytes) -> dict[str, Any]:
    """Store one file behind everybody's back and return the answer."""
    headers = {"Content-Type": "application/dicom", "Accept": "application/dicom+json"}
    request = urllib.request.Request(f"{url}/studies", data=content, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.loads(answer.read()))


def delete(url: str, identity: Identity) -> None:
    """Delete an instance behind everybody's back."""
    with urllib.request.urlopen(urllib.request.Request(_instance_url(url, identity), method="DELETE"), timeout=30):
        pass


def _instance_url(url: str, identity: Identity) -> str:
    study_uid, series_uid, sop_uid = identity
    return f"{url}/studies/{study_uid}/series/{series_uid}/instances/{sop_uid}"


def dataset_of(content: bytes) -> bytes:
    """A file's data set: what follows group 0002, whose length its first element says (PS3.10 section 7.1)."""
    assert content[128:132] == b"DICM", "it has a preamble"
    assert content[132:140] == b"\2\0\0\0UL\4\0", "group 0002 begins with its length"
    return content[144 + int.from_bytes(content[140:144], "little") :]
