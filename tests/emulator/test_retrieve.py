"""The embedded server's WADO-RS and DELETE: AZURE.md 2 and 4, and their tests of AZURE.md 9."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import pytest
import requests

from ingestd.emulator import Emulator
from tests.builders import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, RLE, element, fresh_uid, instance_bytes, sequence
from tests.emulator_peer import ANY_FILE, ANY_FILES, Peer, parts_of, path_of, scan, stored
from tests.running import wait_until

pydicom = pytest.importorskip("pydicom")
BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
HEVC = "1.2.840.10008.1.2.4.107"


def put(peer: Peer, file: bytes) -> str:
    """Store one file and return its path."""
    answer = peer.store(file)
    assert stored(answer), answer.text
    return path_of(stored(answer)[0])


def of_series(path: str) -> str:
    return path.partition("/instances/")[0]


def of_study(path: str) -> str:
    return path.partition("/series/")[0]


def fresh_copy(name: str) -> bytes:
    """A bundled file under UIDs of its own."""
    dataset = pydicom.dcmread(BUNDLED / name)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = fresh_uid(), fresh_uid(), fresh_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if "PatientID" not in dataset:
        dataset.PatientID = "X"
    result = io.BytesIO()
    dataset.save_as(result)
    return result.getvalue()


# RetrieveTransactionResource: instance.


@pytest.mark.parametrize(
    "accept", [ANY_FILE, 'application/dicom;transfer-syntax="*"', "application/dicom", "application/dicom; q=0.3"]
)
def test_instance_as_a_single_part(peer, accept):
    file = scan()
    answer = peer.get(put(peer, file), accept)

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == f"application/dicom; transfer-syntax={EXPLICIT}"
    assert answer.content[128:] == file[128:]


@pytest.mark.parametrize(
    "accept", [ANY_FILES, "*/*", 'multipart/related; type="application/dicom"', 'multipart/related; type="*/*"']
)
def test_instance_as_multipart(peer, accept):
    file = scan()
    answer = peer.get(put(peer, file), accept)

    assert answer.status_code == 200
    assert [part[128:] for part in parts_of(answer)] == [file[128:]]
    assert f"Content-Type: application/dicom; transfer-syntax={EXPLICIT}".encode() in answer.content


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "application/data",
        "image/png",
        "multipart/related; type=application/dicom; transfer-syntax=*",
        f"application/dicom; transfer-syntax={HEVC}",
        f'multipart/related; type="application/dicom"; transfer-syntax={IMPLICIT}',
        'multipart/related; type="application/data"',
    ],
)
def test_what_is_not_offered_is_not_acceptable(peer, accept):
    path = put(peer, scan())

    assert [peer.get(each, accept).status_code for each in (path, of_series(path), of_study(path))] == [406] * 3


def test_single_part_is_not_offered_for_a_series(peer):
    assert peer.get(of_series(put(peer, scan())), ANY_FILE).status_code == 406


def test_original_is_preferred_at_equal_quality(peer):
    file = scan(transfer_syntax=IMPLICIT)
    path = put(peer, file)

    assert peer.get(path, f"application/dicom, {ANY_FILE}").content[128:] == file[128:]
    lower = f"application/dicom; q=0.9, {ANY_FILE}; q=0.1"
    assert peer.get(path, lower).headers["Content-Type"].endswith(EXPLICIT)


def test_missing_resources_are_named(peer):
    path = put(peer, scan())
    missing = fresh_uid()

    for resource, text in (
        (f"/studies/{missing}", "study"),
        (f"{of_study(path)}/series/{missing}", "series"),
        (f"{of_series(path)}/instances/{missing}", "instance"),
    ):
        answer = peer.get(resource, ANY_FILES)
        assert (answer.status_code, answer.text) == (404, f"The specified {text} cannot be found.")


@pytest.mark.parametrize("path", ["/studies/abc", "/studies/1.2/series/x|", f"/studies/{'1' * 65}"])
def test_invalid_uids_are_bad_requests(peer, path):
    assert peer.get(path, ANY_FILES).status_code == 400


def test_instance_without_pixel_data_can_be_retrieved(peer):
    file = scan({0x7FE00010: None})

    assert peer.get(put(peer, file), "application/dicom").content[128:] == file[128:]


def test_padded_study_uid_is_retrievable(peer):
    study = fresh_uid()
    put(peer, scan({0x0020000D: ("UI", study + "  ")}))

    assert peer.get(f"/studies/{study}", ANY_FILES).status_code == 200
    assert peer.get(f"/studies/{study}%20%20", ANY_FILES).status_code == 200


def test_colors_are_said_to_be_transformed_where_jpeg_2000_transforms_them(peer):
    """As fo-dicom says it: YBR_RCT, not RGB (PS3.5 section 8.2.4); decoding gives the same pixels."""
    colors = bytes(range(256)) * 12
    changes = {
        0x00280002: ("US", 3), 0x00280004: ("CS", "RGB"), 0x00280006: ("US", 0), 0x00280010: ("US", 32),
        0x00280011: ("US", 32), 0x7FE00010: ("OB", colors),
    }  # fmt: skip
    answer = peer.get(put(peer, scan(changes)), f"application/dicom; transfer-syntax={JPEG_2000}")

    shown = pydicom.dcmread(io.BytesIO(answer.content))
    assert (shown.PhotometricInterpretation, shown.pixel_array.tobytes()) == ("YBR_RCT", colors)


@pytest.mark.parametrize("syntax", [IMPLICIT, BIG_ENDIAN, DEFLATED])
@pytest.mark.parametrize("target", [EXPLICIT, JPEG_2000])
def test_native_files_are_transcoded(peer, syntax, target):
    file = instance_bytes(transfer_syntax=syntax, rows=64, columns=64)
    answer = peer.get(put(peer, file), f"application/dicom; transfer-syntax={target}")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == f"application/dicom; transfer-syntax={target}"
    got, sent = pydicom.dcmread(io.BytesIO(answer.content)), pydicom.dcmread(io.BytesIO(file))
    assert str(got.file_meta.TransferSyntaxUID) == target
    assert (got.pixel_array == sent.pixel_array).all()
    assert got.SOPInstanceUID == sent.SOPInstanceUID


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm", "JPEG2000.dcm", "GDCMJ2K_TextGBR.dcm",
     "SC_rgb_rle_2frame.dcm"],
)  # fmt: skip
def test_compressed_files_are_decoded(v2, name):
    path = put(v2, fresh_copy(name))
    answer = v2.get(path, "application/dicom")

    assert answer.status_code == 200
    assert pydicom.dcmread(io.BytesIO(answer.content)).file_meta.TransferSyntaxUID == EXPLICIT


def test_compressed_syntax_that_the_service_does_not_decode_is_not_acceptable(v2):
    path = put(v2, fresh_copy("MR_small_jpeg_ls_lossless.dcm"))

    assert [v2.get(path, accept).status_code for accept in ("application/dicom", ANY_FILE)] == [406, 200]


def test_lossless_jpeg_of_any_predictor_is_decoded(v2):
    """AZURE.md 2.1: 1.2.840.10008.1.2.4.57; a file of .70 is one of it, with the first predictor."""
    content = fresh_copy("SC_rgb_jpeg_gdcm.dcm")
    relabelled = content.replace(b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.57", 1)
    assert relabelled != content
    path = path_of(stored(v2.store_one(relabelled))[0])

    answer = v2.get(path, "application/dicom")

    assert answer.status_code == 200
    assert pydicom.dcmread(io.BytesIO(answer.content)).file_meta.TransferSyntaxUID == EXPLICIT
    v2.call("DELETE", path)


def test_stored_syntax_that_cannot_be_decoded_is_given_only_as_it_is(peer):
    file = instance_bytes(transfer_syntax=HEVC)
    path = put(peer, file)

    assert peer.get(path, "application/dicom").status_code == 406
    assert peer.get(path, ANY_FILE).content[128:] == file[128:]


def test_file_over_the_transcoding_limit_is_not_acceptable():
    with Emulator(fsync=False, max_transcode_bytes=500) as server, Peer(server.root) as peer:
        path = put(peer, scan(transfer_syntax=IMPLICIT))

        assert peer.get(path, "application/dicom").status_code == 406
        assert peer.get(path, ANY_FILE).status_code == 200


# Series and study.


def test_several_instances_only_with_any_transfer_syntax(peer):
    study, series = fresh_uid(), fresh_uid()
    files = [
        scan(study=study, series=series),
        scan(
            study=study,
            series=series,
        ),
        scan(study=study),
    ]
    assert peer.store(*files).status_code == 200

    answer = peer.get(f"/studies/{study}", 'multipart/related; type="application/dicom"')
    assert answer.status_code == 406
    assert answer.text == (
        f"Accept transfer syntax '{EXPLICIT}' is not supported when multiple instances are matched. Matching "
        "instances can be retrieved with their original transfer syntax by specifying 'transfer-syntax=*' in the "
        "Accept header."
    )
    assert sorted(part[128:] for part in parts_of(peer.get(f"/studies/{study}", ANY_FILES))) == sorted(
        file[128:] for file in files
    )
    assert len(parts_of(peer.get(f"/studies/{study}/series/{series}", ANY_FILES))) == 2


def test_mixed_transfer_syntaxes_each_say_their_own(peer):
    study = fresh_uid()
    peer.store(scan(study=study), scan(study=study, transfer_syntax=IMPLICIT))
    assert peer.get(f"/studies/{study}", 'multipart/related; type="application/dicom"').status_code == 406
    content = peer.get(f"/studies/{study}", "*/*").content

    assert [content.count(f"transfer-syntax={syntax}\r\n".encode()) for syntax in (EXPLICIT, IMPLICIT)] == [1, 1]


@pytest.mark.parametrize("accept", [ANY_FILE, ANY_FILES])
def test_client_that_leaves_keeps_no_file_open(server, v2, accept):
    path = put(v2, scan({0x7FE00010: ("OW", bytes(20_000_000))}))
    server.faults.add("half_answer", count=1, method="GET")

    with pytest.raises(requests.exceptions.RequestException):
        v2.get(path, accept)
    v2.get(path, accept, stream=True).close()

    def is_open() -> bool:
        return any(str(server.data / "files") in str(fd.resolve()) for fd in Path("/proc/self/fd").iterdir())

    wait_until(lambda: not is_open(), what="the end of the answers' files")
    v2.call("DELETE", path)


# Frames.


@pytest.fixture(scope="module")
def multi(v2: Peer) -> tuple[str, bytes]:
    """An instance of three frames of 64 bytes."""
    pixels = b"".join(bytes([n]) * 64 for n in (1, 2, 3))
    file = instance_bytes(rows=8, columns=8, bits=8, frames=3, pixels=pixels)
    return put(v2, file), pixels


def test_one_frame_as_a_single_part(v2, multi):
    path, pixels = multi
    answer = v2.get(f"{path}/frames/2", "application/octet-stream")

    assert answer.content == pixels[64:128]
    assert answer.headers["Content-Type"] == f"application/octet-stream; transfer-syntax={EXPLICIT}"


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        'multipart/related; type="application/octet-stream"; transfer-syntax=*',
        'multipart/related; type="*/*"; transfer-syntax="*"',
    ],
)
def test_several_frames_as_multipart(v2, multi, accept):
    path, pixels = multi

    assert parts_of(v2.get(f"{path}/frames/1,3", accept)) == [pixels[:64], pixels[128:]]


def test_single_part_of_several_frames_is_a_bad_request(v2, multi):
    answer = v2.get(f"{multi[0]}/frames/1,2", "application/octet-stream")

    assert (answer.status_code, "single frame retrieval" in answer.text) == (400, True)


@pytest.mark.parametrize("frames", ["0", "-1", "1,-1", "0,1", "x", "1,"])
def test_frames_that_make_no_sense_are_bad_requests(v2, multi, frames):
    assert v2.get(f"{multi[0]}/frames/{frames}", "*/*").status_code == 400


def test_frame_beyond_the_last_is_not_found(v2, multi):
    answer = v2.get(f"{multi[0]}/frames/4", "*/*")

    assert (answer.status_code, answer.text) == (404, "The specified frame cannot be found.")


def test_frame_of_no_pixel_data_is_not_found(v2):
    assert v2.get(f"{put(v2, scan({0x7FE00010: None}))}/frames/1", "*/*").status_code == 404


def test_original_frame_of_a_syntax_that_cannot_be_decoded(v2):
    path = put(v2, instance_bytes(transfer_syntax=HEVC, rows=8, columns=8, bits=8, pixels=b"fragment"))

    assert parts_of(v2.get(f"{path}/frames/1", "*/*")) == [b"fragment"]
    assert v2.get(f"{path}/frames/1", "application/octet-stream").status_code == 406


@pytest.mark.parametrize("count", [1, 2])
def test_frames_of_pixel_data_without_its_delimiter(v2, count):
    """A maker's scanners write every file so; the service's fo-dicom takes them."""
    pixels = b"\xff\xd8" + bytes(range(60)) + b"\xff\xd9"
    file = instance_bytes(transfer_syntax=HEVC, rows=8, columns=8, bits=8, frames=count, pixels=pixels * count)
    path = put(v2, file[:-8])

    assert [parts_of(v2.get(f"{path}/frames/{n + 1}", "*/*")) for n in range(count)] == [[pixels]] * count
    assert v2.store(file[:-9]).status_code == 409


@pytest.mark.parametrize("number", [2, 4, 1 << 33])
def test_numbers_with_a_16_bit_length_are_read(v2, number):
    """Old fo-dicom wrote SV and UV so, and the service reads them."""
    odd = b"".join(
        tag + vr + (8).to_bytes(2, "little") + number.to_bytes(8, "little")
        for tag, vr in ((b"\x72\0\x82\0", b"SV"), (b"\x72\0\x83\0", b"UV"))
    )
    path = put(v2, instance_bytes(extra=odd))

    (metadata,) = v2.get(f"{path}/metadata", "application/dicom+json").json()

    assert [metadata[tag]["Value"] for tag in ("00720082", "00720083")] == [[number], [number]]


def test_frame_of_pixel_data_that_is_too_short_is_not_found(v2):
    path = put(v2, instance_bytes(rows=8, columns=8, bits=8, frames=3, pixels=bytes(range(128))))

    assert v2.get(f"{path}/frames/2", "application/octet-stream").content == bytes(range(64, 128))
    assert v2.get(f"{path}/frames/3", "application/octet-stream").status_code == 404


def test_frame_as_jpeg_2000(v2):
    path = put(v2, instance_bytes(rows=64, columns=64))
    answer = v2.get(f"{path}/frames/1", 'multipart/related; type="image/jp2"')

    assert answer.status_code == 200
    assert f"Content-Type: image/jp2; transfer-syntax={JPEG_2000}".encode() in answer.content
    assert parts_of(answer)[0].startswith(b"\xffO\xffQ")


def test_frame_of_a_compressed_file_is_decoded(v2):
    file = fresh_copy("SC_rgb_rle_2frame.dcm")
    path = put(v2, file)
    dataset = pydicom.dcmread(io.BytesIO(file))

    got = v2.get(f"{path}/frames/2", "application/octet-stream")

    assert got.content == dataset.pixel_array[1].tobytes()
    assert v2.get(f"{path}/frames/1", "*/*").content.count(f"transfer-syntax={RLE}".encode()) == 1


def test_bit_packed_frames_that_begin_inside_a_byte(v2):
    # Two frames of nine bits: 1 0101 0101 and 0 1111 0000, packed low bit first (PS3.5 §8.1.1).
    packed = (0b0_1111_0000 << 9 | 0b1_0101_0101).to_bytes(4, "little")
    path = put(v2, instance_bytes(rows=3, columns=3, bits=1, frames=2, pixels=packed))

    frames = [v2.get(f"{path}/frames/{n}", "application/octet-stream").content for n in (1, 2)]

    assert [int.from_bytes(frame, "little") for frame in frames] == [0b1_0101_0101, 0b0_1111_0000]


# Rendered.


@pytest.mark.parametrize("resource", ["/rendered", "/frames/1/rendered"])
@pytest.mark.parametrize(
    "accept, kind, magic",
    [
        (None, "image/jpeg", b"\xff\xd8"),
        ("image/jpeg", "image/jpeg", b"\xff\xd8"),
        ("image/png", "image/png", b"\x89PNG"),
    ],
)
def test_rendered_as_jpeg_or_png(v2, resource, accept, kind, magic):
    answer = v2.get(put(v2, instance_bytes()) + resource, accept)

    assert (answer.status_code, answer.headers["Content-Type"]) == (200, kind)
    assert answer.content.startswith(magic)


@pytest.mark.parametrize("accept", ["*/*", "application/jpeg", "image/gif", "image/png, image/jpeg"])
def test_rendered_as_anything_else_is_not_acceptable(v2, accept):
    assert v2.get(f"{put(v2, scan())}/rendered", accept).status_code == 406


def test_quality_changes_the_size(v2):
    pixels = hashlib.shake_256(b"noise").digest(64 * 64)
    path = put(v2, instance_bytes(rows=64, columns=64, bits=8, pixels=pixels))

    sizes = [len(v2.get(f"{path}/rendered?quality={quality}", "image/jpeg").content) for quality in (10, 100)]

    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("quality", ["0", "101", "good", "²", "9" * 5000])
def test_quality_out_of_range_is_a_bad_request(v2, quality):
    answer = v2.get(f"{put(v2, scan())}/rendered?quality={quality}", "image/jpeg")

    assert (answer.status_code, answer.text) == (400, "Image quality must be between 1 and 100 inclusive")


def test_rendered_frame_that_is_not_there(v2):
    assert v2.get(f"{put(v2, scan())}/frames/2/rendered", "image/png").status_code == 404
    assert v2.get(f"{put(v2, scan({0x7FE00010: None}))}/rendered", "image/png").status_code == 404


def test_picture_that_no_codec_is_installed_for_says_what_to_install(v2, monkeypatch):
    path = put(v2, instance_bytes())
    monkeypatch.setitem(sys.modules, "PIL", None)

    drawn = v2.get(f"{path}/rendered", "image/png")
    compressed = v2.get(path, f'application/dicom; transfer-syntax="{HEVC}"')

    assert drawn.status_code == 406
    assert drawn.text.endswith("(Not installed here: PIL. They come with: pip install 'ingestd[pixels]')")
    assert compressed.status_code == 406
    assert "pip" not in compressed.text


# Metadata and its ETag.


@pytest.mark.parametrize("accept", [None, "application/data"])
def test_metadata_with_a_wrong_accept_is_not_acceptable(peer, accept):
    assert peer.get(f"{put(peer, scan())}/metadata", accept).status_code == 406


def test_metadata_of_what_is_not_there_is_not_found(peer):
    path = put(peer, scan())
    missing = fresh_uid()

    for resource in (
        f"/studies/{missing}",
        f"{of_study(path)}/series/{missing}",
        f"{of_series(path)}/instances/{missing}",
    ):
        assert peer.get(f"{resource}/metadata").status_code == 404


def test_metadata_is_right_on_three_levels(peer):
    study, series = fresh_uid(), fresh_uid()
    peer.store(scan(study=study, series=series), scan(study=study, series=series), scan(study=study))
    first = peer.get(f"/studies/{study}/metadata").json()[0]

    assert len(peer.get(f"/studies/{study}/metadata").json()) == 3
    assert len(peer.get(f"/studies/{study}/series/{series}/metadata").json()) == 2
    sop = first["00080018"]["Value"][0]
    path = f"/studies/{study}/series/{first['0020000E']['Value'][0]}/instances/{sop}/metadata"
    assert peer.get(path).json() == [first]
    assert list(first) == sorted(first)
    assert not set(first) & {"7FE00010", "00020010"}


def test_metadata_writes_values_as_dicom_json_has_them(v2):
    japanese = b"Yamada^Tarou=" + b"\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"
    changes = {
        0x00080005: ("CS", "\\ISO 2022 IR 87"),
        0x00080008: ("CS", "ORIGINAL\\\\AXIAL"),
        0x00100010: ("PN", japanese),
        0x00101030: ("DS", "72.5"),
        0x00200013: ("IS", "7"),
        0x00200032: ("DS", "1\\-2.5\\3e1"),
        0x00080050: ("SH", ""),
        0x00189087: ("FD", b"\0\0\0\0\0\0\xf8\x3f"),
        0x00280009: ("AT", b"\x18\x00\x63\x10"),
        0x00081140: ("SQ", sequence(0x00081140, [element(0x00081155, "UI", "1.2.3")])[12:]),
        0x00091001: ("UN", b"private"),
    }
    got = v2.get(f"{put(v2, scan(changes))}/metadata").json()[0]

    assert got["00080008"]["Value"] == ["ORIGINAL", None, "AXIAL"]
    assert got["00100010"]["Value"] == [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}]
    assert got["00101030"] == {"vr": "DS", "Value": [72.5]}
    assert got["00200032"]["Value"] == [1, -2.5, 30.0]
    assert got["00200013"]["Value"] == [7]
    assert got["00080050"] == {"vr": "SH"}
    assert got["00189087"]["Value"] == [1.5]
    assert got["00280009"]["Value"] == ["00181063"]
    assert got["00081140"] == {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]}}]}
    assert "00091001" not in got


def test_matching_etag_is_not_modified_and_others_are_sent_again(peer):
    path = put(peer, scan())
    for level in (path, of_series(path), of_study(path)):
        first = peer.get(f"{level}/metadata")
        etag = first.headers["ETag"]
        assert '"' not in etag
        assert (etag.count("-") == 1) == (level != path)

        same = peer.get(f"{level}/metadata", headers={"If-None-Match": etag})
        assert (same.status_code, same.content, "ETag" in same.headers) == (304, b"", False)
        other = peer.get(f"{level}/metadata", headers={"If-None-Match": "0-0"})
        assert (other.status_code, other.headers["ETag"]) == (200, etag)


def test_etag_changes_when_an_instance_comes_and_when_it_goes(peer):
    study = fresh_uid()
    resource = f"/studies/{study}/metadata"
    put(peer, scan(study=study))
    first = peer.get(resource).headers["ETag"]
    path = put(peer, scan(study=study))
    second = peer.get(resource).headers["ETag"]
    peer.call("DELETE", path)
    third = peer.get(resource).headers["ETag"]

    assert [etag.split("-")[1] for etag in (first, second, third)] == ["1", "2", "1"]
    assert (first == third, second != first) == (True, True)


# DELETE (AZURE.md 4, DeleteTests).


@pytest.mark.parametrize("level", [lambda path: path, of_series, of_study])
def test_deleted_is_gone_on_all_levels_and_not_found_again(peer, level):
    path = put(peer, scan())

    first, second = peer.call("DELETE", level(path)), peer.call("DELETE", level(path))

    assert [(first.status_code, first.content), second.status_code] == [(204, b""), 404]
    for resource in (path, of_series(path), of_study(path)):
        assert peer.get(f"{resource}/metadata").status_code == 404
    assert peer.get(f"/studies?StudyInstanceUID={of_study(path)[9:]}").status_code == 204


def test_siblings_survive_a_deletion(peer):
    study, series = fresh_uid(), fresh_uid()
    path = put(peer, scan(study=study, series=series))
    sibling, cousin = put(peer, scan(study=study, series=series)), put(peer, scan(study=study))

    peer.call("DELETE", path)
    assert [peer.get(f"{each}/metadata").status_code for each in (path, sibling, cousin)] == [404, 200, 200]
    peer.call("DELETE", of_series(sibling))
    assert [peer.get(f"{each}/metadata").status_code for each in (sibling, cousin)] == [404, 200]


@pytest.mark.parametrize("path", ["/studies/a", "/studies/1.2/series/b", "/studies/1.2/series/1.3/instances/c"])
def test_deleting_invalid_uids_is_a_bad_request(peer, path):
    assert peer.call("DELETE", path).status_code == 400
