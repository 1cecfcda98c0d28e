"""Commands where the configuration names several destinations: each is looked at, audited and asked by its name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ingestd.ledger import LedgerError
from tests.builders import write_instance
from tests.commanding import Command, command_in
from tests.daemon.test_destinations import addresses, configure, drop, is_paused, run, servers, states, stopped
from tests.daemon.test_promise import run_until, running, turn
from tests.emulating import EmulatorProcess
from tests.ledgers import raw

__all__ = ["servers"]

Servers = dict[str, EmulatorProcess]


@pytest.fixture
def command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    return command_in(tmp_path, capfd)


def test_check_looks_at_each_and_says_whose_trouble_it_is(tmp_path: Path, servers: Servers, command: Command) -> None:
    config = configure(tmp_path, addresses(servers))
    drop(tmp_path, "er", 1)
    run(config)
    with stopped(servers["research"]):
        said = command("check")
        plain = command("check", "--json")

    assert said.code == 3
    assert "research: http" in said.out
    assert "2 deliveries, 0 need a person" in said.out
    told = [(each["destination"], each["result"]) for each in plain.json["checks"] if each["name"] == "server"]
    assert told == [("archive", "ok"), ("archive", "ok"), ("research", "bad")]


def test_audit_is_of_each_destination_with_its_own_server(tmp_path: Path, servers: Servers, command: Command) -> None:
    rules = "rules:\n  - {when: {inbox: er}, to: [archive, research]}\n  - {when: {}, to: [archive]}\n"
    config = configure(tmp_path, addresses(servers), rules=rules)
    drop(tmp_path, "er", 1)
    drop(tmp_path, "ward", 2)
    run(config)

    audits = command("reconcile", "--full", "--compare", "100", "--json")
    assert audits.code == 0
    agree = {name: (each["studies"], each["agree"]) for name, each in audits.json["destinations"].items()}
    assert agree == {"archive": (2, 2), "research": (1, 1)}

    assert command("dicomweb", "--destination", "research", "delete", "1.2.3.1", "--yes").code == 0
    one = command("reconcile", "--full", "--destination", "archive")
    assert (one.code, "research" in one.out) == (0, False)
    assert command("reconcile", "--full").code == 1
    assert states(config) == {("archive", "CONFIRMED"): 2, ("research", "DELETED"): 1}


def test_reconcile_asks_only_the_one_that_is_named(tmp_path: Path, servers: Servers, command: Command) -> None:
    run(configure(tmp_path, addresses(servers)))

    with stopped(servers["research"]):
        assert command("reconcile", "--destination", "archive").code == 0
        assert command("reconcile", "--full", "--destination", "research").code == 3


def test_reconcile_asks_the_others_where_one_is_away(tmp_path: Path, servers: Servers, command: Command) -> None:
    """It ended as soon as the first one could not be asked, and left what waits at the others."""
    config = configure(tmp_path, addresses(servers), interval="10m")
    with running(config) as daemon:
        drop(tmp_path, "er", 1)
        turn(daemon, lambda: states(config) == {("archive", "STORED"): 1, ("research", "STORED"): 1})

    with stopped(servers["archive"]):
        said = command("reconcile")
        assert states(config) == {("archive", "STORED"): 1, ("research", "CONFIRMED"): 1}
        again = command("reconcile", "--json")

    assert said.code == again.code == 3
    archive, research = said.out.splitlines()
    assert archive.startswith("archive: cannot be asked: ")
    assert archive.endswith("; 1 still not settled")
    assert research == "research: asked: 1 CONFIRMED"
    told = again.json["destinations"]
    assert told["archive"].pop("error") in archive
    assert told == {"archive": {"states": {}, "waiting": 1}, "research": {"states": {}, "waiting": 0, "error": None}}
    back = command("reconcile")
    assert (back.code, back.out) == (0, "archive: asked: 1 CONFIRMED\nresearch: nothing waits for proof\n")


def test_which_of_several_has_to_be_said(tmp_path: Path, servers: Servers, command: Command) -> None:
    configure(tmp_path, addresses(servers))

    said = command("dicomweb", "probe")

    assert said.code == 2
    assert "say which with --destination; there are archive, research" in said.err


def test_one_that_is_not_there_is_told(tmp_path: Path, servers: Servers, command: Command) -> None:
    configure(tmp_path, addresses(servers))

    said = command("reconcile", "--destination", "pacs")

    assert said.code == 2
    assert "no destination is called pacs; there are archive, research" in said.err


def test_retry_is_of_the_one_that_is_named(tmp_path: Path, servers: Servers, command: Command) -> None:
    config = configure(tmp_path, addresses(servers))
    drop(tmp_path, "er", 1)
    run(config)
    for name in servers:
        assert command("dicomweb", "--destination", name, "delete", "1.2.3.1", "--yes").code == 0
    assert command("reconcile", "--full").code == 1
    assert states(config) == {("archive", "DELETED"): 1, ("research", "DELETED"): 1}

    assert command("retry", "--destination", "research").code == 2
    assert command("retry", "--state", "DELETED", "--destination", "pacs").code == 2
    assert command("retry", "--state", "DELETED", "--destination", "research").code == 0

    assert states(config) == {("archive", "DELETED"): 1, ("research", "PENDING"): 1}


def test_one_of_several_moves_to_another_address(tmp_path: Path, servers: Servers, command: Command) -> None:
    config = configure(tmp_path, addresses(servers))
    drop(tmp_path, "er", 1)
    run(config)
    with stopped(servers["research"]), EmulatorProcess(tmp_path / "research") as moved:
        config = configure(tmp_path, addresses(servers) | {"research": moved.url})
        said = command("destination", "move", "research", moved.url, "--json")

        assert (said.code, said.json["looked_at"], said.json["asked"]) == (0, 1, 1)
        assert run(config).done


@pytest.mark.slow
def test_what_waits_for_a_destination_that_is_no_more_is_let_go_by_a_persons_word(
    tmp_path: Path, servers: Servers, command: Command
) -> None:
    config = configure(tmp_path, addresses(servers))
    with stopped(servers["research"]):
        drop(tmp_path, "er", 1)
        drop(tmp_path, "er", 2)
        run_until(config, lambda _: states(config)["archive", "CONFIRMED"] == 2)
        drop(tmp_path, "ward", 1)
        run_until(config, lambda _: states(config)["research", "DUPLICATE"] == 1)
    refused = command("destination", "remove", "research", "--yes")
    assert (refused.code, "names research still" in refused.err) == (2, True)

    config = configure(tmp_path, {"archive": servers["archive"].url})
    assert command("destination", "remove", "pacs", "--yes").code == 2
    said = command("destination", "remove", "research", "--yes", "--json")

    assert (said.code, said.json["discarded"]) == (0, 3)
    assert states(config) == {("archive", "CONFIRMED"): 2, ("archive", "DUPLICATE"): 1, ("research", "DISCARDED"): 3}
    assert command("destination", "remove", "research", "--yes", "--json").json["discarded"] == 0
    drop(tmp_path, "er", 3)
    assert run(config).done


def test_send_goes_where_a_person_says_whatever_the_rules_say_and_takes_along_what_went_elsewhere(
    tmp_path: Path, servers: Servers, command: Command
) -> None:
    config = configure(tmp_path, addresses(servers), rules="rules:\n  - {when: {}, to: [archive]}\n")
    folder = tmp_path / "export"
    folder.mkdir()
    for number in (1, 2):
        write_instance(folder / f"IM{number}")
    assert command("send", str(folder / "IM1")).code == 0
    assert states(config) == {("archive", "CONFIRMED"): 1}

    assert command("send", "--to", "pacs", str(folder)).code == 2
    assert command("send", "--to", "research", str(folder)).code == 0

    assert states(config) == {("archive", "CONFIRMED"): 1, ("research", "CONFIRMED"): 2}
    assert [len(server.stores()) for server in servers.values()] == [1, 2]
    assert "Routed by       a person chose research\n" in command("explain", str(folder / "IM2")).out
    assert command("send", "--to", "research", "--to", "archive", str(folder)).code == 0
    assert states(config) == {("archive", "CONFIRMED"): 2, ("research", "CONFIRMED"): 2}


def test_destination_held_to_a_rate_and_a_window_moves_as_any_other(
    tmp_path: Path, servers: Servers, command: Command
) -> None:
    config = configure(tmp_path, addresses(servers))
    drop(tmp_path, "er", 1)
    run(config)
    with stopped(servers["research"]), EmulatorProcess(tmp_path / "research") as moved:
        configure(tmp_path, addresses(servers) | {"research": moved.url})
        file = tmp_path / "config.yaml"
        held = f"url: '{moved.url}', rate: 8MB/s, window: '19:00-07:00', time_zone: UTC, priority: -1"
        file.write_text(file.read_text().replace(f"url: '{moved.url}'", held))

        wrong = command("destination", "move", "research", "http://127.0.0.1:9/v2?x=1")
        said = command("destination", "move", "research", moved.url)

    assert (wrong.code, "cannot be its address: must end with the path" in wrong.err) == (2, True)
    assert (said.code, "1 file found there as sent" in said.out) == (0, True)


def test_no_destination_moves_in_place_of_one_that_the_ledger_does_not_know_yet(
    tmp_path: Path, servers: Servers, command: Command
) -> None:
    config = configure(tmp_path, {"archive": servers["archive"].url})
    drop(tmp_path, "er", 1)
    run(config)
    servers["research"].stop()
    shutil.copytree(tmp_path / "archive", tmp_path / "copy")
    with EmulatorProcess(tmp_path / "copy") as copy:
        config = configure(tmp_path, {"archive": servers["archive"].url, "research": copy.url})

        said = command("destination", "move", "research", copy.url)

        assert (said.code, "the ledger has no destination research; it has archive" in said.err) == (2, True)
        assert run(config).done


def test_no_destination_takes_an_address_that_another_has(tmp_path: Path, servers: Servers, command: Command) -> None:
    """Once the configuration named one of the two, what waited for the other was served by nobody, and not refused."""
    config = configure(tmp_path, addresses(servers))
    drop(tmp_path, "er", 1)
    run(config)

    said = command("destination", "move", "archive", servers["research"].url)

    assert (said.code, "research is at" in said.err) == (2, True)
    assert run(config).done


def test_one_that_is_left_out_is_not_taken_for_the_other_at_its_address(
    tmp_path: Path, servers: Servers, command: Command
) -> None:
    config = configure(tmp_path, addresses(servers))
    with stopped(servers["research"]):
        drop(tmp_path, "er", 1)
        with running(config) as daemon:
            turn(daemon, lambda: is_paused(daemon, "research") and states(config)["archive", "CONFIRMED"])
    with raw(config.ledger) as ledger:
        ledger.execute("UPDATE destination SET url = ?", (servers["archive"].url,))
    config = configure(tmp_path, {"archive": servers["archive"].url})

    with pytest.raises(LedgerError, match="1 file waits for research"):
        run(config)
    named = {each["name"]: each["configured"] for each in command("status", "--json").json["destinations"]}
    assert named == {"archive": True, "research": False}
