"""Splits a multipart/related body as it arrives (RFC 2046 §5.1), the way ASP.NET's reader does.

Sans I/O: ``feed`` takes bytes and gives events; nothing is kept but an unfinished delimiter or header block. It is our
own, apart from the client's writer, so that the two cannot agree on a mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

_MOST_HEADER_BYTES = 16 * 1024
_MOST_HEADERS = 16


class Malformed(Exception):
    """The body is no multipart body (400)."""


@dataclass(frozen=True, slots=True)
class PartBegins:
    """A part's headers are complete; names are lowercase."""

    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class PartData:
    """Some bytes of the current part; a view of what was fed."""

    chunk: memoryview


class PartEnds:
    """The current part was followed by its delimiter, so it is whole."""


Event = PartBegins | PartData | PartEnds


class _At(Enum):
    PREAMBLE = auto()
    DELIMITER = auto()  # just behind "--boundary": is it the last one?
    HEADERS = auto()
    DATA = auto()
    EPILOGUE = auto()


class Splitter:
    """One body's splitter; feed it every chunk, then look at ``saw_delimiter``."""

    def __init__(self, boundary: str) -> None:
        self._delimiter = b"\r\n--" + boundary.encode("latin-1")
        # The first delimiter needs no line break of its own when it opens the body.
        self._buffer = b"\r\n"
        self._next = 0  # what lies before it in the buffer is done with
        self._at = _At.PREAMBLE
        self.saw_delimiter = False

    @property
    def is_closed(self) -> bool:
        return self._at is _At.EPILOGUE

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that these bytes complete; raises Malformed. Take every event before feeding again."""
        if self.is_closed:
            return
        self._buffer = self._buffer[self._next :] + chunk
        self._next = 0
        while True:
            before = self._at, self._next
            yield from self._step()
            if (self._at, self._next) == before:
                return

    def _step(self) -> Iterator[Event]:
        if self._at is _At.PREAMBLE:
            self._preamble()
        elif self._at is _At.DELIMITER:
            self._after_delimiter()
        elif self._at is _At.HEADERS:
            yield from self._headers()
        elif self._at is _At.DATA:
            yield from self._data()

    @property
    def _left(self) -> int:
        return len(self._buffer) - self._next

    def _preamble(self) -> None:
        found = self._buffer.find(self._delimiter, self._next)
        if found < 0:
            self._take_safe()
            return
        self._next = found + len(self._delimiter)
        self.saw_delimiter = True
        self._at = _At.DELIMITER

    def _take_safe(self) -> memoryview:
        # Everything but what could still turn out to be the beginning of a delimiter.
        return self._take(max(0, self._left - len(self._delimiter) + 1))

    def _take(self, size: int) -> memoryview:
        taken = memoryview(self._buffer)[self._next : self._next + size]
        self._next += size
        return taken

    def _after_delimiter(self) -> None:
        if self._left < 2:
            return
        if self._buffer.startswith(b"--", self._next):
            self._at = _At.EPILOGUE
            self._buffer, self._next = b"", 0
            return
        end = self._buffer.find(b"\r\n", self._next)
        if end < 0:
            if self._left > 1024:
                raise Malformed("a delimiter line does not end")
            return
        if self._buffer[self._next : end].strip(b" \t"):
            raise Malformed("a delimiter is followed by something else on its line")
        self._next = end
        self._at = _At.HEADERS

    def _headers(self) -> Iterator[Event]:
        # The line break of the delimiter line is still there, so that a part without headers ends the same way.
        end = self._buffer.find(b"\r\n\r\n", self._next)
        if end < 0:
            if self._left > _MOST_HEADER_BYTES:
                raise Malformed("the headers of a part are too long")
            return
        block = self._buffer[self._next + 2 : end]
        # The line break that ended the headers opens no delimiter: .NET sends "--b", an empty line and "--b--" where
        # it has no parts, and its reader waits for another line break, so that it finds none.
        self._next = end + 4
        self._at = _At.DATA
        yield PartBegins(_parse_headers(block))

    def _data(self) -> Iterator[Event]:
        found = self._buffer.find(self._delimiter, self._next)
        if found < 0:
            content = self._take_safe()
        else:
            content = self._take(found - self._next)
            self._next += len(self._delimiter)
        if content:
            yield PartData(content)
        if found >= 0:
            self._at = _At.DELIMITER
            yield PartEnds()


def _parse_headers(block: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in block.split(b"\r\n") if block else ():
        name, colon, value = line.partition(b":")
        if not colon or not name.strip():
            raise Malformed("a header line of a part has no name")
        headers[name.strip().decode("latin-1").lower()] = value.strip().decode("latin-1")
        if len(headers) > _MOST_HEADERS:
            raise Malformed("a part has too many headers")
    return headers
