"""The canonical digest: the same object written with other lengths is the same, and nothing else is."""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path

import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ingestd.instance import InvalidInstance, Verdict, canonical_digest, differing_attributes, inspect
from tests.builders import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    RLE,
    delimiter,
    element,
    encapsulated,
    instance_bytes,
    item,
    part10,
    sequence,
)
from tests.instance.test_bundle import BUNDLE, admitted


def digest_of(content: bytes) -> str:
    fd = os.memfd_create("digest")
    try:
        os.write(fd, content)
        return canonical_digest(fd)
    finally:
        os.close(fd)


def raw_digest_of(content: bytes) -> str:
    fd = os.memfd_create("digest")
    try:
        os.write(fd, content)
        return inspect(fd).digest
    finally:
        os.close(fd)


def with_sequences(transfer_syntax: str, *, undefined: bool) -> bytes:
    inner = transfer_syntax if transfer_syntax in {IMPLICIT, BIG_ENDIAN} else EXPLICIT

    def one(value: str) -> bytes:
        return element(0x00080100, "SH", value, transfer_syntax=inner)

    deep = sequence(0x00400008, [one("A"), one("B")], transfer_syntax=inner, undefined=undefined)
    empty = sequence(0x00400275, [], transfer_syntax=inner, undefined=undefined)
    hollow = sequence(0x00400555, [b""], transfer_syntax=inner, undefined=undefined)
    outer = sequence(0x00540016, [deep + one("C"), one("D")], transfer_syntax=inner, undefined=undefined)
    return instance_bytes(
        transfer_syntax=transfer_syntax,
        study_uid="1.2.3",
        series_uid="1.2.4",
        sop_uid="1.2.5",
        extra=empty + hollow + outer,
    )


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED, RLE])
def test_defined_and_undefined_lengths_are_the_same_object(transfer_syntax: str) -> None:
    defined = with_sequences(transfer_syntax, undefined=False)
    undefined = with_sequences(transfer_syntax, undefined=True)

    assert raw_digest_of(defined) != raw_digest_of(undefined)
    assert digest_of(defined) == digest_of(undefined)


def test_private_implicit_sequence_is_flattened_as_well() -> None:
    def private(*, undefined: bool) -> bytes:
        inner = element(0x00291010, "LO", "value", transfer_syntax=IMPLICIT)
        extra = sequence(0x00291000, [inner, inner], transfer_syntax=IMPLICIT, undefined=undefined)
        return instance_bytes(transfer_syntax=IMPLICIT, study_uid="1", series_uid="2", sop_uid="3", extra=extra)

    assert digest_of(private(undefined=False)) == digest_of(private(undefined=True))


def test_group_lengths_and_trailing_padding_do_not_count() -> None:
    elements = [element(0x00080018, "UI", "1.2.3"), element(0x00100010, "PN", "A")]
    plain = part10(b"".join(elements), sop_uid="1.2.3")
    padded = part10(
        element(0x00080000, "UL", 999)
        + element(0x00080001, "UL", 77)
        + elements[0]
        + element(0x00100000, "UL", 12)
        + elements[1]
        + element(0xFFFCFFFC, "OB", bytes(50)),
        sop_uid="1.2.3",
    )

    assert digest_of(plain) == digest_of(padded)


@pytest.mark.parametrize(
    "tag, vr, one, other",
    [
        (0x00080070, "LO", b"text", b"text  "),
        (0x00080014, "UI", b"1.2", b"1.2\0"),
        (0x00104000, "LT", b"text", b"text\0"),
        (0x00420011, "OB", b"abc", b"abc\0"),
        (0x00291010, "UN", b"abc", b"abc\0"),
        (0x00291010, "OB", b"\1\2\3", b"\1\2\3\0"),
        (0x00291010, "LO", b"abc", b"abc "),
    ],
)
def test_padding_of_values_does_not_count(tag: int, vr: str, one: bytes, other: bytes) -> None:
    def with_value(value: bytes, vr: str) -> str:
        return digest_of(part10(element(tag, vr, value, pad=False), sop_uid="1.2.3"))

    assert with_value(one, vr) == with_value(other, vr) == with_value(other, "UN")


@pytest.mark.parametrize(
    "vr, one, other",
    [
        ("LO", b"text", b" text "),
        ("US", b"\1\0", b"\1\0\0\0"),
        ("OB", b"ab\0\0", b"ab"),
        ("US", b"\0\0", b"\0 "),
        ("UL", b"\0\0\0\0", b"\0\0\0 "),
        ("SS", b"\xff\0", b"\xff "),
        ("FD", bytes(8), bytes(7) + b" "),
        ("OB", b"\1\2\3\0", b"\1\2\3 "),
        ("UN", b"\1\2\3", b"\1\2\3 "),
        ("LT", b"a" * 200_000, b"a" * 199_999 + b"b"),
        ("OW", b"a" * 200_000, b"b" + b"a" * 199_999),
    ],
)
def test_other_values_are_another_object(vr: str, one: bytes, other: bytes) -> None:
    def with_value(value: bytes) -> bytes:
        return part10(element(0x00291010, "UT" if len(value) > 65_000 and vr == "LT" else vr, value), sop_uid="1.2.3")

    assert digest_of(with_value(one)) != digest_of(with_value(other))


def test_no_standard_attribute_is_left_out_but_those_about_lengths() -> None:
    """Whatever an attribute is for: where two copies differ in it alone, they are not the same object."""

    def differs(tag: int) -> bool:
        uid = element(0x00080018, "UI", "1.2.3")
        one, other = (part10(uid + element(tag, "UN", value), sop_uid="1.2.3") for value in (b"ab", b"cd"))
        return digest_of(one) != digest_of(other)

    standard = [tag for tag in DicomDictionary if tag >> 16 > 0x0002 and tag >> 16 != 0xFFFE]

    assert len(standard) > 4_000
    assert {tag for tag in standard if not differs(tag) and tag & 0xFFFF} == {0x00080001, 0xFFFCFFFC}


def test_other_structure_is_another_object() -> None:
    a, b = element(0x00080100, "SH", "A"), element(0x00080102, "SH", "B")
    contents = [
        sequence(0x00400275, [a + b]),
        sequence(0x00400275, [a, b]),
        sequence(0x00400275, [a]) + b,
        sequence(0x00400275, [a, b, b""]),
        sequence(0x00400275, [sequence(0x00400275, [a]) + b]),
        sequence(0x00400276, [a, b]),
        a + b,
        b"",
        encapsulated([b"ab"]),
        encapsulated([b"a", b"b"]),
    ]

    digests = [digest_of(part10(element(0x00080018, "UI", "1.2.3") + content, sop_uid="1.2.3")) for content in contents]

    assert [digests.index(digest) for digest in digests] == list(range(len(contents)))


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, RLE])
def test_one_changed_byte_of_pixels_is_another_object(transfer_syntax: str) -> None:
    one = instance_bytes(transfer_syntax=transfer_syntax, study_uid="1", series_uid="2", sop_uid="3")
    other = bytearray(one)
    other[-40] ^= 1

    assert digest_of(one) != digest_of(bytes(other))


def test_un_of_undefined_length_is_hashed_by_its_elements() -> None:
    inner = element(0x00291010, "LO", "value", transfer_syntax=IMPLICIT)

    def private(content: bytes) -> bytes:
        return part10(
            element(0x00291000, "UN", content + delimiter(0xE0DD), length=0xFFFFFFFF, pad=False), sop_uid="1.2.3"
        )

    known = part10(element(0x00291000, "UN", item(inner)), sop_uid="1.2.3")
    as_sequence = part10(sequence(0x00291000, [element(0x00291010, "LO", "value")]), sop_uid="1.2.3")
    digests = {digest_of(private(item(inner))), digest_of(private(item(inner, undefined=True)))}
    assert digests == {digest_of(known)} == {digest_of(as_sequence)}


def test_content_that_is_no_elements_is_hashed_as_bytes() -> None:
    def broken(last: bytes) -> bytes:
        overrun = struct.pack("<HH2sH", 0x0008, 0x0100, b"SH", 50) + last
        return part10(sequence(0x00081140, [overrun]), sop_uid="1.2.3")

    assert digest_of(broken(b"abcd")) == digest_of(broken(b"abcd"))
    assert digest_of(broken(b"abcd")) != digest_of(broken(b"abce"))


@pytest.mark.parametrize("undefined", [False, True])
def test_16_bit_lengths_where_32_belong_do_not_count(undefined: bool) -> None:
    def with_numbers(*, short: bool) -> str:
        values = [(0x00720082, b"SV", b"\2" + bytes(7)), (0x00720083, b"UV", bytes(8)), (0x00720084, b"UV", b"")]
        elements = b"".join(
            struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
            + (struct.pack("<H", len(value)) if short else struct.pack("<HI", 0, len(value)))
            + value
            for tag, vr, value in values
        )
        extra = elements + sequence(0x00740010, [elements], undefined=undefined)
        return digest_of(instance_bytes(study_uid="1", series_uid="2", sop_uid="3", extra=extra))

    assert with_numbers(short=True) == with_numbers(short=False)


def test_missing_delimiter_at_the_end_of_the_file_does_not_count() -> None:
    whole = instance_bytes(transfer_syntax=RLE, study_uid="1", series_uid="2", sop_uid="3")

    assert digest_of(whole[:-8]) == digest_of(whole)


def test_truncated_file_has_no_digest() -> None:
    with pytest.raises(InvalidInstance) as problem:
        digest_of(instance_bytes()[:-1])

    assert problem.value.verdict is Verdict.SHORT


@pytest.mark.parametrize("path", admitted(), ids=lambda path: str(path.relative_to(BUNDLE)))
def test_bundled_file_saved_anew_by_pydicom_is_the_same_object(path: Path) -> None:
    """As a PACS does it: every sequence once with defined, once with undefined lengths, File Meta written anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = pydicom.dcmread(path, force=True)
        if "TransferSyntaxUID" not in read.file_meta or path.name in {"SC_rgb_jpeg.dcm", "SC_rgb_jpeg_dcmd.dcm"}:
            pytest.skip("pydicom does not write it as it was")
        saved = []
        for undefined in (False, True):
            set_lengths(read, undefined=undefined)
            out = io.BytesIO()
            read.save_as(out)
            saved.append(out.getvalue())

    digests = {digest_of(content) for content in saved}

    assert digests == {digest_of(path.read_bytes())}


def set_lengths(dataset: Dataset, *, undefined: bool) -> None:
    for each in dataset:
        if each.VR == "SQ" and isinstance(each.value, Sequence):
            each.is_undefined_length = undefined
            for inner in each.value:
                inner.is_undefined_length_sequence_item = undefined
                set_lengths(inner, undefined=undefined)


def differences(one: bytes, other: bytes) -> tuple[str, ...]:
    fds = [os.memfd_create("one"), os.memfd_create("other")]
    try:
        for fd, content in zip(fds, (one, other), strict=True):
            os.write(fd, content)
        return differing_attributes(*fds)
    finally:
        for fd in fds:
            os.close(fd)


def test_attributes_that_differ_are_named_and_nothing_of_their_values():
    uids = {"study_uid": "1.2.1", "series_uid": "1.2.2", "sop_uid": "1.2.3"}
    inner = sequence(0x00400275, [element(0x00080100, "SH", "CODE")])
    plain = instance_bytes(**uids, extra=inner)

    renamed = instance_bytes(**uids, patient_name="Other^Name", extra=inner)
    deep = instance_bytes(**uids, extra=sequence(0x00400275, [element(0x00080100, "SH", "OTHER")]))
    lacking = instance_bytes(**uids)
    undefined = instance_bytes(**uids, extra=sequence(0x00400275, [element(0x00080100, "SH", "CODE")], undefined=True))
    lighter = bytearray(plain)
    lighter[-1] ^= 1

    assert differences(plain, renamed) == ("PatientName (0010,0010)",)
    assert differences(plain, deep) == differences(plain, lacking) == ("RequestAttributesSequence (0040,0275)",)
    assert differences(plain, undefined) == ()
    assert differences(plain, bytes(lighter)) == ("PixelData (7FE0,0010)",)
