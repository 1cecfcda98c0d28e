"""The way of a file from its inbox to its row, with every room it passes but no daemon around them."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from ingestd.clocks import read_clocks
from ingestd.daemon.admission import Admission
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.assignment import Assignment
from ingestd.daemon.loop import Wake
from ingestd.daemon.mover import Mover
from ingestd.daemon.reader_client import ReaderClient
from ingestd.daemon.stage import Gate
from ingestd.daemon.steps import Misplaced, Origin
from ingestd.inbox import Candidate, Inboxes, InboxPolicy, Spool, Take
from ingestd.ledger import Ledger, moves, queries
from ingestd.lifecycle import Route, State
from ingestd.reader import Read, ReaderLimits, ReaderPool
from tests.builders import element, instance_bytes, write_instance
from tests.inboxing import scan_now
from tests.ledgers import url_of
from tests.patience import PATIENCE
from tests.running import wait_until


class Rooms:
    """Inbox, readers, mover and ledger of one folder, joined by an Admission."""

    def __init__(
        self,
        base: Path,
        limits: ReaderLimits | None = None,
        take: Take = Take.MOVE,
        incomplete_after: timedelta = timedelta(minutes=15),
    ) -> None:
        self.drop = base / "drop"
        self.drop.mkdir()
        self.wake = Wake()
        self.spool = Spool(base / "spool")
        self.ledger = Ledger.open(
            url_of(base),
            host=self.spool.host,
            spool=self.spool.path,
            destinations={"default": "http://pacs.example/v2"},
            key=base / "search.key",
        )
        policy = InboxPolicy(
            name="a", path=self.drop, settle=timedelta(0), take=take, incomplete_after=incomplete_after
        )
        self.inboxes = Inboxes([policy], spool=self.spool.path, wake=self.wake)
        self.readers = ReaderPool(processes=1, limits=limits, wake=self.wake)
        self.mover: Mover[int] = Mover(self.spool, wake=self.wake)
        self.desk = ReaderClient(self.readers, Alarms())
        self.admission = Admission(
            inboxes=self.inboxes,
            spool=self.spool,
            mover=self.mover,
            reader_client=self.desk,
            ledger=self.ledger,
            routing=lambda *_: Route(rule=None, text="", destinations=("default",)),
            gate=Gate(),
            assignment=Assignment([policy.name], reach={}, is_whole=True),
            on_copied=lambda: None,
            sha256=True,
            agreement={},
            is_lost=lambda place: not Path(place).exists(),
        )
        self.inboxes.open()

    def take_in(self, files: int) -> dict[State, int]:
        """Turn the loop until so many files have their rows, and count these by state."""
        give_up_at = time.monotonic() + PATIENCE
        while self.admission.taken_in < files:
            assert time.monotonic() < give_up_at, f"{self.admission.taken_in} of {files} files were taken in"
            self.turn()
        return {state: count for state, count in queries.counts(self.ledger).items() if count}

    def look_again(self) -> dict[State, int]:
        """Scan anew, turn the loop until nothing is left to do, and count the rows by state."""
        since, give_up_at = self.turn(), time.monotonic() + PATIENCE
        scan_now(self.inboxes)
        while not (self.inboxes.is_drained(since) and self.admission.is_idle):
            assert time.monotonic() < give_up_at, f"not drained: {self.inboxes.reports()}"
            self.turn()
        return {state: count for state, count in queries.counts(self.ledger).items() if count}

    def turn(self) -> float:
        now = read_clocks()
        self.desk.collect(now)
        self.admission.collect(now)
        with self.ledger.transaction() as tx:
            self.admission.write(tx, now)
        self.wake.wait(0.01)
        return now.mono

    def close(self) -> None:
        self.inboxes.close()
        self.mover.close(5.0)
        self.readers.close()
        self.ledger.close()


@contextmanager
def opened(
    base: Path,
    *,
    limits: ReaderLimits | None = None,
    take: Take = Take.MOVE,
    incomplete_after: timedelta = timedelta(minutes=15),
) -> Iterator[Rooms]:
    rooms = Rooms(base, limits, take, incomplete_after)
    try:
        yield rooms
    finally:
        rooms.close()


def test_files_that_come_together_each_get_the_row_that_is_theirs(tmp_path: Path) -> None:
    with opened(tmp_path) as rooms:
        for number in range(300):
            write_instance(rooms.drop / f"image{number}", sop_uid=f"1.2.3.{number}")
        for number in range(5):
            (rooms.drop / f"text{number}").write_bytes(b"no image " * 100)

        assert rooms.take_in(305) == {State.PENDING: 300, State.REJECTED: 5}
        assert rooms.admission.is_idle
        assert list(rooms.drop.iterdir()) == []
        assert len(list((rooms.spool.path / "files/a").glob("*/*"))) == 300
        assert {path.name for path in (rooms.spool.path / "rejected/a").glob("*/*")} == {f"text{n}" for n in range(5)}


def test_file_that_takes_its_reader_all_memory_is_set_aside(tmp_path: Path) -> None:
    """Its inspection holds no stat of the file, which was compared with the file all the same: it was read anew for
    ever. A limit that lets Python start, but not read, stands in for a file that no limit of the walk catches.
    """
    with opened(tmp_path, limits=ReaderLimits(address_space_bytes=40 << 20)) as rooms:
        meta = element(0x00020102, "OB", bytes(12 << 20))
        content = instance_bytes()
        (rooms.drop / "large-meta").write_bytes(content[:300].replace(content[132:300], meta + content[132:300]))

        assert rooms.take_in(1) == {State.REJECTED: 1}
        assert [path.name for path in (rooms.spool.path / "rejected/a").glob("*/*")] == ["large-meta"]


def test_file_is_read_only_once_its_candidate_row_is_durable(tmp_path: Path) -> None:
    """The row is what counts the readers that a file kills; a file read before it could kill them for ever."""
    with opened(tmp_path) as rooms:
        write_instance(rooms.drop / "image")
        give_up_at = time.monotonic() + PATIENCE
        while not rooms.admission._new:
            assert time.monotonic() < give_up_at
            rooms.admission.collect(read_clocks())
        now = read_clocks()

        with contextlib.suppress(RuntimeError), rooms.ledger.transaction() as tx:
            rooms.admission.write(tx, now)
            raise RuntimeError("the disk is full")
        assert rooms.desk.in_flight == 0
        assert queries.left_candidates(rooms.ledger) == []

        with rooms.ledger.transaction() as tx:
            rooms.admission.write(tx, now)
            assert rooms.desk.in_flight == 0
        assert [each.relative_path for each in queries.left_candidates(rooms.ledger)] == ["image"]
        assert rooms.desk.in_flight == 1


@pytest.fixture
def readers_keep_ending(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any]]:
    """No file that is asked about is read; gives those that are asked about and have not been put off yet."""
    asked: list[tuple[int, Any]] = []

    def put_off(*_: object) -> list[tuple[int, Read]]:
        reads = [(key, Read(job=job, waits="the readers keep ending")) for key, job in asked]
        asked.clear()
        return reads

    monkeypatch.setattr(
        ReaderClient, "ask_all", lambda *given: asked.extend((key, given[3](1, key)) for key in given[2])
    )
    monkeypatch.setattr(ReaderClient, "take", put_off)
    return asked


def in_the_spool(rooms: Rooms, path: str) -> Candidate:
    place = rooms.spool.path / path
    place.parent.mkdir(parents=True, exist_ok=True)
    write_instance(place)
    candidate = rooms.spool.candidate_at("a", path)
    assert candidate is not None
    return candidate


def test_file_in_the_spool_that_cannot_be_read_for_now_keeps_its_name(
    tmp_path: Path, readers_keep_ending: list[tuple[int, Any]]
) -> None:
    """Its candidate row was dropped, and a start that followed found the file nameless."""
    with opened(tmp_path) as rooms:
        candidate = in_the_spool(rooms, "files/a/0123")
        rooms.admission.adopt(replace(candidate, dropped_as="IM1"), Origin(adopted=True))
        # The second time it comes from the inboxes, which look at it while it rests.
        for _ in range(2):
            wait_until(lambda: rooms.turn() and readers_keep_ending, what="that it is asked about")
            rooms.turn()

            assert readers_keep_ending == []
            assert [left.relative_path for left in queries.left_candidates(rooms.ledger)] == ["IM1"]


def test_file_of_a_row_that_cannot_be_read_for_now_leaves_no_second_name(
    tmp_path: Path, readers_keep_ending: list[tuple[int, Any]]
) -> None:
    """Its row has the name; its candidate row stayed where a person then removed the file."""
    with opened(tmp_path) as rooms:
        rooms.admission.adopt(in_the_spool(rooms, "rejected/a/1/IM1"), Origin(adopted=True, former=7))
        rooms.turn()
        assert len(readers_keep_ending) == 1
        rooms.turn()

        assert rooms.admission.is_idle
        assert queries.left_candidates(rooms.ledger) == []


def test_refused_file_that_was_written_to_and_is_refused_again_lies_where_it_lay(tmp_path: Path) -> None:
    """Two files of one path may not be kept: its former row was closed after the new one, and the daemon died of it
    whenever it looked.
    """
    with opened(tmp_path) as rooms:
        (rooms.drop / "text").write_bytes(b"no image")
        assert rooms.take_in(1) == {State.REJECTED: 1}
        (former,) = queries.rejected_files(rooms.ledger)
        with (rooms.spool.path / former.path).open("ab") as file:
            file.write(b"more")

        candidate = rooms.spool.candidate_at("a", former.path)
        assert candidate is not None
        rooms.admission.adopt(candidate, Origin(adopted=True, former=former.file_id))

        assert rooms.take_in(2) == {State.REJECTED: 1, State.DISCARDED: 1}
        (now,) = queries.rejected_files(rooms.ledger)
        assert (now.path, now.file_id) == (former.path, former.file_id + 1)


@pytest.mark.parametrize("is_removed", [False, True], ids=["it is there", "it was removed"])
def test_file_mislaid_by_a_failing_disk_keeps_its_name_until_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_removed: bool
) -> None:
    """Its candidate row was dropped at once, and a start that followed found the file nameless."""
    monkeypatch.setattr("ingestd.daemon.admission._MISPLACED_AGAIN_SECONDS", 0.05)
    stat = os.stat

    def fail(path: Any, **more: Any) -> os.stat_result:
        if not isinstance(path, int) and len(Path(path).name) == 32:  # as the spool names its files
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, **more)

    with opened(tmp_path) as rooms:
        write_instance(rooms.drop / "IM1")
        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", fail)
            wait_until(
                lambda: rooms.turn() and any(isinstance(each, Misplaced) for each in rooms.admission._steps.values()),
                what="that the disk fails",
            )
            assert [left.relative_path for left in queries.left_candidates(rooms.ledger)] == ["IM1"]
            if is_removed:
                (path,) = (tmp_path / "spool" / "files" / "a").glob("*/*")
                path.unlink()

        wait_until(lambda: rooms.turn() and rooms.admission.is_idle, what="its end")
        assert queries.left_candidates(rooms.ledger) == []
        assert [entry.relative_path for entry in queries.entries(rooms.ledger)] == ([] if is_removed else ["IM1"])


def test_file_refused_anew_after_a_person_let_go_of_its_former_row_has_a_row_of_its_own(tmp_path: Path) -> None:
    """Two rows wanted its path, and the daemon ended with the second."""
    with opened(tmp_path) as rooms:
        (rooms.drop / "text").write_bytes(b"no image")
        assert rooms.take_in(1) == {State.REJECTED: 1}
        (former,) = queries.rejected_files(rooms.ledger)
        with (rooms.spool.path / former.path).open("ab") as file:
            file.write(b"more")
        candidate = rooms.spool.candidate_at("a", former.path)
        assert candidate is not None
        rooms.admission.adopt(candidate, Origin(adopted=True, former=former.file_id))
        with rooms.ledger.transaction() as tx:
            moves.discard(tx, former.file_id, now=read_clocks().utc)

        while not rooms.admission.is_idle:
            rooms.turn()

        counts = {state: count for state, count in queries.counts(rooms.ledger).items() if count}
        assert counts == {State.DISCARDED: 1, State.REJECTED: 1}
        (other,) = queries.rejected_files(rooms.ledger)
        assert (rooms.spool.path / other.path).read_bytes() == b"no imagemore"


def test_lone_file_costs_two_transactions(tmp_path: Path) -> None:
    """One before it is moved, one with its row: each syncs the disk five times, and a lone file waits for it."""
    with opened(tmp_path) as rooms:
        commits: list[object] = []
        event.listen(rooms.ledger.engine, "commit", commits.append)
        (rooms.drop / "a").write_bytes(instance_bytes())

        assert rooms.take_in(1) == {State.PENDING: 1}

    assert len(commits) == 2
