"""The client against servers and a client that others wrote: Orthanc, and the public dicomweb-client package."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient as PublicClient

from ingestd.dicomweb import DicomWebClient, NotFound, Refused, batches, to_dataset, uid_of, value_of
from ingestd.emulator import Emulator
from tests.builders import fresh_uid, write_instance
from tests.orthanc import Orthanc, requires_orthanc

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="module")
def orthanc() -> Iterator[Orthanc]:
    with Orthanc() as running:
        yield running


@pytest.fixture(scope="module")
def emulator(tmp_path_factory) -> Iterator[Emulator]:
    with Emulator(tmp_path_factory.mktemp("emulator"), fsync=False) as running:
        yield running


@pytest.fixture(params=["emulator", pytest.param("orthanc", marks=requires_orthanc)])
def url(request) -> str:
    return request.getfixturevalue(request.param).url


@pytest.fixture
def client(url) -> Iterator[DicomWebClient]:
    with DicomWebClient(url) as opened:
        yield opened


@pytest.fixture
def public(url) -> PublicClient:
    return PublicClient(url)


class Stored:
    """Three instances in two series of one study, on the server and on disk."""

    def __init__(self, folder: Path, client: DicomWebClient) -> None:
        self.study = fresh_uid(1)
        self.series = [fresh_uid(2), fresh_uid(2)]
        self.files: dict[str, Path] = {}
        self.series_of: dict[str, str] = {}
        for number, series in enumerate([self.series[0], self.series[0], self.series[1]]):
            sop_uid = fresh_uid(3)
            self.files[sop_uid] = write_instance(
                folder / str(number), study_uid=self.study, series_uid=series, sop_uid=sop_uid, rows=32, columns=32
            )
            self.series_of[sop_uid] = series
        self.results = [client.store(batch) for batch in batches([folder])]


@pytest.fixture
def stored(client, tmp_path) -> Stored:
    (tmp_path / "in").mkdir()
    return Stored(tmp_path / "in", client)


def after_preamble(data: bytes) -> bytes:
    return data[128:]


def without_port(items: object) -> object:
    """URLs in answers are built from the Host header, in which the public client leaves the port away."""
    return json.loads(re.sub(r"http://127\.0\.0\.1(:\d+)?/", "http://host/", json.dumps(items)))


def test_every_instance_is_named_as_stored(stored):
    assert all(result.is_all_stored for result in stored.results)
    assert {uid for result in stored.results for uid in result.stored} == set(stored.files)


def test_whole_study_comes_back_unchanged(stored, client, tmp_path):
    saved = client.retrieve_study(stored.study).save_to(tmp_path / "out")

    assert {path.stem for path in saved.written} == set(stored.files)
    for path in saved.written:
        assert after_preamble(path.read_bytes()) == after_preamble(stored.files[path.stem].read_bytes())


def test_metadata_searches_and_deletion(stored, client):
    metadata = client.retrieve_metadata(stored.study)
    first = next(iter(stored.files))

    assert metadata is not None
    assert {uid_of(item, "SOPInstanceUID") for item in metadata.items} == set(stored.files)
    assert len(client.search_studies({"StudyInstanceUID": stored.study})) == 1
    assert {uid_of(item, "SeriesInstanceUID") for item in client.search_series(study_uid=stored.study)} == set(
        stored.series
    )
    found = client.find_instances(study_uid=stored.study, page_size=2)
    assert {uid_of(item, "SOPInstanceUID") for item in found} == set(stored.files)
    with pytest.raises(NotFound):
        client.retrieve_instance(stored.study, stored.series_of[first], "1.2.3")
    if client.probe(try_writes=True).has_delete is False:  # Orthanc's DICOMweb plugin
        with pytest.raises(Refused):
            client.delete(stored.study)
        return
    client.delete(stored.study, stored.series_of[first], first)
    assert len(client.search_instances(study_uid=stored.study)) == 2
    client.delete(stored.study)
    assert len(client.search_studies({"StudyInstanceUID": stored.study})) == 0
    with pytest.raises(NotFound):
        client.delete(stored.study)


@pytest.mark.parametrize("name", ["CT_small.dcm", "SC_rgb_rle_2frame.dcm"])
def test_frames_and_rendered_images(client, name):
    dataset = pydicom.dcmread(SAMPLES / name)
    uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
    client.store([SAMPLES / name])

    with client.retrieve_frames(*uids, [1]) as retrieval:
        (frame,) = [part.read() for _, part in retrieval]
    with client.retrieve_rendered(*uids, media_type="image/png") as retrieval:
        picture = retrieval.only_part()[1].read()

    if name == "CT_small.dcm":
        assert frame == dataset.PixelData
    assert frame
    assert picture.startswith(b"\x89PNG")


def test_public_client_gives_the_same_data_sets_and_bytes(stored, client, public):
    """The same calls to the same server by two clients that share no code."""
    first = next(iter(stored.files))
    series = stored.series_of[first]

    theirs = public.retrieve_instance(stored.study, series, first)
    with client.retrieve_instance(stored.study, series, first) as retrieval:
        ours = pydicom.dcmread(io.BytesIO(retrieval.only_part()[1].read()))
    their_metadata = public.retrieve_instance_metadata(stored.study, series, first)
    our_metadata = client.retrieve_metadata(stored.study, series, first)

    assert ours == theirs
    assert our_metadata is not None
    assert without_port(our_metadata.items[0]) == without_port(their_metadata)
    assert to_dataset(our_metadata.items[0]).SOPInstanceUID == first


def test_public_client_finds_the_same(stored, client, public):
    def key(item: dict) -> str:
        return uid_of(item, "SOPInstanceUID") or uid_of(item, "SeriesInstanceUID") or uid_of(item, "StudyInstanceUID")

    filters = {"StudyInstanceUID": stored.study}
    pairs = [
        (public.search_for_studies(search_filters=filters), client.search_studies(filters)),
        (public.search_for_series(stored.study), client.search_series(study_uid=stored.study)),
        (public.search_for_instances(stored.study), client.search_instances(study_uid=stored.study)),
    ]

    for theirs, ours in pairs:
        assert without_port(sorted(theirs, key=key)) == without_port(sorted(ours, key=key))
        assert theirs


def test_what_the_public_client_stores_is_what_ours_retrieves(client, public, tmp_path):
    path = write_instance(tmp_path / "x", study_uid=(study := fresh_uid(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        public.store_instances([pydicom.dcmread(path)])

    saved = client.retrieve_study(study).save_to(tmp_path / "out")

    assert pydicom.dcmread(saved.written[0]) == pydicom.dcmread(path)


def test_public_client_retrieves_the_frames_that_ours_does(client, public):
    dataset = pydicom.dcmread(SAMPLES / "MR_small.dcm")
    uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
    client.store([SAMPLES / "MR_small.dcm"])

    with client.retrieve_frames(*uids, [1], transfer_syntax="1.2.840.10008.1.2.1") as retrieval:
        (ours,) = [part.read() for _, part in retrieval]
    theirs = public.retrieve_instance_frames(
        *uids, frame_numbers=[1], media_types=(("application/octet-stream", "1.2.840.10008.1.2.1"),)
    )

    assert theirs == [ours]


@requires_orthanc
def test_orthanc_is_recognised_and_its_differences_told(orthanc):
    with DicomWebClient(orthanc.url) as client:
        capabilities = client.probe(try_writes=True)

    assert capabilities.kind == "orthanc"
    assert capabilities.api_version is None
    assert not capabilities.has_change_feed
    assert not capabilities.has_query_tags
    assert capabilities.duplicates == "kept"
    assert capabilities.searches
    assert capabilities.has_upsert is False


@requires_orthanc
def test_orthanc_answers_stored_and_keeps_the_older_of_two_with_equal_uids(orthanc, tmp_path):
    """Why a status, and even a listed UID, is no proof of content on such servers."""
    uids = {"study_uid": fresh_uid(1), "series_uid": fresh_uid(2), "sop_uid": fresh_uid(3)}
    old = write_instance(tmp_path / "old", **uids, pixels=b"\1" * 512)
    new = write_instance(tmp_path / "new", **uids, pixels=b"\2" * 512)

    with DicomWebClient(orthanc.url) as client:
        client.store([old])
        result = client.store([new])
        with client.retrieve_instance(*uids.values()) as retrieval:
            kept = retrieval.only_part()[1].read()

    assert result.is_all_stored
    assert after_preamble(kept) == after_preamble(old.read_bytes())


@requires_orthanc
def test_orthanc_has_no_feed_and_no_tags(orthanc):
    with DicomWebClient(orthanc.url) as client:
        with pytest.raises(Refused):
            client.change_feed_latest()
        with pytest.raises(Refused):
            client.tags.page()


@requires_orthanc
def test_orthanc_tells_of_what_it_cannot_store(orthanc, tmp_path):
    (tmp_path / "text").write_bytes(b"this is no DICOM file")
    good = write_instance(tmp_path / "good")

    with DicomWebClient(orthanc.url) as client:
        with pytest.raises(Refused) as raised:
            client.store([good, tmp_path / "text"])
        (batch,) = batches([good])
        alone = client.store(batch)

    assert raised.value.status == 400, "the whole request, although it had stored what came before: no verdict"
    assert alone.is_all_stored


def test_emulator_and_client_agree_on_a_pixel_value(emulator, tmp_path):
    """End to end through both: a value that neither of them could have made up."""
    path = write_instance(tmp_path / "x", study_uid=(study := fresh_uid(1)), station="STATION-77")
    with DicomWebClient(emulator.url) as client:
        client.store([path])
        metadata = client.retrieve_metadata(study)

    assert metadata is not None
    assert value_of(metadata.items[0], "StationName") == "STATION-77"
