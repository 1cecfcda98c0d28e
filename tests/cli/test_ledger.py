"""status, explain, retry and resolve, on a ledger with a row in every state."""

from __future__ import annotations

import fcntl
from datetime import UTC, datetime, timedelta

import pytest

from ingestd.cli.advice import MEANING, next_step
from ingestd.cli.common import ExitCode
from ingestd.ledger import Alarm, moves, queries
from ingestd.lifecycle import MOVES, Reason, ServerKind, State
from ingestd.locks import who_runs
from ingestd.logs import set_key, study_ref
from tests.commanding import OTHER_STUDY, STUDY, Rows, command_in
from tests.ledgers import by_lock_only, remove_ledger


@pytest.fixture
def rows(tmp_path):
    rows = Rows(tmp_path)
    yield rows
    rows.close()


@pytest.fixture
def command(rows, capfd):
    return command_in(rows.folder, capfd)


@pytest.fixture
def every(rows):
    """A row in each state a person may find one in, by its name."""
    uid = f"{STUDY}.3.99"
    ids = {
        "confirmed": rows.send("confirmed", State.STORED, Reason.STORED_ANSWER),
        "failed": rows.send(
            "failed", State.FAILED, Reason.REFUSED, failure_reason=0xA900, failed_attributes=("00100020",)
        ),
        "uncertain": rows.send("uncertain", State.UNCERTAIN, Reason.NO_VERDICT),
        "deleted": rows.send("deleted", State.STORED, Reason.STORED_ANSWER),
        "stored": rows.send("stored", State.STORED, Reason.STORED_ANSWER),
        "rejected": rows.refuse("sub/DOE^JOHN.dcm"),
        "clutter": rows.refuse("readme.txt", Reason.NOT_DICOM, "no DICOM"),
        "pending": rows.admit("pending", uid=uid, content="a"),
        "duplicate": rows.admit("duplicate", uid=uid, content="a"),
        "conflict": rows.admit("conflict", uid=uid, content="b"),
    }
    rows.prove(ids["confirmed"], State.CONFIRMED, Reason.FEED)
    rows.prove(ids["deleted"], State.CONFIRMED, Reason.FEED)
    rows.prove(ids["deleted"], State.DELETED, Reason.ABSENT)
    rows.report(files_seen=12, ignored=2)
    return ids


def test_status_of_nothing_is_all_zeros(tmp_path, capfd):
    rows = Rows(tmp_path)
    rows.close()
    remove_ledger(tmp_path)

    said = command_in(tmp_path, capfd)("status", "--json")

    assert said.code == 0
    assert set(said.json["states"]) == set(State)
    assert sum(said.json["states"].values()) == 0
    assert said.json["oldest_unconfirmed_seconds"] is None
    assert said.json["destination"]["url"] == "http://127.0.0.1:9/v2"
    assert said.json["ledger"]["exists"] is False
    assert "nothing was taken in" in command_in(tmp_path, capfd)("status").out


def test_status_tells_every_sum(command, every):
    said = command("status", "--json").json

    assert said["states"] == dict.fromkeys(State, 0) | {
        **dict.fromkeys(
            ["PENDING", "UNCERTAIN", "STORED", "CONFIRMED", "FAILED", "DUPLICATE", "CONFLICT", "DELETED"], 1
        ),
        "REJECTED": 2,
    }
    assert (said["needs_person"], said["clutter"]) == (4, 1)
    assert 540 < said["oldest_unconfirmed_seconds"] < 900
    assert said["daemon"] == {"running": False, "pid": None}
    assert said["inboxes"][0]["counts"]["ignored"] == 2
    assert "files" not in said


def test_status_for_people_says_what_to_do(command, every, rows):
    rows.pause()

    said = command("status").out

    assert "paused, unreachable: connection refused" in said
    assert "not running" in said
    assert "Needs a person: 4 (and 1 clutter)" in said
    assert "truncated" in said
    assert "2 ignored; since the start 12 seen" in said


def test_an_inbox_is_shown_by_the_name_that_it_was_given(command, every, tmp_path):
    before, plain = command("status", "--json").json["inboxes"][0], command("status").out
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().replace("path: ./drop", "path: ./drop\n    name: er"))

    said = command("status", "--json").json["inboxes"][0]

    assert (before["called"], said["called"], said["name"]) == (None, "er", before["name"])
    assert f"er: {before['path']}" in command("status").out
    assert f": {before['path']}" not in plain


def test_a_file_refused_with_its_whole_request_is_not_simply_waiting():
    """A wrong address may answer 404 for ever: nobody would look there after reading "nothing to do"."""
    assert "`ingestd check`" in next_step(State.PENDING, Reason.REFUSED)


def test_status_ends_with_1_only_where_asked_for(command, every):
    assert command("status").code == ExitCode.DONE
    assert command("status", "--exit-code").code == ExitCode.NEEDS_PERSON


def test_whatever_stops_files_is_a_line_with_its_next_step_and_no_good_end(command, rows):
    alarm = Alarm(
        kind="disk_low", about=rows.inbox, note="the disk is nearly full", next_step="make room", since=rows.now
    )
    with rows.ledger.transaction() as tx:
        moves.put_alarms(tx, [alarm])

    said = command("status", "--json").json
    assert said["healthy"] is False
    assert [(each["kind"], each["next_step"]) for each in said["stopped_because"]] == [("disk_low", "make room")]
    assert "Stopped because the disk is nearly full" in command("status").out
    assert command("status").code == ExitCode.DONE
    assert command("status", "--exit-code").code == ExitCode.NEEDS_PERSON

    with rows.ledger.transaction() as tx:
        moves.put_alarms(tx, [])
    assert command("status", "--exit-code").code == ExitCode.DONE
    assert command("status", "--json").json["healthy"] is True


def test_status_finds_studies_by_what_an_admin_knows(command, every, rows):
    rows.admit("x", study="1.2.3", patient="4711", accession="A-1", modality="MR")

    def studies(*words):
        return [study["study_uid"] for study in command("status", "--json", *words).json["studies"]]

    assert studies("--patient-id", "4711") == ["1.2.3"]
    assert studies("--accession", "A-1") == ["1.2.3"]
    assert studies("--modality", "mr") == ["1.2.3"]
    assert studies("--patient-id", "PID", "--modality", "MR") == []
    assert set(studies("--since", "1d")) == {"1.2.3", STUDY, OTHER_STUDY}
    assert studies("--since", "1s") == []
    assert studies("--since", (datetime.now(UTC) - timedelta(hours=1)).isoformat()) != []


def test_files_of_a_patient_are_his_alone_where_a_study_has_two(command, rows):
    """A study's first file says whose it is; only what says otherwise is kept beside the others."""
    for name, patient in (("one", "4711"), ("other", "4712"), ("nobody's", ""), ("again", "4711")):
        rows.admit(name, patient=patient)
    rows.admit("elsewhere", study=OTHER_STUDY, patient="4712", accession="A-2")

    def files(*words):
        return [each["source"] for each in command("status", "--json", "--files", *words).json["files"]]

    assert files("--patient-id", "4711") == ["again", "one"]
    assert files("--patient-id", "4712") == ["elsewhere", "other"]
    assert files("--patient-id", "4712", "--accession", "A-2") == ["elsewhere"]


@pytest.mark.parametrize(
    "words",
    [
        *(("status", option) for option in ("--study", "--patient-id", "--accession", "--modality")),
        *(("retry", "--study"), ("retry", "--reason"), ("route", "--again", "--study")),
    ],
)
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_choice_is_refused_and_chooses_nothing(command, every, words, empty):
    """A script's variable that was not set chose everything, and `retry` ended without a word."""
    said = command(*words, empty)

    assert said.code == ExitCode.CONFIGURATION
    assert f"'{words[-1]}': it is empty; without this option all are chosen" in said.err
    assert not said.out


@pytest.mark.parametrize("last", ["sent", "dropped"])
def test_a_study_both_sent_and_dropped_is_one_line(command, rows, tmp_path, last):
    of_send = Rows(tmp_path, of_send=True)
    of_send.now = rows.now + (timedelta(seconds=1) if last == "sent" else -timedelta(seconds=1))
    of_send.admit("sent", uid=f"{STUDY}.7")
    of_send.refuse("cut")
    of_send.close()
    rows.admit("dropped")
    rows.admit("other", study=OTHER_STUDY)

    for words in ((), ("--limit", "1")):
        listed = command("status", "--json", "--since", "1d", *words).json["studies"]
        told = {study["study_uid"]: study for study in listed}
        assert len(told) == len(listed) == (1 if words else 2)
    both = command("status", "--json", "--patient-id", "PID").json["studies"]
    [study] = [each for each in both if each["study_uid"] == STUDY]
    assert (study["states"], study["size_bytes"]) == ({"PENDING": 2}, 2000)
    assert command("status", "--since", "1d").out.count(STUDY) == 1


def test_status_lists_files_of_a_state_or_study(command, every):
    rejected = command("status", "--json", "--state", "rejected").json["files"]
    study = command("status", "--json", "--study", OTHER_STUDY).json["files"]

    assert {file["id"] for file in rejected} == {every["rejected"], every["clutter"]}
    assert {file["source"] for file in study} == {"confirmed", "failed", "uncertain", "deleted", "stored"}
    assert "sub/DOE^JOHN.dcm" in command("status", "--state", "REJECTED").out


@pytest.mark.parametrize("names", [["--study", "1.2.3"], ["--patient-id", "DOE^4711"], ["--accession", "A-0"]])
@pytest.mark.parametrize("form", [[], ["--json"], ["--state", "failed"], ["--files"]])
def test_a_name_that_the_ledger_does_not_know_is_told_and_no_good_end(command, every, names, form):
    said = command("status", *names, *form)

    assert said.code == ExitCode.CONFIGURATION
    if form == ["--json"]:
        assert [*said.json.get("studies", ()), *said.json.get("files", ())] == []
    else:
        assert "no file in the ledger has this" in " ".join(said.out.split())
        assert "Changed" not in said.out, "an empty table"
    assert "DOE" not in said.out + said.err


@pytest.mark.parametrize(
    "words",
    [["--state", "DISCARDED"], ["--modality", "XX"], ["--study", STUDY, "--state", "FAILED"], ["--since", "1s"]],
)
def test_nothing_of_a_kind_is_said_in_words(command, every, words):
    said = command("status", *words)

    assert said.code == ExitCode.DONE
    assert "is like that" in said.out
    assert "Changed" not in said.out, "an empty table"


def test_retry_of_a_study_that_is_not_there_is_no_good_end(command, every):
    said = command("retry", "--study", "1.2.3")

    assert said.code == ExitCode.CONFIGURATION
    assert "no file in the ledger has this study" in said.err


def test_status_says_when_there_is_more(command, every):
    said = command("status", "--json", "--files", "--limit", "3").json

    assert len(said["files"]) == 3
    assert said["more"] is True
    assert "and more" in command("status", "--files", "--limit", "3").out


def test_a_lock_of_the_same_number_on_another_disk_is_no_daemon(tmp_path):
    """After a kill -9 another program's lock was shown as the daemon."""
    lock, locks = tmp_path / "lock", tmp_path / "locks"
    lock.write_text("31\n")
    locks.write_text(f"1: FLOCK  ADVISORY  WRITE 30 fe:7f:{lock.stat().st_ino} 0 EOF\n")

    assert who_runs(tmp_path, locks=locks) is None
    lock.write_text("30\n")
    assert who_runs(tmp_path, locks=locks) == 30


@pytest.mark.parametrize("number", ["99999999999999999999", "0", "-1"])
def test_an_id_that_none_can_have_is_a_matter_of_the_command_line(command, every, number):
    for words in (["retry", "--", number], ["resolve", "--discard", "--", number], ["explain", "--", number]):
        assert command(*words).code == ExitCode.CONFIGURATION, words


@pytest.mark.parametrize("when", ["yesterday", "5", ""])
def test_a_time_that_is_none_is_told_in_words(command, when):
    said = command("status", "--since", when)

    assert said.code == ExitCode.CONFIGURATION
    assert "24h" in said.err


def test_watching_needs_a_terminal(command, every):
    assert command("status", "--watch").code == ExitCode.CONFIGURATION


@by_lock_only
def test_the_daemon_is_seen_by_its_lock(rows, command):
    with (rows.spool.path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pid = who_runs(rows.spool.path)
        assert command("status", "--json").json["daemon"] == {"running": True, "pid": pid}
    assert who_runs(rows.spool.path) is None


def test_explain_tells_the_whole_history_and_what_to_do(command, every):
    said = command("explain", str(every["failed"]))

    assert said.code == 0
    for words in ("FAILED", "refused: said the server", "43264 (A900H)", "00100020", "HTTP 409", "SENDING", "PENDING"):
        assert words in said.out
    assert f"ingestd retry {every['failed']}" in said.out


@pytest.mark.parametrize("name", ["confirmed", "uncertain", "rejected", "duplicate", "conflict", "deleted", "pending"])
def test_explain_says_the_next_step_of_every_state(command, every, name):
    said = command("explain", "--json", str(every[name])).json["files"][0]

    assert said["state"] in {name.upper(), "REJECTED"}
    assert said["next_step"]
    assert said["history"][-1]["to"] == said["state"]
    assert "What to do" in command("explain", str(every[name])).out


def test_conflict_with_a_file_that_is_gone_is_not_to_be_compared_with_it(command, rows):
    """Who then kept "the first" let go of the only one."""
    uid = f"{OTHER_STUDY}.3.99"
    holder = rows.admit("holder", study=OTHER_STUDY, uid=uid, content="a")
    ours = rows.admit("ours", study=OTHER_STUDY, uid=uid, content="b")
    assert "compare the two" in command("explain", str(ours)).out
    rows.finish(rows.claim(OTHER_STUDY), State.FAILED, Reason.REFUSED)

    said = command("explain", "--json", str(ours)).json["files"][0]

    assert said["state"] == "CONFLICT"
    assert said["next_step"].startswith(f"row {holder}, which had its UIDs, is FAILED: retry it")
    assert command("retry", str(ours)).code == 0
    assert queries.entry(rows.ledger, ours).state is State.PENDING


def test_explain_shows_the_others_with_the_same_uids(command, every):
    said = command("explain", "--json", str(every["pending"])).json["files"][0]

    others = {other["id"] for other in [*said["duplicates"], *said["same_identity"]]}
    assert {every["duplicate"], every["conflict"]} <= others
    assert command("explain", "--json", str(every["duplicate"])).json["files"][0]["holder"]["id"] == every["pending"]


def test_a_file_is_found_by_id_uid_and_every_path_it_has_had(command, every, rows, monkeypatch):
    rejected = [
        file for file in command("status", "--json", "--files").json["files"] if file["id"] == every["rejected"]
    ]
    monkeypatch.chdir(rows.folder / "drop")

    for what in ("sub/DOE^JOHN.dcm", str(rows.folder / "drop/sub/DOE^JOHN.dcm"), rejected[0]["file"]):
        assert [file["id"] for file in command("explain", "--json", what).json["files"]] == [every["rejected"]]
    by_uid = command("explain", "--json", f"{STUDY}.3.99").json["files"]
    assert {file["id"] for file in by_uid} == {every[name] for name in ("pending", "duplicate", "conflict")}
    assert command("explain", "--json", OTHER_STUDY).json["found"] == 5


@pytest.mark.parametrize("what", ["im0.dcm", "./im0.dcm", "deep/im0.dcm", "100%.dcm", "a_b", "\udcff.dcm"])
def test_a_file_is_found_by_the_end_of_its_path(command, rows, monkeypatch, tmp_path_factory, what):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    wanted = rows.refuse(f"series/deep/{what.rpartition('/')[2]}")
    others = [rows.refuse("series/xim0.dcm"), rows.refuse("axb"), rows.refuse("100%.dcm.old"), rows.refuse("d/aXb")]

    assert [file["id"] for file in command("explain", "--json", what).json["files"]] == [wanted]
    assert wanted not in others


def test_a_file_that_is_called_like_a_number_or_a_uid_is_found_by_its_path(command, rows, monkeypatch):
    """`explain drop/3` told of row 3 instead, whatever that was called."""
    rows.admit("x4", uid="1.2.3.9")
    for name in ("1", "1.2.3.9", "20240101/1.2.840.7"):
        wanted = rows.refuse(name)
        path = rows.folder / "drop" / name
        for what in (str(path), f"drop/{name}"):
            monkeypatch.chdir(rows.folder)
            assert [file["id"] for file in command("explain", "--json", what).json["files"]] == [wanted], what

    assert [file["id"] for file in command("explain", "--json", "1.2.840.7").json["files"]] == [wanted], "by its end"


def test_a_name_finds_every_file_that_is_called_so(command, rows, monkeypatch):
    both = [rows.refuse("one/im0.dcm"), rows.refuse("two/im0.dcm")]
    assert [file["id"] for file in command("explain", "--json", "im0.dcm").json["files"]] == both

    at_the_top = rows.refuse("im0.dcm")
    # One of them may need a person, and that one must not hide behind another.
    assert [file["id"] for file in command("explain", "--json", "im0.dcm").json["files"]] == [*both, at_the_top]

    (rows.folder / "drop" / "im1.dcm").touch()
    rows.refuse("one/im1.dcm")
    assert "not taken in yet" in command("explain", "im1.dcm").err, "the very file that lies there is meant"


def test_a_study_is_found_by_the_name_that_the_log_has_for_it(command, every, rows):
    set_key(rows.spool.host.encode())
    reference = study_ref(STUDY)

    found = command("explain", "--json", reference).json["files"]

    assert {file["id"] for file in found} == {every[name] for name in ("pending", "duplicate", "conflict")}
    assert command("explain", "--json", f"study={reference}").json["files"] == found
    assert command("explain", "--json", f"study={STUDY}").json["files"] == found, "as `logging.uids: plain` writes it"
    assert f"study={reference}" in command("explain", str(every["pending"])).out
    assert command("explain", "study=0123456789ab").code == ExitCode.CONFIGURATION
    [row] = command("explain", "--json", f"delivery_id={every['failed']}").json["files"]
    assert row["id"] == every["failed"]
    assert command("explain", "0123456789ab").code == ExitCode.CONFIGURATION


def test_explain_of_many_shows_some_and_says_how_to_go_on(command, rows):
    for number in range(12):
        rows.admit(f"f{number}")

    said = command("explain", STUDY)

    assert "and 2 more" in said.out


def test_a_file_unknown_to_the_ledger_is_explained_by_itself(command, rows, tmp_path_factory):
    drop = rows.folder / "drop"
    (drop / "fresh").touch()
    (drop / ".hidden").touch()
    (drop / "link").symlink_to("fresh")
    outside = tmp_path_factory.mktemp("x") / "file"
    outside.touch()

    def said(what):
        ran = command("explain", str(what))
        assert ran.code == ExitCode.CONFIGURATION
        return ran.err

    assert "no daemon is running" in said(drop / "fresh")
    assert "no daemon is running" in said("fresh")
    assert "while a file is being written" in said(drop / ".hidden")
    assert "follows no links" in said(drop / "link")
    assert "in none of the watched folders" in said(outside)
    assert "no file of that name" in said(drop / "nothing")
    assert "no file of that name" in said("1.2.3.4")


@pytest.mark.parametrize("words", ["explain 4711", "explain 1.2.3.4", "retry 4711", "resolve 4711 --discard"])
def test_what_the_ledger_does_not_know_is_told_with_how_to_find_what_it_knows(command, every, words):
    said = command(*words.split())

    assert said.code != ExitCode.DONE
    assert "`ingestd status --files` lists the numbers" in said.out + said.err


def test_explain_of_what_waits_says_that_nothing_is_sent_at_present(command, every, rows):
    """ "Nothing to do: it is sent when its study is due" was all it said while the server refused us."""
    rows.pause()

    said = " ".join(command("explain", str(every["pending"])).out.split())

    assert "nothing is sent at present: connection refused; see `ingestd status`" in said
    assert "nothing is sent" not in command("explain", str(every["failed"])).out


def test_nothing_printed_drives_the_terminal(command, rows):
    entry = rows.refuse("DOE\x1b[2J\n\udcffevil", note="bad\x1b]0;title\x07")

    for words in (["explain", str(entry)], ["status", "--state", "REJECTED"], ["explain", "no\x1b[2Jsuch"]):
        said = command(*words)
        assert "\x1b[2J" not in said.out + said.err
        assert "\x07" not in said.out + said.err
    assert command("status", "--json", "--files").code == 0


def test_retry_sends_again_what_a_person_names(command, every, rows):
    said = command("retry", "--json", str(every["failed"]), str(every["deleted"]), str(every["rejected"]))

    assert said.code == 0
    assert said.json == {
        "sent_again": [every["failed"], every["deleted"]],
        "read_again": [every["rejected"]],
        "refused": [],
    }
    assert queries.entry(rows.ledger, every["failed"]).state is State.PENDING


def test_retry_refused_names_the_row_in_the_way(command, every):
    said = command("retry", str(every["conflict"]))

    assert said.code == ExitCode.NEEDS_PERSON
    assert f"file {every['conflict']}: not retried" in said.out
    assert str(every["pending"]) in said.out


@pytest.mark.parametrize(
    "words", [["--state", "failed"], ["--reason", "refused"], ["--study", OTHER_STUDY, "--state", "FAILED"]]
)
def test_retry_of_all_of_a_kind(command, every, words):
    assert command("retry", "--json", *words).json["sent_again"] == [every["failed"]]
    assert command("retry", *words).out == "no file is like that\n"


def test_retry_wants_either_ids_or_a_choice(command, every):
    assert command("retry").code == ExitCode.CONFIGURATION
    assert command("retry", "1", "--state", "FAILED").code == ExitCode.CONFIGURATION
    said = command("retry", "--reason", "frobnicated")
    assert said.code == ExitCode.CONFIGURATION
    assert "truncated" in said.err


def test_retry_of_what_is_not_there_is_told(command, every):
    said = command("retry", "4711")

    assert said.code == ExitCode.NEEDS_PERSON
    assert "4711" in said.out


def test_retry_says_that_no_daemon_runs(command, every):
    assert "start it: `ingestd run`" in command("retry", str(every["failed"])).out


def test_what_send_took_in_is_told_to_wait_for_the_next_send(command, tmp_path):
    """The daemon leaves these rows alone; "sent again within seconds" and "nothing to do" would be wrong."""
    rows = Rows(tmp_path, of_send=True)
    failed = rows.send("failed", State.FAILED, Reason.REFUSED)
    rejected = rows.refuse("cut", Reason.TRUNCATED)
    rows.close()

    retried = command("retry", str(failed), str(rejected)).out

    assert retried == "2 files of `ingestd send` can be sent only by it: run it on the folder again\n"
    assert "run `ingestd send` on the folder again" in command("status").out
    assert command("status", "--json").json["waiting_for_send"] == 1
    for delivery_id in (failed, rejected):
        assert "What to do: run `ingestd send` on its folder again" in " ".join(
            command("explain", str(delivery_id)).out.split()
        )


def test_resolve_lets_go(command, every, rows):
    ids = [every[name] for name in ("failed", "conflict", "rejected", "deleted")]

    said = command("resolve", "--json", "--discard", *map(str, ids))

    assert said.json == {"decision": "discard", "done": ids, "refused": []}
    assert {queries.entry(rows.ledger, delivery_id).state for delivery_id in ids} == {State.DISCARDED}


def test_resolve_replaces_the_holder(command, every, rows):
    assert command("resolve", str(every["conflict"]), "--replace").code == ExitCode.DONE

    holder, ours = queries.entry(rows.ledger, every["pending"]), queries.entry(rows.ledger, every["conflict"])
    assert (holder.state, ours.state) == (State.DISCARDED, State.PENDING)


@pytest.mark.parametrize("what", ["gone", "other bytes", "cut short", "a link", "a folder"])
def test_what_has_to_be_sent_is_looked_at_before_anything_gives_way_for_it(command, every, rows, what):
    ours = queries.entry(rows.ledger, every["conflict"])
    whole = ours.file.read_bytes()
    ours.file.unlink()
    match what:
        case "other bytes":
            ours.file.write_bytes(b"x" * len(whole))
        case "cut short":
            ours.file.write_bytes(whole[:-1])
        case "a link":
            ours.file.with_name("elsewhere").write_bytes(whole)
            ours.file.symlink_to("elsewhere")
        case "a folder":
            ours.file.mkdir()

    said = command("resolve", "--json", str(every["conflict"]), "--replace")

    assert said.code == ExitCode.NEEDS_PERSON
    [refused] = said.json["refused"]
    assert f"row {ours.delivery_id} cannot be sent in place of another row: its file" in refused["why"]
    assert [queries.entry(rows.ledger, every[name]).state for name in ("pending", "conflict")] == [
        State.PENDING,
        State.CONFLICT,
    ]


@pytest.mark.parametrize("words", [("retry",), ("resolve", "--admit-anyway")], ids=["retry", "admit anyway"])
def test_what_is_gone_is_not_promised_to_be_read(command, every, rows, words):
    queries.entry(rows.ledger, every["rejected"]).file.unlink()

    said = command(*words, "--json", str(every["rejected"]))

    [refused] = said.json["refused"]
    assert "its file is not there" in refused["why"]
    assert queries.entry(rows.ledger, every["rejected"]).request is None


def test_resolve_replaces_nothing_where_the_server_is_known_not_to(command, every, rows):
    with rows.ledger.transaction() as tx:
        moves.set_destination_kind(tx, ServerKind.ORTHANC)

    said = command("resolve", str(every["conflict"]), "--replace")

    holder, ours = queries.entry(rows.ledger, every["pending"]), queries.entry(rows.ledger, every["conflict"])
    assert said.code == ExitCode.NEEDS_PERSON
    assert f"then `ingestd reconcile --full` and `ingestd retry {ours.delivery_id}`" in said.out
    assert (holder.state, ours.state) == (State.PENDING, State.CONFLICT)


def test_resolve_asks_for_a_rejected_file_to_be_taken(command, every):
    said = command("resolve", str(every["rejected"]), "--admit-anyway")

    assert (said.code, said.out) == (0, f"file {every['rejected']}: will be read again and taken as it is\n")


def test_resolve_refuses_what_the_table_does_not_have(command, every):
    said = command("resolve", str(every["confirmed"]), "--discard")

    assert said.code == ExitCode.NEEDS_PERSON
    assert f"file {every['confirmed']}: not done" in said.out
    assert command("resolve", str(every["confirmed"])).code == ExitCode.CONFIGURATION


def test_every_state_has_a_meaning_and_a_next_step_for_every_reason():
    assert set(MEANING) == set(State)
    for state in {after for _, after in MOVES}:
        for reason in (None, *Reason):
            assert next_step(state, reason, number=7)
            assert "{" not in next_step(state, reason)
