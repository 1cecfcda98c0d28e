"""check --for-start: whatever keeps `run` from starting is told before, by the code that `run` itself uses."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from ingestd.cli.common import ExitCode
from ingestd.fs.mounts import Mount
from ingestd.ledger import sqlite_file
from ingestd.ledger.migrations import MIGRATIONS
from tests.commanding import CONFIG, Rows, command_in
from tests.ledgers import by_lock_only, kept_out, key_of, placed, raw, remove_ledger, sqlite_only, url_of, wait_little

REFUSALS = {ExitCode.CONFIGURATION, ExitCode.INTERNAL, ExitCode.BUSY, ExitCode.NO_PERMISSION}


@pytest.fixture
def filled(tmp_path, capfd):
    rows = Rows(tmp_path)
    rows.admit("a")
    rows.close()
    return command_in(tmp_path, capfd)


@pytest.fixture
def later():
    with ExitStack() as stack:
        yield stack


def _replace(path: Path, by: Callable[[Path], object]) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    by(path)


def _sql(folder: Path, *statements: str) -> None:
    with raw(url_of(folder)) as connection:
        for statement in statements:
            connection.execute(statement)


def _hold(folder: Path, later: ExitStack, *statements: str) -> None:
    connection = later.enter_context(closing(sqlite3.connect(folder / "ledger.db", isolation_level=None)))
    for statement in statements:
        connection.execute(statement).fetchall()


def _lock(folder: Path, later: ExitStack) -> None:
    opened = later.enter_context((folder / "spool" / "lock").open("a+b"))
    opened.write(b"4711\n")
    opened.flush()
    fcntl.flock(opened, fcntl.LOCK_EX)


def _configure(folder: Path, old: str, new: str) -> None:
    text = CONFIG.replace(old, new)
    assert text != CONFIG
    (folder / "config.yaml").write_text(placed(text, folder))


def _key(folder: Path) -> Path:
    return key_of(folder, "spool")


def _remove_all(folder: Path) -> None:
    _key(folder).unlink()
    shutil.rmtree(folder / "spool")
    remove_ledger(folder)


def _room_without_id(folder: Path) -> None:
    (folder / "spool" / "spool.id").unlink()


def _another_spool(folder: Path) -> None:
    (folder / "spool").rename(folder / "unmounted")


def _ledger_in_a_file(folder: Path) -> None:
    (folder / "file").touch()
    _configure(folder, "sqlite:///ledger.db", "sqlite:///file/ledger.db")


def _ledger_damaged(folder: Path) -> None:
    with (folder / "ledger.db").open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * 8192)


# What is the matter: how to bring it about, and with what `run` ends (None: it starts).
REASONS: dict[str, tuple[Callable[[Path, ExitStack], object], ExitCode | None]] = {
    "nothing": (lambda _at, _later: None, None),
    "spool is a file": (lambda at, _: _replace(at / "spool", Path.touch), ExitCode.CONFIGURATION),
    "spool is a link to nowhere": (
        lambda at, _: _replace(at / "spool", lambda path: path.symlink_to("nowhere")),
        ExitCode.CONFIGURATION,
    ),
    "spool has a file for a room": (lambda at, _: _replace(at / "spool/files", Path.touch), ExitCode.CONFIGURATION),
    "spool has a link to nowhere for a room": (
        lambda at, _: _replace(at / "spool/scratch", lambda path: path.symlink_to("nowhere")),
        ExitCode.CONFIGURATION,
    ),
    "spool lost a room": (lambda at, _: shutil.rmtree(at / "spool/explicit"), None),
    "spool without its id": (lambda at, _: _room_without_id(at), ExitCode.CONFIGURATION),
    "spool with a broken id": (lambda at, _: (at / "spool/spool.id").write_text("x"), ExitCode.CONFIGURATION),
    "spool id is a folder": (lambda at, _: _replace(at / "spool/spool.id", Path.mkdir), ExitCode.CONFIGURATION),
    "lock is a folder": (lambda at, _: _replace(at / "spool/lock", Path.mkdir), ExitCode.CONFIGURATION),
    "lock is a link": (
        lambda at, _: _replace(at / "spool/lock", lambda path: path.symlink_to("elsewhere")),
        ExitCode.CONFIGURATION,
    ),
    "lock is not there": (lambda at, _: (at / "spool/lock").unlink(missing_ok=True), None),
    "spool is in use": (_lock, ExitCode.BUSY),
    "spool is another than the one with our files": (lambda at, _: _another_spool(at), ExitCode.CONFIGURATION),
    "inbox is a file": (lambda at, _: _replace(at / "drop", Path.touch), ExitCode.CONFIGURATION),
    "inbox is not there": (lambda at, _: (at / "drop").rmdir(), None),
    "inbox is inside the spool": (
        lambda at, _: _replace(at / "drop", lambda path: path.symlink_to("spool/files")),
        ExitCode.CONFIGURATION,
    ),
    "no folder is watched": (lambda at, _: _configure(at, "inboxes:\n  - path: ./drop\n", ""), ExitCode.CONFIGURATION),
    "two inboxes are one folder": (
        lambda at, _: (
            (at / "also").symlink_to("drop"),
            _configure(at, "  - path: ./drop", "  - path: ./drop\n  - path: ./also"),
        ),
        ExitCode.CONFIGURATION,
    ),
    "ledger of another server": (lambda at, _: _configure(at, ":9/v2", ":9/other/v2"), ExitCode.CONFIGURATION),
    "ledger is a folder": (lambda at, _: _replace(at / "ledger.db", Path.mkdir), ExitCode.CONFIGURATION),
    "ledger is a link to nowhere": (
        lambda at, _: _replace(at / "ledger.db", lambda path: path.symlink_to("nowhere/ledger.db")),
        ExitCode.CONFIGURATION,
    ),
    "ledger is a text": (lambda at, _: (at / "ledger.db").write_text("x" * 5000), ExitCode.CONFIGURATION),
    "ledger is empty": (lambda at, _: (at / "ledger.db").write_text(""), None),
    "ledger of another program": (
        lambda at, _: (remove_ledger(at), _sql(at, "CREATE TABLE song (x TEXT)")),
        ExitCode.CONFIGURATION,
    ),
    "ledger is damaged": (lambda at, _: _ledger_damaged(at), ExitCode.CONFIGURATION),
    "ledger lies where a file is": (lambda at, _: _ledger_in_a_file(at), ExitCode.CONFIGURATION),
    "ledger lies in a folder that can be made": (
        lambda at, _: _configure(at, "sqlite:///ledger.db", "sqlite:///new/folder/ledger.db"),
        None,
    ),
    "ledger is newer": (
        lambda at, _: _sql(at, f"UPDATE meta SET value = '{len(MIGRATIONS) + 1}' WHERE key = 'schema'"),
        ExitCode.CONFIGURATION,
    ),
    "ledger is in WAL mode": (lambda at, _: _sql(at, "PRAGMA journal_mode=WAL"), None),
    "ledger is held in WAL mode": (
        lambda at, later: _hold(at, later, "PRAGMA journal_mode=WAL", "SELECT * FROM meta"),
        ExitCode.BUSY,
    ),
    "ledger is being written": (lambda at, later: later.enter_context(kept_out(url_of(at))), ExitCode.BUSY),
    "key is missing": (lambda at, _: _key(at).unlink(), None),
    "key is cut short": (lambda at, _: _key(at).write_bytes(b"x"), ExitCode.CONFIGURATION),
    "key is a folder": (lambda at, _: _replace(_key(at), Path.mkdir), ExitCode.CONFIGURATION),
    "nothing is there yet": (lambda at, _: _remove_all(at), None),
}
OF_THE_LOCK = {"lock is a folder", "lock is a link", "spool is in use"}
OF_THE_FILE = {
    "ledger is a folder",
    "ledger is a link to nowhere",
    "ledger is a text",
    "ledger is empty",
    "ledger is damaged",
    "ledger lies where a file is",
    "ledger lies in a folder that can be made",
    "ledger is in WAL mode",
    "ledger is held in WAL mode",
}


@pytest.mark.parametrize(
    "reason",
    [
        pytest.param(each, marks=[sqlite_only] * (each in OF_THE_FILE) + [by_lock_only] * (each in OF_THE_LOCK))
        for each in REASONS
    ],
)
def test_check_for_start_and_run_agree_on_what_keeps_ingestd_from_starting(
    tmp_path, filled, later, monkeypatch, reason
):
    wait_little(monkeypatch)
    bring_about, wanted = REASONS[reason]
    bring_about(tmp_path, later)

    said = filled("check", "--for-start")
    ran = filled("run", "--once", "--timeout", "10ms")

    refused = ran.code if ran.code in REFUSALS else None
    assert refused == wanted, ran.err
    assert said.code == (wanted or ExitCode.DONE), said.out


@sqlite_only
def test_ledger_on_a_network_mount_keeps_it_from_starting(tmp_path, filled, monkeypatch):
    nfs = Mount(mount_point="/", kind="nfs4", source="nas:/archive")
    monkeypatch.setattr(sqlite_file, "mount_of", lambda _path: nfs)

    assert filled("check", "--for-start").code == ExitCode.CONFIGURATION
    assert filled("run", "--once", "--timeout", "10ms").code == ExitCode.CONFIGURATION


def test_looking_whether_it_can_start_changes_nothing(tmp_path, filled):
    def everything() -> dict[str, bytes | None]:
        return {
            str(path.relative_to(tmp_path)): path.read_bytes() if path.is_file() else None
            for path in tmp_path.rglob("*")
        }

    _key(tmp_path).unlink()
    (tmp_path / "spool" / "explicit").rmdir()
    for ledger in tmp_path.glob("ledger.db"):
        os.utime(ledger, ns=(1, 1))
    before = everything()

    filled("check", "--for-start")

    assert everything() == before


def test_missing_key_of_a_filled_ledger_is_an_alarm_with_the_way_back(tmp_path, filled):
    _key(tmp_path).unlink()

    checked = filled("check", "--for-start")
    filled("run", "--once", "--timeout", "10ms")
    told = filled("status", "--json").json

    assert "key of the search words" in checked.out
    assert "put it back from a backup" in checked.out
    [alarm] = [alarm for alarm in told["stopped_because"] if alarm["kind"] == "key_made_anew"]
    assert "put the key file back" in alarm["next_step"]


def _key_alarms(filled) -> list[str]:
    kinds = [alarm["kind"] for alarm in filled("status", "--json").json["stopped_because"]]
    return [kind for kind in kinds if kind == "key_made_anew"]


@pytest.mark.parametrize("content", [b"", b"x"], ids=["empty", "cut short"])
def test_key_that_is_not_whole_is_to_be_put_back_from_the_backup(tmp_path, filled, content):
    """It was advised to remove it, after which nobody is found by patient or accession."""
    _key(tmp_path).write_bytes(content)

    said = filled("run", "--once", "--timeout", "10ms")

    assert said.code == ExitCode.CONFIGURATION
    assert "put it back from the backup" in said.err
    assert "new one" not in said.err


@pytest.mark.parametrize("other", [None, bytes(range(32))], ids=["made anew", "put there by somebody"])
def test_alarm_of_another_key_stands_until_the_old_one_is_back(tmp_path, filled, other):
    """It lasted for the one run that made the key, and the next one said that all was well."""
    key = _key(tmp_path)
    former = key.read_bytes()
    assert len(former) == 32
    if other is None:
        key.unlink()
    else:
        key.write_bytes(other)

    for _ in range(2):
        filled("run", "--once", "--timeout", "10ms")
        assert _key_alarms(filled)
    key.write_bytes(former)
    filled("run", "--once", "--timeout", "10ms")

    assert not _key_alarms(filled)
    with raw(url_of(tmp_path)) as connection:
        kept = {name: str(value) for name, value in connection.execute("SELECT key, value FROM meta")}
    assert former.hex() not in " ".join(kept.values())


@pytest.mark.parametrize("is_old", [False, True], ids=["", "a ledger of before the mark"])
def test_alarm_of_another_key_stands_until_a_person_goes_on_with_it(tmp_path, filled, is_old):
    if is_old:
        _sql(tmp_path, "DELETE FROM meta WHERE key = 'search_key'")
    _key(tmp_path).unlink()
    for _ in range(2):
        filled("run", "--once", "--timeout", "10ms")
        [alarm] = [one for one in filled("status", "--json").json["stopped_because"] if one["kind"] == "key_made_anew"]
        assert "`ingestd resolve --new-key`" in alarm["next_step"]

    accepted = filled("resolve", "--new-key")

    assert accepted.code == ExitCode.DONE
    assert not _key_alarms(filled)
    filled("run", "--once", "--timeout", "10ms")
    assert not _key_alarms(filled)


def test_new_key_is_a_decision_of_its_own(filled):
    assert filled("resolve", "1", "--new-key").code == ExitCode.CONFIGURATION
    assert filled("resolve", "--discard").code == ExitCode.CONFIGURATION


@by_lock_only
def test_error_at_the_lock_of_the_spool_names_its_file(tmp_path, filled):
    _replace(tmp_path / "spool" / "lock", Path.mkdir)

    assert str(tmp_path / "spool" / "lock") in filled("run", "--once", "--timeout", "10ms").err
