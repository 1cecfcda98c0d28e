"""The whole line on the embedded server: what becomes of the files, by real ``ingestd run`` processes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from ingestd.lifecycle import State
from tests.builders import fresh_uid, instance_bytes, write_instance
from tests.emulating import Identity, dataset_of, delete, file_of, post, stores
from tests.ports import own_port
from tests.running import QUICK_INBOX, Site, descendants, wait_until

PATIENT = "Canary^Patient"
PATIENT_ID = "CANARY-4711"


@dataclass(frozen=True)
class Image:
    """One file, and its identity."""

    identity: Identity
    content: bytes

    @property
    def sop_uid(self) -> str:
        return self.identity[2]


def make_image(like: Image | None = None, *, study_uid: str = "", pixels: bytes | None = None, rows: int = 16) -> Image:
    """A whole CT image with UIDs of its own, or with those of another."""
    identity = like.identity if like else (study_uid or fresh_uid(1), fresh_uid(2), fresh_uid(3))
    content = instance_bytes(
        study_uid=identity[0],
        series_uid=identity[1],
        sop_uid=identity[2],
        patient_name=PATIENT,
        patient_id=PATIENT_ID,
        rows=rows,
        columns=rows,
        pixels=pixels,
    )
    return Image(identity, content)


def altered(image: Image) -> Image:
    """The same identity with one other pixel."""
    content = bytearray(image.content)
    content[-1] ^= 1
    return Image(image.identity, bytes(content))


def drop(site: Site, name: str, content: bytes) -> Path:
    """Put a file into the drop folder at once."""
    path = site.drop / name
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(content)
    aside.rename(path)
    return path


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


@pytest.fixture
def site(tmp_path: Path, server: Emulator) -> Site:
    return Site(tmp_path / "site", server.url, reader={"processes": 2})


def posts_of(server: Emulator, image: Image) -> list[str]:
    """How each request that brought this instance ended for it."""
    return [line["result"] for line in stores(server.requests) if line["sop"] == image.sop_uid]


def server_digest(server: Emulator, image: Image) -> str | None:
    content = file_of(server.url, image.identity)
    return None if content is None else hashlib.sha256(dataset_of(content)).hexdigest()


def digest(image: Image) -> str:
    return hashlib.sha256(dataset_of(image.content)).hexdigest()


def test_files_dropped_in_a_folder_end_confirmed_on_the_server(site: Site, server: Emulator):
    study_uid = fresh_uid(1)
    images = [make_image(study_uid=study_uid, rows=16 + number) for number in range(5)] + [make_image()]
    for number, image in enumerate(images):
        drop(site, f"deep/er/IMAGE{number}" if number % 2 else f"image {number}.dcm", image.content)

    done = site.run_once()

    assert done.returncode == 0, done.stderr
    assert site.states() == {"CONFIRMED": 6}
    assert [server_digest(server, image) for image in images] == [digest(image) for image in images]
    assert [path for path in site.drop.rglob("*") if path.is_file()] == []
    assert all(posts_of(server, image) == ["stored"] for image in images)


def test_status_json_says_what_is_where(site: Site):
    drop(site, "one", make_image().content)
    site.run_once()

    said = json.loads(site.command("status", "--json").stdout)

    assert said["states"]["CONFIRMED"] == 1
    assert said["oldest_unconfirmed_seconds"] is None
    assert said["destination"]["url"] == site.url


def test_second_copy_of_the_same_object_is_a_duplicate_and_is_not_sent(site: Site, server: Emulator):
    image = make_image()
    drop(site, "first", image.content)
    site.run_once()
    drop(site, "second", b"\1" * 128 + image.content[128:])

    done = site.run_once()

    assert done.returncode == 0, done.stderr
    assert site.states() == {"CONFIRMED": 1, "DUPLICATE": 1}
    assert posts_of(server, image) == ["stored"]


def test_same_identity_with_other_content_is_a_conflict_and_both_are_kept(site: Site, server: Emulator):
    image = make_image()
    drop(site, "first", image.content)
    site.run_once()
    drop(site, "second", altered(image).content)

    done = site.run_once()

    assert done.returncode == 1, done.stderr
    assert site.states() == {"CONFIRMED": 1, "CONFLICT": 1}
    kept = {entry.state: entry.file for entry in site.entries()}
    assert kept[State.CONFLICT] is not None
    assert kept[State.CONFLICT].read_bytes() == altered(image).content
    assert kept[State.CONFIRMED] is not None
    assert kept[State.CONFIRMED].read_bytes() == image.content
    assert server_digest(server, image) == digest(image)


def test_cut_file_waits_and_only_then_is_rejected_as_truncated(site: Site):
    path = drop(site, "cut", make_image().content[:-100])
    dropped_at = datetime.now(UTC)

    with site.start():
        site.wait_for({"REJECTED": 1})

    entry = site.entries()[0]
    assert entry.admitted_at - dropped_at > timedelta(seconds=2)
    assert entry.reason == "truncated"
    assert entry.note != ""
    assert not path.exists()
    assert entry.file is not None
    assert entry.file.is_file()
    assert "rejected" in entry.file.parts


def inbox_counts(site: Site) -> dict[str, int]:
    """What the daemon last reported of its only inbox."""
    inboxes = json.loads(site.command("status", "--json").stdout)["inboxes"]
    return dict(inboxes[0]["counts"]) if inboxes else {}


def test_cut_file_that_grows_whole_is_taken(tmp_path: Path, server: Emulator):
    inbox = {"path": "./drop", "settle": "100ms", "incomplete_after": "60s"}
    site = Site(tmp_path / "site", server.url, inboxes=[inbox])
    image = make_image()
    path = drop(site, "growing", image.content[:-200])

    with site.start():
        wait_until(lambda: inbox_counts(site).get("waiting_incomplete"), what="the file waiting as incomplete")
        with path.open("ab") as file:
            file.write(image.content[-200:])
        site.wait_for({"CONFIRMED": 1})

    assert server_digest(server, image) == digest(image)


def test_clutter_is_listed_and_fails_nothing(site: Site):
    # A name that may still be given its last form is none of it for as long as that is to be hoped for.
    site.configure(inboxes=[{"path": "./drop", **QUICK_INBOX, "incomplete_after": "10m"}])
    drop(site, "notes.txt", b"remember the milk\n" * 20)
    drop(site, "Thumbs.db", b"thumbs")
    drop(site, "half.part", b"half")
    drop(site, "image", make_image().content)

    done = site.run_once()

    assert done.returncode == 0, done.stderr
    assert site.states() == {"CONFIRMED": 1, "REJECTED": 1}
    assert [entry.reason for entry in site.entries() if entry.state == State.REJECTED] == ["not_dicom"]
    assert (site.drop / "Thumbs.db").exists()
    assert (site.drop / "half.part").exists()


def test_links_pipes_and_devices_are_left_where_they_are(site: Site, tmp_path: Path):
    # Once they have lain for that long, they are an alarm and the exit code is 1, however slow the machine is.
    site.configure(inboxes=[{"path": "./drop", **QUICK_INBOX, "incomplete_after": "10m"}])
    secret = write_instance(tmp_path / "elsewhere")
    (site.drop / "link").symlink_to(secret)
    os.mkfifo(site.drop / "pipe")
    drop(site, "image", make_image().content)

    done = site.run_once()

    assert done.returncode == 0, done.stderr
    assert site.states() == {"CONFIRMED": 1}
    assert (site.drop / "link").is_symlink()
    assert (site.drop / "pipe").exists()
    assert inbox_counts(site)["not_regular"] == 2


def test_server_that_is_away_costs_no_file_an_attempt(tmp_path: Path):
    port = own_port()
    site = Site(tmp_path / "site", f"http://127.0.0.1:{port}/v2")
    images = [make_image() for _ in range(3)]
    for number, image in enumerate(images):
        drop(site, f"image{number}", image.content)

    with site.start():
        site.wait_for({"PENDING": 3})
        wait_until(
            lambda: json.loads(site.command("status", "--json").stdout)["destination"]["paused"], what="the pause"
        )
        with Emulator(port=port, fsync=False) as server:
            site.wait_for({"CONFIRMED": 3})
            assert all(posts_of(server, image) == ["stored"] for image in images)

    assert [entry.charged for entry in site.entries()] == [0, 0, 0]


@pytest.mark.slow
def test_pause_of_the_last_run_ends_with_the_first_post(tmp_path: Path):
    """It stood in the ledger for ever: unhealthy a minute later, though all was confirmed."""
    port = own_port()
    site = Site(tmp_path / "site", f"http://127.0.0.1:{port}/v2")
    drop(site, "image", make_image().content)
    with site.start() as daemon:
        site.wait_for({"PENDING": 1})
        wait_until(lambda: site.status()["destination"]["paused"], what="the pause")
        daemon.terminate()

    with Emulator(port=port, fsync=False), site.start():
        assert site.status()["destination"]["paused"] or site.states() == {"CONFIRMED": 1}
        site.wait_for({"CONFIRMED": 1})
        wait_until(lambda: not site.status()["destination"]["paused"], what="its end")


def test_connection_dropped_after_storing_is_settled_by_asking_not_by_sending_again(site: Site, server: Emulator):
    server.faults.add("drop_after_store", count=1)
    image = make_image()
    drop(site, "image", image.content)

    with site.start():
        site.wait_for({"CONFIRMED": 1})

    story = site.stories()[0]
    assert [event.after for event in story.history] == ["PENDING", "SENDING", "UNCERTAIN", "CONFIRMED"]
    assert posts_of(server, image) == ["stored"]


def test_connection_dropped_before_storing_is_sent_again_once_it_is_proven_absent(site: Site, server: Emulator):
    server.faults.add("drop_after_body", count=1)
    image = make_image()
    drop(site, "image", image.content)

    with site.start():
        site.wait_for({"CONFIRMED": 1})

    moves = [(event.before, event.after, event.reason) for event in site.stories()[0].history]
    assert ("UNCERTAIN", "PENDING", "absent") in moves
    assert posts_of(server, image) == ["stored"]


@pytest.mark.slow
def test_instance_acknowledged_and_then_lost_is_sent_again(tmp_path: Path, server: Emulator):
    reconcile = {"grace": "1s"}
    site = Site(tmp_path / "site", server.url, reconcile=reconcile)
    server.faults.add("lose_stored", count=1)
    image = make_image()
    drop(site, "image", image.content)

    with site.start():
        site.wait_for({"CONFIRMED": 1})

    assert server_digest(server, image) == digest(image)
    assert posts_of(server, image) == ["stored", "stored"]


def test_object_altered_behind_our_back_before_we_send_ends_as_a_conflict(site: Site, server: Emulator):
    image = make_image()
    post(server.url, altered(image).content)
    drop(site, "image", image.content)

    with site.start():
        site.wait_for({"CONFLICT": 1})

    assert State.CONFIRMED not in [event.after for event in site.stories()[0].history]
    assert server_digest(server, image) == digest(altered(image))
    entry = site.entries()[0]
    assert entry.file is not None
    assert entry.file.read_bytes() == image.content


def test_object_already_there_with_our_content_is_confirmed_without_a_second_copy(site: Site, server: Emulator):
    image = make_image()
    post(server.url, image.content)
    drop(site, "image", image.content)

    with site.start():
        site.wait_for({"CONFIRMED": 1})

    assert server_digest(server, image) == digest(image)
    assert posts_of(server, image) == ["stored", "refused"]


def test_altered_object_dropped_later_never_ends_confirmed(site: Site, server: Emulator):
    image = make_image()
    drop(site, "image", image.content)
    with site.start():
        site.wait_for({"CONFIRMED": 1})
        drop(site, "later", altered(image).content)
        site.wait_for({"CONFIRMED": 1, "CONFLICT": 1})

    assert site.entry_of("later").state == State.CONFLICT
    assert server_digest(server, image) == digest(image)


def test_server_that_keeps_another_content_is_found_out_by_the_content_check(tmp_path: Path, server: Emulator):
    site = Site(tmp_path / "site", server.url, reconcile={"verify": "content"})
    server.faults.add("alter_stored", count=1)
    image = make_image()
    drop(site, "image", image.content)

    with site.start():
        site.wait_for({"CONFLICT": 1})

    assert State.CONFIRMED not in [event.after for event in site.stories()[0].history]


def test_object_deleted_on_the_server_is_reported_and_not_sent_again(site: Site, server: Emulator):
    image = make_image()
    drop(site, "image", image.content)

    with site.start():
        site.wait_for({"CONFIRMED": 1})
        delete(server.url, image.identity)
        # It was proven by its content, and nothing waits: the feed is read once a minute.
        site.wait_for({"DELETED": 1})

        assert site.command("status", "--exit-code").returncode == 1
        drop(site, "exported again", image.content)
        site.wait_for({"DELETED": 1, "CONFIRMED": 1})
        assert site.command("status", "--exit-code").returncode == 0

    assert posts_of(server, image) == ["stored", "stored"]


def test_refused_file_fails_alone_and_its_study_goes_on(site: Site, server: Emulator):
    study_uid = fresh_uid(1)
    good = [make_image(study_uid=study_uid) for _ in range(4)]
    series_uid, sop_uid = fresh_uid(2), fresh_uid(3)
    bad = instance_bytes(study_uid=study_uid, series_uid=series_uid, sop_uid=sop_uid, patient_id=None)
    drop(site, "bad", bad)
    for number, image in enumerate(good):
        drop(site, f"good{number}", image.content)

    with site.start():
        site.wait_for({"CONFIRMED": 4, "FAILED": 1})

    failed = site.entry_of("bad")
    assert failed.file is not None
    assert failed.file.read_bytes() == bad
    assert failed.note != ""
    assert all(posts_of(server, image) == ["stored"] for image in good)


def test_file_in_place_is_sent_from_where_it_is_and_never_touched(tmp_path: Path, server: Emulator):
    site = Site(tmp_path / "site", server.url, inboxes=[{"path": "./drop", "take": "in_place", "settle": "100ms"}])
    image = make_image()
    path = drop(site, "archive/image", image.content)
    before = path.stat()

    site.run_once()
    site.run_once()

    assert site.states() == {"CONFIRMED": 1}
    assert path.read_bytes() == image.content
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert posts_of(server, image) == ["stored"]


def test_confirmed_file_leaves_the_spool_when_its_time_is_up(tmp_path: Path, server: Emulator):
    site = Site(tmp_path / "site", server.url, spool={"retain": "0s"})
    drop(site, "image", make_image().content)

    with site.start():
        site.wait_for({"CONFIRMED": 1})
        files = site.spool / "files"
        wait_until(lambda: not [path for path in files.rglob("*") if path.is_file()], what="an empty spool")

    assert site.states() == {"CONFIRMED": 1}


def test_file_that_kills_its_reader_is_rejected_and_the_daemon_lives(tmp_path: Path, server: Emulator):
    """The file is only large: what kills its reader is this test, each time that the reader is at it."""
    site = Site(tmp_path / "site", server.url)
    image = make_image()
    with (site.drop / ".huge.part").open("wb") as file:
        file.write(instance_bytes(rows=1, columns=1)[:-14])
        # Pixel Data of 4 GB that is not there: a hole, which costs no disk and seconds to read.
        size = 4_000_000_000
        file.write(b"\xe0\x7f\x10\x00OW\0\0" + size.to_bytes(4, "little"))
        file.truncate(file.tell() + size)

    with site.start() as daemon:
        (site.drop / ".huge.part").rename(site.drop / "huge")

        def is_rejected() -> bool:
            # One that had only just opened it may be taken for one that died by itself.
            for child in busy_children(daemon.pid):
                os.kill(child, signal.SIGKILL)
            return site.states() == {"REJECTED": 1}

        wait_until(is_rejected, what="that it is rejected", every=0.05)
        drop(site, "image", image.content)
        site.wait_for({"REJECTED": 1, "CONFIRMED": 1})
        assert daemon.is_running()

    assert site.entry_of("huge").reason == "killed_reader"
    assert server_digest(server, image) == digest(image)


def busy_children(pid: int) -> list[int]:
    """The daemon's children that have the huge file open."""
    found = []
    for child in descendants(pid):
        try:
            links = [link.readlink().name for link in Path(f"/proc/{child}/fd").iterdir()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "huge" in links:
            found.append(child)
    return found


def test_no_log_line_names_a_patient_a_file_or_a_uid(site: Site, server: Emulator):
    server.faults.add("drop_after_store", count=1)
    image = make_image()
    drop(site, "CANARY_FILE_1", image.content)
    drop(site, "CANARY_FILE_2", altered(image).content)
    drop(site, "CANARY_FILE_3", make_image().content[:-50])
    drop(site, "CANARY_FILE_4", b"CANARY text\n" * 30)

    with site.start() as daemon:
        wait_until(
            lambda: sum(site.states().get(state, 0) for state in ("CONFIRMED", "CONFLICT", "REJECTED")) == 4,
            what="four ends",
        )
        daemon.terminate()
        log = daemon.log.read_text().lower()

    assert "inbox." in log
    found = [word for word in ("canary", *image.identity) if word.lower() in log]
    assert found == []


@pytest.mark.slow
def test_failed_file_that_the_server_has_is_told_and_confirmed_without_another_post(tmp_path: Path, server: Emulator):
    """A server, or a proxy before it, stores a file and refuses it: that it is FAILED here is no news of it there."""
    site = Site(tmp_path / "site", server.url, destination={"kind": "other"}, retry={"max_attempts": 1})
    image = make_image()
    server.faults.add("processing_failure", uid=image.sop_uid, count=1)
    with site.start():
        drop(site, "other", make_image().content)
        site.wait_for({"CONFIRMED": 1})
        drop(site, "image", image.content)
        site.wait_for({"CONFIRMED": 1, "FAILED": 1})
    post(server.url, image.content)
    posts = posts_of(server, image)
    failed = str(site.entry_of("image").delivery_id)

    told = site.command("reconcile", "--full", "--json")
    retried = site.command("retry", failed)
    done = site.run_once()

    assert [str(row["id"]) for row in json.loads(told.stdout)["failed_but_there"]] == [failed], told
    assert told.returncode == 1
    assert (retried.returncode, done.returncode) == (0, 0), done
    assert site.states() == {"CONFIRMED": 2}
    assert posts_of(server, image) == posts
    assert site.stories()[-1].history[-1].evidence["content"] == "same"
