"""Whose files go, and when: each server holds what rests on it, and nothing of another's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.clocks import utc_now
from ingestd.config import Config
from ingestd.ledger import Ledger, moves, queries
from tests.daemon.test_destinations import addresses, configure, drop, run, states, stopped
from tests.daemon.test_promise import running, turn
from tests.emulating import EmulatorProcess

BY_INBOX = (
    "rules:\n"
    "  - {when: {inbox: er}, to: [archive, research]}\n"
    "  - {when: {folder: research}, to: [research]}\n"
    "  - {when: {}, to: [archive]}\n"
)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, EmulatorProcess]]:
    with EmulatorProcess(tmp_path / "archive") as archive, EmulatorProcess(tmp_path / "research") as research:
        yield {"archive": archive, "research": research}


def kept(config: Config) -> set[str]:
    """The names of the files that are in the spool still, by what the ledger says."""
    with Ledger.open(config.ledger, read_only=True) as ledger:
        return {entry.relative_path for entry in queries.entries(ledger) if entry.removed_at is None}


def fill(folder: Path, servers: dict[str, EmulatorProcess], *, retain: str = "24h") -> Config:
    """Have three files confirmed: one at both servers, one at each."""
    config = configure(folder, addresses(servers), rules=BY_INBOX, retain=retain)
    drop(folder, "er", 1)
    drop(folder, "ward", 2)
    (folder / "ward" / "research").mkdir()
    drop(folder, "ward/research", 3)
    assert run(config).done
    assert states(config) == {("archive", "CONFIRMED"): 2, ("research", "CONFIRMED"): 2}
    return config


def test_one_that_is_away_holds_what_rests_on_it_and_nothing_of_another(
    tmp_path: Path, servers: dict[str, EmulatorProcess]
) -> None:
    fill(tmp_path, servers)
    config = configure(tmp_path, addresses(servers), rules=BY_INBOX, retain="0s")

    with running(config) as daemon:
        with stopped(servers["research"]):
            turn(daemon, lambda: "IM2" not in kept(config), seconds=40)
            assert kept(config) == {"IM1", "research/IM3"}
        turn(daemon, lambda: not kept(config), seconds=60)


def test_server_that_gave_back_other_bytes_holds_what_it_has_and_nothing_of_another(
    tmp_path: Path, servers: dict[str, EmulatorProcess]
) -> None:
    fill(tmp_path, servers)
    config = configure(tmp_path, addresses(servers), rules=BY_INBOX, retain="0s")

    with running(config) as daemon:
        with daemon.ledger.at("research").transaction() as tx:
            moves.mismatch(tx, studies=(), differs="the pixels", stops=True, now=utc_now())
        turn(daemon, lambda: "IM2" not in kept(config), seconds=40)
        assert kept(config) == {"IM1", "research/IM3"}
