"""What the embedded server makes of elements that are written oddly: structure, value representations, numbers."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingestd.emulator.dicom.dicom_json import json_values
from ingestd.emulator.dicom.values import Text
from ingestd.emulator.dicom.walk import Element
from ingestd.emulator.storage.examine import examine
from tests.builders import (
    BIG_ENDIAN,
    CT_IMAGE,
    EXPLICIT,
    IMPLICIT,
    delimiter,
    element,
    item,
    part10,
    sequence,
)
from tests.emulator_peer import Change, Peer, scan


def read(tmp_path: Path, *elements: bytes, transfer_syntax: str = EXPLICIT) -> dict[str, Any]:
    """The metadata of a file made of these elements and the required ones, which stand among them in order."""
    required = {0x00080016: CT_IMAGE, 0x00080018: "1.2.3", 0x00100020: "PID", 0x0020000D: "1.2.1", 0x0020000E: "1.2.2"}
    order = ">" if transfer_syntax == BIG_ENDIAN else "<"
    pieces = {
        tag: element(tag, "LO" if tag == 0x00100020 else "UI", value, transfer_syntax=transfer_syntax)
        for tag, value in required.items()
    }
    for each in elements:
        group, number = struct.unpack_from(order + "HH", each)
        pieces[group << 16 | number] = each
    path = tmp_path / "file.dcm"
    content = b"".join(pieces[tag] for tag in sorted(pieces))
    path.write_bytes(part10(content, sop_uid="1.2.3", transfer_syntax=transfer_syntax))
    found = examine(path, version=2, study_uid=None, tags=[])
    assert (found.failure, found.identity) == (0, ("1.2.1", "1.2.2", "1.2.3"))
    return dict(json.loads(found.metadata))


def unended(*contents: bytes, transfer_syntax: str = EXPLICIT) -> bytes:
    """A sequence of undefined length whose last item is closed by the sequence's delimiter only."""
    *whole, last = [item(each, transfer_syntax=transfer_syntax, undefined=True) for each in contents]
    value = b"".join(whole) + last.removesuffix(delimiter(0xE00D, transfer_syntax)) + delimiter(0xE0DD, transfer_syntax)
    return element(0x00081140, "SQ", value, transfer_syntax=transfer_syntax, length=0xFFFFFFFF, pad=False)


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_sequence_delimiter_inside_an_item_ends_the_item_and_the_sequence(tmp_path, transfer_syntax):
    """fo-dicom's rule for k-pacs: what follows belongs to the data set again."""

    def of(tag: int, vr: str, value: str) -> bytes:
        return element(tag, vr, value, transfer_syntax=transfer_syntax)

    inner = of(0x00081155, "UI", "1.2.9")
    in_sequence = element(
        0x00081115,
        "SQ",
        item(
            of(0x0008103E, "LO", "a") + unended(inner, transfer_syntax=transfer_syntax), transfer_syntax=transfer_syntax
        ),
        transfer_syntax=transfer_syntax,
    )

    metadata = read(
        tmp_path,
        in_sequence,
        unended(inner, inner, transfer_syntax=transfer_syntax),
        of(0x00100040, "CS", "O"),
        transfer_syntax=transfer_syntax,
    )

    reference = {"00081155": {"vr": "UI", "Value": ["1.2.9"]}}
    assert metadata["00081140"] == {"vr": "SQ", "Value": [reference, reference]}
    assert metadata["00081115"]["Value"] == [
        {"0008103E": {"vr": "LO", "Value": ["a"]}, "00081140": {"vr": "SQ", "Value": [reference]}}
    ]
    assert metadata["00100040"] == {"vr": "CS", "Value": ["O"]}


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, BIG_ENDIAN])
def test_what_is_written_as_un_has_the_vr_of_the_dictionary(tmp_path, transfer_syntax):
    """fo-dicom looks up what an explicit data set calls UN; a UID among them is what the instance is known by."""

    def unknown(tag: int, value: bytes) -> bytes:
        return element(tag, "UN", value, transfer_syntax=transfer_syntax)

    reference = element(0x00081155, "UI", "1.2.9", transfer_syntax=IMPLICIT)
    metadata = read(
        tmp_path,
        unknown(0x00080018, b"1.2.3"),
        unknown(0x0020000D, b"1.2.1\0"),
        unknown(0x00100010, b"A^B "),
        unknown(0x00200013, b"7 "),
        unknown(0x00280010, struct.pack(">H" if transfer_syntax == BIG_ENDIAN else "<H", 512)),
        unknown(0x00090010, b"MAKER "),
        unknown(0x00091001, b"1234"),
        unknown(0x00420011, b"%PDF"),
        element(
            0x00081140,
            "UN",
            item(reference, transfer_syntax=IMPLICIT) + delimiter(0xE0DD, IMPLICIT),
            transfer_syntax=transfer_syntax,
            length=0xFFFFFFFF,
        ),
        unknown(0x00081115, item(reference, transfer_syntax=IMPLICIT)),
        transfer_syntax=transfer_syntax,
    )

    assert metadata["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "A^B"}]}
    assert metadata["00200013"] == {"vr": "IS", "Value": [7]}
    assert metadata["00280010"] == {"vr": "US", "Value": [512]}
    assert metadata["00090010"] == {"vr": "LO", "Value": ["MAKER"]}
    items = [{"00081155": {"vr": "UI", "Value": ["1.2.9"]}}]
    sequences = [metadata.get(key) for key in ("00081140", "00081115")]
    assert sequences == [None if transfer_syntax == BIG_ENDIAN else {"vr": "SQ", "Value": items}] * 2
    assert "00091001" not in metadata  # no dictionary knows it
    assert "00420011" not in metadata  # bulk


NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, BIG_ENDIAN])
def test_numbers_that_are_none_are_spelt_as_the_service_spells_them(tmp_path: Path, transfer_syntax: str) -> None:
    order = ">" if transfer_syntax == BIG_ENDIAN else "<"

    def of(tag: int, vr: str) -> bytes:
        values = struct.pack(f"{order}4{'d' if vr == 'FD' else 'f'}", *NUMBERS.values(), 0.5)
        return element(tag, vr, values, transfer_syntax=transfer_syntax)

    inner = sequence(0x00186031, [of(0x0018605A, "FL")], transfer_syntax=transfer_syntax)

    metadata = read(tmp_path, of(0x00189079, "FD"), of(0x0018605A, "FL"), inner, transfer_syntax=transfer_syntax)

    assert metadata["00189079"] == {"vr": "FD", "Value": [*NUMBERS, 0.5]}
    assert metadata["0018605A"] == {"vr": "FL", "Value": [*NUMBERS, 0.5]}
    assert metadata["00186031"]["Value"] == [{"0018605A": metadata["0018605A"]}]


@pytest.mark.parametrize("reindexed", [False, True])
def test_search_takes_infinity_by_its_name(fresh: Peer, reindexed: bool) -> None:
    def store() -> None:
        for word, number in NUMBERS.items():
            changes: dict[int, Change] = {0x00189087: ("FD", struct.pack("<d", number)), 0x00081030: ("LO", word)}
            assert fresh.store(scan(changes)).status_code == 200

    if reindexed:
        store()
    tag = [{"path": "DiffusionBValue", "level": "Study"}]
    fresh.finished(fresh.call("POST", "/extendedquerytags", json=tag).json()["href"])
    if not reindexed:
        store()

    def found(word: str) -> Any:
        answer = fresh.get("/studies", params={"DiffusionBValue": word})
        if answer.status_code != 200:
            return answer.status_code
        return [study["00081030"]["Value"][0] for study in answer.json()]

    assert [found(word) for word in ("Infinity", "-infinity", "NaN", "1e999")] == [
        ["Infinity"], ["-Infinity"], 204, ["Infinity"],
    ]  # fmt: skip
    assert [found(word) for word in ("inf", "-inf", "1_0", "0x1")] == [400] * 4


def test_number_of_any_length_is_stored_and_asked_for(fresh: Peer) -> None:
    """Python makes no number of more than 4300 digits, nor SQLite one of more than 64 bits: both were a 500."""
    digits = "9" * 5000
    changes: dict[int, Change] = {0x00200013: ("IS", digits), 0x00101030: ("DS", digits)}
    with Peer(fresh.root, "v1") as earlier:
        assert earlier.store(scan(changes)).status_code == 200
        (metadata,) = earlier.get("/instances", params={"includefield": "all"}).json()
    assert metadata["00200013"]["Value"] == [digits]
    comments = fresh.store(scan(changes)).json()["00081199"]["Value"][0]["00741048"]["Value"]
    assert "value too large to fit 32 bit integer" in str(comments)

    tag = [{"path": "Rows", "level": "Instance"}]
    fresh.finished(fresh.call("POST", "/extendedquerytags", json=tag).json()["href"])
    asked = [fresh.get("/instances", params={"Rows": number}) for number in ("8", f"{1 << 63}", f"{-1 << 63}", "٨")]
    assert [answer.status_code for answer in asked] == [200, 400, 204, 400]
    assert "is not a valid long value" in asked[1].text


@pytest.mark.parametrize("digits", ["²", "9" * 5000])
def test_frame_is_given_where_its_file_counts_them_in_no_number(fresh: Peer, digits: str) -> None:
    """A superscript two is a digit to Python's isdigit and no number to int."""
    with Peer(fresh.root, "v1") as earlier:
        earlier.store(scan({0x00280008: ("IS", digits)}, study="1.2.1", series="1.2.2", sop="1.2.3"))

    frame = fresh.get("/studies/1.2.1/series/1.2.2/instances/1.2.3/frames/1", "application/octet-stream")

    assert (frame.status_code, frame.content) == (200, bytes(range(64)))


@settings(max_examples=300)
@example(bits=0x3DCCCCCD, written="0.1")
@example(bits=0x7F7FFFFF, written="3.4028235e+38")
@example(bits=0x00000001, written=None)
@example(bits=0x4B800001, written="16777218.0")
@given(bits=st.integers(0, 0xFFFFFFFF), written=st.none())
def test_number_of_32_bits_is_written_with_the_digits_it_has(bits: int, written: str | None) -> None:
    """.NET writes 0.1 for the float next to it; as a double it was 0.10000000149011612."""
    value = struct.pack("<I", bits)

    (number,) = json_values(Element(0x0018605A, "FL", value, None), Text(), big_endian=False)

    if isinstance(number, str):
        assert number in NUMBERS
        return
    assert struct.pack("<f", number) == value
    assert len(repr(number).partition("e")[0].strip("-").replace(".", "").strip("0")) <= 9
    assert written is None or repr(number) == written
