"""``ingestd dicomweb`` as a person or a script uses it, in processes of its own against the emulator."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pydicom
import pytest
from click.testing import CliRunner, Result

from ingestd.cli.common import ExitCode, in_words
from ingestd.cli.dicomweb import command
from ingestd.cli.tables import show, table
from ingestd.dicomweb import batches
from ingestd.emulator import Emulator
from tests.builders import fresh_uid, write_instance
from tests.http_server import ScriptedServer, answer
from tests.ledgers import url_of
from tests.running import PROGRAM
from tests.terminals import on_a_terminal, without_colour

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Emulator]:
    with Emulator(tmp_path_factory.mktemp("emulator"), fsync=False) as emulator:
        yield emulator


class Shell:
    """Runs operations against one server and gives back code, stdout and stderr."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, *arguments: str, answers: str | None = None) -> Result:
        result = CliRunner().invoke(
            command, ["--url", self.url, *arguments], input=answers, standalone_mode=False, catch_exceptions=True
        )
        if isinstance(result.exception, click.ClickException):
            result.exit_code = result.exception.exit_code
        elif isinstance(result.exception, click.Abort):
            result.exit_code = 130
        elif isinstance(result.exception, Exception):
            code, words = in_words(result.exception)
            assert code is not ExitCode.INTERNAL, repr(result.exception)
            result.exit_code = int(code)
            result.words = words
        elif isinstance(result.return_value, int):
            result.exit_code = int(result.return_value)
        return result

    def json(self, *arguments: str) -> object:
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output + repr(result.exception)
        return json.loads(result.stdout)


@pytest.fixture
def shell(server) -> Shell:
    return Shell(server.url)


@pytest.fixture
def study(tmp_path, shell) -> dict[str, str]:
    uids = {"study": fresh_uid(1), "series": fresh_uid(2), "instance": fresh_uid(3)}
    patient = f"CLI{uids['study'][-7:]}"
    (tmp_path / "in").mkdir()
    path = write_instance(
        tmp_path / "in" / "one",
        study_uid=uids["study"],
        series_uid=uids["series"],
        sop_uid=uids["instance"],
        patient_id=patient,
    )
    assert shell("store", str(path)).exit_code == 0
    return uids | {"patient": patient, "path": str(path)}


def test_store_says_what_became_of_each_file_and_what_it_left(tmp_path, shell, study):
    (tmp_path / "in" / "notes.txt").write_text("hello")
    write_instance(tmp_path / "in" / "two")

    result = shell("store", str(tmp_path / "in"))
    told = shell("store", study["path"], "--json")

    assert result.exit_code == 1, "a file was left"
    assert "already there" in result.stdout
    assert "stored" in result.stdout
    assert "notes.txt: not a DICOM file" in result.stderr
    assert told.exit_code == 0
    assert json.loads(told.stdout)["instances"][0]["outcome"] == "already there"


def test_store_whose_answer_is_lost_says_that_the_outcome_is_unknown(tmp_path, server, shell):
    server.faults.add("drop_after_store", count=1)

    lost = shell("store", str(write_instance(tmp_path / "scan")))

    assert lost.exit_code == ExitCode.TIMEOUT
    assert "the outcome is unknown" in lost.words
    assert "searched for it before it is sent again" in lost.words


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_store_tells_what_was_answered_before_a_break(tmp_path, words):
    uids = [fresh_uid(3) for _ in range(201)]
    for number, uid in enumerate(uids):
        write_instance(tmp_path / f"{number:03}", sop_uid=uid)
    items = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in uids[:200]]
    took = answer(json.dumps({"00081199": {"vr": "SQ", "Value": items}}).encode())

    with ScriptedServer(took, answer(status="503 Service Unavailable")) as server:
        result = Shell(server.url)("store", str(tmp_path), *words)

    assert result.exit_code == ExitCode.TIMEOUT
    assert "503" in result.words
    assert re.findall(r"\b1\.2\.826\.[0-9.]+", result.stdout) == uids[:200]


def calls_in(deed: Callable[[], object]) -> int:
    """Count the calls of Python functions, in new threads too; unlike the seconds they are the same each time."""
    calls: list[None] = []

    def on_event(_frame: object, event: str, _argument: object) -> None:
        if event == "call":
            calls.append(None)

    threading.setprofile(on_event)
    sys.setprofile(on_event)
    try:
        deed()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return len(calls)


def test_store_on_a_terminal_leaves_what_cannot_be_looked_at_as_it_does_in_a_pipe(tmp_path, server):
    write_instance(tmp_path / "in" / "seen.dcm")
    hidden = tmp_path / "in" / "hidden"
    write_instance(hidden / "unseen.dcm")
    hidden.chmod(0o644)  # its names can be read, what is behind them not
    program: tuple[str, ...] = tuple(PROGRAM)
    if os.geteuid() == 0:
        os.chown(hidden, 65534, 65534)
        bounds = "--bounding-set=-dac_override,-dac_read_search"
        program = ("setpriv", bounds, "--inh-caps=-all", *program)
    words = ("dicomweb", "--url", server.url, "store", str(tmp_path / "in"))
    try:
        code, screen = on_a_terminal(*words, program=program)
    finally:
        hidden.chmod(0o755)
    assert code == ExitCode.NEEDS_PERSON
    assert "stored" in screen
    assert "cannot be opened: Permission denied" in " ".join(without_colour(screen).split())


def test_store_of_many_files_spends_little_on_each_beside_the_transfer(tmp_path, capsys):
    """Of 5,000 small files the table took twice what reading and sending them took."""
    for number in range(200):
        write_instance(tmp_path / "in" / f"{number:03}")
    rows = [(f"1.2.3.{number}", "stored", "") for number in range(200)]

    of_lists = calls_in(lambda: show(table(["SOP instance", "outcome", "note"], rows)))
    of_full = calls_in(lambda: list(batches([tmp_path / "in"])))
    of_small = calls_in(lambda: list(batches([tmp_path / "in"], max_instances=10)))

    assert of_lists / 200 < 20, "rich makes some 500"
    assert of_full / 200 > 50, "the reading is counted"
    assert of_full < of_small + 1_000, "a file costs no more because many are in the batch already"


def test_store_single_upsert_and_study(shell, study):
    done = shell("store", study["path"], "--single", "--upsert", "--study", study["study"], "--expire-after", "1h")
    other = shell("store", study["path"], "--study", "1.2.3")

    assert done.exit_code == 0
    assert other.exit_code == 1
    assert "refused" in other.stdout


def test_retrieve_writes_files_and_resumes(tmp_path, shell, study):
    first = shell("retrieve", study["study"], "-o", str(tmp_path / "out"))
    again = shell.json("retrieve", study["study"], study["series"], "-o", str(tmp_path / "out"))
    other = shell("retrieve", study["study"], "-o", str(tmp_path / "x"), "--transfer-syntax", "1.2.840.10008.1.2.1")

    assert (first.exit_code, other.exit_code) == (0, 0)
    path = Path(first.stdout.strip())
    assert path.read_bytes()[128:] == Path(study["path"]).read_bytes()[128:]
    assert again == {"written": [], "replaced": [], "kept": [str(path)]}


def test_retrieve_pipes_one_instance(shell, study):
    whole = [study["study"], study["series"], study["instance"]]

    result = shell("retrieve", *whole, "-o", "-", "--original")

    assert result.stdout_bytes[128:] == Path(study["path"]).read_bytes()[128:]
    assert shell("retrieve", study["study"], "-o", "-").exit_code == 2
    assert shell("retrieve", "1.2.3.4").exit_code == 1


def test_metadata_as_table_and_as_json(shell, study):
    table = shell("metadata", study["study"])
    etag = table.stderr.split()[-1]

    assert "PatientID" in table.stdout
    assert study["patient"] in table.stdout
    assert shell.json("metadata", study["study"], study["series"])[0]["00100020"]["Value"] == [study["patient"]]
    assert "not changed" in shell("metadata", study["study"], "--etag", etag).stderr


def test_frames_and_pictures_of_a_real_file(tmp_path, shell, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample = SAMPLES / "CT_small.dcm"
    shell("store", str(sample), "--upsert")
    dataset = pydicom.dcmread(sample)
    uids = [dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID]

    frame = shell("frames", *uids, "1")
    piped = shell("frames", *uids, "1", "-o", "-")
    picture = shell("rendered", *uids, "--quality", "50")
    png = shell("rendered", *uids, "--png", "--frame", "1", "-o", "-")

    assert Path(frame.stdout.strip()).read_bytes() == dataset.PixelData
    assert piped.stdout_bytes == dataset.PixelData
    assert Path(picture.stdout.strip()).read_bytes().startswith(b"\xff\xd8")
    assert png.stdout_bytes.startswith(b"\x89PNG")
    assert shell("frames", *uids, "zero").exit_code == 2
    assert shell("frames", *uids, "7").exit_code == 1


def test_searches(shell, study):
    found = shell("search", "studies", f"PatientID={study['patient']}", "--include", "NumberOfStudyRelatedInstances")

    assert study["study"] in found.stdout
    assert "1 studies" in found.stderr
    assert len(shell.json("search", "series", "--study", study["study"])) == 1
    assert len(shell.json("search", "instances", "--study", study["study"], "--series", study["series"])) == 1
    assert len(shell.json("search", "instances", "--all")) >= 1
    assert shell("search", "studies", "nonsense").exit_code == 2
    assert shell("search", "studies", "--study", "1").exit_code == 2
    assert shell("search", "instances", "--series", "1").exit_code == 2
    refused = shell("search", "studies", "StudyDate=yesterday")
    assert refused.exit_code == 2
    assert "yyyyMMdd" in refused.words, "a person sees what the server says of the request"


@pytest.mark.parametrize(
    "words",
    [
        "search studies PatientName=nobody --fuzzy --limit 5",
        "search instances --study 1.2.3",
        "patient-studies nobody",
        "workitems search PatientID=nobody",
    ],
)
def test_search_that_finds_nothing_says_so_and_is_no_good_end(shell, words):
    """``STUDY=$(ingestd dicomweb patient-studies X | head -1)`` must not go on with nothing."""
    told, listed = shell(*words.split()), shell(*words.split(), "--json")

    assert (told.exit_code, told.stdout) == (1, "")
    assert "nothing on the server matches" in told.stderr
    assert (listed.exit_code, json.loads(listed.stdout)) == (1, [])


@pytest.mark.parametrize("words", ["tags list", "partitions"])
def test_list_of_nothing_is_no_empty_table(words):
    body = b"[]"
    with ScriptedServer(answer(body, content_type="application/json")) as empty:
        told = Shell(empty.url)(*words.split())

    assert (told.exit_code, told.stdout) == (0, "")
    assert "there are none" in told.stderr


def test_patient_studies_are_one_a_line(shell, study):
    assert shell("patient-studies", study["patient"]).stdout == study["study"] + "\n"
    assert shell.json("patient-studies", study["patient"]) == [study["study"]]


def test_delete_asks_first(shell, study):
    assert shell("delete", study["study"], answers="n\n").exit_code == 130
    unanswered = shell("delete", study["study"], answers="")
    assert (unanswered.exit_code, "--yes" in unanswered.words) == (ExitCode.CONFIGURATION, True)
    assert len(shell.json("search", "instances", "--study", study["study"])) == 1
    assert shell("delete", study["study"], answers="y\n").exit_code == 0
    assert shell("delete", study["study"], "--yes").exit_code == 1


def test_changes_are_lines_and_a_cursor_goes_on(tmp_path, shell, study):
    cursor = tmp_path / "cursor"

    first = shell("changes", "--since", "1h", "--cursor", str(cursor), "--json")
    again = shell("changes", "--cursor", str(cursor))
    write_instance(tmp_path / "new", study_uid=(uid := fresh_uid(1)))
    shell("store", str(tmp_path / "new"))
    more = shell("changes", "--cursor", str(cursor))
    followed = shell("changes", "--follow", "--limit", "1")

    assert study["study"] in [json.loads(line)["study_uid"] for line in first.stdout.splitlines()]
    assert again.stdout == ""
    assert uid in more.stdout
    assert len(more.stdout.splitlines()) == 1
    assert len(followed.stdout.splitlines()) == 1
    assert uid in shell("latest").stdout
    assert shell.json("latest")["action"] == "create"
    assert shell("changes", "--since", "yesterday").exit_code == 2
    cursor.write_text("nonsense")
    assert shell("changes", "--cursor", str(cursor)).exit_code == 2


@pytest.mark.parametrize("what", ["changes --follow", "retrieve {study} {series} {instance} -o -"])
def test_what_only_writes_ends_when_its_reader_has_gone(server, study, what):
    read, write = os.pipe()
    os.close(read)

    ran = subprocess.run(
        [sys.executable, "-m", "ingestd", "dicomweb", "--url", server.url, *what.format(**study).split()],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    os.close(write)

    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("width", [80, 160])
def test_long_uids_can_be_copied_from_a_narrow_terminal(tmp_path, server, shell, width):
    uids = {name: fresh_uid(1).ljust(64, "1") for name in ("study_uid", "series_uid", "sop_uid")}
    assert shell("store", str(write_instance(tmp_path / "one", **uids))).exit_code == 0
    study, series = uids["study_uid"], uids["series_uid"]

    for words in (f"search instances --study {study}", f"metadata {study} {series} {uids['sop_uid']}"):
        code, seen = on_a_terminal("dicomweb", "--url", server.url, *words.split(), width=width)

        assert code == 0, seen
        lines = [line.split() for line in without_colour(seen).splitlines()]
        assert [uid for uid in uids.values() if not any(uid in line for line in lines)] == [], seen


def test_changes_tell_when_in_this_machines_zone(server, study):
    ran = subprocess.run(
        [sys.executable, "-m", "ingestd", "dicomweb", "--url", server.url, "latest"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"TZ": "IST-5:30"},
    )

    assert re.search(r" \d\d:\d\d:\d\d\+05:30 ", ran.stdout), ran.stdout


def test_latest_of_an_empty_server_is_nothing():
    with ScriptedServer(answer(b"", status="204 No Content", content_type="")) as empty:
        assert Shell(empty.url)("latest").exit_code == 1


def test_tags_from_adding_to_deleting(shell, study):
    added = shell.json("tags", "add", "StationName", "--level", "series", "--wait")
    assert added["status"] == "succeeded"
    assert "00081010" in shell("tags", "list").stdout
    assert shell.json("tags", "get", "00081010")[0]["status"] == "ready"
    assert "off" in shell("tags", "update", "00081010", "--disable").stdout
    assert shell.json("tags", "errors", "00081010") == []
    assert shell("operation", added["id"], "--wait", "--timeout", "10s").exit_code == 0
    assert shell("operation", "0" * 32).exit_code == 1
    assert shell("tags", "delete", "00081010", "--yes").exit_code == 0
    assert shell("tags", "get", "00081010").exit_code == 1


def test_bulk_update_sets_values(shell, study):
    done = shell("bulk-update", study["study"], "--set", "PatientName=Roe^Jane", "--wait")

    assert done.exit_code == 0, done.output
    assert "Roe^Jane" in shell("metadata", study["study"]).stdout
    assert shell("bulk-update", study["study"], "--set", "Nonsense=1").exit_code == 2


def test_workitems(tmp_path, shell):
    from tests.dicomweb.test_operations import workitem

    file, uid, transaction = tmp_path / "item.json", fresh_uid(7), fresh_uid(8)
    file.write_text(json.dumps([workitem()]))

    assert shell("workitems", "add", str(file), "--uid", uid).stdout.strip() == uid
    assert "SCHEDULED" in shell("workitems", "get", uid).stdout
    assert len(shell.json("workitems", "search", "PatientID=W1")) >= 1
    assert shell("workitems", "state", uid, "IN PROGRESS", "--transaction", transaction).exit_code == 0
    file.write_text('{"00741204": {"vr": "LO", "Value": ["x"]}}')
    assert shell("workitems", "update", uid, str(file), "--transaction", transaction).exit_code == 0
    assert shell("workitems", "cancel", uid).exit_code == 2
    assert shell("workitems", "cancel", fresh_uid(7)).exit_code == 1
    file.write_text("[]")
    assert shell("workitems", "add", str(file)).exit_code == 2


def test_partitions_probe_and_export(shell):
    assert shell("partitions").exit_code == 2, "the feature is off"
    assert "azure" in shell("probe", "--writes").stdout
    assert shell.json("probe")["has_change_feed"] is True
    with ScriptedServer(answer(b'{"id": "abc"}', status="202 Accepted", content_type="application/json")) as other:
        exported = Shell(other.url)("export", "1.2.3", "--container", "https://blob.example/c", "--managed-identity")
    assert exported.stdout.strip() == "abc"
    assert json.loads(other.requests[0].body)["source"]["settings"]["values"] == ["1.2.3"]


@pytest.mark.parametrize(
    "reply, code",
    [
        (answer(b"", status="401 Unauthorized"), 77),
        (answer(b"no", status="403 Forbidden"), 77),
        (answer(b"", status="503 Service Unavailable"), 3),
        (answer(b"nonsense"), 3),
        (answer(b"", status="302 Found"), 2),
        (answer(b"bad", status="400 Bad Request"), 2),
        (answer(b"", status="404 Not Found"), 1),
    ],
)
def test_exit_codes_are_as_documented(reply, code):
    with ScriptedServer(reply) as other:
        assert Shell(other.url)("search", "studies").exit_code == code


def test_ways_of_authentication(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("s3cret")
    monkeypatch.setenv("TOKEN", "from-env")
    with ScriptedServer(answer(b"[]")) as other:
        shell = Shell(other.url)
        shell("--token-file", str(tmp_path / "secret"), "search", "studies")
        shell("--token-env", "TOKEN", "search", "studies")
        shell("--user", "me", "--password-file", str(tmp_path / "secret"), "--partition", "p", "search", "studies")
        assert shell("--user", "me", "search", "studies").exit_code == 2
        assert shell("--token-env", "TOKEN", "--azure", "cli", "search", "studies").exit_code == 2
        monkeypatch.delenv("AUTH_CONNECTION_INFO", raising=False)
        assert shell("--connection-info", "search", "studies").exit_code == 2
        assert shell("--token-env", "NOT_SET", "search", "studies").exit_code == 77

    sent = [request.headers["authorization"] for request in other.requests]
    assert sent == ["Bearer s3cret", "Bearer from-env", "Basic bWU6czNjcmV0"]
    assert other.requests[2].target.startswith("/v2/partitions/p/studies")


def test_whole_program_takes_its_server_from_the_configuration(tmp_path, server):
    config = tmp_path / "config.yaml"
    config.write_text(
        f'inboxes: [{{path: ./drop}}]\nspool: ./spool\ndestination: {{url: "{server.url}", auth: none}}\n'
        f"ledger: {url_of(tmp_path)}\n"
    )
    environment = {**os.environ, "INGESTD_CONFIG": str(config)}
    run = [sys.executable, "-m", "ingestd", "dicomweb"]

    found = subprocess.run([*run, "search", "studies", "--json"], env=environment, capture_output=True, check=False)
    wrong = subprocess.run([*run, "--url", "ftp://x", "latest"], env=environment, capture_output=True, check=False)
    gone = subprocess.run(
        [*run, "--url", "http://127.0.0.1:9/v2", "latest"], env=environment, capture_output=True, check=False
    )

    assert found.returncode == 0, found.stderr
    assert isinstance(json.loads(found.stdout), list)
    assert (wrong.returncode, gone.returncode) == (2, 3)
    assert b"Traceback" not in wrong.stderr + gone.stderr
    assert not (tmp_path / "spool").exists()


def test_every_operation_explains_itself(shell):
    def walk(group: click.Group, *above: str) -> Iterator[tuple[str, ...]]:
        for name, each in group.commands.items():
            if isinstance(each, click.Group):
                yield from walk(each, *above, name)
            else:
                yield (*above, name)

    paths = list(walk(command))
    for path in paths:
        shown = CliRunner().invoke(command, [*path, "--help"]).output
        assert shown.startswith("Usage:")
        assert len(shown.splitlines()) > 4
    assert {path[0] for path in paths} >= {
        *("store", "retrieve", "metadata", "frames", "rendered", "search", "delete", "changes", "latest"),
        *("tags", "operation", "patient-studies", "probe"),
    }
