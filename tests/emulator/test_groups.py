"""The embedded server's group commit: posts that come together, and what each of them is told and leaves."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import requests

from ingestd.emulator import Emulator
from ingestd.emulator.storage.removal import _remove_row
from ingestd.emulator.storage.update import update
from tests.builders import fresh_uid
from tests.emulating import dataset_of, stores
from tests.emulator_peer import ANY_FILE, Peer, creating, path_of, reasons, scan, stored
from tests.patience import PATIENCE

LARGE = {0x7FE00010: ("OW", bytes(range(256)) * 400)}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Emulator]:
    with Emulator(tmp_path / "data") as one:
        yield one


@contextmanager
def commits(server: Emulator) -> Iterator[list[str]]:
    """The transactions that the index commits meanwhile."""
    seen: list[str] = []
    writer = server._running.index._writer
    writer.set_trace_callback(lambda sql: seen.append(sql) if sql == "COMMIT" else None)
    yield seen
    writer.set_trace_callback(None)


def together(server: Emulator, sends: Sequence[Callable[[Peer], requests.Response]]) -> list[requests.Response]:
    """What the server answers to requests that all wait before the first of them can be committed, in their order."""
    answers: dict[int, requests.Response] = {}

    def call(number: int, send: Callable[[Peer], requests.Response]) -> None:
        with Peer(server.root) as peer:
            answers[number] = send(peer)

    archive = server._running
    with archive.index._lock:
        threads = []
        for number, send in enumerate(sends):
            before = archive.log._count
            threads.append(threading.Thread(target=call, args=(number, send)))
            threads[-1].start()
            give_up_at = time.monotonic() + PATIENCE
            while archive.log._count == before:
                assert time.monotonic() < give_up_at
                time.sleep(0.001)
        assert answers == {}, "no answer before the commit"
    for thread in threads:
        thread.join(30)
    return [answers[number] for number in range(len(sends))]


def storing(file: bytes, *, method: str = "POST") -> Callable[[Peer], requests.Response]:
    return lambda peer: peer.store(file, method=method)


@pytest.mark.parametrize("changes", [None, LARGE], ids=["small", "large"])
def test_posts_that_wait_together_are_committed_in_one_group(server, changes):
    files = [scan(changes) for _ in range(12)]
    with commits(server) as seen:
        answers = together(server, [storing(file) for file in files])

    assert [answer.status_code for answer in answers] == [200] * 12
    # The first may be on its way before the second has come; the last may come while the others are.
    assert len(seen) <= 6
    with Peer(server.root) as peer:
        assert len(peer.feed("limit=200")) == 12
        for file, answer in zip(files, answers, strict=True):
            assert peer.get(path_of(stored(answer)[0]), ANY_FILE).content[128:] == file[128:]


def test_same_instance_in_posts_that_wait_together_is_stored_once_and_exists_for_the_others(server):
    uids = {"study": fresh_uid(), "series": fresh_uid(), "sop": fresh_uid()}
    answers = together(server, [storing(scan()), *[storing(scan(**uids)) for _ in range(4)], storing(scan())])

    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 409, 409, 409]
    assert [reasons(answer) for answer in answers if answer.status_code == 409] == [[45070]] * 3


def test_puts_of_one_instance_that_wait_together_each_replace_the_one_before(server):
    uids = {"study": fresh_uid(), "series": fresh_uid(), "sop": fresh_uid()}
    names = [scan({0x00100010: ("PN", f"Name^{number}")}, **uids) for number in range(3)]
    answers = together(server, [storing(file, method="PUT") for file in names])

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    with Peer(server.root) as peer:
        assert [entry["action"] for entry in peer.feed("limit=200")] == ["Create", "Update", "Update"]
        kept = peer.get(path_of(stored(answers[0])[0]), ANY_FILE).content
    # Each came as it came; the last of them in the log is the one that stays.
    assert hashlib.sha256(dataset_of(kept)).hexdigest() == stores(server.requests)[-1]["sha256"]


@pytest.mark.parametrize("changes", [None, LARGE], ids=["small", "large"])
def test_post_that_cannot_be_committed_fails_alone_and_leaves_nothing(server, changes):
    bad = {"study": fresh_uid(), "series": fresh_uid(), "sop": fresh_uid()}
    archive = server._running
    with archive.index.write() as tx:
        tx.execute(
            f"CREATE TRIGGER broken BEFORE INSERT ON feed WHEN NEW.sop_uid = '{bad['sop']}'"
            " BEGIN SELECT RAISE(ABORT, 'asked for'); END"
        )
    files = [scan(changes), scan(changes, **bad), scan(changes)]
    answers = together(server, [storing(file) for file in files])

    assert [answer.status_code for answer in answers] == [200, 500, 200]
    on_disk = [path for path in (server.data / "files").rglob("*") if path.is_file()]
    assert len(on_disk) == (2 if changes else 0)
    with archive.index.write() as tx:
        tx.execute("DROP TRIGGER broken")
    with Peer(server.root) as peer:
        assert len(peer.feed("limit=200")) == 2
        assert peer.store(files[1]).status_code == 200
        path = f"/studies/{bad['study']}/series/{bad['series']}/instances/{bad['sop']}"
        assert peer.get(path, ANY_FILE).content[128:] == files[1][128:]


def test_fault_meets_its_own_post_and_none_that_waits_beside_it(server):
    lost = fresh_uid()
    server.faults.add("lose_stored", uid=lost)
    uids = {"study": fresh_uid(), "series": fresh_uid(), "sop": lost}
    answers = together(server, [storing(scan()), storing(scan(**uids)), storing(scan()), storing(scan(**uids))])

    # What was lost is not there for the one that comes after it, as if nobody had waited.
    assert [answer.status_code for answer in answers] == [200] * 4
    with Peer(server.root) as peer:
        assert len(peer.feed("limit=200")) == 2


def test_post_whose_commit_is_delayed_holds_up_nobody(server):
    slow = fresh_uid()
    server.faults.add("commit_delay", seconds=2, uid=slow, count=1)
    uids = {"study": fresh_uid(), "series": fresh_uid(), "sop": slow}
    delayed = threading.Thread(target=lambda: storing(scan(**uids))(Peer(server.root)))
    delayed.start()
    give_up_at = time.monotonic() + PATIENCE
    while not creating(server):
        assert time.monotonic() < give_up_at
        time.sleep(0.001)
    with Peer(server.root) as peer:
        assert peer.store(scan()).status_code == 200
        assert reasons(peer.store(scan(**uids))) == [45071]
    delayed.join(30)


def test_data_folder_of_the_first_schema_is_taken_over(tmp_path):
    """The first one kept every file in the folder ``files``, in one of 256 folders by its number's last byte."""
    with Emulator(tmp_path) as server, Peer(server.root) as peer:
        large = scan(LARGE)
        path = path_of(stored(peer.store(large))[0])
        with server._running.index.write() as tx:
            tx.execute("DROP TABLE content")
            tx.execute("PRAGMA user_version=1")
    (new,) = (path for path in (tmp_path / "files").rglob("*.dcm"))
    old = tmp_path / "files" / "01" / "1.dcm"
    old.parent.mkdir()
    new.rename(old)
    (old.parent / ".DS_Store").touch()  # as a desktop leaves it where somebody has looked

    with Emulator(tmp_path) as server, Peer(server.root) as peer:
        assert peer.get(path, ANY_FILE).content[128:] == large[128:]
        small = scan()
        assert peer.get(path_of(stored(peer.store(small))[0]), ANY_FILE).content[128:] == small[128:]


class Watched:
    """The index's lock, and what is in the files' folders whenever it is let go."""

    def __init__(self, lock: AbstractContextManager[object], folder: Path) -> None:
        self._lock, self._folder = lock, folder
        self.seen: list[int] = []

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(self, *what: object) -> None:
        self.seen.append(sum(path.is_file() for path in self._folder.rglob("*")))
        self._lock.__exit__(None, None, None)


def test_file_is_out_of_its_place_before_another_writer_is_given_its_number(server):
    index = server._running.index
    with index.write() as tx:
        tx.execute("CREATE TRIGGER broken BEFORE INSERT ON feed BEGIN SELECT RAISE(ABORT, 'asked for'); END")
    lock = index._lock
    index._lock = watched = Watched(lock, server.data / "files")
    with Peer(server.root) as peer:
        assert peer.store(scan(LARGE)).status_code == 500
    index._lock = lock
    assert watched.seen
    assert set(watched.seen) == {0}


def test_index_that_is_full_says_so_and_takes_the_next_once_there_is_room(server):
    index = server._running.index
    pages = index._writer.execute("PRAGMA page_count").fetchone()[0]
    index._writer.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"), index.write() as tx:
        tx.execute("INSERT INTO content VALUES (1, zeroblob(1000000))")
    with Peer(server.root) as peer:
        file = scan({0x7FE00010: ("OB", bytes(60_000))})
        assert peer.store(file).status_code == 500
        index._writer.execute("PRAGMA max_page_count=1000000")
        assert peer.get(path_of(stored(peer.store(file))[0]), ANY_FILE).content[128:] == file[128:]


def test_update_passes_over_an_instance_that_is_deleted_while_it_runs(server):
    study = fresh_uid()
    with Peer(server.root) as peer:
        paths = [path_of(stored(peer.store(scan(study=study)))[0]) for _ in range(3)]
        archive = server._running
        change = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Other^Name"}]}}
        given = {"studies": [study], "partition": 1, "before": 1000, "change": change}
        results: list[dict[str, object]] = []
        updating = threading.Thread(target=lambda: results.append(update(archive, given)))
        with archive.index._lock:
            updating.start()
            give_up_at = time.monotonic() + PATIENCE
            while not any(archive.files.incoming.iterdir()):  # the first is changed, so the others are known
                assert time.monotonic() < give_up_at
                time.sleep(0.001)
            tx = archive.index._writer
            _remove_row(archive, tx, tx.execute("SELECT * FROM instance ORDER BY key LIMIT 1 OFFSET 1").fetchone())
        updating.join(30)
        assert [result["instanceUpdated"] for result in results] == [2]
        assert ["errors" in result for result in results] == [False]
        names = [entry["00100010"]["Value"][0]["Alphabetic"] for entry in peer.get(f"/studies/{study}/metadata").json()]
        assert names == ["Other^Name"] * 2
        assert peer.get(paths[1], ANY_FILE).status_code == 404


@pytest.mark.parametrize("changes", [None, LARGE], ids=["small", "large"])
def test_retrieve_beside_puts_of_the_same_instance_gives_one_or_the_other(server, changes):
    uids = {"study": fresh_uid(), "series": fresh_uid(), "sop": fresh_uid()}
    files = [scan({0x00100010: ("PN", f"Name^{number}")} | (changes or {}), **uids) for number in range(2)]
    contents = {file[128:] for file in files}
    with Peer(server.root) as reader:
        path = path_of(stored(reader.store(files[0]))[0])
        is_over = threading.Event()

        def replace() -> None:
            with Peer(server.root) as peer:
                while not is_over.is_set():
                    for file in files:
                        peer.store(file, method="PUT")

        replacing = [threading.Thread(target=replace) for _ in range(2)]
        for thread in replacing:
            thread.start()
        try:
            answers = [reader.get(path, ANY_FILE) for _ in range(400)]
        finally:
            is_over.set()
            for thread in replacing:
                thread.join(30)
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.content[128:] for answer in answers} <= contents
