"""``route --again``: what waits goes where the rules say now, and nothing else is touched."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ingestd.ledger import Ledger, queries
from tests.builders import write_instance
from tests.commanding import Command, Ran, command_in
from tests.daemon.test_destinations import addresses, configure, drop, is_paused, run, servers, states, stopped
from tests.daemon.test_promise import run_until, running, turn
from tests.emulating import EmulatorProcess
from tests.ledger_builders import assert_ledger_holds
from tests.ledgers import url_of

__all__ = ["servers"]

Servers = dict[str, EmulatorProcess]

CT_ONLY = "rules:\n  - {when: {modality: CT}, to: [archive]}\n"
ALL_TO_RESEARCH = "rules:\n  - {when: {modality: CT}, to: [archive, research]}\n  - {when: {}, to: [research]}\n"
ONLY_RESEARCH = "rules:\n  - {when: {}, to: [research]}\n"
NOWHERE = "rules:\n  - {when: {}, to: []}\n"


@pytest.fixture
def command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    return command_in(tmp_path, capfd)


def holds(folder: Path) -> None:
    with Ledger.open(url_of(folder), read_only=True) as ledger:
        assert_ledger_holds(ledger)


def routed(command: Command, folder: Path, *words: str) -> Ran:
    said = command("route", "--again", "--yes", "--json", *words)
    holds(folder)
    return said


def test_what_no_rule_wanted_is_sent_and_proven_by_a_rule_that_wants_it(
    tmp_path: Path, servers: Servers, command: Command
) -> None:
    run(configure(tmp_path, addresses(servers), rules=CT_ONLY))
    for number, modality in enumerate(("CT", "MR", "MR"), 1):
        drop(tmp_path, "er", number, modality=modality)
    config = configure(tmp_path, addresses(servers), rules=CT_ONLY)
    run(config)
    assert states(config) == {("archive", "CONFIRMED"): 1, ("", "UNROUTED"): 2}

    config = configure(tmp_path, addresses(servers), rules=ALL_TO_RESEARCH)
    said = routed(command, tmp_path)

    assert said.code == 0
    [part] = said.json["plan"]
    assert (part["route"], part["destinations"]) == ("rule 2 (everything)", ["research"])
    assert (part["files"], part["studies"], part["gains"], part["loses"]) == (2, 2, {"research": 2}, {})
    assert said.json["done"] == {"files": 2, "gains": {"research": 2}, "loses": {}, "stays": {}}
    assert states(config) == {("archive", "CONFIRMED"): 1, ("research", "PENDING"): 2}
    assert run(config).done
    assert states(config) == {("archive", "CONFIRMED"): 1, ("research", "CONFIRMED"): 2}
    assert len(servers["research"].stores()) == 2
    assert "rule 2 (everything) sent it to research" in command("explain", "IM2").out
    holds(tmp_path)


def waiting(folder: Path, servers: Servers, rules: str, *modalities: str) -> None:
    """Files that are taken in while no server answers."""
    config = configure(folder, addresses(servers), rules=rules)
    for number, modality in enumerate(modalities, 1):
        drop(folder, "er", number, modality=modality)
    with stopped(servers["archive"]), stopped(servers["research"]), running(config) as daemon:
        turn(daemon, lambda: is_paused(daemon, "research") and states(config).total() == len(modalities))


def test_plan_is_shown_and_nothing_is_done_without_a_yes(
    tmp_path: Path, servers: Servers, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(configure(tmp_path, addresses(servers), rules=CT_ONLY))
    drop(tmp_path, "er", 1, modality="MR")
    run(configure(tmp_path, addresses(servers), rules=CT_ONLY))
    config = configure(tmp_path, addresses(servers), rules=ALL_TO_RESEARCH)

    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    said = command("route", "--again")
    unanswered = command("route", "--again")

    assert said.code == 130
    assert (unanswered.code, "nobody is here to answer, and nothing was done; --yes" in unanswered.err) == (2, True)
    assert "rule 2 (everything) -> research: 1 file of 1 study; would gain research: 1 file\n" in said.out
    assert states(config) == {("", "UNROUTED"): 1}


def test_what_is_where_the_rules_say_is_left_alone(tmp_path: Path, servers: Servers, command: Command) -> None:
    waiting(tmp_path, servers, ONLY_RESEARCH, "CT")

    said = command("route", "--again")

    assert (said.code, said.out) == (0, "every file that waits, or that no rule wanted, goes where the rules say\n")
    holds(tmp_path)


@pytest.mark.slow
def test_what_was_not_tried_is_let_go_and_comes_back_with_the_rule(
    tmp_path: Path, servers: Servers, command: Command
) -> None:
    both = "rules:\n  - {when: {}, to: [archive, research]}\n"
    config = configure(tmp_path, addresses(servers), rules=both)
    with stopped(servers["research"]):
        for number in (1, 2):
            drop(tmp_path, "er", number)
        run_until(config, lambda _: states(config) == {("archive", "CONFIRMED"): 2, ("research", "PENDING"): 2})

    configure(tmp_path, addresses(servers), rules="rules:\n  - {when: {}, to: [archive]}\n")
    lost = command("route", "--again", "--yes").out
    holds(tmp_path)

    assert "rule 1 (everything) -> archive: 2 files of 2 studies; would lose research: 2 files\n" in lost
    assert lost.endswith("2 files routed again; lose research: 2 files\n")
    assert states(config) == {("archive", "CONFIRMED"): 2, ("research", "DISCARDED"): 2}
    assert "rule 1 (everything) sent it to archive\n" in command("explain", "IM2").out.replace(" \n", "\n")
    config = configure(tmp_path, addresses(servers), rules=both)
    assert routed(command, tmp_path).json["done"] == {"files": 2, "gains": {"research": 2}, "loses": {}, "stays": {}}
    assert run(config).done
    assert states(config) == {("archive", "CONFIRMED"): 2, ("research", "CONFIRMED"): 2}
    holds(tmp_path)


def test_other_bytes_and_what_is_gone_are_told_and_left(tmp_path: Path, servers: Servers, command: Command) -> None:
    run(configure(tmp_path, addresses(servers), rules=CT_ONLY))
    for number in range(1, 4):
        drop(tmp_path, "er", number, modality="MR")
    config = configure(tmp_path, addresses(servers), rules=CT_ONLY)
    run(config)
    with Ledger.open(config.ledger, read_only=True) as ledger:
        gone, other, kept = queries.entries(ledger)
    assert gone.file is not None
    assert other.file is not None
    gone.file.unlink()
    other.file.write_bytes(other.file.read_bytes()[:-2] + b"zz")
    configure(tmp_path, addresses(servers), rules=ALL_TO_RESEARCH)

    said = routed(command, tmp_path)

    assert said.code == 1
    assert said.json["left"] == {
        "unread": [gone.file_id],
        "other_bytes": [other.file_id],
        "unwanted": [],
        "unrouted": [],
    }
    assert states(config) == {("", "UNROUTED"): 2, ("research", "PENDING"): 1}
    words = command("route", "--again").out
    assert f"left alone, cannot be read now, or not there: 1 file ({gone.file_id})" in words
    assert f"left alone, not what was taken in any more: 1 file ({other.file_id})" in words
    assert kept.file_id not in (gone.file_id, other.file_id)


def test_one_study_is_routed_alone(tmp_path: Path, servers: Servers, command: Command) -> None:
    run(configure(tmp_path, addresses(servers), rules=CT_ONLY))
    for number in (1, 2):
        drop(tmp_path, "er", number, modality="MR")
    config = configure(tmp_path, addresses(servers), rules=CT_ONLY)
    run(config)
    configure(tmp_path, addresses(servers), rules=ALL_TO_RESEARCH)

    assert routed(command, tmp_path, "--study", "1.2.3.9").json["plan"] == []
    assert routed(command, tmp_path, "--study", "1.2.3.2").json["done"]["files"] == 1

    assert states(config) == {("", "UNROUTED"): 1, ("research", "PENDING"): 1}


def test_rule_that_sends_nowhere_ends_the_wait_for_a_person_and_another_sends_it_after_all(
    tmp_path: Path, servers: Servers, command: Command
) -> None:
    run(configure(tmp_path, addresses(servers), rules=CT_ONLY))
    drop(tmp_path, "er", 1, modality="MR")
    config = configure(tmp_path, addresses(servers), rules=CT_ONLY)
    run(config)

    configure(tmp_path, addresses(servers), rules=NOWHERE)
    said = command("route", "--again", "--yes").out
    assert "1 file would need nobody any more\n1 file routed again\n" in said
    assert states(config) == {("", "DISCARDED"): 1}
    assert routed(command, tmp_path).json["plan"] == []

    config = configure(tmp_path, addresses(servers), rules=ONLY_RESEARCH)
    said = command("route", "--again", "--yes").out
    assert "gain research: 1 file\nit is sent as soon as a daemon runs (start it: `ingestd run`)\n" in said
    assert run(config).done
    assert states(config) == {("research", "CONFIRMED"): 1}
    holds(tmp_path)


def test_what_no_rule_wants_any_more_is_told_and_goes_on(tmp_path: Path, servers: Servers, command: Command) -> None:
    waiting(tmp_path, servers, ONLY_RESEARCH, "MR")
    config = configure(tmp_path, addresses(servers), rules=CT_ONLY)

    said = routed(command, tmp_path)

    assert (said.code, said.json["plan"], len(said.json["left"]["unwanted"])) == (1, [], 1)
    assert states(config) == {("research", "PENDING"): 1}


def test_what_no_rule_wants_still_is_told(tmp_path: Path, servers: Servers, command: Command) -> None:
    config = configure(tmp_path, addresses(servers), rules=CT_ONLY)
    drop(tmp_path, "er", 1, modality="CT")
    drop(tmp_path, "er", 2, modality="MR")
    run(config)

    said = command("route", "--again")

    [unrouted] = routed(command, tmp_path).json["left"]["unrouted"]
    assert said.code == 1
    assert said.out.startswith("left alone, wanted by no rule still; ")
    assert said.out.endswith(f": 1 file ({unrouted})\n")


def test_who_is_to_send_what_was_routed_is_said(tmp_path: Path, servers: Servers, command: Command) -> None:
    configure(tmp_path, addresses(servers), rules=CT_ONLY)
    assert command("send", str(write_instance(tmp_path / "export" / "MR", modality="MR"))).code == 1
    config = configure(tmp_path, addresses(servers), rules=ONLY_RESEARCH)

    said = command("route", "--again", "--yes").out

    assert "gain research: 1 file\n1 file of `ingestd send` can be sent only by it: run it" in said
    assert command("send", str(tmp_path / "export")).code == 0
    assert states(config) == {("research", "CONFIRMED"): 1}


def test_destination_that_the_ledger_does_not_know_yet_is_told(
    tmp_path: Path, servers: Servers, command: Command
) -> None:
    run(configure(tmp_path, {"archive": servers["archive"].url}))
    configure(tmp_path, addresses(servers))

    said = command("route", "--again", "--yes")

    assert said.code == 2
    assert "the ledger does not know research yet; start ingestd, or reload it, first" in said.err


def test_running_daemon_sends_what_is_routed_beside_it(tmp_path: Path, servers: Servers, command: Command) -> None:
    config = configure(tmp_path, addresses(servers), rules=CT_ONLY)
    with running(config) as daemon:
        drop(tmp_path, "er", 1, modality="MR")
        turn(daemon, lambda: states(config)["", "UNROUTED"] == 1)
        configure(tmp_path, addresses(servers), rules=ALL_TO_RESEARCH)
        assert routed(command, tmp_path).code == 0
        turn(daemon, lambda: states(config)["research", "CONFIRMED"] == 1)
    holds(tmp_path)
