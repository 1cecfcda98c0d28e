"""Which kept files go from the spool, and what keeps them there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from ingestd.clocks import utc_now
from ingestd.config import load
from ingestd.daemon import Daemon
from ingestd.emulator import Emulator
from ingestd.inbox import Expect, Removal, Spool, Taken
from ingestd.ledger import Choice, Entry, Ledger, moves, queries
from ingestd.ledger.schema import file
from ingestd.lifecycle import NEEDS_PERSON, State
from tests.builders import element
from tests.daemon.test_promise import configure, image, running, states, turn
from tests.inboxing import candidate_of, expect_of, set_aside, source_of, take_in
from tests.ledgers import url_of
from tests.running import PROGRAM, Site, environment, kill_session, wait_until

_UNKNOWN = "Stopped because nobody can say how full the spool's disk is"


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


def only_entry(folder: Path) -> Entry:
    with Ledger.open(url_of(folder), read_only=True) as ledger:
        (entry,) = queries.entries(ledger)
    return entry


def pass_seconds(seconds: float) -> object:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


def looks_anew(daemon: Daemon) -> bool:
    """Have what may go be looked for in each turn, not each five seconds: the server has to be looked at first."""
    daemon.stages.retention.hurry()
    return True


@pytest.mark.slow
def test_disk_of_which_nothing_can_be_said_lets_no_kept_file_go(tmp_path: Path, server: Emulator) -> None:
    """One statvfs that failed took ``retain`` for zero, and every kept copy of confirmed files went."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace here")
    site = Site(tmp_path, server.url)
    (site.drop / "image").write_bytes(image())
    assert site.run_once().returncode == 0
    log = tmp_path / "daemon.log"
    with log.open("ab") as out:
        daemon = subprocess.Popen(
            [
                *(strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=statfs", "-e", "inject=statfs:error=EIO"),
                *(*PROGRAM, "run", "-c", str(site.config_file)),
            ],
            stdout=out,
            stderr=out,
            env=environment(),
            start_new_session=True,
        )
    try:
        wait_until(lambda: _UNKNOWN in site.command("status").stdout, what="the alarm")
        (site.drop / "another").write_bytes(image(first_pixel=1))
        told = site.command("status", "--exit-code")
        time.sleep(6)  # longer than the time between two removals
    finally:
        kill_session(daemon.pid)
        daemon.wait()

    assert _UNKNOWN in told.stdout
    assert told.returncode == 1
    assert (site.drop / "another").exists()
    assert only_entry(site.folder).removed_at is None


def test_file_goes_only_once_its_mark_is_durable(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, server, retain="0s")
    (tmp_path / "drop" / "image").write_bytes(image())
    marks = []
    with running(config) as daemon:
        let_go = daemon.spool.let_go

        def look_and_let_go(files: Sequence[tuple[Path, Expect]]) -> object:
            if files:
                with Ledger.open(url_of(tmp_path), read_only=True) as other:
                    marks.append(other.fetch_one(select(file.c.removing_at)).removing_at)
            return let_go(files)

        monkeypatch.setattr(daemon.spool, "let_go", look_and_let_go)
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        turn(daemon, lambda: looks_anew(daemon) and only_entry(tmp_path).removed_at is not None)
    assert marks, "it was removed by nobody"
    assert None not in marks


@pytest.mark.slow
def test_kept_files_stay_while_anything_stands_in_the_way(tmp_path: Path, server: Emulator) -> None:
    config = configure(tmp_path, server, retain="0s")
    (tmp_path / "drop" / "image").write_bytes(image())
    with running(config) as daemon:
        removals = daemon.gates.removals
        removals.shut("one")
        removals.shut("other")
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        removals.open("one")
        daemon.stages.retention.hurry()
        turn(daemon, pass_seconds(0.5))
        assert only_entry(tmp_path).removed_at is None

        removals.open("other")
        turn(daemon, lambda: looks_anew(daemon) and only_entry(tmp_path).removed_at is not None)


def rewrite(path: Path, content: bytes) -> None:
    """As rsync --inplace and Samba do: the same inode, and the times put back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def append(path: Path, _content: bytes) -> None:
    with path.open("ab") as file:
        file.write(element(0x00204000, "LT", b"written after it was confirmed"))


@pytest.mark.parametrize("write", [rewrite, pytest.param(append, marks=pytest.mark.slow)])
def test_bytes_written_after_confirmation_are_a_new_arrival(
    tmp_path: Path, server: Emulator, write: Callable[[Path, bytes], None]
) -> None:
    """A rename keeps the inode, and so the writer's descriptor: what it wrote later was deleted with the file."""
    config = configure(tmp_path, server, retain="0s")
    (tmp_path / "drop" / "image").write_bytes(image())
    with running(config) as daemon:
        daemon.gates.removals.shut("test")
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        (kept,) = (tmp_path / "spool" / "files").glob("*/*/*")
        write(kept, image(first_pixel=1))
        written = kept.read_bytes()
        daemon.gates.removals.open("test")
        turn(daemon, lambda: looks_anew(daemon) and set(states(config)) & NEEDS_PERSON)

    assert states(config)["CONFIRMED"] == 1
    (held,) = (path for path in (tmp_path / "spool").glob("*/*/**/*") if path.is_file())
    assert held.read_bytes() == written
    with Ledger.open(config.ledger, read_only=True) as ledger:
        first, second = sorted(queries.entries(ledger), key=lambda entry: entry.delivery_id)
        story = queries.story(ledger, first.delivery_id)
    assert first.removed_at is not None
    assert second.relative_path == "image"
    assert second.state in NEEDS_PERSON
    assert story is not None
    assert "written to after that" in story.history[-1].note


@pytest.mark.slow
def test_duplicate_written_to_after_its_holder_was_confirmed_is_a_new_arrival(tmp_path: Path, server: Emulator) -> None:
    config = configure(tmp_path, server, retain="0s")
    with running(config) as daemon:
        daemon.gates.removals.shut("test")
        (tmp_path / "drop" / "image").write_bytes(image())
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        (tmp_path / "drop" / "again").write_bytes(image())
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1, "DUPLICATE": 1})
        with Ledger.open(config.ledger, read_only=True) as ledger:
            (duplicate,) = queries.entries(ledger, Choice(state=State.DUPLICATE))
        rewrite(tmp_path / "spool" / (duplicate.path or ""), image(first_pixel=1))
        daemon.gates.removals.open("test")
        turn(daemon, lambda: looks_anew(daemon) and states(config) == {"CONFIRMED": 1, "DUPLICATE": 1, "CONFLICT": 1})


def test_discarded_file_that_was_written_to_comes_back(tmp_path: Path, server: Emulator) -> None:
    """What a person discarded was a text; what lies there by now nobody has looked at."""
    config = configure(tmp_path, server, retain="0s")
    with running(config) as daemon:
        daemon.gates.removals.shut("test")
        text = b"no image, but as long as one".ljust(len(image()), b".")
        (tmp_path / "drop" / "image").write_bytes(text)
        turn(daemon, lambda: states(config) == {"REJECTED": 1})
        (aside,) = (tmp_path / "spool" / "rejected").glob("*/*/*")
        with daemon.ledger.transaction() as tx:
            moves.discard(tx, only_entry(tmp_path).delivery_id, now=utc_now())
        rewrite(aside, image())
        daemon.gates.removals.open("test")
        turn(daemon, lambda: looks_anew(daemon) and states(config) == {"DISCARDED": 1, "CONFIRMED": 1})


@pytest.mark.slow
def test_file_that_was_only_looked_after_goes(tmp_path: Path, server: Emulator) -> None:
    """A chmod sets the ctime too; the content is what it was."""
    config = configure(tmp_path, server, retain="0s")
    (tmp_path / "drop" / "image").write_bytes(image())
    with running(config) as daemon:
        daemon.gates.removals.shut("test")
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        (kept,) = (tmp_path / "spool" / "files").glob("*/*/*")
        kept.chmod(0o640)
        daemon.gates.removals.open("test")
        turn(daemon, lambda: looks_anew(daemon) and only_entry(tmp_path).removed_at is not None)

    assert not kept.exists()
    assert states(config) == {"CONFIRMED": 1}


def test_untouched_file_goes_without_being_read_again(tmp_path: Path, server: Emulator) -> None:
    config = configure(tmp_path, server, retain="0s")
    (tmp_path / "drop" / "image").write_bytes(image())
    with running(config) as daemon:
        daemon.gates.removals.shut("test")
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        turn(daemon, lambda: all(stage.is_idle for stage in daemon.stages.all))
        daemon.gates.removals.open("test")

        def is_gone() -> bool:
            assert not daemon.stages.retention._reading
            return looks_anew(daemon) and only_entry(tmp_path).removed_at is not None

        turn(daemon, is_gone)
    assert list((tmp_path / "spool" / "files").glob("*/*/*")) == []


def test_file_that_a_writer_has_open_is_kept(tmp_path: Path, server: Emulator) -> None:
    config = configure(tmp_path, server, retain="0s")
    (tmp_path / "drop" / "image").write_bytes(image())
    with running(config) as daemon:
        daemon.gates.removals.shut("test")
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        (kept,) = (tmp_path / "spool" / "files").glob("*/*/*")
        with kept.open("r+b"):
            daemon.gates.removals.open("test")
            daemon.stages.retention.hurry()
            turn(daemon, pass_seconds(0.5))
            assert kept.exists()
    assert only_entry(tmp_path).removed_at is None


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another filesystem than ``tmp_path``."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second filesystem at /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory, prefix="ingestd-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("content", [image(), b"no image".ljust(len(image()), b".")], ids=["image", "set aside"])
def test_copied_source_that_was_written_to_is_not_removed(tmp_path: Path, elsewhere: Path, content: bytes) -> None:
    """Size, mtime and inode were all as before: rsync and Samba set the mtime as routine."""
    spool = Spool(tmp_path / "spool")
    source = elsewhere / "x"
    source.write_bytes(content)
    expect = expect_of(source, offset=132)
    (taken,) = take_in(spool, [(candidate_of(elsewhere, "x"), expect)])
    assert isinstance(taken, Taken)
    read = replace(expect, ctime_ns=taken.source_ctime_ns)
    unread = Expect(source=expect.source, ctime_ns=taken.source_ctime_ns)
    rewrite(source, content[:-1] + b"!")

    for known in (read, unread):
        answer = spool.remove_source(elsewhere, "x", expect.source, read=known, copy=taken.path)
        assert answer is Removal.CHANGED
        assert source.exists()

    rewrite(source, content)
    source.chmod(0o640)
    assert spool.remove_source(elsewhere, "x", expect.source, read=read, copy=taken.path) is Removal.REMOVED


def test_copied_source_that_nobody_could_read_is_compared_with_its_copy(tmp_path: Path, elsewhere: Path) -> None:
    spool = Spool(tmp_path / "spool")
    source = elsewhere / "x"
    source.write_bytes(b"text" * 1000)
    expect = Expect(source=source_of(source))
    (taken,) = set_aside(spool, [(candidate_of(elsewhere, "x"), expect)])
    assert isinstance(taken, Taken)
    source.chmod(0o640)

    assert spool.remove_source(elsewhere, "x", expect.source, read=expect, copy=taken.path) is Removal.REMOVED


def test_removal_that_fails_comes_back_to_be_tried_again(tmp_path: Path, server: Emulator) -> None:
    """Its row was held as "being removed" until the next start, and ``run --once`` never ended."""

    def fail() -> Removal:
        raise RuntimeError

    with running(configure(tmp_path, server)) as daemon:
        daemon.workers.mover._remove_row(7, fail)
        came: list[tuple[int, Removal]] = []
        wait_until(lambda: came or came.extend(daemon.workers.mover.collect_removals()), what="the answer")

    assert came == [(7, Removal.WAITS)]


def test_copied_source_that_cannot_be_removed_is_told_while_it_lasts(
    tmp_path: Path, server: Emulator, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, server)
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().replace("path: drop", f"path: {elsewhere}"))
    source = elsewhere / "image"
    source.write_bytes(image())
    (elsewhere / "other").write_bytes(b"no image")
    rename, fails = os.rename, True

    def fail(one: object, other: object, **folders: int) -> None:
        if fails and one == "image":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        rename(one, other, **folders)

    monkeypatch.setattr(os, "rename", fail)
    monkeypatch.setattr("ingestd.daemon.source_removal._STAYS_SECONDS", 1.0)
    monkeypatch.setattr("ingestd.daemon.source_removal._TIDY_EVERY_SECONDS", 0.2)
    monkeypatch.setattr("ingestd.daemon.source_removal._AT_ONCE", 1)
    with running(load(file)) as daemon:
        turn(daemon, lambda: queries.counts(daemon.ledger).get(State.CONFIRMED))
        assert not daemon.stages.alarms.stands("not_removed")
        turn(daemon, lambda: daemon.stages.alarms.stands("not_removed"))
        turn(daemon, lambda: not (elsewhere / "other").exists())
        assert source.exists()
        fails = False
        turn(daemon, lambda: not daemon.stages.alarms.stands("not_removed"))

    assert not source.exists()
