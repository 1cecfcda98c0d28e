"""Parts of a multipart/related answer as they arrive (RFC 2046 §5.1, PS3.18 §8.6.1.2), never whole in memory.

The parser reads forward through one stream of chunks, cut anywhere. A part ends only where the next delimiter begins,
and an answer only with its closing delimiter: if that is missing, the reading of the last part raises, so that half a
part is never taken for a whole one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from requests.structures import CaseInsensitiveDict

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAD_LIMIT = 65_536
PREAMBLE_LIMIT = 1_048_576
CRLF = b"\r\n"

Headers = CaseInsensitiveDict[str]


class BrokenMultipart(ValueError):
    """The body is not multipart, or ends before its closing delimiter."""


def content_type_params(text: str) -> tuple[str, Mapping[str, str]]:
    """Split a Content-Type into type and parameters, names in lower case, values quoted or not (RFC 9110 §8.3.1)."""
    media_type, _, rest = text.partition(";")
    params: dict[str, str] = {}
    position = 0
    while position < len(rest):
        equals = rest.find("=", position)
        if equals < 0:
            break
        name = rest[position:equals].strip(" \t;").lower()
        value, position = _param_value(rest, equals + 1)
        params.setdefault(name, value)
    return media_type.strip().lower(), params


def _param_value(text: str, position: int) -> tuple[str, int]:
    while position < len(text) and text[position] in " \t":
        position += 1
    if position < len(text) and text[position] == '"':
        value: list[str] = []
        position += 1
        while position < len(text) and text[position] != '"':
            if text[position] == "\\":
                position += 1
            value.append(text[position : position + 1])
            position += 1
        end = text.find(";", position)
        return "".join(value), len(text) if end < 0 else end + 1
    end = text.find(";", position)
    end = len(text) if end < 0 else end
    return text[position:end].strip(), end + 1


class BodyPart(io.RawIOBase):
    """One part's bytes, readable until the next part is asked for; raises the parser's error where it breaks off."""

    def __init__(self, next_content: Callable[[int | None], bytes]) -> None:
        super().__init__()
        self._next_content = next_content  # the next bytes, at most so many; b"" at the end

    def readable(self) -> bool:
        return True

    def next_chunk(self) -> bytes:
        """Return the next bytes as they came, b"" at the part's end: the cheapest way to copy a part."""
        return self._next_content(None)

    def readinto(self, buffer: object) -> int:
        """Fill the buffer as far as one chunk goes (io.RawIOBase)."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # RawIOBase says only "a buffer"
        data = self._next_content(len(view))
        view[: len(data)] = data
        return len(data)

    def invalidate(self) -> None:
        """Make further reads fail: the stream has moved on."""
        self._next_content = _gone


def _gone(_limit: int | None) -> bytes:
    raise ValueError("the next part was asked for: this one is gone")


class Multipart:
    """Iterate over the (headers, part) pairs of one body; ``read`` returns its next bytes, b"" at its end.

    What is left of a part when the next one is asked for is read and dropped.
    """

    def __init__(
        self, read: Callable[[], bytes], boundary: str, *, error: Callable[[str], Exception] = BrokenMultipart
    ) -> None:
        self._error = error
        if not boundary or len(boundary) > 200:
            raise error("a multipart answer without a usable boundary")
        self._read = read
        self._delimiter = CRLF + b"--" + boundary.encode("latin-1", "replace")
        # The body may begin with its first delimiter: pretend that a line ends right before it.
        self._buffer = CRLF
        self._at = 0  # what lies before it has been given out
        self._free = 0  # up to here it is content for certain
        self._is_delimiter = False  # and what begins there is a delimiter
        self._in_part = False
        self.is_closed = False  # the closing delimiter was seen

    def __iter__(self) -> Iterator[tuple[Headers, BodyPart]]:
        self._skip_preamble()
        while not self.is_closed:
            headers = self._head()
            part = BodyPart(self.next_content)
            self._in_part = True
            yield headers, part
            while self.next_content():
                pass
            part.invalidate()

    def next_content(self, limit: int | None = None) -> bytes:
        """Return the next bytes of the current part, at most ``limit``; b"" at its end. Raises BrokenMultipart."""
        while self._in_part:
            if self._at < self._free:
                begin, end = self._at, self._free if limit is None else min(self._free, self._at + limit)
                self._at = end
                return self._buffer if (begin, end) == (0, len(self._buffer)) else self._buffer[begin:end]
            if self._is_delimiter:
                self._in_part = False
                self._take_delimiter()
            elif not self._search():
                raise self._error("a multipart answer that breaks off in the middle of a part")
        return b""

    def _search(self) -> bool:
        """Move ``_free`` on, to the next delimiter or as far as none can begin; False at the body's end."""
        start = self._free
        while True:
            found = self._buffer.find(self._delimiter, start)
            if found < 0:
                break
            verdict = self._judge(found)
            if verdict is None:
                self._free = found
                return self._more()  # what follows decides
            if verdict:
                self._free, self._is_delimiter = found, True
                return True
            start = found + 1
        free = len(self._buffer) - self._could_begin(start)
        if free > self._free:
            self._free = free
            return True
        return self._more()

    def _judge(self, found: int) -> bool | None:
        """Say whether a delimiter is one: ``--`` follows, or blanks and a line's end. None: more bytes must tell."""
        after = found + len(self._delimiter)
        tail = self._buffer[after : after + 1024]
        if tail.startswith(b"--"):
            return True
        stripped = tail.lstrip(b" \t")
        if stripped.startswith(CRLF):
            return True
        if len(tail) < 1024 and (stripped in {b"", b"\r"} or tail == b"-"):
            return None
        return False

    def _could_begin(self, start: int) -> int:
        """Count the bytes at the buffer's end that may be the beginning of a delimiter."""
        first = max(start, len(self._buffer) - len(self._delimiter) + 1)
        at = self._buffer.find(b"\r", first)
        while at >= 0:
            if self._delimiter.startswith(self._buffer[at:]):
                return len(self._buffer) - at
            at = self._buffer.find(b"\r", at + 1)
        return 0

    def _more(self) -> bool:
        chunk = self._read()
        if not chunk:
            return False
        rest = self._buffer[self._at :]
        self._free -= self._at
        self._at = 0
        self._buffer = rest + chunk if rest else chunk
        return True

    def _skip_preamble(self) -> None:
        skipped = 0
        while not self._is_delimiter:
            skipped += self._free - self._at
            self._at = self._free
            if skipped > PREAMBLE_LIMIT or not self._search():
                raise self._error("a multipart answer in which its boundary does not occur")
        self._at = self._free
        self._take_delimiter()

    def _take_delimiter(self) -> None:
        """Step over the delimiter; the line's end after it stays, for a part's head begins with it."""
        after = self._at + len(self._delimiter)
        if self._buffer.startswith(b"--", after):
            self.is_closed = True
        else:
            self._at = self._buffer.index(CRLF, after)
        self._free, self._is_delimiter = self._at, False

    def _head(self) -> Headers:
        """Read a part's headers; the buffer begins with the CRLF before the first, and so ends with an empty line."""
        while (end := self._buffer.find(CRLF + CRLF, self._at)) < 0:
            if len(self._buffer) - self._at > HEAD_LIMIT:
                raise self._error("a multipart answer with an endless part header")
            if not self._more():
                raise self._error("a multipart answer that breaks off in a part's header")
        headers = _parse_head(self._buffer[self._at + 2 : end]) if end > self._at else CaseInsensitiveDict()
        if headers is None:
            raise self._error("a multipart answer with a part header that is none")
        # The empty line's own CRLF may be the one of the next delimiter: a part without any content, not even empty.
        self._at = self._free = end + 2
        while len(self._buffer) - self._at < len(self._delimiter) + 2:
            if not self._more():
                break
        if not (self._buffer.startswith(self._delimiter, self._at) and self._judge(self._at) is not False):
            self._at = self._free = self._at + 2
        return headers


def _parse_head(head: bytes) -> Headers | None:
    headers: Headers = CaseInsensitiveDict()
    name = ""
    for line in head.decode("latin-1").split("\r\n"):
        if line[:1] in {" ", "\t"} and name:  # a folded line (RFC 5322 section 2.2.3)
            headers[name] = f"{headers[name]} {line.strip()}"
            continue
        name, colon, value = line.partition(":")
        name = name.strip()
        if not colon or not name:
            return None
        headers[name] = value.strip()
    return headers
