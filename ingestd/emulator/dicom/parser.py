"""Reads the structure of a DICOM file without its bulk (PS3.10 §7, PS3.5 §7).

Written for this room alone and on purpose not with pydicom: every element of every stored file is validated and
turned into JSON by the service, so this path decides how fast a store is, and it must run in bounded memory whatever
is sent. The file is a memory map; values of OB, OD, OF, OL, OV, OW and UN (never part of the metadata) are
stepped over, not read. What does not end inside the file is refused; sloppiness that real equipment produces (odd
lengths, trailing padding, delimiters with a length, private sequences encoded implicitly) is taken as it comes.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from struct import Struct
from tempfile import TemporaryFile
from typing import IO, Literal, NamedTuple, Protocol

from pydicom.datadict import dictionary_VR

from ..errors import TooMuch, Unreadable

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"

PIXEL_DATA = 0x7FE00010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_ENDS = frozenset({_ITEM_END, _SEQUENCE_END})
_UNDEFINED = 0xFFFFFFFF

# PS3.5 Table 7.1-1: these have two reserved bytes and a 32-bit length.
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
# fo-dicom up to 5.0.2 wrote these with a 16-bit length; newer ones read that where the reserved bytes are not zero.
_SHORT_FORMS = frozenset({b"SV", b"UV"})
BULK_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})

_DEEPEST = 64
_MOST_ELEMENTS = 2_000_000
_MOST_VALUE_BYTES = 64 << 20
_MOST_INFLATED_BYTES = 8 << 30


Buffer = mmap.mmap | bytes


class Openable(Protocol):
    """A file's place or whatever else can be opened as one."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]:
        """Its bytes from the start, in a file with a descriptor."""
        ...


class Element(NamedTuple):
    """One data element; ``value`` is None for bulk that was stepped over and for sequences."""

    tag: int
    vr: str
    value: bytes | None
    items: list[list[Element]] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelPlace:
    """Where PixelData's value lies in the (inflated) file: its first byte, and its length or None if encapsulated."""

    offset: int
    length: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """Everything of a file but its bulk."""

    transfer_syntax: str
    meta: dict[int, bytes]
    dataset_offset: int
    elements: list[Element]
    big_endian: bool
    pixels: PixelPlace | None

    def element(self, tag: int) -> Element | None:
        """The top-level element with this tag, if there is one."""
        for element in self.elements:
            if element.tag == tag:
                return element
        return None


@lru_cache(maxsize=8192)
def vr_of_tag(tag: int) -> str:
    """The dictionary's VR of a tag; private and unknown ones are UN, private creators LO."""
    if (tag >> 16) & 1:
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
    if tag & 0xFFFF == 0:
        return "UL"
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


@contextmanager
def mapped(file: IO[bytes]) -> Iterator[mmap.mmap]:
    """The file as a read-only memory map; an empty file is Unreadable."""
    try:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise Unreadable("the file is empty") from error
    try:
        yield buffer
    finally:
        buffer.close()


@contextmanager
def contents(source: Path | bytes) -> Iterator[Buffer]:
    """What a file on disk or in memory holds; an empty one is Unreadable."""
    if isinstance(source, bytes):
        if not source:
            raise Unreadable("the file is empty")
        yield source
    else:
        with source.open("rb") as file, mapped(file) as buffer:
            yield buffer


def read_header(source: Openable) -> Header:
    """Read one file's structure; raises Unreadable, or TooMuch where memory would not be bounded."""
    with source.open("rb") as file, mapped(file) as buffer:
        return header_of(buffer)


def header_of(buffer: Buffer) -> Header:
    """The structure of a mapped file, or of one in memory."""
    meta, dataset_offset = _read_meta(buffer)
    syntax = _text(meta.get(0x00020010, b""))
    if syntax == DEFLATED:
        return _read_deflated(buffer, meta, dataset_offset)
    return _read_dataset(buffer, meta, dataset_offset, syntax or IMPLICIT_LITTLE, dataset_offset)


def dataset_offset_of(buffer: Buffer) -> int:
    """Where the data set begins in a mapped file; raises Unreadable."""
    return _read_meta(buffer)[1]


def _read_meta(buffer: Buffer) -> tuple[dict[int, bytes], int]:
    at = 132 if buffer[128:132] == b"DICM" else 0
    if at == 0 and buffer[:2] != b"\x02\x00":
        raise Unreadable("neither a preamble nor File Meta Information")
    # Group 0002 is always Explicit VR Little Endian (PS3.10 §7.1). Its end is where another group starts: the
    # group length is often wrong in real files, so it is not believed.
    walk = _Walk(buffer, explicit=True, big_endian=False)
    meta: dict[int, bytes] = {}
    end = len(buffer)
    while at + 8 <= end and buffer[at : at + 2] == b"\x02\x00":
        tag, _, length, start = walk.head(at)
        if length == _UNDEFINED or start + length > end:
            raise Unreadable("File Meta Information runs past the end of the file")
        if length <= 1024:
            meta[tag] = buffer[start : start + length]
        at = start + length
    return meta, at


def _read_deflated(buffer: Buffer, meta: dict[int, bytes], offset: int) -> Header:
    with TemporaryFile() as inflated:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        written = 0
        view = memoryview(buffer)
        try:
            at = offset
            pending = b""
            while (at < len(view) or pending) and not inflater.eof:
                if not pending:
                    pending = bytes(view[at : at + (1 << 18)])
                    at += len(pending)
                out = inflater.decompress(pending, 1 << 20)
                pending = inflater.unconsumed_tail
                written += inflated.write(out)
                if written > _MOST_INFLATED_BYTES:
                    raise TooMuch("the data set inflates beyond 8 GiB")
        except zlib.error as error:
            raise Unreadable("the deflated data set cannot be inflated") from error
        finally:
            view.release()
        inflated.flush()
        with mapped(inflated) as plain:
            return _read_dataset(plain, meta, 0, DEFLATED, offset)


def _read_dataset(buffer: Buffer, meta: dict[int, bytes], at: int, syntax: str, dataset_offset: int) -> Header:
    walk = _Walk(buffer, explicit=syntax != IMPLICIT_LITTLE, big_endian=syntax == EXPLICIT_BIG)
    if not walk.explicit and _looks_explicit(buffer, at):
        # Files that say implicit and are explicit exist in the wild; fo-dicom looks, too.
        walk.explicit = True
    elif walk.explicit and not walk.big_endian and at + 8 <= len(buffer) and not _looks_explicit(buffer, at):
        walk.explicit = False
    elements, _ = walk.dataset(at, len(buffer), depth=0, delimited=False)
    return Header(
        transfer_syntax=syntax,
        meta=meta,
        dataset_offset=dataset_offset,
        elements=elements,
        big_endian=walk.big_endian,
        pixels=walk.pixels,
    )


def _looks_explicit(buffer: Buffer, at: int) -> bool:
    vr = buffer[at + 4 : at + 6]
    return len(vr) == 2 and vr.isalpha() and vr.isupper()


def _text(value: bytes) -> str:
    return value.rstrip(b"\0 ").decode("ascii", "replace")


class _Walk:
    """One pass over one buffer; counts what it keeps so that no file can take more memory than allowed."""

    def __init__(self, buffer: Buffer, *, explicit: bool, big_endian: bool) -> None:
        self.buffer = buffer
        self.pixels: PixelPlace | None = None
        self._read_as(explicit=explicit, big_endian=big_endian)
        self._elements_left = _MOST_ELEMENTS
        self._bytes_left = _MOST_VALUE_BYTES

    def _read_as(self, *, explicit: bool, big_endian: bool) -> None:
        self.explicit = explicit
        self.big_endian = big_endian
        order = ">" if big_endian else "<"
        self._short = Struct(order + "HH2sH")
        self._long = Struct(order + "I")
        self._implicit = Struct(order + "HHI")

    def head(self, at: int) -> tuple[int, str, int, int]:
        """Tag, VR, value length and place of the value, of the element that starts at ``at``."""
        if self.explicit:
            group, number, vr, length = self._short.unpack_from(self.buffer, at)
            tag = group << 16 | number
            if vr in _SHORT_FORMS and length:
                return tag, vr.decode("ascii"), length, at + 8
            if vr in _LONG_VRS:
                if at + 12 > len(self.buffer):
                    raise Unreadable("an element's header runs past the end of the file")
                return tag, vr.decode("ascii"), self._long.unpack_from(self.buffer, at + 8)[0], at + 12
            if group != 0xFFFE and vr.isalpha() and vr.isupper():
                return tag, vr.decode("ascii"), length, at + 8
        group, number, length = self._implicit.unpack_from(self.buffer, at)
        tag = group << 16 | number
        return tag, vr_of_tag(tag), length, at + 8

    def dataset(self, at: int, end: int, *, depth: int, delimited: bool) -> tuple[list[Element], int]:
        """The elements from ``at`` to ``end`` or, if delimited, to the Item Delimitation Item; and where that ends."""
        if depth > _DEEPEST:
            raise TooMuch(f"sequences are nested deeper than {_DEEPEST}")
        elements: list[Element] = []
        representation = 0
        while at + 8 <= end:
            tag, vr, length, start = self.head(at)
            if tag in _ENDS:
                if delimited:
                    # A sequence delimiter ends the sequence, too: it is left to be read there (fo-dicom, for k-pacs).
                    return elements, start if tag == _ITEM_END else at
                at = start
                continue
            if tag == 0 and not self._anything_after(at, end):
                return elements, end
            self._elements_left -= 1
            if self._elements_left < 0:
                raise TooMuch(f"more than {_MOST_ELEMENTS} elements")
            is_unknown = vr == "UN"
            if is_unknown:  # fo-dicom, too, then asks its dictionary
                vr = vr_of_tag(tag)
            if len(vr) > 2:
                vr = _settle_vr(vr, representation)
            if length == _UNDEFINED:
                element, at = self._undefined(tag, vr, start, end, depth, is_unknown=is_unknown)
                elements.append(element)
                continue
            stop = start + length
            if stop > end:
                raise Unreadable("an element runs past the end of its container")
            if vr == "SQ":
                elements.append(self._sequence(tag, start, stop, depth, is_unknown=is_unknown))
            elif vr in BULK_VRS:
                if tag == PIXEL_DATA and depth == 0:
                    self.pixels = PixelPlace(offset=start, length=length)
                elements.append(Element(tag, vr, None, None))
            else:
                self._bytes_left -= length
                if self._bytes_left < 0:
                    raise TooMuch(f"values of more than {_MOST_VALUE_BYTES >> 20} MiB")
                value = self.buffer[start:stop]
                if tag == 0x00280103 and length >= 2:
                    representation = value[1 if self.big_endian else 0]
                elements.append(Element(tag, vr, value, None))
            at = stop
        if delimited:
            raise Unreadable("an item is not delimited")
        return elements, at

    def _anything_after(self, at: int, end: int) -> bool:
        while at < end:
            chunk = self.buffer[at : min(at + 65536, end)]
            if chunk.strip(b"\0"):
                return True
            at += len(chunk)
        return False

    def _undefined(
        self, tag: int, vr: str, start: int, end: int, depth: int, *, is_unknown: bool
    ) -> tuple[Element, int]:
        if vr == "SQ" and not is_unknown:
            items, at = self._items(start, end, depth, delimited=True)
            return Element(tag, vr, None, items), at
        if vr in ("SQ", "UN") or not (tag == PIXEL_DATA or vr in BULK_VRS):
            items, at = self._items_of_unknown(start, end, depth, delimited=True)
            return self._unknown(tag, items if vr in ("SQ", "UN") else None), at
        if tag == PIXEL_DATA and depth == 0:
            self.pixels = PixelPlace(offset=start, length=None)
        return Element(tag, vr, None, None), self._skip_fragments(start, end)

    def _skip_fragments(self, at: int, end: int) -> int:
        while at + 8 <= end:
            group, number, length = self._implicit.unpack_from(self.buffer, at)
            tag = group << 16 | number
            if tag == _SEQUENCE_END:
                return at + 8
            if tag != _ITEM or at + 8 + length > end:
                raise Unreadable("encapsulated pixel data is broken or cut short")
            at += 8 + length
        if at == len(self.buffer):  # without its delimiter, as fo-dicom takes it (5.1.3, pull request 1718)
            return at
        raise Unreadable("encapsulated pixel data is not delimited")

    def _sequence(self, tag: int, start: int, stop: int, depth: int, *, is_unknown: bool) -> Element:
        try:
            if is_unknown:
                return self._unknown(tag, self._items_of_unknown(start, stop, depth, delimited=False)[0])
            return Element(tag, "SQ", None, self._items(start, stop, depth, delimited=False)[0])
        except Unreadable:
            if is_unknown:
                return self._unknown(tag, None)
            if not self.explicit:
                raise
        # A private sequence that was written implicitly into an explicit file.
        self.explicit = False
        try:
            return Element(tag, "SQ", None, self._items(start, stop, depth, delimited=False)[0])
        finally:
            self.explicit = True

    def _unknown(self, tag: int, items: list[list[Element]] | None) -> Element:
        # Its numbers are little endian: in a big endian data set they would be read as what they are not.
        return Element(tag, "UN" if items is None or self.big_endian else "SQ", None, items)

    def _items_of_unknown(
        self, start: int, end: int, depth: int, *, delimited: bool
    ) -> tuple[list[list[Element]], int]:
        # PS3.5 §6.2.2 Note 4: Implicit VR Little Endian, whatever surrounds it; some writers do not know that.
        explicit, big_endian = self.explicit, self.big_endian
        self._read_as(explicit=_looks_explicit(self.buffer, start + 8), big_endian=False)
        try:
            return self._items(start, end, depth, delimited=delimited)
        finally:
            self._read_as(explicit=explicit, big_endian=big_endian)

    def _items(self, at: int, end: int, depth: int, *, delimited: bool) -> tuple[list[list[Element]], int]:
        items: list[list[Element]] = []
        while at + 8 <= end:
            group, number, length = self._implicit.unpack_from(self.buffer, at)
            tag = group << 16 | number
            at += 8
            if tag == _SEQUENCE_END:
                if delimited:
                    return items, at
                continue
            if tag != _ITEM:
                raise Unreadable("a sequence holds something that is not an item")
            if length == _UNDEFINED:
                elements, at = self.dataset(at, end, depth=depth + 1, delimited=True)
            elif at + length > end:
                raise Unreadable("an item runs past the end of its sequence")
            else:
                elements, _ = self.dataset(at, at + length, depth=depth + 1, delimited=False)
                at += length
            items.append(elements)
        if delimited:
            raise Unreadable("a sequence is not delimited")
        return items, at


def _settle_vr(vr: str, representation: int) -> str:
    # Dictionary entries with a choice; an implicit file leaves it to PixelRepresentation (PS3.5 Annex A.1).
    if "OW" in vr:
        return "OW"
    return "SS" if vr == "US or SS" and representation else "US"
