"""Several work at the same time: each has its part of the drop folders, all send, and one proves (DESIGN.md 8.15)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingestd.config import Inbox
from ingestd.emulator import Emulator
from tests.builders import fresh_uid
from tests.emulating import stores
from tests.fleet.gateways import GRACE, LEASE, Gateways, gateways, stopped
from tests.running import QUICK_INBOX, Daemon, Site, TookTooLongError, descendants, wait_until
from tests.torture.failing import Fault, Injector

_POSTS_BY = "SELECT DISTINCT worker_id FROM attempt"


@pytest.fixture
def four(tmp_path: Path, server: Emulator, database: str) -> Iterator[Gateways]:
    """Gateways that have four drop folders."""
    with gateways(tmp_path, server, database, more_drops=3) as found:
        yield found


def divided(all_: Gateways, *daemons: Daemon, within_seconds: float = LEASE + GRACE) -> None:
    """Return when these have all there is, each at most its part of the drop folders, and nobody else has any."""
    folders = {drop.name for drop in all_.drops}
    most = -(-len(folders) // len(daemons))

    def is_divided() -> bool:
        claims = all_.claims()
        had = [name for names in claims.values() for name in names]
        parts = [len(names & folders) for names in claims.values()]
        ours = {all_.worker_of(daemon) for daemon in daemons}
        return claims.keys() == ours and sorted(had) == sorted({*folders, "upkeep"}) and max(parts) <= most

    wait_until(is_divided, what=f"the division: {all_.claims()}", within_seconds=within_seconds)


def feed_all(all_: Gateways, count: int = 2, *, study: str = "") -> None:
    for drop in all_.drops:
        all_.feed(count, study=study, drop=drop)


def test_those_that_come_are_given_their_part_and_those_that_go_leave_it(four: Gateways):
    a = four.start("a")
    divided(four, a)
    feed_all(four)
    b = four.start("b")
    feed_all(four)
    divided(four, a, b)
    feed_all(four)
    c = four.start("c")
    divided(four, a, b, c)
    feed_all(four)

    four.put_elsewhere()
    assert a.terminate() == 0
    divided(four, b, c)
    feed_all(four)
    c.kill()
    divided(four, b)
    feed_all(four)

    four.wait_confirmed()
    assert four.check() == []
    assert set(four.posted().values()) == {1}


def test_one_study_in_two_folders_is_taken_in_by_two_and_sent_by_both(four: Gateways):
    a, b = four.start("a"), four.start("b")
    divided(four, a, b)
    studies = [fresh_uid(1) for _ in range(20)]

    for study in studies:
        for drop in four.drops[:2]:
            four.feed(1, study=study, drop=drop)
    four.wait_confirmed()

    assert {number for (number,) in four.sql(_POSTS_BY)} == {four.worker_of(a), four.worker_of(b)}
    assert four.check() == []
    assert set(four.posted().values()) == {1}


def test_same_file_in_two_folders_at_once_is_sent_once(four: Gateways):
    a, b = four.start("a"), four.start("b")
    divided(four, a, b)
    for _ in range(10):
        (file,) = four.feed(1, drop=four.drops[0])
    for file in four.drops[0].glob("IM*"):
        for drop in four.drops[1:]:
            shutil.copy(file, drop / f".{file.name}")
            (drop / f".{file.name}").rename(drop / f"again-{file.name}")

    def is_settled() -> bool:
        states = four.states()
        return states.keys() <= {"CONFIRMED", "DUPLICATE"} and states.get("CONFIRMED") == len(four.written)

    wait_until(is_settled, what="the end of all")
    assert set(four.posted().values()) == {1}


def test_wait_that_the_server_asks_for_is_kept_by_all(four: Gateways):
    a, b = four.start("a"), four.start("b")
    divided(four, a, b)
    four.server.faults.add("throttle", method="POST", retry_after="4", count=1)
    four.feed(1)
    wait_until(lambda: four.sql("SELECT id FROM destination WHERE paused_until IS NOT NULL"), what="the pause")
    refused_at = datetime.now(UTC)

    feed_all(four)
    four.wait_confirmed()

    (first,) = four.sql("SELECT min(started_at) FROM attempt WHERE http_status = 200")
    assert first[0] / 1e6 - refused_at.timestamp() > 2.5
    assert set(four.posted().values()) == {1}


def test_post_of_a_worker_goes_on_while_another_is_ended(four: Gateways):
    four.server.faults.add("bandwidth", method="POST", bytes=300_000, count=1)
    a = four.start("a")
    four.feed(1, rows=900)
    four.wait_for(SENDING=1)
    b = four.start("b")
    divided(four, a, b)

    b.kill()
    divided(four, a)
    assert four.states() == {"SENDING": 1}

    four.wait_confirmed()
    assert four.sql("SELECT id FROM attempt WHERE interrupted = 1") == []
    assert four.check() == []


@pytest.mark.slow
def test_worker_that_ends_gives_all_up_while_its_last_post_goes_on(four: Gateways):
    four.server.faults.add("bandwidth", method="POST", bytes=300_000, count=1)
    a = four.start("a", shutdown_grace="30s")
    four.feed(1, rows=1500)
    four.wait_for(SENDING=1)
    b = four.start("b")
    divided(four, a, b)

    a.process.send_signal(signal.SIGTERM)
    wait_until(lambda: len(four.claims()[four.worker_of(b)]) == len(four.drops) + 1, what="all")
    assert a.is_running()
    writes = "SELECT writes FROM worker WHERE id = %s"
    ((before,),) = four.sql(writes, four.worker_of(a))
    feed_all(four, 1)
    time.sleep(1)
    ((after,),) = four.sql(writes, four.worker_of(a))
    assert after - before < 10, "it has nothing more to say"

    assert a.wait() == 0
    four.wait_confirmed()
    assert four.sql("SELECT id FROM attempt WHERE interrupted = 1") == []
    assert four.check() == []


def test_folder_is_given_up_once_nothing_of_it_is_in_hand(four: Gateways):
    a = four.start("a")
    divided(four, a)
    readers = [each for each in descendants(a.pid) if each != a.pid]
    for reader in readers:
        os.kill(reader, signal.SIGSTOP)
    feed_all(four, 1)
    wait_until(lambda: four.sql("SELECT count(*) FROM candidate") == [(len(four.drops),)], what="all in hand")
    b = four.start("b")
    with pytest.raises(TookTooLongError):
        divided(four, a, b, within_seconds=2)
    assert len(four.claims()[four.worker_of(a)]) == len(four.drops) + 1

    for reader in readers:
        os.kill(reader, signal.SIGCONT)
    divided(four, a, b)
    four.wait_confirmed()
    assert four.check() == []


@pytest.mark.slow
def test_worker_that_is_stopped_for_ten_leases_loses_its_part_and_ends(four: Gateways):
    a, b = four.start("a"), four.start("b")
    divided(four, a, b)
    four.put_elsewhere()
    feed_all(four, 5)

    with stopped(a):
        divided(four, b)
        feed_all(four, 5)
        time.sleep(10 * LEASE)

    assert a.wait() != 0
    assert "was ended because it was silent" in a.tail()
    four.wait_confirmed()
    assert four.check() == []
    assert set(four.posted().values()) == {1}


@pytest.mark.slow
def test_folder_that_one_does_not_see_is_taken_from_by_another_or_told_of(
    tmp_path: Path, server: Emulator, database: str, library: Path
):
    (nas := tmp_path / "nas").mkdir()
    blinds = Fault(call="stat", error=errno.ENOENT, place="-", nth=1, times=1_000_000)
    with gateways(tmp_path, server, database, drop=str(nas / "drop"), more_drops=1) as two:
        there, here = two.drops
        a = two.start("a")
        b = two.start("b", env=Injector(library, tmp_path / "rule", blinds, f"{nas}/").environment)

        wait_until(lambda: two.claims().get(two.worker_of(b)) == {here.name}, what="its part")
        assert two.claims()[two.worker_of(a)] == {there.name, "upkeep"}
        feed_all(two)
        two.wait_confirmed()
        a.kill()
        feed_all(two)

        two.wait_for(CONFIRMED=6)
        assert two.claims() == {two.worker_of(b): {there.name, here.name, "upkeep"}}
        wait_until(lambda: two.sql("SELECT kind FROM alarm WHERE kind = 'inbox'"), what="the word of it")
        two.start("a")
        two.wait_confirmed()
        assert two.check() == []


@pytest.mark.slow
def test_folder_that_is_configured_no_more_is_of_whoever_has_it_until_that_one_reads_so(
    tmp_path: Path, server: Emulator, database: str
):
    """What that one was just taking in, the other took for left behind: one of both could not write, and ended."""
    with gateways(tmp_path, server, database, more_drops=1, lease="30s") as two:
        a = two.start("a")
        divided(two, a)
        b = two.start("b")
        divided(two, a, b)
        stays, goes = sorted(two.drops, key=lambda drop: drop.name in two.claims()[two.worker_of(b)])
        for name in ("a", "b"):
            site = two.site(name, inboxes=[{"path": str(stays), **QUICK_INBOX}])

        with stopped(b):
            two.feed(drop=goes)
            brought = two.spool / "files" / Inbox(path=goes).spool_name / ("0" * 8) / ("0" * 32)
            brought.parent.mkdir(parents=True, exist_ok=True)
            (goes / two.written[-1].name).rename(brought)
            assert site.command("config", "adopt").returncode == 0
            wait_until(lambda: a.tail().count('"daemon.started"') == 2, what="that it was read")
            two.feed(drop=stays)
            wait_until(lambda: two.states().get("CONFIRMED"), what="what comes behind that which was left")

            assert two.states() == {"CONFIRMED": 1}
        wait_until(lambda: two.claims()[two.worker_of(b)] == set(), what="that it gives the folder up")


@pytest.mark.slow
def test_file_that_is_read_while_its_destination_goes_is_taken_in_by_what_holds_then(
    tmp_path: Path, server: Emulator, database: str
):
    """It was taken in for that destination, by the former rules: then no daemon could start, and all ended."""
    with Emulator(fsync=False) as research, gateways(tmp_path, server, database, more_drops=1) as two:
        servers = {"archive": {"url": server.url, "auth": "none"}, "research": {"url": research.url, "auth": "none"}}
        names = zip(("ward", "lab"), two.drops, strict=True)
        inboxes = [{"name": name, "path": str(drop), **QUICK_INBOX} for name, drop in names]
        rules = [{"when": {"inbox": "lab"}, "to": ["research"]}, {"when": {}, "to": ["archive"]}]
        a = two.start("a", inboxes=inboxes, destinations=servers, rules=rules)
        server.faults.add("bandwidth", method="POST", bytes=300_000, count=1)
        two.feed(rows=1000)
        two.wait_for(SENDING=1)
        readers = [each for each in descendants(a.pid) if each != a.pid]
        for reader in readers:
            os.kill(reader, signal.SIGSTOP)
        two.feed(drop=two.drops[1])
        wait_until(lambda: two.sql("SELECT count(*) FROM candidate") == [(1,)], what="a file in hand")

        site = two.site("a", inboxes=inboxes, destinations={"archive": servers["archive"]})
        assert site.command("config", "adopt").returncode == 0
        wait_until(lambda: '"config.reread"' in a.tail(), what="that it is read")
        for reader in readers:
            os.kill(reader, signal.SIGCONT)

        two.wait_confirmed()
        assert a.is_running()
        assert stores(research.requests) == []
        assert set(two.posted().values()) == {1}


@pytest.mark.slow
def test_intake_goes_on_while_a_post_has_to_end_before_another_configuration_holds(both: Gateways):
    """It stood still for as long as the post took, and nothing told of it, though files go where they went."""
    a = both.start("a")
    both.server.faults.add("latency", method="POST", seconds=60.0, count=1)
    both.feed()
    both.wait_for(SENDING=1)

    assert both.site("a", reconcile={"verify": "presence"}).command("config", "adopt").returncode == 0
    wait_until(lambda: '"config.reread"' in a.tail(), what="that it is read")
    both.feed()

    wait_until(lambda: sum(both.states().values()) == 2, what="the row")
    assert "SENDING" in both.states()


def adopted_by_one(four: Gateways) -> tuple[Daemon, Daemon, Site]:
    """Have two daemons, and a configuration adopted that the file of the second does not have: it stands by."""
    a, b = four.start("a"), four.start("b")
    divided(four, a, b)
    first = four.site("a", reconcile={"verify": "presence"})
    assert first.command("config", "adopt").returncode == 0
    divided(four, a)
    wait_until(lambda: '"event": "config.differs"' in b.tail(), what="the word of it")
    assert told_of_trouble(a) == []
    assert told_of_trouble(b) == ["config.differs"]
    return a, b, first


def told_of_trouble(daemon: Daemon) -> list[str]:
    """What was logged of any, or of its end, by the names of the events."""
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    return [each["event"] for each in lines if each["level"] in {"error", "warning"} or "recovered" in each["event"]]


def test_configuration_that_is_adopted_is_read_by_all_and_who_has_another_stands_by(four: Gateways):
    a, b, first = adopted_by_one(four)
    assert "config.reread" in a.tail()
    feed_all(four)
    four.wait_confirmed()

    four.site("b", reconcile={"verify": "presence"})
    b.process.send_signal(signal.SIGHUP)
    divided(four, a, b)
    for name in ("a", "b"):
        four.site(name, reconcile={"verify": "auto"})
    assert first.command("config", "adopt").returncode == 0
    wait_until(lambda: all("config.reread" in each.tail(3) for each in (a, b)), what="that both read it")
    divided(four, a, b)
    feed_all(four)
    four.wait_confirmed()
    assert four.check() == []


@pytest.mark.slow
def test_destination_that_has_another_name_in_what_is_adopted_has_it_at_all_who_work(both: Gateways):
    """Each refused to go on with it, and stood by for it: nobody worked any more, until each was restarted by hand."""
    a, b = (both.start(name, destinations={"archive": {"url": both.server.url, "auth": "none"}}) for name in ("a", "b"))
    both.feed()
    both.wait_confirmed()
    renamed = {"pacs": {"url": both.server.url, "auth": "none"}}
    site, _ = (both.site(name, destinations=renamed) for name in ("a", "b"))

    assert site.command("config", "adopt").returncode == 0

    both.feed()
    both.wait_confirmed()
    assert both.sql("SELECT name FROM destination") == [("pacs",)]
    wait_until(lambda: len(both.claims()) == 2, what="that both work")
    assert a.is_running()
    assert b.is_running()
    assert "Stopped because" not in site.command("status").stdout
    assert [told_of_trouble(each) for each in (a, b)] == [[], []]


@pytest.mark.slow
def test_who_stands_by_for_its_configuration_goes_on_once_its_file_is_mended(four: Gateways):
    """No signal comes to it, and who adopts finds that nothing changes."""
    a, b, first = adopted_by_one(four)

    four.site("b", reconcile={"verify": "presence"})
    divided(four, a, b)

    assert four.site("a", reconcile={"verify": "content"}).command("config", "adopt").returncode == 0
    divided(four, a)
    for name in ("a", "b"):
        four.site(name, reconcile={"verify": "auto"})
    assert first.command("config", "adopt").returncode == 0
    divided(four, a, b)
    feed_all(four)
    four.wait_confirmed()
    assert four.check() == []
