"""Splits a multipart/related body as it arrives (RFC 2046 §5.1), the way ASP.NET's reader does.

Sans I/O: ``feed`` takes bytes and gives events; nothing is kept but an unfinished delimiter or header block. It is our
own, apart from the client's writer, so that the two cannot agree on a mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

_MOST_HEADER_BYTES = 16 * 1024
_MOST_HEADERS = 16


class Malformed(Exception):
    """The body is no multipart body (400)."""


@dataclass(frozen=True, slots=True)
class PartBegins:
    """A part's headers are complete; names are lowercase."""

    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PartData:
    """Some bytes of the current part."""

    chunk: bytes


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
    """One body's splitter; feed it every chunk, then look at ``saw_delimiter`` and ``in_part``."""

    def __init__(self, boundary: str) -> None:
        self._delimiter = b"\r\n--" + boundary.encode("latin-1")
        # The first delimiter needs no line break of its own when it opens the body.
        self._rest = bytearray(b"\r\n")
        self._at = _At.PREAMBLE
        self._first_data = False
        self.saw_delimiter = False

    @property
    def in_part(self) -> bool:
        """Whether a part has begun that has not ended: it was cut short if the body is over."""
        return self._at in (_At.HEADERS, _At.DATA)

    @property
    def is_closed(self) -> bool:
        """Whether the closing delimiter was seen."""
        return self._at is _At.EPILOGUE

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that these bytes complete; raises Malformed."""
        if self.is_closed:
            return
        self._rest += chunk
        while True:
            before = self._at, len(self._rest)
            yield from self._step()
            if (self._at, len(self._rest)) == before:
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

    def _preamble(self) -> None:
        found = self._rest.find(self._delimiter)
        if found < 0:
            self._keep_possible_delimiter()
            return
        del self._rest[: found + len(self._delimiter)]
        self.saw_delimiter = True
        self._at = _At.DELIMITER

    def _keep_possible_delimiter(self) -> bytes:
        # Everything but what could still turn out to be the beginning of a delimiter.
        safe = len(self._rest) - len(self._delimiter) + 1
        if safe <= 0:
            return b""
        return self._take(safe)

    def _take(self, size: int) -> bytes:
        with memoryview(self._rest) as view:
            gone = bytes(view[:size])
        del self._rest[:size]
        return gone

    def _after_delimiter(self) -> None:
        if len(self._rest) < 2:
            return
        if self._rest[:2] == b"--":
            self._at = _At.EPILOGUE
            self._rest.clear()
            return
        end = self._rest.find(b"\r\n")
        if end < 0:
            if len(self._rest) > 1024:
                raise Malformed("a delimiter line does not end")
            return
        if self._rest[:end].strip(b" \t"):
            raise Malformed("a delimiter is followed by something else on its line")
        del self._rest[:end]
        self._at = _At.HEADERS

    def _headers(self) -> Iterator[Event]:
        # The line break of the delimiter line is still there, so that a part without headers ends the same way.
        end = self._rest.find(b"\r\n\r\n")
        if end < 0:
            if len(self._rest) > _MOST_HEADER_BYTES:
                raise Malformed("the headers of a part are too long")
            return
        block = bytes(self._rest[2:end])
        del self._rest[: end + 2]
        self._at = _At.DATA
        # Two bytes stay: an empty part's delimiter begins with the line break that ended the headers.
        self._first_data = True
        yield PartBegins(_parse_headers(block))

    def _data(self) -> Iterator[Event]:
        found = self._rest.find(self._delimiter)
        if found < 0:
            if self._first_data and len(self._rest) <= len(self._delimiter):
                return
            gone = self._keep_possible_delimiter()
        else:
            gone = self._take(found)
            del self._rest[: len(self._delimiter)]
        if self._first_data and (gone or found >= 0):
            gone = gone[2:]
            self._first_data = False
        if gone:
            yield PartData(gone)
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
