"""A spool whose files an SQLite ledger knows, and a configuration that names a PostgreSQL ledger by now."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from ingestd.ledger import LedgerError
from ingestd.ledger.moving import move
from tests.builders import instance_bytes
from tests.daemon.test_promise import configure, run
from tests.emulating import stores
from tests.running import run_program


def sent(server: Emulator) -> int:
    """How many were; what `check` tries a server with has no UIDs."""
    return sum(bool(line["study"]) for line in stores(server.requests))


def test_its_files_are_not_taken_in_by_another_ledger_and_sent_once_more(
    tmp_path: Path, server: Emulator, database: str
):
    former = f"sqlite:///{tmp_path}/ledger.db"
    config = configure(tmp_path, server, ledger=former)
    (tmp_path / "drop" / "image").write_bytes(instance_bytes())
    run(config)
    assert sent(server) == 1
    config = configure(tmp_path, server, ledger=database)

    with pytest.raises(LedgerError, match="knows nothing; take the ledger that knows them over"):
        run(config)
    told = run_program(["check", "-c", str(tmp_path / "config.yaml")])
    assert told.returncode != 0
    assert "would be made anew, and the spool has files of another one" in told.stdout

    move(former, database, key=config.spool.search_key, expect_idle=lambda _: None)
    run(config)
    assert sent(server) == 1
