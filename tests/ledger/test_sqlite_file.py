"""The file of an SQLite ledger: who may use it, on which disk it lies, and what is done where it is damaged."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ingestd.fs.mounts import Mount, mount_of
from ingestd.ledger import Ledger, LedgerError, queries, sqlite_file
from ingestd.lifecycle import FILE_ENDS, HOLDING, State
from tests.ledger_builders import admit, arrival, assert_ledger_holds, open_ledger
from tests.ledgers import sqlite_only, url_of

pytestmark = sqlite_only


def test_new_ledger_is_the_owners_alone_and_in_a_folder_made_for_it(tmp_path: Path):
    with open_ledger(tmp_path / "new" / "folder") as ledger:
        assert Path(ledger.name).stat().st_mode & 0o777 == 0o600


def test_ledger_deleted_while_it_is_open_is_gone_and_no_matter_of_permission(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        (tmp_path / "ledger.db").unlink()
        with pytest.raises(LedgerError, match="is gone") as told:
            admit(ledger, arrival(1))

    assert "run as" not in str(told.value)


def test_zero_byte_file_is_a_new_ledger(tmp_path: Path):
    (tmp_path / "ledger.db").touch()
    with open_ledger(tmp_path) as ledger:
        admit(ledger, arrival(1))
    with open_ledger(tmp_path) as ledger:
        assert queries.counts(ledger)[State.PENDING] == 1


def test_settings_that_a_promise_rests_on_are_in_force(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        found = {
            name: ledger.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in (
                "journal_mode",
                "synchronous",
                "busy_timeout",
                "foreign_keys",
                "trusted_schema",
                "cell_size_check",
                "mmap_size",
            )
        }
    assert found == {
        "journal_mode": "delete",
        "synchronous": 3,
        "busy_timeout": 10_000,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "cell_size_check": 1,
        "mmap_size": 0,
    }


def test_ledger_that_somebody_put_into_wal_is_put_back(tmp_path: Path):
    with open_ledger(tmp_path):
        pass
    connection = sqlite3.connect(tmp_path / "ledger.db")
    assert connection.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    connection.close()
    with open_ledger(tmp_path) as ledger:
        assert ledger.connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "delete"


def test_states_of_the_tables_are_those_of_the_lifecycle(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        made = dict(map(tuple, ledger.connection.exec_driver_sql("SELECT name, sql FROM sqlite_master")))

    def listed(table: str, words: str) -> set[str]:
        return {word.strip(" '\n") for word in made[table].split(words)[1].split(")")[0].split(",")}

    assert listed("delivery", "CHECK (state IN (") == set(State) - {State.REJECTED, State.UNROUTED}
    assert listed("delivery", "WHEN state IN (") == HOLDING
    assert listed("file", "CHECK (state IN (") == FILE_ENDS


def let_others_in(folder: Path) -> None:
    while folder.stat().st_mode & 0o005 != 0o005:
        folder.chmod(folder.stat().st_mode | 0o055)
        folder = folder.parent


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_reading_takes_no_more_than_permission_to_read(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        admit(ledger, arrival(1))
    let_others_in(tmp_path)
    (tmp_path / "ledger.db").chmod(0o444)
    script = (
        "import os, pwd, sqlalchemy.dialects.sqlite\n"
        "from ingestd.ledger import Ledger, LedgerPermission, queries\n"
        "os.setgid(65534); os.setuid(65534)\n"
        f"with Ledger.open({url_of(tmp_path)!r}, read_only=True) as ledger:\n"
        "    print(queries.counts(ledger)['PENDING'])\n"
        "try:\n"
        f"    Ledger.open({url_of(tmp_path)!r})\n"
        "except LedgerPermission as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path.cwd())
    assert done.stdout.splitlines() == [
        "1",
        f"no permission to write the ledger {tmp_path / 'ledger.db'}",
    ], done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_ledger_that_may_not_be_read_is_told_with_its_place(tmp_path: Path):
    with open_ledger(tmp_path):
        pass
    let_others_in(tmp_path)
    script = (
        "import os, pwd, sqlalchemy.dialects.sqlite\n"
        "from ingestd.ledger import Ledger, LedgerPermission, queries\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        f"    Ledger.open({url_of(tmp_path)!r}, read_only=True)\n"
        "except LedgerPermission as error:\n"
        "    print(error.file)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path.cwd())
    assert done.stdout.strip() == str(tmp_path / "ledger.db"), done.stderr


def test_reader_has_the_transaction_of_a_writer_that_died_rolled_back(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        admit(ledger, arrival(1))
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from ingestd.ledger import moves\n"
        "from tests.ledger_builders import NOW, arrival, open_ledger\n"
        f"ledger = open_ledger(Path({str(tmp_path)!r}))\n"
        "ledger.connection.exec_driver_sql('PRAGMA cache_size=1')\n"
        "ledger.connection.rollback()\n"
        "with ledger.transaction() as tx:\n"
        "    for start in range(100, 1100, 100):\n"
        "        moves.admit(tx, [arrival(number) for number in range(start, start + 100)], now=NOW)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=False, cwd=Path.cwd())
    assert (tmp_path / "ledger.db-journal").stat().st_size > 0

    with Ledger.open(url_of(tmp_path), read_only=True) as reader:
        assert queries.counts(reader)[State.PENDING] == 1
    with open_ledger(tmp_path) as ledger:
        assert_ledger_holds(ledger)


@pytest.mark.parametrize("bytes_", [b"not a database at all", b"SQLite format 2\0" * 300])
def test_file_that_is_no_ledger_is_not_touched(tmp_path: Path, bytes_: bytes):
    file = tmp_path / "ledger.db"
    file.write_bytes(bytes_)
    with pytest.raises(LedgerError, match="is no ledger"):
        open_ledger(tmp_path)
    assert file.read_bytes() == bytes_


def test_ledger_cut_short_is_refused_with_the_way_out(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        admit(ledger, *(arrival(number) for number in range(200)))
    file = tmp_path / "ledger.db"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(LedgerError, match=r"is damaged .*keep a copy"):
        open_ledger(tmp_path)


def test_flipped_pages_are_found_at_the_start(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        admit(ledger, *(arrival(number) for number in range(200)))
    file = tmp_path / "ledger.db"
    whole = file.read_bytes()
    missed = []
    for page in range(1, len(whole) // 4096, 4):
        file.write_bytes(
            whole[: page * 4096] + bytes(byte ^ 0x5A for byte in whole[page * 4096 :][:64]) + whole[page * 4096 + 64 :]
        )
        try:
            open_ledger(tmp_path).close()
        except LedgerError:
            continue
        missed.append(page)
    assert missed == []


def test_large_ledger_is_looked_at_from_both_ends_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite_file, "_CHECKED_WHOLE_BYTES", 0)
    with open_ledger(tmp_path) as ledger:
        admit(ledger, *(arrival(number) for number in range(50)))
    open_ledger(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "ledger.db")
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'file'").fetchone()
    connection.close()
    with (tmp_path / "ledger.db").open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(bytes(64))
    with pytest.raises(LedgerError, match="is damaged"):
        open_ledger(tmp_path)


@pytest.mark.parametrize("bad", ["ledger.db", "sqlite://", "sqlite:///:memory:"])
def test_url_that_is_no_ledger_is_refused_before_anything_else(bad: str):
    with pytest.raises(LedgerError, match="write it like sqlite:"):
        Ledger.open(bad)


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:50 / /mnt/share\\040one rw - cifs //nas/share rw
31 30 0:51 / /mnt/share\\040one/local rw - ext4 /dev/vdb rw
32 22 0:52 / /srv/archive rw - nfs4 nas:/archive rw
"""
NFS = Mount(mount_point="/", kind="nfs4", source="nas:/archive")


@pytest.mark.parametrize(
    "path, kind",
    [
        ("/var/lib/ingestd/ledger.db", "ext4"),
        ("/mnt/share one/ledger.db", "cifs"),
        ("/mnt/share one/local/ledger.db", "ext4"),
        ("/srv/archive/x/ledger.db", "nfs4"),
        ("/srv/archives/ledger.db", "ext4"),
    ],
)
def test_kind_of_file_system_is_that_of_the_nearest_mount(path: str, kind: str, tmp_path: Path):
    (table := tmp_path / "mountinfo").write_text(MOUNTS)

    assert mount_of(path, mountinfo=str(table)).kind == kind


def test_ledger_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite_file, "mount_of", lambda _path: NFS)
    with pytest.raises(LedgerError, match=r"network file system \(nfs4\)"):
        open_ledger(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_said(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="cannot be created"):
        open_ledger(tmp_path / "file" / "folder")


def test_full_disk_changes_nothing_and_passes(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        pages = ledger.connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        ledger.connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}")
        ledger.connection.rollback()
        with pytest.raises(LedgerError, match="no room is left"):
            admit(ledger, *(arrival(number) for number in range(200)))
        ledger.connection.exec_driver_sql("PRAGMA max_page_count=1000000")
        ledger.connection.rollback()
        assert queries.counts(ledger)[State.PENDING] == 0
        admit(ledger, arrival(1))
        assert_ledger_holds(ledger)


def test_ledger_belongs_to_the_thread_that_opened_it(tmp_path: Path):
    problems: list[BaseException] = []

    def ask() -> None:
        try:
            queries.counts(ledger)
        except Exception as error:  # noqa: BLE001 - it is what the test is about
            problems.append(error)

    with open_ledger(tmp_path) as ledger:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert len(problems) == 1
