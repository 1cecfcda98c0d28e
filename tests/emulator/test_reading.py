"""How the embedded server reads bodies and files: any chunking, any mutation, and the same as pydicom."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestd.emulator.dicom import parser
from ingestd.emulator.dicom.dicom_json import to_json
from ingestd.emulator.dicom.walk import TooMuch, Unreadable
from ingestd.emulator.http.multipart import Malformed, PartBegins, PartData, Splitter
from ingestd.emulator.storage.examine import examine
from tests.builders import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT
from tests.emulator_peer import scan

pydicom = pytest.importorskip("pydicom")
BUNDLED = sorted(
    path
    for path in (Path(pydicom.__file__).parent / "data" / "test_files").rglob("*")
    if path.is_file()
    and path.stat().st_size < 8_000_000
    and path.suffix not in (".txt", ".json", ".dump", ".gz", ".icc")
)


def split(body: bytes, sizes: list[int], boundary: str) -> tuple[list[tuple[dict[str, str], bytes]], Splitter]:
    splitter = Splitter(boundary)
    parts: list[tuple[dict[str, str], bytes]] = []
    at, number = 0, 0
    while at < len(body):
        size = sizes[number % len(sizes)]
        for event in splitter.feed(body[at : at + size]):
            if isinstance(event, PartBegins):
                parts.append((event.headers, b""))
            elif isinstance(event, PartData):
                headers, content = parts[-1]
                parts[-1] = (headers, content + event.chunk)
        at, number = at + size, number + 1
    return parts, splitter


# Contents that look like delimiters are what breaks splitters.
PIECES = [b"\r\n", b"--", b"--b", b"\r", b"-", b"b", b"x", b"\r\n--", b"\r\n--a", b"\0" * 50]
contents = st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join), max_size=4)


@settings(max_examples=200)
@given(parts=contents, sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5), headers=st.booleans())
def test_any_chunking_of_any_parts_gives_the_parts(parts, sizes, headers):
    boundary = "bound"
    parts = [part for part in parts if b"\r\n--bound" not in b"\r\n" + part]
    head = b"Content-Type: application/dicom\r\nX:y\r\n" if headers else b""
    body = b"".join(b"--bound\r\n" + head + b"\r\n" + part + b"\r\n" for part in parts) + b"--bound--\r\nepilogue"

    got, splitter = split(body, sizes, boundary)

    assert [content for _, content in got] == parts
    assert splitter.is_closed
    assert all(each == ({"content-type": "application/dicom", "x": "y"} if headers else {}) for each, _ in got)


@settings(max_examples=100)
@given(body=st.binary(max_size=400), cut=st.integers(0, 400))
def test_any_bytes_end_in_parts_or_malformed(body, cut):
    whole = b"--b\r\n\r\n" + body + b"\r\n--b--"
    try:
        split(whole[:cut], [7], "b")
    except Malformed:
        return


@settings(max_examples=150)
@given(data=st.data())
def test_any_mutation_of_a_file_is_read_or_refused(tmp_path_factory, data):
    syntax = data.draw(st.sampled_from([EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED]))
    file = bytearray(scan(transfer_syntax=syntax, study="1.2.1", series="1.2.2", sop="1.2.3"))
    for _ in range(data.draw(st.integers(1, 6))):
        file[data.draw(st.integers(128, len(file) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("mutated") / "file"
    path.write_bytes(file[: data.draw(st.integers(0, len(file)))])

    for version in (1, 2):
        found = examine(path, version=version, study_uid=None, tags=[])
        assert found.failure in (0, 0xA900, 0x0110)
        if not found.failure:
            json.loads(found.metadata)


def same(ours: Any, theirs: Any) -> bool:
    """Equal as DICOM JSON: numbers by value, text by itself, padding and empty values aside."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, float | int) and isinstance(theirs, float | int):
        return math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(ours, str) and isinstance(theirs, str):
        return ours.strip(" \0") == theirs.strip(" \0")
    return (ours or None) == (theirs or None)


_BULK = {"OB", "OD", "OF", "OL", "OV", "OW", "UN"}


def pydicoms(path: Path) -> dict[str, Any]:
    """What pydicom makes of the file, without what the service leaves out."""

    def plain(content: dict[str, Any]) -> dict[str, Any]:
        kept = {}
        for key, element in content.items():
            if element["vr"] in _BULK or key.endswith("0000"):
                continue
            if element["vr"] == "SQ":
                element = {"vr": "SQ", "Value": [plain(item) for item in element.get("Value", [])]}  # noqa: PLW2901
            if not element.get("Value"):
                element = {"vr": element["vr"]}  # noqa: PLW2901
            kept[key] = element
        return kept

    checked = pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return plain(pydicom.dcmread(path).to_json_dict())
    finally:
        pydicom.config.settings.reading_validation_mode = checked


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.name)
def test_bundled_file_reads_as_pydicom_reads_it(path):
    try:
        with parser.contents(path) as buffer:
            dataset = parser.parse(buffer).dataset
    except (Unreadable, TooMuch):
        pytest.skip("not a file the service could open")
    ours = to_json(dataset)
    try:
        theirs = pydicoms(path)
    except Exception as error:  # noqa: BLE001 - a file that pydicom cannot turn into JSON says nothing about us
        pytest.skip(f"pydicom cannot: {type(error).__name__}")

    # pydicom finds the VR of attributes written as UN, and of many private ones; the service does not (AZURE.md 1.8).
    unknown = {f"{element.tag:08X}" for element in dataset.elements if element.vr == "UN"}
    public = {key for key in theirs if not int(key[:4], 16) & 1 and key not in unknown}
    assert {key for key in ours if not int(key[:4], 16) & 1} == public
    different = {key: (ours[key], theirs[key]) for key in public if not same(ours[key], theirs[key])}
    assert different == {}
