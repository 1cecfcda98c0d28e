"""What happens to the spool under the daemon: it goes away, its disk fails, files lie in it that no row knows."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ingestd.clocks import read_clocks
from ingestd.daemon import Daemon, orphans
from ingestd.emulator import Emulator
from ingestd.ledger import Ledger, NewCandidate, moves, queries
from tests.builders import write_instance
from tests.cli.test_stopped import Immutable
from tests.daemon.test_promise import configure, image, running, states, turn
from tests.inboxing import source_of
from tests.running import Site, wait_until
from tests.torture.failing import Fault, Injector, NoCompilerError, compile_library


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What makes system calls fail."""
    try:
        return compile_library(tmp_path_factory.mktemp("library"))
    except NoCompilerError as error:
        if os.environ.get("INGESTD_REQUIRE_PEERS") == "1":
            raise
        pytest.skip(str(error))


def pass_seconds(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


def stopped_because(daemon: Daemon) -> list[str]:
    return [alarm.kind for alarm in queries.alarms(daemon.ledger)]


@pytest.mark.parametrize("room", ["files", ""])
def test_spool_that_is_not_there_is_an_alarm_and_mends_itself(tmp_path: Path, server: Emulator, room: str) -> None:
    """ENOENT of the target was "source gone": every drop was forgotten, ``status`` "nothing", health ok, exit 0."""
    config = configure(tmp_path, server)
    spool, away = tmp_path / "spool" / room, tmp_path / "away"
    with running(config) as daemon:
        turn(daemon, lambda: daemon.stages.orphans.are_adopted)
        spool.rename(away)
        (tmp_path / "drop" / "image").write_bytes(image())
        turn(daemon, lambda: stopped_because(daemon) == ["spool"])
        turn(daemon, pass_seconds(0.5))
        assert (tmp_path / "drop" / "image").exists()
        assert not daemon.gates.intake.is_open

        away.rename(spool)
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        turn(daemon, lambda: stopped_because(daemon) == [])


def test_link_where_a_folder_of_the_spool_is_to_be_is_an_alarm_and_mends_itself(
    tmp_path: Path, server: Emulator
) -> None:
    """Each file was tried again and again, and ``status`` said nothing of it."""
    config = configure(tmp_path, server)
    write_instance(tmp_path / "drop" / "first")
    with running(config) as daemon:
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        (folder,) = (tmp_path / "spool" / "files").glob("*/*")
        folder.rename(tmp_path / "away")
        folder.symlink_to(tmp_path / "away")
        write_instance(tmp_path / "drop" / "second")
        turn(daemon, lambda: stopped_because(daemon) == ["spool"])
        (alarm,) = queries.alarms(daemon.ledger)
        assert str(folder.relative_to(tmp_path / "spool")) in alarm.note
        assert "move away what stands in the place" in alarm.next_step

        folder.unlink()
        (tmp_path / "away").rename(folder)
        turn(daemon, lambda: states(config) == {"CONFIRMED": 2})
        turn(daemon, lambda: stopped_because(daemon) == [])


def test_needless_copy_that_cannot_be_removed_is_an_alarm_and_no_end(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a disk says to an unlink ended the daemon, and each one after it."""
    config = configure(tmp_path, server)
    with running(config):
        pass
    left = tmp_path / "spool" / "explicit" / "a" / "0123"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"of no row")
    unlink, told = os.unlink, set[str]()

    def fails(path: str | Path, *, dir_fd: int | None = None) -> None:
        if Path(path).name == left.name and not told:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", fails)
    monkeypatch.setattr(orphans, "_FAILED_WAIT_SECONDS", 0.05)
    (tmp_path / "drop" / "image").write_bytes(image())
    with running(config) as daemon:
        turn(daemon, lambda: bool(told.update(stopped_because(daemon))) or bool(told))
        assert told == {"spool_unlisted"}
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        turn(daemon, lambda: stopped_because(daemon) == [])
    assert not left.exists()


@pytest.mark.parametrize("place", ["files", pytest.param("files/*", marks=pytest.mark.slow)])
def test_spool_that_may_not_be_written_is_named_and_not_the_drop_folder(
    tmp_path: Path, server: Emulator, place: str
) -> None:
    """It was "files not be moved out of the drop folder": whoever read that mended the wrong folder."""
    config = configure(tmp_path, server)
    told: set[str] = set()

    def tell(daemon: Daemon, until: Callable[[], bool]) -> Callable[[], bool]:
        return lambda: bool(told.update(stopped_because(daemon))) or until()

    with running(config) as daemon:
        turn(daemon, lambda: daemon.stages.orphans.are_adopted)
        if place != "files":
            (tmp_path / "spool" / "files" / config.inboxes[0].spool_name).mkdir()
        [folder] = (tmp_path / "spool").glob(place)
        with Immutable(folder):
            (tmp_path / "drop" / "image").write_bytes(image())
            turn(daemon, tell(daemon, lambda: stopped_because(daemon) == ["spool"]))
            turn(daemon, tell(daemon, pass_seconds(1.5)))
            [alarm] = queries.alarms(daemon.ledger)
            assert "the spool may not be written" in alarm.note
            assert (tmp_path / "drop" / "image").exists()

        turn(daemon, tell(daemon, lambda: states(config) == {"CONFIRMED": 1}))
        turn(daemon, tell(daemon, lambda: not stopped_because(daemon)))
    assert told == {"spool"}


def test_drop_between_the_loss_of_a_folder_and_the_look_at_it_is_not_forgotten(
    tmp_path: Path, server: Emulator
) -> None:
    config = configure(tmp_path, server)
    with running(config) as daemon:
        turn(daemon, lambda: daemon.stages.orphans.are_adopted)
        (tmp_path / "drop" / "image").write_bytes(image())
        turn(daemon, lambda: daemon.stages.admission.in_hand)
        shutil.rmtree(tmp_path / "spool" / "files")
        turn(daemon, lambda: stopped_because(daemon) == ["spool"])
        (tmp_path / "spool" / "files").mkdir()

        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})


def test_rows_whose_spool_is_away_wait_for_it(tmp_path: Path, server: Emulator) -> None:
    """An unmounted spool is no deletion: neither are its files failed as gone, nor are kept ones marked as removed."""
    config = configure(tmp_path, server, retain="0s")
    with running(config) as daemon:
        daemon.gates.removals.shut("test")
        (tmp_path / "drop" / "image").write_bytes(image())
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        daemon.gates.claims.shut("test")
        (tmp_path / "drop" / "other").write_bytes(image(first_pixel=1).replace(b"1.2.3.4.5", b"1.2.3.4.6"))
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1, "PENDING": 1})
        (tmp_path / "spool").rename(tmp_path / "away")
        daemon.gates.removals.open("test")
        daemon.stages.retention.hurry()
        # A post that began before anybody looked is deferred, and comes again only when its wait is over.
        turn(daemon, lambda: not daemon.stages.disk.stands)
        daemon.gates.claims.open("test")
        turn(daemon, pass_seconds(2.5))
        (tmp_path / "away").rename(tmp_path / "spool")
        assert [entry.removed_at for entry in queries.entries(daemon.ledger)] == [None, None]
        assert not [entry for entry in queries.entries(daemon.ledger) if entry.state == "FAILED"]

        turn(daemon, lambda: states(config) == {"CONFIRMED": 2})


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 3], ids=["the look after the rename", "and the looks that follow"])
def test_file_that_left_its_folder_and_cannot_be_looked_at_is_adopted_at_once(
    tmp_path: Path, server: Emulator, library: Path, times: int
) -> None:
    """It lay in the spool in no state until the next start: the drop empty, "needs a person: 0", "none waits"."""
    site = Site(tmp_path / "site", server.url)
    (site.drop / "first").write_bytes(image(first_pixel=9).replace(b"1.2.3.4.5", b"1.2.3.4.9"))
    site.run_once()  # makes the inbox's folder in the spool
    (folder,) = (site.spool / "files").iterdir()
    fault = Fault(call="stat", error=errno.EIO, place="spool", nth=1, times=times)
    injector = Injector(library, tmp_path / "rule", fault, f"{folder}/")
    with site.start(env=injector.environment) as daemon:
        (site.drop / "image").write_bytes(image())
        site.wait_for({"CONFIRMED": 2})
        assert injector.failed == times
        assert daemon.is_running()


def test_file_without_a_row_is_found_while_running(tmp_path: Path, server: Emulator) -> None:
    config = configure(tmp_path, server)
    with running(config) as daemon:
        turn(daemon, lambda: daemon.stages.orphans.are_adopted)
        daemon.stages.orphans.sweep_every = 0.2
        daemon.stages.orphans._sweep_at = 0.0
        inbox, target = config.inboxes[0].spool_name, "0" * 32
        folder = tmp_path / "spool" / "files" / inbox
        folder.mkdir()
        file = folder / target
        file.write_bytes(image())
        with daemon.ledger.transaction() as tx:
            named = NewCandidate(inbox=inbox, relative_path="ward/IM1", source=source_of(file), target=target)
            moves.add_candidates(tx, [named], now=read_clocks().utc)

        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        assert [entry.relative_path for entry in queries.entries(daemon.ledger)] == ["ward/IM1"]
        assert queries.left_candidates(daemon.ledger) == []


def test_sweep_looks_through_what_changed_and_not_through_what_is_kept(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a million kept files a sweep took a quarter of the time for minutes."""
    looked_up: list[str] = []
    asks = queries.paths_known

    def known(ledger: Ledger, paths: Sequence[str]) -> set[str]:
        looked_up.extend(paths)
        return asks(ledger, paths)

    config = configure(tmp_path, server)
    for number in range(3):
        write_instance(tmp_path / "drop" / f"image{number}")
    with running(config) as daemon:
        turn(daemon, lambda: states(config) == {"CONFIRMED": 3})

    monkeypatch.setattr(orphans.queries, "paths_known", known)
    with running(config) as daemon:
        stage = daemon.stages.orphans
        turn(daemon, lambda: stage.are_adopted)
        assert len(looked_up) == 3, "a start looks at all"

        def sweep() -> list[str]:
            looked_up.clear()
            stage._sweep_at = 0.0
            daemon.loop.tick()
            assert stage._sweep is None, "so few are looked through in one turn"
            return list(looked_up)

        assert [sweep(), sweep()] == [[], []]

        (folder,) = (tmp_path / "spool" / "files").glob("*/*")
        write_instance(folder / ("0" * 32))
        assert [len(sweep()), len(sweep())] == [4, 4], "one without a row is seen twice before it counts"
        turn(daemon, lambda: states(config) == {"CONFIRMED": 4})
        assert [len(sweep()), len(sweep())] == [4, 0]

        write_instance(tmp_path / "drop" / "image")
        turn(daemon, lambda: states(config) == {"CONFIRMED": 5})
        # A second one within one tick of the filesystem's clock leaves no other time: one look is not enough.
        assert [len(sweep()), len(sweep()), len(sweep())] == [1, 1, 0]

        folder.rename(tmp_path / "away").rename(folder)
        assert [len(sweep()), len(sweep()), len(sweep())] == [4, 4, 0], "whatever its mtime"


def test_files_on_their_way_are_taken_for_no_orphans(tmp_path: Path, server: Emulator) -> None:
    config = configure(tmp_path, server)
    with running(config) as daemon:
        turn(daemon, lambda: daemon.stages.orphans.are_adopted)
        daemon.stages.orphans.sweep_every = 0.0
        daemon.stages.orphans._sweep_at = 0.0
        for number in range(200):
            content = image().replace(b"1.2.3.4.5\x00", f"1.2.3.4.5.{number}".ljust(10, "\0").encode()[:10])
            (tmp_path / "drop" / f"image{number}").write_bytes(content)
        turn(daemon, lambda: daemon.stages.admission.taken_in >= 200)
        turn(daemon, pass_seconds(1))
        assert daemon.stages.admission.taken_in == 200
        wait_until(lambda: daemon.stages.admission.is_idle, what="idle")


def test_loop_rests_while_files_without_rows_are_read(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read again waits for them, and counted as due all the time: the loop turned without a rest."""
    monkeypatch.setattr(orphans, "_ADOPTED_AT_ONCE", 1)
    config = configure(tmp_path, server)
    with running(config) as daemon:
        folder = tmp_path / "spool" / "files" / config.inboxes[0].spool_name
        folder.mkdir()
        (folder / ("0" * 32)).write_bytes(image())
        daemon.loop.tick()
        now = read_clocks()

        assert daemon.stages.admission.in_hand
        assert daemon.stages.rereads.next_at(now) > now.mono + 0.1
        assert daemon.stages.orphans.next_at(now) > now.mono + 0.1


def test_loop_rests_while_the_spool_is_away(tmp_path: Path, server: Emulator) -> None:
    """From the next sweep for files without rows on it turned without a rest, until the spool was back."""
    config = configure(tmp_path, server)
    with running(config) as daemon:
        turn(daemon, lambda: daemon.stages.orphans.are_adopted)
        (tmp_path / "spool" / "files").rename(tmp_path / "away")
        turn(daemon, lambda: not daemon.stages.disk.stands)
        daemon.stages.orphans._sweep_at = 0.0

        assert turn(daemon, pass_seconds(1)) < 200, "without a rest it turns thousands of times"
