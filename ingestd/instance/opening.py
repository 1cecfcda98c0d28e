"""The way into a file: its File Meta, how its data set is encoded, and the window that a walk begins in."""

from __future__ import annotations

import hashlib
import os
import struct
from typing import Literal

from ingestd.digests import Digester
from ingestd.instance.facts import META_MOST, InvalidInstance, Verdict
from ingestd.instance.headers import looks_like_vr
from ingestd.instance.meta import PREAMBLE_BYTES, PREFIX, FileMeta, MoreBytesNeeded, read_file_meta
from ingestd.instance.source import FIRST_READ, FileFeed, InflateFeed, Progress, Update, Window
from ingestd.instance.syntax import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    LONG_VRS,
    SHORT_VRS,
    Encoding,
    encoding_of,
)

_SYNTAX_SEEN = {
    Encoding.EXPLICIT_LITTLE: EXPLICIT_LITTLE,
    Encoding.IMPLICIT_LITTLE: IMPLICIT_LITTLE,
    Encoding.EXPLICIT_BIG: EXPLICIT_BIG,
}
# A data set without File Meta must begin in group 0008, not behind this element, and with a value no longer than this.
_FIRST_ELEMENT_MOST = 0x0060
_FIRST_VALUE_MOST = 1024
# A header says in which byte order it is written only if its group is one that data sets begin with.
_FIRST_GROUP_MOST = 0x0028
# Preambles hold zeros or the head of a TIFF file; short clutter is text.
_TEXT = bytes([9, 10, 12, 13, *range(0x20, 0x7F), *range(0x80, 0x100)])
_TIFF = (b"I", b"II", b"M", b"MM")

# Files that hold other files: patients' images travel in them, and nothing unpacks them.
_ISO_DESCRIPTOR_AT = 32_769  # ISO 9660 §6.2.1: behind the system area

# Where the magic stands, the magic, and what it is of.
_MAGICS = (
    (0, b"PK\x03\x04", "zip archive"),
    (0, b"PK\x05\x06", "zip archive"),
    (0, b"PK\x07\x08", "zip archive"),
    (0, b"\x1f\x8b\x08", "gzip archive"),
    (0, b"BZh", "bzip2 archive"),
    (0, b"\xfd7zXZ\0", "xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "zstd archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (0, b"Rar!\x1a\x07", "rar archive"),
    (257, b"ustar", "tar archive"),
    (_ISO_DESCRIPTOR_AT, b"CD001", "disc image, an archive"),
)
# Office documents, books and programs are zip files as well; this is the first name in theirs.
_DOCUMENTS = (b"[Content_Types].xml", b"mimetype", b"_rels/", b"META-INF/")
_FIRST_NAME_AT = 30


class Digesters:
    """The digests of a file that is read whole: of the bytes up to ``meta.end``, of those behind, and SHA-256 of all.

    ``like`` and what each is for: ``ingestd.digests``.
    """

    def __init__(self, like: str, *, sha256: bool) -> None:
        self.meta, self.dataset = Digester(like), Digester(like)
        self._whole = hashlib.sha256() if sha256 else None
        self.behind_meta: list[Update] = [self.dataset.update]
        if self._whole is not None:
            self.behind_meta.append(self._whole.update)

    def begin(self, head: memoryview, meta_end: int) -> None:
        """Take the first bytes of the file, of which those before ``meta_end`` are File Meta."""
        self.meta.update(head[:meta_end])
        self.dataset.update(head[meta_end:])
        if self._whole is not None:
            self._whole.update(head)

    @property
    def sha256(self) -> str:
        """That of all bytes so far, in hex; "" where nobody wanted it."""
        return self._whole.hexdigest() if self._whole is not None else ""


class OpenedFile:
    """One file, read from its beginning. Every step is taken once, in this order: the constructor, ``read_meta``,
    ``open_dataset``; ``digesters`` see each byte that is read.

    ``transfer_syntax`` is what File Meta says, or what the data set shows where it says nothing; ``generated_meta``
    is True where there is no File Meta at all.
    """

    def __init__(self, fd: int, *, progress: Progress, digesters: Digesters | None = None) -> None:
        self._digesters = digesters
        self._fd = fd
        self._progress = progress
        self.stat = os.fstat(fd)  # before the first byte is read
        self.size = self.stat.st_size
        self.meta = FileMeta()
        self.transfer_syntax = ""
        self.generated_meta = False
        self.notes: set[str] = set()
        self.encoding = Encoding.EXPLICIT_LITTLE
        self.inflate: InflateFeed | None = None
        os.lseek(fd, 0, os.SEEK_SET)
        self.head = os.read(fd, FIRST_READ)
        progress(len(self.head))
        updates = digesters.behind_meta if digesters is not None else ()
        self.feed = FileFeed(fd, position=len(self.head), updates=updates, progress=progress)

    def read_meta(self) -> None:
        """Read File Meta and begin the digests behind it, also when there is none or it is torn.

        Raises InvalidInstance: SHORT, HOSTILE.
        """
        try:
            self._read_meta()
        finally:
            if self._digesters is not None:
                self._digesters.begin(memoryview(self.head), self.meta.end)
            self.feed.position = len(self.head)
            self.notes.update(self.meta.notes)

    def _read_meta(self) -> None:
        while True:
            try:
                self.meta = read_file_meta(self.head, at_end=len(self.head) >= self.size)
            except MoreBytesNeeded:
                if len(self.head) > META_MOST:
                    raise InvalidInstance(Verdict.HOSTILE, "the File Meta group has no end") from None
                more = os.read(self._fd, max(FIRST_READ, len(self.head)))
                if not more:
                    raise InvalidInstance(Verdict.SHORT, "the file ends inside its File Meta group") from None
                self._progress(len(more))
                self.head += more
            else:
                break
        if self.meta.end == PREAMBLE_BYTES + len(PREFIX) and _is_inside_a_value(self.head):
            self.meta = FileMeta()  # those are no preamble and no prefix

    def open_dataset(self) -> Window:
        """Give the window over the data set, at its first element; afterwards ``encoding`` says how it is written.

        Raises InvalidInstance: NOT_DICOM, SHORT.
        """
        meta = self.meta
        self.transfer_syntax = meta.transfer_syntax
        if meta.transfer_syntax in DEFLATED:
            deflated = self.head[meta.end :]
            self.inflate = InflateFeed(self.feed, deflated, progress=self._progress)
            window = Window(self.inflate, head=b"", pos=0, size=None)
        else:
            window = Window(self.feed, head=self.head, pos=meta.end, size=self.size)
        self.head = b""
        self.encoding = self._find_encoding(window)
        return window

    def _find_encoding(self, window: Window) -> Encoding:
        """Say how the data set is written: as its transfer syntax says, unless its first element shows otherwise."""
        meta = self.meta
        if not window.fill(8):
            if not meta.found:
                raise _not_dicom(window.buf)
            if not window.buf[window.pos :]:
                raise InvalidInstance(Verdict.SHORT, "the file ends where its data set should begin")
        first = window.buf[window.pos : window.pos + 8]
        seen = _encoding_seen(first, None if window.size is None else window.size - window.pos)
        if not meta.found:
            if seen is None or not _plausible_start(first, seen):
                raise _not_dicom(window.buf)
            self.generated_meta = True
            self.notes.add("generated_meta")
            self.transfer_syntax = _SYNTAX_SEEN[seen]
            return seen
        if not meta.transfer_syntax:
            self.notes.add("no_transfer_syntax")
            self.transfer_syntax = _SYNTAX_SEEN[seen or Encoding.IMPLICIT_LITTLE]
            return seen or Encoding.IMPLICIT_LITTLE
        declared = encoding_of(meta.transfer_syntax)
        if seen is None or seen is declared:
            return declared
        self.notes.add("encoding_differs")
        return seen

    def close_dataset(self) -> None:
        """Read to the end of the file, so that the digests are complete, and note what stands behind the data set."""
        behind = self.feed.rest()
        if self.inflate is None or not self.inflate.ended:
            return
        if self.inflate.wrapped:
            self.notes.add("zlib_wrapper")
        # One NUL pads the stream to an even length (PS3.5 Annex A.5).
        if behind or self.inflate.trailing not in (b"", b"\0"):
            self.notes.add("trailing_after_deflate")


def _not_dicom(head: bytes) -> InvalidInstance:
    """Say that this is no DICOM file; unless it holds some, or not even its preamble is there yet."""
    archive = _archive_kind(head)
    if archive:
        return InvalidInstance(Verdict.ARCHIVE, f"a {archive}: what is in it is not looked at")
    if len(head) < PREAMBLE_BYTES + len(PREFIX) and (head.translate(None, _TEXT) or head[:2] in _TIFF):
        return InvalidInstance(Verdict.SHORT, "the file ends inside what may be its preamble")
    return InvalidInstance(Verdict.NOT_DICOM, "not a DICOM file")


def _encoding_seen(first: bytes, left: int | None) -> Encoding | None:
    """Judge by the first element's header how a data set is written; None where it does not show."""
    if len(first) < 8:
        return None
    little, big = int.from_bytes(first[:2], "little"), int.from_bytes(first[:2], "big")
    if first[4:6] in SHORT_VRS or first[4:6] in LONG_VRS:
        # The first element is a short one in a low group: of both byte orders the one that says so.
        as_little = int.from_bytes(first[6:8], "little"), little
        as_big = int.from_bytes(first[6:8], "big"), big
        if as_little == as_big or min(little, big) > _FIRST_GROUP_MOST:
            return None
        return Encoding.EXPLICIT_LITTLE if as_little < as_big else Encoding.EXPLICIT_BIG
    length = int.from_bytes(first[4:8], "little")
    if little < big and not looks_like_vr(first[4:6]) and (left is None or length <= left):
        return Encoding.IMPLICIT_LITTLE
    return None


def _is_inside_a_value(head: bytes) -> bool:
    """Whether what stands in the prefix's place is part of a value of a data set that begins with the file."""
    encoding = _encoding_seen(head[:8], None)
    if len(head) < PREAMBLE_BYTES + 16 or encoding is None or not _plausible_start(head[:8], encoding):
        return False
    order = ">" if encoding is Encoding.EXPLICIT_BIG else "<"
    pos, last = 0, 0
    while pos < PREAMBLE_BYTES:
        group, number, vr, length = struct.unpack_from(order + "HH2sH", head, pos)
        if group << 16 | number <= last:
            return False
        last = group << 16 | number
        if encoding is Encoding.IMPLICIT_LITTLE:
            (length,) = struct.unpack_from("<I", head, pos + 4)
        elif vr in LONG_VRS:
            pos += 4
            (length,) = struct.unpack_from(order + "I", head, pos + 4)
        elif vr not in SHORT_VRS:
            return False
        pos += 8 + length  # an undefined length reaches over it as well
    return pos >= PREAMBLE_BYTES + len(PREFIX)


def _plausible_start(first: bytes, encoding: Encoding) -> bool:
    """Whether a data set without File Meta may begin like this: in group 0008, with one of its first elements."""
    order: Literal["big", "little"] = "big" if encoding is Encoding.EXPLICIT_BIG else "little"
    if int.from_bytes(first[:2], order) != 0x0008 or int.from_bytes(first[2:4], order) > _FIRST_ELEMENT_MOST:
        return False
    return encoding is not Encoding.IMPLICIT_LITTLE or int.from_bytes(first[4:8], "little") <= _FIRST_VALUE_MOST


def _archive_kind(head: bytes) -> str:
    """Say which kind of archive begins like this, in words, or "" where none does."""
    for at, magic, kind in _MAGICS:
        if head.startswith(magic, at):
            return "" if head.startswith(_DOCUMENTS, _FIRST_NAME_AT) and kind == "zip archive" else kind
    return ""
