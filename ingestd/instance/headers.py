"""Element headers that are not as the transfer syntax asks: the ways in which they may be meant (PS3.5 §7.1)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ingestd.instance.source import Window
from ingestd.instance.syntax import (
    ITEM,
    ITEM_DELIMITER,
    LONG_VRS,
    PIXEL_DATA,
    SEQUENCE_DELIMITER,
    SHORT_VRS,
    UNDEFINED,
)

_LOOK_AHEAD = 1 << 16
_DELIMITERS = 0xFFFE


class Header(NamedTuple):
    """One reading of an element's header; ``vr`` is b"" for an implicit one, ``note`` the word for what is odd."""

    vr: bytes
    header_bytes: int
    length: int
    note: str


def looks_like_vr(vr: bytes) -> bool:
    """Whether these two bytes are capital letters, as every VR is and will be."""
    return len(vr) == 2 and 0x41 <= vr[0] <= 0x5A and 0x41 <= vr[1] <= 0x5A


def begins_element(window: Window, ahead: int, tag: int, *, big: bool) -> bool:
    """Whether so many bytes ahead an explicit element that may follow on ``tag``, or a delimiter, begins."""
    if not window.fill(ahead + 8):
        return False
    at = window.pos + ahead
    group, number, vr = struct.unpack_from((">" if big else "<") + "HH2s", window.buf, at)
    following = group << 16 | number
    if group == _DELIMITERS:
        return following in (ITEM, ITEM_DELIMITER, SEQUENCE_DELIMITER)
    return following > tag and (vr in SHORT_VRS or vr in LONG_VRS)


def may_follow_pixels(rest: bytes, *, implicit: bool, big: bool) -> bool:
    """Whether what stands behind pixel data may be an element, whole or cut: a transfer leaves line ends and blocks."""
    if not rest.strip(b"\r\n "):
        return False
    group = int.from_bytes(rest[:2], "big" if big else "little")
    if len(rest) < 2 or group == _DELIMITERS:
        return True
    return PIXEL_DATA >> 16 <= group < _DELIMITERS and (implicit or len(rest) < 6 or looks_like_vr(rest[4:6]))


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


def choose_header(
    window: Window,
    tag: int,
    candidates: Sequence[Header],
    *,
    fits: Callable[[int], bool],
    bound: int | None,
    big: bool,
) -> Header:
    """Choose among the readings of the header at the window's position: by what fits, and by what would follow.

    ``fits`` says whether an element may reach up to an offset; ``bound`` is where what holds it ends, if known.
    """
    at = window.base + window.pos
    fitting = [
        each
        for each in candidates
        if (each.vr in (b"", b"SQ", b"UN") if each.length == UNDEFINED else fits(at + each.header_bytes + each.length))
    ]
    followed = (each for each in fitting if _is_followed(window, tag, each, bound=bound, big=big))
    return next(followed, None) or (fitting or candidates)[0]


def _is_followed(window: Window, tag: int, header: Header, *, bound: int | None, big: bool) -> bool:
    """Whether an element that may come after ``tag``, a delimiter or the end stands behind this reading of it."""
    if header.length > _LOOK_AHEAD:
        return header.length != UNDEFINED
    after = header.header_bytes + header.length
    if bound == window.base + window.pos + after:
        return True
    if not window.fill(after + 8):
        return len(window.buf) - window.pos == after
    order = ">" if big else "<"
    group, number = struct.unpack_from(order + "HH", window.buf, window.pos + after)
    following: int = group << 16 | number
    return following >= tag
