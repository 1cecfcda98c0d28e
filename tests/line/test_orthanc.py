"""The whole line against a real Orthanc, which has no change feed and keeps the older of two objects without a word."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ingestd.lifecycle import State
from tests.builders import fresh_uid, instance_bytes
from tests.emulating import dataset_of
from tests.orthanc import Orthanc, requires_orthanc
from tests.running import Site, wait_until

pytestmark = [requires_orthanc, pytest.mark.orthanc]

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def site(tmp_path: Path, orthanc: Orthanc) -> Site:
    return Site(tmp_path / "site", orthanc.url)


def make(sop_uid: str, *, study_uid: str = "", last: int = 7) -> bytes:
    """A CT image of 32 x 32 whose last pixel byte is as told; the same UIDs for the same ``sop_uid``."""
    return instance_bytes(
        study_uid=study_uid or f"{sop_uid}.1",
        series_uid=f"{study_uid or sop_uid}.2",
        sop_uid=sop_uid,
        rows=32,
        columns=32,
        pixels=bytes(range(256)) * 7 + bytes(range(255)) + bytes([last]),
    )


def digest(content: bytes) -> str:
    return hashlib.sha256(dataset_of(content)).hexdigest()


def test_files_dropped_in_a_folder_end_confirmed_on_orthanc(site: Site, orthanc: Orthanc):
    study_uid = fresh_uid(1)
    files = {fresh_uid(3): b"" for _ in range(6)}
    for number, sop_uid in enumerate(files):
        files[sop_uid] = make(sop_uid, study_uid=study_uid if number else "")
        (site.drop / f"image{number}").write_bytes(files[sop_uid])

    done = site.run_once()

    assert done.returncode == 0, done.stderr
    assert site.states() == {"CONFIRMED": 6}
    assert {sop_uid: digest(orthanc.file_of(sop_uid)) for sop_uid in files} == {
        sop_uid: digest(content) for sop_uid, content in files.items()
    }


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the service's sample files are not here (../shared/data)")
def test_the_services_own_sample_files_end_confirmed_on_orthanc(site: Site, orthanc: Orthanc):
    samples = sorted(SAMPLES.glob("*.dcm"))
    for path in samples:
        (site.drop / path.name).write_bytes(path.read_bytes())

    done = site.run_once()

    assert done.returncode == 0, done.stderr
    assert site.states() == {"CONFIRMED": len(samples)}
    assert orthanc.count() == len(samples)


def test_altered_object_that_orthanc_already_has_is_a_conflict_and_never_confirmed(site: Site, orthanc: Orthanc):
    """Orthanc answers 200 and lists the instance as stored, and keeps the older object: other programs believe it."""
    sop_uid = fresh_uid(3)
    orthanc.upload(make(sop_uid, last=1))
    (site.drop / "image").write_bytes(make(sop_uid, last=2))

    with site.start():
        site.wait_for({"CONFLICT": 1})

    story = site.stories()[0]
    assert State.CONFIRMED not in [event.after for event in story.history]
    assert digest(orthanc.file_of(sop_uid)) == digest(make(sop_uid, last=1))
    assert story.entry.file is not None
    assert story.entry.file.read_bytes() == make(sop_uid, last=2)


def test_same_object_that_orthanc_already_has_is_confirmed(site: Site, orthanc: Orthanc):
    sop_uid = fresh_uid(3)
    orthanc.upload(make(sop_uid))
    (site.drop / "image").write_bytes(make(sop_uid))

    done = site.run_once()

    assert done.returncode == 0, done.stderr
    assert site.states() == {"CONFIRMED": 1}


def test_altered_object_dropped_later_never_ends_confirmed(site: Site, orthanc: Orthanc):
    sop_uid = fresh_uid(3)
    (site.drop / "first").write_bytes(make(sop_uid, last=1))
    with site.start():
        site.wait_for({"CONFIRMED": 1})
        (site.drop / "later").write_bytes(make(sop_uid, last=2))
        site.wait_for({"CONFIRMED": 1, "CONFLICT": 1})

    assert site.entry_of("later").state == State.CONFLICT
    assert digest(orthanc.file_of(sop_uid)) == digest(make(sop_uid, last=1))


def test_altered_object_is_a_conflict_among_a_study_that_is_new(site: Site, orthanc: Orthanc):
    study_uid = fresh_uid(1)
    sop_uids = [fresh_uid(3) for _ in range(4)]
    orthanc.upload(make(sop_uids[2], study_uid=study_uid, last=1))
    for number, sop_uid in enumerate(sop_uids):
        (site.drop / f"image{number}").write_bytes(make(sop_uid, study_uid=study_uid, last=2))

    with site.start():
        site.wait_for({"CONFIRMED": 3, "CONFLICT": 1})

    assert site.entry_of("image2").state == State.CONFLICT


def test_orthanc_that_is_away_costs_no_file_an_attempt(site: Site, orthanc: Orthanc):
    sop_uid = fresh_uid(3)
    orthanc.stop()
    (site.drop / "image").write_bytes(make(sop_uid))

    with site.start():
        site.wait_for({"PENDING": 1})
        orthanc.restart()
        site.wait_for({"CONFIRMED": 1})

    assert site.entries()[0].charged == 0


def test_killed_while_posting_it_asks_orthanc_before_it_sends_again(site: Site, orthanc: Orthanc):
    study_uid = fresh_uid(1)
    sop_uids = [fresh_uid(3) for _ in range(30)]
    for number, sop_uid in enumerate(sop_uids):
        (site.drop / f"image{number}").write_bytes(make(sop_uid, study_uid=study_uid))

    with site.start() as daemon:
        wait_until(lambda: site.states().get("SENDING"), what="a post", every=0.002)
        daemon.kill()
    with site.start():
        site.wait_for({"CONFIRMED": 30})

    assert orthanc.count() == 30
    after_kill = [[event.after for event in story.history][:3] for story in site.stories()]
    assert [State.PENDING, State.SENDING, State.UNCERTAIN] in after_kill


def test_object_deleted_on_orthanc_is_found_by_the_audit(site: Site, orthanc: Orthanc):
    sop_uid, kept = fresh_uid(3), fresh_uid(3)
    (site.drop / "image").write_bytes(make(sop_uid))
    (site.drop / "kept").write_bytes(make(kept))
    site.run_once()
    orthanc.delete(sop_uid)

    said = site.command("reconcile", "--full")

    assert said.returncode == 1, said.stderr
    assert orthanc.count() == 1
    assert site.entry_of("kept").state == State.CONFIRMED


def test_one_sop_instance_uid_in_two_series_is_confirmed_in_both(site: Site, orthanc: Orthanc):
    """Orthanc answers 404 to a GET of either instance, so that both stayed unproven for ever."""
    study_uid, sop_uid = fresh_uid(1), fresh_uid(3)
    for number in range(2):
        content = instance_bytes(study_uid=study_uid, series_uid=fresh_uid(2), sop_uid=sop_uid, rows=8, columns=8)
        (site.drop / f"image{number}").write_bytes(content)

    with site.start():
        site.wait_for({"CONFIRMED": 2})

    assert all(entry.compared for entry in site.entries())
