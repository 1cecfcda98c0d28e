"""Which kept files go from the spool, and what keeps them there."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from ingestd.ledger import Entry, Ledger
from tests.running import PROGRAM, Site, environment, kill_session, wait_until
from tests.test_daemon_promise import configure, image, running, states, turn


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


def only_entry(ledger_file: Path) -> Entry:
    with Ledger.open(f"sqlite:///{ledger_file}", read_only=True) as ledger:
        (entry,) = ledger.entries()
    return entry


def pass_seconds(seconds: float) -> object:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


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
        wait_until(lambda: "nobody can say how full" in log.read_text(), what="the alarm")
        (site.drop / "another").write_bytes(image(first_pixel=1))
        told = site.command("status", "--exit-code")
        time.sleep(6)  # longer than the time between two removals
    finally:
        kill_session(daemon.pid)
        daemon.wait()

    assert "Stopped because nobody can say how full the spool's disk is" in told.stdout
    assert told.returncode == 1
    assert (site.drop / "another").exists()
    assert only_entry(site.ledger_file).removed_at is None


def test_kept_files_stay_while_anything_stands_in_the_way(tmp_path: Path, server: Emulator) -> None:
    config = configure(tmp_path, server, retain="0s")
    (tmp_path / "drop" / "image").write_bytes(image())
    with running(config) as daemon:
        removals = daemon.housekeeping.removals
        removals.stop("one")
        removals.stop("other")
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        removals.allow("one")
        daemon.housekeeping.hurry()
        turn(daemon, pass_seconds(0.5))
        assert only_entry(tmp_path / "ledger.db").removed_at is None

        removals.allow("other")
        daemon.housekeeping.hurry()
        turn(daemon, lambda: only_entry(tmp_path / "ledger.db").removed_at is not None)
