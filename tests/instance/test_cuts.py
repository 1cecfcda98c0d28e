"""Truncation: wherever a file is cut, it waits, or it is shown that nothing of worth is lost.

By default a sample of cuts of each file is tried; ``INGESTD_ALL_CUTS=1`` tries every byte position (some minutes).
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pydicom
import pytest

from ingestd.instance import Verdict, inspect
from tests.builders import DEFLATED, IMPLICIT, RLE, instance_bytes, sequence

BUNDLE = Path(pydicom.__file__).parent / "data" / "test_files"
ALL_CUTS = os.environ.get("INGESTD_ALL_CUTS", "") == "1"
SAMPLE = 400
WAITS = frozenset({Verdict.EMPTY, Verdict.SHORT, Verdict.ZEROS})

# The file, and from where on a cut may pass: there its main element (pixels, content, waveform) is complete, and what
# is lost is trailing padding, the tail of a deflate stream that has already ended, or the last of a plan's attributes.
FILES = {
    "CT_small.dcm": 39_068,
    "MR_small_RLE.dcm": 7_652,
    "MR_small_bigendian.dcm": None,
    "MR_small_implicit.dcm": None,
    "ExplVR_BigEnd.dcm": None,
    "ExplVR_LitEndNoMeta.dcm": None,
    "JPEG2000.dcm": None,
    "SC_rgb_rle_2frame.dcm": None,
    "SC_rgb_jpeg_dcmd.dcm": None,
    "image_dfl.dcm": 4_629,
    "reportsi.dcm": None,
    "rtdose_1frame.dcm": None,
    "rtplan.dcm": 2_394,
    "test-SR.dcm": None,
    "waveform_ecg.dcm": 291_058,
    "dicomdirtests/98892001/CT2N/6293": None,
}


def verdict_of(content: bytes) -> Verdict:
    fd = os.memfd_create("cut")
    try:
        os.write(fd, content)
        return inspect(fd).verdict
    finally:
        os.close(fd)


def cuts(size: int, seed: str) -> list[int]:
    if ALL_CUTS:
        return list(range(size))
    chosen = random.Random(seed)
    ends = {*range(12), *range(126, 150), *range(size - 24, size)}
    return sorted(cut for cut in ends | {chosen.randrange(size) for _ in range(SAMPLE)} if 0 <= cut < size)


@pytest.mark.parametrize("name", FILES)
def test_cut_file_waits(name: str) -> None:
    content = (BUNDLE / name).read_bytes()
    harmless_from = FILES[name]

    passed = [cut for cut in cuts(len(content), name) if verdict_of(content[:cut]) not in WAITS]

    assert all(harmless_from is not None and cut >= harmless_from for cut in passed), passed[:5]


@pytest.mark.parametrize("transfer_syntax", [IMPLICIT, DEFLATED, RLE])
def test_made_file_cut_anywhere_waits(transfer_syntax: str) -> None:
    inner = IMPLICIT if transfer_syntax == IMPLICIT else "1.2.840.10008.1.2.1"
    nested = sequence(
        0x00400275, [sequence(0x00400008, [b""], transfer_syntax=inner)], transfer_syntax=inner, undefined=True
    )
    content = instance_bytes(transfer_syntax=transfer_syntax, rows=8, columns=8, frames=2, extra=nested)
    # The NUL that may pad a deflate stream is no part of it.
    least = len(content) - (1 if transfer_syntax == DEFLATED and content.endswith(b"\0") else 0)

    passed = [cut for cut in range(least) if verdict_of(content[:cut]) not in WAITS]

    assert passed == []


def test_boundaries_between_elements_wait_for_the_main_one() -> None:
    """261 cuts of this CT fall exactly between two elements; a parser alone takes each of them for a whole file."""
    content = (BUNDLE / "CT_small.dcm").read_bytes()
    last = content.index(b"\xe0\x7f\x10\x00OW")

    between = [cut for cut in range(len(content)) if cut <= last and verdict_of(content[:cut]) is Verdict.ZEROS]

    assert len(between) > 100
    assert verdict_of(content[:last]) is Verdict.ZEROS
