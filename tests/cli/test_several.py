"""status and explain where there are several destinations."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from ingestd.cli.bar import bar_counts
from ingestd.cli.common import ExitCode
from ingestd.cli.explain import telling
from ingestd.cli.run_summary import look_back, tell
from ingestd.daemon import OnceResult
from ingestd.inbox import InboxPolicy
from ingestd.ledger import Alarm, moves, queries
from ingestd.lifecycle import Reason, Route, State
from tests.commanding import OTHER_STUDY, STUDY, Rows, command_in
from tests.ledgers import remove_ledger

CONFIG = """\
inboxes:
  - path: ./drop
spool: {path: ./spool, low_water: 1MB}
destinations:
  archive: {url: "http://127.0.0.1:9/v2", auth: none}
  research: {url: "http://127.0.0.1:9/dicom-web", auth: none}
ledger: sqlite:///ledger.db
"""
TO_BOTH = Route(rule=1, text="rule 1 (inbox er, station CT*)", destinations=("archive", "research"))
TO_ARCHIVE = Route(rule=2, text="rule 2 (everything)", destinations=("archive",))


@pytest.fixture
def rows(tmp_path):
    rows = Rows(tmp_path, CONFIG)
    yield rows
    rows.close()


@pytest.fixture
def command(rows, capfd):
    return command_in(rows.folder, capfd)


@pytest.fixture
def both(rows):
    """A file that is CONFIRMED at the archive and waits for research."""
    delivery_id = rows.admit("both", route=TO_BOTH)
    archive = rows.at("archive")
    archive.finish(archive.claim(), State.STORED, Reason.STORED_ANSWER)
    archive.prove(delivery_id, State.CONFIRMED, Reason.FEED)
    return delivery_id


@pytest.fixture
def archived(rows):
    """A file of another study that waits for the archive only."""
    rows.now += timedelta(minutes=2)
    return rows.admit("archived", study=OTHER_STUDY, route=TO_ARCHIVE)


def research_of(rows, delivery_id):
    """The number of the file's delivery to research."""
    (found,) = [
        each.delivery_id for each in queries.of_files(rows.ledger, [delivery_id]) if each.destination == "research"
    ]
    return found


def lines_of(text, word):
    return [line for line in text.splitlines() if line.startswith(word)]


def test_status_has_a_line_for_each_destination(rows, command, both, archived):
    rows.at("research").pause()

    said = command("status").out

    (archive,), (research,) = lines_of(said, "archive"), lines_of(said, "research")
    assert archive.split()[:3] == ["archive", "http://127.0.0.1:9/v2", "1"]
    assert archive.endswith("ago")
    assert research.split()[:3] == ["research", "http://127.0.0.1:9/dicom-web", "1"]
    assert "paused, unreachable: connection refused; " in research
    assert not lines_of(said, "Server")


def test_status_tells_of_each_destination_by_name(rows, command, both, archived):
    rows.at("research").pause()

    said = command("status", "--json").json

    archive, research = said["destinations"]
    assert said["destination"] == archive
    assert [(each["name"], each["paused"], each["configured"]) for each in said["destinations"]] == [
        ("archive", False, True),
        ("research", True, True),
    ]
    assert (archive["unconfirmed"], archive["unconfirmed_bytes"]) == (1, 1000)
    assert archive["oldest_unconfirmed_at"] > research["oldest_unconfirmed_at"] == said["oldest_unconfirmed_at"]


def test_destinations_of_which_the_ledger_knows_nothing_yet_are_shown(rows, command, tmp_path):
    rows.close()
    remove_ledger(tmp_path)

    said = command("status", "--json").json

    assert [(each["name"], each["unconfirmed"]) for each in said["destinations"]] == [("archive", 0), ("research", 0)]
    assert [line.split()[-4:] for line in lines_of(command("status").out, "research")] == [["not", "sent", "to", "yet"]]


def test_status_of_one_destination_counts_and_lists_what_goes_there(rows, command, both, archived):
    rows.refuse("bad")

    def counts(*words):
        found = command("status", "--json", *words).json
        return {state: count for state, count in found["states"].items() if count}, found["needs_person"]

    assert counts() == ({"PENDING": 2, "CONFIRMED": 1, "REJECTED": 1}, 1)
    assert counts("--destination", "research") == ({"PENDING": 1}, 0)
    assert counts("--destination", "archive") == ({"PENDING": 1, "CONFIRMED": 1}, 0)

    files = command("status", "--json", "--files", "--destination", "archive").json["files"]
    assert [(each["source"], each["destination"], each["state"]) for each in files] == [
        ("both", "archive", "CONFIRMED"),
        ("archived", "archive", "PENDING"),
    ]
    studies = command("status", "--json", "--modality", "CT", "--destination", "research").json["studies"]
    assert [(each["study_uid"], each["states"]) for each in studies] == [(STUDY, {"PENDING": 1})]
    pending = command("status", "--json", "--study", STUDY, "--destination", "research").json["files"]
    assert [each["id"] for each in pending] == [research_of(rows, both)]


def test_oldest_of_one_destination_is_its_own(command, both, archived):
    def oldest(*words):
        return command("status", "--json", *words).json["oldest_unconfirmed_at"]

    assert oldest("--destination", "archive") > oldest("--destination", "research") == oldest()


def test_destination_that_nobody_knows_is_told(command, both):
    said = command("status", "--destination", "pacs")

    assert said.code == ExitCode.CONFIGURATION
    assert "no destination is called pacs: archive, research" in said.err


def test_files_are_listed_with_where_they_go(command, both, archived):
    said = command("status", "--files").out

    assert [line.split()[1] for line in said.splitlines() if line.endswith(("both", "archived"))] == [
        "archive",
        "archive",
        "research",
    ]


def test_what_stops_one_destination_names_it(rows, command, both):
    rows.now -= timedelta(hours=1)
    rows.at("research").pause()
    alarm = Alarm(
        kind="not_searched", about="", note="the server finds nothing", next_step="mend it", since=rows.now,
        destination="archive",
    )  # fmt: skip
    with rows.ledger.transaction() as tx:
        moves.put_alarms(tx, [alarm])

    told = {each["kind"]: each["destination"] for each in command("status", "--json").json["stopped_because"]}
    said = command("status").out

    assert (told["paused"], told["not_searched"]) == ("research", "archive")
    assert "Stopped because the server finds nothing (destination archive), since" in said
    assert "connection refused (destination research), since" in said


def test_destination_that_the_configuration_leaves_out_while_files_wait_stops_all(rows, command, both, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if "research:" not in line))

    said = command("status", "--json").json

    (line,) = [each for each in said["stopped_because"] if each["kind"] == "destination_left_out"]
    assert line["destination"] == "research"
    assert "for which 1 file waits" in line["note"]
    assert [each["configured"] for each in said["destinations"]] == [True, False]
    assert "not in this configuration" in command("status").out
    told = command("explain", str(both)).out
    assert "it is sent when its study is due; but the configuration does not name its destination any more" in told


def test_pause_of_a_destination_that_was_removed_stops_nothing(rows, command, both, tmp_path):
    rows.at("research").pause()
    file = tmp_path / "config.yaml"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if "research:" not in line))
    assert command("destination", "remove", "research", "--yes").code == ExitCode.DONE

    said = command("status", "--json", "--exit-code")

    assert (said.code, said.json["stopped_because"]) == (ExitCode.DONE, [])


def test_explain_tells_of_all_deliveries_of_the_file(rows, command, both):
    research = research_of(rows, both)

    for number in (both, research):
        said = command("explain", str(number)).out
        assert f"File {both} PENDING - taken in, waiting to be sent (archive CONFIRMED, research PENDING)" in said
        assert "rule 1 (inbox er, station CT*) sent it to archive and research" in said
        assert f"To archive, ID {both} CONFIRMED" in said
        assert f"To research, ID {research} PENDING" in said
        archive, waiting = said[said.index("To archive") :].split("To research")
        assert "in the change feed" in archive
        assert "CONFIRMED" not in waiting
        assert "HTTP 200" in archive
        assert "HTTP" not in waiting
        assert "Others with the same UIDs" not in said


def test_explain_tells_each_delivery_by_name(rows, command, both):
    rows.at("research").pause()
    said = command("explain", "--json", str(both)).json

    assert said["found"] == 1
    assert [(each["destination"], each["state"], each["file_state"], each["file_id"]) for each in said["files"]] == [
        ("archive", "CONFIRMED", "PENDING", both),
        ("research", "PENDING", "PENDING", both),
    ]
    assert [[event["to"] for event in each["history"]] for each in said["files"]] == [
        ["PENDING", "SENDING", "STORED", "CONFIRMED"],
        ["PENDING"],
    ]
    assert [len(each["requests"]) for each in said["files"]] == [1, 0]
    assert command("explain", str(both)).out.count("nothing is sent at present: connection refused") == 1


def test_explain_says_why_a_file_goes_nowhere(rows, command):
    nowhere = rows.admit("nowhere", route=Route(rule=2, text="rule 2 (modality SR)", destinations=()))
    unrouted = rows.admit("unrouted", route=Route(rule=None, text="no rule wants it", destinations=()))

    assert "rule 2 (modality SR) sent it nowhere, on purpose" in command("explain", str(nowhere)).out
    assert "no rule wants it" in command("explain", str(unrouted)).out


def test_file_is_what_its_delivery_is_that_needs_a_person_or_has_come_least_far(rows, both):
    def whole(*states):
        entries = queries.of_files(rows.ledger, [both])
        return telling([replace(entries[0], state=state) for state in states]).state

    assert whole(State.CONFIRMED, State.CONFIRMED) == State.CONFIRMED
    assert whole(State.CONFIRMED, State.STORED) == State.STORED
    assert whole(State.SENDING, State.STORED) == State.SENDING
    assert whole(State.PENDING, State.FAILED) == State.FAILED
    assert whole(State.DUPLICATE, State.CONFIRMED) == State.DUPLICATE
    assert whole(State.DISCARDED, State.CONFIRMED) == State.CONFIRMED
    assert whole(State.DISCARDED, State.PENDING) == State.PENDING
    assert whole(State.DISCARDED, State.DISCARDED) == State.DISCARDED


def test_bar_counts_deliveries(rows, both, archived):
    whole = InboxPolicy(name=rows.inbox, path=rows.config.inboxes[0].path)
    for policy in (whole, replace(whole, only=frozenset({"both", "archived"}))):
        sums = bar_counts(rows.ledger, [policy])
        assert (sums.rows, sums.done_bytes, sums.size_bytes) == (3, 1000, 3000)
        assert sums.in_words(2, several=True) == "1 stored, 1 proven, of 3 deliveries of 2 files"


def test_what_a_run_came_to_names_destinations(rows, capsys, both):
    research = rows.at("research")
    research.finish(research.claim(), State.FAILED, Reason.REFUSED)
    alarm = Alarm(kind="paused", about="", note="it is away", next_step="wait", since=rows.now, destination="archive")
    result = OnceResult(done=False, stopped=False, taken_in=1, unfinished=1, last_event_before=0, alarms=(alarm,))

    tell(look_back(rows.config, result), as_json=False)

    said = capsys.readouterr().out
    assert "deliveries in all: 1 CONFIRMED, 1 FAILED" in said
    assert "FAILED both to research (" in said
    assert "stopped because it is away (destination archive)" in said
    assert "not done in time: 1 delivery is still on the way" in said
