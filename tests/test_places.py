"""Nothing outside an inbox is reached through it: every way in is walked component by component, and no link followed.

Whoever may drop files may also move a folder out and put a link in its place, at any moment.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingestd.dicomweb import FileChanged, batches
from ingestd.dicomweb.store_body import StoreBody, StorePart
from ingestd.emulator import Emulator
from ingestd.fs import places
from ingestd.inbox import NotTaken, Spool, Watch, WhyNot
from ingestd.inbox.names import Names
from ingestd.inbox.walk import Walk
from ingestd.reader import CompareJob, InspectJob, Read, ReaderPool, ReencodeJob
from tests.builders import fresh_uid, write_instance
from tests.commanding import as_nobody
from tests.emulating import file_of
from tests.inboxing import Desk, candidate_of, expect_of, policy, take_in
from tests.ports import own_port
from tests.running import QUICK_INBOX, Site, wait_until

IN_PLACE = {"inboxes": [{"path": "./drop", "take": "in_place", **QUICK_INBOX}]}


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop-a"
    folder.mkdir()
    return folder


def swap(folder: Path, outside: Path) -> Path:
    """Move a folder out of its inbox and put a link to another one in its place; return where it went."""
    moved = outside.with_name(f"moved-{folder.name}")
    folder.rename(moved)
    folder.symlink_to(outside, target_is_directory=True)
    return moved


def outside_of(base: Path) -> Path:
    folder = base / "outside"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("relative", ["x", "a/x", "a/b/x"])
def test_a_place_is_reached_only_where_no_component_is_a_link(tmp_path: Path, relative: str) -> None:
    root = tmp_path / "root"
    path = root / relative
    path.parent.mkdir(parents=True)
    path.write_bytes(b"ours")
    place = places.below(str(root), relative)

    os.close(places.open_file(place))
    assert places.look(place).st_ino == path.stat().st_ino
    assert not places.is_gone(place)
    assert places.below_of(str(path), relative) == place
    assert places.path_of(place) == str(path)

    top = root / relative.split("/", maxsplit=1)[0]
    top.rename(tmp_path / "moved")
    top.symlink_to(tmp_path / "moved")
    assert path.read_bytes() == b"ours"
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        places.open_file(place)
    assert places.is_gone(place)


@pytest.mark.parametrize("relative", ["../x", "a/../../x", ".", "a/.."])
def test_no_place_leads_above_its_folder(tmp_path: Path, relative: str) -> None:
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "x").write_bytes(b"not ours")

    with pytest.raises(NotADirectoryError):
        places.open_file(places.below(str(tmp_path / "root"), relative))


def test_the_inbox_itself_may_be_a_link_that_an_administrator_made(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")

    os.close(places.open_file(places.below(str(tmp_path / "link"), "x")))


def test_a_file_under_a_folder_that_became_a_link_is_not_handed_out(tmp_path: Path, drop: Path) -> None:
    outside = outside_of(tmp_path)
    (drop / "sub").mkdir()
    (drop / "sub" / "x").write_bytes(b"x")
    with Desk(tmp_path, policy(tmp_path)) as desk:
        desk.settle()
        moved = swap(drop / "sub", outside)
        os.link(moved / "x", outside / "x")

        assert desk.ready_now() == []
        assert desk.report().waiting_settle == 0


def watched(root: Path) -> int:
    """How many folders this process's observers watch."""
    descriptors = Path("/proc/self/fdinfo").iterdir()
    lines: list[str] = []
    for descriptor in descriptors:
        try:
            lines += descriptor.read_text().splitlines()
        except OSError:
            continue
    inodes = {f"ino:{path.stat().st_ino:x}" for path in [root, *root.rglob("*")] if path.is_dir()}
    return sum(line.startswith("inotify ") and not inodes.isdisjoint(line.split()) for line in lines)


def armed(base: Path) -> Desk:
    desk = Desk(base, policy(base, watch=Watch.EVENTS))
    desk.inboxes.open()
    desk.look_until(lambda _: all(report.scans for report in desk.inboxes.reports()))
    return desk


def test_a_folder_that_left_the_inbox_is_watched_no_longer(tmp_path: Path, drop: Path) -> None:
    (drop / "stays" / "deep").mkdir(parents=True)
    (drop / "sub" / "deep").mkdir(parents=True)
    with armed(tmp_path) as desk:
        assert (watched(drop / "stays"), watched(drop / "sub")) == (2, 2)
        (drop / "stays").rename(drop / "renamed")
        moved = swap(drop / "sub", outside_of(tmp_path))

        wait_until(lambda: watched(moved) == 0, what="the end of the watches on what left")
        assert watched(drop / "renamed") == 2
        (drop / "renamed" / "deep" / "x").write_bytes(b"x")
        desk.look_until(lambda _: desk.report().waiting_settle == 1, limit=5)
        desk.pass_time(2.1)
        assert [one.relative_path for one in desk.ready_now()] == ["renamed/deep/x"]
        assert desk.report().watching == "events"


def test_no_folder_is_watched_through_a_link(tmp_path: Path, drop: Path) -> None:
    """Its place was taken by a link between its event and the watch on what came with it."""
    outside = outside_of(tmp_path)
    (outside / "deep").mkdir()
    with armed(tmp_path):
        for number in range(50):
            (drop / f"sub{number}").mkdir()
            swap(drop / f"sub{number}", outside)
            (outside.with_name(f"moved-sub{number}") / "deep").mkdir()
        (drop / "last").mkdir()
        wait_until(lambda: watched(drop / "last") == 1, what="the watch on the last folder")

        assert watched(outside) == 0


def test_a_folder_swapped_for_a_link_between_its_listing_and_its_opening_is_not_walked(
    tmp_path: Path, drop: Path
) -> None:
    outside = outside_of(tmp_path)
    (outside / "secret").write_bytes(b"secret")
    for name in ("one", "two"):
        (drop / name).mkdir()
    walk = Walk(root_path=str(drop), names=Names())
    walk.advance(most=1, seconds=10)  # both are listed, one is entered
    for name in ("one", "two"):
        swap(drop / name, outside)

    found = []
    while not walk.is_complete:
        found += walk.advance(most=100, seconds=10)
    assert found == []
    assert walk.counts.faults == 0


def test_a_hinted_folder_behind_a_link_is_not_walked(tmp_path: Path, drop: Path) -> None:
    outside = outside_of(tmp_path)
    (outside / "deep").mkdir()
    (outside / "deep" / "secret").write_bytes(b"secret")
    (drop / "sub").symlink_to(outside)
    for start in ("sub", "sub/deep"):
        walk = Walk(root_path=str(drop), names=Names(), start=start)

        assert walk.advance(most=100, seconds=10) == []
        assert walk.is_complete


class _JustBefore:
    """Does something when a file of this name is about to be opened, before the kernel hears of it."""

    def __init__(self) -> None:
        self.name = ""
        self.act: Callable[[], object] = lambda: None
        sys.addaudithook(self._hear)  # for good, so it is made once

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and self.name and arguments[0] == self.name:
            self.name = ""
            self.act()


@pytest.fixture(scope="module")
def just_before() -> _JustBefore:
    return _JustBefore()


def test_a_source_swapped_for_a_link_is_not_opened_to_be_copied(
    tmp_path: Path, drop: Path, just_before: _JustBefore
) -> None:
    """The link is put there between the last look at the source and its opening: only O_NOFOLLOW sees it."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no second filesystem here")
    spool = Spool(elsewhere / f"ingestd-test-{os.getpid()}" / "spool")
    source = drop / "source"
    source.write_bytes(b"content")
    wanted = (candidate_of(drop, "source"), expect_of(source))

    def swap_file() -> None:
        source.rename(tmp_path / "moved")
        source.symlink_to(tmp_path / "moved")

    just_before.name, just_before.act = "source", swap_file
    try:
        (left,) = take_in(spool, [wanted])
        assert just_before.name == "", "it was opened"
        assert isinstance(left, NotTaken)
        assert (left.why, left.note) == (WhyNot.CHANGED, "a link is where the file was")
    finally:
        spool.discard()
        for path in sorted(spool.path.parent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        spool.path.parent.rmdir()


@pytest.fixture(scope="module")
def read() -> Iterator[Callable[..., Read]]:
    wake = threading.Event()
    readers = ReaderPool(processes=1, wake=wake.set)

    def one(job: InspectJob | CompareJob | ReencodeJob) -> Read:
        readers.submit(job)
        while not (found := readers.collect()):
            assert wake.wait(30)
            wake.clear()
        return found[0]

    yield one
    readers.close()


@pytest.mark.parametrize("job", ["inspect", "compare", "reencode"])
def test_no_reader_reads_through_a_link(tmp_path: Path, drop: Path, read: Callable[..., Read], job: str) -> None:
    own = write_instance(tmp_path / "own")
    write_instance(drop / "sub" / "x")
    ours = places.below(str(drop), "sub/x")
    jobs = {
        "inspect": InspectJob(key=1, path=ours),
        "compare": CompareJob(key=1, ours=str(own), theirs=ours),
        "reencode": ReencodeJob(key=1, path=ours, destination=str(tmp_path / "copy")),
    }
    before = read(jobs[job])
    assert not before.waits
    swap(drop / "sub", tmp_path / "moved-sub")

    after = read(jobs[job])
    if job == "inspect":
        assert after.inspection is not None
        assert after.inspection.verdict.value == "unreadable"
    else:
        assert after.waits


def test_no_part_is_read_through_a_link(tmp_path: Path, drop: Path) -> None:
    (drop / "sub").mkdir()
    (drop / "sub" / "x").write_bytes(b"content")
    part = StorePart(path=places.below(str(drop), "sub/x"), size_bytes=7, opener=places.open_file)
    assert b"content" in b"".join(map(bytes, StoreBody([part])))
    swap(drop / "sub", tmp_path / "moved-sub")

    with pytest.raises(FileChanged):
        list(StoreBody([part]))


def test_a_folder_that_a_person_stores_is_not_left_by_a_link(tmp_path: Path, drop: Path) -> None:
    write_instance(drop / "sub" / "x")
    ((part,),) = batches([drop])
    swap(drop / "sub", tmp_path / "moved-sub")

    with pytest.raises(FileChanged):
        list(StoreBody([part]))
    assert list(batches([drop])) == []


def test_a_file_outside_the_drop_folder_is_never_taken_in(tmp_path: Path) -> None:
    """The folder moved out still raised events under its old name, and they led through the link in its place."""
    with Emulator() as server:
        site = Site(tmp_path, server.url, **IN_PLACE)
        outside = outside_of(tmp_path)
        write_instance(outside / "secret")
        with site.start():
            write_instance(site.drop / "sub" / "first")
            site.wait_for({"CONFIRMED": 1})
            moved = swap(site.drop / "sub", outside)
            write_instance(moved / "secret")
            write_instance(site.drop / "last")
            site.wait_for({"CONFIRMED": 2})

    assert sorted(entry.relative_path for entry in site.entries()) == ["last", "sub/first"]


def test_a_file_in_place_is_never_sent_through_a_link(tmp_path: Path) -> None:
    """The very bytes lie behind the link: it is the way that is refused. What is not in the inbox any more is gone."""
    port = own_port()
    site = Site(tmp_path, f"http://127.0.0.1:{port}/v2", **IN_PLACE)
    identity = (fresh_uid(1), fresh_uid(2), fresh_uid(3))
    with site.start():
        path = site.drop / "sub" / "image"
        write_instance(path, study_uid=identity[0], series_uid=identity[1], sop_uid=identity[2])
        write_instance(site.drop / "stays")
        site.wait_for({"PENDING": 2})
        swap(site.drop / "sub", tmp_path / "moved-sub")
        with Emulator(port=port) as server:
            site.wait_for({"CONFIRMED": 1, "FAILED": 1})
            assert file_of(server.url, identity) is None

    assert site.entry_of("sub/image").reason == "gone"


def test_a_refusal_is_told_from_a_path_that_fails_otherwise(tmp_path):
    file = tmp_path / "file"
    file.touch(mode=0o600)
    (tmp_path / "round").symlink_to("round")

    assert places.may_open(file, os.R_OK | os.W_OK)
    with pytest.raises(FileNotFoundError):
        places.may_open(tmp_path / "nothing")
    with pytest.raises(OSError, match="symbolic links"):
        places.may_open(tmp_path / "round")
    tmp_path.chmod(0o755)
    with as_nobody():
        assert not places.may_open(file)


def test_scratch_that_cannot_be_removed_is_nobodys_trouble(tmp_path: Path) -> None:
    """A copy that the disk did not let go of ended the daemon."""
    file = tmp_path / "copy"
    file.touch()

    places.remove_scratch(file)
    places.remove_scratch(file)
    places.remove_scratch(tmp_path)

    assert list(tmp_path.iterdir()) == []
