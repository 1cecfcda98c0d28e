"""What another looks after now is no trouble of ours any more."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.fleet.gateways import gateways
from tests.fleet.test_division import divided
from tests.running import wait_until
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
        wait_until(lambda: two.sql(_ALARMS), what="the alarm", within_seconds=90)

        b = two.start("b")
        divided(two, a, b)
        assert two.drop.name in two.claims()[two.worker_of(b)]
        wait_until(lambda: not list(two.drop.glob("IM*")), what="the removal")

        wait_until(lambda: not two.sql(_ALARMS), what="the end of the alarm", within_seconds=20)
