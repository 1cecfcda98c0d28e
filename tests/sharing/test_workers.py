"""Two workers on one spool, with a mount each, one of which sees it no more: the other goes on, and nothing is lost."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ingestd.emulator import Emulator
from tests.builders import dataset_bytes, fresh_uid, part10
from tests.emulating import stores
from tests.inboxing import tree
from tests.running import QUICK_INBOX, Daemon, Site, TookTooLongError, wait_until
from tests.sharing.share import Share

LEASE = 2.0
_ALIVE = "SELECT id FROM worker WHERE id > 0 AND ended_at IS NULL"

CALLS = ("rename", "link", "mkdir", "unlink", "create")
CODES = (errno.ENOENT, errno.EEXIST, errno.EIO)
FAULTS: dict[str, Callable[[Share], None]] = {
    "empty": Share.is_empty,
    "stale": lambda share: share.fails(errno.ESTALE),
    "read-only": Share.is_read_only,
    "hanging": Share.hangs,
}


class Workers:
    """``a`` and ``b``, each on a mount of its own of the folder that the spool lies in."""

    def __init__(self, folder: Path, server: Emulator, ledger: str, shares: tuple[Share, Share]) -> None:
        self._server = server
        self._ledger = ledger
        self.drop = folder / "drop"
        self.drop.mkdir()
        self.sites = [Site(folder / name, server.url) for name in "ab"]
        for number, share in enumerate(shares):
            self.configure(number, spool={"path": str(share.path / "spool")})
        self.spool = folder / "shared" / "spool"
        self.dropped: list[str] = []
        self._daemons: list[Daemon] = []

    def configure(self, number: int, *, spool: dict[str, str]) -> None:
        """Write the configuration of one."""
        inbox = {"path": str(self.drop), **QUICK_INBOX}
        self.sites[number].configure(inboxes=[inbox], spool=spool, ledger=self._ledger, lease=f"{LEASE}s")

    def start(self, number: int) -> Daemon:
        """Start one; it works or stands by on return."""
        daemon = self.sites[number].start()
        self._daemons.append(daemon)
        return daemon

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.kill()

    def sql(self, statement: str, *values: Any) -> list[Any]:
        with psycopg.connect(self._ledger, autocommit=True) as connection:
            return connection.execute(statement, values).fetchall()

    def holds(self, daemon: Daemon) -> bool:
        """Whether this one has the drop folder."""
        claims = "SELECT worker_id FROM claim WHERE starts_with(name, 'inbox ')"
        found = self.sql(f"{_ALIVE} AND id IN ({claims}) AND split_part(process, ':', 3) = %s", str(daemon.pid))
        return bool(found)

    def feed(self) -> None:
        """Drop a file."""
        sop = fresh_uid(3)
        dataset = dataset_bytes(study_uid=fresh_uid(1), series_uid=fresh_uid(2), sop_uid=sop, pixels=os.urandom(512))
        aside = self.drop / f".{sop}.part"
        aside.write_bytes(part10(dataset, sop_uid=sop))
        aside.rename(self.drop / f"IM{len(self.dropped)}")
        self.dropped.append(sop)

    def wait_confirmed(self, *, kept: int | None = None) -> None:
        """Return when all that was dropped is CONFIRMED, once; nothing else has come of it, and so many are kept."""

        def states() -> dict[str, int]:
            return dict(self.sql("SELECT state, count(*) FROM delivery GROUP BY state"))

        try:
            wait_until(lambda: states() == {"CONFIRMED": len(self.dropped)}, what="all")
        except AssertionError as error:
            raise AssertionError(f"{error}: {states()}\n{[each.tail(20) for each in self._daemons]}") from None
        assert sorted(line["sop"] for line in stores(self._server.requests)) == sorted(self.dropped)
        left = len(self.dropped) if kept is None else kept
        wait_until(lambda: self.kept() == left, what=f"{left} kept")
        wait_until(lambda: not tree(self.drop), what="an empty drop folder")

    def kept(self) -> int:
        return len([path for path in (self.spool / "files").rglob("*") if path.is_file()])


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as running:
        yield running


@pytest.fixture
def workers(tmp_path: Path, server: Emulator, database: str, shares: tuple[Share, Share]) -> Iterator[Workers]:
    both = Workers(tmp_path, server, database, shares)
    try:
        yield both
    finally:
        for share in shares:
            share.heals()
        both.close()


@pytest.mark.parametrize(
    "fault", [each if each == "empty" else pytest.param(each, marks=pytest.mark.slow) for each in FAULTS]
)
def test_worker_that_sees_its_spool_no_more_is_followed_and_loses_nothing(workers: Workers, shares, fault: str):
    here, _ = shares
    a, b = workers.start(0), workers.start(1)
    workers.feed()
    workers.wait_confirmed()

    FAULTS[fault](here)
    workers.feed()

    wait_until(lambda: workers.holds(b), what="the take-over")
    workers.wait_confirmed()
    here.heals()
    assert a.wait() != 0
    again = workers.start(0)
    assert not workers.holds(again)
    b.terminate()
    wait_until(lambda: workers.holds(again), what="the one that is back")
    workers.feed()
    workers.wait_confirmed()


@pytest.mark.parametrize("fault", [pytest.param(each, marks=pytest.mark.slow) for each in FAULTS])
def test_what_another_had_is_taken_only_by_who_sees_the_spool(workers: Workers, shares, fault: str):
    _, there = shares
    a, b = workers.start(0), workers.start(1)
    workers.feed()
    workers.wait_confirmed()
    FAULTS[fault](there)
    if fault == "hanging":
        wait_until(lambda: len(workers.sql(_ALIVE)) == 1, what="its end by the other")
    else:
        wait_until(lambda: len(workers.sql(f"{_ALIVE} AND bars <> ''")) == 1, what="that it says so")
    assert workers.holds(a)

    a.kill()
    workers.feed()
    # What may only not be written is sent all the same, where nobody else is.
    if fault != "read-only":
        with pytest.raises(TookTooLongError):
            wait_until(lambda: workers.holds(b), what="it", within_seconds=2 * LEASE)
        there.heals()
    if fault == "hanging":
        assert b.wait() != 0
        b = workers.start(1)
    wait_until(lambda: workers.holds(b), what="the take-over")
    there.heals()
    workers.wait_confirmed()


@pytest.mark.slow
def test_spool_that_is_ill_for_all_is_kept_by_who_has_it(workers: Workers, shares):
    """They would hand it to and fro."""
    a, b = workers.start(0), workers.start(1)
    workers.feed()
    workers.wait_confirmed()
    for share in shares:
        share.is_read_only()
    wait_until(lambda: "alarm.raised" in a.tail(50), what="the alarm")

    with pytest.raises(AssertionError):
        wait_until(lambda: workers.holds(b) or not a.is_running(), what="it", within_seconds=4 * LEASE)

    assert workers.holds(a)
    for share in shares:
        share.heals()
    workers.feed()
    workers.wait_confirmed()


@pytest.mark.slow
def test_share_that_loses_answers_all_the_time_costs_no_file_and_makes_no_second(workers: Workers, shares):
    here, _ = shares
    spool = {"path": str(here.path / "spool"), "retain": "0s"}
    workers.configure(0, spool=spool)
    workers.start(0)
    chance = random.Random(7)

    for _ in range(60):
        here.loses(chance.choice(CALLS), chance.choice(CODES), times=chance.randint(1, 2))
        workers.feed()
        time.sleep(0.05)

    workers.wait_confirmed(kept=0)
