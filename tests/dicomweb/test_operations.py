"""Every operation of the service against the emulator, with real files where pixels matter."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pydicom
import pytest

from ingestd.dicomweb import (
    ChangeFeedEntry,
    ChangeFeedPage,
    DicomWebClient,
    Follower,
    NotFound,
    Operation,
    QueryTag,
    Refused,
    StorePart,
    Unavailable,
    batches,
    date_range,
    tag_of,
    to_dataset,
    uid_of,
    value_of,
)
from ingestd.dicomweb.retrieving import read_uids
from ingestd.dicomweb.sdk import DicomClient
from ingestd.emulator import Emulator
from ingestd.instance import Verdict, inspect
from tests.builders import (
    DEFLATED,
    EXPLICIT,
    delimiter,
    element,
    file_meta,
    fresh_uid,
    instance_bytes,
    item,
    part10,
    write_instance,
)

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Emulator]:
    with Emulator(tmp_path_factory.mktemp("emulator"), fsync=False, partitions=False) as emulator:
        yield emulator


@pytest.fixture
def client(server) -> Iterator[DicomWebClient]:
    with DicomWebClient(server.url) as opened:
        yield opened


class Study:
    """A stored study of two series with two and one instances, and the files it came from."""

    def __init__(self, folder: Path, client: DicomWebClient) -> None:
        self.uid, self.series = fresh_uid(1), [fresh_uid(2), fresh_uid(2)]
        self.patient_id = f"P{self.uid[-9:]}"
        self.files = {}
        for number, series in enumerate([self.series[0], self.series[0], self.series[1]]):
            sop_uid = fresh_uid(3)
            self.files[sop_uid] = write_instance(
                folder / f"{number}.dcm",
                study_uid=self.uid,
                series_uid=series,
                sop_uid=sop_uid,
                patient_id=self.patient_id,
                modality=["CT", "CT", "MR"][number],
            )
        (batch,) = batches([folder])
        self.result = client.store(batch)

    @property
    def sop_uids(self) -> list[str]:
        return list(self.files)


@pytest.fixture
def study(tmp_path, client) -> Study:
    folder = tmp_path / "made"
    folder.mkdir()
    return Study(folder, client)


def content(data: bytes) -> bytes:
    return data[128:]  # the managed service zeroes the preamble


def test_store_a_folder_and_be_told_of_each_instance(study):
    assert study.result.is_all_stored
    assert set(study.result.stored) == set(study.files)
    assert study.result.server_date is not None


def test_second_store_of_the_same_instances_is_refused_as_already_there(study, client):
    (batch,) = batches(study.files.values())

    result = client.store(batch)

    assert {failure.meaning for failure in result.failed.values()} == {"already exists"}
    assert result.status == 409


def test_upsert_replaces_what_is_there(study, client):
    result = client.store(list(study.files.values())[:1], upsert=True)

    assert result.is_all_stored


def test_single_part_store_into_its_study(tmp_path, client):
    uid = fresh_uid(1)
    path = write_instance(tmp_path / "one", study_uid=uid)

    result = client.store([path], single=True, study_uid=uid)

    assert result.is_all_stored
    assert result.retrieve_url.endswith(uid)


def test_study_comes_back_byte_for_byte(study, client):
    with client.retrieve_study(study.uid) as retrieval:
        found = {hashlib.sha256(content(part.read())).digest() for _, part in retrieval}

    assert found == {hashlib.sha256(content(path.read_bytes())).digest() for path in study.files.values()}


def test_series_and_instance_come_back(study, client):
    first, _, third = study.sop_uids

    with client.retrieve_series(study.uid, study.series[0]) as retrieval:
        assert len([part.read() for _, part in retrieval]) == 2
    with client.retrieve_instance(study.uid, study.series[0], first, original=True) as retrieval:
        ((headers, data),) = [(headers, part.read()) for headers, part in retrieval]
    with pytest.raises(NotFound):
        client.retrieve_instance(study.uid, study.series[0], third)

    assert headers["content-type"].startswith("application/dicom")
    assert content(data) == content(study.files[first].read_bytes())


def test_save_as_writes_one_new_file(study, client, tmp_path):
    first = study.sop_uids[0]

    size = client.retrieve_instance(study.uid, study.series[0], first).save_as(tmp_path / "copy")

    assert size == (tmp_path / "copy").stat().st_size
    assert content((tmp_path / "copy").read_bytes()) == content(study.files[first].read_bytes())
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600


def test_download_resumes_where_an_earlier_one_ended(study, client, tmp_path, server):
    told: list[Path] = []
    first = client.download(tmp_path / "out", study.uid, on_file=told.append)
    first.written[1].unlink()

    second = client.download(tmp_path / "out", study.uid)
    third = client.download(tmp_path / "out", study.uid, study.series[1])

    assert {path.stem for path in first.written} == set(study.files)
    assert told == list(first.written)
    assert second.written == (first.written[1],)
    assert len(second.kept) == 2
    assert [path.parent.name for path in third.kept] == [study.series[1]]
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("left", [None, "1.2.3.dcm"], ids=["empty", "with a file"])
@pytest.mark.parametrize("level", ["study", "series"])
def test_what_the_server_lacks_is_not_found_whatever_lies_in_the_folder(client, tmp_path, level, left):
    study_uid, series_uid = fresh_uid(1), fresh_uid(2)
    (tmp_path / study_uid / series_uid).mkdir(parents=True)
    if left:
        (tmp_path / study_uid / series_uid / left).touch()

    with pytest.raises(NotFound):
        client.download(tmp_path, study_uid, series_uid if level == "series" else None)


def test_saving_twice_keeps_equal_files_and_replaces_others(study, client, tmp_path):
    first = client.retrieve_study(study.uid).save_to(tmp_path)
    first.written[0].write_bytes(b"older")

    second = client.retrieve_study(study.uid).save_to(tmp_path)

    assert second.replaced == (first.written[0],)
    assert set(second.kept) == set(first.written[1:])


def test_metadata_at_three_levels_and_not_again_with_its_etag(study, client):
    first = study.sop_uids[0]
    whole = client.retrieve_metadata(study.uid)
    series = client.retrieve_metadata(study.uid, study.series[0])
    instance = client.retrieve_metadata(study.uid, study.series[0], first)

    assert [len(found.items) for found in (whole, series, instance)] == [3, 2, 1]
    assert whole.etag
    assert client.retrieve_metadata(study.uid, etag=whole.etag) is None
    assert to_dataset(instance.items[0]).SOPInstanceUID == first


def test_searches_at_all_six_paths(study, client):
    by_patient = {"PatientID": study.patient_id}

    assert [uid_of(item, "StudyInstanceUID") for item in client.search_studies(by_patient)] == [study.uid]
    assert {uid_of(item, "SeriesInstanceUID") for item in client.search_series(by_patient)} == set(study.series)
    assert {uid_of(item, "SOPInstanceUID") for item in client.search_instances(by_patient)} == set(study.files)
    assert len(client.search_series({"Modality": "MR"}, study_uid=study.uid)) == 1
    assert len(client.search_instances(study_uid=study.uid)) == 3
    assert len(client.search_instances(study_uid=study.uid, series_uid=study.series[0])) == 2


def test_search_takes_tags_dates_ranges_fields_and_gives_data_sets(study, client):
    day = client.search_studies({"StudyInstanceUID": study.uid}, include=["all"])
    tagged = client.search_studies({"0020000D": study.uid}, include=["NumberOfStudyRelatedInstances"])
    (dataset,) = tagged.datasets()

    assert len(day) == 1
    assert value_of(tagged[0], "NumberOfStudyRelatedInstances") == 3
    assert dataset.StudyInstanceUID == study.uid
    assert len(client.search_studies({"StudyDate": date_range(date(1800, 1, 1), date(1800, 1, 2))})) == 0
    assert len(client.search_studies({"StudyDate": date(1800, 1, 1)})) == 0
    assert client.search_studies({"PatientName": "nobody such"}, fuzzy=True).items == ()
    assert date_range(None, date(2020, 1, 2)) == "-20200102"


def test_wrong_search_is_refused_without_quoting_it(client):
    with pytest.raises(Refused) as raised:
        client.search_studies({"StudyDate": "canary"})

    assert "canary" not in str(raised.value)
    assert "canary" in raised.value.server_text


def test_iterator_pages_to_the_end_and_no_further(study, client):
    found = [uid_of(item, "SOPInstanceUID") for item in client.find_instances(study_uid=study.uid, page_size=2)]

    assert sorted(found) == sorted(study.files)
    assert len(list(client.find_instances(study_uid=study.uid, page_size=1, most=2))) == 2
    assert list(client.find_studies({"PatientID": "nobody"})) == []


def test_iterator_gives_one_instance_for_every_series_that_its_uid_stands_in(tmp_path, client):
    study_uid, sop_uid = fresh_uid(1), fresh_uid(3)
    for series_uid in ("1.2.3", "1.2.4"):
        path = write_instance(tmp_path / series_uid, study_uid=study_uid, series_uid=series_uid, sop_uid=sop_uid)
        assert client.store([path]).is_all_stored

    found = client.find_instances(study_uid=study_uid, page_size=1)

    assert sorted(uid_of(item, "SeriesInstanceUID") for item in found) == ["1.2.3", "1.2.4"]


def test_delete_tells_what_was_not_there(study, client):
    first, second, third = study.sop_uids

    client.delete(study.uid, study.series[0], first)
    client.delete(study.uid, study.series[1])
    assert {uid_of(item, "SOPInstanceUID") for item in client.search_instances(study_uid=study.uid)} == {second}
    client.delete(study.uid)
    with pytest.raises(NotFound):
        client.delete(study.uid)
    with pytest.raises(ValueError, match="needs its series"):
        client.delete(study.uid, sop_uid=third)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_frames_and_rendered_images_of_real_files(client, name):
    path = SAMPLES / name
    dataset = pydicom.dcmread(path)
    uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
    client.store([path], upsert=True)

    with client.retrieve_frames(*uids, [1]) as retrieval:
        ((_, frame),) = [(headers, part.read()) for headers, part in retrieval]
    with client.retrieve_rendered(*uids) as retrieval:
        headers, jpeg = retrieval.only_part()
        picture = jpeg.read()
    with client.retrieve_rendered(*uids, frame=1, media_type="image/png") as retrieval:
        _, png = retrieval.only_part()
        assert png.read().startswith(b"\x89PNG")
    with client.retrieve_rendered(*uids, quality=10) as retrieval:
        assert len(retrieval.only_part()[1].read()) < len(picture)
    with pytest.raises(NotFound):
        client.retrieve_frames(*uids, [2])
    with pytest.raises(ValueError, match="count from 1"):
        client.retrieve_frames(*uids, [0])

    assert frame == dataset.PixelData
    assert headers["Content-Type"] == "image/jpeg"
    assert picture.startswith(b"\xff\xd8")


def test_several_frames_come_in_the_order_asked_for(client):
    path = SAMPLES / "rtdose.dcm"
    dataset = pydicom.dcmread(path)
    uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
    client.store([path], upsert=True)
    size = len(dataset.PixelData) // dataset.NumberOfFrames

    with client.retrieve_frames(*uids, [3, 1]) as retrieval:
        frames = [part.read() for _, part in retrieval]

    assert frames == [dataset.PixelData[2 * size : 3 * size], dataset.PixelData[:size]]


def test_change_feed_v2_tells_of_a_store_and_of_its_deletion(client, tmp_path):
    begun = client.search_studies(limit=1).server_date - timedelta(seconds=2)
    path = write_instance(tmp_path / "x", study_uid=(uid := fresh_uid(1)))
    client.store([path])
    client.delete(uid)

    page = client.change_feed(start_at=begun, limit=200)
    created, deleted = [entry for entry in page.entries if entry.study_uid == uid]
    latest = client.change_feed_latest(include_metadata=True)

    assert (created.action, created.state, deleted.action) == ("create", "deleted", "delete")
    assert latest == deleted
    assert created.at.tzinfo is UTC
    assert page.server_date is not None
    assert client.change_feed(start_at=begun, limit=1).entries == page.entries[:1]
    assert client.change_feed(start_at=begun, offset=1, limit=1).entries == page.entries[1:2]


def test_change_feed_v1_counts_by_sequence(server, study):
    with DicomWebClient(f"{server.root}/v1") as client:
        latest = client.change_feed_latest()
        page = client.change_feed(offset=latest.sequence - 1, limit=5)
        with pytest.raises(ValueError, match="no time window"):
            client.change_feed(start_at=datetime.now(UTC))

    assert page.entries == (latest,)


def test_follower_gives_every_entry_once_also_after_a_restart(server, client, tmp_path):
    follower = client.follow()
    before = {entry.sequence for entry in follower.read()}
    client.store([write_instance(tmp_path / "a")])
    first = follower.read()
    restarted = client.follow(follower.cursor)
    client.store([write_instance(tmp_path / "b")])

    second = restarted.read()

    assert len(first) == len(second) == 1
    assert not before & {first[0].sequence, second[0].sequence}
    assert restarted.read() == []
    with pytest.raises(ValueError, match="cursor"):
        client.follow("nonsense")


def test_follower_reads_v1_by_sequence(server, study):
    with DicomWebClient(f"{server.root}/v1") as client:
        follower = client.follow(lag=timedelta(0))
        assert {entry.sop_uid for entry in follower.read()} >= set(study.files)
        assert client.follow(follower.cursor).read() == []


def test_follower_yields_until_told_to_stop(client, study):
    stop = threading.Event()
    seen = []

    for entry in client.follow().entries(every=timedelta(0), stop=stop):
        seen.append(entry)
        if entry.study_uid == study.uid:
            stop.set()

    assert {entry.study_uid for entry in seen} >= {study.uid}


class Feed:
    """A feed that shows what a test puts into it: late rows, gaps, any order."""

    def __init__(self, version: int) -> None:
        self.api_version: int | None = version
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.rows: list[ChangeFeedEntry] = []

    def add(self, sequence: int, *, age: float = 0) -> None:
        at = self.now - timedelta(seconds=age)
        self.rows.append(
            ChangeFeedEntry(
                sequence=sequence, study_uid="1", series_uid="2", sop_uid="3", action="create", state="current", at=at
            )
        )

    def change_feed(self, *, start_at=None, end_at=None, offset=0, limit=None, include_metadata=False):
        if self.api_version == 1:
            rows = [row for row in self.rows if offset < row.sequence <= offset + limit]
            return ChangeFeedPage(entries=tuple(sorted(rows, key=lambda row: row.sequence)), server_date=self.now)
        rows = sorted((row for row in self.rows if start_at is None or row.at >= start_at), key=lambda row: row.at)
        return ChangeFeedPage(entries=tuple(rows[offset : offset + limit]), server_date=self.now)

    def change_feed_latest(self, *, include_metadata=False):
        return max(self.rows, key=lambda row: row.sequence, default=None)


@pytest.mark.parametrize("version", [1, 2])
def test_follower_catches_late_rows_gaps_and_large_pages(version):
    feed = Feed(version)
    for sequence in range(1, 451):
        feed.add(sequence, age=500 - sequence)
    follower = Follower(feed)
    assert [entry.sequence for entry in follower.read()] == list(range(1, 451))

    feed.now += timedelta(seconds=10)
    feed.add(2000)  # sequences have gaps, of thousands after a restart
    assert [entry.sequence for entry in follower.read()] == [2000]
    feed.add(1999, age=50)  # committed late: its time lies behind what was read
    restarted = Follower(feed, follower.cursor)
    assert [entry.sequence for entry in restarted.read()] == [1999]
    assert restarted.read() == []

    for _ in range(20):
        feed.now += timedelta(seconds=60)
        restarted.read()
    assert len(restarted.cursor) < 200, "what is long past is forgotten"


@pytest.mark.parametrize("version", [1, 2])
def test_follower_reads_a_long_feed_in_stretches_and_goes_on_after_a_break(version):
    """Half a feed may be read, the process end, and the rest come later: each entry once."""
    feed = Feed(version)
    for sequence in range(1, 12_001):
        feed.add(sequence, age=20_000 - sequence // 3)
    follower, seen = Follower(feed), []

    for entry in follower.once():
        seen.append(entry.sequence)
        if len(seen) == 7_000:
            break
    restarted = Follower(feed, follower.cursor)
    seen.extend(entry.sequence for entry in restarted.once())

    assert seen == list(range(1, 12_001))
    assert len(follower.cursor) < 200_000
    assert restarted.read() == []


def test_follower_passes_many_entries_of_one_instant():
    feed = Feed(2)
    for sequence in range(1, 12_001):
        feed.add(sequence, age=1000)

    assert [entry.sequence for entry in Follower(feed).read()] == list(range(1, 12_001))


def test_follower_begins_at_a_time():
    feed = Feed(2)
    feed.add(1, age=100)
    feed.add(2, age=10)

    assert [entry.sequence for entry in Follower.from_time(feed, feed.now - timedelta(seconds=50)).read()] == [2]
    with pytest.raises(ValueError, match="v1 has no times"):
        Follower.from_time(Feed(1), feed.now)
    with pytest.raises(ValueError, match="v2"):
        Follower(Feed(1), Follower(feed).cursor)


def test_query_tags_are_added_listed_switched_and_deleted(client, study):
    operation_id = client.tags.add([QueryTag(path="00081010", level="study"), QueryTag(path="Rows", level="instance")])
    looks: list[Operation] = []
    operation = client.operations.wait(
        operation_id, every=timedelta(seconds=0.05), give_up_after=timedelta(seconds=20), on_progress=looks.append
    )

    assert operation.has_succeeded
    assert operation.percent == 100
    assert operation.type == "reindex"
    assert looks[-1] == operation
    entry = client.tags.get("00081010")
    assert (entry.vr, entry.level, entry.status, entry.is_query_enabled) == ("SH", "study", "ready", True)
    assert {tag.path for tag in client.tags.all()} >= {"00081010", "00280010"}
    assert len(client.tags.page(limit=1, offset=1)) == 1
    assert len(client.search_studies({"00081010": "STATION", "StudyInstanceUID": study.uid})) == 1
    assert client.tags.errors("00081010") == list(client.tags.all_errors("00081010")) == []
    assert client.tags.set_query_status("00081010", enabled=False).is_query_enabled is False
    client.tags.delete("00081010")
    client.tags.delete("Rows")
    with pytest.raises(NotFound):
        client.tags.get("00081010")
    with pytest.raises(Refused):
        client.tags.add([QueryTag(path="PatientID", level="study")])


def test_waiting_for_an_operation_ends_in_time(tmp_path):
    with (
        Emulator(tmp_path, operation_delay=1, fsync=False) as slow,
        DicomWebClient(slow.url) as client,
    ):
        operation_id = client.tags.add([QueryTag(path="00081010", level="study")])
        with pytest.raises(Unavailable) as raised:
            client.operations.wait(operation_id, give_up_after=timedelta(seconds=0.2))
        stop = threading.Event()
        stop.set()
        assert client.operations.wait(operation_id, stop=stop).is_running
        with pytest.raises(NotFound):
            client.operations.get("0" * 32)

    assert raised.value.timed_out


def test_bulk_update_changes_a_study_and_the_original_stays(client, study):
    changes = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "New^Name"}]}}
    operation = client.operations.wait(
        client.bulk_update([study.uid], changes), every=timedelta(seconds=0.05), give_up_after=timedelta(seconds=20)
    )
    first = study.sop_uids[0]

    assert operation.has_succeeded
    new = client.retrieve_metadata(study.uid, study.series[0], first).items[0]
    old = client.retrieve_metadata(study.uid, study.series[0], first, original=True).items[0]
    assert value_of(new, "PatientName") == {"Alphabetic": "New^Name"}
    assert value_of(old, "PatientName") == {"Alphabetic": "Test^Patient"}
    with client.retrieve_instance(study.uid, study.series[0], first, original=True) as retrieval:
        assert content(retrieval.only_part()[1].read()) == content(study.files[first].read_bytes())


def workitem() -> dict:
    def text(vr: str, *values: object) -> dict:
        return {"vr": vr, "Value": list(values)} if values else {"vr": vr}

    return {
        "00100010": text("PN", {"Alphabetic": "Work^Item"}),
        "00100020": text("LO", "W1"),
        "00100030": text("DA"),
        "00100040": text("CS"),
        "00380010": text("LO"),
        "00380014": text("SQ"),
        "00404041": text("CS", "READY"),
        "00404005": text("DT", "20260101120000"),
        "00404010": text("DT"),
        "00404011": text("DT"),
        "00404018": text("SQ"),
        "00404021": text("SQ"),
        "00404025": text("SQ"),
        "00404026": text("SQ"),
        "00404027": text("SQ"),
        "00404034": text("SQ"),
        "0040A370": text("SQ"),
        "00741000": text("CS", "SCHEDULED"),
        "00741200": text("CS", "MEDIUM"),
        "00741202": text("LO"),
        "00741204": text("LO", "a label"),
        "00741210": text("SQ"),
        "00741224": text("SQ"),
        "00080082": text("SQ"),
        "00081195": text("UI"),
    }


def test_workitem_from_its_creation_to_its_end(client):
    uid, transaction = fresh_uid(7), fresh_uid(8)

    assert client.workitems.add(workitem(), uid) == uid
    assert value_of(client.workitems.get(uid), "PatientID") == "W1"
    assert len(client.workitems.search({"PatientID": "W1"})) == 1
    client.workitems.change_state(uid, "IN PROGRESS", transaction_uid=transaction)
    client.workitems.update(uid, {"00741204": {"vr": "LO", "Value": ["another label"]}}, transaction_uid=transaction)
    with pytest.raises(Refused):
        client.workitems.change_state(uid, "IN PROGRESS", transaction_uid=transaction)
    with pytest.raises(Refused):
        client.workitems.add(workitem(), uid)
    with pytest.raises(NotFound):
        client.workitems.get(fresh_uid(7))
    with pytest.raises(ValueError, match="no workitem state"):
        client.workitems.change_state(uid, "DONE", transaction_uid=transaction)


def test_scheduled_workitem_can_be_cancelled(client):
    uid = client.workitems.add(workitem(), fresh_uid(7))

    client.workitems.request_cancel(uid)

    assert value_of(client.workitems.get(uid), "ProcedureStepState") == "CANCELED"


def test_partitions_keep_equal_instances_apart(tmp_path):
    path = write_instance(tmp_path / "x", study_uid=(uid := fresh_uid(1)))
    with Emulator(tmp_path / "data", partitions=True, fsync=False) as emulator:
        one = DicomWebClient(emulator.url, partition="clinic-1")
        two = DicomWebClient(emulator.url, partition="clinic-2")
        assert one.store([path]).is_all_stored
        assert two.store([path]).is_all_stored
        one.delete(uid)
        assert len(two.search_studies({"StudyInstanceUID": uid})) == 1
        assert {"clinic-1", "clinic-2"} <= {partition.name for partition in one.partitions()}


def test_partitions_that_are_off_are_refused(client):
    with pytest.raises(Refused):
        client.partitions()


def test_probe_tells_azure_and_its_versions(server, client):
    capabilities = client.probe(try_writes=True)

    assert (capabilities.kind, capabilities.api_version) == ("azure", 2)
    assert capabilities.has_change_feed
    assert capabilities.has_query_tags
    assert capabilities.takes_single_part
    assert capabilities.duplicates == "refused"
    assert "application/dicom+json" in capabilities.accepts
    assert 'multipart/related; type="application/dicom+xml"' not in capabilities.accepts
    with DicomWebClient(f"{server.root}/v1") as other:
        assert other.probe().api_version == 1


def test_probe_says_that_the_version_is_missing(server):
    with DicomWebClient(server.root) as client:
        capabilities = client.probe()

    assert not capabilities.searches
    assert any("/v2" in note for note in capabilities.notes)
    with DicomWebClient(server.root) as client, pytest.raises(NotFound, match="/v2"):
        client.search_studies()


def test_sdk_methods_do_what_they_promise(server, tmp_path):
    """The old one sent one request for all, overwrote equal stems, and searched for a constant patient."""
    study_uid, series_uid = fresh_uid(1), fresh_uid(2)
    for number in range(3):
        folder = tmp_path / "in" / str(number)
        folder.mkdir(parents=True)
        write_instance(
            folder / "same.dcm", study_uid=study_uid, series_uid=series_uid, patient_id=f"SDK{study_uid[-6:]}"
        )
    (tmp_path / "in" / "readme.txt").write_text("not sent")
    sdk = DicomClient(server.url)

    (result,) = sdk.upload_dicom_folder(tmp_path / "in")
    again = sdk.upload_dicom_file(tmp_path / "in" / "0" / "same.dcm")
    files = sdk.download_dicom(tmp_path / "out", study_uid, series_uid)

    assert len(result.stored) == 3
    assert len(again.failed) == 1, "it is there already, which is no error"
    assert len(files) == 3
    assert sdk.get_patient_study_ids(f"SDK{study_uid[-6:]}") == [study_uid]
    assert sdk.delete_dicom(study_uid) is True
    assert sdk.delete_dicom_file(study_uid) is False
    with pytest.raises(FileNotFoundError):
        sdk.upload_dicom_folder(tmp_path / "out" / "nowhere")
    with pytest.raises(FileNotFoundError):
        sdk.upload_dicom_file(tmp_path / "nowhere")
    (tmp_path / "in" / "broken.dcm").write_bytes(b"x")
    with pytest.raises(Refused, match="1 were refused"):
        sdk.upload_dicom_file(tmp_path / "in" / "broken.dcm")


def test_batches_hold_limits_and_no_uid_twice_and_say_what_they_skip(tmp_path):
    uid = fresh_uid(3)
    for number in range(5):
        write_instance(tmp_path / f"{number}", sop_uid=uid if number in {1, 2} else "")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(tmp_path / "0")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    skipped: dict[str, str] = {}

    made = list(batches([tmp_path], max_instances=2, on_skip=lambda path, why: skipped.update({path.name: why})))

    assert [[part.path.name for part in batch] for batch in made] == [["0", "1"], ["2", "3"], ["4"]]
    assert set(skipped) == {"text", "empty", "link", "pipe", "elsewhere"}
    assert skipped["elsewhere"] == "is a link to a folder, which is not followed: name it to have it stored"
    assert [len(batch) for batch in batches([tmp_path], max_bytes=1)] == [1] * 5


def test_next_batch_is_read_while_the_last_is_on_its_way(tmp_path):
    asked_for = [threading.Event() for _ in range(5)]

    def paths() -> Iterator[Path]:
        for number, event in enumerate(asked_for):
            event.set()
            yield write_instance(tmp_path / f"{number}")

    made = batches(paths(), max_instances=1)
    next(made)

    assert asked_for[2].wait(10), "the second batch is whole only when the third file is looked at"
    assert not asked_for[4].is_set(), "one batch ahead, and one being made"
    assert len(list(made)) == 4


def test_reading_ahead_ends_with_its_caller_and_tells_it_what_went_wrong(tmp_path):
    def readers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "ahead"]

    def paths() -> Iterator[Path]:
        yield write_instance(tmp_path / "a")
        yield tmp_path / "missing"
        raise ArithmeticError("of the caller's own")

    told: list[tuple[str, int]] = []
    made = batches(paths(), on_skip=lambda path, _why: told.append((path.name, threading.get_ident())))
    with pytest.raises(ArithmeticError, match="own"):
        next(made)
    many = batches((write_instance(tmp_path / f"{number}") for number in range(99)), max_instances=1)
    next(many)
    begun = readers()
    many.close()
    for thread in begun:
        thread.join(10)

    assert told == [("missing", threading.get_ident())]
    assert begun
    assert not readers()


def many_items(tag: int, count: int) -> bytes:
    def undefined(which: int, items: bytes) -> bytes:
        return element(which, "SQ", items + delimiter(0xE0DD), length=0xFFFFFFFF, pad=False)

    code = item(element(0x00080100, "SH", "CODE") + element(0x00080104, "LO", "Meaning"), undefined=True)
    return undefined(tag, item(undefined(0x00089124, code * 2), undefined=True) * count)


def reading_uids_of(path: Path) -> tuple[list[StorePart], int, int]:
    """What a batch is made of, and how many bytes were read and held in memory for that."""
    tracemalloc.start()
    read_before = bytes_read()
    try:
        parts = [part for batch in batches([path]) for part in batch]
        return parts, bytes_read() - read_before, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])


@pytest.mark.slow
def test_file_of_many_frames_is_read_once_in_little_memory(tmp_path):
    """One of 60,000 frames, 31 MB, took 57 s and 983 MB to find three UIDs in its first kilobyte."""
    path = write_instance(tmp_path / "frames", sop_uid="1.2.3.4", extra=many_items(0x52009230, 60_000))

    parts, read, held = reading_uids_of(path)

    assert [part.sop_uid for part in parts] == ["1.2.3.4"]
    assert read < path.stat().st_size + 500_000
    assert held < 4_000_000
    read_before = bytes_read()
    with path.open("rb") as file:
        assert read_uids(file.fileno()) is not None
    assert bytes_read() - read_before < 500_000, "what is downloaded is read up to its UIDs only"


def test_store_skips_what_the_daemon_rejects_in_the_same_words(tmp_path):
    """A file cut short was sent, and refused or stored by the server's grace; the daemon never sends it."""
    whole = instance_bytes(sop_uid="1.2.3")
    files = {
        "cut": whole[:-100],
        "cut in its meta": whole[:200],
        "cut in its head": whole[:100],
        "empty": b"",
        "zeros": bytes(4096),
        "text": b"hello",
        "gzip": gzip.compress(whole),
        "no uids": part10(element(0x00080018, "UI", "1.2.3") + element(0x00280010, "US", 2), sop_uid="1.2.3"),
        "no uid": part10(element(0x00080018, "UI", "../1") + element(0x00280010, "US", 2), sop_uid="1.2.3"),
        "dicomdir": file_meta(sop_class="1.2.840.10008.1.3.10", sop_uid="1.2.3") + element(0x00041130, "CS", "X"),
        "torn": instance_bytes(sop_uid="1.2.3", extra=element(0x00091010, "SQ", item(b"")[:6], length=0xFFFFFFFF)),
        "deep": part10(nested(70), sop_uid="1.2.3"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    skipped: dict[str, str] = {}

    made = list(batches([tmp_path], on_skip=lambda path, why: skipped.update({path.name: why})))

    def words(name: str) -> str:
        with (tmp_path / name).open("rb") as file:
            found = inspect(file.fileno())
        assert found.verdict not in (Verdict.WHOLE, Verdict.ZEROS)
        return found.reason_text

    assert made == []
    assert skipped == {name: words(name) for name in files}
    assert (skipped["cut"], skipped["text"]) == ("the file ends before its lengths say", "not a DICOM file")


def test_store_sends_what_the_daemon_takes(tmp_path, client):
    """A data set without File Meta gets the same as the daemon's; pixels that are all zeros may be meant so."""
    bare = instance_bytes(meta=False)
    (tmp_path / "bare").write_bytes(bare)
    write_instance(tmp_path / "zeros", pixels=bytes(16), rows=4, columns=4)

    result = [
        client.store(batch) for batch in batches([tmp_path], on_skip=lambda path, why: pytest.fail(f"{path}: {why}"))
    ]

    assert [len(each.stored) for each in result] == [2]


def nested(depth: int) -> bytes:
    """A data set of sequences in sequences."""
    content = element(0x00080100, "SH", "X")
    for _ in range(depth):
        content = element(0x0040A730, "SQ", item(content), pad=False)
    return content


@pytest.mark.slow
@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, DEFLATED])
def test_what_stands_before_the_uids_takes_no_memory(tmp_path, transfer_syntax):
    uids = [
        element(0x00080018, "UI", "1.2.3.4"),
        element(0x0020000D, "UI", "1.2.5"),
        element(0x0020000E, "UI", "1.2.6"),
    ]
    dataset = b"".join([uids[0], many_items(0x00081115, 20_000), *uids[1:]])
    path = tmp_path / "references"
    path.write_bytes(
        part10(dataset + many_items(0x52009230, 20_000), sop_uid="1.2.3.4", transfer_syntax=transfer_syntax)
    )

    parts, _, held = reading_uids_of(path)

    assert [part.sop_uid for part in parts] == ["1.2.3.4"]
    assert held < 4_000_000


def test_uid_that_is_not_in_its_place_is_looked_for(tmp_path):
    study, series = element(0x0020000D, "UI", "1.2.5"), element(0x0020000E, "UI", "1.2.6")
    behind = part10(series + study + element(0x00280010, "US", 2) + element(0x00080018, "UI", "1.2.3"), sop_uid="1.2.3")
    (tmp_path / "behind").write_bytes(behind)
    (tmp_path / "missing").write_bytes(part10(series + study + element(0x00280010, "US", 2), sop_uid="1.2.3"))
    (tmp_path / "unsafe").write_bytes(part10(element(0x00080018, "UI", "../1") + study + series, sop_uid="1.2.3"))

    assert [[part.sop_uid for part in batch] for batch in batches([tmp_path])] == [["1.2.3"]]


def test_keywords_and_tags_name_the_same():
    assert tag_of("StudyInstanceUID") == tag_of("0020000d") == "0020000D"
    assert tag_of("PatientSex") == "00100040"
    with pytest.raises(ValueError, match="no DICOM attribute"):
        tag_of("Nonsense")
