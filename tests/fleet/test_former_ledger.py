"""A spool whose files an SQLite ledger knows, and a configuration that names a PostgreSQL ledger by now."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.config import Config, load
from ingestd.daemon import OnceResult, once_policies, run_once
from ingestd.emulator import Emulator
from ingestd.ledger import LedgerError
from ingestd.ledger.moving import move
from tests.builders import instance_bytes
from tests.emulating import stores
from tests.running import run_program


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "drop").mkdir()
    return tmp_path


def configured(site: Path, server: Emulator, ledger: str) -> Config:
    file = site / "config.yaml"
    file.write_text(
        "inboxes: [{path: drop, settle: 50ms}]\n"
        "spool: {path: spool, low_water: 1MB}\n"
        "batch: {quiet_period: 50ms}\n"
        f'destination: {{url: "{server.url}", auth: none}}\n'
        "reconcile: {interval: 100ms, lag: 1s}\n"
        f"ledger: {ledger}\n"
        "reader: {processes: 1}\n"
    )
    return load(file)


def run(config: Config) -> OnceResult:
    return run_once(config, timeout=timedelta(seconds=30), policies=once_policies(config))


def sent(server: Emulator) -> int:
    """How many were; what `check` tries a server with has no UIDs."""
    return sum(bool(line["study"]) for line in stores(server.requests))


def test_its_files_are_not_taken_in_by_another_ledger_and_sent_once_more(site: Path, server: Emulator, database: str):
    (site / "drop" / "image").write_bytes(instance_bytes())
    former = f"sqlite:///{site}/ledger.db"
    run(configured(site, server, former))
    assert sent(server) == 1
    config = configured(site, server, database)

    with pytest.raises(LedgerError, match="knows nothing; take the ledger that knows them over"):
        run(config)
    told = run_program(["check", "-c", str(site / "config.yaml")])
    assert told.returncode != 0
    assert "would be made anew, and the spool has files of another one" in told.stdout

    move(former, database, key=config.spool.search_key, expect_idle=lambda _: None)
    run(config)
    assert sent(server) == 1
