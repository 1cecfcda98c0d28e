"""Whatever happens while a ledger of 0.1 is brought up to date, it is the old one or the new one, and whole."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ingestd.fs.mounts import free_space
from ingestd.ledger import Ledger, LedgerError, LedgerFull, LedgerOlder, OtherDestination, upgrade
from ingestd.ledger.migrations import MIGRATIONS
from tests.former_ledgers import SCHEMA, make_former_ledger, many_rows

URL = "http://pacs.example/v2"
FILES = 43

# Brings a ledger up to date and kills itself at its N-th statement, or at this one; a small cache has pages written
# before the end.
KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path
from ingestd.ledger import upgrade

class Small(sqlite3.Connection):
    def execute(self, sql, *values):
        return super().execute("PRAGMA cache_size=10" if sql.startswith("PRAGMA cache_size=") else sql, *values)

file, last = Path(sys.argv[1]), sys.argv[2]
left = int(last) if last.isdigit() else 0
driver = sqlite3.connect(file, isolation_level=None, factory=Small)

def at_statement(sql):
    global left
    left -= 1
    if left == 0 or sql == last:
        os.kill(os.getpid(), signal.SIGKILL)

driver.set_trace_callback(at_statement)
upgrade.bring_up_to_date(driver, file)
print("done")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return make_former_ledger(tmp_path / "ledger.db")


def url_of(file: Path) -> str:
    return f"sqlite:///{file}"


def run(program: str, *words: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def files_of(file: Path) -> tuple[int, int]:
    """The schema and the number of files of a ledger that is whole."""
    with closing(sqlite3.connect(file)) as ledger:
        assert ledger.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert ledger.execute("PRAGMA foreign_key_check").fetchall() == []
        schema = int(ledger.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()[0])
        (count,) = ledger.execute(f"SELECT count(*) FROM {'instance' if schema == SCHEMA else 'file'}").fetchone()
    return schema, count


@pytest.mark.parametrize(
    "statement, schema",
    [
        *((number, SCHEMA) for number in (3, 9, 30, 60, 90, 120)),
        ("COMMIT", SCHEMA),
        ("PRAGMA foreign_keys=ON", len(MIGRATIONS)),
    ],
)
def test_kill_leaves_the_old_ledger_or_the_new_one(file: Path, statement: int | str, schema: int):
    many_rows(file, 2000)

    child = run(KILLED, file, statement)

    assert child.returncode == -signal.SIGKILL, child.stderr
    assert files_of(file) == (schema, FILES + 2000)
    assert run(KILLED, file, 0).stdout.endswith("done\n")
    assert files_of(file) == (len(MIGRATIONS), FILES + 2000)
    assert files_of(upgrade.copy_of(file, SCHEMA)) == (SCHEMA, FILES + 2000)


def test_pages_are_written_before_the_end_where_it_is_killed(file: Path):
    """Else the kills above would find nothing to undo."""
    many_rows(file, 2000)
    run(KILLED, file, 120)
    assert file.with_name("ledger.db-journal").stat().st_size > 0


def test_disk_that_fills_up_leaves_the_old_ledger(file: Path):
    many_rows(file, 20000)
    size = file.stat().st_size

    def at_most() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 5 // 4, size * 5 // 4))

    child = run(KILLED, file, 0, preexec_fn=at_most)

    assert child.returncode == 1
    assert files_of(file) == (SCHEMA, FILES + 20000)
    assert files_of(upgrade.copy_of(file, SCHEMA)) == (SCHEMA, FILES + 20000)


def test_copy_that_does_not_fit_leaves_the_former_one(file: Path):
    many_rows(file, 2000)
    place = upgrade.copy_of(file, SCHEMA)
    place.write_bytes(b"the copy of before")
    size = file.stat().st_size

    child = run(KILLED, file, 0, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)))

    assert child.returncode == 1
    assert place.read_bytes() == b"the copy of before"
    assert sorted(each.name for each in file.parent.iterdir()) == ["ledger.db", "ledger.db.schema-9"]
    assert files_of(file) == (SCHEMA, FILES + 2000)


def test_too_little_room_is_said_before_anything_is_touched(file: Path):
    os.truncate(file, free_space(file.parent).free_bytes // 2)  # a hole: nothing of it is on the disk
    with pytest.raises(LedgerFull, match=r"takes \d+ MB beside it for a while, where \d+ MB are free"):
        Ledger.open(url_of(file), host="host-a", destinations={"default": URL}, spool=file.parent)
    with pytest.raises(LedgerFull, match="are free"):
        Ledger.rehearse(url_of(file), host="host-a", destinations={"default": URL}, spool=file.parent)
    assert [each.name for each in file.parent.iterdir()] == ["ledger.db"]


def test_what_it_takes_is_no_more_than_is_asked_for(file: Path):
    """Measured with 1,000,000 files; here, that the rule holds for a ledger of another make."""
    many_rows(file, 20000)
    before = file.stat().st_size
    with closing(sqlite3.connect(file, isolation_level=None)) as driver:
        upgrade.bring_up_to_date(driver, file)
    grown = file.stat().st_size - before
    assert grown + 2 * before <= upgrade.Needs(ledger_bytes=before).room_bytes


def test_copy_is_for_nobody_else_to_read(file: Path):
    before = os.umask(0)
    try:
        Ledger.open(
            url_of(file), host="host-a", destinations={"default": URL}, spool=Path("/srv/ingestd/spool-host-a")
        ).close()
    finally:
        os.umask(before)
    place = upgrade.copy_of(file, SCHEMA)
    assert place.stat().st_mode & 0o777 == 0o600
    assert files_of(place) == (SCHEMA, FILES)
    assert files_of(file) == (len(MIGRATIONS), FILES)


def test_a_daemon_opens_it_and_it_is_told_how_that_goes_on(file: Path):
    told: list[str] = []
    spool = Path("/srv/ingestd/spool-host-a")
    with Ledger.open(
        url_of(file), host="host-a", destinations={"default": URL}, spool=spool, tell=told.append
    ) as ledger:
        pragmas = [
            ledger.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("foreign_keys", "temp_store", "cache_size", "synchronous")
        ]
    assert pragmas == [1, 2, -8000, 3]
    assert told[0] == "bringing the ledger up to date: keeping a copy of it"


def test_reader_leaves_it_alone_and_rehearsal_says_what_a_start_would_do(file: Path):
    before = file.read_bytes()
    with pytest.raises(LedgerOlder, match="start `ingestd run` once"):
        Ledger.open(url_of(file), read_only=True)
    with pytest.raises(LedgerOlder, match=r"in about \d+ s, keeps a copy as ledger\.db\.schema-9"):
        Ledger.rehearse(url_of(file), host="host-a", destinations={"default": URL}, spool=file.parent)
    with pytest.raises(OtherDestination):
        Ledger.rehearse(
            url_of(file), host="host-a", destinations={"default": "http://other.example/v2"}, spool=file.parent
        )
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == ["ledger.db"]


def test_two_that_open_it_at_once_bring_it_up_to_date_once(file: Path):
    many_rows(file, 5000)
    children = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(file), "0"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert "".join(said).count("ledger.migrated") == 1
    assert files_of(file) == (len(MIGRATIONS), FILES + 5000)


def test_row_that_belongs_to_nothing_is_refused_and_the_ledger_left_as_it_was(file: Path):
    with closing(sqlite3.connect(file)) as ledger, ledger:
        ledger.execute("UPDATE instance SET digest = NULL WHERE state = 'FAILED'")
    with pytest.raises(LedgerError):
        Ledger.open(url_of(file), host="host-a", destinations={"default": URL}, spool=file.parent)
    assert files_of(file) == (SCHEMA, FILES)
