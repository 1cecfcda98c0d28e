"""The embedded server's STOW-RS: AZURE.md 1, and the Store tests of AZURE.md 9 for both versions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.builders import BIG_ENDIAN, DEFLATED, IMPLICIT, element, fresh_uid, item, sequence
from tests.emulator_peer import (
    ANY_FILE,
    ANY_FILES,
    BOUNDARY,
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

VERSIONS = ("v1", "v2")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def oss() -> Iterator[Emulator]:
    with Emulator(fsync=False, flavour="oss") as running:
        yield running


@pytest.fixture(params=[("oss", 43264), ("managed", 43265)], ids=["oss", "managed"])
def mismatch(request: pytest.FixtureRequest, server: Emulator, oss: Emulator, peer: Peer) -> Iterator[tuple[Peer, int]]:
    """A peer of each flavour with its reason for a part of another study: the source's and the documents'."""
    flavour, reason = request.param
    with Peer((oss if flavour == "oss" else server).root, peer.url.rpartition("/")[2]) as one:
        yield one, reason


# Section 10.1, StoreTransactionTests: both versions.


def test_empty_single_part_is_a_conflict(peer):
    answer = peer.store_one(b"")

    assert answer.status_code == 409
    assert failed(answer) == [{"00081197": {"vr": "US", "Value": [43264]}}]


@pytest.mark.parametrize("uid", ["b" * 65, "abc.123"])
def test_invalid_study_uid_in_the_path_is_a_bad_request(peer, uid):
    assert peer.store(scan(), path=f"/studies/{uid}").status_code == 400


@pytest.mark.parametrize(
    "accept", [None, "", "application/dicom", "application/data", "image/png", "application/dicom+json+x"]
)
def test_wrong_or_missing_accept_is_not_acceptable(peer, accept):
    assert peer.store(scan(), accept=accept).status_code == 406


@pytest.mark.parametrize(
    "accept",
    ["*/*", "application/*", "application/json", "Application/DICOM+json; transfer-syntax=*", "text/html, */*;q=0.1"],
)
def test_every_accept_that_json_fits_is_taken(peer, accept):
    assert peer.store(scan(), accept=accept).status_code == 200


def test_one_unparsable_accept_member_spoils_the_list(peer):
    assert peer.store(scan(), accept="*/*, multipart/related; type=application/dicom").status_code == 406


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/json", "text/plain"])
def test_other_content_types_are_unsupported(peer, kind):
    assert peer.store(body=scan(), content_type=kind).status_code == 415


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "multipart/related",
        'multipart/related; boundary=""',
        "application/dicom; charset=utf-8",
        "application/dicom; transfer-syntax=*",
    ],
)
def test_missing_boundary_parameters_or_type_are_unsupported(peer, kind):
    assert peer.store(body=scan(), content_type=kind).status_code == 415


def test_start_parameter_is_a_bad_request(peer):
    kind = f'multipart/related; type="application/dicom"; start="x"; boundary={BOUNDARY}'

    assert peer.store(scan(), content_type=kind).status_code == 400


def test_multipart_without_parts_has_no_content(peer):
    answer = peer.store(body=multipart([]))

    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("kind", ['multipart/related; type="application/dicom"', "multipart/related"])
@pytest.mark.parametrize("head", [b"", b"Content-Type: text/plain\r\n"])
def test_delimiter_needs_a_line_break_apart_from_the_headers_own(peer, kind, head):
    """What .NET sends where nothing was added (no head), and its kind: the part never ends, so it is no part."""
    delimiter = b"--" + BOUNDARY.encode()

    answer = peer.store(
        body=delimiter + b"\r\n" + head + b"\r\n" + delimiter + b"--\r\n", content_type=f"{kind}; boundary={BOUNDARY}"
    )

    assert (answer.status_code, answer.content) == (204, b"")


def test_multipart_type_without_any_body_is_a_bad_request(peer):
    assert peer.store(body=b"").status_code == 400


def test_one_empty_part_is_a_conflict(peer):
    answer = peer.store(b"")

    assert answer.status_code == 409
    assert failed(answer) == [{"00081197": {"vr": "US", "Value": [43264]}}]


def test_empty_part_beside_a_good_one_is_partial_success(peer):
    answer = peer.store(b"", scan(sop="1.2.77.1"))

    assert answer.status_code == 202
    assert [each["00081155"]["Value"] for each in stored(answer)] == [["1.2.77.1"]]
    peer.call("DELETE", path_of(stored(answer)[0]))


def test_first_part_without_type_takes_the_outer_one(peer):
    answer = peer.store(body=multipart([scan()], part_type=None))

    assert answer.status_code == 200


def test_later_part_without_type_refuses_everything(peer):
    study = fresh_uid()
    delimiter = b"--" + BOUNDARY.encode()
    good = scan(study=study)
    body = (
        multipart([good], close=False) + delimiter + b"\r\n\r\n" + scan(study=study) + b"\r\n" + delimiter + b"--\r\n"
    )

    assert peer.store(body=body).status_code == 415
    assert peer.get(f"/studies/{study}/metadata").status_code == 404


def test_part_with_other_type_refuses_everything(peer):
    study = fresh_uid()
    body = multipart([scan(study=study)], close=False) + multipart([b"{}"], part_type="application/json")

    assert peer.store(body=body).status_code == 415
    assert peer.get(f"/studies/{study}/metadata").status_code == 404


def test_foreign_part_headers_are_ignored(peer):
    head = (
        b"Content-Disposition: form-data; name=x; filename=y\r\nX-Other: 1\r\ncontent-TYPE: Application/DICOM\r\n\r\n"
    )
    body = b"--" + BOUNDARY.encode() + b"\r\n" + head + scan() + b"\r\n--" + BOUNDARY.encode() + b"--"

    assert peer.store(body=body).status_code == 200


def test_truncated_last_part_is_dropped_without_a_word(peer):
    good, cut = scan(), scan(sop="1.2.77.2")
    answer = peer.store(body=multipart([good, cut], close=False)[:-40])

    assert answer.status_code == 200
    assert len(stored(answer)) == 1
    assert "1.2.77.2" not in answer.text


def test_preamble_of_the_body_is_skipped(peer):
    assert peer.store(body=b"some words\r\n" + multipart([scan()])).status_code == 200


def test_body_without_its_boundary_is_a_bad_request(peer):
    assert peer.store(body=b"no boundary at all").status_code == 400


def test_part_header_without_a_name_is_a_bad_request(peer):
    body = b"--" + BOUNDARY.encode() + b"\r\nno colon here\r\n\r\nx\r\n--" + BOUNDARY.encode() + b"--"

    assert peer.store(body=body).status_code == 400


def test_all_of_other_studies_fail(mismatch):
    peer, reason = mismatch
    answer = peer.store(scan(), scan(), path=f"/studies/{fresh_uid()}")

    assert answer.status_code == 409
    assert list(answer.json()) == ["00081198"]
    assert reasons(answer) == [reason, reason]
    text = "The StudyInstanceUid in the payload does not match the specified StudyInstanceUid."
    assert all(text in comments(each)[0] for each in failed(answer))


def test_one_of_another_study_fails_alone(mismatch):
    peer, reason = mismatch
    study, other = fresh_uid(), fresh_uid()
    answer = peer.store(scan(study=study), scan(study=other), path=f"/studies/{study}")

    assert answer.status_code == 202
    assert list(answer.json()) == ["00081190", "00081198", "00081199"]
    assert answer.json()["00081190"]["Value"][0].endswith(f"studies/{study}")
    assert reasons(answer) == [reason]
    assert peer.get(f"/studies/{other}/metadata").status_code == 404


def test_same_instance_twice_in_one_request_stores_the_first(peer):
    file = scan()
    answer = peer.store(file, file)

    assert answer.status_code == 202
    assert (len(stored(answer)), reasons(answer)) == (1, [45070])


def test_instance_that_exists_is_a_conflict(peer):
    file = scan()

    first, second = peer.store(file), peer.store(file)

    assert first.status_code == 200
    assert "00081198" not in first.json()
    assert (second.status_code, reasons(second)) == (409, [45070])
    assert "00081199" not in second.json()


@pytest.mark.parametrize("uid", ["abc.123", "11|"])
def test_invalid_uid_in_the_file_is_a_conflict(peer, uid):
    answer = peer.store(scan({0x0020000D: ("UI", uid)}))

    assert (answer.status_code, reasons(answer)) == (409, [43264])
    assert "00081199" not in answer.json()


def test_single_part_answers_dicom_json(peer):
    answer = peer.store_one(scan())

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/dicom+json; charset=utf-8"


def test_single_part_with_its_study_in_the_path(peer):
    study = fresh_uid()

    assert peer.store_one(scan(study=study), path=f"/studies/{study}").status_code == 200


def test_large_single_part_comes_back_as_it_was(peer):
    file = scan({0x7FE00010: ("OW", bytes(range(256)) * 200_000)})  # 51 MB
    path = path_of(stored(peer.store_one(file))[0])

    assert peer.get(path, ANY_FILE).content[128:] == file[128:]
    peer.call("DELETE", path)


@pytest.mark.slow
@pytest.mark.parametrize("multipart", [False, True])
def test_very_large_file_is_stored(v2, multipart):
    """AZURE.md 9: ~1.7 GB in one part, alone and in a multipart body."""
    size, chunk = 1_700_000_000, bytes(1_000_000)
    sop = fresh_uid()

    def body() -> Iterator[bytes]:
        yield scan({0x7FE00010: None}, sop=sop) + element(0x7FE00010, "OW", b"", length=size)
        for _ in range(size // len(chunk)):
            yield chunk

    def related() -> Iterator[bytes]:
        yield b"--edge\r\nContent-Type: application/dicom\r\n\r\n"
        yield from body()
        yield b"\r\n--edge--\r\n"

    if multipart:
        answer = v2.store(body=related(), content_type='multipart/related; type="application/dicom"; boundary=edge')
    else:
        answer = v2.store_one(body())  # type: ignore[arg-type] - requests takes what it can go through

    assert (answer.status_code, [each["00081155"]["Value"] for each in stored(answer)]) == (200, [[sop]])
    path = path_of(stored(answer)[0])
    with v2.get(path, ANY_FILE, stream=True) as retrieved:
        assert int(retrieved.headers["Content-Length"]) > size
    assert v2.call("DELETE", path).status_code == 204


def test_several_large_parts_come_back_as_they_were(peer):
    study = fresh_uid()
    files = [scan({0x7FE00010: ("OW", bytes([n]) * 15_000_000)}, study=study) for n in range(3)]

    assert peer.store(*files).status_code == 200
    returned = parts_of(peer.get(f"/studies/{study}", ANY_FILES))
    assert sorted(each[128:] for each in returned) == sorted(each[128:] for each in files)
    peer.call("DELETE", f"/studies/{study}")


def test_indexed_attribute_with_several_values_is_stored(peer):
    assert peer.store(scan({0x00081030: ("LO", "one\\two")})).status_code in (200, 202)


def test_padded_study_uid_is_the_same_study(peer):
    study, series, sop = fresh_uid(), fresh_uid(), fresh_uid()
    padded = scan({0x0020000D: ("UI", study + "  ")}, series=series, sop=sop)
    more = scan({0x0020000D: ("UI", study + "      ")}, series=series, sop=sop)

    assert peer.store(padded).status_code in (200, 202)
    assert (peer.store(more).status_code, reasons(peer.store(more))) == (409, [45070])
    assert peer.get(f"/studies/{study}/metadata").status_code == 200


def test_private_tag_of_an_implicit_file_is_kept_but_not_in_the_metadata(peer):
    private = {0x00091001: ("UN", b"secret")}
    file = scan(private, transfer_syntax=IMPLICIT)
    answer = peer.store(file)
    path = path_of(stored(answer)[0])

    assert peer.get(path, ANY_FILE).content[128:] == file[128:]
    assert "00091001" not in peer.get(f"{path}/metadata").json()[0]


@pytest.mark.parametrize("syntax", [BIG_ENDIAN, DEFLATED])
def test_any_transfer_syntax_is_stored_as_it_is(peer, syntax):
    file = scan(transfer_syntax=syntax)
    path = path_of(stored(peer.store(file))[0])

    answer = peer.get(path, ANY_FILE)
    assert answer.content[128:] == file[128:]
    assert answer.headers["Content-Type"] == f"application/dicom; transfer-syntax={syntax}"


def test_implicit_vr_is_stored_with_its_warning(peer):
    answer = peer.store(scan(transfer_syntax=IMPLICIT))

    assert answer.status_code == (200 if peer.url.endswith("v1") else 202)
    assert stored(answer)[0]["00081196"] == {"vr": "US", "Value": [45063]}


def test_success_item_has_what_it_must(peer):
    study, series, sop = fresh_uid(), fresh_uid(), fresh_uid()
    answer = peer.store(scan(study=study, series=series, sop=sop))

    expected = {
        "00081150": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
        "00081155": {"vr": "UI", "Value": [sop]},
        "00081190": {"vr": "UR", "Value": [f"{peer.url}/studies/{study}/series/{series}/instances/{sop}"]},
    }
    if peer.url.endswith("v2"):
        expected["00741048"] = {"vr": "SQ"}
    assert answer.json() == {"00081199": {"vr": "SQ", "Value": [expected]}}


@pytest.mark.parametrize("tag", [0x0020000D, 0x0020000E, 0x00080018, 0x00080016, 0x00100020])
def test_required_attribute_that_is_missing_is_named(peer, tag):
    answer = peer.store(scan({tag: None}))

    shown = f"({tag >> 16:04x},{tag & 0xFFFF:04x})"
    assert (answer.status_code, reasons(answer)) == (409, [43264])
    assert comments(failed(answer)[0]) == [f"DICOM100: {shown} - The required tag '{shown}' is missing."]


def test_same_uid_for_study_series_and_instance_is_allowed(peer):
    uid = fresh_uid()

    assert peer.store(scan(study=uid, series=uid, sop=uid)).status_code == 200


def test_same_sop_uid_in_another_study_is_another_instance(peer):
    sop = fresh_uid()

    assert [peer.store(scan(sop=sop)).status_code for _ in range(2)] == [200, 200]


def test_not_dicom_gets_an_item_with_nothing_but_its_reason(peer):
    answer = peer.store(b"this is a text file" * 100)

    assert failed(answer) == [{"00081197": {"vr": "US", "Value": [43264]}}]


def test_file_cut_short_is_refused(peer):
    assert reasons(peer.store(scan()[:-20])) == [43264]


def test_file_of_endless_nesting_is_refused_and_harmless(peer):
    nested = b""
    for _ in range(80):
        nested = sequence(0x00081140, [nested])
    assert reasons(peer.store(scan({0x00081140: ("SQ", item(nested))}))) == [272]


def test_element_that_claims_more_than_there_is_is_refused(peer):
    huge = scan() + element(0x7FE10010, "OB", b"xx", length=0xFFFFFFF0)

    assert reasons(peer.store(huge)) == [43264]


def test_sequence_written_implicitly_inside_an_explicit_file_is_read(peer):
    inside = sequence(0x00091001, [element(0x00080060, "CS", "MR", transfer_syntax=IMPLICIT)])

    assert peer.store(scan({0x00091001: ("SQ", inside[12:])})).status_code == 200


# StoreTransactionTestsLatest: version 2 only.


def test_v2_stores_an_invalid_indexed_attribute_and_warns(v2):
    study = fresh_uid()
    answer = v2.store(scan({0x00080020: ("DA", "NotAValidStudyDate"), 0x00100030: ("DA", "19620321")}, study=study))

    assert answer.status_code == 202
    assert stored(answer)[0]["00081196"]["Value"] == [1]
    assert comments(stored(answer)[0]) == [
        (
            'DICOM100: (0008,0020) - Content "NotAValidStudyDate" does not validate VR DA: '
            "one of the date values does not match the pattern YYYYMMDD"
        )
    ]
    assert "00080020" not in v2.get(f"/studies/{study}/metadata").json()[0]
    assert len(v2.get("/studies?PatientBirthDate=19620321").json()) == 1
    assert v2.get("/studies?StudyDate=NotAValidStudyDate").status_code == 400


def test_v2_null_inside_a_value_is_a_warning(v2):
    answer = v2.store(scan({0x00080060: ("CS", "X\0X")}))

    assert answer.status_code == 202
    assert "does not validate VR CS: value contains invalid character" in comments(stored(answer)[0])[0]


def test_v2_trailing_null_is_no_warning_and_found_both_ways(v2):
    study = fresh_uid()
    answer = v2.store(scan({0x00080060: ("CS", b"XNU\0")}, study=study))

    assert (answer.status_code, stored(answer)[0]["00741048"]) == (200, {"vr": "SQ"})
    assert v2.get(f"/studies/{study}/metadata").json()[0]["00080060"]["Value"] == ["XNU\0"]
    assert [len(v2.get(f"/series?Modality={value}").json()) for value in ("XNU", "XNU%00")] == [1, 1]


def test_v2_null_padded_study_uid_matches_the_path(v2):
    study = fresh_uid()

    assert v2.store(scan({0x0020000D: ("UI", study + "\0\0")}), path=f"/studies/{study}").status_code == 200


@pytest.mark.parametrize("patient_id, status", [(b"123\0", 200), (b"\x00123\0", 409)])
def test_v2_null_in_patient_id(v2, patient_id, status):
    assert v2.store(scan({0x00100020: ("LO", patient_id)})).status_code == status


def test_v2_empty_patient_id_warns_and_does_not_erase_an_older_one(v2):
    study = fresh_uid()

    def shown() -> object:
        return v2.get(f"/studies?StudyInstanceUID={study}").json()[0]["00100020"].get("Value")

    first = v2.store(scan({0x00100020: ("LO", "")}, study=study))
    assert first.status_code == 202
    assert comments(stored(first)[0]) == ["DICOM100: (0010,0020) - The required tag '(0010,0020)' is missing."]
    assert shown() is None
    assert v2.store(scan({0x00100020: ("LO", "123")}, study=study)).status_code == 200
    assert shown() == ["123"]
    assert v2.store(scan({0x00100020: ("LO", "")}, study=study)).status_code == 202
    assert shown() == ["123"]


@pytest.mark.parametrize(
    "tag, vr, value, detail",
    [
        (0x00080054, "AE", "AN AE TITLE TOO LONG", "value exceeds maximum length of 16 characters"),
        (0x00101010, "AS", "45", "value does not have pattern 000[DWMY]"),
        (0x00080060, "CS", "ct", "value contains invalid character"),
        (0x00080021, "DA", "20261301", "month component exceeds the value 12"),
        (0x00101030, "DS", "heavy", "value is no decimal string"),
        (0x0008002A, "DT", "202613", "month component exceeds 12"),
        (0x00200013, "IS", "1.5", "value is not an integer string"),
        (0x00200013, "IS", "99999999999", "value too large to fit 32 bit integer"),
        (0x0008103E, "LO", "x" * 65, "value exceeds maximum length of 64 characters"),
        (0x00104000, "LT", "x" * 10242, "value exceeds maximum length of 10240 characters"),
        (0x00100010, "PN", "a=b=c=d", "value contains too many groups"),
        (0x00100010, "PN", "a^b^c^d^e^f", "value contains too many components"),
        (0x00080050, "SH", "x" * 17, "value exceeds maximum length of 16 characters"),
        (0x00081048, "PN", "x" * 66, "value exceeds maximum length of 64 characters"),
        (0x00080030, "TM", "2561", "hour component exceeds 23"),
        (0x00080014, "UI", "1.02", "components must not have leading zeros"),
        (0x00080014, "UI", "1..2", "a component can not be empty"),
    ],
)
def test_v2_warns_of_every_broken_vr_rule(v2, tag, vr, value, detail):
    study = fresh_uid()
    answer = v2.store(scan({tag: (vr, value)}, study=study))

    assert answer.status_code == 202
    shown = f'DICOM100: ({tag >> 16:04x},{tag & 0xFFFF:04x}) - Content "{value}" does not validate VR {vr}: {detail}'
    assert comments(stored(answer)[0])[0].startswith(shown)
    assert f"{tag:08X}" not in v2.get(f"/studies/{study}/metadata").json()[0]


def test_v2_warns_of_several_values_where_one_is_allowed(v2):
    answer = v2.store(scan({0x00081030: ("LO", "one\\two")}))

    assert answer.status_code == 202
    assert comments(stored(answer)[0]) == [
        (
            'DICOM100: (0008,1030) - Content "one\\two" does not validate VR LO: '
            "Number of items 2 does not match ValueMultiplicity 1"
        )
    ]
    assert "Warning" not in answer.headers


def test_v2_warns_of_what_is_inside_sequences_and_keeps_the_sequence(v2):
    study = fresh_uid()
    inside = sequence(0x00081140, [element(0x00080060, "CS", "lower")])
    answer = v2.store(scan({0x00081140: ("SQ", inside[12:])}, study=study))

    assert answer.status_code == 202
    assert comments(stored(answer)[0])[0].startswith('DICOM100: (0008,0060) - Content "lower"')
    assert "00081140" in v2.get(f"/studies/{study}/metadata").json()[0]


def test_v2_implicit_vr_warning_wins_over_others(v2):
    answer = v2.store(scan({0x00080060: ("CS", "lower")}, transfer_syntax=IMPLICIT))

    assert stored(answer)[0]["00081196"]["Value"] == [45063]


def test_v2_tells_of_several_patient_ids_in_a_header_only(v2):
    answer = v2.store(scan({0x00100020: ("LO", "one\\two")}))

    assert (answer.status_code, stored(answer)[0]["00741048"]) == (200, {"vr": "SQ"})
    assert "only first value is indexed" in answer.headers["Warning"]


# StoreTransactionTestsV1.


def test_v1_refuses_an_invalid_indexed_attribute(v1):
    answer = v1.store(scan({0x00080020: ("DA", "NotAValidStudyDate")}))

    assert (answer.status_code, reasons(answer)) == (409, [43264])
    assert comments(failed(answer)[0]) == [
        (
            "DICOM100: (0008,0020) - Dicom element 'StudyDate' failed validation for VR 'DA': "
            "Value cannot be parsed as a valid date."
        )
    ]


def test_v1_refuses_a_patient_id_with_a_trailing_null(v1):
    assert reasons(v1.store(scan({0x00100020: ("LO", b"123\0")}))) == [43264]


def test_v1_refuses_an_empty_patient_id(v1):
    assert reasons(v1.store(scan({0x00100020: ("LO", "")}))) == [43264]


def test_v1_does_not_look_at_attributes_that_are_not_indexed(v1):
    answer = v1.store(scan({0x0008103E: ("LO", "x" * 100)}))

    assert answer.status_code == 200
    assert "00741048" not in stored(answer)[0]


def test_v1_tells_of_several_values_in_a_header(v1):
    answer = v1.store(scan({0x00081030: ("LO", "one\\two")}))

    assert answer.status_code == 200
    assert answer.headers["Warning"].startswith("299 ")
    assert "only first value is indexed" in answer.headers["Warning"]
    assert "00081196" not in stored(answer)[0]


@pytest.mark.parametrize(
    "tag, vr, value, detail",
    [
        (0x00100020, "LO", "x" * 65, "Value length exceeds maximum length of 64."),
        (0x00080050, "SH", "x" * 17, "Value length exceeds maximum length of 16."),
        (0x00080060, "CS", "x" * 17, "Value length exceeds maximum length of 16."),
        (0x00100010, "PN", "a=b=c=d", "Value contains more than 3 groups."),
        (0x00100010, "PN", "a^b^c^d^e^f", "Value contains more than 5 components."),
        (0x00100010, "PN", "x" * 66, "One or more group of person name exceeds maxium length of 64."),
        (0x00081090, "LO", "a\tb", "Value contains invalid character."),
    ],
)
def test_v1_minimum_validators_word_their_refusals(v1, tag, vr, value, detail):
    answer = v1.store(scan({tag: (vr, value)}))

    assert reasons(answer) == [43264]
    assert comments(failed(answer)[0])[0].endswith(f"failed validation for VR '{vr}': {detail}")


# Flavours and limits (1.8, 1.9, 0.5).


def test_managed_flavour_zeroes_the_preamble_and_nothing_else(v2):
    file = b"P" * 128 + scan()[128:]
    path = path_of(stored(v2.store(file))[0])

    assert v2.get(path, ANY_FILE).content == bytes(128) + file[128:]


def test_oss_flavour_keeps_every_byte_and_has_no_put():
    file = b"P" * 128 + scan()[128:]
    with Emulator(flavour="oss", fsync=False) as server, Peer(server.root) as peer:
        path = path_of(stored(peer.store(file))[0])

        assert peer.get(path, ANY_FILE).content == file
        assert peer.store(file, method="PUT").status_code == 405


def test_put_replaces_what_is_there(v2):
    uids = {"study": fresh_uid(), "series": fresh_uid(), "sop": fresh_uid()}
    v2.store(scan(**uids))
    other = scan({0x00100010: ("PN", "Other^Name")}, **uids)

    answer = v2.store(other, method="PUT")

    assert answer.status_code == 200
    assert v2.get(path_of(stored(answer)[0]), ANY_FILE).content[128:] == other[128:]
    assert v2.get(f"/studies?StudyInstanceUID={uids['study']}").json()[0]["00100010"]["Value"] == [
        {"Alphabetic": "Other^Name"}
    ]
    assert v2.store(scan(), method="PUT").status_code == 200


def test_put_of_one_identity_twice_keeps_the_later(v2):
    uids = {"study": fresh_uid(), "series": fresh_uid(), "sop": fresh_uid()}
    later = scan({0x00100010: ("PN", "Later^Name")}, **uids)

    answer = v2.store(scan(**uids), later, method="PUT")

    assert (answer.status_code, len(stored(answer))) == (200, 2)
    assert v2.get(path_of(stored(answer)[0]), ANY_FILE).content[128:] == later[128:]


def test_file_over_the_limit_is_too_large_and_nothing_is_stored():
    study = fresh_uid()
    with Emulator(max_file_bytes=2000, fsync=False) as server, Peer(server.root) as peer:
        big = scan({0x7FE00010: ("OB", bytes(4000))}, study=study)

        answer = peer.store(scan(study=study), big)

        assert (answer.status_code, answer.text) == (413, "The request exceeded the allowed limit of 2000 bytes.")
        assert peer.get(f"/studies/{study}/metadata").status_code == 404


def test_expiry_headers_remove_the_study_when_its_time_is_over(v2):
    study = fresh_uid()
    headers = {
        "msdicom-expiry-time-milliseconds": "1",
        "msdicom-expiry-option": "RelativeToNow",
        "msdicom-expiry-level": "Study",
    }
    assert v2.store(scan(study=study), **headers).status_code == 200

    assert v2.get(f"/studies/{study}/metadata").status_code == 404
    newest = v2.get("/changefeed/latest?includeMetadata=false").json()
    assert (newest["studyInstanceUid"], newest["action"]) == (study, "Delete")


def test_store_without_expiry_headers_cancels_the_expiry(v2):
    study = fresh_uid()
    headers = {
        "msdicom-expiry-time-milliseconds": "60000000",
        "msdicom-expiry-option": "RelativeToNow",
        "msdicom-expiry-level": "Study",
    }
    v2.store(scan(study=study), **headers)
    assert v2.store(scan(study=study)).status_code == 200

    assert v2.get(f"/studies/{study}/metadata").status_code == 200


@pytest.mark.parametrize("value", ["0", "-1", "soon", "²", "9" * 30, "9" * 5000])
def test_expiry_that_makes_no_sense_is_a_bad_request(v2, value):
    headers = {
        "msdicom-expiry-time-milliseconds": value,
        "msdicom-expiry-option": "RelativeToNow",
        "msdicom-expiry-level": "Study",
    }

    assert v2.store(scan(), **headers).status_code == 400


@pytest.mark.skipif(not DATA.is_dir(), reason="the service's sample files are not beside this checkout")
def test_sample_files_of_the_service_store_without_a_warning(peer):
    files = [path.read_bytes() for path in sorted(DATA.glob("*.dcm"))]
    answer = peer.store(*files)
    study = "1.2.826.0.1.3680043.8.498.13230779778012324449356534479549187420"

    assert (answer.status_code, len(stored(answer))) == (200, 3)
    assert peer.call("DELETE", f"/studies/{study}").status_code == 204
