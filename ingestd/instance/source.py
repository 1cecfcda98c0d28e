"""Bytes of one file, read forward once: a feed that digests what it reads, and a bounded window over the data set.

Nothing here holds more than a few windows of memory, whatever a file declares.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ingestd.instance.facts import INFLATED_MOST, InvalidInstance, Verdict

FIRST_READ = 1 << 16
WINDOW = 1 << 18
_INFLATE_INPUT = 1 << 14  # small, as zlib copies what it has not used with every call
_PAGE = 4096
_ZEROS = bytes(WINDOW)

Progress = Callable[[int], None]
Update = Callable[[bytes | memoryview], object]  # of a digest


def ignore_progress(_bytes: int, /) -> None:
    """Tell nobody."""


@dataclass(slots=True)
class ZeroWatch:
    """Sees bytes go by and remembers whether all were zero, and how many at the end were (counted up to a page)."""

    all_zero: bool = True
    seen: int = 0
    trailing: int = 0

    def see(self, chunk: bytes | memoryview) -> None:
        """Take note of the next bytes (at most a window)."""
        size = len(chunk)
        self.seen += size
        if self.all_zero:
            self.all_zero = chunk == _ZEROS[:size]
        tail = bytes(chunk[-_PAGE:])
        zeros = len(tail) - len(tail.rstrip(b"\0"))
        self.trailing = self.trailing + zeros if zeros == size else zeros


_local = threading.local()


def _buffer() -> memoryview:
    """Give this thread's buffer of a window's size; nothing in it outlives the call that asked for it."""
    buffer: memoryview | None = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = memoryview(bytearray(WINDOW))
    return buffer


class ByteFeed(Protocol):
    """Where a window gets its bytes."""

    def read(self) -> bytes:
        """Give the next bytes, at most a window; b"" at the end."""

    def fork(self) -> ByteFeed:
        """Give a feed of the bytes that are still to come here, which takes none of them away."""


class FileFeed:
    """The descriptor's bytes from where it stands, each shown to all of ``updates`` as it is read.

    ``position`` is the offset in the file up to which was read. Raises OSError as the kernel gives it.
    """

    __slots__ = ("_fd", "_progress", "_updates", "position")

    def __init__(
        self, fd: int, *, position: int, updates: Sequence[Update] = (), progress: Progress = ignore_progress
    ) -> None:
        self._fd = fd
        self._progress = progress
        self._updates = updates
        self.position = position

    def read(self) -> bytes:
        chunk = os.read(self._fd, WINDOW)
        if chunk:
            for update in self._updates:
                update(chunk)
            self.position += len(chunk)
            self._progress(len(chunk))
        return chunk

    def skip(self, count: int, watch: ZeroWatch | None) -> int:
        """Pass over ``count`` bytes, showing them to ``watch``; says how many there were.

        In one reused buffer that fits the processor's cache.
        """
        whole = _buffer()
        left = count
        while left > 0:
            got = os.readv(self._fd, [whole[: min(left, WINDOW)]])
            if got == 0:
                break
            chunk = whole[:got]
            for update in self._updates:
                update(chunk)
            if watch is not None:
                watch.see(chunk)
            left -= got
            self.position += got
            self._progress(got)
        return count - left

    def fork(self) -> ByteFeed:
        """Give a feed of the bytes from here on; they are not digested there."""
        return _Ahead(self._fd, position=self.position, progress=self._progress)

    def rest(self) -> int:
        """Read, and digest, to the end of the file; says how many bytes that were."""
        first = len(self.read())  # mostly nothing
        return first + self.skip(1 << 62, None) if first else 0


class _Ahead(FileFeed):
    """Looks at what another feed of the same descriptor has still to read."""

    __slots__ = ()

    def read(self) -> bytes:
        chunk = os.pread(self._fd, WINDOW, self.position)
        self.position += len(chunk)
        self._progress(len(chunk))
        return chunk

    def skip(self, count: int, watch: ZeroWatch | None) -> int:  # noqa: ARG002 - nobody watches ahead
        gone = max(0, min(count, os.fstat(self._fd).st_size - self.position))
        self.position += gone
        return gone


class InflateFeed:
    """What a deflate stream (PS3.5 Annex A.5) inflates to, a window at a time, up to an absolute limit.

    After the end ``trailing`` holds what follows the stream in the part of the file read so far.
    """

    __slots__ = ("_inflater", "_input", "_progress", "_source", "ended", "produced", "trailing", "wrapped")

    def __init__(self, source: ByteFeed, head: bytes, *, progress: Progress) -> None:
        # Writers that leave the zlib header on are read as well; a raw stream cannot begin with these two bytes in
        # earnest (it would be a stored block with its padding bits set).
        self.wrapped = len(head) >= 2 and head[0] == 0x78 and (head[0] << 8 | head[1]) % 31 == 0
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS if self.wrapped else -zlib.MAX_WBITS)
        self._source = source
        self._input = head
        self._progress = progress
        self.produced = 0
        self.ended = False
        self.trailing = b""

    def read(self) -> bytes:
        """Give the next inflated bytes; b"" at the end of the stream.

        Raises InvalidInstance: SHORT when the file ends before the stream does or it cannot be inflated, HOSTILE
        beyond the limit.
        """
        inflater = self._inflater
        while not self.ended:
            pending = inflater.unconsumed_tail
            if not pending:
                if not self._input:
                    self._input = self._source.read()
                pending, self._input = self._input[:_INFLATE_INPUT], self._input[_INFLATE_INPUT:]
            try:
                chunk = inflater.decompress(pending, WINDOW)
            except zlib.error:
                raise InvalidInstance(Verdict.SHORT, "the deflated data set cannot be inflated to its end") from None
            if inflater.eof:
                self.ended = True
                self.trailing = inflater.unused_data + self._input
            elif not chunk and not pending:
                raise InvalidInstance(Verdict.SHORT, "the file ends inside its deflated data set")
            if chunk:
                self.produced += len(chunk)
                if self.produced > INFLATED_MOST:
                    raise InvalidInstance(
                        Verdict.HOSTILE, f"the deflated data set inflates to more than {INFLATED_MOST >> 20} MB"
                    )
                self._progress(len(chunk))
                return chunk
        return b""

    def fork(self) -> ByteFeed:
        """Give a feed that inflates on from here by itself."""
        other = InflateFeed(self._source.fork(), self._input, progress=self._progress)
        other._inflater = self._inflater.copy()
        other.produced, other.ended = self.produced, self.ended
        return other


class Window:
    """A piece of the data set that moves forward: ``buf[pos:]`` stands before us, ``base`` is where ``buf`` begins.

    Offsets (``base + pos``) count from the beginning of the file, or of the inflated data set. Only the walker and
    this class move ``pos``.
    """

    __slots__ = ("_feed", "base", "buf", "pos", "size")

    def __init__(self, feed: ByteFeed, *, head: bytes, pos: int, size: int | None) -> None:
        self._feed = feed
        self.buf = head
        self.pos = pos
        self.base = 0
        self.size = size  # of the whole stream; None where only the end will tell

    def fork(self) -> Window:
        """Give another window at the same place, which goes forward by itself."""
        other = Window(self._feed.fork(), head=self.buf, pos=self.pos, size=self.size)
        other.base = self.base
        return other

    def fill(self, need: int) -> bool:
        """Make at least ``need`` bytes stand before us; False if the stream ends earlier (then all of it stands)."""
        have = len(self.buf) - self.pos
        if have >= need:
            return True
        parts = [self.buf[self.pos :]]
        self.base += self.pos
        self.pos = 0
        while have < need:
            chunk = self._feed.read()
            if not chunk:
                break
            parts.append(chunk)
            have += len(chunk)
        self.buf = b"".join(parts)
        return have >= need

    def skip(self, count: int, watch: ZeroWatch | None = None) -> bool:
        """Go ``count`` bytes forward; False if the stream ends earlier."""
        have = len(self.buf) - self.pos
        if count <= have:
            if watch is not None:
                self._show(count, watch)
            self.pos += count
            return True
        if watch is not None:
            self._show(have, watch)
        self.base += len(self.buf)
        self.buf = b""
        self.pos = 0
        left = count - have
        if isinstance(self._feed, FileFeed):
            got = self._feed.skip(left, watch)
            self.base += got
            return got == left
        while left > 0:
            chunk = self._feed.read()
            if not chunk:
                return False
            if len(chunk) > left:
                self.buf, self.pos = chunk, left
                if watch is not None:
                    self._show_from(chunk[:left], watch)
                return True
            if watch is not None:
                self._show_from(chunk, watch)
            self.base += len(chunk)
            left -= len(chunk)
        return True

    def chunks(self, count: int) -> Iterator[bytes]:
        """Give the next ``count`` bytes piece by piece, going forward; fewer if the stream ends earlier."""
        left = count
        while left > 0:
            if self.pos == len(self.buf) and not self.fill(1):
                return
            chunk = self.buf[self.pos : self.pos + left]
            self.pos += len(chunk)
            left -= len(chunk)
            yield chunk

    def rest_is_zero(self) -> bool:
        """Go forward to the end, or to the first window that is not all zero, and say which it was."""
        while True:
            if self.buf[self.pos :].lstrip(b"\0"):
                return False
            self.pos = len(self.buf)
            if not self.fill(1):
                return True

    def find(self, needle: bytes, *, before: int | None) -> bool:
        """Go to the first ``needle``; False, and anywhere, if the stream (or offset ``before``) comes earlier."""
        while True:
            at = self.buf.find(needle, self.pos)
            if at >= 0:
                self.pos = at
                return before is None or self.base + at + len(needle) <= before
            self.pos = max(self.pos, len(self.buf) - len(needle) + 1)
            if before is not None and self.base + self.pos >= before:
                return False
            if not self.fill(len(needle)):
                return False

    def _show(self, count: int, watch: ZeroWatch) -> None:
        self._show_from(memoryview(self.buf)[self.pos : self.pos + count], watch)

    @staticmethod
    def _show_from(chunk: bytes | memoryview, watch: ZeroWatch) -> None:
        for at in range(0, len(chunk), WINDOW):
            watch.see(chunk[at : at + WINDOW])
