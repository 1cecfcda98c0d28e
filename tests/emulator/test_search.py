"""The embedded server's QIDO-RS, change feed and what all requests share: AZURE.md 0, 3 and 5."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from ingestd.emulator import Emulator
from tests.builders import fresh_uid
from tests.emulator_peer import Peer, path_of, scan, stored


class Known:
    """One study of two series and three instances with values that nothing else has."""

    study, ct, mr = fresh_uid(), fresh_uid(), fresh_uid()


@pytest.fixture(scope="module", autouse=True)
def known(v2: Peer) -> type[Known]:
    changes = {
        0x00100010: ("PN", "Müller^Jörg^Kai"),
        0x00080005: ("CS", "ISO_IR 100"),
        0x00100020: ("LO", "Known-1"),
        0x00100030: ("DA", "19501231"),
        0x00080020: ("DA", "20200922"),
        0x00080050: ("SH", "Acc-Known"),
        0x00081030: ("LO", "Known Study"),
        0x00080090: ("PN", "Known^Referrer"),
        0x00081090: ("LO", "Known Model"),
        0x00400244: ("DA", "20200923"),
    }
    changes[0x00100010] = ("PN", "Müller^Jörg^Kai".encode("latin-1"))
    files = [
        scan(changes, study=Known.study, series=Known.ct),
        scan(changes, study=Known.study, series=Known.ct),
        scan(changes | {0x00080060: ("CS", "MR")}, study=Known.study, series=Known.mr),
    ]
    assert v2.store(*files).status_code == 200
    return Known


STUDY_FILTERS = [
    "StudyDate=20200922",
    "00080020=20200922",
    "StudyDescription=known study",
    "AccessionNumber=ACC-KNOWN",
    "PatientID=known-1",
    "PatientName=mULLER^jorg^KAI",
    "ReferringPhysicianName=known^referrer",
    "PatientBirthDate=19501231",
    "ModalitiesInStudy=MR&PatientID=known-1",
    "StudyDate=20200901-20200930&PatientID=Known-1",
    "StudyDate=20200901-&PatientID=Known-1",
    "StudyDate=-20200922&PatientID=Known-1",
]


@pytest.mark.parametrize("query", STUDY_FILTERS)
def test_study_is_found_by_every_study_filter(peer, query):
    answer = peer.get(f"/studies?{query}")

    assert answer.status_code == 200
    assert [each["0020000D"]["Value"] for each in answer.json()] == [[Known.study]]


@pytest.mark.parametrize(
    "query",
    [
        "SeriesInstanceUID={mr}",
        "Modality=mr",
        "PerformedProcedureStepStartDate=20200923",
        "ManufacturerModelName=known model",
    ],
)
def test_series_is_found_by_every_series_filter(peer, query):
    found = peer.get(f"/studies/{Known.study}/series?{query.format(mr=Known.mr)}").json()

    assert Known.mr in [each["0020000E"]["Value"][0] for each in found]


@pytest.mark.parametrize(
    "path, count",
    [
        ("/studies?PatientID=Known-1", 1),
        ("/series?PatientID=Known-1", 2),
        ("/instances?PatientID=Known-1", 3),
        ("/studies/{study}/series", 2),
        ("/studies/{study}/instances", 3),
        ("/studies/{study}/series/{ct}/instances", 2),
    ],
)
def test_all_six_resources_match(peer, path, count):
    answer = peer.get(path.format(study=Known.study, ct=Known.ct))

    assert answer.headers["Content-Type"] == "application/dicom+json; charset=utf-8"
    assert len(answer.json()) == count


@pytest.mark.parametrize(
    "query",
    [
        "PatientID=nobody",
        "PatientID=Known*",
        "PatientID=Known-?",
        "StudyInstanceUID=1.2.3.4.5",
        "StudyDate=19000101",
        "StudyDescription=Knówn Study",
        "PatientID=Known-1&offset=1",
    ],
)
def test_nothing_that_matches_has_no_content(peer, query):
    answer = peer.get(f"/studies?{quote(query, safe='=&*?')}")

    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize(
    "query",
    [
        "PatientSex=M",
        "Modality=CT",
        "NoSuchThing=1",
        "patientid=1",
        "00100040=M",
        "0010=1",
        "limit=0",
        "limit=201",
        "limit=x",
        "offset=-1",
        "fuzzymatching=maybe",
        "includefield=NoSuchThing",
        "includefield=all,PatientID",
        "PatientID=",
        "PatientID=%20",
        "PatientID=1&PatientID=2",
        "PatientID=1&00100020=2",
        "StudyDate=-",
        "StudyDate=20200202-20200101",
        "StudyDate=2020-01-01",
        "StudyDate=20201301",
        'PatientName="x&fuzzymatching=true',
    ],
)
def test_what_cannot_be_searched_is_a_bad_request(peer, query):
    assert peer.get(f"/studies?{query}").status_code == 400


HINT = (
    "If the parameter is an attribute keyword, check the casing as they are case-sensitive. The conformance statement "
    "has a list of supported query parameters, attributes and the levels."
)
NO_RANGE = (
    "Invalid query: specified range is invalid.\nBoth parts in the range cannot be empty.\nFor details on valid range "
    "queries, please refer to Search Matching section in Conformance Statement (https://github.com/microsoft/dicom-server"
    "/blob/main/docs/resources/conformance-statement.md#search-matching)."
)
RANGE_AGAINST_TIME = (
    "Invalid query: specified date range '{0}-{1}' is invalid.\n"
    "The first part {2} {0} should be lesser than or equal to the second part {2} {1}."
)
WORDS = {
    "/studies?PatientSex=M": f"Invalid query: AttributeId PatientSex is not queryable.  {HINT}",
    "/studies?Modality=CT": f"Invalid query: AttributeId Modality is not queryable.  {HINT}",
    "/workitems?Modality=CT": f"Invalid query: AttributeId Modality is not queryable.  {HINT}",
    "/workitems?Foo=M": f"Invalid query: AttributeId Foo is not queryable.  {HINT}",
    "/studies?Foo=M": f"Invalid query: unknown query parameter 'Foo'. {HINT}",
    "/studies?PatientID=%20": "Invalid query: AttributeId 'PatientID' has empty string value that is not supported.",
    "/workitems?PatientID=": "Invalid query: AttributeId 'PatientID' has empty string value that is not supported.",
    "/studies?PatientID=1&PatientID=2": (
        "Invalid QIDO-RS query. Duplicate AttributeId 'PatientID'. Each attribute is only allowed to be specified once."
    ),
    "/workitems?PatientID=1&PatientID=2": (
        "Invalid QIDO-RS query. Duplicate AttributeId 'PatientID'. Each attribute is only allowed to be specified once."
    ),
    "/studies?PatientID=1&00100020=2": (
        "Invalid query: attribute '00100020' has been specified more than once using different ID formats. Each "
        "attribute is only allowed to be specified once."
    ),
    "/workitems?PatientID=1&00100020=2": (
        "Invalid query: attribute '00100020' has been specified more than once using different ID formats. Each "
        "attribute is only allowed to be specified once."
    ),
    "/studies?includefield=Foo": "Invalid query: IncludeField has unknown attribute 'Foo'.",
    "/workitems?includefield=Foo": "Invalid query: IncludeField has unknown attribute 'Foo'.",
    "/studies?includefield=all,PatientSex": "Invalid query: cannot specify included fields in addition to 'all'.",
    "/workitems?includefield=all,PatientSex": "Invalid query: cannot specify included fields in addition to 'all'.",
    "/studies?StudyDate=2020": (
        "Invalid query: specified Date value '2020' is invalid for attribute 'StudyDate'. "
        "Date should be valid and formatted as yyyyMMdd."
    ),
    "/studies?StudyDate=2020-01-01": (
        "Invalid query: specified Date value '2020-01-01' is invalid for attribute 'StudyDate'. "
        "Date should be valid and formatted as yyyyMMdd."
    ),
    "/studies?StudyDate=-": NO_RANGE,
    "/studies?StudyDate=20200202-20200101": RANGE_AGAINST_TIME.format("20200202", "20200101", "date"),
    "/workitems?ScheduledProcedureStepStartDateTime=-": NO_RANGE,
    "/workitems?ScheduledProcedureStepStartDateTime=20200202-2020": RANGE_AGAINST_TIME.format(
        "20200202", "2020", "DateTime"
    ),
    "/workitems?ScheduledProcedureStepStartDateTime=x": (
        "Invalid query: specified DateTime value 'x' is invalid for attribute 'ScheduledProcedureStepStartDateTime'. "
        "DateTime should be valid and formatted as yyyyMMddHHmmss.FFFFFF where yyyy is mandatory."
    ),
    "/studies?PatientName=%22x&fuzzymatching=true": (
        "Invalid query: specified tag 'PatientName' value '\"x' contains unsupported character '\"'. Character is not "
        "supported with Fuzzy match, try exact match or removing the invalid character. "
    ),
    "/studies?limit=500": "The query parameter 'Limit' is invalid. The field Limit must be between 1 and 200.",
    "/workitems?limit=500": "The query parameter 'Limit' is invalid. The field Limit must be between 1 and 200.",
    "/extendedquerytags?limit=0": "The query parameter 'Limit' is invalid. The field Limit must be between 1 and 200.",
    "/changefeed?limit=x": "The query parameter 'Limit' is invalid. The value 'x' is not valid for Limit.",
    "/studies?fuzzymatching=x": (
        "The query parameter 'FuzzyMatching' is invalid. The value 'x' is not valid for FuzzyMatching."
    ),
}


@pytest.mark.parametrize("query", WORDS)
def test_searches_that_make_no_sense_are_refused_in_the_services_words(v2, query):
    answer = v2.get(query)

    assert (answer.status_code, answer.text) == (400, WORDS[query])


def test_version_1_of_the_feed_names_its_parameters_in_lowercase(v1):
    """They are parameters of the service's method there and fields of a class elsewhere."""
    assert v1.get("/changefeed?limit=101").text == (
        "The query parameter 'limit' is invalid. The field limit must be between 1 and 100."
    )


def test_study_uid_is_no_filter_inside_a_study(peer):
    assert peer.get(f"/studies/{Known.study}/series?StudyInstanceUID={Known.study}").status_code == 400


def test_wrong_accept_is_not_acceptable(peer):
    assert [peer.get("/studies", accept).status_code for accept in (None, "application/dicom")] == [406, 406]


@pytest.mark.parametrize("name", ["jo", "mül", "muller kai", "MÜLLER JÖRG", "mu jo"])
def test_fuzzy_matching_takes_prefixes_of_the_parts_in_order(peer, name):
    found = peer.get(f"/studies?PatientName={quote(name)}&fuzzymatching=true").json()

    assert [each["0020000D"]["Value"][0] for each in found] == [Known.study]


@pytest.mark.parametrize("name", ["jo mul", "org", "kai jörg"])
def test_fuzzy_matching_needs_the_order_and_the_beginnings(peer, name):
    assert peer.get(f"/studies?PatientName={quote(name)}&fuzzymatching=true").status_code == 204


def test_fuzzy_matching_of_the_referring_physician(peer):
    assert len(peer.get("/studies?ReferringPhysicianName=refer&fuzzymatching=true").json()) == 1


V2_STUDY = {"00080020", "00080050", "00080090", "00081030", "00100010", "00100020", "00100030", "0020000D"}
V2_SERIES = {"00080060", "00081090", "0020000E", "00400244"}


def test_v2_default_attributes(v2):
    def keys(path: str) -> set[str]:
        return set(v2.get(path).json()[0])

    assert keys("/studies?PatientID=Known-1") == V2_STUDY
    assert keys("/series?PatientID=Known-1") == V2_STUDY | V2_SERIES
    assert keys("/instances?PatientID=Known-1") == V2_STUDY | V2_SERIES | {"00080018"}
    assert keys(f"/studies/{Known.study}/series") == V2_SERIES | {"0020000D"}
    assert keys(f"/studies/{Known.study}/instances") == V2_SERIES | {"00080018", "0020000D"}
    inside = f"/studies/{Known.study}/series/{Known.ct}/instances"
    assert keys(inside) == {"00080018", "0020000D", "0020000E"}


def test_v1_default_attributes_come_from_the_metadata(server):
    with Peer(server.root, "v1") as peer:
        study = peer.get("/studies?PatientID=Known-1").json()[0]
        inside = peer.get(f"/studies/{Known.study}/series/{Known.ct}/instances").json()[0]

    assert set(study) == {
        "00080005",
        "00080020",
        "00080050",
        "00080090",
        "00100010",
        "00100020",
        "00100030",
        "0020000D",
    }
    assert {"00080016", "00080018", "00200013", "00280010", "00280011", "00280100"} <= set(inside)
    assert "00081030" not in study


def test_include_all_and_single_fields(peer):
    everything = peer.get(f"/studies/{Known.study}/series/{Known.ct}/instances?includefield=all").json()[0]
    one = peer.get(f"/studies/{Known.study}/instances?includefield=00280010&includefield=Columns,BitsAllocated").json()[
        0
    ]

    assert "00280010" in everything
    assert {"00280010", "00280011", "00280100"} <= set(one)


def test_filters_are_returned(v2):
    assert "00080061" in v2.get("/studies?ModalitiesInStudy=MR&PatientID=Known-1").json()[0]


def test_computed_attributes(peer):
    study = peer.get("/studies?PatientID=Known-1&includefield=ModalitiesInStudy,NumberOfStudyRelatedInstances").json()[
        0
    ]
    series = peer.get(f"/studies/{Known.study}/series?Modality=CT&includefield=NumberOfSeriesRelatedInstances").json()[
        0
    ]

    assert sorted(study["00080061"]["Value"]) == ["CT", "MR"]
    assert study["00201208"]["Value"] == [3]
    assert series["00201209"]["Value"] == [2]


def test_newest_comes_first_and_pages_do_not_overlap(v2):
    patient, uids = f"P{fresh_uid()[-8:]}", [fresh_uid() for _ in range(5)]
    for uid in uids:
        v2.store(scan({0x00100020: ("LO", patient)}, study=uid))

    pages = [v2.get(f"/studies?PatientID={patient}&limit=2&offset={offset}").json() for offset in (0, 2, 4)]

    assert [each["0020000D"]["Value"][0] for page in pages for each in page] == uids[::-1]


def test_latest_value_of_a_study_wins(v2):
    study = fresh_uid()
    v2.store(scan({0x00081030: ("LO", "older")}, study=study))
    v2.store(scan({0x00081030: ("LO", "newer")}, study=study))
    v2.store(scan({0x00081030: None}, study=study))

    found = v2.get(f"/studies?StudyInstanceUID={study}").json()[0]

    assert found["00081030"]["Value"] == ["newer"]


def test_query_of_the_ohif_viewer_works(peer):
    query = "limit=101&offset=0&fuzzymatching=false&includefield=00081030,00080060,00080061"

    assert peer.get(f"/studies?{query}", "application/dicom+json").status_code == 200


# Section 0: what all requests share.


def test_paths_without_a_version_are_not_found(server):
    with Peer(server.root, "") as peer:
        assert peer.get("studies").status_code == 404


@pytest.mark.parametrize("version", ["v3", "v0", "v1.5"])
def test_unknown_version_is_a_bad_request_with_its_code(server, version):
    with Peer(server.root, version) as peer:
        answer = peer.get("/studies")

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "UnsupportedApiVersion")


@pytest.mark.parametrize("version", ["v1.0-prerelease", "v1", "v2", "V2", "v2.0"])
def test_every_supported_version_answers_and_says_which_there_are(server, version):
    with Peer(server.root, version) as peer:
        answer = peer.get("/studies?limit=1")

    assert answer.status_code == 200
    assert answer.headers["api-supported-versions"] == "1.0-prerelease, 1, 2"


def test_paths_are_case_insensitive_and_may_end_in_a_slash(peer):
    assert [peer.get(path).status_code for path in ("/Studies/?limit=1", "/CHANGEFEED/", "/sTuDiEs?limit=1")] == [
        200
    ] * 3


@pytest.mark.parametrize("query", ["PatientID=%3Cscript", "PatientID=<b>"])
def test_angle_brackets_in_the_query_are_refused(peer, query):
    answer = peer.get(f"/studies?{query}")

    assert (answer.status_code, answer.text) == (400, "The query string included invalid characters.")


def test_too_many_or_too_long_audit_headers_are_refused(peer):
    many = {f"X-MS-AZUREDICOM-AUDIT-{n}": "x" for n in range(11)}

    assert peer.get("/changefeed", headers=many).status_code == 400
    assert peer.get("/changefeed", headers={"X-MS-AZUREDICOM-AUDIT-1": "x" * 2049}).status_code == 400
    assert peer.get("/changefeed", headers={"X-MS-AZUREDICOM-AUDIT-1": "x" * 2048}).status_code == 200


def test_wrong_method_is_not_allowed(peer):
    answer = peer.call("PATCH", "/studies")

    assert answer.status_code == 405


# Section 5: the change feed.


@pytest.fixture
def fresh() -> Iterator[Emulator]:
    with Emulator(fsync=False) as running:
        yield running


def test_empty_feed_and_no_latest(fresh):
    for version in ("v1", "v2"):
        with Peer(fresh.root, version) as peer:
            assert peer.feed("") == []
            assert peer.get("/changefeed/latest", None).status_code == 204


def test_entry_has_the_properties_in_their_order(v2):
    entry = v2.feed("limit=1")[0]

    assert list(entry) == [
        "sequence", "partitionName", "studyInstanceUid", "seriesInstanceUid", "sopInstanceUid", "action", "timestamp",
        "state", "metadata",
    ]  # fmt: skip
    assert (entry["action"], entry["state"], entry["partitionName"]) == ("Create", "Current", "Microsoft.Default")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}\+00:00", entry["timestamp"])
    assert entry["metadata"]["0020000D"]["Value"] == [Known.study]


def test_states_follow_deletion_and_storing_again(fresh):
    with Peer(fresh.root) as peer:
        file = scan()

        def states() -> list[tuple[str, str]]:
            return [(each["action"], each["state"]) for each in peer.feed()]

        path = path_of(stored(peer.store(file))[0])
        assert states() == [("Create", "Current")]
        peer.call("DELETE", path)
        assert states() == [("Create", "Deleted"), ("Delete", "Deleted")]
        peer.store(file)
        assert states() == [("Create", "Replaced"), ("Delete", "Replaced"), ("Create", "Current")]
        assert ["metadata" in each for each in peer.feed("")] == [True] * 3
        peer.call("DELETE", path)
        assert ["metadata" in each for each in peer.feed("")] == [False] * 4


def test_v1_offset_is_a_sequence_and_limit_a_width(fresh):
    fresh.faults.add("feed_gap", count=1, skip=5, numbers=50)
    with Peer(fresh.root, "v1") as peer:
        study = fresh_uid()
        peer.store(*[scan(study=study) for _ in range(12)])

        def sequences(query: str) -> list[int]:
            return [each["sequence"] for each in peer.feed(f"includeMetadata=false&{query}")]

        assert sequences("") == [1, 2, 3, 4, 5]  # the default page is ten numbers wide; a gap makes it short
        assert sequences("offset=2&limit=2") == [3, 4]
        assert sequences("offset=10&limit=40") == []
        assert sequences("offset=5&limit=100") == [56, 57, 58, 59, 60, 61, 62]
        assert peer.get("/changefeed/latest?includeMetadata=false", None).json()["sequence"] == 62


def test_v2_window_is_inclusive_at_its_start_and_exclusive_at_its_end(fresh):
    with Peer(fresh.root) as peer:
        study = fresh_uid()
        for _ in range(4):
            peer.store(scan(study=study))
        entries = peer.feed()
        first, third = (quote(entries[n]["timestamp"]) for n in (0, 2))

        def sequences(query: str) -> list[int]:
            return [each["sequence"] for each in peer.feed(f"includeMetadata=false&{query}")]

        assert sequences(f"startTime={first}&endTime={third}") == [1, 2]
        assert sequences(f"startTime={third}") == [3, 4]
        assert sequences("offset=1&limit=2") == [2, 3]
        assert sequences("offset=4") == []
        assert sequences("startTime=2000-01-01T00:00:00Z&endTime=2001-01-01T00:00:00%2B01:00") == []


@pytest.mark.parametrize(
    "query",
    [
        "startTime=2024-01-01T00:00:00",
        "startTime=2024-01-01",
        "endTime=2024-01-01T00:00:00",
        "startTime=yesterday",
        "startTime=2024-13-01T00:00:00Z",
        "startTime=2024-01-02T00:00:00Z&endTime=2024-01-01T00:00:00Z",
        "startTime=2024-01-01T00:00:00Z&endTime=2024-01-01T00:00:00Z",
        "limit=201",
    ],
)
def test_v2_bad_windows_are_bad_requests(v2, query):
    assert v2.get(f"/changefeed?{query}", None).status_code == 400


def test_window_errors_are_worded_as_the_service_does(v2):
    assert "Date and time value must specify a time zone." in v2.get("/changefeed?startTime=2024-01-01T00:00:00").text
    both = "startTime=2024-01-02T00:00:00Z&endTime=2024-01-01T00:00:00Z"
    assert v2.get(f"/changefeed?{both}").text == (
        "The start time '2024-01-02T00:00:00Z' must occur strictly before the end time '2024-01-01T00:00:00Z'."
    )


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1", "limit=0", "limit=ten", "limit=92233720368547758070", "offset=-1", "offset=x",
        "includeMetadata=0", "includeMetadata=true-ish", "includeMetadata=boolean",
    ],
)  # fmt: skip
def test_bad_feed_parameters_are_bad_requests(peer, query):
    assert peer.get(f"/changefeed?{query}", None).status_code == 400


def test_v1_limit_over_a_hundred_is_a_bad_request(server):
    with Peer(server.root, "v1") as peer:
        assert peer.get("/changefeed?limit=101", None).status_code == 400


def test_latest_refuses_a_bad_flag_and_needs_no_accept(peer):
    assert peer.get("/changefeed/latest?includeMetadata=asdf", None).status_code == 400
    assert peer.get("/changefeed/latest", None).headers["Content-Type"] == "application/json; charset=utf-8"


def test_health_is_unversioned(server):
    with Peer(server.root, "") as peer:
        answer = peer.get("health/check", None)

    assert (answer.status_code, answer.json()["overallStatus"]) == (200, "Healthy")


def test_openapi_document_knows_every_resource(peer):
    paths = peer.get("/api.json", None).json()["paths"]

    assert {"/studies", "/changefeed", "/studies/{study}/metadata", "/workitems"} <= set(paths)
    assert "/studies/$bulkupdate" in paths
    assert peer.get("/api.yaml", None).status_code == 200


def test_plain_page_counts_what_is_stored(server):
    with Peer(server.root, "") as peer:
        answer = peer.get("", "text/html")

    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert Known.study in answer.text
    assert "npm pack @ohif/app" in answer.text


# What is returned, in detail (3.2, 3.3).


def test_include_all_returns_the_sources_sets(v2):
    study = fresh_uid()
    extra = {
        0x00080005: ("CS", "ISO_IR 100"),
        0x00080030: ("TM", "101112"),
        0x0008103E: ("LO", "A series"),
        0x00101010: ("AS", "045Y"),
        0x00200011: ("IS", "3"),
        0x00185100: ("CS", "HFS"),
    }
    v2.store(scan(extra, study=study))

    found = set(v2.get(f"/studies?StudyInstanceUID={study}&includefield=all").json()[0])
    series = set(v2.get(f"/studies/{study}/series?includefield=ALL").json()[0])

    assert {"00080005", "00080030", "00081030", "00101010"} <= found
    assert {"0008103E", "00200011", "00080060"} <= series
    assert "00081090" not in series
    assert not {"00185100", "0008103E"} & found


def test_attributes_outside_the_index_come_from_the_newest_instance(v2):
    study, series = fresh_uid(), fresh_uid()
    for number in ("1", "2"):
        v2.store(scan({0x00200013: ("IS", number)}, study=study, series=series))

    found = v2.get(f"/studies?StudyInstanceUID={study}&includefield=InstanceNumber").json()[0]

    assert found["00200013"]["Value"] == [2]


def test_counts_include_rows_that_are_still_creating(fresh):
    study = fresh_uid()
    with Peer(fresh.root) as peer:
        peer.store(scan(study=study))
        fresh.faults.add("stuck_creating", count=1)
        peer.store(scan(study=study))
        found = peer.get(f"/studies?StudyInstanceUID={study}&includefield=NumberOfStudyRelatedInstances").json()[0]

        assert found["00201208"]["Value"] == [2]
        assert len(peer.get(f"/studies/{study}/instances").json()) == 1


def test_strings_compare_without_case_but_with_accents_and_names_without_either(v2):
    study = fresh_uid()
    v2.store(
        scan(
            {
                0x00080005: ("CS", "ISO_IR 192"),
                0x00081030: ("LO", "Étude Spéciale".encode()),
                0x00100010: ("PN", "Ångström^Zoë".encode()),
            },
            study=study,
        )
    )

    def count(query: str) -> int:
        answer = v2.get(f"/studies?StudyInstanceUID={study}&{quote(query, safe='=^')}")
        return len(answer.json()) if answer.status_code == 200 else 0

    assert [count("StudyDescription=étude spéciale"), count("StudyDescription=Etude Speciale")] == [1, 0]
    assert [count("PatientName=angstrom^zoe"), count("PatientName=ÅNGSTRÖM^ZOË"), count("PatientName=angstrom")] == [
        1,
        1,
        0,
    ]


def test_prerelease_version_behaves_as_version_1(server):
    with Peer(server.root, "v1.0-prerelease") as peer:
        assert peer.get("/changefeed?limit=101", None).status_code == 400
        study = fresh_uid()
        answer = peer.store(scan(study=study))
        assert "/v1.0-prerelease/studies/" in stored(answer)[0]["00081190"]["Value"][0]
        assert "00741048" not in stored(answer)[0]


def test_feed_covers_all_partitions_and_is_never_under_one(server):
    with Peer(server.root) as peer:
        assert peer.get("/partitions/x/changefeed", None).status_code == 404


def test_export_is_not_found_while_it_is_off(v2):
    assert v2.call("POST", "/export", json={}).status_code == 404
