"""A disk that fails under the ledger for a moment: in words that lead nobody to throw a good ledger away."""

from __future__ import annotations

import errno
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from ingestd.ledger.errors import LedgerUnread, failure, not_whole
from tests.builders import write_instance
from tests.ledgers import sqlite_only
from tests.running import Site, wait_until
from tests.torture.failing import Fault, Injector

MISLEADING = ("damaged", ".recover", "no permission", "become", "a fault in ingestd", "Traceback")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An installation with a file confirmed."""
    folder = tmp_path_factory.mktemp("site")
    with Emulator(fsync=False) as server:
        site = Site(folder / "site", server.url)
        write_instance(site.drop / "a")
        assert site.run_once().returncode == 0
        yield site


@pytest.mark.slow
@pytest.mark.parametrize(
    "call, error",
    [
        ("stat", errno.EIO),
        ("fstat", errno.EIO),
        ("read", errno.EIO),
        ("pread", errno.EIO),
        ("open", errno.EIO),
        ("open", errno.EMFILE),
        ("fcntl", errno.EIO),
    ],
    ids=lambda each: errno.errorcode[each] if isinstance(each, int) else each,
)
def test_disk_that_fails_for_a_moment_is_called_neither_damage_nor_a_lack_of_rights(
    site: Site, library: Path, tmp_path: Path, call: str, error: int
):
    met = 0
    for nth, words in [(1, ("status",)), (2, ("status",)), (3, ("status",)), (5, ("run", "--once", "--timeout", "5s"))]:
        fault = Fault(call=call, error=error, place="ledger.db", nth=nth, times=2)
        injector = Injector(library, tmp_path / f"{nth}", fault, str(site.ledger_file))
        ended = site.command(*words, env=injector.environment)
        said = ended.stdout + ended.stderr
        met += injector.failed

        assert [word for word in MISLEADING if word in said] == [], f"{nth}: {said}"
        assert ended.returncode not in {70, 77}, said

    assert met > 0
    assert site.command("status").returncode == 0


@sqlite_only
@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
def test_daemon_waits_for_a_ledger_whose_disk_fails_at_the_start(
    site: Site, library: Path, tmp_path: Path, error: int
) -> None:
    """A running one waits a minute for it; at the start it ended at once, as if the configuration were wrong."""
    fault = Fault(call="stat", error=error, place="ledger.db", nth=1, times=0, seconds=3)
    injector = Injector(library, tmp_path / "rule", fault, str(site.ledger_file))
    earlier = said_so_far(site)
    with site.start(env=injector.environment) as daemon:
        said = said_so_far(site).removeprefix(earlier)
        assert daemon.terminate() == 0
    assert injector.failed > 0
    (failed,) = (json.loads(line) for line in said.splitlines() if '"ledger.failed"' in line)
    assert "no damage" in failed["note"]
    assert "look at the disk" in failed["note"]


@sqlite_only
def test_daemon_that_waits_for_its_ledger_ends_when_it_is_told_to(site: Site, library: Path, tmp_path: Path) -> None:
    fault = Fault(call="stat", error=errno.EIO, place="ledger.db", nth=1, times=0, seconds=300)
    injector = Injector(library, tmp_path / "rule", fault, str(site.ledger_file))
    earlier = said_so_far(site)
    with site.start(wait=False, env=injector.environment) as daemon:
        wait_until(lambda: '"ledger.failed"' in said_so_far(site).removeprefix(earlier), what="word of the ledger")
        assert daemon.terminate() == 0


def said_so_far(site: Site) -> str:
    """What the daemons of this site have logged."""
    log = site.folder / "daemon.log"
    return log.read_text() if log.exists() else ""


def test_page_that_could_not_be_read_is_no_damage_and_a_wrong_page_is():
    file = Path("/var/lib/ingestd/ledger.db")

    assert "that is no damage" in str(not_whole(file, ["Tree 5 page 7: btreeInitPage() returns error code 266"]))
    assert "that is no damage" in str(not_whole(file, ["Tree 5 page 7: unable to get the page. error code=10"]))
    assert "is damaged" in str(not_whole(file, ["Tree 5 page 7: btreeInitPage() returns error code 11"]))
    assert "is damaged" in str(not_whole(file, ["row 3 missing from index instance_by_path"]))


@pytest.mark.parametrize("name", ["SQLITE_CORRUPT", "SQLITE_CANTOPEN", "SQLITE_READONLY"])
def test_ledger_that_is_looked_at_stays_locked(tmp_path: Path, name: str) -> None:
    """A descriptor of its file was closed, and with that SQLite's locks were gone: two could write at once."""
    file = tmp_path / "ledger.db"
    error = sqlite3.DatabaseError()
    error.sqlite_errorname = name
    other = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
    with closing(sqlite3.connect(file, isolation_level=None)) as ledger:
        ledger.execute("CREATE TABLE one (x)")
        ledger.execute("BEGIN IMMEDIATE")

        assert isinstance(failure(error, file), LedgerUnread)

        tried = subprocess.run([sys.executable, "-c", other, str(file)], capture_output=True, text=True, check=False)
    assert "database is locked" in tried.stderr
