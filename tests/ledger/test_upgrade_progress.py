"""What is told while a ledger of 0.1 is brought up to date, and what others see of it meanwhile."""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ingestd.daemon.notify import Notifier
from ingestd.ledger import upgrade
from ingestd.ledger.migrations import MIGRATIONS
from tests.former_ledgers import SCHEMA, make_former_ledger, many_rows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return make_former_ledger(tmp_path / "ledger.db")


def bring(file: Path, tell: upgrade.Tell) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as driver:
        upgrade.bring_up_to_date(driver, file, tell)


def test_every_step_is_told_and_a_long_one_more_than_once(file: Path, monkeypatch: pytest.MonkeyPatch):
    many_rows(file, 20_000)
    monkeypatch.setattr(upgrade, "_TELL_EVERY_SECONDS", 0.0)
    told: list[str] = []

    bring(file, told.append)

    words = list(dict.fromkeys(each.removeprefix("bringing the ledger up to date: ") for each in told))
    total = sum(map(len, MIGRATIONS[SCHEMA:]))
    steps = [f"step {number} of {total}" for number in range(1, total + 1)]
    assert words == ["keeping a copy of it", *steps, "checking it", "committing it"]
    assert len(told) > len(words)


def test_it_is_told_once_in_a_few_seconds(file: Path):
    told: list[str] = []
    bring(file, told.append)
    assert told == ["bringing the ledger up to date: keeping a copy of it"]


def test_systemd_gives_it_time(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        bring(file, Notifier().starting)
        said = ear.recv(4096)
    assert said == b"EXTEND_TIMEOUT_USEC=900000000\nSTATUS=bringing the ledger up to date: keeping a copy of it"


def test_who_reads_meanwhile_reads_the_old_one(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(upgrade, "_TELL_EVERY_SECONDS", 0.0)
    seen: set[object] = set()

    def look(_: str) -> None:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as reader:
            seen.add(reader.execute("SELECT count(*) FROM instance").fetchone())
            seen.add(reader.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone())

    bring(file, look)

    assert seen == {(43,), (str(SCHEMA),)}
