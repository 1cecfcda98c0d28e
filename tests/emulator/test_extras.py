"""The embedded server's extended query tags, bulk update, partitions, workitems and tokens: AZURE.md 6 to 8."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

from ingestd.emulator import Emulator
from tests.builders import DEFLATED, fresh_uid
from tests.emulator_peer import ANY_FILE, JSON, Change, Peer, comments, path_of, reasons, scan, stored

pydicom = pytest.importorskip("pydicom")


@pytest.fixture(scope="module")
def peer(server: Emulator) -> Iterator[Peer]:
    with Peer(server.root) as one:
        yield one


def add_tags(peer: Peer, *tags: dict[str, Any]) -> requests.Response:
    return peer.call("POST", "/extendedquerytags", json=list(tags))


def added(peer: Peer, *tags: dict[str, Any]) -> dict[str, Any]:
    answer = add_tags(peer, *tags)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == answer.json()["href"]
    return peer.finished(answer.json()["href"])


# Extended query tags (AZURE.md 6, ExtendedQueryTagTests).


def test_new_tag_is_searchable_for_what_was_there_and_what_comes(fresh):
    before, after = fresh_uid(), fresh_uid()
    fresh.store(scan({0x00101010: ("AS", "045Y")}, study=before))

    operation = added(fresh, {"Path": "PatientAge", "Level": "Study"})
    fresh.store(scan({0x00101010: ("AS", "045Y")}, study=after))

    assert (operation["status"], operation["type"], operation["percentComplete"]) == ("succeeded", "reindex", 100)
    found = fresh.get("/studies?PatientAge=045Y").json()
    assert [each["0020000D"]["Value"][0] for each in found] == [after, before]
    assert all("00101010" in each for each in found)
    assert fresh.get("/extendedquerytags/PatientAge", None).json() == {
        "path": "00101010",
        "vr": "AS",
        "level": "study",
        "status": "ready",
        "queryStatus": "enabled",
    }


VALUES = [
    ("00189087", "FD", b"\0\0\0\0\0\0\xf8\x3f", "00189087=1.5"),
    ("00280010", "US", 9, "Rows=9"),
    ("00200013", "IS", "42", "InstanceNumber=42"),
    ("0008002A", "DT", "20260102101112.5", "AcquisitionDateTime=20260102-20260103"),
    ("00080032", "TM", "101112", "AcquisitionTime=1011-1012"),
    ("00080022", "DA", "20260103", "AcquisitionDate=-20260104"),
    ("00081050", "PN", "Perf^Phys", "PerformingPhysicianName=PERF^phys"),
    ("00080054", "AE", "SOME_AE", "00080054=some_ae"),
]


def test_every_kind_of_value_can_be_searched(fresh):
    added(fresh, *({"path": tag, "level": "Instance"} for tag, *_ in VALUES))
    fresh.store(scan({int(tag, 16): (vr, value) for tag, vr, value, _ in VALUES}))
    fresh.store(scan({int(tag, 16): None for tag, *_ in VALUES}))

    for *_, query in VALUES:
        assert len(fresh.get(f"/instances?{query}").json()) == 1, query


def test_private_tag_needs_its_creator_and_vr(fresh):
    tag = {"Path": "12051003", "Level": "Instance"}

    assert [add_tags(fresh, tag | extra).status_code for extra in ({}, {"VR": "SS"}, {"PrivateCreator": "P"})] == [
        400
    ] * 3
    assert added(fresh, tag | {"VR": "SS", "PrivateCreator": "P"})["status"] == "succeeded"
    fresh.store(scan({0x12051003: ("SS", 7)}))
    assert len(fresh.get("/instances?12051003=7").json()) == 1


def test_reindexing_reads_what_the_metadata_holds(fresh):
    """An attribute that version 2 has dropped at the store is no error of the tag; each other value is found."""
    japanese = "山田^太郎".encode("gb18030")
    good: dict[int, Change] = {int(tag, 16): (vr, value) for tag, vr, value, _ in VALUES}
    good |= {0x00080005: ("CS", "GB18030"), 0x00101001: ("PN", japanese)}
    bad: dict[int, Change] = {0x00101010: ("AS", "45 years"), 0x00200012: ("IS", "1.5"), 0x00101001: ("PN", "a=b=c=d")}
    fresh.store(scan(good))
    answer = fresh.store(scan(bad))
    assert len(answer.json()["00081199"]["Value"][0]["00741048"]["Value"]) == 3

    paths = {tag for tag, *_ in VALUES} | {"00101010", "00200012", "00101001"}
    added(fresh, *({"path": path, "level": "Instance"} for path in sorted(paths)))

    for entry in fresh.get("/extendedquerytags", None).json():
        assert (entry["queryStatus"], entry.get("errors")) == ("enabled", None), entry
    for query in [query for *_, query in VALUES] + ["OtherPatientNames=山田^太郎"]:
        assert len(fresh.get(f"/instances?{query}").json()) == 1, query


def test_values_that_cannot_be_indexed_are_listed_and_switch_the_tag_off(fresh):
    uids = {"study": fresh_uid(), "series": fresh_uid(), "sop": fresh_uid()}
    with Peer(fresh.root, "v1") as earlier:  # which looks at nothing that is not indexed
        earlier.store(scan({0x00101010: ("AS", "45 years")}, **uids))
    added(fresh, {"Path": "PatientAge", "Level": "Study"})

    entry = fresh.get("/extendedquerytags/00101010", None).json()
    assert (entry["errors"]["count"], entry["queryStatus"]) == (1, "disabled")
    (error,) = fresh.session.get(entry["errors"]["href"], timeout=30).json()
    assert (error["studyInstanceUid"], error["errorMessage"]) == (uids["study"], "Value length is not 4.")
    refused = fresh.get("/studies?PatientAge=045Y")
    assert (refused.status_code, refused.text) == (400, "Query is disabled on specified attribute 'PatientAge'.")
    enabled = fresh.call("PATCH", "/extendedquerytags/00101010", json={"QueryStatus": "Enabled"})
    assert enabled.json()["queryStatus"] == "enabled"
    for name in ("PatientAge", "00101010"):  # as it was asked for
        assert fresh.get(f"/studies?{name}=045Y").headers["erroneous-dicom-attributes"] == name


@pytest.mark.parametrize(
    "tag,words",
    [
        (
            {"Path": "ManufacturerModelName", "Level": "Study"},
            "The query tag 'ManufacturerModelName' is already supported.",
        ),
        (
            {"Path": "PatientAge", "VR": "LO", "Level": "Study"},
            (
                "The VR code 'LO' is incorrectly specified for 'PatientAge'. The expected VR code for it is 'AS'. "
                "Retry this request either with the correct VR code or without specifying it."
            ),
        ),
        ({"Path": "PatientAge", "VR": "XX", "Level": "Study"}, "The VR code 'XX' for tag 'PatientAge' is invalid."),
        (
            {"Path": "PatientAge", "VR": "AS", "PrivateCreator": "x", "Level": "Study"},
            "The private creator is not empty for standard tag 'PatientAge'.",
        ),
        (
            {"Path": "00110010", "PrivateCreator": "x", "Level": "Study"},
            "The private creator is not empty for private identification code '00110010'.",
        ),
        (
            {"Path": "00111010", "VR": "SS", "Level": "Study"},
            "The private creator for private tag '00111010' is missing.",
        ),
        (
            {"Path": "00111010", "VR": "SS", "PrivateCreator": "x" * 65, "Level": "Study"},
            "The private creator for tag '00111010' is not a valid LO attribute.",
        ),
        ({"Path": "00111010", "PrivateCreator": "x", "Level": "Study"}, "The vr for tag '00111010' is missing."),
        (
            {"Path": "ReferencedStudySequence.ReferencedSOPClassUID", "Level": "Study"},
            (
                "Dicom element 'ReferencedStudySequence.ReferencedSOPClassUID' failed validation for VR 'SQ': "
                "Sequential dicom tags are currently not supported."
            ),
        ),
        (
            {"Path": "ReferencedStudySequence", "Level": "Study"},
            "The VR code 'SQ' specified for tag 'ReferencedStudySequence' is not supported.",
        ),
        (
            {"Path": "PatientWeight", "Level": "Study"},
            "The VR code 'DS' specified for tag 'PatientWeight' is not supported.",
        ),
        (
            {"Path": "NoSuchThing", "Level": "Study"},
            "The extended query tag 'NoSuchThing' is invalid as it cannot be parsed into a valid Dicom Tag.",
        ),
        (
            {"Path": "00081234", "VR": "LO", "Level": "Study"},
            "The extended query tag '00081234' is invalid as it cannot be parsed into a valid Dicom Tag.",
        ),
    ],
)
def test_tags_that_make_no_sense_are_refused_in_the_services_words(peer, tag, words):
    answer = add_tags(peer, tag)

    assert (answer.status_code, answer.text) == (400, words)


MISSING = "The Dicom Tag Property {0} must be specified and must not be null, empty or whitespace."
WORDS = "Expected value '{0}' to be one of the following values: ['Instance', 'Series', 'Study']"


@pytest.mark.parametrize(
    "tags,field,message",
    [
        ([{"Path": "00100040"}], "[0].Level", MISSING.format("Level")),
        ([{"Path": "00100040", "Level": None}], "[0].Level", MISSING.format("Level")),
        ([{"Path": "", "Level": "Study"}], "[0].Path", MISSING.format("Path")),
        ([{"Path": " ", "Level": "Study"}], "[0].Path", MISSING.format("Path")),
        ([{"Path": "00100040", "Level": "Study"}, {"Level": "Study"}], "[1].Path", MISSING.format("Path")),
        ([{"Path": "00100040", "Level": "Studys"}], "$[0].Level", WORDS.format("Studys")),
        ([{"Path": "00100040", "Level": ""}], "$[0].Level", WORDS.format("")),
        ([{"Path": "00100040", "Level": "Study"}, {"level": "Patient"}], "$[1].level", WORDS.format("Patient")),
        ([{"Path": "00100040", "Level": 1}], "$[0].Level", "Expected token type 'String' but read 'Number' instead."),
    ],
)
def test_wrong_field_of_a_tag_is_named_with_its_place_in_the_body(peer, tags, field, message):
    """What a reader of JSON finds has a path that begins with "$", what the tag's own check finds has none."""
    answer = add_tags(peer, *tags)

    assert (answer.status_code, answer.text) == (400, f"The field '{field}' in request body is invalid: {message}")


def test_fields_that_a_tag_does_not_have_are_passed_over(fresh):
    assert add_tags(fresh, {"Path": "PatientAge", "Level": "Study", "Colour": "red"}).status_code == 202


def test_bodies_that_make_no_sense_are_bad_requests(peer):
    headers = {"Content-Type": "application/json"}

    assert peer.call("POST", "/extendedquerytags", data="{", headers=headers).status_code == 400
    assert add_tags(peer).text == "The extended query tag(s) is missing."
    assert peer.call("POST", "/extendedquerytags", data="[]", headers={"Content-Type": "text/plain"}).status_code == 415
    twice = {"Path": "PatientAge", "Level": "Study"}
    assert "has been specified before" in add_tags(peer, twice, twice).text


def test_tag_that_exists_is_a_conflict_and_can_be_deleted_once(fresh):
    tag = {"path": "PatientAge", "level": "Study"}
    added(fresh, tag)

    assert add_tags(fresh, tag).text == "One or more extended query tags already exist."
    deletions = [fresh.call("DELETE", "/extendedquerytags/PatientAge").status_code for _ in range(2)]
    assert deletions == [204, 404]
    assert fresh.get("/extendedquerytags", None).json() == []
    refused = [fresh.get(f"/extendedquerytags/{path}", None) for path in ("nope", "00101010")]
    assert [(answer.status_code, answer.text) for answer in refused] == [
        (400, "The extended query tag 'nope' is invalid as it cannot be parsed into a valid Dicom Tag."),
        (404, "The specified extended query tag with tag path 00101010 cannot be found."),
    ]


def test_more_tags_than_allowed_are_a_server_error(fresh):
    tags = [
        {"Path": f"1205{n:04X}", "VR": "SS", "PrivateCreator": "P", "Level": "Instance"} for n in range(0x1000, 0x1081)
    ]

    answer = add_tags(fresh, *tags)

    assert (answer.status_code, answer.text) == (503, "Extended query tags exceeds max allowed count '128'.")


def test_one_reindex_at_a_time_and_its_states():
    with Emulator(fsync=False, operation_delay=0.4) as server, Peer(server.root) as peer, Peer(server.root, "v1") as v1:
        first = add_tags(peer, {"path": "PatientAge", "level": "Study"})
        second = add_tags(peer, {"path": "PatientSex", "level": "Study"})
        running = peer.session.get(first.json()["href"], timeout=30)
        entry = peer.get("/extendedquerytags/PatientAge", None).json()

        assert second.status_code == 409
        assert second.text == f"There is already an active re-index operation with ID '{first.json()['id']}'."
        assert second.headers["Location"] == first.json()["href"]
        assert (running.status_code, running.headers["Location"]) == (202, first.json()["href"])
        assert (entry["status"], entry["operation"]["id"]) == ("adding", first.json()["id"])
        assert "is being processed." in peer.call("DELETE", "/extendedquerytags/PatientAge").text
        assert peer.get("/studies?PatientAge=045Y").status_code == 400
        assert peer.finished(first.json()["href"])["status"] == "succeeded"
        assert v1.get(f"/operations/{first.json()['id']}", None).json()["status"] == "completed"


@pytest.mark.parametrize("operation", ["nonsense", "0" * 32])
def test_unknown_operation_is_not_found(peer, operation):
    assert peer.get(f"/operations/{operation}", None).status_code == 404


def test_operations_can_be_switched_off():
    with Emulator(fsync=False, operations=False) as server, Peer(server.root) as peer:
        answer = add_tags(peer, {"path": "PatientAge", "level": "Study"})

    text = "Asynchronous operations are temporarily disabled. Please try again later."
    assert (answer.status_code, answer.text) == (400, text)


def test_invalid_value_of_an_indexed_tag_is_refused_by_v1_and_warned_of_by_v2():
    with Emulator(fsync=False) as server, Peer(server.root) as v2, Peer(server.root, "v1") as v1:
        added(v2, {"path": "InstanceNumber", "level": "Instance"})
        bad = {0x00200013: ("IS", "1.5")}

        assert reasons(v1.store(scan(bad))) == [43264]
        assert v2.store(scan(bad)).status_code == 202


# Bulk update (AZURE.md 7.1, UpdateInstanceTests).


def change(peer: Peer, studies: list[str], **elements: Any) -> requests.Response:
    body = {"studyInstanceUids": studies, "changeDataset": elements}
    return peer.call("POST", "/studies/$bulkUpdate", json=body)


NAME = {"vr": "PN", "Value": [{"Alphabetic": "New^Name"}]}


def test_update_changes_every_instance_and_keeps_the_original(fresh):
    study = fresh_uid()
    files = [
        scan(study=study),
        scan({0x7FE00010: ("OW", bytes(5_000_000))}, study=study),
        scan(study=study, transfer_syntax=DEFLATED),
    ]
    paths = [path_of(each) for each in stored(fresh.store(*files))]
    before = fresh.get(f"/studies/{study}/metadata").headers["ETag"]

    answer = change(fresh, [study], **{"00100010": NAME, "00081030": {"vr": "LO", "Value": ["Other"]}})
    assert (answer.status_code, "Location" in answer.headers) == (202, False)
    operation = fresh.finished(answer.json()["href"])

    assert operation["results"] == {"studyProcessed": 1, "studyUpdated": 1, "studyFailed": 0, "instanceUpdated": 3}
    assert [(each["action"], each["state"]) for each in fresh.feed()] == [("Create", "Replaced")] * 3 + [
        ("Update", "Current")
    ] * 3
    assert fresh.feed("limit=1")[0]["metadata"]["00100010"] == NAME
    assert fresh.get(f"/studies/{study}/metadata").headers["ETag"] != before
    assert len(fresh.get("/studies?PatientName=new^name&StudyDescription=other").json()) == 1
    for path, file in zip(paths, files, strict=True):
        latest = pydicom.dcmread(io.BytesIO(fresh.get(path, ANY_FILE).content))
        original = fresh.get(path, ANY_FILE, headers={"msdicom-request-original": "true"}).content
        assert str(latest.PatientName) == "New^Name"
        assert latest.file_meta.ImplementationClassUID == "1.3.6.1.4.1.311.129"
        assert latest.PixelData == pydicom.dcmread(io.BytesIO(file)).PixelData
        assert original[128:] == file[128:]


def test_second_update_keeps_the_first_original_and_deletion_takes_both(fresh):
    file = scan()
    path = path_of(stored(fresh.store(file))[0])
    study = path.split("/")[2]
    for name in ("One", "Two"):
        fresh.finished(
            change(fresh, [study], **{"00100010": {"vr": "PN", "Value": [{"Alphabetic": name}]}}).json()["href"]
        )

    assert fresh.get(path, ANY_FILE, headers={"msdicom-request-original": "true"}).content[128:] == file[128:]
    assert str(pydicom.dcmread(io.BytesIO(fresh.get(path, ANY_FILE).content)).PatientName) == "Two"
    assert fresh.call("DELETE", path).status_code == 204
    assert fresh.get(path, ANY_FILE).status_code == 404
    assert {each["state"] for each in fresh.feed()} == {"Deleted"}


def test_update_of_an_unknown_study_succeeds(fresh):
    operation = fresh.finished(change(fresh, [fresh_uid()], **{"00100010": NAME}).json()["href"])

    assert (operation["status"], operation["results"]["studyProcessed"]) == ("succeeded", 1)


def test_update_reaches_extended_tags(fresh):
    added(fresh, {"path": "PatientSex", "level": "Study"})
    study = path_of(stored(fresh.store(scan({0x00100040: ("CS", "F")})))[0]).split("/")[2]

    fresh.finished(change(fresh, [study], **{"00100040": {"vr": "CS", "Value": ["M"]}}).json()["href"])

    assert [fresh.get(f"/studies?PatientSex={sex}").status_code for sex in "MF"] == [200, 204]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"studyInstanceUids": []},
        {"studyInstanceUids": ["1.2"], "changeDataset": {}},
        {"studyInstanceUids": ["x"], "changeDataset": {"00100010": NAME}},
        {"studyInstanceUids": [f"1.{n}" for n in range(51)], "changeDataset": {"00100010": NAME}},
        {"studyInstanceUids": "1.2", "changeDataset": {"00100010": NAME}},
    ],
)
def test_updates_that_make_no_sense_are_bad_requests(peer, body):
    assert peer.call("POST", "/studies/$bulkUpdate", json=body).status_code == 400


@pytest.mark.parametrize(
    "element",
    [
        {"Value": ["X"]},
        {"vr": None, "Value": ["X"]},
        {"vr": "", "Value": ["X"]},
        {"vr": "XX", "Value": ["X"]},
        {"vr": "lo", "Value": ["X"]},
        {"vr": 7, "Value": ["X"]},
        {"vr": ["LO"], "Value": ["X"]},
        {"vr": "LO", "Value": "X"},
        {"vr": "PN", "Value": ["X"]},
        {"vr": "US", "Value": ["1"]},
        {"vr": "SQ", "Value": ["X"]},
        {"vr": "SQ", "Value": [{"00080100": {"Value": ["X"]}}]},
        "X",
        None,
    ],
)
@pytest.mark.parametrize("target", ["/studies/$bulkUpdate", "/workitems?1.2.3.4"])
def test_element_that_is_no_dicom_json_refuses_the_request(peer, element, target):
    """An element without a VR, or with one that does not exist, and its kind, wherever a data set is sent."""
    if target.startswith("/studies"):
        answer = change(peer, ["1.2.3"], **{"00100020": element})
    else:
        answer = send(peer, "POST", target, workitem(**{"00100020": element}))

    assert answer.status_code == 400
    assert peer.get("/workitems/1.2.3.4").status_code == 404


@pytest.mark.parametrize(
    "path,taken,refused",
    [
        ("/studies/$bulkUpdate", "application/json", JSON),
        ("/workitems?1.2.3", JSON, "application/json"),
        ("/workitems/1.2.3", JSON, "application/json"),
        ("/workitems/1.2.3/cancelrequest", JSON, "application/json"),
        ("/extendedquerytags", "application/json", JSON),
    ],
)
def test_each_json_body_has_the_one_content_type_of_its_resource(peer, path, taken, refused):
    def status(kind: str) -> int:
        return peer.call("POST", path, accept=JSON, data="[]", headers={"Content-Type": kind}).status_code

    assert [status(taken), status(f"{taken}; charset=utf-8"), status(refused), status("text/plain")] == [
        400, 400, 415, 415,
    ]  # fmt: skip


DEEP = b'[{"00400275":{"vr":"SQ","Value":' * 300 + b"[]" + b"}}]" * 300


@pytest.mark.parametrize(
    "body", [b'{"a": NaN}', b'["\\ud800"]', b'[{"Path": "\\ud800", "Level": "Study"}]', DEEP, b"[" * 100_000, b"\xff"]
)
@pytest.mark.parametrize("path", ["/studies/$bulkUpdate", "/workitems?1.2.3", "/extendedquerytags"])
def test_body_that_no_strict_reader_takes_is_a_bad_request(peer, body, path):
    """Numbers that JSON lacks, half a character, and more than 64 levels, as the service's reader counts them."""
    kind = JSON if "workitems" in path else "application/json"

    answer = peer.call("POST", path, accept=JSON, data=body, headers={"Content-Type": kind})

    assert (answer.status_code, answer.text) == (400, "The syntax of the request body is invalid.")


def test_keywords_are_keys_too_as_the_services_client_writes_them(fresh):
    study, uid = fresh_uid(), fresh_uid()
    fresh.store(scan(study=study))

    operation = change(fresh, [study], PatientID={"vr": "LO", "Value": ["P-2"]}, StudyDescription={"vr": "LO"})
    made = send(
        fresh,
        "POST",
        f"/workitems?{uid}",
        workitem(WorklistLabel={"vr": "LO"}, PatientSex={"vr": "CS", "Value": ["O"]}),
    )

    assert fresh.finished(operation.json()["href"])["results"]["instanceUpdated"] == 1
    (shown,) = fresh.get(f"/studies/{study}/metadata").json()
    assert (shown["00100020"]["Value"], shown["00081030"]) == (["P-2"], {"vr": "LO"})
    assert made.status_code == 201
    assert fresh.get(f"/workitems/{uid}").json()["00100040"]["Value"] == ["O"]
    twice = change(fresh, [study], PatientID={"vr": "LO"}, **{"00100020": {"vr": "LO"}})
    unknown = change(fresh, [study], NoSuchThing={"vr": "LO"})
    assert [twice.status_code, unknown.status_code] == [400, 400]


def test_update_of_what_may_not_change_names_it(peer):
    answer = change(
        peer, ["1.2.3"], **{"00080060": {"vr": "CS", "Value": ["MR"]}, "00100030": {"vr": "DA", "Value": ["today"]}}
    )

    assert answer.status_code == 400
    texts = comments(answer.json())
    assert texts[0] == "DICOM100: (0008,0060) - Updating the tag is not supported"
    assert texts[1].startswith('DICOM100: (0010,0030) - Content "today" does not validate VR DA')


def test_version_1_has_no_update(server):
    with Peer(server.root, "v1") as v1:
        assert change(v1, ["1.2.3"], **{"00100010": NAME}).status_code == 404


def test_one_update_at_a_time():
    with Emulator(fsync=False, operation_delay=0.3) as server, Peer(server.root) as peer:
        first = change(peer, ["1.2"], **{"00100010": NAME})

        assert change(peer, ["1.2"], **{"00100010": NAME}).status_code == 409
        assert peer.finished(first.json()["href"])["status"] == "succeeded"


# Partitions (AZURE.md 7.4, DataPartitionEnabledTests).


def test_partitions_are_refused_while_they_are_off(peer):
    text = "Data partitions feature is disabled."

    assert peer.get("/partitions/x/studies").text == text
    assert (peer.get("/partitions", None).status_code, peer.get("/partitions", None).text) == (400, text)


def test_partitions_keep_their_studies_apart():
    with Emulator(fsync=False, partitions=True) as server, Peer(server.root) as peer:
        file = scan()
        answers = [peer.store(file, path=f"/partitions/{name}/studies") for name in ("one", "two", "one")]

        assert [answer.status_code for answer in answers] == [200, 200, 409]
        url = stored(answers[0])[0]["00081190"]["Value"][0]
        assert f"{peer.url}/partitions/one/studies/" in url
        assert peer.session.get(url, headers={"Accept": ANY_FILE}, timeout=30).content[128:] == file[128:]
        assert [each["partitionName"] for each in peer.get("/partitions", None).json()] == [
            "Microsoft.Default", "one", "two",
        ]  # fmt: skip
        assert [each["partitionName"] for each in peer.feed()] == ["one", "two"]
        study = "/studies/" + url.split("/studies/")[1].split("/")[0]
        assert peer.call("DELETE", f"/partitions/one{study}").status_code == 204
        assert [peer.get(f"/partitions/{name}/studies").status_code for name in ("one", "two")] == [204, 200]
        assert peer.get("/studies").text == "PartitionName value is missing in the route segment."
        assert peer.get("/partitions/three/studies").text == "Specified PartitionName does not exist."
        assert peer.store(file, path="/partitions/b%C3%A4d/studies").status_code == 400
        assert peer.get("/partitions/one/changefeed", None).status_code == 404


# Workitems (AZURE.md 7.3).


def workitem(**changes: Any) -> list[dict[str, Any]]:
    return [
        {
            "00404005": {"vr": "DT", "Value": ["20260102101112"]},
            "00741200": {"vr": "CS", "Value": ["HIGH"]},
            "00741204": {"vr": "LO", "Value": ["Look at it"]},
            "00404041": {"vr": "CS", "Value": ["READY"]},
            "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Worn^Out"}]},
            "00100020": {"vr": "LO", "Value": ["W-1"]},
            "0040A370": {"vr": "SQ", "Value": [{"00080050": {"vr": "SH", "Value": ["REQ-1"]}}]},
        }
        | changes
    ]


def send(peer: Peer, method: str, path: str, body: Any) -> requests.Response:
    return peer.call(method, path, accept=JSON, json=body, headers={"Content-Type": JSON})


def state(name: str, transaction: str) -> list[dict[str, Any]]:
    return [{"00741000": {"vr": "CS", "Value": [name]}, "00081195": {"vr": "UI", "Value": [transaction]}}]


@pytest.mark.parametrize("word", ["Infinity", "-Infinity", "NaN"])
def test_body_spells_a_number_that_is_none_as_a_text(peer, word):
    def sent(uid: str, value: Any) -> requests.Response:
        body = json.dumps(workitem(**{"00189087": {"vr": "FD", "Value": [value]}}))
        path, headers = f"/workitems?{uid}", {"Content-Type": JSON}
        return peer.call("POST", path, accept=JSON, data=body, headers=headers)

    uid = fresh_uid()
    assert sent(uid, float(word)).status_code == 400  # Python writes it bare, which is no JSON
    assert sent(uid, word).status_code == 201
    assert peer.get(f"/workitems/{uid}").json()["00189087"] == {"vr": "FD", "Value": [word]}


def test_workitem_goes_its_whole_way(peer):
    uid, transaction, label = fresh_uid(), fresh_uid(), {"vr": "LO", "Value": ["Changed"]}
    made = send(peer, "POST", f"/workitems?{uid}", workitem())

    assert (made.status_code, made.headers["Location"]) == (201, f"{peer.url}/workitems/{uid}")
    assert made.headers["Content-Location"] == made.headers["Location"]
    assert send(peer, "POST", f"/workitems?{uid}", workitem()).status_code == 409
    assert send(peer, "POST", f"/workitems/{uid}", [{"00741204": label}]).status_code == 200
    assert send(peer, "PUT", f"/workitems/{uid}/state", state("COMPLETED", transaction)).status_code == 409
    assert send(peer, "PUT", f"/workitems/{uid}/state", state("IN PROGRESS", transaction)).status_code == 200
    assert send(peer, "POST", f"/workitems/{uid}", [{"00741204": label}]).status_code == 400
    assert send(peer, "POST", f"/workitems/{uid}?{fresh_uid()}", [{"00741204": label}]).status_code == 409
    fixed = send(peer, "POST", f"/workitems/{uid}?{transaction}", [{"00741204": label, "00100020": label}])
    assert (fixed.status_code, "(0010,0020)" in fixed.headers["Warning"]) == (200, True)
    assert send(peer, "POST", f"/workitems/{uid}/cancelrequest", [{}]).status_code == 409
    assert send(peer, "PUT", f"/workitems/{uid}/state", state("COMPLETED", transaction)).status_code == 200
    item = peer.get(f"/workitems/{uid}").json()
    assert (item["00741000"]["Value"], item["00741204"], item["00100020"]["Value"]) == (["COMPLETED"], label, ["W-1"])
    assert "00081195" not in item


def test_scheduled_workitem_is_canceled_once(peer):
    uid = fresh_uid()
    send(peer, "POST", f"/workitems?{uid}", workitem())

    answers = [send(peer, "POST", f"/workitems/{uid}/cancelrequest", [{}]) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [202, 409]
    assert answers[1].headers["Warning"] == '299 127.0.0.1: "The UPS is already in the requested state of CANCELED."'
    assert peer.get(f"/workitems/{uid}").json()["00741000"]["Value"] == ["CANCELED"]


def test_unknown_workitem_is_not_found(peer):
    uid = fresh_uid()

    assert peer.get(f"/workitems/{uid}").status_code == 404
    assert send(peer, "POST", f"/workitems/{uid}/cancelrequest", [{}]).status_code == 404
    assert send(peer, "PUT", f"/workitems/{uid}/state", state("IN PROGRESS", "1.2")).status_code == 404


def test_what_is_said_of_workitems_is_json_strings_in_the_services_words(peer):
    """The end-to-end tests compare the body with its quotation marks; exceptions apart, which are plain text."""
    uid, transaction, nowhere = fresh_uid(), fresh_uid(), fresh_uid()
    cancel = f"/workitems/{uid}/cancelrequest"
    said = [send(peer, "POST", f"/workitems?{uid}", workitem()) for _ in range(2)]
    said += [peer.get(f"/workitems/{nowhere}"), send(peer, "POST", f"/workitems/{nowhere}/cancelrequest", [{}])]
    said += [send(peer, "PUT", f"/workitems/{nowhere}/state", state("IN PROGRESS", transaction))]
    said += [send(peer, "POST", f"/workitems/{nowhere}", [{}]), send(peer, "POST", "/workitems", [{}])]
    said += [send(peer, "PUT", f"/workitems/{uid}/state", state("COMPLETED", transaction))]
    said += [send(peer, "POST", f"/workitems/{uid}?{transaction}", [{}])]
    said += [send(peer, "PUT", f"/workitems/{uid}/state", [{}])]
    said += [send(peer, "POST", cancel, [{}]) for _ in range(2)]
    said += [send(peer, "POST", f"/workitems/{uid}", [{}])]

    assert said[0].content == b""
    assert [answer.text for answer in said[1:]] == [
        '"The workitem instance already exists. Try creating using a different UID."',
        '"The workitem instance is not found."',
        '"The workitem instance is not found."',
        '"The workitem instance is not found."',
        '"The target URI did not reference a claimed Workitem."',
        "\"The required tag '(0074,1200)' is missing.\"",
        "\"The workitem instance can not transition to 'COMPLETED' state: C301.\"",
        '"Invalid TransactionUID for the specified Workitem Instance UID."',
        "\"The required tag '(0008,1195)' is missing.\"",
        '"The workitem instance has been cancelled."',
        '"The UPS is already in the requested state of CANCELED."',
        (
            '"The submitted request is inconsistent with the current state of the Workitem. '
            'The UPS is already in the requested state of CANCELED."'
        ),
    ]
    assert {answer.headers["Content-Type"] for answer in said[1:]} == {"application/dicom+json; charset=utf-8"}
    mismatch = send(peer, "POST", f"/workitems?{fresh_uid()}", workitem(**{"00080018": {"vr": "UI", "Value": ["1.2"]}}))
    assert mismatch.text == "SOPInstanceUID in the payload does not match the workitem query parameter."


@pytest.mark.parametrize("made", ["COMPLETED", "CANCELED"])
def test_state_that_a_workitem_has_already_is_told_in_a_warning(peer, made):
    uid, transaction = fresh_uid(), fresh_uid()
    send(peer, "POST", f"/workitems?{uid}", workitem())

    answers = [
        send(peer, "PUT", f"/workitems/{uid}/state", state(name, transaction)) for name in ("IN PROGRESS", made, made)
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    code = {"COMPLETED": "B306", "CANCELED": "B304"}[made]
    text = f"The workitem instance is already in the final state '{made}'. {code}."
    assert answers[2].json() == text
    assert answers[2].headers["Warning"] == f'299 127.0.0.1: "{text}"'


def test_new_workitem_is_scheduled_on_the_service_s_list_whatever_it_says(peer):
    uid = fresh_uid()
    given = {"00741000": {"vr": "CS", "Value": ["COMPLETED"]}, "00741202": {"vr": "LO", "Value": ["mine"]}}

    assert send(peer, "POST", f"/workitems?{uid}", workitem(**given)).status_code == 201
    item = peer.get(f"/workitems/{uid}").json()
    assert (item["00741000"]["Value"], item["00741202"]["Value"]) == (["SCHEDULED"], ["worklist"])
    assert len(item["00404010"]["Value"][0]) >= 14


def test_workitem_must_be_whole(peer):
    for body in ([], [{}], workitem(**{"00081195": {"vr": "UI", "Value": ["1.2"]}}), {"a": 1}):
        assert send(peer, "POST", "/workitems?1.2.3", body).status_code == 400
    assert send(peer, "POST", "/workitems?abc", workitem()).status_code == 400
    assert (
        peer.call("POST", "/workitems?1.2.3", accept=JSON, data="x", headers={"Content-Type": "text/x"}).status_code
        == 415
    )
    assert peer.get("/workitems/1.2.3", None).status_code == 406


def test_workitems_are_found(fresh):
    send(fresh, "POST", f"/workitems?{fresh_uid()}", workitem())

    for query, count in (
        ("PatientName=worn^out", 1),
        ("PatientName=wor&fuzzymatching=true", 1),
        ("PatientID=w-1", 1),
        ("ReferencedRequestSequence.AccessionNumber=REQ-1", 1),
        ("0040A370.00080050=REQ-1", 1),
        ("ScheduledProcedureStepStartDateTime=20260101-20260103", 1),
        ("ScheduledProcedureStepStartDateTime=20260101-20260102", 0),  # a day without a time is its beginning
        ("ScheduledProcedureStepStartDateTime=202601021011-", 1),
        ("ScheduledProcedureStepStartDateTime=20260102101112", 1),
        ("ProcedureStepState=SCHEDULED", 1),
        ("ProcedureStepState=COMPLETED", 0),
        ("PatientID=w-2", 0),
        ("limit=1&offset=1", 0),
    ):
        answer = fresh.get(f"/workitems?{query}")
        assert answer.status_code == (200 if count else 204), query
        assert len(answer.json() if count else []) == count, query


def test_search_gives_of_a_workitem_what_the_standard_wants_returned(fresh):
    """PS3.18 §11.9.2 as the service has it, and what was asked for; never the Transaction UID."""
    more = {"00741210": {"vr": "SQ"}, "00404034": {"vr": "SQ"}, "00380050": {"vr": "LO"}, "00081195": {"vr": "UI"}}
    more |= {"00101040": {"vr": "LO"}, "00400400": {"vr": "LT"}}
    send(fresh, "POST", f"/workitems?{fresh_uid()}", workitem(**more))

    (found,) = fresh.get("/workitems?includefield=PatientAddress").json()
    (all_of_it,) = fresh.get("/workitems?includefield=all").json()

    assert list(found) == [
        "00080016", "00080018", "00100010", "00100020", "00101040", "00380050", "00404005", "00404034", "00404041",
        "0040A370", "00741000", "00741200", "00741202", "00741204", "00741210",
    ]  # fmt: skip
    assert set(all_of_it) - set(found) == {"00400400", "00404010"}


@pytest.mark.parametrize("query", ["limit=201", "PatientAge=1", "PatientID=", "ScheduledProcedureStepStartDateTime=x"])
def test_workitem_searches_that_make_no_sense(peer, query):
    assert peer.get(f"/workitems?{query}").status_code == 400


# Tokens (AZURE.md 8; AuthenticationTests, AuthorizationTests).


@pytest.fixture(scope="module")
def guarded() -> Iterator[Emulator]:
    with Emulator(fsync=False, auth=True) as running:
        yield running


def token_of(server: Emulator, client: str, secret: str | None = None) -> requests.Response:
    form = {
        "grant_type": "client_credentials",
        "client_id": client,
        "client_secret": secret or client,
        "scope": "https://dicom.healthcareapis.azure.com/.default",
    }
    return requests.post(f"{server.root}/tenant/oauth2/v2.0/token", data=form, timeout=30)


def test_no_token_is_unauthorized_and_told_where_to_get_one(guarded):
    with Peer(guarded.root) as peer:
        answer = peer.get("/studies")

    assert answer.status_code == 401
    challenge = answer.headers["WWW-Authenticate"]
    assert challenge.startswith("Bearer authorization_uri=")
    assert 'resource_id="https://dicom.healthcareapis.azure.com"' in challenge
    assert "realm=" in challenge


def test_reader_may_read_and_owner_may_write(guarded):
    expected = {"owner": (200, 204), "reader": (403, 204), "nobody": (403, 403)}
    for client, statuses in expected.items():
        token = token_of(guarded, client).json()["access_token"]
        with Peer(guarded.root, Authorization=f"Bearer {token}") as peer:
            got = peer.store(scan(study="1.2.55")), peer.get("/studies?PatientID=unknown")
        assert tuple(answer.status_code for answer in got) == statuses
        if statuses[0] == 403:
            assert got[0].text == "Authorization failed."


def test_expired_token_is_unauthorized(guarded):
    with Peer(guarded.root, Authorization=f"Bearer {guarded.tokens.token(lifetime_seconds=-1)}") as peer:
        answer = peer.get("/studies")

    assert (answer.status_code, "invalid_token" in answer.headers["WWW-Authenticate"]) == (401, True)


def test_foreign_token_is_unauthorized(guarded):
    foreign = jwt.encode({"aud": "x", "exp": 1 << 33}, "k" * 32)
    with Peer(guarded.root, Authorization=f"Bearer {foreign}") as peer:
        assert peer.get("/studies").status_code == 401


def test_wrong_secret_or_grant_gets_no_token(guarded):
    assert token_of(guarded, "owner", "wrong").status_code == 401
    answer = requests.post(f"{guarded.root}/oauth2/v2.0/token", data={"grant_type": "password"}, timeout=30)
    assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_grant_type")


def test_published_key_verifies_the_tokens(guarded):
    config = requests.get(f"{guarded.root}/.well-known/openid-configuration", timeout=30).json()
    key = requests.get(config["jwks_uri"], timeout=30).json()["keys"][0]
    e, n = (int.from_bytes(base64.urlsafe_b64decode(key[name] + "=="), "big") for name in "en")
    public = RSAPublicNumbers(e, n).public_key()

    claims = jwt.decode(
        guarded.tokens.token(), public, algorithms=["RS256"], audience="https://dicom.healthcareapis.azure.com"
    )

    assert claims["roles"] == ["DICOM Data Owner"]


def test_health_needs_no_token(guarded):
    assert requests.get(f"{guarded.root}/health/check", timeout=30).status_code == 200
