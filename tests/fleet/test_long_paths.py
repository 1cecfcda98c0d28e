"""A path that no index of PostgreSQL has room for keeps one file where it lies, and no other file from anything."""

from __future__ import annotations

import random
from pathlib import Path

from ingestd.emulator import Emulator
from ingestd.ledger import Ledger, queries
from ingestd.lifecycle import State
from tests.builders import fresh_uid, instance_bytes
from tests.daemon.test_promise import configure, run

# Of three bytes each in UTF-8, and nothing that can be compressed.
_CHANCE = random.Random(1)
_FOLDERS = "".join("".join(chr(_CHANCE.randrange(0x4E00, 0x9F00)) for _ in range(80)) + "/" for _ in range(10))
LONGEST, TOO_LONG = (_FOLDERS + "像" * 29 + end for end in ("abc", "abcd"))


def put(drop: Path, name: str) -> None:
    study = fresh_uid(1)
    file = drop / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(instance_bytes(study_uid=study, series_uid=f"{study}.1", sop_uid=f"{study}.1.1"))


def test_file_under_a_path_that_is_too_long_stays_and_is_told_and_all_others_arrive(
    tmp_path: Path, server: Emulator, database: str
):
    assert [len(name.encode()) for name in (LONGEST, TOO_LONG)] == [2500, 2501]
    drop = tmp_path / "drop"
    for name in ("good", LONGEST, TOO_LONG):
        put(drop, name)

    run(configure(tmp_path, server, ledger=database), seconds=30)

    with Ledger.open(database, read_only=True) as ledger:
        status = queries.status(ledger)
        assert {state: rows for state, rows in status.states.items() if rows} == {State.CONFIRMED: 2}
        assert [(alarm.kind, "too deep" in alarm.note) for alarm in status.alarms] == [("too_deep", True)]
        assert status.inboxes[0].counts["too_deep"] == 1
    assert (drop / TOO_LONG).exists()
