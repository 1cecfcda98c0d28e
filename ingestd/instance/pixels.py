"""How long native pixel data must at least be (PS3.3 C.7.6.3, PS3.5 §8)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ingestd.instance import tags

PIXEL_ATTRIBUTES = frozenset(
    {
        *(tags.ROWS, tags.COLUMNS, tags.BITS_ALLOCATED),
        *(tags.SAMPLES_PER_PIXEL, tags.NUMBER_OF_FRAMES, tags.PHOTOMETRIC_INTERPRETATION),
    }
)
_BITS = {tags.FLOAT_PIXEL_DATA: 32, tags.DOUBLE_FLOAT_PIXEL_DATA: 64}
# Chroma subsampling leaves this share of the samples (numerator, denominator).
_SUBSAMPLED = {
    b"YBR_FULL_422": (2, 3),
    b"YBR_PARTIAL_422": (2, 3),
    b"YBR_PARTIAL_420": (1, 2),
}


def expected_pixel_bytes(tag: int, values: Mapping[int, bytes], *, big: bool) -> int | None:
    """Give the least number of bytes that this pixel element can have, or None where the attributes do not say."""
    rows, columns = _unsigned(values, tags.ROWS, big=big), _unsigned(values, tags.COLUMNS, big=big)
    samples = _unsigned(values, tags.SAMPLES_PER_PIXEL, big=big)
    bits = _BITS.get(tag) or _unsigned(values, tags.BITS_ALLOCATED, big=big)
    frames = _frames(values.get(tags.NUMBER_OF_FRAMES, b""))
    if not rows or not columns or not bits or frames is None:
        return None
    if samples is None:
        samples = 1
    pixels = rows * columns * samples * frames
    share = _SUBSAMPLED.get(values.get(tags.PHOTOMETRIC_INTERPRETATION, b"").strip(b" \0"))
    if share is not None and samples == 3:
        pixels = pixels * share[0] // share[1]
    return (pixels * bits + 7) // 8


_END_OF_IMAGE = b"\xff\xd9"
_TAIL = 16


def has_every_image(fd: int, at: int, end: int, values: Mapping[int, bytes]) -> bool:
    """Whether fragments from ``at`` to the file's ``end`` hold all images, as far as their ends (EOI, FFD9) tell.

    JPEG, JPEG-LS and JPEG 2000 all end so (ITU-T T.81 B.1.1.3, T.87, T.800 A.4.4). What was cut off between two
    fragments lacks an image, or the last fragment is not the end of one.
    """
    wanted, ended, tail = _frames(values.get(tags.NUMBER_OF_FRAMES, b"")) or 1, 0, b""
    is_table = True
    while at < end:
        length = int.from_bytes(os.pread(fd, 4, at + 4), "little")
        at += 8 + length
        if is_table:  # PS3.5 Annex A.4: one offset for each frame, or none at all
            wanted = max(wanted, length // 4)
            is_table = False
            continue
        tail = os.pread(fd, min(length, _TAIL), at - min(length, _TAIL)).rstrip(b"\0")
        ended += tail.endswith(_END_OF_IMAGE)
    return ended >= wanted and tail.endswith(_END_OF_IMAGE)


def _unsigned(values: Mapping[int, bytes], tag: int, *, big: bool) -> int | None:
    value = values.get(tag, b"")
    return int.from_bytes(value[:2], "big" if big else "little") if len(value) >= 2 else None


def _frames(value: bytes) -> int | None:
    text = value.strip(b" \0").split(b"\\")[0].strip()
    if not text:
        return 1
    if len(text) > 12 or not text.lstrip(b"+").isdigit():
        return None
    return int(text) or 1
