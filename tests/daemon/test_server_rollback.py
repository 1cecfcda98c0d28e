"""A server that is restored from an older backup: what it lost is found while our copies are still there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingestd.clocks import read_clocks
from ingestd.daemon.server_rollback import last_before_outages
from ingestd.emulator import Emulator
from ingestd.ledger import Resting, moves, queries
from ingestd.lifecycle import State
from tests.builders import write_instance
from tests.daemon.test_verification import rooms, somebody_else, turn_until, utc_now
from tests.emulating import EmulatorProcess
from tests.ledger.test_growth import steps_of
from tests.running import Site, wait_until
from tests.serving import only_server

KEPT, LOST = "kept", ("lost", "gone", "missing")
SETTINGS = {"feed": {}, "query": {"destination": {"kind": "other"}}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmulatorProcess]:
    with EmulatorProcess(tmp_path / "server") as emulator:
        yield emulator


def restored(server: EmulatorProcess, backup: Path, *words: str) -> None:
    """Have the server as it was: stopped, its folder replaced by the copy, started again."""
    server.stop()
    shutil.rmtree(server.data)
    shutil.copytree(backup, server.data)
    server.start(*words)


def back_up(server: EmulatorProcess, backup: Path) -> None:
    server.stop()
    shutil.copytree(server.data, backup)
    server.start()


def keep(site: Site, retain: str) -> None:
    site.configure(spool={"path": "./spool", "low_water": "10MB", "retain": retain}, **SETTINGS[site.folder.name])


def states_of(site: Site, names: Sequence[str]) -> set[State]:
    return {site.entry_of(name).state for name in names}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, posts_since, words",
    [
        ("feed", 0, ()),
        ("feed", 1, ()),
        ("feed", 1, ("--fault", "feed_gap=1")),
        ("query", 0, ()),
        ("query", 1, ()),
    ],
    ids=["feed", "overtaken feed", "feed that skips", "query", "query, and more is confirmed since"],
)
def test_server_restored_from_an_older_backup_is_noticed_before_our_copies_go(
    tmp_path: Path, server: EmulatorProcess, kind: str, posts_since: int, words: tuple[str, ...]
) -> None:
    """Nothing noticed; after ``retain`` our copies, the only ones, went. Databases skip sequences after a restart."""
    site = Site(tmp_path / kind, server.url)
    keep(site, "24h")
    write_instance(site.drop / KEPT)
    assert site.run_once().returncode == 0
    back_up(server, tmp_path / "backup")
    for name in LOST:
        write_instance(site.drop / name)
    assert site.run_once().returncode == 0
    restored(server, tmp_path / "backup", *words)
    other = Site(tmp_path / "other", server.url)
    for number in range(posts_since):
        write_instance(other.drop / str(number))
    assert posts_since == 0 or other.run_once().returncode == 0
    if kind == "query" and posts_since:
        write_instance(site.drop / "since")
        assert site.run_once().returncode == 0

    keep(site, "0s")
    with site.start() as daemon:
        wait_until(lambda: states_of(site, LOST) == {State.DELETED}, what="what was lost")
        wait_until(lambda: site.entry_of(KEPT).removed_at is not None, what="the removals")
        wait_until(lambda: "went_back" not in site.stopped(), what="the end of the alarm")
        log = daemon.log.read_text()

    assert states_of(site, [KEPT]) == {State.CONFIRMED}
    assert '"kind": "went_back"' in log
    sent = site.command("retry", "--state", "DELETED")
    assert sent.returncode == 0, sent.stderr
    assert site.run_once().returncode == 0
    assert states_of(site, LOST) == {State.CONFIRMED}


def test_every_row_that_was_confirmed_last_before_a_server_may_have_been_away_is_asked_for():
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def row(delivery_id: int, seconds: float, *, confirmed: float | None = None) -> Resting:
        first = seconds if confirmed is None else confirmed
        return Resting(delivery_id, noon + timedelta(seconds=seconds), noon + timedelta(seconds=first))

    burst = [row(1, 0), row(3, 0.2), row(2, 0.9)]
    duplicate = row(9, 50, confirmed=-3600)
    pauses = [row(100 + at, 60 * at) for at in range(1, 101)]

    assert last_before_outages(burst) == ({2, 3}, burst[-1].settled_at)
    assert last_before_outages([*burst, row(4, 30), duplicate]) == ({2, 3, 4, 9}, duplicate.settled_at)
    asked, up_to = last_before_outages(pauses)
    assert (len(asked), up_to) == (12, pauses[11].settled_at)
    assert last_before_outages(pauses[:1]) == ({101}, pauses[0].settled_at)


@pytest.mark.slow
def test_no_copy_goes_while_the_server_cannot_be_asked(tmp_path: Path, server: EmulatorProcess) -> None:
    """A server that is down may be about to come back as it was days ago."""
    site = Site(tmp_path / "feed", server.url)
    keep(site, "24h")
    write_instance(site.drop / KEPT)
    assert site.run_once().returncode == 0
    server.stop()
    keep(site, "0s")

    with site.start():
        time.sleep(6)  # longer than the time between two removals
        assert site.entry_of(KEPT).removed_at is None
        server.start()
        wait_until(lambda: site.entry_of(KEPT).removed_at is not None, what="the removal")


def steps_of_a_look(folder: Path, files: int) -> int:
    """Hold so many files behind a server that is away, and count what the next look asks of the ledger."""
    with Emulator(fsync=False) as server:
        site = Site(folder, server.url)
        site.configure(spool={"path": "./spool", "low_water": "10MB", "retain": "24h"})
        for number in range(files):
            write_instance(site.drop / f"{number}")
        with rooms(site) as daemon:
            turn_until(daemon, lambda: queries.counts(daemon.ledger)[State.CONFIRMED] == files, what="the proofs")
    site.configure(spool={"path": "./spool", "low_water": "10MB", "retain": "0s"})
    with rooms(site) as daemon:
        turn_until(daemon, lambda: daemon.stages.orphans.are_adopted, what="the start")
        now = read_clocks()
        later = replace(now, mono=now.mono + 5)
        steps = steps_of(daemon.ledger, lambda _: only_server(daemon).server_rollback.collect(later))
        assert not only_server(daemon).removals.is_open
    return steps


def test_files_that_are_held_while_the_server_is_away_are_not_read_again_and_again(tmp_path: Path):
    """Each second twenty thousand rows were read, and thrown away since the server could not be asked."""
    few = steps_of_a_look(tmp_path / "few", 3)
    assert steps_of_a_look(tmp_path / "many", 30) <= few + 20


@pytest.mark.slow
def test_single_run_is_done_though_the_server_cannot_be_looked_at_for_what_may_go(
    tmp_path: Path, server: EmulatorProcess
) -> None:
    """It waited for an answer until its time was over, and ended with "not done in time"."""
    site = Site(tmp_path / "query", server.url)
    keep(site, "24h")
    write_instance(site.drop / KEPT)
    assert site.run_once().returncode == 0
    server.stop()
    keep(site, "0s")

    once = site.command("run", "--once", "--timeout", "10s")

    assert once.returncode == 0, once.stdout
    assert site.entry_of(KEPT).removed_at is None


def test_that_it_went_back_is_settled_only_if_no_look_is_left_when_that_is_written(tmp_path: Path) -> None:
    """In the same transaction the feed may have shown that it went back again."""
    with Emulator(fsync=False) as server:
        site = Site(tmp_path / "feed", server.url)
        write_instance(site.drop / KEPT)
        with rooms(site) as daemon, somebody_else(site) as other:
            turn_until(daemon, lambda: queries.counts(daemon.ledger)[State.CONFIRMED], what="the proof")
            with other.transaction() as tx:
                moves.went_back(tx, to=None, end=None, now=utc_now())
            assert queries.has_looks(daemon.ledger)
            only_server(daemon).server_rollback._settled = True  # as it was when that was looked at

            with daemon.ledger.transaction() as tx:
                only_server(daemon).server_rollback.write(tx, read_clocks())

            assert queries.went_back_at(daemon.ledger) is not None
            assert not only_server(daemon).removals.is_open
            turn_until(daemon, lambda: queries.went_back_at(daemon.ledger) is None, what="the end of it")
