"""A ledger is opened so that a commit is a commit, or refused in words that say what to do."""

from __future__ import annotations

import itertools
import os
import sqlite3
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError
from structlog.testing import capture_logs

from ingestd.fs.mounts import Mount, mount_of
from ingestd.ledger import (
    Ledger,
    LedgerBusy,
    LedgerError,
    LedgerMissing,
    OtherDestination,
    moves,
    queries,
    schema,
    sqlite_file,
)
from ingestd.ledger.migrations import MIGRATIONS
from ingestd.lifecycle import FILE_ENDS, FILE_MOVES, HOLDING, MOVES, BatchLimits, State
from tests.ledger_builders import (
    LATER,
    NOW,
    URL,
    admit,
    arrival,
    assert_ledger_holds,
    entry_in,
    identity,
    open_ledger,
    send,
)


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'ledger.db'}"


def test_new_ledger_is_the_owners_alone_and_in_a_folder_made_for_it(tmp_path: Path):
    with open_ledger(tmp_path / "new" / "folder") as ledger:
        assert ledger.file.stat().st_mode & 0o777 == 0o600


def test_missing_key_of_a_filled_ledger_is_told_and_never_made_anew_in_silence(tmp_path: Path):
    """Its reader heard that there is no ledger, and the daemon made another key without a word."""
    ledger = open_ledger(tmp_path)
    before = ledger.search_key.hash("patient", "PID")
    admit(ledger, arrival(1))
    ledger.close()
    (tmp_path / "ledger.db.key").unlink()

    with Ledger.open(url(tmp_path), read_only=True) as reader, pytest.raises(LedgerError, match="put it back") as told:
        reader.search_key.hash("patient", "PID")
    with capture_logs() as lines, open_ledger(tmp_path) as writer:
        after = writer.search_key.hash("patient", "PID")

    assert not isinstance(told.value, LedgerMissing)
    assert before != after
    assert [line["event"] for line in lines] == ["ledger.key_made_anew"]


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


def test_tables_are_as_the_statements_expect_them(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        for table in schema.metadata.sorted_tables:
            rows = ledger.connection.exec_driver_sql(f"PRAGMA table_info({table.name})").all()
            assert {row.name for row in rows} == {column.name for column in table.columns}, table.name
            keys = [row.name for row in sorted(rows, key=lambda row: row.pk) if row.pk]
            assert keys == [column.name for column in table.primary_key], table.name


def test_states_of_the_tables_are_those_of_the_lifecycle(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        made = dict(map(tuple, ledger.connection.exec_driver_sql("SELECT name, sql FROM sqlite_master")))

    def listed(table: str, words: str) -> set[str]:
        return {word.strip(" '") for word in made[table].split(words)[1].split(")")[0].split(",")}

    assert listed("delivery", "CHECK (state IN (") == set(State) - {State.REJECTED, State.UNROUTED}
    assert listed("delivery", "WHEN state IN (") == HOLDING
    assert listed("file", "CHECK (state IN (") == FILE_ENDS


def test_read_only_open_needs_a_ledger(tmp_path: Path):
    with pytest.raises(LedgerMissing, match="`ingestd run` makes it"):
        Ledger.open(url(tmp_path), read_only=True)
    with pytest.raises(LedgerMissing):
        Ledger.open(url(tmp_path), create=False)
    assert list(tmp_path.iterdir()) == []


def test_read_only_ledger_refuses_to_write(tmp_path: Path):
    with open_ledger(tmp_path):
        pass
    with Ledger.open(url(tmp_path), read_only=True) as reader, pytest.raises(LedgerError, match="for reading only"):
        reader.transaction().__enter__()


def test_reader_sees_what_is_committed_beside_an_open_transaction(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        admit(ledger, arrival(1))
        with Ledger.open(url(tmp_path), read_only=True) as reader, ledger.transaction() as tx:
            moves.admit(tx, [arrival(2)], now=NOW)
            assert queries.counts(reader)[State.PENDING] == 1
        with Ledger.open(url(tmp_path), read_only=True) as reader:
            assert queries.counts(reader)[State.PENDING] == 2


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
        "import os, pwd\n"
        "from ingestd.ledger import Ledger, LedgerPermission, queries\n"
        "os.setgid(65534); os.setuid(65534)\n"
        f"with Ledger.open({url(tmp_path)!r}, read_only=True) as ledger:\n"
        "    print(queries.counts(ledger)['PENDING'])\n"
        "try:\n"
        f"    Ledger.open({url(tmp_path)!r})\n"
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
        "import os, pwd\n"
        "from ingestd.ledger import Ledger, LedgerPermission, queries\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        f"    Ledger.open({url(tmp_path)!r}, read_only=True)\n"
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

    with Ledger.open(url(tmp_path), read_only=True) as reader:
        assert queries.counts(reader)[State.PENDING] == 1
    with open_ledger(tmp_path) as ledger:
        assert_ledger_holds(ledger)


def test_other_destination_is_refused_with_the_way_out(tmp_path: Path):
    with open_ledger(tmp_path):
        pass
    with pytest.raises(OtherDestination, match="destination move NAME URL`; another server needs a name of its own"):
        open_ledger(tmp_path, destination="http://other.example/v2")
    with pytest.raises(OtherDestination):
        Ledger.open(url(tmp_path), destinations={"default": "http://other.example/v2"}, read_only=True)
    with Ledger.open(url(tmp_path), destinations={"default": URL + "/"}, read_only=True) as reader:
        destination = queries.destination(reader)
        assert destination is not None
        assert destination.url == URL


def set_schema(folder: Path, value: int) -> None:
    connection = sqlite3.connect(folder / "ledger.db")
    with connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(value),))
    connection.close()


def test_whoever_takes_files_in_says_where_they_go_unless_the_ledger_knows(tmp_path: Path):
    """The first admission failed, with a foreign key."""
    with pytest.raises(LedgerError, match="knows no destination"):
        Ledger.open(url(tmp_path), host="host-a", spool=tmp_path)
    with open_ledger(tmp_path):
        pass

    with Ledger.open(url(tmp_path), host="host-a", spool=tmp_path) as ledger:
        admit(ledger, arrival(1))
        assert queries.counts(ledger)[State.PENDING] == 1


@pytest.mark.parametrize("read_only", [False, True])
def test_ledger_of_a_newer_version_is_left_alone(tmp_path: Path, *, read_only: bool):
    with open_ledger(tmp_path):
        pass
    set_schema(tmp_path, len(MIGRATIONS) + 1)
    with pytest.raises(LedgerError, match="was written by a newer ingestd"):
        Ledger.open(url(tmp_path), read_only=read_only)


def test_reader_does_not_migrate(tmp_path: Path):
    with open_ledger(tmp_path):
        pass
    set_schema(tmp_path, len(MIGRATIONS) - 1)
    with pytest.raises(LedgerError, match="start `ingestd run` once"):
        Ledger.open(url(tmp_path), read_only=True)


def test_migration_that_fails_leaves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with open_ledger(tmp_path):
        pass
    broken = (*MIGRATIONS, ("CREATE TABLE extra (id {int} NOT NULL) {strict}", "CREATE NONSENSE"))
    with monkeypatch.context() as patched:
        patched.setattr("ingestd.ledger.ledger.MIGRATIONS", broken)
        patched.setattr("ingestd.ledger.upgrade.MIGRATIONS", broken)
        with pytest.raises(LedgerError):
            open_ledger(tmp_path)
    with open_ledger(tmp_path) as ledger:
        tables = ledger.connection.exec_driver_sql("SELECT name FROM sqlite_master").scalars().all()
        assert "extra" not in tables


def test_next_version_migrates_a_filled_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with open_ledger(tmp_path) as ledger:
        entry_in(ledger, State.CONFIRMED)
    following = (*MIGRATIONS, ("CREATE TABLE extra (id {int} NOT NULL) {strict}",))
    monkeypatch.setattr("ingestd.ledger.ledger.MIGRATIONS", following)
    monkeypatch.setattr("ingestd.ledger.upgrade.MIGRATIONS", following)
    for _ in range(2):
        with open_ledger(tmp_path) as ledger:
            assert queries.counts(ledger)[State.CONFIRMED] == 1
            assert ledger._schema() == len(MIGRATIONS) + 1


@pytest.mark.parametrize("bytes_", [b"not a database at all", b"SQLite format 2\0" * 300])
def test_file_that_is_no_ledger_is_not_touched(tmp_path: Path, bytes_: bytes):
    file = tmp_path / "ledger.db"
    file.write_bytes(bytes_)
    with pytest.raises(LedgerError, match="is no ledger"):
        open_ledger(tmp_path)
    assert file.read_bytes() == bytes_


def test_database_of_another_program_is_not_touched(tmp_path: Path):
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("CREATE TABLE meta (x)")
    connection.close()
    before = (tmp_path / "ledger.db").read_bytes()
    for read_only in (True, False):
        with pytest.raises(LedgerError, match="database of another program"):
            Ledger.open(url(tmp_path), read_only=read_only)
    assert (tmp_path / "ledger.db").read_bytes() == before


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


@pytest.mark.parametrize("bad", ["ledger.db", "sqlite://", "sqlite:///:memory:", "postgresql://host/db"])
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


def test_writer_that_is_kept_out_for_too_long_is_told_to_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite_file, "_BUSY_MS", 50)
    with open_ledger(tmp_path) as ledger, open_ledger(tmp_path, host="host-b") as other:
        with ledger.transaction() as tx:
            moves.admit(tx, [arrival(1)], now=NOW)
            with pytest.raises(LedgerBusy, match="try again"):
                admit(other, arrival(2))
        admit(other, arrival(2))


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


def test_database_itself_refuses_moves_that_the_table_lacks(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        entry_in(ledger, State.CONFIRMED)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    for table, moves_of in (("delivery", MOVES), ("file", FILE_MOVES)):
        made = "SELECT sql FROM sqlite_master WHERE name = ?"
        (sql,) = connection.execute(made, (f"{table}_moves",)).fetchone()
        for before, after in itertools.product(State, State):
            when = sql.split(" WHEN ")[1].split(" BEGIN ")[0]
            when = when.replace("OLD.state", f"'{before}'").replace("NEW.state", f"'{after}'")
            (refused,) = connection.execute(f"SELECT {when}").fetchone()
            assert bool(refused) is not (before is after or (before, after) in moves_of), (table, before, after)
    with pytest.raises(sqlite3.IntegrityError, match="no such move"):
        connection.execute("UPDATE delivery SET state = 'SENDING'")
    for statement in ("DELETE FROM history", "UPDATE history SET note = 'x'", "DELETE FROM attempt"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    for table in ("delivery", "file"):
        with pytest.raises(sqlite3.IntegrityError, match="no row is deleted"):
            connection.execute(f"DELETE FROM {table}")
    connection.close()


def test_guards_follow_the_table_of_moves(tmp_path: Path):
    with open_ledger(tmp_path):
        pass
    connection = sqlite3.connect(tmp_path / "ledger.db")
    before = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'delivery_moves'").fetchone()
    connection.execute("DROP TRIGGER delivery_moves")
    connection.execute("CREATE TRIGGER delivery_moves BEFORE UPDATE ON delivery BEGIN SELECT 1; END")
    connection.close()
    with open_ledger(tmp_path):
        pass
    connection = sqlite3.connect(tmp_path / "ledger.db")
    assert connection.execute("SELECT sql FROM sqlite_master WHERE name = 'delivery_moves'").fetchone() == before
    connection.close()


def test_errors_show_no_values(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        entry_in(ledger, State.PENDING)
        with ledger.begin(), pytest.raises(IntegrityError) as error:
            ledger.connection.execute(
                schema.file.update().values(state="NONSENSE", note="Mueller^Hans", sop_uid=identity(1).sop_uid)
            )
    assert "Mueller" not in str(error.value)
    assert identity(1).sop_uid not in str(error.value)


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


def test_waiting_rows_do_not_slow_a_start_that_has_the_same_limits(tmp_path: Path):
    limits = BatchLimits(quiet_period=timedelta(seconds=7))
    with open_ledger(tmp_path, limits=limits) as ledger:
        admit(ledger, *(arrival(number, study=number) for number in range(20)))
    with open_ledger(tmp_path, limits=limits) as ledger:
        statements: list[str] = []
        ledger.connection.connection.dbapi_connection.set_trace_callback(statements.append)
        with ledger.transaction() as tx:
            moves.recover(tx, now=LATER)
        assert not [each for each in statements if "FROM delivery" in each and "claim_token IS NOT NULL" not in each]
        send(ledger, 3)
        assert_ledger_holds(ledger)


def test_empty_mount_point_in_place_of_the_spool_is_refused_while_files_wait(tmp_path: Path):
    """Its disk was not mounted: a new spool was made on the bare folder, and the real one's files were stranded."""
    spool = tmp_path / "spool"
    with Ledger.open(url(tmp_path), host="real", destinations={"default": URL}, spool=spool) as ledger:
        admit(ledger, arrival(1))

    with pytest.raises(LedgerError, match=r"wait \(1\).* mount it"):
        Ledger.open(url(tmp_path), host="other", destinations={"default": URL}, spool=spool)

    with Ledger.open(
        url(tmp_path), host="other", destinations={"default": URL}, spool=tmp_path / "elsewhere"
    ) as ledger:
        assert queries.status(ledger).oldest_unconfirmed_at is not None
    with Ledger.open(url(tmp_path), host="real", destinations={"default": URL}, spool=spool) as ledger:
        assert queries.counts(ledger)[State.PENDING] == 1
