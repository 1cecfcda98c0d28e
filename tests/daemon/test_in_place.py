"""A file that stays in its inbox: when it is read again, and when it is another one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from ingestd.clocks import read_clocks
from ingestd.daemon.steps import Seen, where_it_lies
from ingestd.inbox import Candidate, Take
from ingestd.ledger import queries
from ingestd.ledger.column_types import Digits
from ingestd.lifecycle import SourceStat, State
from tests.builders import instance_bytes
from tests.daemon.test_admission import Rooms, opened
from tests.inboxing import scan_now
from tests.kept import told
from tests.ledgers import raw


def put(path: Path, content: bytes, *, like: os.stat_result | None = None, anew: bool = True) -> os.stat_result:
    """Write a file, as a new one or in the place of what is there; ``like`` gives the mtime that it is to have."""
    there = path.with_name("new.part") if anew else path
    there.write_bytes(content)
    if like is not None:
        os.utime(there, ns=(like.st_mtime_ns, like.st_mtime_ns))
    there.replace(path)
    return path.stat()


def entry_of(rooms: Rooms, delivery_id: int = 1):
    entry = queries.entry(rooms.ledger, delivery_id)
    assert entry is not None
    return entry


@pytest.mark.parametrize("anew", [True, False], ids=["new inode", "same inode"])
def test_another_instance_with_the_same_name_length_and_mtime_is_read(tmp_path: Path, *, anew: bool) -> None:
    with opened(tmp_path, take=Take.IN_PLACE) as rooms:
        content = instance_bytes(sop_uid="1.2.3.1")
        first = put(rooms.drop / "image", content)
        assert rooms.take_in(1) == {State.PENDING: 1}
        second = put(rooms.drop / "image", content.replace(b"1.2.3.1", b"1.2.3.2"), like=first, anew=anew)
        assert (second.st_size, second.st_mtime_ns) == (first.st_size, first.st_mtime_ns)

        assert rooms.look_again() == {State.PENDING: 2}
        assert entry_of(rooms, 2).identity.sop_uid == "1.2.3.2"


def test_whole_file_is_not_the_cut_one_that_was_refused_and_looked_like_it(tmp_path: Path) -> None:
    with opened(tmp_path, take=Take.IN_PLACE) as rooms:
        content = instance_bytes()
        first = put(rooms.drop / "image", b"x" * len(content))
        assert rooms.take_in(1) == {State.REJECTED: 1}
        with raw(rooms.ledger) as connection:
            # As after ``incomplete_after``, for which nobody here waits.
            connection.execute("UPDATE file SET reason = 'truncated'")
        put(rooms.drop / "image", content, like=first)

        assert rooms.look_again() == {State.REJECTED: 1, State.PENDING: 1}


def test_file_that_is_taken_with_a_note_is_not_the_cut_one_that_was_refused(tmp_path: Path) -> None:
    """One whose pixel data are zeros is taken in the end; it was taken for the cut file, and never read again."""
    zeros = instance_bytes(rows=64, columns=64, pixels=bytes(8192))
    with opened(tmp_path, take=Take.IN_PLACE, incomplete_after=timedelta(seconds=0.3)) as rooms:
        first = put(rooms.drop / "image", b"x" * len(zeros))
        rooms.take_in(1)
        with raw(rooms.ledger) as connection:
            connection.execute("UPDATE file SET reason = 'truncated'")
        put(rooms.drop / "image", zeros, like=first)

        assert rooms.look_again() == {State.REJECTED: 1, State.PENDING: 1}


def _chmod(path: Path) -> None:
    path.chmod(0o640)


def _copy(path: Path) -> None:
    put(path, path.read_bytes(), like=path.stat())


@pytest.mark.parametrize("change", [_chmod, _copy])
@pytest.mark.parametrize("content", [instance_bytes(), b"no image " * 100], ids=["image", "clutter"])
def test_file_that_proves_unchanged_refreshes_its_row(
    tmp_path: Path, change: Callable[[Path], None], content: bytes
) -> None:
    with opened(tmp_path, take=Take.IN_PLACE) as rooms:
        path = rooms.drop / "image"
        put(path, content)
        before = rooms.take_in(1)
        change(path)
        assert rooms.look_again() == before

        assert entry_of(rooms).source.inode == path.stat().st_ino
        known = queries.known_sources(rooms.ledger, "a", ["image"])["image"][0]
        assert known.ctime_ns == path.stat().st_ctime_ns


@pytest.mark.parametrize("is_another", [True, False])
def test_file_that_did_not_stand_still_while_it_was_read_is_read_once_more(tmp_path: Path, *, is_another: bool) -> None:
    """Hard links that a backup made meanwhile: what was written into it later, with its old mtime, was never read."""
    with opened(tmp_path, take=Take.IN_PLACE) as rooms:
        path = rooms.drop / "image"
        content = instance_bytes(sop_uid="1.2.3.1")
        first = put(path, content)
        rooms.take_in(1)
        with raw(rooms.ledger) as connection:
            connection.execute("UPDATE file SET ctime_ns = 0")
        if is_another:
            put(path, content.replace(b"1.2.3.1", b"1.2.3.2"), like=first, anew=False)

        assert rooms.look_again() == {State.PENDING: 2 if is_another else 1}
        known = queries.known_sources(rooms.ledger, "a", ["image"])["image"][-1]
        assert known.ctime_ns == path.stat().st_ctime_ns


def test_file_that_ended_its_reader_is_known_as_it_was_seen() -> None:
    """Read once more by each scan it would end two readers each time."""
    seen = SourceStat(inode=1, size_bytes=2, mtime_ns=3)
    for in_place, ctime_ns in ((True, 4), (False, 0)):
        candidate = Candidate(
            inbox="a", relative_path="x", path="/a/x", source=seen, ctime_ns=4, in_place=in_place, in_spool=not in_place
        )
        assert where_it_lies(Seen(candidate=candidate), None).ctime_ns == ctime_ns


def test_row_whose_bytes_are_gone_is_no_file_that_lies_there(tmp_path: Path) -> None:
    """They were written over, and are there again: nobody would have sent them."""
    with opened(tmp_path, take=Take.IN_PLACE) as rooms:
        path = rooms.drop / "image"
        first = put(path, instance_bytes())
        rooms.take_in(1)
        with raw(rooms.ledger) as connection:
            connection.execute("UPDATE file SET removing_at = 1, removed_at = 1")
        put(path, path.read_bytes(), like=first)

        assert rooms.look_again() == {State.PENDING: 1, State.DUPLICATE: 1}


def test_file_that_is_copied_anew_while_it_is_read_again_is_still_what_it_was(tmp_path: Path) -> None:
    with opened(tmp_path, take=Take.IN_PLACE) as rooms:
        path = rooms.drop / "image"
        put(path, instance_bytes())
        before = rooms.take_in(1)
        _copy(path)
        scan_now(rooms.inboxes)
        while rooms.admission.is_idle:
            rooms.admission.collect(read_clocks())
        _copy(path)
        assert rooms.look_again() == before

        assert entry_of(rooms).source.inode == path.stat().st_ino


def test_file_that_is_restored_piece_by_piece_is_what_it_was(tmp_path: Path) -> None:
    with opened(tmp_path, take=Take.IN_PLACE) as rooms:
        path = rooms.drop / "image"
        content = instance_bytes()
        first = put(path, content)
        before = rooms.take_in(1)
        put(path, content[:-10])
        scan_now(rooms.inboxes)
        while not rooms.inboxes.reports()[0].waiting_incomplete:
            rooms.turn()
        put(path, content, like=first, anew=False)
        assert rooms.look_again() == before


def renumber(rooms: Rooms) -> None:
    """Let every row have seen its file under another inode, as if the share had failed over since."""
    with raw(rooms.ledger) as connection:
        rows = connection.execute("SELECT id, source FROM file").fetchall()
        for file_id, source in rows:
            inode, *others = told("source", source).split(":")
            moved = Digits.keep(":".join([str(int(inode) + 1_000_000), *others]))
            connection.execute("UPDATE file SET source = ? WHERE id = ?", (moved, file_id))


def test_inodes_of_a_mount_that_numbers_them_anew_are_ignored_and_that_is_told(tmp_path: Path) -> None:
    with opened(tmp_path, take=Take.IN_PLACE) as rooms, structlog.testing.capture_logs() as logged:
        for number in range(200):
            put(rooms.drop / f"image{number}", instance_bytes(sop_uid=f"1.2.3.{number}"))
        rooms.take_in(200)
        renumber(rooms)
        assert rooms.look_again() == {State.PENDING: 200}

        refreshed = sum(
            entry_of(rooms, number).source.inode == (rooms.drop / entry_of(rooms, number).relative_path).stat().st_ino
            for number in range(1, 201)
        )
        assert 20 <= refreshed < 200, "no archive is read for nothing"
        assert [line["event"] for line in logged if "inodes" in line["event"]] == ["inbox.inodes_ignored"]
        assert "inode numbers ignored" in rooms.inboxes.reports()[0].watching

        # The ctime still tells, and an inode counts again.
        last = rooms.drop / "image199"
        put(last, last.read_bytes().replace(b"1.2.3.199", b"1.2.3.899"), like=last.stat())
        assert rooms.look_again() == {State.PENDING: 201}
        assert "inode numbers ignored" not in rooms.inboxes.reports()[0].watching


def test_known_files_are_not_read_again(tmp_path: Path) -> None:
    with opened(tmp_path, take=Take.IN_PLACE) as rooms:
        path = rooms.drop / "image"
        put(path, instance_bytes())
        rooms.take_in(1)
        shutil.copystat(path, path)
        rooms.look_again()
        seen = rooms.inboxes.reports()[0].files_seen
        rooms.look_again()

        assert rooms.inboxes.reports()[0].files_seen == seen
