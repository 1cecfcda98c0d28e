"""What a daemon with nothing to do does: counted over minutes that pass at once."""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta
from math import inf

import pytest

from ingestd import clocks, lease
from ingestd.config import load
from ingestd.daemon import Daemon
from ingestd.daemon.loop import Wake
from ingestd.emulator import Emulator
from ingestd.ledger import Ledger, queries, session
from ingestd.lifecycle import State
from tests.builders import instance_bytes
from tests.ledgers import ON_POSTGRESQL, statements_of, url_in
from tests.patience import PATIENCE
from tests.running import Site

MINUTES = 10
LOOK_FOR_OTHERS = (
    "SELECT coalesce(sum(writes + id * 1000003), 0) FROM worker WHERE id <> %s AND ended_at IS NULL"
    if ON_POSTGRESQL
    else "PRAGMA data_version"
)


class PassingTime(Wake):
    """A bell whose waits pass at once, on both clocks; ``is_on`` once the minutes are counted."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.ahead, self.is_on, self.waits = 0.0, False, 0
        boottime, utc_now = clocks.boottime, clocks.utc_now
        for module in (clocks, lease, session):
            monkeypatch.setattr(module, "boottime", lambda: boottime() + self.ahead)
        monkeypatch.setattr(clocks.Clock, "hear", lambda *_, **__: None)  # a server's clock goes on as ever
        monkeypatch.setattr(clocks, "utc_now", lambda: utc_now() + timedelta(seconds=self.ahead))

    def wait(self, seconds):
        if not self.is_on:
            return super().wait(seconds)
        self.waits += 1
        if super().wait(0.002):
            return True
        self.ahead += max(0.0, seconds)
        return False


@pytest.fixture
def wake(monkeypatch):
    return PassingTime(monkeypatch)


@pytest.fixture
def daemon(tmp_path, wake):
    """One file was sent and is confirmed; then there was nothing to do for a minute."""
    with Emulator(fsync=False) as server:
        site = Site(tmp_path, server.url)
        (site.drop / "image").write_bytes(instance_bytes(study_uid="1.2", series_uid="1.2.3", sop_uid="1.2.3.4"))
        daemon = Daemon(load(site.config_file), wake=wake)
        try:
            daemon.start()
            until = time.monotonic() + PATIENCE
            while not queries.counts(daemon.ledger).get(State.CONFIRMED):
                assert time.monotonic() < until, "it was not confirmed"
                daemon.loop.wait(daemon.loop.tick())
            wake.is_on = True
            idle(daemon, 1)
            yield daemon
        finally:
            daemon.close()


def idle(daemon, minutes):
    """Let so many minutes pass; say what the ledger was asked, how often each, and how often the loop turned."""
    turns = 0
    until = clocks.read_clocks().mono + minutes * 60
    with statements_of(daemon.ledger) as asked:
        while clocks.read_clocks().mono < until:
            daemon.loop.wait(min(daemon.loop.tick(), until))
            turns += 1
    return Counter(asked), turns


def test_idle_loop_turns_every_five_seconds(daemon, wake):
    waits = wake.waits

    _, turns = idle(daemon, MINUTES)

    # Its own, and those of the feed that is read once a minute; in PostgreSQL, those of its heartbeat.
    assert turns < (30 if ON_POSTGRESQL else 20) * MINUTES
    assert wake.waits - waits < 90 * MINUTES


def test_idle_turn_asks_the_ledger_once_whether_another_process_has_written(daemon):
    asked, turns = idle(daemon, MINUTES)

    assert asked[LOOK_FOR_OTHERS] <= 60 * MINUTES + turns  # and each second while it waits
    assert asked.total() - asked[LOOK_FOR_OTHERS] < 80 * MINUTES  # behind what it writes itself: feed, inbox


def test_scans_that_found_nothing_new_are_written_once_a_minute_and_once_at_least(daemon):
    def scans():
        return queries.status(daemon.ledger).inboxes[0].counts["scans"]

    before = scans()
    asked, _ = idle(daemon, MINUTES)

    written = sum(times for statement, times in asked.items() if statement.startswith("UPDATE inbox"))
    assert written <= MINUTES + 1
    assert scans() >= before + 2 * MINUTES - 6  # none is lost


def test_change_in_a_folder_is_written_at_the_next_turns_whatever_was_scanned_before(daemon):
    idle(daemon, 1)
    (daemon.config.inboxes[0].path / ".hidden").write_bytes(b"x")
    for folder in daemon.workers.inboxes._folders.values():
        folder.scans.want_at_once()

    idle(daemon, 0.25)

    assert queries.status(daemon.ledger).inboxes[0].counts["ignored"] == 1


def test_idle_loop_turns_soon_after_another_process_has_written(daemon, wake):
    wake.is_on = False
    daemon.loop.tick()
    with Ledger.open(url_in(daemon.ledger), create=False) as other, other.transaction() as tx:
        tx.begin()
        other.connection.exec_driver_sql("INSERT INTO meta (key, value) VALUES ('news', '')")
    while wake.wait(0):
        pass
    began = time.monotonic()

    daemon.loop.wait(inf)

    assert time.monotonic() - began < 3
