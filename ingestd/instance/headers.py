"""Element headers that are not as the transfer syntax asks: the ways in which they may be meant (PS3.5 §7.1)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ingestd.instance.syntax import LONG_VRS, SHORT_VRS


class Header(NamedTuple):
    """One reading of an element's header; ``vr`` is b"" for an implicit one, ``note`` the word for what is odd."""

    vr: bytes
    header_bytes: int
    length: int
    note: str


def looks_like_vr(vr: bytes) -> bool:
    """Whether these two bytes are capital letters, as every VR is and will be."""
    return len(vr) == 2 and 0x41 <= vr[0] <= 0x5A and 0x41 <= vr[1] <= 0x5A


def odd_headers(buf: bytes, pos: int, *, big: bool) -> list[Header]:
    """Give the readings of an explicit header whose VR the standard does not know, the likeliest first.

    New VRs have a 32-bit length (PS3.5 §7.1.2), but old ones invented by vendors had 16 bits, as have the blanks and
    question marks that some toolkits write; and no letters at all is mostly an implicit element (private sequences).
    """
    implicit = Header(b"", 8, _uint32(buf, pos + 4, big=big), "private_implicit")
    vr = buf[pos + 4 : pos + 6]
    order = ">" if big else "<"
    short = Header(vr, 8, struct.unpack_from(order + "H", buf, pos + 6)[0], "unknown_vr")
    readings = [implicit, short]
    if looks_like_vr(vr):
        readings = [short, implicit]
        if buf[pos + 6 : pos + 8] == b"\0\0" and len(buf) - pos >= 12:
            readings.insert(0, Header(vr, 12, _uint32(buf, pos + 8, big=big), "unknown_vr"))
    return readings


def other_headers(buf: bytes, pos: int, *, big: bool, implicit: bool) -> list[Header]:
    """Give other readings of a header that is well-formed but whose length reaches too far."""
    order = ">" if big else "<"
    vr = buf[pos + 4 : pos + 6]
    short_length = struct.unpack_from(order + "H", buf, pos + 6)[0]
    if implicit:
        if vr in SHORT_VRS:
            return [Header(vr, 8, short_length, "explicit_inside_implicit")]
        if vr in LONG_VRS and len(buf) - pos >= 12:
            return [Header(vr, 12, _uint32(buf, pos + 8, big=big), "explicit_inside_implicit")]
        return []
    if vr in LONG_VRS and short_length:  # the two reserved bytes hold something
        return [Header(vr, 8, short_length, "short_form_length")]
    return []


def _uint32(buf: bytes, pos: int, *, big: bool) -> int:
    return int.from_bytes(buf[pos : pos + 4], "big" if big else "little")
