"""Nobody starves, and what matters more goes first: destinations, inboxes and studies beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.config import Config, load
from ingestd.daemon import Daemon
from ingestd.emulator import Emulator
from tests.builders import instance_bytes
from tests.daemon.test_destinations import states
from tests.daemon.test_promise import running, turn

Servers = dict[str, Emulator]


@pytest.fixture
def servers() -> Iterator[Servers]:
    with Emulator(fsync=False) as archive, Emulator(fsync=False) as research:
        yield {"archive": archive, "research": research}


def configure(folder: Path, destinations: str, *, batch: str = "quiet_period: 50ms", er: str = "") -> Config:
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
        "reconcile: {interval: 100ms, lag: 1s, absence_wait: 200ms, verify: presence}\n"
        "shutdown_grace: 5s\n"
        "ledger: sqlite:///ledger.db\n"
    )
    return load(file)


def written(servers: Servers, **more: str) -> str:
    """The servers' section of a configuration; ``more`` has further keys of one, by its name."""
    return "".join(f"  {name}: {{url: '{server.url}'{more.get(name, '')}}}\n" for name, server in servers.items())


def drop(folder: Path, inbox: str, study: int, number: int = 1) -> None:
    study_uid = f"1.2.3.{study}"
    (folder / inbox / f"{study}-{number}").write_bytes(
        instance_bytes(study_uid=study_uid, series_uid=f"{study_uid}.1", sop_uid=f"{study_uid}.1.{number}")
    )


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
