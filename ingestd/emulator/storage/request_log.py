"""The request log: what came in and what became of it, in order, written before the answer leaves.

A test may trust it as an oracle. An ``instance`` line is written after the instance's transaction has committed (or it
was refused) and before any byte of the answer; a ``request`` line closes every request, whatever became of its
connection. With a data folder each line is appended to ``requests.jsonl`` with one write, so a reader never sees half a
line and a killed server loses none that it had written.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from errno import ENOSPC
from pathlib import Path
from typing import Any

_MOST_IN_MEMORY = 100_000
_ENCODER = json.JSONEncoder(separators=(",", ":"))


class RequestLog:
    """The log of one server; thread-safe."""

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._lines: deque[dict[str, Any]] = deque(maxlen=_MOST_IN_MEMORY)
        self._file = None
        self._count = 0
        self._is_torn = False
        if path is not None:
            self._count, self._is_torn = _tail_of(path)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def begin(self) -> int:
        """A new request's number; they ascend over restarts of a data folder."""
        with self._lock:
            self._count += 1
            return self._count

    def add(self, kind: str, facts: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Write lines, each with its request's number; all at once."""
        at = datetime.now(UTC).isoformat()
        lines = [{"kind": kind, "at": at, "request": request, **each} for request, each in facts]
        with self._lock:
            self._lines.extend(lines)
            if self._file is not None and lines:
                self._write(self._file, "\n".join(map(_ENCODER.encode, lines)))

    def _write(self, file: int, text: str) -> None:
        content = (b"\n" if self._is_torn else b"") + text.encode() + b"\n"
        written = os.write(file, content)
        if written < len(content):  # the disk is full
            self._is_torn = True
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        self._is_torn = False

    def lines(self) -> list[dict[str, Any]]:
        """The newest lines, oldest first; memory keeps 100,000, the file all of them."""
        with self._lock:
            return list(self._lines)

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None


def read_log(data: Path) -> list[dict[str, Any]]:
    """Every line of a data folder's log, also while its server runs; torn ones are left out."""
    lines = []
    with (data / "requests.jsonl").open("rb") as file:
        for raw in file:
            with suppress(ValueError):
                lines.append(json.loads(raw))
    return lines


def _tail_of(path: Path) -> tuple[int, bool]:
    """The last request's number, and whether a crash cut the last line, so that the next must not be joined to it."""
    if not path.exists():
        return 0, False
    highest, raw = 0, b"\n"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        for raw in file:
            with suppress(ValueError, KeyError):  # the first line of this window is usually cut
                highest = max(highest, int(json.loads(raw)["request"]))
    return highest, not raw.endswith(b"\n")
