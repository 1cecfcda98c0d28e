"""What ingestd.instance says of one file: verdicts, facts, digests, notes."""

from __future__ import annotations

import gc
import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Literal

import pytest

from ingestd.instance import NOTES, Inspection, Verdict, file_meta_for, inspect, opening, read_uids
from ingestd.instance.text import decode_text
from tests import builders
from tests.builders import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG_BASELINE,
    RLE,
    element,
    encapsulated,
    file_meta,
    instance_bytes,
    item,
    part10,
    sequence,
)
from tests.charsets import MISSPELT
from tests.test_digests import blake3_of

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"
RAW_DATA = "1.2.840.10008.5.1.4.1.1.66"


def look(content: bytes, tmp_path: Path) -> Inspection:
    path = tmp_path / "file"
    path.write_bytes(content)
    return look_at(path)


def look_at(path: Path) -> Inspection:
    fd = os.open(path, os.O_RDONLY)
    try:
        return inspect(fd)
    finally:
        os.close(fd)


def dataset(*elements: bytes, sop_class: str = RAW_DATA, transfer_syntax: str = EXPLICIT) -> bytes:
    """A data set with the three UIDs, and these elements behind them."""
    head = [
        element(0x00080016, "UI", sop_class, transfer_syntax=transfer_syntax),
        element(0x00080018, "UI", "1.2.3", transfer_syntax=transfer_syntax),
        element(0x0020000D, "UI", "1.2.4", transfer_syntax=transfer_syntax),
        element(0x0020000E, "UI", "1.2.5", transfer_syntax=transfer_syntax),
    ]
    return b"".join([*head, *elements])


def raw_file(*elements: bytes, transfer_syntax: str = EXPLICIT) -> bytes:
    inner = transfer_syntax if transfer_syntax in {IMPLICIT, BIG_ENDIAN} else EXPLICIT
    content = dataset(*elements, transfer_syntax=inner)
    return part10(content, sop_class=RAW_DATA, sop_uid="1.2.3", transfer_syntax=transfer_syntax)


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED, RLE])
def test_whole_file_is_whole_in_every_encoding(transfer_syntax: str, tmp_path: Path) -> None:
    content = instance_bytes(
        transfer_syntax=transfer_syntax, study_uid="1.2.10", series_uid="1.2.11", sop_uid="1.2.12", frames=3
    )

    found = look(content, tmp_path)

    assert (found.verdict, found.reason_text, found.notes) == (Verdict.WHOLE, "", ())
    assert (found.study_uid, found.series_uid, found.sop_uid) == ("1.2.10", "1.2.11", "1.2.12")
    assert found.sop_class_uid == builders.CT_IMAGE
    assert found.transfer_syntax == transfer_syntax
    assert (found.modality, found.station, found.accession_number) == ("CT", "STATION", "ACC-1")
    assert found.patient_id == "PID-1"


@pytest.mark.parametrize(
    "character_set, encoding, text",
    [
        ("ISO_IR 100", "latin-1", "H\u00f4pital Nord"),
        ("ISO_IR 192", "utf-8", "\u5317 hospital"),
        ("", "ascii", "North"),
    ],
)
@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED])
def test_what_rules_match_is_read_in_the_files_character_set(
    character_set: str, encoding: str, text: str, transfer_syntax: str, tmp_path: Path
) -> None:
    inner = EXPLICIT if transfer_syntax == DEFLATED else transfer_syntax
    texts = ((0x00080080, "a"), (0x00081030, "b"), (0x00081040, "c"))
    head = element(0x00080005, "CS", character_set, transfer_syntax=inner) + b"".join(
        element(tag, "LO", f"{word} {text}".encode(encoding), transfer_syntax=inner) for tag, word in texts
    )
    content = part10(
        head + dataset(transfer_syntax=inner), sop_class=RAW_DATA, sop_uid="1.2.3", transfer_syntax=transfer_syntax
    )

    found = look(content, tmp_path)

    assert (found.verdict, found.notes) == (Verdict.WHOLE, ())
    assert (found.institution, found.study_description, found.department) == (f"a {text}", f"b {text}", f"c {text}")


@pytest.mark.parametrize("written, read", [(b" CT_ER  ", "CT_ER"), (b"", ""), (b"CT\xff1", "CT?1")])
def test_the_source_is_who_group_0002_says_it_is(written: bytes, read: str, tmp_path: Path) -> None:
    content = instance_bytes()
    last = content.index(b"\x08\x00\x05\x00")
    title = element(0x00020016, "AE", written)

    found = look(content[:last] + title + content[last:], tmp_path)

    assert (found.source_ae, found.verdict) == (read, Verdict.WHOLE)
    assert look(instance_bytes(), tmp_path).source_ae == ""


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, DEFLATED, RLE])
@pytest.mark.parametrize("rows", [4, 700])
def test_digests_are_those_of_the_bytes_before_and_behind_the_meta_group(
    transfer_syntax: str, rows: int, tmp_path: Path
) -> None:
    content = instance_bytes(transfer_syntax=transfer_syntax, rows=rows, columns=700)

    found = look(content, tmp_path)

    at = found.dataset_offset
    assert content[at - 10 : at].strip(b"\0").endswith(b"999.0")
    assert found.meta_digest == blake3_of(content[:at])
    assert found.digest == blake3_of(content[at:])
    stat = (tmp_path / "file").stat()
    assert (found.size_bytes, found.inode, found.device, found.mtime_ns) == (
        len(content),
        stat.st_ino,
        stat.st_dev,
        stat.st_mtime_ns,
    )


def test_empty_file_and_file_of_zeros_are_empty(tmp_path: Path) -> None:
    assert look(b"", tmp_path).verdict is Verdict.EMPTY
    assert look(bytes(10), tmp_path).verdict is Verdict.EMPTY
    assert look(bytes(300_000), tmp_path).verdict is Verdict.EMPTY


@pytest.mark.parametrize(
    "content",
    [
        b"Dear patient,\n" * 20,
        b"short text",
        b"%PDF-1.7\n" + bytes(range(256)) * 10,
        b"\x89PNG\r\n\x1a\n" + bytes(2000),
        bytes(200) + b"x" * 200,
    ],
)
def test_other_files_are_not_dicom(content: bytes, tmp_path: Path) -> None:
    assert look(content, tmp_path).verdict is Verdict.NOT_DICOM


def zipped(*names: str, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name in names:
            archive.writestr(name, instance_bytes())
    return out.getvalue()


def tarred(how: Literal["w", "w:gz", "w:bz2", "w:xz"], kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=how, format=kind) as archive:
        one = tarfile.TarInfo("study/one.dcm")
        one.size = len(instance_bytes())
        archive.addfile(one, io.BytesIO(instance_bytes()))
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        zipped("study/one.dcm"),
        zipped("one.dcm", method=zipfile.ZIP_STORED),
        zipped(),
        b"PK\x07\x08" + zipped("spanned.dcm"),
        tarred("w"),
        tarred("w", tarfile.USTAR_FORMAT),
        tarred("w", tarfile.GNU_FORMAT),
        tarred("w:gz"),
        tarred("w:bz2"),
        tarred("w:xz"),
        gzip.compress(instance_bytes()),
        b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(range(256)) * 4,
        b"Rar!\x1a\x07\x01\x00" + bytes(range(256)) * 4,
        b"Rar!\x1a\x07\x00" + bytes(range(256)) * 4,
        b"\x28\xb5\x2f\xfd" + bytes(range(256)) * 4,
        bytes(32_768) + b"\x01CD001\x01\x00" + bytes(3000),
    ],
)
def test_archive_is_told_by_its_first_bytes(content: bytes, tmp_path: Path) -> None:
    found = look(content, tmp_path)

    assert found.verdict is Verdict.ARCHIVE
    assert "archive" in found.reason_text


@pytest.mark.parametrize("first", ["[Content_Types].xml", "mimetype", "_rels/.rels", "META-INF/MANIFEST.MF"])
def test_document_in_a_zip_is_no_archive(first: str, tmp_path: Path) -> None:
    assert look(zipped(first, "word/document.xml"), tmp_path).verdict is Verdict.NOT_DICOM


def test_dicom_file_whose_preamble_is_that_of_another_format_is_dicom(tmp_path: Path) -> None:
    for preamble in (b"PK\x03\x04", b"\x1f\x8b\x08", b"II*\0"):
        whole = instance_bytes()
        assert look(preamble + whole[len(preamble) :], tmp_path).verdict is Verdict.WHOLE


def test_beginning_of_a_preamble_waits(tmp_path: Path) -> None:
    preamble = b"II*\0\x54\x18\x08\0" + bytes(120)
    content = file_meta(sop_uid="1.2.3", preamble=preamble)

    verdicts = {look(content[:cut], tmp_path).verdict for cut in range(1, len(content) + 1)}

    assert verdicts == {Verdict.SHORT}


def test_directory_is_told_by_its_class_and_by_its_records(tmp_path: Path) -> None:
    by_class = file_meta(sop_class="1.2.840.10008.1.3.10", sop_uid="1.2.3")
    by_records = raw_file(sequence(0x00041220, []))

    assert look(by_class + b"whatever", tmp_path).verdict is Verdict.DICOMDIR
    # In the order of tags the records come first; the place does not matter here.
    assert look(by_records, tmp_path).verdict is Verdict.DICOMDIR


@pytest.mark.parametrize(
    "study_uid, reason",
    [("", "empty"), ("1.2.x", "not a UID"), ("1" * 65, "not a UID"), ("../../etc", "not a UID"), ("..", "not a UID")],
)
def test_file_without_a_valid_uid_is_told_so(study_uid: str, reason: str, tmp_path: Path) -> None:
    elements = (
        element(0x00080018, "UI", "1.2.3")
        + element(0x0020000D, "UI", study_uid)
        + element(0x0020000E, "UI", "1.2.5")
        + element(0x00200010, "SH", "1")
    )

    found = look(part10(elements, sop_uid="1.2.3"), tmp_path)

    assert found.verdict is Verdict.NO_UIDS
    assert reason in found.reason_text
    assert study_uid not in found.reason_text or not study_uid
    assert found.study_uid == ""


def test_uid_that_stands_twice_with_two_values_is_no_identity(tmp_path: Path) -> None:
    found = look(raw_file(element(0x0020000D, "UI", "9.9.9")), tmp_path)
    again = look(raw_file(element(0x0020000D, "UI", "1.2.4")), tmp_path)

    assert found.verdict is Verdict.NO_UIDS
    assert (again.verdict, again.notes) == (Verdict.WHOLE, ("duplicate_element",))


def test_uid_padding_is_stripped_and_leading_zeros_are_noted(tmp_path: Path) -> None:
    elements = (
        element(0x00080016, "UI", RAW_DATA)
        + element(0x00080018, "UI", "1.2.03 ")
        + element(0x0020000D, "UI", "1.2.4\0")
        + element(0x0020000E, "UI", " 1.2.0")
    )

    found = look(part10(elements, sop_class=RAW_DATA, sop_uid="1.2.03"), tmp_path)

    assert (found.sop_uid, found.study_uid, found.series_uid) == ("1.2.03", "1.2.4", "1.2.0")
    assert found.notes == ("uid_leading_zero",)


def test_patient_id_may_be_absent_or_empty(tmp_path: Path) -> None:
    absent = look(instance_bytes(patient_id=None), tmp_path)
    empty = look(instance_bytes(patient_id=""), tmp_path)

    assert absent.patient_id == empty.patient_id == ""
    assert absent.verdict is empty.verdict is Verdict.WHOLE


def test_patient_id_is_decoded_with_the_character_set_of_the_file(tmp_path: Path) -> None:
    greek = part10(
        element(0x00080005, "CS", "ISO_IR 126")
        + dataset()[: len(element(0x00080016, "UI", RAW_DATA)) + len(element(0x00080018, "UI", "1.2.3"))]
        + element(0x00100020, "LO", "Δ1".encode("iso8859-7"))
        + dataset()[len(element(0x00080016, "UI", RAW_DATA)) + len(element(0x00080018, "UI", "1.2.3")) :],
        sop_class=RAW_DATA,
        sop_uid="1.2.3",
    )
    undecodable = greek.replace(b"ISO_IR 126", b"ISO_IR 192")

    assert look(greek, tmp_path).patient_id == "Δ1"
    found = look(undecodable, tmp_path)
    assert (found.verdict, found.notes) == (Verdict.WHOLE, ("patient_id_undecodable",))
    assert found.patient_id == "Δ1".encode("iso8859-7").decode("latin-1")


@pytest.mark.parametrize("charset", MISSPELT)
def test_patient_id_is_what_a_person_types_where_the_character_set_is_misspelt(charset: str, tmp_path: Path) -> None:
    """It was kept as Latin-1, so that ``status patient=`` missed the study."""
    typed, codec = MISSPELT[charset]
    values = {0x00080016: RAW_DATA, 0x00080018: "1.2.3", 0x0020000D: "1.2.4", 0x0020000E: "1.2.5"}
    elements = {tag: element(tag, "UI", value) for tag, value in values.items()}
    elements[0x00080005] = element(0x00080005, "CS", charset)
    elements |= {tag: element(tag, "LO", typed.encode(codec)) for tag in (0x00080050, 0x00100020)}

    found = look(part10(b"".join(elements[tag] for tag in sorted(elements)), sop_uid="1.2.3"), tmp_path)

    assert (found.patient_id, found.accession_number) == (typed, typed)
    is_guessed = charset in {"no such set", "\\ISO IR 192"}
    assert ("patient_id_undecodable" in found.notes, "accession_undecodable" in found.notes) == (is_guessed, is_guessed)


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, BIG_ENDIAN, DEFLATED])
def test_what_names_an_instance_is_read_where_it_is_written_as_un(transfer_syntax: str, tmp_path: Path) -> None:
    inner = BIG_ENDIAN if transfer_syntax == BIG_ENDIAN else EXPLICIT
    values = {
        0x00080016: RAW_DATA, 0x00080018: "1.2.3", 0x00080050: "ACC", 0x00100020: "PID",
        0x0020000D: "1.2.4", 0x0020000E: "1.2.5",
    }  # fmt: skip
    content = b"".join(element(tag, "UN", value, transfer_syntax=inner) for tag, value in values.items())

    found = look(part10(content, sop_class=RAW_DATA, sop_uid="1.2.3", transfer_syntax=transfer_syntax), tmp_path)

    assert (found.verdict, found.notes) == (Verdict.WHOLE, ())
    assert (found.study_uid, found.series_uid, found.sop_uid) == ("1.2.4", "1.2.5", "1.2.3")
    assert (found.sop_class_uid, found.accession_number, found.patient_id) == (RAW_DATA, "ACC", "PID")
    with (tmp_path / "file").open("rb") as file:
        assert read_uids(file.fileno()) == ("1.2.4", "1.2.5", "1.2.3")


def test_text_that_is_not_as_its_label_says_is_read_as_utf_8_where_it_is_that() -> None:
    """Who searches for it types what is meant."""
    assert decode_text("Δ1".encode(), b"no such thing") == ("Δ1", False)
    assert decode_text("Δ1".encode(), b"ISO_IR 6") == ("Δ1", True)
    assert decode_text("Δ1".encode(), b"") == ("Δ1", True)
    assert decode_text(b"\xc41", b"no such thing") == ("\xc41", False)
    assert decode_text(b"\xc41", b"") == ("\xc41", True)


def test_data_set_without_meta_is_admitted_with_a_generated_one(tmp_path: Path) -> None:
    for transfer_syntax in (EXPLICIT, IMPLICIT, BIG_ENDIAN):
        bare = instance_bytes(meta=False, transfer_syntax=transfer_syntax)

        found = look(bare, tmp_path)

        assert (found.verdict, found.generated_meta, found.notes) == (Verdict.WHOLE, True, ("generated_meta",))
        assert (found.dataset_offset, found.transfer_syntax) == (0, transfer_syntax)
        assert found.meta_digest == blake3_of(b"")
        assert found.digest == blake3_of(bare)
        meta = file_meta_for(
            sop_class_uid=found.sop_class_uid, sop_uid=found.sop_uid, transfer_syntax=found.transfer_syntax
        )
        complete = look(meta + bare, tmp_path)
        assert (complete.verdict, complete.notes, complete.generated_meta) == (Verdict.WHOLE, (), False)
        assert complete.digest == found.digest


def test_generated_meta_is_the_same_every_time_and_valid() -> None:
    pydicom = pytest.importorskip("pydicom")

    first, second = (
        file_meta_for(sop_class_uid=RAW_DATA, sop_uid="1.2.3.45", transfer_syntax=IMPLICIT) for _ in range(2)
    )

    assert first == second
    read = pydicom.dcmread(io.BytesIO(first))
    pydicom.dataset.validate_file_meta(read.file_meta, enforce_standard=True)
    assert read.file_meta.MediaStorageSOPInstanceUID == "1.2.3.45"
    assert read.file_meta.TransferSyntaxUID == IMPLICIT
    assert read.file_meta.ImplementationClassUID.is_valid
    assert read.file_meta.FileMetaInformationGroupLength == len(first) - 144


def test_file_with_meta_but_no_preamble_is_admitted(tmp_path: Path) -> None:
    content = instance_bytes()

    for head in (132, 128):
        found = look(content[head:], tmp_path)
        assert (found.verdict, found.notes) == (Verdict.WHOLE, ("no_preamble",))
        assert found.digest == look(content, tmp_path).digest


def meta_element(number: int, vr: str, value: bytes | str, form: str) -> bytes:
    """One element of group 0002 as toolkits have written them."""
    tag = 0x00020000 | number
    if form == "implicit":
        return element(tag, vr, value, transfer_syntax=IMPLICIT)
    if form == "unknown":
        return element(tag, "UN", value)
    if form == "invented" or (form == "short" and vr == "OB"):
        content = element(tag, vr, value)[12 if vr == "OB" else 8 :]
        name = b"ZZ" if form == "invented" else b"OB"
        return struct.pack("<HH2sH", 0x0002, number, name, len(content)) + content
    return element(tag, vr, value)


META = [
    (0x0001, "OB", b"\0\1"),
    (0x0002, "UI", RAW_DATA),
    (0x0003, "UI", "1.2.3"),
    (0x0010, "UI", ""),
    (0x0012, "UI", "1.2.9"),
    (0x0013, "SH", "TOOLKIT"),
    (0x0016, "AE", "STORE"),
]


@pytest.mark.parametrize("form", ["explicit", "implicit", "unknown", "invented", "short"])
@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED])
@pytest.mark.parametrize("begin", [b"", b"DICM", bytes(128) + b"DICM"], ids=["bare", "prefix", "preamble"])
def test_meta_group_is_known_by_any_element_in_any_form(
    begin: bytes, transfer_syntax: str, form: str, tmp_path: Path
) -> None:
    whole = raw_file(transfer_syntax=transfer_syntax)
    behind = whole[look(whole, tmp_path).dataset_offset :]
    values = [(number, vr, transfer_syntax if number == 0x0010 else value) for number, vr, value in META]

    for first in range(4):
        for with_length in (False, True):
            group = b"".join(meta_element(*each, form) for each in values[first:])
            if with_length:
                group = meta_element(0x0000, "UL", struct.pack("<I", len(group)), form) + group
            found = look(begin + group + behind, tmp_path)
            assert (found.verdict, found.transfer_syntax) == (Verdict.WHOLE, transfer_syntax), (first, with_length)
            assert found.dataset_offset == len(begin) + len(group)
            assert found.digest == blake3_of(behind)
            assert ("no_preamble" in found.notes) is (len(begin) < 132)
            assert ("no_group_length" in found.notes) is not with_length


@pytest.mark.parametrize("form", ["explicit", "implicit", "unknown"])
def test_transfer_syntax_alone_is_a_meta_group(form: str, tmp_path: Path) -> None:
    found = look(meta_element(0x0010, "UI", IMPLICIT, form) + dataset(transfer_syntax=IMPLICIT), tmp_path)

    assert (found.verdict, found.transfer_syntax) == (Verdict.WHOLE, IMPLICIT)


@pytest.mark.parametrize("form", ["explicit", "implicit", "unknown", "short"])
def test_meta_group_without_preamble_that_is_cut_anywhere_waits(form: str, tmp_path: Path) -> None:
    values = [(number, vr, EXPLICIT if number == 0x0010 else value) for number, vr, value in META]
    content = b"".join(meta_element(*each, form) for each in values) + dataset()

    verdicts = {look(content[:cut], tmp_path).verdict for cut in range(1, len(content))}

    assert verdicts == {Verdict.SHORT}


@pytest.mark.parametrize(
    "begin",
    [
        struct.pack("<5I", 2, 4, 2, 10, 20),
        struct.pack("<5I", 2, 0, 0, 1, 1),
        struct.pack("<4I", 0x00010002, 2, 3, 4),
        struct.pack("<2H2I", 2, 2, 4, 0x31313131),
        struct.pack("<2H", 2, 0x10) + b"\x08\0\0\0notauid!",
        struct.pack("<2H", 2, 0x4711) + b"UL\x04\0",
        b"\x02\0RIFF",
    ],
)
def test_other_files_that_begin_with_a_two_are_not_dicom(begin: bytes, tmp_path: Path) -> None:
    assert look(begin + bytes(range(256)) * 4, tmp_path).verdict is Verdict.NOT_DICOM


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_prefix_in_a_value_of_a_bare_data_set_is_no_prefix(transfer_syntax: str, tmp_path: Path) -> None:
    head = dataset(transfer_syntax=transfer_syntax)[: len(dataset()) - 2 * len(element(0x0020000D, "UI", "1.2.4"))]
    behind = dataset(transfer_syntax=transfer_syntax)[len(head) :]
    filler = element(0x00080081, "ST", "x" * (128 - len(head) - 8) + "DICM", transfer_syntax=transfer_syntax)
    bare = head + filler + behind
    assert bare[128:132] == b"DICM"

    found = look(bare, tmp_path)
    after_meta = look(file_meta(sop_class=RAW_DATA, sop_uid="1.2.3", transfer_syntax=transfer_syntax) + bare, tmp_path)

    assert (found.verdict, found.notes, found.dataset_offset) == (Verdict.WHOLE, ("generated_meta",), 0)
    assert found.digest == after_meta.digest == blake3_of(bare)
    assert {look(bare[:cut], tmp_path).verdict for cut in range(1, len(bare))} <= {Verdict.EMPTY, Verdict.SHORT}


def test_prefix_in_a_value_of_a_bare_meta_group_is_no_prefix(tmp_path: Path) -> None:
    group = element(0x00020002, "UI", RAW_DATA) + element(0x00020003, "UI", "1.2.3")
    group += element(0x00020010, "UI", EXPLICIT)
    content = group + element(0x00020102, "OB", bytes(128 - len(group) - 12) + b"DICM") + dataset()
    assert content[128:132] == b"DICM"

    found = look(content, tmp_path)

    assert (found.verdict, found.dataset_offset) == (Verdict.WHOLE, 132)
    assert (found.sop_uid, found.transfer_syntax) == ("1.2.3", EXPLICIT)
    assert found.notes == ("no_group_length", "no_preamble")


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_data_set_right_behind_the_prefix_is_read_there(transfer_syntax: str, tmp_path: Path) -> None:
    for preamble in (bytes(128), b"\x08\0\x05\0CS\x0a\0" + bytes(120), b"II*\0" + bytes(124)):
        found = look(preamble + b"DICM" + dataset(transfer_syntax=transfer_syntax), tmp_path)

        assert (found.verdict, found.dataset_offset, found.transfer_syntax) == (Verdict.WHOLE, 132, transfer_syntax)


def test_meta_that_names_another_instance_is_noted_and_the_data_set_counts(tmp_path: Path) -> None:
    found = look(part10(dataset(), sop_class=RAW_DATA, sop_uid="7.7.7"), tmp_path)

    assert (found.verdict, found.sop_uid, found.notes) == (Verdict.WHOLE, "1.2.3", ("meta_uid_differs",))


def test_meta_group_length_may_be_missing_or_wrong(tmp_path: Path) -> None:
    content = raw_file()
    without = content[:132] + content[144:]
    wrong = content[:140] + struct.pack("<I", 4) + content[144:]

    assert look(without, tmp_path).notes == ("no_group_length",)
    assert look(wrong, tmp_path).notes == ("group_length_differs",)
    assert look(without, tmp_path).digest == look(wrong, tmp_path).digest == look(content, tmp_path).digest


def test_missing_transfer_syntax_is_found_out_from_the_data_set(tmp_path: Path) -> None:
    for transfer_syntax in (EXPLICIT, IMPLICIT, BIG_ENDIAN):
        meta = file_meta(sop_class=RAW_DATA, sop_uid="1.2.3", transfer_syntax="")
        found = look(meta + dataset(transfer_syntax=transfer_syntax), tmp_path)

        assert (found.verdict, found.notes) == (Verdict.WHOLE, ("no_transfer_syntax",))
        assert found.transfer_syntax == transfer_syntax


@pytest.mark.parametrize("declared", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("used", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_data_set_encoded_otherwise_than_declared_is_walked_as_it_is(declared: str, used: str, tmp_path: Path) -> None:
    content = file_meta(sop_class=RAW_DATA, sop_uid="1.2.3", transfer_syntax=declared) + dataset(transfer_syntax=used)

    found = look(content, tmp_path)

    assert found.verdict is Verdict.WHOLE
    assert found.notes == (() if declared == used else ("encoding_differs",))
    assert found.transfer_syntax == declared


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED])
def test_pixel_data_whose_declared_length_is_all_there_is_not_cut_off(transfer_syntax: str, tmp_path: Path) -> None:
    """A file that was cut off still declares the whole length; one that declares less was made so."""

    def with_pixels(size: int, cut: int = 0) -> Inspection:
        content = instance_bytes(
            rows=10, columns=10, bits=16, frames=30, pixels=b"\1" * size, transfer_syntax=transfer_syntax
        )
        return look(content[: len(content) - cut], tmp_path)

    for size in (0, 2, 1999, 3000, 29 * 200, 5998):
        found = with_pixels(size)
        assert (size, found.verdict, "pixel_data_shorter" in found.notes) == (size, Verdict.ZEROS, True)
        assert found.reason_text
        assert with_pixels(size, cut=2).verdict is Verdict.SHORT
    assert (with_pixels(6000).verdict, with_pixels(6000).notes) == (Verdict.WHOLE, ())
    assert (with_pixels(6002).verdict, with_pixels(6002).notes) == (Verdict.WHOLE, ("pixel_data_longer",))


def test_short_pixel_data_of_zeros_has_both_notes(tmp_path: Path) -> None:
    found = look(instance_bytes(rows=64, columns=64, pixels=bytes(4096)), tmp_path)

    assert (found.verdict, found.notes) == (Verdict.ZEROS, ("pixel_data_shorter", "zero_pixels"))


@pytest.mark.parametrize("vr", ["OB", "OW", "UN"])
@pytest.mark.parametrize("transfer_syntax", [JPEG_BASELINE, RLE, "1.2.840.10008.1.2.4.90", "1.3.46.670589.33.1.4.1"])
def test_compressed_pixel_data_with_a_length_of_its_own_is_whole(vr: str, transfer_syntax: str, tmp_path: Path) -> None:
    def with_pixels(value: bytes) -> Inspection:
        content = dataset(
            element(0x00280010, "US", 64),
            element(0x00280011, "US", 64),
            element(0x00280100, "US", 8),
            element(0x7FE00010, vr, value),
            sop_class=builders.CT_IMAGE,
        )
        return look(part10(content, sop_uid="1.2.3", transfer_syntax=transfer_syntax), tmp_path)

    jpeg = b"\xff\xd8" + bytes(range(1, 250)) + b"\xff\xd9"
    for value in (jpeg, item(b"") + item(jpeg) + builders.delimiter(0xE0DD), item(b"") + item(jpeg), jpeg * 100):
        assert (with_pixels(value).verdict, with_pixels(value).notes) == (Verdict.WHOLE, ("pixel_data_defined_length",))
    assert with_pixels(b"").verdict is Verdict.ZEROS
    assert with_pixels(bytes(5000)).verdict is Verdict.ZEROS


@pytest.mark.parametrize(
    "bits, samples, photometric, least",
    [
        (1, 1, "MONOCHROME2", 13),
        (8, 1, "MONOCHROME2", 99),
        (12, 1, "MONOCHROME2", 149),
        (8, 3, "RGB", 297),
        (8, 3, "YBR_FULL_422", 198),
        (8, 3, "YBR_PARTIAL_420", 148),
        (32, 1, "MONOCHROME2", 396),
    ],
)
def test_least_pixel_bytes_follow_bits_samples_and_subsampling(
    bits: int, samples: int, photometric: str, least: int, tmp_path: Path
) -> None:
    def with_pixels(size: int) -> Verdict:
        content = part10(
            dataset(
                element(0x00280002, "US", samples),
                element(0x00280004, "CS", photometric),
                element(0x00280010, "US", 9),
                element(0x00280011, "US", 11),
                element(0x00280100, "US", bits),
                element(0x7FE00010, "OB", b"\1" * size, pad=False),
            ),
            sop_class=RAW_DATA,
            sop_uid="1.2.3",
        )
        return look(content, tmp_path).verdict

    assert with_pixels(least) is Verdict.WHOLE
    assert with_pixels(least - 1) is Verdict.ZEROS


@pytest.mark.parametrize("tag, vr, size", [(0x7FE00008, "OF", 4), (0x7FE00009, "OD", 8)])
def test_float_pixel_data_is_checked_too(tag: int, vr: str, size: int, tmp_path: Path) -> None:
    def with_pixels(count: int) -> Verdict:
        rows, columns = element(0x00280010, "US", 5), element(0x00280011, "US", 5)
        return look(raw_file(rows, columns, element(tag, vr, b"\1" * count * size)), tmp_path).verdict

    assert with_pixels(25) is Verdict.WHOLE
    assert with_pixels(24) is Verdict.ZEROS


def test_encapsulated_pixel_data_is_never_compared_with_frames(tmp_path: Path) -> None:
    content = raw_file(
        element(0x00280008, "IS", "100"),
        element(0x00280010, "US", 512),
        element(0x00280011, "US", 512),
        element(0x00280100, "US", 16),
        encapsulated([b"frame"]),
        transfer_syntax=RLE,
    )

    assert look(content, tmp_path).verdict is Verdict.WHOLE


def test_encapsulated_pixel_data_without_its_delimiter_is_short(tmp_path: Path) -> None:
    whole = raw_file(encapsulated([b"\1" * 100, b"\2" * 100]), transfer_syntax=RLE)

    assert look(whole, tmp_path).verdict is Verdict.WHOLE
    assert look(whole[:-8], tmp_path).verdict is Verdict.SHORT
    assert look(whole[:-8] + bytes(8), tmp_path).verdict is Verdict.SHORT


JPEG = b"\xff\xd8\xff\xe0" + bytes(range(1, 250)) + b"\xff\xd9"
HALVES = [JPEG[:120], JPEG[120:]]


def with_fragments(*fragments: bytes, frames: int | None = None, table: bytes = b"") -> bytes:
    """Encapsulated pixel data that ends with its last fragment and the file."""
    return raw_file(
        b"" if frames is None else element(0x00280008, "IS", str(frames)),
        element(0x7FE00010, "OB", b"", length=0xFFFFFFFF),
        *(item(each + b"\0" * (len(each) % 2)) for each in (table, *fragments)),
        transfer_syntax=JPEG_BASELINE,
    )


@pytest.mark.parametrize(
    "content",
    [
        with_fragments(JPEG),
        with_fragments(JPEG[1:]),  # of odd length, so that a zero follows its end
        with_fragments(JPEG, frames=1, table=bytes(4)),
        with_fragments(*HALVES),
        with_fragments(*[JPEG] * 30, frames=30),
        with_fragments(*HALVES * 3, frames=3, table=struct.pack("<3I", 0, 271, 542)),
        with_fragments(JPEG * 5_000, frames=1),
    ],
)
def test_compressed_images_that_end_the_file_without_a_delimiter_wait(content: bytes, tmp_path: Path) -> None:
    """A maker's new scanners write every file so: the last image has its end, and the file ends there."""
    found = look(content, tmp_path)

    assert (found.verdict, found.notes) == (Verdict.ZEROS, ("missing_delimiter",))
    assert found.reason_text
    assert found.sop_uid == "1.2.3"
    assert found.digest == blake3_of(content[found.dataset_offset :])
    for cut in (1, 2, 3, 100, 200):
        assert look(content[:-cut], tmp_path).verdict is Verdict.SHORT


@pytest.mark.parametrize(
    "content",
    [
        with_fragments(JPEG, JPEG, frames=3),
        with_fragments(*HALVES, HALVES[0], frames=2),
        with_fragments(*HALVES, JPEG, JPEG[:100], frames=2),
        with_fragments(JPEG, table=struct.pack("<2I", 0, 271)),
        with_fragments(),
        with_fragments(b"\1" * 100),
        with_fragments(JPEG) + b"\xfe\xff\xdd\xe0",
        with_fragments(JPEG) + bytes(600),
    ],
)
def test_compressed_images_of_which_some_are_missing_are_short(content: bytes, tmp_path: Path) -> None:
    assert look(content, tmp_path).verdict is Verdict.SHORT


def test_pixel_data_of_zeros_waits_with_its_facts(tmp_path: Path) -> None:
    content = instance_bytes(rows=64, columns=64, pixels=bytes(8192))

    found = look(content, tmp_path)

    assert (found.verdict, found.notes) == (Verdict.ZEROS, ("zero_pixels",))
    assert found.study_uid
    assert found.reason_text
    assert found.digest == blake3_of(content[found.dataset_offset :])


def test_black_border_at_the_end_of_an_image_is_no_sign_of_a_hole(tmp_path: Path) -> None:
    pixels = b"\1" * 100_000 + bytes(31_072)

    assert look(instance_bytes(rows=256, columns=256, pixels=pixels), tmp_path).verdict is Verdict.WHOLE


def test_end_of_the_file_that_was_never_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = instance_bytes(rows=512, columns=512)
    with path.open("wb") as file:
        file.write(content[:200_000])
        file.truncate(len(content))
        if os.lseek(file.fileno(), len(content) - 1, os.SEEK_HOLE) == len(content):
            pytest.skip("this filesystem does not tell holes")

    assert look_at(path).verdict is Verdict.ZEROS


@pytest.mark.parametrize("sop_class", [builders.CT_IMAGE, MR_IMAGE, BASIC_TEXT_SR])
def test_file_without_what_its_class_is_for_waits(sop_class: str, tmp_path: Path) -> None:
    content = part10(dataset(sop_class=sop_class), sop_class=sop_class, sop_uid="1.2.3")

    found = look(content, tmp_path)

    assert (found.verdict, found.notes) == (Verdict.ZEROS, ("main_element_missing",))
    assert look(content + bytes(4000), tmp_path).verdict is Verdict.SHORT


def test_no_pixel_data_is_no_fault_elsewhere(tmp_path: Path) -> None:
    by_url = dataset(element(0x00287FE0, "UR", "http://127.0.0.1/"), sop_class=builders.CT_IMAGE)

    assert look(raw_file(), tmp_path).verdict is Verdict.WHOLE
    assert look(part10(by_url, sop_uid="1.2.3"), tmp_path).verdict is Verdict.WHOLE


def test_sloppiness_is_noted(tmp_path: Path) -> None:
    notes = {
        "trailing_padding": raw_file(element(0xFFFCFFFC, "OB", bytes(100))),
        "trailing_nulls": raw_file() + bytes(333),
        "odd_length": raw_file(element(0x00204000, "LT", "odd", pad=False)),
        "unknown_vr": raw_file(element(0x00204000, "ZZ", "four") + element(0x00204001, "LO", "x")),
        "no_sop_class": part10(dataset()[len(element(0x00080016, "UI", RAW_DATA)) :], sop_uid="1.2.3"),
        "stray_delimiter": raw_file(builders.delimiter(0xE00D)),
        "delimiter_length": raw_file(
            element(0x00400275, "SQ", b"", length=0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 7)
        ),
        "private_implicit": raw_file(element(0x00291001, "LO", "implicit", transfer_syntax=IMPLICIT)),
        "trailing_after_deflate": raw_file(transfer_syntax=DEFLATED) + b"garbage",
        "long_value": raw_file(element(0x00281200, "OW", b"x"), element(0x00287FE0, "UR", "u" * 2000)),
        "pixel_data_unchecked": raw_file(element(0x7FE00010, "OW", b"ab")),
    }

    for note, content in notes.items():
        found = look(content, tmp_path)
        assert (note, found.verdict) == (note, Verdict.WHOLE)
        assert note in found.notes
        assert set(found.notes) <= set(NOTES)


def test_unknown_vr_is_read_with_the_length_that_fits(tmp_path: Path) -> None:
    long_form = struct.pack("<HH2sHI", 0x0020, 0x4000, b"ZY", 0, 4) + b"abcd"
    short_form = struct.pack("<HH2sH", 0x0020, 0x4000, b"ZY", 4) + b"abcd"
    after = element(0x00280010, "US", 3)

    for header in (long_form, short_form, struct.pack("<HH2sH", 0x0020, 0x4000, b"??", 4) + b"abcd"):
        found = look(raw_file(header, after), tmp_path)
        assert (found.verdict, found.notes) == (Verdict.WHOLE, ("unknown_vr",))


def short_form(tag: int, vr: str, value: bytes, transfer_syntax: str = EXPLICIT) -> bytes:
    """An element with a 16-bit length whose VR asks for 32 bits, as old fo-dicom wrote SV and UV."""
    order = ">" if transfer_syntax == BIG_ENDIAN else "<"
    return struct.pack(order + "HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


def in_items(content: bytes, transfer_syntax: str, *, undefined: bool) -> bytes:
    inner = sequence(0x00720080, [content], transfer_syntax=transfer_syntax, undefined=undefined)
    return sequence(0x00720002, [inner, inner], transfer_syntax=transfer_syntax, undefined=undefined)


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, BIG_ENDIAN, DEFLATED])
@pytest.mark.parametrize("number", [0, 2, 3, 4, 8, 255, 65_536, 1 << 33, (1 << 64) - 7, 0x5453_4E55_0010_7FE0])
@pytest.mark.parametrize("place", ["top", "defined", "undefined"])
def test_long_vr_with_a_16_bit_length_is_read_so(place: str, number: int, transfer_syntax: str, tmp_path: Path) -> None:
    """Whatever the value, of which half would be taken for a length, and wherever that would end."""
    inner = BIG_ENDIAN if transfer_syntax == BIG_ENDIAN else EXPLICIT
    value = number.to_bytes(8, "big" if inner == BIG_ENDIAN else "little")
    odd = b"".join(short_form(0x00720082 + at, vr, value, inner) for at, vr in enumerate(["SV", "UV", "OV"]))
    odd += short_form(0x00720090, "SV", b"", inner) + short_form(0x00720091, "UV", b"", inner)
    if place != "top":
        odd = in_items(odd, inner, undefined=place == "undefined")
    extra = odd + element(0x00740010, "UT", "a text", transfer_syntax=inner)
    content = instance_bytes(transfer_syntax=transfer_syntax, extra=extra)

    found = look(content, tmp_path)

    assert (found.verdict, found.notes) == (Verdict.WHOLE, ("short_form_length",))
    if transfer_syntax != DEFLATED:
        assert {look(content[:-cut], tmp_path).verdict for cut in (1, 100, 511)} == {Verdict.SHORT}


@pytest.mark.parametrize("vr", ["UT", "UC", "UR", "UN", "SV", "UV", "OV", "OL", "OB"])
@pytest.mark.parametrize("text", [b"of 16 bits\0\0", b"", b"\0\0\0\0\0\0", b"CT of the chest.", bytes(4) + b"UTx\0"])
def test_short_form_is_read_beside_long_forms(vr: str, text: bytes, tmp_path: Path) -> None:
    odd = short_form(0x00720070, vr, text) + short_form(0x00720071, "SV", b"\2" + bytes(7))
    odd += short_form(0x00720072, vr, text) + sequence(0x00720080, [short_form(0x00720070, vr, text)] * 2)
    content = instance_bytes(extra=odd + element(0x00740010, "UT", "CT and US", transfer_syntax=EXPLICIT))

    found = look(content, tmp_path)

    assert (found.verdict, "short_form_length" in found.notes) == (Verdict.WHOLE, True)
    if vr in {"UT", "UC", "UR", "SV", "UV", "OV"} or text:
        assert found.notes == ("short_form_length",)


@pytest.mark.parametrize("junk", [b"\x20\x20", b"\x01\x00", b"\x08\x00", b"\xff\xff"])
@pytest.mark.parametrize("vr", ["OB", "UN", "UT", "SV"])
def test_reserved_bytes_that_hold_something_are_passed_over_where_lengths_are_long(
    vr: str, junk: bytes, tmp_path: Path
) -> None:
    def with_junk(tag: int, value: bytes) -> bytes:
        return struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode()) + junk + struct.pack("<I", len(value)) + value

    odd = with_junk(0x00720070, b"value of 16 byte") + with_junk(0x00720071, bytes(range(8)))
    content = instance_bytes(extra=odd + sequence(0x00720080, [with_junk(0x00720070, b"in an item..")]))

    found = look(content, tmp_path)

    assert (found.verdict, found.notes) == (Verdict.WHOLE, ())


@pytest.mark.parametrize("text", ["CT chest", "US abdomen", "LO", "PN" * 40, "SQ" * 0x4000])
def test_text_that_begins_like_a_header_has_its_long_length(text: str, tmp_path: Path) -> None:
    odd = element(0x00080120, "UR", text) + element(0x00189999, "UT", text)

    found = look(instance_bytes(extra=odd + sequence(0x00720080, [odd])), tmp_path)

    assert (found.verdict, found.notes) == (Verdict.WHOLE, ())


def test_private_sequence_with_implicit_items_is_walked(tmp_path: Path) -> None:
    inner = element(0x00291001, "LO", "abcdef", transfer_syntax=IMPLICIT)
    for undefined in (False, True):
        private = sequence(0x00291000, [inner, inner], undefined=undefined)
        found = look(raw_file(private, element(0x00400001, "AE", "x")), tmp_path)
        assert (found.verdict, found.notes) == (Verdict.WHOLE, ("private_implicit",))


def test_un_of_undefined_length_has_implicit_content(tmp_path: Path) -> None:
    inner = element(0x00291001, "LO", "abcdef", transfer_syntax=IMPLICIT)
    nested = sequence(0x00291002, [inner], transfer_syntax=IMPLICIT, undefined=True)
    for syntax in (EXPLICIT, BIG_ENDIAN):
        content = item(inner + nested, undefined=True) + builders.delimiter(0xE0DD)
        private = element(0x00291000, "UN", content, length=0xFFFFFFFF, pad=False, transfer_syntax=syntax)
        found = look(raw_file(private, transfer_syntax=syntax), tmp_path)
        assert (found.verdict, found.notes) == (Verdict.WHOLE, ())

    explicit_inside = sequence(0x00291000, [element(0x00291001, "LO", "abcdef")], undefined=True, vr="UN")
    assert look(raw_file(explicit_inside), tmp_path).notes == ("explicit_inside_implicit",)


def test_element_longer_than_its_item_does_not_reject_the_file(tmp_path: Path) -> None:
    broken = struct.pack("<HH2sH", 0x0008, 0x0100, b"SH", 50) + b"abcd"
    content = raw_file(sequence(0x00081140, [broken]), element(0x00280010, "US", 3))

    found = look(content, tmp_path)

    assert (found.verdict, found.notes) == (Verdict.WHOLE, ("inner_overrun",))


@pytest.mark.parametrize(
    "tail", [b"\n", b"\r\n", b" " * 100, b"appended by a transfer", b"\xff" * 512, bytes(range(1, 256)) * 3]
)
@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT, JPEG_BASELINE])
def test_bytes_behind_the_pixel_data_that_are_no_element_wait(
    transfer_syntax: str, tail: bytes, tmp_path: Path
) -> None:
    """Transfers as text and programs that split multipart messages leave line ends; copiers fill blocks."""
    content = with_fragments(JPEG) + builders.delimiter(0xE0DD)
    if transfer_syntax != JPEG_BASELINE:
        content = instance_bytes(transfer_syntax=transfer_syntax)

    found = look(content + tail, tmp_path)

    assert (found.verdict, found.notes) == (Verdict.ZEROS, ("trailing_bytes",))
    assert found.digest == blake3_of((content + tail)[found.dataset_offset :])


def test_what_may_be_an_element_or_a_file_behind_the_pixel_data_is_no_tail(tmp_path: Path) -> None:
    whole = instance_bytes()
    behind = element(0x7FE10010, "LO", "PRIVATE") + element(0xFFFAFFFA, "SQ", b"")

    for cut in range(1, len(behind)):
        verdict = look(whole + behind[:cut], tmp_path).verdict
        assert verdict is (Verdict.WHOLE if cut == len(element(0x7FE10010, "LO", "PRIVATE")) else Verdict.SHORT), cut
    for number in (0xE00D, 0xE0DD):
        assert look(whole + builders.delimiter(number), tmp_path).notes == ("stray_delimiter",)
    assert look(whole + whole, tmp_path).verdict is Verdict.SHORT
    assert look(whole + b"x" * 5000, tmp_path).verdict is Verdict.SHORT
    assert look(raw_file() + b"\n", tmp_path).verdict is Verdict.SHORT


@pytest.mark.parametrize("undefined", [False, True])
def test_missing_sequence_delimiter_is_forgiven(undefined: bool, tmp_path: Path) -> None:
    inner = item(element(0x00080100, "SH", "CODE"), undefined=undefined)
    open_sequence = element(0x00081140, "SQ", inner * 2, length=0xFFFFFFFF, pad=False)

    found = look(raw_file(open_sequence, element(0x00081155, "UI", "1.2")), tmp_path)

    assert (found.verdict, found.notes) == (Verdict.WHOLE, ("missing_delimiter",))
    assert look(raw_file(open_sequence), tmp_path).verdict is Verdict.SHORT


def test_missing_item_delimiter_is_forgiven(tmp_path: Path) -> None:
    inner = element(0x00080100, "SH", "CODE")
    open_item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner
    content = raw_file(
        element(0x00081140, "SQ", open_item * 2 + builders.delimiter(0xE0DD), length=0xFFFFFFFF, pad=False)
    )

    found = look(content, tmp_path)

    assert (found.verdict, found.notes) == (Verdict.WHOLE, ("missing_delimiter",))


def test_encapsulated_icon_inside_an_item_is_walked(tmp_path: Path) -> None:
    icon = sequence(0x00880200, [encapsulated([b"icon" * 10])])

    assert look(raw_file(icon, encapsulated([b"frame"]), transfer_syntax=RLE), tmp_path).verdict is Verdict.WHOLE


def test_deflated_with_zlib_header_is_inflated(tmp_path: Path) -> None:
    meta = file_meta(sop_class=RAW_DATA, sop_uid="1.2.3", transfer_syntax=DEFLATED)

    found = look(meta + zlib.compress(dataset()), tmp_path)

    assert (found.verdict, found.notes) == (Verdict.WHOLE, ("zlib_wrapper",))


def test_deflated_stream_that_ends_early_or_is_damaged_is_short(tmp_path: Path) -> None:
    content = instance_bytes(transfer_syntax=DEFLATED, rows=64, columns=64)
    damaged = bytearray(content)
    damaged[-40] ^= 0xFF

    assert look(content[:-20], tmp_path).verdict is Verdict.SHORT
    assert look(bytes(damaged), tmp_path).verdict in {Verdict.SHORT, Verdict.WHOLE}


def test_meta_group_larger_than_a_window_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = element(0x00020100, "UI", "1.2.9") + element(0x00020102, "OB", bytes(300_000))
    content = file_meta(sop_class=RAW_DATA, sop_uid="1.2.3") + private + dataset()

    found = look(content, tmp_path)

    assert (found.verdict, found.dataset_offset) == (Verdict.WHOLE, len(content) - len(dataset()))
    assert found.meta_digest == blake3_of(content[: found.dataset_offset])
    monkeypatch.setattr(opening, "META_MOST", 100_000)
    assert look(content, tmp_path).verdict is Verdict.HOSTILE


def test_file_that_grows_while_it_is_read_has_changed(tmp_path: Path) -> None:
    path = builders.write_instance(tmp_path / "file", rows=512, columns=512)
    grown = False

    def grow(_count: int) -> None:
        nonlocal grown
        if not grown:
            grown = True
            with path.open("ab") as file:
                file.write(b"more")

    fd = os.open(path, os.O_RDONLY)
    try:
        found = inspect(fd, progress=grow)
    finally:
        os.close(fd)

    assert found.verdict is Verdict.CHANGED


def test_short_file_keeps_the_facts_that_were_reached(tmp_path: Path) -> None:
    content = instance_bytes(study_uid="1.2.77")[:-10]

    found = look(content, tmp_path)

    assert (found.verdict, found.study_uid) == (Verdict.SHORT, "1.2.77")
    assert found.digest == blake3_of(content[found.dataset_offset :])


def test_reasons_hold_no_value_of_the_file(tmp_path: Path) -> None:
    canary = "CANARY"
    content = instance_bytes(patient_id=canary, patient_name=canary, accession_number=canary, station=canary)

    for cut in range(len(content) - 600, len(content), 7):
        assert canary not in look(content[:cut], tmp_path).reason_text


def test_importing_the_room_does_not_import_pydicom() -> None:
    code = "import sys, ingestd.instance; print([name for name in ('pydicom', 'numpy') if name in sys.modules])"

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())

    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED])
def test_a_file_leaves_nothing_behind_that_the_collector_has_to_find(transfer_syntax: str, tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(instance_bytes(transfer_syntax=transfer_syntax))
    look_at(path)
    files = 100  # other threads leave a few things, too
    gc.collect()
    gc.disable()
    try:
        for _ in range(files):
            look_at(path)
        left = gc.collect()
    finally:
        gc.enable()

    assert left < files, "each file's whole window would lie about until then"
