"""What another looks after now is no trouble of ours any more."""

from __future__ import annotations

import errno
import subprocess
import tempfile
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.builders import write_instance
from tests.fleet.gateways import Gateways, gateways
from tests.fleet.test_division import divided
from tests.running import PROGRAM, environment, wait_until
from tests.torture.failing import Fault, Injector

_ALARMS = "SELECT worker_id FROM alarm WHERE kind = 'not_removed'"


@pytest.mark.slow
def test_source_that_another_removes_is_told_of_no_more(tmp_path: Path, server: Emulator, database: str, library: Path):
    keeps = Fault(call="rename", error=errno.EACCES, place="-", nth=1, times=1_000_000)
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="z") as drop,
        gateways(tmp_path, server, database, drop=drop, more_drops=1) as two,
    ):
        a = two.start("a", env=Injector(library, tmp_path / "rule", keeps, f"{drop}/").environment)
        two.feed(1)
        wait_until(lambda: two.sql(_ALARMS), what="the alarm")

        b = two.start("b")
        divided(two, a, b)
        assert two.drop.name in two.claims()[two.worker_of(b)]
        wait_until(lambda: not list(two.drop.glob("IM*")), what="the removal")

        wait_until(lambda: not two.sql(_ALARMS), what="the end of the alarm")


@pytest.mark.slow
def test_what_a_send_met_with_that_was_killed_stands_no_longer_than_its_files_wait(tmp_path: Path, both: Gateways):
    """Its folder was gone for good, and `status` told of it for ever: nobody calls `send` on it again."""
    disc = tmp_path / "disc"
    disc.mkdir()
    write_instance(disc / "one")
    site = both.site("a")
    assert site.run_once().returncode == 0
    both.server.faults.add("latency", method="POST", seconds=30.0)
    words = [*PROGRAM, "send", str(disc), "-c", str(site.config_file)]
    with subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL) as send:
        both.wait_for(SENDING=1)
        disc.rename(tmp_path / "taken out")
        wait_until(lambda: both.sql("SELECT kind FROM alarm") == [("inbox",)], what="the alarm")
        send.kill()
    assert "the folder is not there" in site.command("status").stdout

    assert site.command("resolve", "1", "--discard").returncode == 0

    assert "Stopped because" not in site.command("status").stdout
