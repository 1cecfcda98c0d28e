"""The structural walk: one pass over a data set that reads every element but bulk (PS3.5 §7).

Every element of every stored file is validated and turned into JSON by the service, so this path decides how fast a
store is, and it must run in bounded memory whatever is sent. Values of OB, OD, OF, OL, OV, OW and UN (never part of the
metadata) are stepped over, not read. What does not end inside its container is refused; sloppiness that real equipment
produces (odd lengths, trailing padding, delimiters with a length, private sequences encoded implicitly) is taken as it
comes, as fo-dicom takes it.

How it goes. ``dataset`` reads element after element up to its end, or to an Item Delimitation Item where its length was
not defined; ``_items`` reads a sequence's items, each again a ``dataset`` one level deeper. The encoding in force is
the walk's own state and changes in two places only, for as long as that takes: for the items of an unknown element,
which are Implicit VR Little Endian whatever surrounds them (PS3.5 §6.2.2 Note 4), and for a sequence of an explicit
file that makes sense only when it is read implicitly. Three limits hold over the whole pass, nested data sets included:
how deep, how many elements, how many bytes of values are kept; beyond them it ends in ``TooMuch``, not in exhausted
memory.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from .dictionary import vr_of_tag

PIXEL_DATA = 0x7FE00010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_ENDS = frozenset({_ITEM_END, _SEQUENCE_END})
UNDEFINED = 0xFFFFFFFF

# PS3.5 Table 7.1-1: these have two reserved bytes and a 32-bit length.
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
# fo-dicom up to 5.0.2 wrote these with a 16-bit length; newer ones read that where the reserved bytes are not zero.
_SHORT_FORMS = frozenset({b"SV", b"UV"})
BULK_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})

_DEEPEST = 64
_MOST_ELEMENTS = 2_000_000
_MOST_VALUE_BYTES = 64 << 20

Buffer = mmap.mmap | bytes


class Unreadable(Exception):
    """The bytes are not a DICOM file that the service could open (43264)."""


class TooMuch(Exception):
    """A file needs more memory to describe than this server gives to one (272)."""


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


class StructureWalk:
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
                vr = _chosen_vr(vr, representation)
            if length == UNDEFINED:
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
        self._read_as(explicit=looks_explicit(self.buffer, start + 8), big_endian=False)
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
            if length == UNDEFINED:
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


def looks_explicit(buffer: Buffer, at: int) -> bool:
    """Whether an element that starts at ``at`` has a VR."""
    vr = buffer[at + 4 : at + 6]
    return len(vr) == 2 and vr.isalpha() and vr.isupper()


def _chosen_vr(vr: str, representation: int) -> str:
    # Dictionary entries with a choice; an implicit file leaves it to PixelRepresentation (PS3.5 Annex A.1).
    if "OW" in vr:
        return "OW"
    return "SS" if vr == "US or SS" and representation else "US"
