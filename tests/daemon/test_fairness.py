"""Nobody starves, and what matters more goes first: destinations, inboxes and studies beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.config import Config, load
from ingestd.daemon import Daemon, once_policies, run_once
from ingestd.emulator import Emulator
from tests.builders import instance_bytes
from tests.daemon.test_destinations import states
from tests.daemon.test_promise import running, turn
from tests.emulating import EmulatorProcess
from tests.ledgers import agree_anew, raw, url_of

Servers = dict[str, Emulator]


@pytest.fixture
def servers() -> Iterator[Servers]:
    with Emulator(fsync=False) as archive, Emulator(fsync=False) as research:
        yield {"archive": archive, "research": research}


def configure(
    folder: Path,
    destinations: str,
    *,
    batch: str = "quiet_period: 50ms",
    er: str = "",
    reconcile: str = "interval: 100ms",
) -> Config:
    """Two inboxes, ``ward`` and ``er``, the latter with these keys; ``destinations`` as they are written in YAML."""
    for name in ("er", "ward"):
        (folder / name).mkdir(exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(
        f"inboxes:\n  - {{path: ward, name: ward, settle: 50ms}}\n  - {{path: er, name: er, settle: 50ms{er}}}\n"
        "spool: {path: spool, low_water: 1MB}\n"
        f"batch: {{{batch}}}\n"
        "retry: {base: 200ms, cap: 1s}\n"
        f"destinations:\n{destinations}"
        f"reconcile: {{{reconcile}, lag: 1s, absence_wait: 200ms, verify: presence}}\n"
        "shutdown_grace: 5s\n"
        f"ledger: {url_of(folder)}\n"
        "reader: {processes: 1}\n"
    )
    agree_anew(folder)
    return load(file)


def written(servers: Servers, **more: str) -> str:
    """The servers' section of a configuration; ``more`` has further keys of one, by its name."""
    return "".join(f"  {name}: {{url: '{server.url}'{more.get(name, '')}}}\n" for name, server in servers.items())


def drop(folder: Path, inbox: str, study: int, number: int = 1) -> None:
    study_uid = f"1.2.3.{study}"
    (folder / inbox / f"{study}-{number}").write_bytes(
        instance_bytes(study_uid=study_uid, series_uid=f"{study_uid}.1", sop_uid=f"{study_uid}.1.{number}")
    )


def told(config: Config, question: str, *values: object) -> int:
    with raw(config.ledger) as ledger:
        return int(ledger.execute(question, values).fetchone()[0])


def of_study(config: Config, study: int, states: str) -> int:
    """How many of its deliveries are in one of these states."""
    question = "SELECT count(*) FROM delivery JOIN study ON study.id = study_id WHERE uid = ? AND state IN"
    words = states.split()
    return told(config, f"{question} ({', '.join('?' * len(words))})", f"1.2.3.{study}", *words)


def taken_in(config: Config) -> int:
    return told(config, "SELECT count(*) FROM delivery")


def posts_before(config: Config, study: int) -> int:
    """How many posts of other studies began before the first of this one, since its last file had been taken in."""
    question = """WITH ours AS (SELECT id FROM study WHERE uid = ?)
        SELECT count(*) FROM attempt WHERE id < (SELECT min(id) FROM attempt WHERE study_id IN (SELECT id FROM ours))
        AND started_at >= (SELECT max(admitted_at) FROM delivery WHERE study_id IN (SELECT id FROM ours))"""
    return told(config, question, f"1.2.3.{study}")


def in_hand(daemon: Daemon, name: str) -> int:
    return daemon.stages.servers[name].posting.in_hand


def test_lower_destination_sends_one_post_at_a_time_while_a_higher_one_has_something_to_send(
    tmp_path: Path, servers: Servers
) -> None:
    """One, not none: it gets on all the same; and it has all its posts again once the higher one is done."""
    for server in servers.values():
        server.faults.add("latency", method="POST", seconds=0.2)
    config = configure(tmp_path, written(servers, research=", priority: -1"), batch="quiet_period: 500ms")
    for number in range(16):
        drop(tmp_path, "ward", number)
    at_once: dict[bool, set[int]] = {True: set(), False: set()}

    def all_sent(daemon: Daemon) -> bool:
        at_once[in_hand(daemon, "archive") > 0].add(in_hand(daemon, "research"))
        return not states(config).keys() & {(name, state) for name in servers for state in ("PENDING", "SENDING")}

    with running(config) as daemon:
        turn(daemon, lambda: states(config)["research", "PENDING"] == 16)
        turn(daemon, lambda: all_sent(daemon), seconds=60)

    assert max(at_once[True]) == 1
    assert max(at_once[False]) == 4


def test_paused_destination_is_in_nobodys_way(tmp_path: Path, servers: Servers) -> None:
    servers["archive"].faults.add("unavailable", retry_after="60")
    servers["research"].faults.add("latency", method="POST", seconds=0.2)
    config = configure(tmp_path, written(servers, archive=", priority: 1"))
    for number in range(8):
        drop(tmp_path, "ward", number)

    with running(config) as daemon:
        turn(daemon, lambda: in_hand(daemon, "research") == 4)
        assert daemon.stages.servers["archive"].posting.destination.pause is not None


def test_server_that_hangs_delays_nothing_of_another(tmp_path: Path, servers: Servers) -> None:
    """Neither what was in hand when it froze, nor what comes since."""
    with EmulatorProcess(tmp_path / "frozen") as hanging:
        config = configure(tmp_path, written(servers) + f"  hanging: {{url: '{hanging.url}'}}\n")
        with running(config) as daemon:
            turn(daemon, lambda: daemon.workers.servers["hanging"].sender.profile)
            with hanging.frozen():
                for number in range(8):
                    drop(tmp_path, "ward", number)
                turn(daemon, lambda: states(config)["archive", "CONFIRMED"] == 8)
                drop(tmp_path, "er", 9)
                turn(daemon, lambda: states(config)["archive", "CONFIRMED"] == 9)
                assert states(config)["hanging", "SENDING"] == in_hand(daemon, "hanging") == 4
            turn(daemon, lambda: states(config)["hanging", "CONFIRMED"] == 9, seconds=60)


def test_end_of_a_run_waits_for_no_slow_server_to_have_another_proven(tmp_path: Path, servers: Servers) -> None:
    """Nobody's feed was read again, but at its interval, before the last post to anybody was answered."""
    servers["research"].faults.add("latency", method="POST", seconds=2)
    servers["archive"].faults.add("late_feed", seconds=0.5)
    config = configure(tmp_path, written(servers), reconcile="interval: 1h")
    drop(tmp_path, "ward", 1)
    proven_before = []

    def watch(daemon: Daemon) -> None:
        if in_hand(daemon, "research") and states(config)["archive", "CONFIRMED"]:
            proven_before.append(daemon)

    assert run_once(config, timeout=timedelta(seconds=30), policies=once_policies(config), watch=watch).done
    assert proven_before


@pytest.mark.parametrize("er", ["", ", priority: 10"])
@pytest.mark.parametrize("files", [300, pytest.param(4_000, marks=pytest.mark.slow)])
def test_study_of_ten_files_waits_for_few_of_those_that_another_inbox_dropped_at_once(
    tmp_path: Path, servers: Servers, files: int, er: str
) -> None:
    """At reading for what is in hand, at most; at sending for the posts under way, and a turn or two."""
    config = configure(tmp_path, written({"archive": servers["archive"]}), er=er)
    for number in range(files):
        drop(tmp_path, "ward", 10 + number)

    with running(config) as daemon:
        turn(daemon, lambda: taken_in(config) > 50)
        before = taken_in(config)
        for number in range(10):
            drop(tmp_path, "er", 1, number)
        turn(daemon, lambda: of_study(config, 1, "PENDING SENDING STORED CONFIRMED") == 10, seconds=60)
        assert taken_in(config) - before < 2_000
        turn(daemon, lambda: of_study(config, 1, "CONFIRMED") == 10, seconds=60)

    assert posts_before(config, 1) <= 16


def test_study_of_thousands_lets_the_small_ones_by(tmp_path: Path, servers: Servers) -> None:
    config = configure(
        tmp_path,
        written({"archive": servers["archive"]}, archive=", max_posts: 1"),
        batch="quiet_period: 50ms, max_instances: 5",
    )
    for number in range(300):
        drop(tmp_path, "ward", 1, number)

    with running(config) as daemon:
        daemon.gates.claims.shut("not yet")
        turn(daemon, lambda: taken_in(config) == 300)
        drop(tmp_path, "ward", 2)
        turn(daemon, lambda: taken_in(config) == 301)
        daemon.gates.claims.open("not yet")
        turn(daemon, lambda: of_study(config, 2, "CONFIRMED") == 1)

    assert posts_before(config, 2) <= 2


def test_urgent_study_overtakes_what_has_waited_for_hours(tmp_path: Path, servers: Servers) -> None:
    """One minute of waiting counted as one: after an outage of a night nothing urgent went first."""
    config = configure(tmp_path, written({"archive": servers["archive"]}), er=", priority: 10")
    for number in range(40):
        drop(tmp_path, "ward", 10 + number)

    with running(config) as daemon:
        daemon.gates.claims.shut("not yet")
        turn(daemon, lambda: taken_in(config) == 40)
        with raw(config.ledger) as ledger:
            for table, column in (("delivery", "admitted_at"), ("study_sum", "oldest_at"), ("study_sum", "due_at")):
                ledger.execute(f"UPDATE {table} SET {column} = {column} - 36000000000")
        drop(tmp_path, "er", 1)
        turn(daemon, lambda: of_study(config, 1, "PENDING") == 1)
        daemon.gates.claims.open("not yet")
        turn(daemon, lambda: of_study(config, 1, "CONFIRMED") == 1)

    assert posts_before(config, 1) <= 4
