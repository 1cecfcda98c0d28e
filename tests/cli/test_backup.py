"""What `ingestd backup` copies beside a running daemon can be put back, and no bad copy takes a good one's place."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ingestd.cli.common import ExitCode
from ingestd.emulator import Emulator
from ingestd.fs.durable import write_whole
from ingestd.ledger import Ledger, queries
from ingestd.lifecycle import State
from tests.builders import write_instance
from tests.commanding import Rows, command_in
from tests.ledgers import sqlite_only
from tests.ports import own_port
from tests.running import PROGRAM, Site, environment, wait_until

pytestmark = sqlite_only

COPIES = ["ledger/ledger.db", "ledger/ledger.db.key", "spool/spool.id"]


@pytest.fixture
def command(tmp_path, capfd):
    rows = Rows(tmp_path)
    rows.admit("one")
    rows.close()
    return command_in(tmp_path, capfd)


def copied(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_ledger_key_and_spools_id_are_copied_for_nobody_else_to_read(tmp_path, command):
    said = command("backup", str(tmp_path / "copies"))

    assert said.code == ExitCode.DONE, said
    assert sorted(copied(tmp_path / "copies")) == COPIES
    assert stat.S_IMODE((tmp_path / "copies").stat().st_mode) == 0o700
    assert {stat.S_IMODE((tmp_path / "copies" / name).stat().st_mode) for name in COPIES} == {0o600}
    assert (tmp_path / "copies/ledger/ledger.db.key").read_bytes() == (tmp_path / "ledger.db.key").read_bytes()
    with Ledger.open(f"sqlite:///{tmp_path}/copies/ledger/ledger.db", read_only=True) as ledger:
        assert queries.counts(ledger)[State.PENDING] == 1


def test_what_is_copied_while_others_write_is_whole(tmp_path, command):
    """`cp` of a database that is being written has half a transaction in it."""
    began, ended = threading.Event(), threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None, timeout=30)) as writer:
            writer.execute("PRAGMA synchronous=OFF")
            for first, last in (("before", "x"), ("amidst", "zeroblob(60000000)"), ("behind", "x")):
                writer.execute(f"CREATE TABLE {first} (n)")
                writer.execute(f"INSERT INTO {first} VALUES ({last if last != 'x' else 0})")
            while not ended.is_set():
                writer.executescript("BEGIN; UPDATE before SET n = n + 1; UPDATE behind SET n = n + 1; COMMIT")
                began.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert began.wait(30)
        for number in range(8):
            assert command("backup", str(tmp_path / str(number))).code == ExitCode.DONE
    finally:
        ended.set()
        writer.join()

    for number in range(8):
        with closing(sqlite3.connect(tmp_path / str(number) / "ledger" / "ledger.db")) as copy:
            assert copy.execute("SELECT before.n = behind.n FROM before, behind").fetchall() == [(1,)]


def test_a_damaged_ledger_does_not_take_the_place_of_a_good_copy(tmp_path, command):
    command("backup", str(tmp_path / "copies"))
    before = copied(tmp_path / "copies")
    with (tmp_path / "ledger.db").open("r+b") as ledger:
        size = ledger.seek(0, 2)
        for page in range(4096, size, 4096):
            ledger.seek(page)
            ledger.write(b"\xff" * 512)

    said = command("backup", str(tmp_path / "copies"))

    assert said.code != ExitCode.DONE
    assert "damaged" in said.err
    assert copied(tmp_path / "copies") == before


def test_another_key_does_not_take_the_place_of_the_ledgers_own(tmp_path, command):
    """The only copy of the lost key would be gone the night after it was lost."""
    command("backup", str(tmp_path / "copies"))
    before = copied(tmp_path / "copies")["ledger/ledger.db.key"]
    (tmp_path / "ledger.db.key").write_bytes(b"k" * 32)

    said = command("backup", str(tmp_path / "copies"))

    assert said.code == ExitCode.NEEDS_PERSON
    assert "the key was left out" in said.err
    assert copied(tmp_path / "copies")["ledger/ledger.db.key"] == before


def test_the_ledgers_own_folder_is_no_place_for_its_copy(tmp_path, command):
    before = (tmp_path / "ledger.db").read_bytes()

    assert command("backup", str(tmp_path)).code == ExitCode.CONFIGURATION
    assert (tmp_path / "ledger.db").read_bytes() == before


@pytest.mark.parametrize("linked", [False, True])
def test_no_copy_takes_the_place_of_the_ledger_itself(tmp_path, command, linked):
    """`backup /var/lib` with the ledger in /var/lib/ledger: what was committed meanwhile went with the former file."""
    home = tmp_path / "data" / "ledger"
    home.mkdir(parents=True)
    for name in ("ledger.db", "ledger.db.key"):
        (tmp_path / name).rename(home / name)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("sqlite:///ledger.db", f"sqlite:///{home}/ledger.db"))
    folder = home.parent
    if linked:
        folder = tmp_path / "copies"
        folder.mkdir()
        (folder / "ledger").symlink_to(home)
    before = (home / "ledger.db").stat().st_ino

    said = command("backup", str(folder))

    assert said.code == ExitCode.CONFIGURATION
    assert "the ledger itself" in said.err
    assert (home / "ledger.db").stat().st_ino == before


@pytest.mark.parametrize("place", ["drop", "drop/copies", "spool", "spool/copies", "linked"])
def test_no_copy_is_put_where_files_are_taken_from_or_kept(tmp_path, command, place):
    """From a drop folder the copies were taken as files that are not DICOM, and nothing lay where `backup` had said."""
    for folder in ("drop", "spool"):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "linked").symlink_to(tmp_path / "drop")
    before = sorted(tmp_path.rglob("*"))

    said = command("backup", str(tmp_path / place))

    assert said.code == ExitCode.CONFIGURATION
    assert "name another folder" in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_of_two_backups_at_once_the_second_leaves_the_first_alone(tmp_path, command):
    """They wrote to one name: what the first put in place was what the second had written of its copy so far."""
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger, ledger:
        ledger.execute("CREATE TABLE large (n)")
        ledger.execute("INSERT INTO large VALUES (zeroblob(60000000))")
    copies = tmp_path / "copies"
    words = [*PROGRAM, "backup", "-c", str(tmp_path / "config.yaml"), str(copies)]
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
        try:
            wait_until(lambda: (copies / "ledger").is_dir() and _sizes(copies / "ledger"), what="a copy", every=0.001)
            os.kill(first.pid, signal.SIGSTOP)
            said = command("backup", str(copies))
        finally:
            os.kill(first.pid, signal.SIGCONT)
        assert first.wait(60) == ExitCode.DONE, first.stderr.read()

    assert said.code == ExitCode.BUSY
    assert "another backup" in said.err
    assert sorted(copied(copies)) == COPIES
    assert command("backup", str(copies)).code == ExitCode.DONE


def test_no_room_for_a_small_copy_is_told_with_its_place(tmp_path):
    """Of the key it was "no space left on device", on no disk that was named."""
    with pytest.raises(OSError, match="No space left") as told:
        write_whole(tmp_path / "copy", lambda _: Path("/dev/full").write_bytes(b"k" * 32))

    assert told.value.filename == str(tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def _sizes(folder: Path) -> int:
    with suppress(FileNotFoundError):  # it was put in place just now
        return sum(file.stat().st_size for file in folder.glob("*.part"))
    return 0


def test_a_ledger_put_back_on_a_new_machine_knows_its_files_again(tmp_path):
    """Without the spool's id what had waited belonged to a spool that nobody has, and stayed so for ever."""
    with Emulator(tmp_path / "server", port=own_port(), fsync=False) as server:
        site = Site(tmp_path / "lost", server.url)
        write_instance(site.drop / "first")
        with site.start() as daemon:
            wait_until(lambda: site.states() == {"CONFIRMED": 1}, what="the first")
            server.stop()
            write_instance(site.drop / "second")
            wait_until(lambda: sum(site.states().values()) == 2, what="the second")
            assert site.command("backup", str(tmp_path / "copies")).returncode == 0
            server.start()
            site.wait_for({"CONFIRMED": 2})
            daemon.kill()

        found = Site(tmp_path / "new", server.url)
        shutil.copytree(tmp_path / "copies/spool", found.spool)
        shutil.copytree(tmp_path / "copies/ledger", found.folder, dirs_exist_ok=True)
        assert found.states() != {"CONFIRMED": 2}
        found.run_once()

        assert found.states() == {"CONFIRMED": 2}
