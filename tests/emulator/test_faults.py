"""The embedded server's faults, control port, request log, and what it keeps through a kill."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from pydicom import dcmread

from ingestd.emulator import (
    CONTROL_HEADER,
    Emulator,
    EmulatorFailed,
    Fault,
    FaultName,
    UnknownFault,
    read_log,
)
from tests.builders import fresh_uid
from tests.emulating import EmulatorProcess, dataset_of
from tests.emulator_peer import ANY_FILE, BOUNDARY, JSON, Peer, creating, multipart, path_of, reasons, scan, stored
from tests.patience import PATIENCE
from tests.running import PROGRAM, environment


@pytest.fixture(scope="module")
def running() -> Iterator[Emulator]:
    with Emulator(fsync=False, control_port=0) as server:
        yield server


@pytest.fixture
def server(running: Emulator) -> Iterator[Emulator]:
    yield running
    running.faults.clear()


@pytest.fixture
def peer(server: Emulator) -> Iterator[Peer]:
    with Peer(server.root) as one:
        yield one


def is_there(peer: Peer, study: str) -> bool:
    return peer.get(f"/studies/{study}/metadata").status_code == 200


# Faults that break the connection.


@pytest.mark.parametrize(
    "name,kept",
    [
        ("drop_before_body", False),
        ("drop_during_body", False),
        ("drop_after_body", False),
        ("drop_after_store", True),
        ("half_answer", True),
    ],
)
def test_broken_connections_and_what_they_leave(server, peer, name, kept):
    study = fresh_uid()
    server.faults.add(name, count=1)

    with pytest.raises(requests.RequestException):
        peer.store(scan(study=study))
    server.faults.clear()

    assert is_there(peer, study) is kept


def test_drop_after_store_by_uid_hits_only_that_one(server, peer):
    study, sop = fresh_uid(), fresh_uid()
    server.faults.add("drop_after_store", uid=sop)

    assert peer.store(scan(study=study)).status_code == 200
    with pytest.raises(requests.ConnectionError):
        peer.store(scan(study=study, sop=sop))


def test_probability_with_a_seed_repeats_itself():
    def strikes() -> list[bool]:
        fault = Fault.parse("latency=probability:0.4,seed:7")
        return [fault.fires() for _ in range(40)]

    assert strikes() == strikes()
    assert 5 < sum(strikes()) < 30


def test_skip_lets_the_first_pass(server, peer):
    server.faults.add("throttle", skip=1, count=1)

    assert [peer.get("/changefeed", None).status_code for _ in range(3)] == [200, 429, 200]


# Faults that answer.


@pytest.mark.parametrize("name,status", [("throttle", 429), ("unavailable", 503)])
@pytest.mark.parametrize("retry_after", [None, "7", "Wed, 21 Oct 2099 07:28:00 GMT", "nonsense"])
def test_refusals_with_any_retry_after(server, peer, name, status, retry_after):
    server.faults.add(name, retry_after=retry_after)

    answer = peer.get("/changefeed", None)

    assert (answer.status_code, answer.headers.get("Retry-After")) == (status, retry_after)


@pytest.mark.parametrize("name,kept", [("error_before_store", False), ("error_after_store", True)])
def test_server_errors_before_and_after_the_store(server, peer, name, kept):
    study = fresh_uid()
    server.faults.add(name)

    answer = peer.store(scan(study=study))
    server.faults.clear()

    assert answer.status_code == 500
    assert answer.text.startswith("The server encountered an internal error.")
    assert is_there(peer, study) is kept


@pytest.mark.parametrize("status", [400, 413])
@pytest.mark.parametrize("name,kept", [("error_before_store", False), ("error_after_store", True)])
def test_any_status_before_and_after_the_store(server, peer, name, kept, status):
    study = fresh_uid()
    server.faults.add(name, status=status)

    answer = peer.store(scan(study=study))
    server.faults.clear()

    assert answer.status_code == status
    assert is_there(peer, study) is kept


def test_instance_is_stored_and_listed_as_refused(server, peer):
    study, sop = fresh_uid(), fresh_uid()
    server.faults.add("refuse_stored", uid=sop)

    answer = peer.store(scan(study=study, sop=sop))

    assert (answer.status_code, reasons(answer), stored(answer)) == (409, [43264], [])
    assert is_there(peer, study)


@pytest.mark.parametrize("name,reason", [("being_created", 45071), ("processing_failure", 272)])
def test_per_instance_failures(server, peer, name, reason):
    study, sop = fresh_uid(), fresh_uid()
    server.faults.add(name, uid=sop)

    answer = peer.store(scan(study=study), scan(study=study, sop=sop))

    assert (answer.status_code, reasons(answer), len(stored(answer))) == (202, [reason], 1)


def test_stuck_creating_row_answers_45071_until_it_is_deleted(server, peer):
    uids = {"study": fresh_uid(), "series": fresh_uid(), "sop": fresh_uid()}
    server.faults.add("stuck_creating", count=1)
    before = len(peer.feed())

    assert reasons(peer.store(scan(**uids))) == [272]
    assert reasons(peer.store(scan(**uids))) == [45071]
    assert peer.get(f"/studies?StudyInstanceUID={uids['study']}").status_code == 204
    assert peer.call("DELETE", f"/studies/{uids['study']}").status_code == 204
    assert len(peer.feed()) == before
    assert peer.store(scan(**uids)).status_code == 200


@pytest.mark.parametrize("name", ["foreign_uid", "missing_uid"])
def test_answers_that_lie_about_uids(server, peer, name):
    study, sop = fresh_uid(), fresh_uid()
    server.faults.add(name)

    answer = peer.store(scan(study=study, sop=sop))

    assert answer.status_code == 200
    assert sop not in [each["00081155"]["Value"][0] for each in stored(answer)]
    assert is_there(peer, study)


def test_lost_object_was_acknowledged_and_is_nowhere(server, peer):
    study = fresh_uid()
    server.faults.add("lose_stored")
    before = len(peer.feed("includeMetadata=false&limit=200"))

    answer = peer.store(scan(study=study))

    assert (answer.status_code, len(stored(answer))) == (200, 1)
    assert not is_there(peer, study)
    assert len(peer.feed("includeMetadata=false&limit=200")) == before


def test_undone_store_fails_and_leaves_a_create_and_a_delete(server, peer):
    study = fresh_uid()
    server.faults.add("undone")

    assert reasons(peer.store(scan(study=study))) == [272]
    entries = [each for each in peer.feed("includeMetadata=false&limit=200") if each["studyInstanceUid"] == study]
    assert [(each["action"], each["state"]) for each in entries] == [("Create", "Deleted"), ("Delete", "Deleted")]


def test_altered_object_differs_in_one_byte(server, peer):
    file = scan()
    server.faults.add("alter_stored")

    path = path_of(stored(peer.store(file))[0])

    content = peer.get(path, ANY_FILE).content
    assert sum(a != b for a, b in zip(content[128:], file[128:], strict=True)) == 1


def test_changed_object_has_another_name_and_a_cut_one_is_shorter(server, peer):
    changed, cut = scan(), scan()
    server.faults.add("change_stored", count=1)
    there = peer.get(path_of(stored(peer.store(changed))[0]), ANY_FILE).content
    server.faults.add("cut_stored", count=1, bytes=7)
    rest = peer.get(path_of(stored(peer.store(cut))[0]), ANY_FILE).content

    assert sum(a != b for a, b in zip(there[128:], changed[128:], strict=True)) == 1
    assert dcmread(BytesIO(there)).PatientName != dcmread(BytesIO(changed)).PatientName
    assert rest[128:] == cut[128:-7]


def test_instance_not_found_is_there_for_those_who_search(server, peer):
    answer = stored(peer.store(scan()))[0]
    server.faults.add("not_found", method="GET", path=path_of(answer))

    assert peer.get(path_of(answer), ANY_FILE).status_code == 404
    assert peer.get(f"/instances?SOPInstanceUID={answer['00081155']['Value'][0]}").status_code == 200


def test_late_feed_and_index_lag_end_by_themselves(server, peer):
    study = fresh_uid()
    server.faults.add("late_feed", seconds=0.4, count=1)
    server.faults.add("index_lag", seconds=0.4, count=1)
    peer.store(scan(study=study))

    def seen() -> tuple[bool, bool]:
        entries = peer.feed("includeMetadata=false&limit=200")
        return study in {each["studyInstanceUid"] for each in entries}, peer.get(
            f"/studies?StudyInstanceUID={study}"
        ).status_code == 200

    assert seen() == (False, False)
    assert is_there(peer, study)
    give_up_at = time.monotonic() + PATIENCE
    while seen() != (True, True):
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def test_commit_delay_shows_45071_to_a_second_store(server, peer):
    uids = {"study": fresh_uid(), "series": fresh_uid(), "sop": fresh_uid()}
    server.faults.add("commit_delay", seconds=0.6, count=1)
    answers: list[requests.Response] = []
    first = threading.Thread(target=lambda: answers.append(peer.store(scan(**uids))))
    first.start()
    with Peer(server.root) as other:
        give_up_at = time.monotonic() + PATIENCE
        while not (second := reasons(other.store(scan(**uids)))):
            assert time.monotonic() < give_up_at
    first.join()

    # Whichever came first was held; the other met it while it was being created.
    assert second == [45071] or reasons(answers[0]) == [45071]


def test_latency_and_bandwidth_take_their_time(server, peer):
    server.faults.add("latency", seconds=0.15)
    server.faults.add("bandwidth", bytes=100_000)
    before = time.monotonic()

    assert peer.store(scan({0x7FE00010: ("OW", bytes(20_000))})).status_code == 200
    assert time.monotonic() - before > 0.3


def test_every_fault_is_described_and_used():
    source = "".join(path.read_text() for path in Path(Emulator.start.__code__.co_filename).parent.rglob("*.py"))

    assert [name for name in FaultName if not name.description] == []
    assert [name for name in FaultName if f"FaultName.{name.name}" not in source] == []


@pytest.mark.parametrize("text", ["nonsense", "latency=colour:red", "latency=probability:2", "latency=count:x"])
def test_unknown_faults_are_refused(text):
    with pytest.raises(UnknownFault):
        Fault.parse(text)


def test_short_forms_of_faults():
    assert Fault.parse("throttle=3").count == 3
    assert Fault.parse("throttle=10%").probability == 0.1
    assert Fault.parse("throttle").count is None


# The control port.

CHANGES = {CONTROL_HEADER: "1"}


def test_control_port_switches_faults_and_shows_the_log(server, peer):
    control = server.control_url
    assert control is not None
    made = requests.post(f"{control}/faults", json={"name": "throttle", "count": 1}, headers=CHANGES, timeout=10)
    assert made.status_code == 201
    assert peer.get("/changefeed", None).status_code == 429
    assert [(each["name"], each["fired"]) for each in requests.get(f"{control}/faults", timeout=10).json()] == [
        ("throttle", 1)
    ]
    assert requests.delete(f"{control}/faults", headers=CHANGES, timeout=10).status_code == 204
    assert requests.get(f"{control}/faults", timeout=10).json() == []
    assert "drop_after_store" in requests.get(f"{control}/faults/names", timeout=10).json()
    assert requests.post(f"{control}/faults", json={"name": "x"}, headers=CHANGES, timeout=10).status_code == 400
    assert requests.post(f"{control}/faults", data="{", headers=CHANGES, timeout=10).status_code == 400
    assert requests.get(f"{control}/requests", timeout=10).json()[-1]["status"] == 429


# The log.


def test_log_says_what_became_of_every_request_and_instance(server, peer):
    at = len(server.requests)
    file = scan()
    server.faults.add("drop_after_store", skip=2, count=1)
    peer.store(file)
    peer.store(file)
    with pytest.raises(requests.ConnectionError):
        peer.store(scan())

    lines = server.requests[at:]

    assert [
        (line["kind"], line.get("result"), line.get("reason"), line.get("status"), line.get("outcome"))
        for line in lines
    ] == [
        ("instance", "stored", 0, None, None),
        ("request", None, None, 200, "answered"),
        ("instance", "refused", 45070, None, None),
        ("request", None, None, 409, "answered"),
        ("instance", "stored", 0, None, None),
        ("request", None, None, None, "dropped"),
    ]
    assert lines[0]["sha256"] == hashlib.sha256(dataset_of(file)).hexdigest()
    assert lines[0]["request"] == lines[1]["request"] < lines[2]["request"]


def test_whoever_has_a_whole_answer_finds_it_in_the_log(server, peer):
    """A streamed answer's last piece once left before its line was written, and the next request's came first."""
    path = path_of(stored(peer.store(scan()))[0])
    for _ in range(100):
        before = len(server.requests)
        assert peer.get(path, ANY_FILE).status_code == 200
        assert [line["outcome"] for line in server.requests[before:]] == ["answered"]


def test_client_that_goes_away_leaves_nothing_but_a_line(server, peer):
    study = fresh_uid()
    body = multipart([scan(study=study)])
    head = (
        f"POST /v2/studies HTTP/1.1\r\nHost: x\r\nAccept: {JSON}\r\nContent-Length: {len(body) + 99}\r\n"
        f"Content-Type: multipart/related; boundary={BOUNDARY}\r\n\r\n"
    )
    at = len(server.requests)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
    give_up_at = time.monotonic() + PATIENCE
    while len(server.requests) == at:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)

    assert server.requests[at]["outcome"] == "client_gone"
    assert not is_there(peer, study)
    assert list((server.data / "incoming").iterdir()) == []


# What is kept.


def test_data_folder_keeps_everything_over_a_restart(tmp_path):
    file = scan()
    with Emulator(tmp_path) as server, Peer(server.root) as peer:
        path = path_of(stored(peer.store(file))[0])
    with Emulator(tmp_path) as server, Peer(server.root) as peer:
        assert peer.get(path, ANY_FILE).content[128:] == file[128:]
        assert reasons(peer.store(file)) == [45070]
        assert [each["sequence"] for each in peer.feed()] == [1]

    numbers = [line["request"] for line in read_log(tmp_path)]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == 4


def test_temporary_folder_goes_away():
    with Emulator() as server:
        data = server.data
        assert data.is_dir()
    assert not data.exists()


def test_starts_in_under_a_second():
    before = time.monotonic()
    with Emulator():
        assert time.monotonic() - before < 1


def small_files(data: Path) -> int:
    """How many files the index itself keeps."""
    with closing(sqlite3.connect(data / "index.sqlite")) as index:
        return int(index.execute("SELECT count(*) FROM content").fetchone()[0])


def check_index_and_files(data: Path, url_root: str) -> int:
    """Hold index, files and feed against each other; the number of instances."""
    with Peer(url_root) as peer:
        instances: list[dict] = []
        while True:
            answer = peer.get(f"/instances?limit=200&offset={len(instances)}")
            if answer.status_code == 204:
                break
            instances += answer.json()
        entries: list[dict] = []
        while page := peer.feed(f"includeMetadata=false&limit=200&offset={len(entries)}"):
            entries += page
        assert len(instances) == len(entries) == len(list((data / "files").glob("*/*.dcm"))) + small_files(data)
        assert {each["state"] for each in entries} <= {"Current"}
        assert list((data / "incoming").iterdir()) == []
        return len(instances)


@pytest.mark.slow
def test_kill_leaves_an_index_that_matches_its_files(tmp_path):
    """Killed at random while stores are going on, four times; nothing that was acknowledged is ever missing."""
    chance = random.Random(3)
    acknowledged: dict[str, str] = {}
    process = EmulatorProcess(tmp_path / "data")
    for _ in range(4):
        process.start()
        root = process.url.removesuffix("/v2")
        enough = threading.Event()

        def store(root: str = root, enough: threading.Event = enough) -> None:
            study, series = fresh_uid(), fresh_uid()
            large = {0x7FE00010: ("OW", bytes(100_000))}  # one that the index does not keep
            with Peer(root) as peer:
                try:
                    while not enough.is_set():
                        files = {
                            sop: scan(pixels, study=study, series=series, sop=sop)
                            for pixels in (None, None, large, None)
                            for sop in [fresh_uid()]
                        }
                        for item in stored(peer.store(*files.values())):
                            sop = item["00081155"]["Value"][0]
                            acknowledged[path_of(item)] = hashlib.sha256(files[sop][128:]).hexdigest()
                except requests.RequestException:
                    return

        clients = [threading.Thread(target=store) for _ in range(2)]
        for client in clients:
            client.start()
        time.sleep(chance.uniform(0.05, 0.4))
        assert process._process is not None
        process._process.send_signal(signal.SIGKILL)
        process._process.wait()
        enough.set()
        for client in clients:
            client.join()

    process.start()
    try:
        root = process.url.removesuffix("/v2")
        assert check_index_and_files(process.data, root) >= len(acknowledged) > 0
        with Peer(root) as peer:
            for path, digest in acknowledged.items():
                assert hashlib.sha256(peer.get(path, ANY_FILE).content[128:]).hexdigest() == digest
        logged = {line["sop"] for line in process.stores() if line["result"] == "stored"}
        assert {path.rpartition("/")[2] for path in acknowledged} <= logged
    finally:
        process.stop()


@pytest.mark.slow
def test_memory_stays_bounded_whatever_is_sent(tmp_path):
    """A body of 300 MB, half of it one part and half of it thousands, in chunks without a length."""
    psutil = pytest.importorskip("psutil")
    delimiter = b"--" + BOUNDARY.encode() + b"\r\nContent-Type: application/dicom\r\n\r\n"

    def body() -> Iterator[bytes]:
        big = scan({0x7FE00010: ("OW", bytes(150_000_000))})
        yield delimiter
        for at in range(0, len(big), 1 << 20):
            yield big[at : at + (1 << 20)]
        for _ in range(1500):
            yield b"\r\n" + delimiter + bytes(100_000)
        yield b"\r\n--" + BOUNDARY.encode() + b"--\r\n"

    with (
        EmulatorProcess(tmp_path / "data", words=["--no-fsync"]) as server,
        Peer(server.url.removesuffix("/v2")) as peer,
    ):
        assert server._process is not None
        process = psutil.Process(server._process.pid)
        before = process.memory_info().rss
        answer = peer.store(body=body())  # type: ignore[arg-type]
        grown = process.memory_info().rss - before

    assert (answer.status_code, len(stored(answer)), len(reasons(answer))) == (202, 1, 1500)
    assert grown < 60 << 20


def test_tags_that_change_during_a_store_fail_it_with_272():
    with Emulator(fsync=False, faults=["commit_delay=seconds:0.5,count:1"]) as server, Peer(server.root) as peer:
        uids = {"study": fresh_uid(), "series": fresh_uid(), "sop": fresh_uid()}
        answers: list[requests.Response] = []
        storing = threading.Thread(target=lambda: answers.append(peer.store(scan(**uids))))
        storing.start()
        with Peer(server.root) as other:
            give_up_at = time.monotonic() + PATIENCE
            while not creating(server):
                assert time.monotonic() < give_up_at
            added = other.call("POST", "/extendedquerytags", json=[{"path": "PatientAge", "level": "Study"}])
        storing.join()

        assert added.status_code == 202
        assert reasons(answers[0]) == [272]
        assert peer.store(scan(**uids)).status_code == 200


def test_crash_can_leave_creating_rows_as_the_service_does(tmp_path):
    uids = {"study": fresh_uid(), "series": fresh_uid(), "sop": fresh_uid()}
    with Emulator(tmp_path, faults=["stuck_creating=1"]) as server, Peer(server.root) as peer:
        peer.store(scan(**uids))
        running = server._running  # a crash: the mark of a running server stays in the index
        with running.index.write() as tx:
            tx.execute(
                "CREATE TRIGGER crash BEFORE INSERT ON counter WHEN NEW.name = 'running'"
                " BEGIN SELECT RAISE(IGNORE); END"
            )
    for leaves, reason in ((True, [45071]), (False, [])):
        with Emulator(tmp_path, crash_leaves_creating=leaves) as server, Peer(server.root) as peer:
            assert reasons(peer.store(scan(**uids))) == reason


def test_index_of_another_version_is_refused_with_what_to_do(tmp_path):
    with Emulator(tmp_path) as server, server._running.index.write() as tx:
        tx.execute("PRAGMA user_version=99")

    with pytest.raises(EmulatorFailed, match=r"schema 99.*--reset"):
        Emulator(tmp_path).start()


def test_second_emulator_on_a_data_folder_is_refused(tmp_path):
    with Emulator(tmp_path), pytest.raises(EmulatorFailed, match="another emulator"):
        Emulator(tmp_path).start()


def test_port_in_use_is_said_so(server):
    with pytest.raises(EmulatorFailed, match="cannot listen on 127"):
        Emulator(port=urlsplit(server.url).port or 0).start()


# The command.


@pytest.mark.parametrize(
    "words,code,said",
    [
        (["--list-faults"], 0, "cut the connection after everything was stored, without an answer"),
        (["--fault", "nonsense"], 2, "there is no fault 'nonsense'"),
        (["--fault", "latency=colour:red"], 2, "unknown setting 'colour'"),
        (["--reset"], 2, "--reset needs --data"),
        (["--viewer", "."], 2, "there is no index.html"),
        (["--help"], 0, "open-source server"),
    ],
)
def test_command_explains_itself_and_what_is_wrong(words, code, said, tmp_path):
    done = subprocess.run(
        [*PROGRAM, "emulate", *words], capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path,
        env=environment(),
    )  # fmt: skip

    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_command_resets_a_data_folder_and_ends_on_sigterm(tmp_path):
    with EmulatorProcess(tmp_path / "data") as process, Peer(process.url.removesuffix("/v2")) as peer:
        assert peer.store(scan()).status_code == 200
        assert process._process is not None
        process._process.terminate()
        assert process._process.wait(10) == 0
    (tmp_path / "data" / "mine.txt").write_text("not the emulator's")

    with (
        EmulatorProcess(tmp_path / "data", words=["--reset"]) as process,
        Peer(process.url.removesuffix("/v2")) as peer,
    ):
        assert peer.feed() == []
    assert (tmp_path / "data" / "mine.txt").exists()
    assert json.loads((tmp_path / "data" / "requests.jsonl").read_text().splitlines()[0])["request"] == 1


def test_line_of_the_log_that_a_crash_cut_is_left_out_and_none_that_follows(tmp_path):
    with Emulator(tmp_path) as server, Peer(server.root) as peer:
        assert peer.store(scan()).status_code == 200
    log = tmp_path / "requests.jsonl"
    log.write_bytes(log.read_bytes()[:-9])
    with Emulator(tmp_path) as server, Peer(server.root) as peer:
        assert peer.store(scan()).status_code == 200
        assert read_log(tmp_path) == [read_log(tmp_path)[0], *server.requests]


def test_log_that_the_disk_has_no_room_for_keeps_nobody_from_an_answer(tmp_path):
    file = scan()
    with Emulator(tmp_path) as server, Peer(server.root) as peer:
        path = path_of(stored(peer.store(file))[0])
        log = server._running.log
        kept, log._file = log._file, os.open("/dev/full", os.O_WRONLY)
        assert peer.get(path, ANY_FILE).content[128:] == file[128:]
        assert peer.get("/nothing").status_code == 404
        os.close(log._file)
        log._file = kept
        assert [line["outcome"] for line in server.requests if line["kind"] == "request"] == ["answered"] * 3


def test_answer_without_a_body_is_logged_before_it_leaves():
    with Emulator(fsync=False) as server, Peer(server.root) as peer:
        for number in range(1, 301):
            assert peer.get("/nothing").status_code == 404
            assert len(server.requests) == number
