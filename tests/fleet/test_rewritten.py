"""What is written to a kept file of another's inbox is a new arrival, with the name that it was dropped by."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.builders import dataset_bytes, fresh_uid, part10
from tests.fleet.gateways import gateways
from tests.fleet.test_division import divided
from tests.running import wait_until


@pytest.mark.slow
def test_file_of_anothers_inbox_that_was_rewritten_is_taken_in_anew(tmp_path: Path, server: Emulator, database: str):
    with gateways(
        tmp_path, server, database, more_drops=1, spool={"path": str(tmp_path / "spool"), "retain": "15s"}
    ) as two:
        a, b = two.start("a"), two.start("b")
        divided(two, a, b)
        (other,) = [names for names in two.claims().values() if "upkeep" not in names]
        drop = next(each for each in two.drops if each.name in other)
        two.feed(1, drop=drop)
        two.wait_confirmed()
        (kept,) = [each for each in (two.spool / "files").rglob("*") if each.is_file()]
        sop = fresh_uid(3)
        new = part10(
            dataset_bytes(study_uid=fresh_uid(1), series_uid=fresh_uid(2), sop_uid=sop, rows=16, columns=16),
            sop_uid=sop,
        )
        with kept.open("r+b") as written:
            written.truncate(0)
            written.write(new)
        wait_until(lambda: sop in two.posted(), what="the new arrival")
        assert len(set(two.sql("SELECT relative_path FROM file"))) == 1
        assert len(two.sql("SELECT id FROM file")) == 2
