"""The embedded server line by line: what AZURE.md says and no other test of it looks at.

Each test names its section in its docstring; ``test_facts_index.py`` says for every line which test holds it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ingestd.emulator import Emulator
from ingestd.emulator.dicom.full_rules import broken_text_rule
from ingestd.emulator.dicom.minimum_rules import is_valid_uid, minimum_text
from ingestd.emulator.settings import Flavour, Settings
from tests.builders import element, fresh_uid, instance_bytes, sequence
from tests.emulator_peer import (
    ANY_FILE,
    ANY_FILES,
    BOUNDARY,
    JSON,
    Peer,
    comments,
    failed,
    multipart,
    parts_of,
    path_of,
    reasons,
    scan,
    stored,
)

HEVC = "1.2.840.10008.1.2.4.107"
RELATED = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
SMALL_LIMIT = 4000


@pytest.fixture(scope="module")
def guarded() -> Iterator[Emulator]:
    """Asks for tokens, has a low file limit, and an even lower one for transcoding."""
    with Emulator(fsync=False, auth=True, max_file_bytes=SMALL_LIMIT, max_transcode_bytes=500) as running:
        yield running


@pytest.fixture(scope="module")
def owner(guarded: Emulator) -> Iterator[Peer]:
    with Peer(guarded.root, Authorization=f"Bearer {guarded.tokens.token()}") as one:
        yield one


@pytest.fixture(scope="module")
def reader(guarded: Emulator) -> Iterator[Peer]:
    with Peer(guarded.root, Authorization=f"Bearer {guarded.tokens.token(role='DICOM Data Reader')}") as one:
        yield one


def put(peer: Peer, file: bytes) -> str:
    """Store one file and return its path."""
    answer = peer.store(file)
    assert stored(answer), answer.text
    return path_of(stored(answer)[0])


# Section 0.


@pytest.mark.parametrize("version", ["v1.0", "v2.0", "V1.0-PRERELEASE"])
def test_versions_may_be_written_with_their_minor_number(server, version):
    """AZURE.md 0.1: v1.0 and v2.0 are 1 and 2, whatever their case."""
    with Peer(server.root, version) as peer:
        answer = peer.get("/changefeed/latest", None)

    assert answer.status_code in (200, 204)
    assert answer.headers["api-supported-versions"] == "1.0-prerelease, 1, 2"


def test_literals_of_paths_have_no_case_and_one_slash_too_many_is_no_matter(v2):
    """AZURE.md 0.1: $bulkupdate, Studies and their like in any case, also with a trailing slash."""
    assert v2.call("POST", "/STUDIES/$BULKUPDATE/", json={}).text.startswith("The required field")
    assert v2.get("/ExtendedQueryTags/", None).status_code == 200


def test_json_of_the_service_is_camel_case_and_takes_enums_in_any_case_but_not_any_word(server):
    """AZURE.md 0.2: camelCase names, nulls left out, enum values strict but case-insensitive on input."""
    with Emulator(fsync=False) as fresh, Peer(fresh.root) as peer:
        tag = [{"PATH": "PatientAge", "vr": "as", "privateCreator": None, "LEVEL": "sTUDY"}]
        operation = peer.finished(peer.call("POST", "/extendedquerytags", json=tag).json()["href"])

        assert {"operationId", "createdTime", "lastUpdatedTime", "percentComplete"} <= set(operation)
        assert None not in operation.values()
        for word, status in (("dISABLED", 200), ("Sometimes", 400), ("1", 400)):
            assert peer.call("PATCH", "/extendedquerytags/00101010", json={"queryStatus": word}).status_code == status
        shown = peer.get("/extendedquerytags/PatientAge", None).json()
        assert (shown["level"], shown["queryStatus"], shown["status"]) == ("study", "disabled", "ready")
        assert "privateCreator" not in shown


def test_dicom_json_has_its_type_and_sorted_uppercase_keys(peer):
    """AZURE.md 0.2: application/dicom+json with its charset; eight uppercase hex digits, ascending."""
    answer = peer.get(f"{put(peer, scan())}/metadata")
    keys = list(answer.json()[0])

    assert answer.headers["Content-Type"] == "application/dicom+json; charset=utf-8"
    assert keys == sorted(keys)
    assert all(re.fullmatch(r"[0-9A-F]{8}", key) for key in keys)


def test_bad_json_is_worded_as_the_service_does(peer):
    """AZURE.md 0.3, 6.2: 400 with these words."""
    answer = peer.call("POST", "/extendedquerytags", data="{", headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.text) == (400, "The syntax of the request body is invalid.")


@pytest.mark.parametrize("path", ["/changefeed?x=%3C", "/studies/1.2/metadata?x=%3c", "/operations/1?<"])
def test_angle_brackets_in_any_query_are_refused(peer, path):
    """AZURE.md 0.3: on every endpoint, written out or encoded in either case."""
    answer = peer.get(path)

    assert (answer.status_code, answer.text) == (400, "The query string included invalid characters.")


@pytest.mark.parametrize(
    "path, name",
    [
        ("/studies?limit=0", "Limit"),
        ("/extendedquerytags?offset=-1", "Offset"),
        ("/studies?fuzzymatching=1", "FuzzyMatching"),
    ],
)
def test_bad_query_parameters_are_named(peer, path, name):
    """AZURE.md 0.3: The query parameter '{name}' is invalid. {detail}"""
    answer = peer.get(path)

    assert answer.status_code == 400
    assert re.match(rf"The query parameter '{name}' is invalid\. \S", answer.text)


@pytest.mark.parametrize(
    "audit, status",
    [
        ({f"X-MS-AZUREDICOM-AUDIT-{n}": "x" for n in range(10)}, 200),
        ({f"x-ms-azuredicom-audit-{n}": "x" for n in range(11)}, 400),
        ({"X-MS-AZUREDICOM-AUDIT-1": "x" * 2048}, 200),
        ({"X-MS-AZUREDICOM-AUDIT-1": "x" * 2049}, 400),
    ],
)
def test_audit_headers_have_their_limits_on_stores_too(peer, audit, status):
    """AZURE.md 0.3, 9 AuditTests: ten headers of 2,048 characters, both versions, reading and writing."""
    assert peer.get("/changefeed", None, headers=audit).status_code == status
    assert peer.store(scan(), **audit).status_code == status


@pytest.mark.parametrize("pixel_bytes", [64, 100_000], ids=["kept in the index", "kept in the folder"])
def test_file_that_vanished_under_its_row_is_a_server_error(pixel_bytes):
    """AZURE.md 0.3: 500 with the service's words, also when a row exists whose file does not."""
    with Emulator(fsync=False) as fresh, Peer(fresh.root) as peer:
        path = put(peer, scan({0x7FE00010: ("OB", bytes(pixel_bytes))}))
        on_disk = [file for file in (fresh.data / "files").rglob("*") if file.is_file()]
        for file in on_disk:
            file.unlink()
        with fresh._running.index.write() as tx:
            in_index = tx.execute("DELETE FROM content").rowcount
        assert (len(on_disk), in_index) == ((0, 1) if pixel_bytes == 64 else (1, 0))
        answers = [peer.get(path, ANY_FILE), peer.get(path, ANY_FILES), peer.get(f"{path}/frames/1", "*/*")]

        assert [answer.status_code for answer in answers] == [500] * 3
        assert answers[0].text == (
            "The server encountered an internal error. Please retry the request. "
            "If the issue persists, please contact support."
        )
        assert peer.get(f"{path}/metadata").status_code == 200


JSON_RESOURCES = [
    ("POST", "/studies"),
    ("GET", "/studies"),
    ("GET", "/studies/{study}/series"),
    ("GET", "/studies/{study}/metadata"),
    ("GET", "/workitems"),
    ("GET", "/workitems/1.2"),
    ("POST", "/workitems?{study}"),
]
UNACCEPTABLE = [
    None, "", "application/dicom", "application/data", "image/png", "application/dicom+json+x", "text/*",
    "application/dicom+json, multipart/related; type=application/dicom",
]  # fmt: skip
ACCEPTABLE = [
    "*/*",
    "application/*",
    "Application/JSON",
    'application/dicom+json; transfer-syntax=*; x="y"',
    "a/b, */*",
]


@pytest.mark.parametrize("method, path", JSON_RESOURCES)
def test_accept_filter_of_everything_that_answers_dicom_json(peer, method, path):
    """AZURE.md 0.4: the same list for STOW, QIDO, metadata and workitems; 406 without a body."""
    study = put(peer, scan()).split("/")[2]

    def status(accept: str | None) -> tuple[int, bytes]:
        body: dict[str, Any] = {}
        if method == "POST" and "workitems" in path:
            body = {"data": "[]", "headers": {"Content-Type": JSON}}
        elif method == "POST":
            body = {"data": multipart([scan()]), "headers": {"Content-Type": RELATED}}
        answer = peer.call(method, path.format(study=study), accept=accept, **body)
        return answer.status_code, answer.content if answer.status_code == 406 else b""

    assert [status(accept) for accept in UNACCEPTABLE] == [(406, b"")] * len(UNACCEPTABLE)
    assert 406 not in [status(accept)[0] for accept in ACCEPTABLE]


@pytest.mark.parametrize("path", ["/changefeed", "/changefeed/latest", "/extendedquerytags", "/operations/1"])
def test_accept_is_not_looked_at_elsewhere(peer, path):
    """AZURE.md 0.4, 5: change feed, tags and operations answer whatever is accepted."""
    assert [peer.get(path, accept).status_code in (200, 404) for accept in (None, "image/png")] == [True, True]


def test_limits_are_the_services():
    """AZURE.md 0.5: 4 GB managed, 2 GB open source, 100 MiB to transcode; operations on, partitions off."""
    managed, oss = Settings(), Settings(flavour=Flavour.OSS)

    assert (managed.is_managed, managed.file_limit, oss.file_limit) == (True, 4 << 30, 2 << 30)
    assert (managed.max_transcode_bytes, managed.operations, managed.partitions) == (104_857_600, True, False)


# Section 1: storing.


@pytest.mark.parametrize(
    "kind",
    [
        f"multipart/related; boundary={BOUNDARY}",
        f'Multipart/Related; TYPE="Application/DICOM"; boundary="{BOUNDARY}"',
        f"multipart/related; type=application/dicom; boundary={BOUNDARY}",
    ],
)
def test_type_and_quotes_are_optional(peer, kind):
    """AZURE.md 1.1: only the boundary is required."""
    assert peer.store(scan(), content_type=kind).status_code == 200


def test_missing_boundary_is_worded_as_the_service_does(peer):
    """AZURE.md 1.1: 415, and which content type it was."""
    answer = peer.store(scan(), content_type="multipart/related")

    assert answer.status_code == 415
    assert answer.text == ("The content type 'multipart/related' is either not multipart or is missing boundary.")


def test_metadata_and_bulk_data_are_not_stored(peer):
    """AZURE.md 1.1: a store of DICOM JSON parts is 415."""
    kind = f'multipart/related; type="application/dicom+json"; boundary={BOUNDARY}'

    assert peer.store(body=multipart([b"[]"], part_type=JSON), content_type=kind).status_code == 415


def test_put_into_a_study_takes_only_that_study(v2):
    """AZURE.md 1.1, 1.9, 9: PUT has both paths, and the same rule of the path's study."""
    study = fresh_uid()

    assert v2.store(scan(study=study), path=f"/studies/{study}", method="PUT").status_code == 200
    assert v2.store(scan(), path=f"/studies/{study}", method="PUT").status_code == 409


ORDERS: list[tuple[str, dict[str, Any], int]] = [
    ("reader", {"content_type": "text/plain", "accept": None}, 415),  # the framework's own check comes first
    ("nobody", {"accept": "image/png"}, 401),  # who it is, before what it takes
    ("reader", {"accept": "image/png", "path": "/partitions/x/studies"}, 406),
    ("reader", {"path": "/partitions/x/studies"}, 400),
    ("reader", {"path": "/studies/abc"}, 403),
    ("owner", {"path": "/studies/abc", "content_type": "application/dicom; charset=utf-8"}, 400),
    ("owner", {"path": "/studies/abc", "content_type": ""}, 400),
    ("owner", {"content_type": "application/dicom; charset=utf-8", "body": bytes(SMALL_LIMIT + 1)}, 415),
    ("owner", {"content_type": f"{RELATED}; start=x", "body": b"no multipart"}, 400),
    ("owner", {"body": multipart([b"", bytes(SMALL_LIMIT + 1)], part_type="text/x")}, 415),
    ("owner", {"body": multipart([bytes(SMALL_LIMIT + 1)]) + b"\r\n--x"}, 413),
    ("owner", {"body": b"no boundary anywhere", "path": "/studies"}, 400),
]


@pytest.mark.parametrize("who, request_, status", ORDERS, ids=lambda each: str(each)[:60])
def test_refusals_come_in_the_services_order(guarded, owner, reader, who, request_, status):
    """AZURE.md 1.2: Accept 406, partition 400, role 403, path UID 400, content type 415, then the parts 413 or 400."""
    with Peer(guarded.root) as nobody:
        peer = {"owner": owner, "reader": reader, "nobody": nobody}[who]
        content = request_.get("body", multipart([scan()]))

        assert peer.store(**(request_ | {"body": content})).status_code == status


@pytest.mark.parametrize("single", [True, False])
def test_file_over_the_limit_is_413_alone_and_in_parts(owner, single):
    """AZURE.md 0.3, 1.2: a single part as well; the same words."""
    file = bytes(SMALL_LIMIT + 1)
    answer = owner.store_one(file) if single else owner.store(file)

    assert (answer.status_code, answer.text) == (413, f"The request exceeded the allowed limit of {SMALL_LIMIT} bytes.")


def test_nothing_is_stored_of_a_body_that_turns_out_malformed(peer):
    """AZURE.md 1.2: all parts are read before any is stored."""
    study = fresh_uid()
    body = multipart([scan(study=study)], close=False) + b"--" + BOUNDARY.encode() + b" more\r\n\r\nx"

    assert peer.store(body=body).status_code == 400
    assert peer.get(f"/studies/{study}/metadata").status_code == 404


def test_items_come_in_the_order_of_the_parts(peer):
    """AZURE.md 1.2, 1.5: entries are taken one after the other, and so are their items."""
    good, bad = [fresh_uid() for _ in range(4)], [fresh_uid() for _ in range(4)]
    files = [file for a, b in zip(good, bad, strict=True) for file in (scan(sop=a), scan({0x00100020: None}, sop=b))]
    answer = peer.store(*files)

    assert [each["00081155"]["Value"][0] for each in stored(answer)] == good
    assert [each["00081155"]["Value"][0] for each in failed(answer)] == bad


def test_failure_item_of_a_duplicate_has_reason_and_uids_and_no_more(peer):
    """AZURE.md 1.5, 1.6: 45070; 00741048 only where the validator refused, 0074104A never."""
    file = scan(sop=(sop := fresh_uid()))
    peer.store(file)

    assert failed(peer.store(file)) == [
        {
            "00081150": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
            "00081155": {"vr": "UI", "Value": [sop]},
            "00081197": {"vr": "US", "Value": [45070]},
        }
    ]


def test_urls_in_answers_have_the_hosts_name_as_it_was_asked_for(peer):
    """AZURE.md 1.5: the request's host and version."""
    study = fresh_uid()
    answer = peer.store(scan(study=study), path=f"/studies/{study}", Host="archive.example:8443")
    version = peer.url.rpartition("/")[2]

    assert answer.json()["00081190"]["Value"] == [f"http://archive.example:8443/{version}/studies/{study}"]
    assert stored(answer)[0]["00081190"]["Value"][0].startswith(f"http://archive.example:8443/{version}/studies/")


def test_tags_in_comments_are_lowercase_hex(v2):
    """AZURE.md 1.5: (0008,002a), and the error number is always 100."""
    answer = v2.store(scan({0x0008002A: ("DT", "not a time")}))

    assert comments(stored(answer)[0])[0].startswith('DICOM100: (0008,002a) - Content "not a time"')


@pytest.mark.parametrize("tag", [0x0020000D, 0x0020000E, 0x00080018, 0x00080016])
@pytest.mark.parametrize("value", ["", "1.2\\1.3"])
def test_required_uids_have_exactly_one_value(peer, tag, value):
    """AZURE.md 1.7: empty or several is as missing, in both versions."""
    answer = peer.store(scan({tag: ("UI", value)}))

    shown = f"({tag >> 16:04x},{tag & 0xFFFF:04x})"
    assert reasons(answer) == [43264]
    assert comments(failed(answer)[0]) == [f"DICOM100: {shown} - The required tag '{shown}' is missing."]


def test_only_the_first_missing_attribute_is_told(peer):
    """AZURE.md 1.7: one comment, whatever else is missing."""
    answer = peer.store(scan({0x0020000E: None, 0x00100020: None, 0x00080016: None}))

    assert len(comments(failed(answer)[0])) == 1


def test_indexed_attribute_of_another_vr_is_refused_by_v1(v1):
    """AZURE.md 1.7: a VR that is not the dictionary's."""
    answer = v1.store(scan({0x00080060: ("LO", "CT")}))

    assert reasons(answer) == [43264]
    assert "'Modality' is expected to have VR 'CS' but has 'LO' in file." in comments(failed(answer)[0])[0]


MINIMUM = [
    ("AE", "x" * 16, "x" * 17, "Value length exceeds maximum length of 16."),
    ("AS", "045Y", "45Y", "Value length is not 4."),
    ("CS", "lower case is ok", "x" * 17, "Value length exceeds maximum length of 16."),
    ("DA", "20240229", "20230229", "Value cannot be parsed as a valid date."),
    ("DA", "19700101", "1970-01-01", "Value cannot be parsed as a valid date."),
    ("DT", "20260102101112.123456+0100", "x", "Value cannot be parsed as a valid DateTime."),
    ("TM", "101112.5", "251112", "Value cannot be parsed as a valid Time."),
    ("IS", "-2147483648", "2147483648", "Value cannot be parsed as a valid integer string."),
    ("LO", "x" * 63 + "\x1b", "x" * 65, "Value length exceeds maximum length of 64."),
    ("LO", "", "a\\b", "Value contains invalid character."),
    ("PN", "a^b^c^d^e=f=g", "a=b=c=d", "Value contains more than 3 groups."),
    ("PN", "x" * 64 + "=" + "y" * 64, "x" * 65, "One or more group of person name exceeds maxium length of 64."),
    ("PN", "a^b^c^d^e", "a^b^c^d^e^f", "Value contains more than 5 components."),
    ("PN", "\x1b$B", "a\tb", "Value contains invalid character."),
    ("SH", "x" * 16, "x" * 17, "Value length exceeds maximum length of 16."),
]


@pytest.mark.parametrize("vr, good, bad, detail", MINIMUM, ids=lambda each: str(each)[:20])
def test_minimum_validators(vr, good, bad, detail):
    """AZURE.md 1.7: what keeps a value out of the index, and the words for it."""
    assert [minimum_text(vr, value) for value in (good, "", bad)] == [None, None, detail]


@pytest.mark.parametrize(
    "uid, valid",
    [
        ("1.2.3", True), ("1.02.3", True), ("1..3", True), ("1" * 64 + "   ", True), ("0", True), (".1", True),
        ("1" * 65, False), ("1.", False), ("", False), (" 1", False), ("1.2a", False), ("1.2\n", False),
    ],
)  # fmt: skip
def test_uid_rule_is_the_services_own(uid, valid):
    """AZURE.md 1.7: leading zeros and empty components pass, trailing spaces do not count, a last dot does not pass."""
    assert is_valid_uid(uid) is valid


FULL = [
    ("AE", "AN_AE", "   ", "value may not consist only of spaces"),
    ("AE", "x" * 16, "A\x07", "value contains invalid control character"),
    ("AS", "045Y", "045y", "value does not have pattern 000[DWMY]"),
    ("CS", "A_9 B", "x" * 17, "value exceeds maximum length of 16 characters"),
    ("DA", "20260101-20261231", "2026-01-01", "value contains too many range separators '-'"),
    ("DA", "20230231", "20260132", "day component exceeds the value 31"),
    ("DS", "-1.5e3", "1" * 17, "value exceeds maximum length of 16 characters"),
    ("DT", "2026", "202601021011121", "value does not mach pattern YYYY[MM[DD[HH[MM[SS[.F{1-6}]]]]]]"),
    ("DT", "20260102101112.123456+0100", "2026+1500", "positive UTC hours component exceeds 14"),
    ("IS", " 42 ", "2147483648", "value too large to fit 32 bit integer"),
    ("LO", "x" * 64, "a\tb", "value contains invalid character"),
    ("LT", "x" * 10240, "x" * 10241, "value exceeds maximum length of 10240 characters"),
    ("ST", "x" * 1024, "x" * 1025, "value exceeds maximum length of 1024 characters"),
    ("TM", "10", "101", "value does not mach pattern HH or HHMM or HHMMSS or HHMMSS.F{1-6}"),
    ("TM", "101112.123456", "101161", "seconds component exceeds 60"),
    ("UI", "1.2.840", "1" * 65, "value exceeds maximum length of 64 characters"),
    ("UI", "2.25.0", "1.2.x", "value contains invalid characters other than '0'-'9' and '.'"),
]


@pytest.mark.parametrize("vr, good, bad, detail", FULL, ids=lambda each: str(each)[:20])
def test_full_validators(vr, good, bad, detail):
    """AZURE.md 1.7: fo-dicom's rules of each VR, which version 2 turns into warnings."""
    assert broken_text_rule(vr, good) is None
    assert (broken_text_rule(vr, bad) or "").startswith(f'Content "{bad}" does not validate VR {vr}: {detail}')


def test_multiplicity_is_not_checked_where_it_means_nothing(v2):
    """AZURE.md 1.7: private tags and bulk may have as many values as they like; public ones may not."""
    private = {0x00091001: ("LO", "a\\b\\c")}
    answer = v2.store(scan(private), scan({0x00280010: ("US", b"\1\0\2\0")}))

    assert ["00081196" in each for each in stored(answer)] == [False, True]
    assert "Number of items 2 does not match ValueMultiplicity 1" in comments(stored(answer)[1])[0]


def test_creating_row_deleted_meanwhile_fails_its_store():
    """AZURE.md 1.8: 272, nothing kept, nothing in the feed; storing again works."""
    uids = {"study": fresh_uid(), "series": fresh_uid(), "sop": fresh_uid()}
    with Emulator(fsync=False) as fresh, Peer(fresh.root) as peer, Peer(fresh.root) as other:
        fresh.faults.add("commit_delay", seconds=0.4, count=1)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(peer.store(scan(**uids))))
        thread.start()
        while other.call("DELETE", f"/studies/{uids['study']}").status_code == 404 and thread.is_alive():
            pass
        thread.join()

        assert reasons(answers[0]) == [272]
        assert other.feed() == []
        assert other.store(scan(**uids)).status_code == 200


def test_open_source_flavour_takes_no_notice_of_expiry_headers():
    """AZURE.md 1.9: the managed service's extras are its own."""
    headers = {
        "msdicom-expiry-time-milliseconds": "1",
        "msdicom-expiry-option": "RelativeToNow",
        "msdicom-expiry-level": "Study",
    }
    with Emulator(fsync=False, flavour="oss") as oss, Peer(oss.root) as peer:
        path = put(peer, scan())
        assert peer.store(scan(), **headers).status_code == 200
        assert peer.store(scan(), **(headers | {"msdicom-expiry-option": "x"})).status_code == 200
        assert peer.get(f"{path}/metadata").status_code == 200
        assert len(peer.get("/studies").json()) == 3


# Section 2: retrieving.


def test_refusals_of_the_accept_header_are_worded(peer):
    """AZURE.md 2.1, 2.3: the texts of 406."""
    path = put(peer, scan())

    assert peer.get(path, "image/png").text == "The request headers are not acceptable"
    assert peer.get(f"{path}/rendered", "image/png, image/jpeg").text == (
        "The request contains multiple accept headers, which is not supported."
    )


NO_UID = (
    "Dicom element '{}' failed validation for VR 'UI': DICOM Identifier is invalid. Value length should not exceed the "
    "maximum length of 64 characters. Value should contain characters in '0'-'9' and '.'. Each component must start "
    "with non-zero number."
)


@pytest.mark.parametrize(
    "method, path, name",
    [
        ("GET", "/studies/x/metadata", "StudyInstanceUid"),
        ("GET", "/studies/1.2/series/x/metadata", "SeriesInstanceUid"),
        ("DELETE", "/studies/1.2/series/1.3/instances/x", "SopInstanceUid"),
        ("GET", "/studies/x/series", "StudyInstanceUid"),
        ("GET", "/workitems/x", "WorkitemInstanceUid"),
    ],
)
def test_uid_of_a_path_that_is_none_is_worded(peer, method, path, name):
    """AZURE.md 0.3, 1.7: 400, in the words of the minimum validator, which name the part of the path."""
    answer = peer.call(method, path, accept=JSON)

    assert (answer.status_code, answer.text) == (400, NO_UID.format(name))


def test_uids_in_requests_that_are_none_are_worded(v2):
    """AZURE.md 7.1, 7.3: the same words for a study to update, a workitem to make and a claim to it."""
    update = v2.call(
        "POST", "/studies/$bulkUpdate", json={"studyInstanceUids": ["x"], "changeDataset": {"00100020": {"vr": "LO"}}}
    )
    made = v2.call("POST", "/workitems?x", accept=JSON, data="[{}]", headers={"Content-Type": JSON})
    claimed = v2.call("POST", "/workitems/1.2?x", accept=JSON, data="[{}]", headers={"Content-Type": JSON})

    assert [answer.text for answer in (update, made, claimed)] == [
        NO_UID.format(name) for name in ("StudyInstanceUid", "WorkitemInstanceUid", "TransactionUid")
    ]


@pytest.mark.parametrize(
    "content_type, body, status, text",
    [
        (
            "application/dicom; charset=utf-8",
            b"x",
            415,
            "The specified content type 'application/dicom; charset=utf-8' is not supported.",
        ),
        (f"{RELATED}; start=x", b"x", 400, "The start parameter in multipart/related request is not supported."),
        (
            RELATED,
            multipart([b"x"], part_type="text/plain"),
            415,
            "The specified content type 'text/plain' is not supported.",
        ),
    ],
)
def test_bodies_of_stores_are_refused_in_the_services_words(peer, content_type, body, status, text):
    """AZURE.md 1.1: what is refused, and why."""
    answer = peer.store(body=body, content_type=content_type)

    assert (answer.status_code, answer.text) == (status, text)


def test_custom_audit_headers_are_refused_in_the_services_words(peer):
    """AZURE.md 0.3: how many there are, or which one is too long."""
    many = {f"X-MS-AZUREDICOM-AUDIT-{n}": "x" for n in range(11)}

    assert peer.get("/studies", headers=many).text == (
        "The maximum number of custom audit headers allowed is 10. The number of custom audit headers supplied is 11."
    )
    assert peer.get("/studies", headers={"X-MS-AZUREDICOM-AUDIT-site": "x" * 2049}).text == (
        "The maximum length of a custom audit header value is 2048. The supplied custom audit header "
        "'x-ms-azuredicom-audit-site' has length of 2049."  # in lowercase, as the name comes out of HTTP here
    )


NO_STATUS = 'The value is not valid. It need to be one of "Disabled","Enabled".'


@pytest.mark.parametrize(
    "body, text",
    [
        (
            {"QueryStatus": "Enabled", "Level": "Study"},
            "The field 'Level' in request body is invalid: The field is not supported: \"Level\".",
        ),
        ({}, "The field 'QueryStatus' in request body is invalid: The QueryStatus field is required."),
        (
            {"queryStatus": "On"},
            f"The field '$.queryStatus' in request body is invalid: {NO_STATUS}",
        ),
        (
            {"QueryStatus": 1},
            f"The field '$.QueryStatus' in request body is invalid: {NO_STATUS}",
        ),
    ],
)
def test_changes_of_a_tag_are_refused_in_the_services_words(peer, body, text):
    """AZURE.md 6.2: PATCH, before anybody looks whether there is such a tag."""
    answer = peer.call("PATCH", "/extendedquerytags/PatientSex", json=body)

    assert (answer.status_code, answer.text) == (400, text)


def test_transcoding_that_cannot_be_done_is_worded(peer):
    """AZURE.md 2.1, 2.3: an unsupported stored syntax is 406, for files, frames and rendered images."""
    path = put(peer, instance_bytes(transfer_syntax=HEVC, rows=8, columns=8, bits=8, pixels=b"fragment"))

    answer = peer.get(path, "application/dicom")
    assert (answer.status_code, answer.text) == (406, "The specified transcoding is not supported.")
    assert peer.get(f"{path}/frames/1", 'multipart/related; type="image/jp2"').status_code == 406
    assert peer.get(f"{path}/rendered", None).status_code == 406


def test_large_files_are_neither_transcoded_nor_rendered(owner):
    """AZURE.md 0.5, 2.1, 2.3: 406 over the limit, for files, frames and rendered images alike."""
    path = put(owner, scan(transfer_syntax="1.2.840.10008.1.2"))

    assert [owner.get(path, accept).status_code for accept in ("application/dicom", ANY_FILE)] == [406, 200]
    assert owner.get(f"{path}/frames/1", "application/octet-stream").status_code == 406
    assert owner.get(f"{path}/rendered", "image/png").status_code == 406
    too_large = "Requested DICOM instance size is above the supported limit of "
    texts = [owner.get(path, "application/dicom").text, owner.get(f"{path}/rendered", "image/png").text]
    assert [text.startswith(too_large) for text in texts] == [True, True]
    assert texts[0].endswith("by specifying 'transfer-syntax=*' in the Accept header.")
    assert texts[1].endswith("in the original transfer syntax instead of rendering to image media type.")


@pytest.mark.parametrize("accept, kind", [("*/*", "multipart"), (ANY_FILES, "multipart"), (ANY_FILE, "application")])
def test_answers_name_no_type_and_each_part_its_transfer_syntax(peer, accept, kind):
    """AZURE.md 2.1: multipart/related; boundary="…" and no more; */* is multipart, even for one instance."""
    answer = peer.get(put(peer, scan()), accept)
    content_type = answer.headers["Content-Type"]

    if kind == "multipart":
        assert re.fullmatch(r'multipart/related; boundary="[0-9a-f-]{36}"', content_type)
        assert len(parts_of(answer)) == 1
    else:
        assert content_type == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"


def test_frames_and_images_of_what_is_not_there(peer):
    """AZURE.md 2.1: the frame's words, and the instance's before them."""
    path = put(peer, scan())

    assert peer.get(f"{path}/frames/9", "*/*").text == "The specified frame cannot be found."
    missing = f"{path.rpartition('/')[0]}/{fresh_uid()}"
    assert peer.get(f"{missing}/frames/9", "*/*").text == "The specified instance cannot be found."
    assert peer.get(f"{missing}/rendered", None).status_code == 404


def test_metadata_of_the_original_version_on_request():
    """AZURE.md 2.1, 7.1: msdicom-request-original gives the metadata from before a bulk update, and its own ETag."""
    with Emulator(fsync=False) as fresh, Peer(fresh.root) as peer:
        path = put(peer, scan())
        study = path.split("/")[2]
        body = {
            "studyInstanceUids": [study],
            "changeDataset": {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "New"}]}},
        }
        peer.finished(peer.call("POST", "/studies/$bulkUpdate", json=body).json()["href"])

        shown = {}
        for original in ("true", "false"):
            answer = peer.get(f"{path}/metadata", headers={"msdicom-request-original": original})
            shown[original] = answer.json()[0]["00100010"]["Value"][0]["Alphabetic"], answer.headers["ETag"]
        assert shown["true"][0] == "Test^Patient"
        assert shown["false"][0] == "New"
        assert int(shown["false"][1]) > int(shown["true"][1])


def test_metadata_leaves_out_bulk_group_lengths_and_file_meta(v2):
    """AZURE.md 2.2: OB, OW, UN and their like also inside sequences; numbers that are none stay text."""
    inside = [element(0x00420011, "OB", b"pdf!") + element(0x00420012, "LO", "application/pdf")]
    changes = {
        0x00080000: ("UL", 0),
        0x00081140: ("SQ", sequence(0x00081140, inside)[12:]),
        0x00101030: ("DS", "heavy"),
        0x00200013: ("IS", "1.5"),
        0x00091001: ("OB", b"bulk"),
    }
    got = v2.get(f"{put(v2, scan(changes))}/metadata").json()[0]

    assert got["00081140"]["Value"] == [{"00420012": {"vr": "LO", "Value": ["application/pdf"]}}]
    assert not {"00080000", "00020010", "7FE00010", "00091001"} & set(got)
    # Version 2 leaves out what failed validation (AZURE.md 1.7).
    assert not {"00101030", "00200013"} & set(got)


def test_v1_metadata_keeps_numbers_that_are_none_as_text(v1):
    """AZURE.md 2.2: DS and IS as numbers when they are, else as strings."""
    path = put(v1, scan({0x00101030: ("DS", "heavy\\1.5"), 0x00200013: ("IS", "1.5\\7")}))
    got = v1.get(f"{path}/metadata").json()[0]

    assert (got["00101030"]["Value"], got["00200013"]["Value"]) == (["heavy", 1.5], ["1.5", 7])


def test_quality_is_for_jpeg_and_one_to_a_hundred(peer):
    """AZURE.md 2.3: default 100; png takes no notice of how good it should be."""
    path = put(peer, instance_bytes(rows=16, columns=16))

    assert peer.get(f"{path}/rendered", None).content == peer.get(f"{path}/rendered?quality=100", None).content
    sizes = {len(peer.get(f"{path}/rendered?quality={n}", "image/png").content) for n in (1, 100)}
    assert len(sizes) == 1
