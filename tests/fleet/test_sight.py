"""A drop folder that nobody sees is told of, and what lies in the spool of it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.fleet.gateways import gateways
from tests.fleet.test_division import feed_all
from tests.running import wait_until


@pytest.mark.slow
def test_folder_that_nobody_sees_is_told_of(tmp_path: Path, server: Emulator, database: str):
    with gateways(tmp_path, server, database, more_drops=1) as two:
        shutil.rmtree(two.drops[1])
        two.start("a"), two.start("b")
        wait_until(lambda: two.sql("SELECT kind FROM alarm WHERE kind = 'inbox'"), what="the alarm")
        two.drops[1].mkdir()
        feed_all(two)
        two.wait_confirmed()
        wait_until(lambda: not two.sql("SELECT kind FROM alarm WHERE kind = 'inbox'"), what="its end")
