"""The body of a Store Transaction, streamed: multipart/related after PS3.18 §8.6.1.2.1, or one instance alone.

Its length is known before its first byte, it can be sent again from the start, no file is ever whole in memory, and
one file is open at a time.

Theory of operation: the withheld tail. A file was read and judged some time ago, and its digests were kept. It is read
again here, on its way out, and may be another by now: somebody wrote to it, or the disk gives other bytes. A server
that got the whole of it would store it, and what is confirmed later would not be what was judged. To digest it first
and send it then would read it twice and still leave a gap. So it is digested while it streams, and the verdict on a
part falls with its last byte; up to then the last ``WITHHELD`` bytes read of it stay here:

    |<- parts before ->|<-------------- the part in hand -------------->|
    |   checked: go    |  read, and go        |  read, and stay: 64 KiB |  not read yet
                                              ^ free

- If the digests match, the tail goes out with what follows, and the next part begins. Nothing waits for it: the tails
  of small parts travel together in one buffer.
- If they do not, FileChanged is raised, the request breaks off in the middle of the body, and its connection is reset
  (``transport``). The server has the beginning of that part at most, never its end. It can see that itself: fewer bytes
  came than Content-Length says, and the closing boundary is missing. Of a file of up to ``WITHHELD`` bytes not one
  has left. Parts before it may be stored all the same (AZURE.md 1.3); the caller asks.

What is held against a part is its size as well: one byte more or less than it was, and its file grew or shrank. The
last read asks for one byte too many, so that a file that ends where it should tells so by itself.

All of it lies in one buffer per body: parts are read into it behind each other, what may leave is handed out as a view
of its front once that is ``SEND_FROM`` bytes, and what has to stay is moved to the front.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from ingestd.dicomweb.errors import FileChanged
from ingestd.digests import Digester
from ingestd.fs.places import FILE, MISSING, is_gone

WITHHELD = 65_536
# Small parts travel together in buffers of about this size; reads of a quarter of it suit the processor's cache.
SEND_FROM = 1_048_576
READ_SIZE = 262_144

PART_HEAD = b"Content-Type: application/dicom\r\n\r\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class StorePart:
    """One instance to store: a PS3.10 file, or its data set with a generated preamble and File Meta put in front.

    ``digest`` is that of the file's bytes from ``dataset_offset`` to its end, ``meta_digest`` that of the bytes before
    it: SHA-256 in hex, or as ``ingestd.digests`` writes them; None leaves that range unchecked. ``prefix`` is sent
    before the file's first byte and belongs to neither. ``sop_uid`` is what the server's answer will be matched with;
    None takes any. ``opener`` opens ``path``, as for the builtin open().
    """

    path: Path | str
    size_bytes: int
    sop_uid: str | None = None
    dataset_offset: int = 0
    digest: str | None = None
    meta_digest: str | None = None
    prefix: bytes = b""
    opener: Callable[[str, int], int] = os.open
    file: BinaryIO | None = None  # an open, seekable binary file to read instead of ``path``, from ``file_start``
    file_start: int = 0

    @classmethod
    def of(cls, source: Path | str | BinaryIO) -> StorePart:
        """Describe a file as it is now; raises OSError, or ValueError if it is no regular file."""
        if isinstance(source, (str, Path)):
            found = Path(source).stat(follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("only regular files can be stored")
            return cls(path=Path(source), size_bytes=found.st_size)
        start = source.tell()
        end = source.seek(0, os.SEEK_END)
        source.seek(start)
        return cls(path=Path(), size_bytes=end - start, file=source, file_start=start)


class StoreBody:
    """What requests takes as a body: ``__len__`` and ``__iter__``, each iteration giving the same bytes anew.

    Iterating raises FileChanged where a file is not what its part says. Buffers that are handed out are valid until
    the next one is asked for.
    """

    def __init__(
        self, parts: Sequence[StorePart], *, single: bool = False, on_bytes: Callable[[int], object] | None = None
    ) -> None:
        if not parts:
            raise ValueError("a store needs at least one instance")
        if single and len(parts) != 1:
            raise ValueError("a single-part store takes exactly one instance")
        self.parts = tuple(parts)
        self._on_bytes = on_bytes
        self.content_type = "application/dicom"  # exactly so: Azure refuses parameters
        self._heads, self._end = [b""], b""
        if not single:
            # 128 random bits: it cannot be in the content by accident, nor be guessed by a hostile file.
            boundary = secrets.token_hex(16)
            self.content_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
            delimiter = b"--" + boundary.encode("ascii")
            head = delimiter + b"\r\n" + PART_HEAD
            self._heads = [head] + [b"\r\n" + head] * (len(self.parts) - 1)
            self._end = b"\r\n" + delimiter + b"--\r\n"
        self._size = len(self._end) + sum(map(len, self._heads))
        for part in self.parts:
            self._size += len(part.prefix) + part.size_bytes

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[memoryview]:
        for piece in self._pieces():
            yield piece
            if self._on_bytes is not None:
                self._on_bytes(len(piece))  # now it has left

    def _pieces(self) -> Iterator[memoryview]:
        store = memoryview(bytearray(min(SEND_FROM, self._size) + READ_SIZE + 1024))
        filled = 0
        for index, part in enumerate(self.parts):
            checked = filled  # what lies before this part's first byte may leave
            for piece in (self._heads[index], part.prefix):
                if filled + len(piece) > len(store):
                    yield store[:filled]
                    filled = checked = 0
                if len(piece) > len(store):  # a generated File Meta may be of any length
                    yield memoryview(piece)
                    continue
                store[filled : filled + len(piece)] = piece
                filled += len(piece)
            with _PartReader(part, index) as reader:
                while reader.left:
                    room = store[filled : filled + READ_SIZE]
                    if room:
                        filled += reader.read_into(room)
                    free = max(checked, filled - WITHHELD)
                    if free >= SEND_FROM or not room:
                        yield store[:free]
                        rest = bytes(store[free:filled])
                        filled, checked = len(rest), 0
                        store[:filled] = rest
                reader.check()
            if filled >= SEND_FROM:
                yield store[:filled]
                filled = 0
        if filled + len(self._end) > len(store):
            yield store[:filled]
            filled = 0
        store[filled : filled + len(self._end)] = self._end
        filled += len(self._end)
        yield store[:filled]


class _PartReader:
    """Reads exactly one part's bytes and says at their end whether they are the right ones."""

    def __init__(self, part: StorePart, index: int) -> None:
        self._part = part
        self._index = index
        self.left = part.size_bytes
        self._at_end = False
        self._meta_left = min(part.dataset_offset, part.size_bytes)
        self._meta = Digester(part.meta_digest) if part.meta_digest is not None else None
        self._content = Digester(part.digest) if part.digest is not None else None
        self._fd = -1

    def __enter__(self) -> Self:
        if self._part.file is not None:
            self._part.file.seek(self._part.file_start)
            return self
        place = str(self._part.path)
        try:
            self._fd = self._part.opener(place, FILE)
        except MISSING:
            raise self._changed("gone") from None
        except OSError:
            # A link and a socket are not opened: no file is there, for whoever reads it again either.
            raise self._changed("gone" if is_gone(place) else "unreadable") from None
        found = os.fstat(self._fd)
        is_file = stat.S_ISREG(found.st_mode)
        if not is_file or found.st_size != self._part.size_bytes:
            os.close(self._fd)
            self._fd = -1
            raise self._changed("size" if is_file else "gone")
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _changed(self, why: str) -> FileChanged:
        # Without the OSError behind it: that one names the file.
        return FileChanged(why, part_index=self._index, sop_uid=self._part.sop_uid or "")

    def read_into(self, room: memoryview) -> int:
        """Fill ``room`` with what is ``left``, as far as possible, and digest it."""
        try:
            count = self._read(room)
        except OSError:
            raise self._changed("unreadable") from None
        if count == 0 or count > self.left:
            raise self._changed("size")
        read = room[:count]
        self.left -= count
        if self._meta_left:
            meta = read[: self._meta_left]
            self._meta_left -= len(meta)
            if self._meta is not None:
                self._meta.update(meta)
            read = read[len(meta) :]
        if self._content is not None and read:
            self._content.update(read)
        return count

    def _read(self, room: memoryview) -> int:
        if self._part.file is not None:
            data = self._part.file.read(min(len(room), self.left))
            room[: len(data)] = data
            return len(data)
        # One byte more than there should be: where it does not come the file ends, and need not be asked for its size.
        count = os.readv(self._fd, [room[: self.left + 1]])
        self._at_end = count == self.left < len(room)
        return count

    def check(self) -> None:
        """Raise FileChanged unless what was read is what the part says, and the file ends there."""
        if self._part.file is not None:
            if self._part.file.read(1):
                raise self._changed("size")
        elif not self._at_end and os.fstat(self._fd).st_size != self._part.size_bytes:
            raise self._changed("size")
        if self._meta is not None and self._meta.text() != self._part.meta_digest:
            raise self._changed("meta")
        if self._content is not None and self._content.text() != self._part.digest:
            raise self._changed("content")
