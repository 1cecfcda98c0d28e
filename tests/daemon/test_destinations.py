"""Several destinations at once: each has its own queue, proof and trouble, and a file stays until none needs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.clocks import utc_now
from ingestd.config import Config, load
from ingestd.daemon import Daemon, OnceResult, once_policies, run_once
from ingestd.ledger import Ledger, LedgerError, moves, queries
from ingestd.lifecycle import Reason
from tests.builders import instance_bytes
from tests.daemon.test_promise import running, turn
from tests.emulating import EmulatorProcess
from tests.ledgers import agree_anew, url_of

BOTH = ("archive", "research")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, EmulatorProcess]]:
    with EmulatorProcess(tmp_path / "archive") as archive, EmulatorProcess(tmp_path / "research") as research:
        yield {"archive": archive, "research": research}


def configure(
    folder: Path, servers: dict[str, str], *, rules: str = "", retain: str = "24h", interval: str = "100ms"
) -> Config:
    """Two inboxes; the servers are given as addresses."""
    for name in ("er", "ward"):
        (folder / name).mkdir(exist_ok=True)
    file = folder / "config.yaml"
    destinations = "".join(f"  {name}: {{url: '{url}', auth: none}}\n" for name, url in servers.items())
    file.write_text(
        "inboxes:\n  - {path: er, name: er, settle: 50ms}\n  - {path: ward, name: ward, settle: 50ms}\n"
        f"spool: {{path: spool, low_water: 1MB, retain: {retain}}}\n"
        "batch: {quiet_period: 50ms}\n"
        "retry: {base: 200ms, cap: 1s}\n"
        f"destinations:\n{destinations}"
        f"{rules}"
        f"reconcile: {{interval: {interval}, lag: 1s, absence_wait: 200ms}}\n"
        "shutdown_grace: 5s\n"
        f"ledger: {url_of(folder)}\n"
        "reader: {processes: 1}\n"
    )
    agree_anew(folder)
    return load(file)


def addresses(servers: dict[str, EmulatorProcess]) -> dict[str, str]:
    return {name: server.url for name, server in servers.items()}


def drop(folder: Path, inbox: str, number: int, **header: str) -> None:
    study = f"1.2.3.{number}"
    (folder / inbox / f"IM{number}").write_bytes(
        instance_bytes(study_uid=study, series_uid=f"{study}.1", sop_uid=f"{study}.1.1", **header)
    )


def run(config: Config, *, seconds: float = 20) -> OnceResult:
    return run_once(config, timeout=timedelta(seconds=seconds), policies=once_policies(config))


def states(config: Config) -> Counter[tuple[str, str]]:
    """How many entries there are, by destination ("": a file without a delivery) and state."""
    with Ledger.open(config.ledger, read_only=True) as ledger:
        return Counter((entry.destination, entry.state.value) for entry in queries.entries(ledger))


def is_paused(daemon: Daemon, name: str) -> bool:
    """Whether the daemon waits with this server, since it could not be asked or sent to."""
    return daemon.stages.servers[name].posting.destination.pause is not None


@contextmanager
def stopped(server: EmulatorProcess) -> Iterator[None]:
    """While it lasts nobody answers at this server's address."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def test_file_goes_to_every_destination_where_there_are_no_rules(
    tmp_path: Path, servers: dict[str, EmulatorProcess]
) -> None:
    config = configure(tmp_path, addresses(servers))
    for number in range(5):
        drop(tmp_path, "er", number)

    assert run(config).done

    assert states(config) == {(name, "CONFIRMED"): 5 for name in BOTH}
    assert {name: len(server.stores()) for name, server in servers.items()} == dict.fromkeys(BOTH, 5)


def test_rules_choose_per_file_and_what_no_rule_wants_needs_a_person(
    tmp_path: Path, servers: dict[str, EmulatorProcess]
) -> None:
    rules = (
        "rules:\n"
        "  - {when: {inbox: er}, to: [archive, research]}\n"
        "  - {when: {modality: SR}, to: []}\n"
        "  - {when: {modality: CT}, to: [archive]}\n"
    )
    config = configure(tmp_path, addresses(servers), rules=rules)
    drop(tmp_path, "er", 1, modality="MR")
    drop(tmp_path, "ward", 2, modality="CT")
    drop(tmp_path, "ward", 3, modality="SR")
    drop(tmp_path, "ward", 4, modality="US")

    run(config)

    assert states(config) == {
        ("archive", "CONFIRMED"): 2,
        ("research", "CONFIRMED"): 1,
        ("", "DISCARDED"): 1,
        ("", "UNROUTED"): 1,
    }
    with Ledger.open(config.ledger, read_only=True) as ledger:
        assert queries.status(ledger).needs_person == 1
        told = {entry.relative_path: (entry.reason, entry.route) for entry in queries.entries(ledger)}
    assert told["IM2"] == (Reason.CONTENT_CHECK, "rule 3 (modality CT)")
    assert told["IM3"] == (Reason.BY_RULE, "rule 2 (modality SR)")
    assert told["IM4"] == (Reason.NO_RULE, "no rule wants it")


def test_one_that_is_away_delays_nothing_of_the_other_and_the_file_stays_for_it(
    tmp_path: Path, servers: dict[str, EmulatorProcess]
) -> None:
    config = configure(tmp_path, addresses(servers), retain="0s")
    with running(config) as daemon:
        with stopped(servers["research"]):
            drop(tmp_path, "er", 1)
            turn(daemon, lambda: states(config)["archive", "CONFIRMED"] == 1)
            daemon.stages.retention.hurry()
            turn(daemon, lambda: is_paused(daemon, "research"))
            assert states(config)["research", "PENDING"] == 1
            assert len(list((tmp_path / "spool" / "files").glob("*/*/*"))) == 1
        turn(daemon, lambda: states(config)["research", "CONFIRMED"] == 1, seconds=90)
        turn(daemon, lambda: not list((tmp_path / "spool" / "files").glob("*/*/*")))


def test_same_object_again_is_a_duplicate_where_it_is_and_new_where_a_rule_sends_it_since(
    tmp_path: Path, servers: dict[str, EmulatorProcess]
) -> None:
    rule = "rules:\n  - {when: {}, to: [archive]}\n"
    config = configure(tmp_path, addresses(servers), rules=rule)
    drop(tmp_path, "er", 1)
    run(config)

    config = configure(tmp_path, addresses(servers))
    drop(tmp_path, "ward", 1)
    run(config)

    assert states(config) == {("archive", "CONFIRMED"): 1, ("archive", "DUPLICATE"): 1, ("research", "CONFIRMED"): 1}


def test_destination_for_which_files_wait_may_not_leave_the_configuration(
    tmp_path: Path, servers: dict[str, EmulatorProcess]
) -> None:
    both = addresses(servers)
    config = configure(tmp_path, both)
    with stopped(servers["research"]), running(config) as daemon:
        drop(tmp_path, "er", 1)
        turn(daemon, lambda: states(config)["archive", "CONFIRMED"] == 1)

    with pytest.raises(LedgerError, match="1 file waits for research"):
        Daemon(configure(tmp_path, {"archive": both["archive"]}))


def test_bytes_that_change_before_one_took_them_are_a_new_file_for_both(
    tmp_path: Path, servers: dict[str, EmulatorProcess]
) -> None:
    """What the archive has is proven against what it was; the rest is sent, where nothing holds its place."""
    config = configure(tmp_path, addresses(servers))
    with running(config) as daemon:
        with stopped(servers["research"]):
            drop(tmp_path, "er", 1)
            turn(daemon, lambda: states(config)["archive", "CONFIRMED"] == 1)
            (kept,) = (tmp_path / "spool" / "files").glob("*/*/*")
            whole = kept.read_bytes()
            kept.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1, whole[-1]]))
        turn(daemon, lambda: states(config)["research", "CONFIRMED"] == 1, seconds=90)
        turn(daemon, lambda: states(config)["archive", "CONFLICT"] == 1)

    assert states(config) == {
        ("archive", "CONFIRMED"): 1,
        ("archive", "CONFLICT"): 1,
        ("research", "DISCARDED"): 1,
        ("research", "CONFIRMED"): 1,
    }


def test_refused_reload_leaves_those_that_are_served_as_they_were(
    tmp_path: Path, servers: dict[str, EmulatorProcess]
) -> None:
    """What comes afterwards goes where it went before."""
    both = addresses(servers)
    config = configure(tmp_path, both)
    with running(config) as daemon:
        with stopped(servers["research"]):
            drop(tmp_path, "er", 1)
            turn(daemon, lambda: states(config)["archive", "CONFIRMED"] == 1)
            with pytest.raises(LedgerError, match="1 file waits for research"):
                Daemon(configure(tmp_path, {"archive": both["archive"]}), before=daemon)
            drop(tmp_path, "er", 2)
            turn(daemon, lambda: states(config)["archive", "CONFIRMED"] == 2)
        assert states(config)["research", "PENDING"] == 2


@pytest.mark.parametrize("station, end", [("*", ("archive", "CONFIRMED")), ("NONE", ("", "UNROUTED"))])
def test_unrouted_file_that_is_to_be_tried_again_goes_where_the_rules_say_by_then(
    tmp_path: Path, servers: dict[str, EmulatorProcess], station: str, end: tuple[str, str]
) -> None:
    """Its new row was made while the former had its path still: no row was written any more, of any file."""
    rules = "rules:\n  - {{when: {{station: '{}'}}, to: [archive]}}\n"
    config = configure(tmp_path, addresses(servers), rules=rules.format("NONE"))
    drop(tmp_path, "er", 1)
    run(config)
    with Ledger.open(config.ledger) as ledger, ledger.transaction() as tx:
        (unrouted,) = queries.entries(ledger)
        moves.retry(tx, unrouted.file_id, now=utc_now())

    config = configure(tmp_path, addresses(servers), rules=rules.format(station))
    drop(tmp_path, "er", 2)
    with running(config) as daemon:
        turn(daemon, lambda: states(config) == {("", "DISCARDED"): 1, end: 2})


@pytest.mark.parametrize(
    "by",
    ["retry", pytest.param("itself", marks=pytest.mark.slow), pytest.param("admit_anyway", marks=pytest.mark.slow)],
)
def test_refused_file_that_comes_in_after_all_goes_by_the_folder_it_was_dropped_into(
    tmp_path: Path, servers: dict[str, EmulatorProcess], by: str
) -> None:
    """It was routed by its place in ``rejected/``, and went where a rule forbids."""
    rules = "rules:\n  - {when: {folder: secret}, to: []}\n  - {when: {}, to: [archive]}\n"
    config = configure(tmp_path, addresses(servers), rules=rules)
    (tmp_path / "er" / "secret").mkdir()
    drop(tmp_path, "er", 1)
    whole = (tmp_path / "er" / "IM1").rename(tmp_path / "whole").read_bytes()
    (tmp_path / "er" / "secret" / "IM1").write_bytes(whole[:-100])
    run(config)
    with Ledger.open(config.ledger) as ledger:
        (refused,) = queries.entries(ledger)
        assert (refused.reason, refused.relative_path) == (Reason.TRUNCATED, "secret/IM1")
        if by != "itself":
            with ledger.transaction() as tx:
                {"retry": moves.retry, "admit_anyway": moves.admit_anyway}[by](tx, refused.file_id, now=utc_now())
    if by != "admit_anyway":
        (lies,) = (tmp_path / "spool" / "rejected").glob("er*/*/IM1")
        lies.write_bytes(whole)

    with running(config) as daemon:
        turn(daemon, lambda: states(config)["", "DISCARDED"] == 2)
        entries = queries.entries(daemon.ledger)
    assert states(config).total() == 2
    assert {entry.relative_path for entry in entries} == {"secret/IM1"}
    assert {entry.route for entry in entries} >= {"rule 1 (folder secret)"}
