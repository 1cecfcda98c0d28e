"""Runs of elements that lie whole in the window and are as they should be: nearly all of a file, in one loop each."""

from __future__ import annotations

import struct
from collections.abc import Container
from typing import NamedTuple

from ingestd.instance.headers import KNOWN_VRS, HeaderReader
from ingestd.instance.source import Window
from ingestd.instance.syntax import SHORT_VRS

_EXPLICIT_LITTLE = struct.Struct("<HH2sH").unpack_from
_EXPLICIT_BIG = struct.Struct(">HH2sH").unpack_from
_IMPLICIT_LITTLE = struct.Struct("<HHI").unpack_from
_IMPLICIT_BIG = struct.Struct(">HHI").unpack_from
_UINT32_LITTLE = struct.Struct("<I").unpack_from
_UINT32_BIG = struct.Struct(">I").unpack_from
ITEM_LITTLE = b"\xfe\xff\x00\xe0"
ITEM_BIG = b"\xff\xfe\xe0\x00"
# A value that is kept on the way is no longer than this; a longer one is handed out.
KEPT_BYTES = 1024


class Wanted(NamedTuple):
    """Which elements a walk is to stop at; of those in ``keep`` the first value goes into ``kept`` without a stop."""

    chosen: Container[int]
    keep: Container[int]
    kept: dict[int, bytes]


# The last element's tag, VR and length; whether any length was odd; whether the window stands at its value, wanted.
Run = tuple[int, bytes, int, int, bool]


def run_explicit(window: Window, limit: int, wanted: Wanted, headers: HeaderReader, *, big: bool, tag: int) -> Run:
    """Go forward to the first element that is wanted, or that needs a closer look; not behind ``limit`` in the buffer.

    ``tag`` is that of the last element before.
    """
    buf, pos = window.buf, window.pos
    header = _EXPLICIT_BIG if big else _EXPLICIT_LITTLE
    uint32 = _UINT32_BIG if big else _UINT32_LITTLE
    chosen, keep, kept = wanted
    plain, young = headers.plain_vrs, headers.young_vrs
    odd, found, vr, length = 0, False, b"", 0
    while pos + 8 <= limit:
        group, number, vr, length = header(buf, pos)
        if vr in SHORT_VRS:
            start = pos + 8
        elif (vr in plain and pos + 12 <= limit and not length) or (
            vr in young and pos + 12 <= limit and not length and buf[pos + 12 : pos + 14] not in KNOWN_VRS
        ):
            length = uint32(buf, pos + 8)[0]
            start = pos + 12
        else:
            break
        after = start + length
        if after > limit:
            break
        odd |= length
        tag = group << 16 | number
        if tag in chosen:
            if length > KEPT_BYTES or tag not in keep or tag in kept:
                found = True
                pos = start
                break
            kept[tag] = buf[start:after]
        pos = after
    window.pos = pos
    return tag, vr, length, odd & 1, found


def run_implicit(window: Window, limit: int, wanted: Wanted, *, big: bool, tag: int) -> Run:
    """Do the same over implicit elements; what looks like a sequence needs a closer look."""
    buf, pos = window.buf, window.pos
    header = _IMPLICIT_BIG if big else _IMPLICIT_LITTLE
    item = ITEM_BIG if big else ITEM_LITTLE
    chosen, keep, kept = wanted
    odd, found, length = 0, False, 0
    while pos + 8 <= limit:
        group, number, length = header(buf, pos)
        after = pos + 8 + length
        if after > limit or group in (0xFFFE, 0) or (length >= 8 and buf[pos + 8 : pos + 12] == item):
            break
        odd |= length
        tag = group << 16 | number
        if tag in chosen:
            if length > KEPT_BYTES or tag not in keep or tag in kept:
                found = True
                pos += 8
                break
            kept[tag] = buf[pos + 8 : after]
        pos = after
    window.pos = pos
    return tag, b"", length, odd & 1, found
