"""The embedded server line by line, continued: searching, deleting, the change feed and extended query tags.

As in ``test_facts.py`` each test names in its docstring the section of AZURE.md that it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from ingestd.emulator import Emulator
from ingestd.emulator.dicom import attributes as sets
from ingestd.emulator.dicom.minimum_rules import INDEXABLE_VRS
from tests.builders import fresh_uid
from tests.emulator_peer import JSON, Change, Peer, path_of, reasons, scan, stored


def put(peer: Peer, file: bytes) -> str:
    """Store one file and return its path."""
    answer = peer.store(file)
    assert stored(answer), answer.text
    return path_of(stored(answer)[0])


# Section 3: searching.

EVERYTHING: dict[int, Change] = {
    0x00080005: ("CS", "ISO_IR 100"), 0x00080021: ("DA", "20260102"), 0x00080030: ("TM", "101112"),
    0x00080031: ("TM", "101112"), 0x00080056: ("CS", "ONLINE"), 0x00080063: ("SQ", b""), 0x00080201: ("SH", "+0100"),
    0x0008103E: ("LO", "A series"), 0x00081032: ("SQ", b""), 0x00081060: ("PN", "Read^Er"), 0x00081080: ("LO", "x"),
    0x00081110: ("SQ", b""), 0x00100040: ("CS", "O"), 0x00101010: ("AS", "045Y"), 0x00101020: ("DS", "1.8"),
    0x00101030: ("DS", "72"), 0x00102180: ("SH", "Baker"), 0x001021B0: ("LT", "none"), 0x00200010: ("SH", "S1"),
    0x00200011: ("IS", "1"), 0x00200060: ("CS", "L"), 0x00280008: ("IS", "1"), 0x00400245: ("TM", "101112"),
    0x00400275: ("SQ", b""), 0x00185100: ("CS", "HFS"),
}  # fmt: skip
V1_STUDY = (
    "00080005 00080020 00080030 00080050 00080056 00080090 00080201 "
    "00100010 00100020 00100030 00100040 0020000D 00200010"
)
V1_SERIES = "00080005 00080060 00080201 0008103E 0020000E 00400244 00400245 00400275"
V1_INSTANCE = "00080005 00080016 00080018 00080056 00080201 00200013 00280008 00280010 00280011 00280100"
V2_STUDY = "00080020 00080050 00080090 00081030 00100010 00100020 00100030 0020000D"
V2_SERIES = "00080060 00081090 0020000E 00400244"
ALL_STUDY = (
    f"{V1_STUDY} 00081030 00080063 00081032 00081060 00081080 00081110 00101010 00101020 00101030 00102180 001021B0"
)
ALL_SERIES = f"{V1_SERIES} 00080021 00080031 00200011 00200060"
SCOPES = [
    ("/studies?StudyInstanceUID={0}", "study", ""),
    ("/series?StudyInstanceUID={0}", "study series", ""),
    ("/instances?StudyInstanceUID={0}", "study series instance", ""),
    ("/studies/{0}/series?", "series", "0020000D"),
    ("/studies/{0}/instances?", "series instance", "0020000D"),
    ("/studies/{0}/series/{1}/instances?", "instance", "0020000D 0020000E"),
]
RETURNED = {
    ("v1", ""): {"study": V1_STUDY, "series": V1_SERIES, "instance": V1_INSTANCE},
    ("v2", ""): {"study": V2_STUDY, "series": V2_SERIES, "instance": "00080018"},
    ("v1", "&includefield=All"): {"study": ALL_STUDY, "series": ALL_SERIES, "instance": V1_INSTANCE},
    ("v2", "&includefield=all"): {"study": ALL_STUDY, "series": ALL_SERIES, "instance": V1_INSTANCE},
}


@pytest.fixture(scope="module")
def everything(server: Emulator) -> tuple[str, str]:
    """Study and series of an instance that has every attribute the page lists."""
    study, series = fresh_uid(), fresh_uid()
    with Peer(server.root) as peer:
        put(peer, scan(EVERYTHING, study=study, series=series))
    return study, series


@pytest.mark.parametrize("path, levels, more", SCOPES, ids=[path for path, *_ in SCOPES])
@pytest.mark.parametrize("version, include", RETURNED)
def test_every_resource_returns_exactly_its_attributes(server, everything, version, include, path, levels, more):
    """AZURE.md 3.3: the default and the ``all`` attributes of both versions on all six paths, and the path's UIDs."""
    expected = {tag for level in levels.split() for tag in RETURNED[version, include][level].split()}
    with Peer(server.root, version) as peer:
        (found,) = peer.get(path.format(*everything) + include).json()

    assert set(found) == expected | set(more.split())


def test_tables_of_attributes_are_the_pages():
    """AZURE.md 3.3, 1.7: the sets that the code keeps are the page's lists, and 13 attributes are indexed."""

    def numbers(text: str) -> frozenset[int]:
        return frozenset(int(word, 16) for word in text.split())

    assert tuple(map(numbers, (V1_STUDY, V1_SERIES, V1_INSTANCE))) == tuple(sets.DEFAULT_FIELDS[1].values())
    assert [numbers(ALL_STUDY), numbers(ALL_SERIES)] == [sets.ALL_FIELDS[level] for level in ("study", "series")]
    assert {(each.keyword, each.vr) for each in sets.CORE} == {
        ("StudyInstanceUID", "UI"), ("PatientID", "LO"), ("PatientName", "PN"), ("PatientBirthDate", "DA"),
        ("ReferringPhysicianName", "PN"), ("StudyDate", "DA"), ("StudyDescription", "LO"), ("AccessionNumber", "SH"),
        ("SeriesInstanceUID", "UI"), ("Modality", "CS"), ("PerformedProcedureStepStartDate", "DA"),
        ("ManufacturerModelName", "LO"), ("SOPInstanceUID", "UI"),
    }  # fmt: skip


FILTERS = {
    "study": ["PatientID=PID-1", "StudyDate=20260102", "ModalitiesInStudy=CT", "StudyInstanceUID=1.2"],
    "series": ["Modality=CT", "ManufacturerModelName=x", "SeriesInstanceUID=1.2"],
    "instance": ["SOPInstanceUID=1.2"],
}
ALLOWED = ["study", "study series", "study series instance", "series", "series instance", "instance"]


@pytest.mark.parametrize("scope", range(6))
def test_filters_are_taken_only_at_their_level(peer, scope):
    """AZURE.md 3.1: each path's levels; what is not allowed there is 400 with these words."""
    path = SCOPES[scope][0].split("?")[0].format("1.2", "1.3")
    for level, queries in FILTERS.items():
        for query in queries:
            answer = peer.get(f"{path}?{query}")
            if level in ALLOWED[scope]:
                assert answer.status_code in (200, 204), query
            else:
                assert answer.status_code == 400, query
                assert f"AttributeId {query.split('=')[0]} is not queryable." in answer.text


def test_names_of_parameters_have_no_case_but_keywords_do(peer):
    """AZURE.md 3.1: LIMIT is limit; patientid is nothing."""
    assert peer.get("/studies?LIMIT=1&Offset=0&FuzzyMatching=TRUE&IncludeField=PatientSex").status_code in (200, 204)
    assert peer.get("/studies?LIMIT=0").status_code == 400
    assert "unknown query parameter 'patientid'" in peer.get("/studies?patientid=1").text


def test_padding_of_values_does_not_count(v2, everything):
    """AZURE.md 3.2: trailing spaces and NULs are ignored, in the value and in what is stored."""
    patient = f"PAD{fresh_uid()[-6:]}"
    put(v2, scan({0x00100020: ("LO", patient + "\0")}))
    put(v2, scan({0x00100020: ("LO", patient + "  ")}))

    for value in (patient, f"{patient}%20", f"{patient}%00", patient.lower()):
        assert len(v2.get(f"/studies?PatientID={value}").json()) == 2


def test_newest_comes_first_on_every_level(v2):
    """AZURE.md 3.2: series by when they began, instances by when they were stored."""
    study, series = fresh_uid(), [fresh_uid() for _ in range(3)]
    sops = [put(v2, scan(study=study, series=one)).rpartition("/")[2] for one in (*series, series[0])]

    found = [each["0020000E"]["Value"][0] for each in v2.get(f"/studies/{study}/series").json()]
    assert found == series[::-1]
    found = [each["00080018"]["Value"][0] for each in v2.get(f"/studies/{study}/instances").json()]
    assert found == sops[::-1]


def test_numbers_times_and_texts_of_tags_are_checked_before_searching(fresh):
    """AZURE.md 3.2: unparsable numbers and a DT with an offset are 400."""
    tags = [
        {"path": path, "level": "Instance"} for path in ("00280010", "00189087", "0008002A", "00200013", "00080032")
    ]
    fresh.finished(fresh.call("POST", "/extendedquerytags", json=tags).json()["href"])

    number = "Invalid query: specified value '{}' extended query tag with path '{}' is not a valid {} value."
    time = "Invalid query: specified Time value '{}' is invalid for parameter 'AcquisitionTime'. Time should be valid"
    instant = (
        "Invalid query: specified DateTime value '{}' is invalid for attribute 'AcquisitionDateTime'. DateTime should"
    )
    words = {
        "Rows=ten": number.format("ten", "Rows", "long"),
        "Rows=1.5": number.format("1.5", "Rows", "long"),
        "00189087=x": number.format("x", "DiffusionBValue", "double"),
        "InstanceNumber=1.5": "Invalid query: specified value '1.5' is invalid for attribute 'InstanceNumber'.",
        "AcquisitionDateTime=20260102101112%2B0100": (
            "Invalid query: specified DateTime value '20260102101112%2B0100' for attribute AcquisitionDateTime "
            "contains offset which is not supported."
        ),
        "AcquisitionDateTime=x": instant.format("x"),
        "AcquisitionDateTime=-": "Invalid query: specified range is invalid.",
        "AcquisitionTime=25": time.format("25"),
        "AcquisitionTime=12-11": "Invalid query: specified date range '12-11' is invalid.\nThe first part time 12",
    }
    for query, text in words.items():
        answer = fresh.get(f"/instances?{query}")
        assert (answer.status_code, answer.text[: len(text)]) == (400, text), query


# Section 4: deleting.


def test_deleting_takes_any_accept_and_body(peer):
    """AZURE.md 4, 0.4: neither is looked at; 204 has no body."""
    path = put(peer, scan())

    answer = peer.call("DELETE", path, accept="image/png", data=b"{", headers={"Content-Type": "text/plain"})

    assert (answer.status_code, answer.content) == (204, b"")


def test_each_deleted_instance_has_its_entry_and_empty_series_go(fresh):
    """AZURE.md 4: one Delete for each; the study goes with its last instance, the series with its own."""
    study, series = fresh_uid(), fresh_uid()
    first, second, third = (put(fresh, scan(study=study, series=one)) for one in (series, series, fresh_uid()))

    fresh.call("DELETE", f"/studies/{study}/series/{series}")
    assert len(fresh.get(f"/studies/{study}/series").json()) == 1
    fresh.call("DELETE", third)

    assert fresh.get(f"/studies?StudyInstanceUID={study}").status_code == 204
    deleted = [each["sopInstanceUid"] for each in fresh.feed() if each["action"] == "Delete"]
    assert deleted == [path.rpartition("/")[2] for path in (first, second, third)]


# Section 5: the change feed.


@pytest.fixture(scope="module")
def long_feed() -> Iterator[Emulator]:
    """A feed of 203 entries."""
    with Emulator(fsync=False) as running, Peer(running.root) as peer:
        for _ in range(7):
            study, series = fresh_uid(), fresh_uid()
            assert peer.store(*[scan(study=study, series=series) for _ in range(29)]).status_code == 200
        yield running


@pytest.mark.parametrize(
    "version, query, first, count",
    [
        ("v1", "", 1, 10), ("v1.0-prerelease", "", 1, 10), ("v1", "offset=10", 11, 10), ("v1", "limit=100", 1, 100),
        ("v2", "", 1, 100), ("v2", "limit=200", 1, 200), ("v2", "offset=200", 201, 3), ("v1", "offset=200", 201, 3),
    ],
)  # fmt: skip
def test_pages_of_the_feed(long_feed, version, query, first, count):
    """AZURE.md 5.1, 9: ten and a hundred by default, a hundred and two hundred at most; sequence ascending."""
    with Peer(long_feed.root, version) as peer:
        page = peer.feed(f"includeMetadata=false&{query}")

    assert [each["sequence"] for each in page] == list(range(first, first + count))
    assert not any("metadata" in each for each in page)


def test_version_1_has_no_time_window(v1):
    """AZURE.md 5.1: startTime and endTime mean nothing to it, whatever they are."""
    assert v1.get("/changefeed?startTime=yesterday&endTime=x", None).status_code == 200


def test_plus_of_a_zone_has_to_be_encoded(v2):
    """AZURE.md 5.1: an unencoded + is a space, and that is no time."""
    with_plus = "2024-01-01T00:00:00+01:00"

    assert v2.get(f"/changefeed?startTime={quote(with_plus)}", None).status_code == 200
    assert v2.get("/changefeed?startTime=2024-01-01T00:00:00%2001:00", None).status_code == 400


def test_latest_takes_metadata_or_not_and_nothing_is_filtered_by_accept(long_feed):
    """AZURE.md 5.1: /latest has only includeMetadata; both versions give the newest."""
    for version in ("v1", "v2"):
        with Peer(long_feed.root, version) as peer:
            whole = peer.get("/changefeed/latest", "image/png").json()
            plain = peer.get("/changefeed/latest?includeMetadata=FALSE", None).json()

        assert (whole["sequence"], "metadata" in whole, "metadata" in plain) == (203, True, False)


# Section 6: extended query tags and operations.


@pytest.mark.parametrize(
    "path",
    ["/extendedquerytags?limit=0", "/extendedquerytags?limit=201", "/extendedquerytags?offset=-1",
     "/extendedquerytags/PatientAge/errors?limit=x"],
)  # fmt: skip
def test_pages_of_tags_have_their_limits(peer, path):
    """AZURE.md 6.1: 1 to 200, default 100."""
    assert peer.get(path, None).status_code == 400


def test_tags_and_their_errors_come_in_pages(fresh):
    """AZURE.md 6.1, 6.3: limit and offset of tags and of their errors; each error names its instance and when."""
    for n in range(3):
        with Peer(fresh.root, "v1") as earlier:
            put(earlier, scan({0x00101010: ("AS", f"{n}")}))
    tags = [{"path": path, "level": "Study"} for path in ("PatientAge", "PatientSex", "StudyID")]
    fresh.finished(fresh.call("POST", "/extendedquerytags", json=tags).json()["href"])

    assert [each["path"] for each in fresh.get("/extendedquerytags?limit=1&offset=1", None).json()] == ["00100040"]
    errors = fresh.get("/extendedquerytags/PatientAge/errors?limit=2&offset=1", None).json()
    assert len(errors) == 2
    assert set(errors[0]) == {"studyInstanceUid", "seriesInstanceUid", "sopInstanceUid", "createdTime", "errorMessage"}
    assert "errors" not in fresh.get("/extendedquerytags/PatientSex", None).json()


def test_patch_takes_the_query_status_and_nothing_else(fresh):
    """AZURE.md 6.1, 6.2: any other field is 400, an unknown tag 404, a path that is none 400."""
    tag = [{"path": "PatientAge", "level": "Study"}]
    fresh.finished(fresh.call("POST", "/extendedquerytags", json=tag).json()["href"])

    def status(path: str, body: object) -> int:
        return fresh.call("PATCH", f"/extendedquerytags/{path}", json=body).status_code

    good = {"QueryStatus": "Enabled"}
    assert [status("PatientAge", body) for body in (good, good | {"Level": "Series"}, {"Level": "Series"}, [])] == [
        200, 400, 400, 400,
    ]  # fmt: skip
    assert [status(path, good) for path in ("PatientSex", "nonsense")] == [404, 400]
    assert [fresh.call("DELETE", f"/extendedquerytags/{path}").status_code for path in ("PatientSex", "x")] == [
        404,
        400,
    ]
    assert [fresh.get(f"/extendedquerytags/{path}/errors", None).status_code for path in ("PatientSex", "x")] == [
        404, 400,
    ]  # fmt: skip


def test_sixteen_vrs_can_be_indexed():
    """AZURE.md 6.2: the source's list, without the documents' DS, and UI."""
    assert " ".join(sorted(INDEXABLE_VRS)) == "AE AS CS DA DT FD FL IS LO PN SH SL SS TM UI UL US"


def test_operations_that_are_switched_off_refuse_updates_too():
    """AZURE.md 6.4, 7.1: the same words for adding tags and for bulk updates."""
    body = {
        "studyInstanceUids": ["1.2"],
        "changeDataset": {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "New"}]}},
    }
    with Emulator(fsync=False, operations=False) as server, Peer(server.root) as peer:
        answer = peer.call("POST", "/studies/$bulkUpdate", json=body)

    assert answer.status_code == 400
    assert answer.text == "Asynchronous operations are temporarily disabled. Please try again later."


# Section 12, what else it lists.


def test_nothing_misbehaves_by_itself(server):
    """AZURE.md 1.10, 10: 429, Retry-After and cut connections are faults, and none is set."""
    assert server.faults.listed() == []
    with Peer(server.root) as peer:
        answers = [peer.store(scan()) for _ in range(20)]

    assert {answer.status_code for answer in answers} == {200}
    assert not any("Retry-After" in answer.headers for answer in answers)


def test_uids_are_compared_without_trailing_spaces(peer):
    """AZURE.md 1.7: on all three levels, and 45070 for the second."""
    uids = [fresh_uid() for _ in range(3)]
    tags = (0x0020000D, 0x0020000E, 0x00080018)
    padded = {tag: ("UI", uid + "  ") for tag, uid in zip(tags, uids, strict=True)}
    plain = {tag: ("UI", uid) for tag, uid in zip(tags, uids, strict=True)}
    put(peer, scan(padded))

    assert reasons(peer.store(scan(plain))) == [45070]
    assert peer.get(f"/studies/{uids[0]}/series/{uids[1]}/instances/{uids[2]}/metadata", JSON).status_code == 200
