"""How long native pixel data must at least be (PS3.3 C.7.6.3, PS3.5 §8)."""

from __future__ import annotations

from collections.abc import Mapping

from ingestd.instance.syntax import (
    BITS_ALLOCATED,
    COLUMNS,
    DOUBLE_FLOAT_PIXEL_DATA,
    FLOAT_PIXEL_DATA,
    NUMBER_OF_FRAMES,
    PHOTOMETRIC_INTERPRETATION,
    ROWS,
    SAMPLES_PER_PIXEL,
)

PIXEL_ATTRIBUTES = frozenset(
    {ROWS, COLUMNS, BITS_ALLOCATED, SAMPLES_PER_PIXEL, NUMBER_OF_FRAMES, PHOTOMETRIC_INTERPRETATION}
)
_BITS = {FLOAT_PIXEL_DATA: 32, DOUBLE_FLOAT_PIXEL_DATA: 64}
# Chroma subsampling leaves this share of the samples (numerator, denominator).
_SUBSAMPLED = {
    b"YBR_FULL_422": (2, 3),
    b"YBR_PARTIAL_422": (2, 3),
    b"YBR_PARTIAL_420": (1, 2),
}


def expected_pixel_bytes(tag: int, values: Mapping[int, bytes], *, big: bool) -> int | None:
    """Give the least number of bytes that this pixel element can have, or None where the attributes do not say."""
    rows, columns = _unsigned(values, ROWS, big=big), _unsigned(values, COLUMNS, big=big)
    samples = _unsigned(values, SAMPLES_PER_PIXEL, big=big)
    bits = _BITS.get(tag) or _unsigned(values, BITS_ALLOCATED, big=big)
    frames = _frames(values.get(NUMBER_OF_FRAMES, b""))
    if not rows or not columns or not bits or frames is None:
        return None
    if samples is None:
        samples = 1
    pixels = rows * columns * samples * frames
    share = _SUBSAMPLED.get(values.get(PHOTOMETRIC_INTERPRETATION, b"").strip(b" \0"))
    if share is not None and samples == 3:
        pixels = pixels * share[0] // share[1]
    return (pixels * bits + 7) // 8


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
