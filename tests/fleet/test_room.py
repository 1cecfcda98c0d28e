"""Room on the disk of a spool that several have, where another than the one that removes files needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.fleet.gateways import gateways
from tests.fleet.test_database import small_disk
from tests.running import wait_until


@pytest.mark.slow
def test_kept_files_make_room_for_what_does_not_fit_for_another(tmp_path: Path, server: Emulator, database: str):
    """What does not fit was known to whoever copies alone: the file waited until a person made room for it."""
    with small_disk() as disk:
        spool = {"path": str(disk / "spool"), "low_water": "1MB", "retain": "30d"}
        with gateways(tmp_path, server, database, more_drops=1, spool=spool) as both:
            both.spool = disk / "spool"
            both.start("a")
            both.start("b")

            def whose() -> list[set[str]]:
                return sorted(both.claims().values(), key=len)

            wait_until(lambda: [len(each) for each in whose()] == [1, 2], what="each its part")
            of_other, of_upkeep = (next(drop for drop in both.drops if drop.name in claims) for claims in whose())
            both.feed(4, rows=2300, drop=of_upkeep)  # 42 MB of 64
            both.wait_confirmed()

            both.feed(1, rows=3600, drop=of_other)  # 26 MB

            both.wait_confirmed()
