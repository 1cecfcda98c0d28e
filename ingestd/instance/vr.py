"""Which VR an element has where the file does not say: pydicom's dictionary, and its rules where that says two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ingestd.instance import tags
from ingestd.instance.syntax import LONG_VRS, SHORT_VRS

_GROUP_LENGTH = 0x0000
_PRIVATE_CREATORS = range(0x0010, 0x0100)


@dataclass(slots=True)
class Context:
    """What one data set or item has said so far that decides about ambiguous VRs further down in it."""

    pixel_representation: int | None = None
    lut_entries: int | None = None  # the first value of LUT Descriptor


@lru_cache(maxsize=16_384)
def dictionary_vr(tag: int) -> str:
    """Give what PS3.6 says, "US or SS" and the like included; UN for private elements and those it does not have."""
    from pydicom.datadict import dictionary_VR  # noqa: PLC0415 - heavy: in the reader's child, never in the daemon

    group, number = tag >> 16, tag & 0xFFFF
    if group & 1:
        if number == _GROUP_LENGTH:
            return "UL"
        return "LO" if number in _PRIVATE_CREATORS else "UN"
    if number == _GROUP_LENGTH:
        return "UL"
    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return "UN"


def dictionary_keyword(tag: int) -> str:
    """Give the keyword that PS3.6 has for this element; nothing for private ones and those it does not have."""
    from pydicom.datadict import keyword_for_tag  # noqa: PLC0415 - as above

    return "" if tag >> 16 & 1 else str(keyword_for_tag(tag))


def is_sequence(tag: int) -> bool:
    """Whether the standard says that this element is a sequence."""
    return dictionary_vr(tag) == "SQ"


def settled_vr(tag: int, contexts: Sequence[Context]) -> bytes:
    """Give the one VR to write for an element read without one; ``contexts`` are the root's first, the nearest last.

    Ambiguous ones are settled as pydicom does when it writes (PS3.5 Annex A, PS3.3 C.11.1.1.1, C.10.9.1): words where
    implicit content leaves the choice, and the nearest Pixel Representation for numbers.
    """
    named = dictionary_vr(tag)
    if named == "US or SS":
        signed = next(
            (each.pixel_representation for each in reversed(contexts) if each.pixel_representation is not None), 0
        )
        return b"SS" if signed else b"US"
    if tag == tags.LUT_DATA:
        return b"US" if contexts[-1].lut_entries == 1 else b"OW"
    if " or " in named:
        return b"OW"
    vr = named.encode("ascii")
    return vr if vr in SHORT_VRS or vr in LONG_VRS else b"UN"
