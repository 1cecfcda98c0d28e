"""``ingestd ledger move``: who may, when, and that the commands say of the new ledger what they said of the former."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from pathlib import Path

import pytest

from ingestd.cli.common import ExitCode
from ingestd.emulator import Emulator
from ingestd.ledger import Ledger, queries
from ingestd.lifecycle import Reason, State
from tests.builders import write_instance
from tests.commanding import CONFIG, Command, Rows, command_in
from tests.ledgers import read_whole, sqlite_only
from tests.ports import own_port
from tests.recounting import problems_of_ledger
from tests.running import Site, wait_until

pytest.importorskip("psycopg")
pytestmark = sqlite_only


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    rows = Rows(tmp_path)
    proven = rows.send("proven", State.STORED, Reason.STORED_ANSWER)
    rows.prove(proven, State.CONFIRMED, Reason.FEED)
    rows.send("failed", State.FAILED, Reason.REFUSED, failure_reason=0xA900)
    rows.refuse("sub/DOE^JOHN.dcm")
    rows.admit("ümlaut", patient="MÜLLER")
    rows.report(files_seen=3)
    rows.close()
    return rows


@pytest.fixture
def command(rows: Rows, capfd: pytest.CaptureFixture[str]) -> Command:
    return command_in(rows.folder, capfd)


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder}/ledger.db"


def configure(folder: Path, url: str) -> None:
    (folder / "config.yaml").write_text(CONFIG.replace("sqlite:///ledger.db", url))


def test_ledger_that_nobody_shares_is_told_of_no_configuration_that_would_move_with_it(command: Command) -> None:
    said = command("config", "adopt")
    assert said.code == ExitCode.CONFIGURATION
    assert "nobody shares an SQLite ledger" in said.err


def test_commands_say_the_same_of_a_ledger_that_was_moved(tmp_path: Path, command: Command, database: str) -> None:
    asked = (
        ("status", "--files", "--json"),
        ("status", "--patient-id", "MÜLLER", "--json"),
        ("explain", "sub/DOE^JOHN.dcm"),
        ("explain", "failed"),
    )
    before = [command(*words) for words in asked]
    assert len(before[1].json["studies"]) == 1

    said = command("ledger", "move", url_of(tmp_path), database)

    assert said.code == ExitCode.DONE, said
    assert f"put `ledger: {database}` into the configuration" in said.out
    assert "of 4 files" in said.out
    after = command("status")
    assert after.code == ExitCode.CONFIGURATION
    assert "name that one in the configuration" in after.err
    configure(tmp_path, database)
    for words, former in zip(asked, before, strict=True):
        now = command(*words)
        assert (now.code, now.err) == (former.code, former.err)
        if "--json" not in words:
            assert now.out == former.out
            continue
        # What is of the moment, and where the ledger is.
        assert without_moment(now.json) == without_moment(former.json)
    with read_whole(database) as whole:
        assert problems_of_ledger(whole) == []


# Where the ledger is, and who else may work on it there.
OF_WHERE = {"ledger", "workers"}


def without_moment(said: object) -> object:
    if isinstance(said, dict):
        return {
            key: without_moment(value) for key, value in said.items() if "seconds" not in key and key not in OF_WHERE
        }
    return [without_moment(each) for each in said] if isinstance(said, list) else said


def test_how_much_was_moved_is_told_as_json(tmp_path: Path, command: Command, database: str) -> None:
    configure(tmp_path, database)

    said = command("ledger", "move", "--json", url_of(tmp_path), database)

    assert said.code == ExitCode.DONE, said
    assert said.json["rows"]["file"] == 4
    assert said.json["ledger"] == database


@pytest.mark.parametrize("spool", ["spool", "spool/send", "elsewhere"])
def test_nothing_is_moved_while_an_ingestd_runs(tmp_path: Path, command: Command, database: str, spool: str) -> None:
    """It may be one of another configuration with the same ledger."""
    if spool == "elsewhere":
        elsewhere = tmp_path / "elsewhere"
        Rows(elsewhere, CONFIG.replace("sqlite:///ledger.db", url_of(tmp_path))).close()
        spool = "elsewhere/spool"
    (tmp_path / spool).mkdir(exist_ok=True)
    with (tmp_path / spool / "lock").open("w") as lock:
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = command("ledger", "move", url_of(tmp_path), database)

    assert said.code == ExitCode.BUSY
    assert f"process {os.getpid()}" in said.err
    assert command("status").code != ExitCode.CONFIGURATION
    assert command("ledger", "move", url_of(tmp_path), database).code == ExitCode.DONE


@pytest.mark.parametrize("target", ["postgresql://127.0.0.1:1/nowhere", "sqlite:///other.db"])
def test_ledger_stays_where_there_is_nowhere_to_move_it(tmp_path: Path, command: Command, target: str) -> None:
    before = (tmp_path / "ledger.db").read_bytes()

    said = command("ledger", "move", url_of(tmp_path), target)

    assert said.code in (ExitCode.TIMEOUT, ExitCode.CONFIGURATION)
    assert (tmp_path / "ledger.db").read_bytes() == before
    assert not (tmp_path / "spool" / "search.key").exists()


def test_another_ledger_than_the_configurations_is_left_alone(tmp_path: Path, command: Command, database: str) -> None:
    said = command("ledger", "move", f"sqlite:///{tmp_path}/other.db", database)

    assert said.code == ExitCode.CONFIGURATION
    assert "neither of the two" in said.err


def test_spool_that_is_away_is_waited_for(tmp_path: Path, command: Command, database: str) -> None:
    """Who runs is seen there, and the key would lie under its mount point."""
    (tmp_path / "spool").rename(tmp_path / "away")

    said = command("ledger", "move", url_of(tmp_path), database)

    assert said.code == ExitCode.CONFIGURATION
    assert "the spool is not at" in said.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another")
def test_somebody_elses_ledger_is_not_moved(tmp_path: Path, command: Command, database: str) -> None:
    """Nor by root: the key would be a file that the daemon cannot read."""
    for place in (tmp_path, *tmp_path.rglob("*")):
        os.chown(place, 65534, 65534)

    said = command("ledger", "move", url_of(tmp_path), database)

    assert said.code == ExitCode.NO_PERMISSION


def test_daemon_goes_on_where_it_stopped(tmp_path: Path, database: str) -> None:
    """One file confirmed before, one that waits while its server is away; with the former configuration none starts."""
    with Emulator(tmp_path / "server", port=own_port(), fsync=False) as server:
        site = Site(tmp_path / "site", server.url)
        write_instance(site.drop / "first")
        with site.start() as daemon:
            wait_until(lambda: site.states() == {"CONFIRMED": 1}, what="the first")
            server.stop()
            write_instance(site.drop / "second")
            wait_until(lambda: sum(site.states().values()) == 2, what="the second")
            daemon.kill()
        url = f"sqlite:///{site.ledger_file}"

        said = site.command("ledger", "move", url, database)
        assert said.returncode == ExitCode.DONE, said
        refused = site.run_once()
        server.start()
        site.configure(ledger=database)
        site.run_once()

    assert refused.returncode == ExitCode.CONFIGURATION
    assert "was moved to postgresql://" in refused.stderr
    with Ledger.open(database, read_only=True) as ledger:
        assert +Counter(queries.counts(ledger)) == {State.CONFIRMED: 2}
    with read_whole(database) as whole:
        assert problems_of_ledger(whole) == []
