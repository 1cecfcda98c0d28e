"""Re-encoding to Explicit VR Little Endian, held against pydicom reading both."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from ingestd.instance import CannotReencode, Inspection, InvalidInstance, Verdict, inspect, reencode_explicit
from tests.builders import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    RLE,
    element,
    encapsulated,
    instance_bytes,
    item,
    part10,
    sequence,
)
from tests.instance.test_bundle import BUNDLE, admitted, look_at

NATIVE = frozenset({EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED})
RAW_DATA = "1.2.840.10008.5.1.4.1.1.66"


def reencoded(content: bytes, path: Path) -> Inspection:
    """Re-encode ``content`` into ``path`` and inspect that."""
    fd = os.memfd_create("source")
    out = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(fd, content)
        reencode_explicit(fd, out)
        return inspect(out)
    finally:
        os.close(fd)
        os.close(out)


# pydicom warns of values that are odd on purpose.
pytestmark = pytest.mark.filterwarnings("ignore")


def read(path: Path) -> Dataset:
    return pydicom.dcmread(path, force=True)


def implicit(*elements: tuple[int, bytes]) -> bytes:
    head = [(0x00080016, RAW_DATA.encode()), (0x00080018, b"1.2.3 ")]
    content = b"".join(element(tag, "UN", value, transfer_syntax=IMPLICIT) for tag, value in [*head, *elements])
    return part10(content, sop_class=RAW_DATA, sop_uid="1.2.3", transfer_syntax=IMPLICIT)


def differences(one: Dataset, other: Dataset, at: str = "") -> list[str]:
    """Where two data sets differ, group lengths and Length to End aside."""
    found = []
    tags = {each.tag for data in (one, other) for each in data if each.tag.element and each.tag != 0x00080001}
    for tag in sorted(tags):
        name = f"{at}{tag}"
        if tag not in one or tag not in other:
            found.append(f"{name} is missing in one")
            continue
        ours, theirs = one[tag], other[tag]
        if ours.VR == theirs.VR == "SQ" and len(ours.value) == len(theirs.value):
            for number, (left, right) in enumerate(zip(ours.value, theirs.value, strict=True)):
                found += differences(left, right, f"{name}[{number}]")
        elif ours.VR != theirs.VR or ours.value != theirs.value:
            found.append(f"{name} {ours.VR} {theirs.VR}")
    return found


@pytest.mark.parametrize(
    "path",
    [path for path in admitted() if look_at(path).transfer_syntax in NATIVE],
    ids=lambda path: str(path.relative_to(BUNDLE)),
)
def test_bundled_file_keeps_all_its_values_and_pixels(path: Path, tmp_path: Path) -> None:
    before = look_at(path)

    after = reencoded(path.read_bytes(), tmp_path / "out")

    assert (after.verdict, after.transfer_syntax) == (before.verdict, EXPLICIT)
    assert (after.study_uid, after.sop_uid, after.sop_class_uid) == (
        before.study_uid,
        before.sop_uid,
        before.sop_class_uid,
    )
    assert set(after.notes) <= {"trailing_padding", "pixel_data_longer", "pixel_data_unchecked", "main_element_missing"}
    one, other = read(path), read(tmp_path / "out")
    big_endian = before.transfer_syntax == BIG_ENDIAN
    found = [each for each in differences(one, other) if not (big_endian and each.startswith("(7FE0,0010)"))]
    assert found == []
    if "PixelData" in one and path.name != "badVR.dcm":
        assert (one.pixel_array == other.pixel_array).all()


@pytest.mark.parametrize(
    "little, big",
    [
        ("MR_small.dcm", "MR_small_expb.dcm"),
        ("rtdose_1frame.dcm", "rtdose_expb_1frame.dcm"),
        ("liver_1frame.dcm", "liver_expb_1frame.dcm"),
        ("SC_rgb_small_odd.dcm", "SC_rgb_small_odd_big_endian.dcm"),
    ],
)
def test_big_endian_twin_becomes_its_little_endian_one(little: str, big: str, tmp_path: Path) -> None:
    reencoded((BUNDLE / big).read_bytes(), tmp_path / "out")

    assert read(tmp_path / "out").PixelData == read(BUNDLE / little).PixelData


def test_every_kind_of_word_is_swapped(tmp_path: Path) -> None:
    values: dict[tuple[int, str], tuple[str, list[Any]]] = {
        (0x00280010, "US"): ("H", [1, 515]),
        (0x00280120, "SS"): ("h", [-2]),
        (0x00081161, "UL"): ("I", [66_051, 2]),
        (0x00186020, "SL"): ("i", [-66_051]),
        (0x00089459, "FL"): ("f", [1.5, -2.25]),
        (0x00460044, "FD"): ("d", [0.1]),
        (0x00720082, "SV"): ("q", [-(1 << 40)]),
        (0x00720083, "UV"): ("Q", [1 << 40]),
        (0x00660016, "OF"): ("f", [0.5] * 3),
        (0x00660040, "OL"): ("I", [1, 2, 3]),
        (0x00700308, "OD"): ("d", [0.25]),
        (0x00281201, "OW"): ("H", list(range(500))),
        (0x00080006, "OV"): ("Q", [1, 2]),
    }
    uids = [(0x00080016, RAW_DATA), (0x00080018, "1.2.3")]

    def whole(syntax: str) -> bytes:
        order = ">" if syntax == BIG_ENDIAN else "<"
        parts = [(tag, "UI", value.encode()) for tag, value in uids]
        parts += [
            (tag, vr, struct.pack(f"{order}{len(numbers)}{code}", *numbers))
            for (tag, vr), (code, numbers) in values.items()
        ]
        parts.append((0x00209165, "AT", struct.pack(order + "HHHH", 0x0018, 0x9073, 0x0020, 0x000D)))
        parts.append((0x00291010, "UN", b"\1\2\3\4"))
        parts.append((0x00291011, "OB", b"\1\2\3\4"))
        content = b"".join(element(tag, vr, value, transfer_syntax=syntax) for tag, vr, value in sorted(parts))
        return part10(content, sop_class=RAW_DATA, sop_uid="1.2.3", transfer_syntax=syntax)

    big, little = whole(BIG_ENDIAN), whole(EXPLICIT)

    found = reencoded(big, tmp_path / "out")

    expected = little[little.index(b"\x08\x00\x06\x00OV") :]
    assert (tmp_path / "out").read_bytes()[found.dataset_offset :] == expected


def test_large_big_endian_pixels_are_swapped_across_windows(tmp_path: Path) -> None:
    content = instance_bytes(transfer_syntax=BIG_ENDIAN, rows=701, columns=503, study_uid="1", series_uid="2")

    reencoded(content, tmp_path / "out")

    pixels = read(tmp_path / "out").PixelData
    assert pixels[::2] == content[-len(pixels) :][1::2]
    assert pixels[1::2] == content[-len(pixels) :][::2]


def test_value_too_long_for_its_vr_becomes_un(tmp_path: Path) -> None:
    content = implicit((0x00204000, b"x" * 65_534), (0x00209158, b"y" * 65_536))

    reencoded(content, tmp_path / "out")

    written = (tmp_path / "out").read_bytes()
    assert b"\x20\x00\x00\x40LT\xfe\xff" in written
    assert b"\x20\x00\x58\x91UN\0\0\0\0\1\0" + b"y" * 65_536 in written


def test_private_and_unknown_elements_become_un_and_creators_lo(tmp_path: Path) -> None:
    reencoded(implicit((0x00290010, b"CREATOR "), (0x00291001, b"abcd"), (0x00400FFF, b"wxyz")), tmp_path / "out")

    written = (tmp_path / "out").read_bytes()
    assert b"\x29\x00\x10\x00LO\x08\x00CREATOR " in written
    assert b"\x29\x00\x01\x10UN\0\0\4\0\0\0abcd" in written
    assert b"\x40\x00\xff\x0fUN\0\0\4\0\0\0wxyz" in written


def test_private_sequence_of_known_length_keeps_its_bytes_and_of_undefined_length_its_elements(tmp_path: Path) -> None:
    inner = element(0x00080100, "SH", "CODE", transfer_syntax=IMPLICIT)
    known = sequence(0x00291001, [inner], transfer_syntax=IMPLICIT)
    undefined = sequence(0x00291002, [inner], transfer_syntax=IMPLICIT, undefined=True)
    head = implicit()

    found = reencoded(head + known + undefined, tmp_path / "out")

    written = (tmp_path / "out").read_bytes()
    assert b"\x29\x00\x01\x10UN\0\0" + struct.pack("<I", len(item(inner))) + item(inner) in written
    assert found.notes == ()
    assert read(tmp_path / "out")[0x00291002].value[0].CodeValue == "CODE"


@pytest.mark.parametrize("representation, vr", [(0, b"US"), (1, b"SS")])
def test_us_or_ss_is_settled_by_the_pixel_representation_wherever_it_stands(
    representation: int, vr: bytes, tmp_path: Path
) -> None:
    early = sequence(
        0x00221450,
        [element(0x00221452, "US", b"\1\0", transfer_syntax=IMPLICIT)],
        transfer_syntax=IMPLICIT,
        undefined=True,
    )
    late = [(0x00280103, struct.pack("<H", representation)), (0x00280106, b"\2\0")]
    content = implicit() + early + b"".join(element(tag, "US", v, transfer_syntax=IMPLICIT) for tag, v in late)

    reencoded(content, tmp_path / "out")

    written = (tmp_path / "out").read_bytes()
    assert b"\x22\x00\x52\x14" + vr in written
    assert b"\x28\x00\x06\x01" + vr in written


@pytest.mark.parametrize("entries, vr", [(1, b"US"), (256, b"OW")])
def test_lut_data_is_settled_by_its_descriptor(entries: int, vr: bytes, tmp_path: Path) -> None:
    lut = b"".join(
        element(tag, "US", value, transfer_syntax=IMPLICIT)
        for tag, value in [(0x00283002, struct.pack("<HHH", entries, 0, 16)), (0x00283006, b"\1\0")]
    )

    reencoded(implicit() + sequence(0x00283000, [lut], transfer_syntax=IMPLICIT), tmp_path / "out")

    assert b"\x28\x00\x06\x30" + vr in (tmp_path / "out").read_bytes()


def test_group_lengths_are_left_out_and_odd_values_padded(tmp_path: Path) -> None:
    content = instance_bytes(extra=element(0x00280000, "UL", 7) + element(0x00283010, "LO", "odd", pad=False))

    found = reencoded(content, tmp_path / "out")

    written = read(tmp_path / "out")
    assert found.notes == ()
    assert 0x00280000 not in written
    assert written[0x00283010].value == "odd"


def test_compressed_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotReencode):
        reencoded(instance_bytes(transfer_syntax=RLE), tmp_path / "out")
    with pytest.raises(CannotReencode):
        reencoded(instance_bytes(extra=sequence(0x00880200, [encapsulated([b"icon"])])), tmp_path / "out")
    overrun = struct.pack("<HH2sH", 0x0008, 0x0100, b"SH", 50) + b"abcd"
    with pytest.raises(CannotReencode):
        reencoded(instance_bytes(extra=sequence(0x00400275, [overrun])), tmp_path / "out")
    with pytest.raises(InvalidInstance) as problem:
        reencoded(instance_bytes(transfer_syntax=IMPLICIT)[:-1], tmp_path / "out")
    assert problem.value.verdict is Verdict.SHORT


def test_implicit_sequences_of_known_length_are_entered(tmp_path: Path) -> None:
    inner = element(0x00080100, "SH", "CODE", transfer_syntax=IMPLICIT)
    nested = sequence(0x00400008, [inner, inner], transfer_syntax=IMPLICIT)

    reencoded(implicit() + sequence(0x00400275, [nested, b""], transfer_syntax=IMPLICIT), tmp_path / "out")

    written = read(tmp_path / "out")
    assert [each.CodeValue for each in written[0x00400275].value[0][0x00400008].value] == ["CODE", "CODE"]
    assert len(written[0x00400275].value[1]) == 0
