"""The canonical digest: equal for one object however its lengths are written, within one transfer syntax.

What is hashed, for every element in the order of the file::

    tag, value with its padding trimmed, size of that, "v"        an element
    tag, "s" ... "e"                                              a sequence or run of fragments that holds something
    "i" ... "j"                                                   an item in it

Each record ends with its letter and fixed sizes, so the whole can be read backwards in one way only: different content
cannot give the same bytes. Left out: group lengths and Length to End (0008,0001), which are about lengths; Data Set
Trailing Padding (FFFC,FFFC); the VR, as writers that know an element better name it instead of UN; and the padding of
values, by what the standard says of the tag: trailing spaces and NULs of text, one trailing NUL of bytes of even
length, nothing of numbers. Where the tag is private or unknown, by what the value looks like: one trailing space or NUL
of ASCII text, one trailing NUL of all else, whose last byte may be part of a number.
"""

from __future__ import annotations

import hashlib
import struct

from ingestd.instance import tags
from ingestd.instance.frames import WalkEvent
from ingestd.instance.opening import OpenedFile
from ingestd.instance.source import Progress, ignore_progress
from ingestd.instance.syntax import TEXT_VRS
from ingestd.instance.vr import dictionary_keyword, dictionary_vr
from ingestd.instance.walk import Walker

# Padding is looked for in the last bytes of a value only, so that no value need be held in memory.
_TAIL = 1 << 16
_MOST_ATTRIBUTES = 10_000
_TAG = struct.Struct("<I").pack
_VALUE_END = struct.Struct("<Qc").pack
_ASCII_TEXT = bytes(range(0x20, 0x7F)) + b"\t\n\f\r\x1b"
_NUMBERS = frozenset(
    (b"AT", b"FD", b"FL", b"OD", b"OF", b"OL", b"OV", b"SL", b"SS", b"SV", b"UL", b"US", b"US or SS", b"UV")
)


def canonical_digest(fd: int, *, progress: Progress = ignore_progress) -> str:
    """Give the canonical digest (SHA-256, hex) of the data set in this file, reading it forward once.

    Raises InvalidInstance for a file that does not add up, OSError as the kernel gives it.
    """
    return _Digester(_walker(fd, progress)).digest()


def differing_attributes(ours: int, theirs: int) -> tuple[str, ...]:
    """Name the attributes of the data sets themselves in which two files differ, in the order of their tags.

    Raises as ``canonical_digest`` does. Of a file with more elements than ``_MOST_ATTRIBUTES`` the rest counts as one.
    """
    one, other = (_ByAttribute(_walker(fd, ignore_progress)).digests() for fd in (ours, theirs))
    return tuple(_name_of(tag) for tag in sorted(one.keys() | other.keys()) if one.get(tag) != other.get(tag))


def _walker(fd: int, progress: Progress) -> Walker:
    file = OpenedFile(fd, progress=progress)
    file.read_meta()
    window = file.open_dataset()
    # What begins with an item is a sequence, also as UN: a writer that knows the element better writes it as SQ.
    return Walker(window, encoding=file.encoding, everything=True, is_sequence=lambda _tag: True)


def _name_of(tag: int) -> str:
    keyword = dictionary_keyword(tag)
    number = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
    return f"{keyword} {number}" if keyword else number


class _Digester:
    def __init__(self, walker: Walker) -> None:
        self._walker = walker
        self._sha = hashlib.sha256()
        # Tags of sequences begun and not yet found to hold anything: an empty one is an element without a value.
        self._unopened: int | None = None

    def digest(self) -> str:
        walker = self._walker
        while (event := walker.advance()) is not WalkEvent.END:
            self._reach(event)
            if event in (WalkEvent.SEQUENCE, WalkEvent.FRAGMENTS):
                self._unopened = walker.tag
            elif event in (WalkEvent.SEQUENCE_END, WalkEvent.FRAGMENTS_END):
                self._end(walker.tag)
            elif event is WalkEvent.ITEM:
                self._open()
                self._sha.update(b"i")
            elif event is WalkEvent.ITEM_END:
                self._sha.update(b"j")
            elif event is WalkEvent.ELEMENT:
                if not _is_about_lengths(walker.tag):
                    self._value(_TAG(walker.tag), dictionary_vr(walker.tag).encode("ascii"))
            else:  # a fragment, or content that is no elements: its bytes
                self._open()
                self._value(b"", b"OB")
        return self._sha.hexdigest()

    def _reach(self, event: WalkEvent) -> None:
        """Hear what is about to be hashed."""

    def _open(self) -> None:
        if self._unopened is not None:
            self._sha.update(_TAG(self._unopened) + b"s")
            self._unopened = None

    def _end(self, tag: int) -> None:
        if self._unopened is None:
            self._sha.update(b"e")
        else:
            self._unopened = None
            self._sha.update(_TAG(tag) + _VALUE_END(0, b"v"))

    def _value(self, tag: bytes, vr: bytes) -> None:
        """Hash a value without its padding: all but its last bytes at once, those when its end is known."""
        walker = self._walker
        length = walker.length
        self._sha.update(tag)
        held = b""
        for chunk in walker.chunks():
            held += chunk
            if len(held) > 2 * _TAIL:
                self._sha.update(held[:-_TAIL])
                held = held[-_TAIL:]
        tail = held[-_TAIL:]
        trimmed = _trim(tail, vr, length)
        self._sha.update(held[: len(held) - len(tail)])
        self._sha.update(trimmed)
        self._sha.update(_VALUE_END(length - len(tail) + len(trimmed), b"v"))


class _ByAttribute(_Digester):
    """Digests the data set's own attributes one by one, each with all that it holds."""

    def digests(self) -> dict[int, bytes]:
        self._hashes: dict[int, hashlib._Hash] = {}
        self.digest()
        return {tag: sha.digest() for tag, sha in self._hashes.items()}

    def _reach(self, event: WalkEvent) -> None:
        walker = self._walker
        begins = event is WalkEvent.ELEMENT and walker.depth == 0
        if not begins and not (event in (WalkEvent.SEQUENCE, WalkEvent.FRAGMENTS) and walker.depth == 1):
            return
        if not _is_about_lengths(walker.tag) and len(self._hashes) < _MOST_ATTRIBUTES:
            self._sha = self._hashes.setdefault(walker.tag, hashlib.sha256())


def _is_about_lengths(tag: int) -> bool:
    return tag & 0xFFFF == 0 or tag in (tags.LENGTH_TO_END, tags.DATA_SET_TRAILING_PADDING)


def _trim(tail: bytes, vr: bytes, length: int) -> bytes:
    if vr in TEXT_VRS:
        return tail.rstrip(b" \0")
    if vr in _NUMBERS:
        return tail
    pads = (b"\0", b" ") if vr == b"UN" and not tail[:-1].translate(None, _ASCII_TEXT) else b"\0"
    return tail[:-1] if length % 2 == 0 and tail.endswith(pads) else tail
