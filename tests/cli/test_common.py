"""What is around every command: help, errors in words, exit codes, no traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import ingestd
from ingestd.cli import COMMANDS, main
from ingestd.cli.common import EXIT_CODES, ExitCode, Stop, end
from ingestd.cli.output import ago, in_bytes, plain
from tests.commanding import CONFIG, Rows, as_nobody, command_in
from tests.ledgers import sqlite_only
from tests.running import start_program

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(tmp_path, capfd):
    return command_in(tmp_path, capfd)


def run(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "ingestd", *words],
        capture_output=True,
        text=True,
        check=False,
        **{"cwd": PROJECT, **options},
    )


def test_help_tells_every_command_and_every_exit_code(command):
    said = command("--help")

    assert said.code == 0
    assert all(re.search(rf"^  {name} ", said.out, re.MULTILINE) for name in COMMANDS)
    assert all(re.search(rf"^  {int(code)} ", said.out, re.MULTILINE) for code in EXIT_CODES)
    assert "ingestd demo" in said.out


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"dicomweb"}))
def test_every_command_has_help_worth_reading(command, name):
    said = command(name, "--help")

    assert said.code == 0
    assert len(said.out) > 300


def test_the_readme_tells_the_same_exit_codes():
    told = re.findall(r"^\| (\d+) \|", (PROJECT / "README.md").read_text(), re.MULTILINE)

    assert [int(code) for code in told] == sorted(EXIT_CODES)


def test_the_readme_names_every_command():
    readme = (PROJECT / "README.md").read_text()

    assert [name for name in COMMANDS if f"ingestd {name}" not in readme] == []


def test_the_version_is_the_packages(command):
    assert command("--version").out == f"ingestd {ingestd.__version__}\n"


@pytest.mark.parametrize("words", [["frobnicate"], ["status", "--frobnicate"], ["explain"], ["retry", "x"]])
def test_a_wrong_command_line_is_told_in_words(command, words):
    said = command(*words)

    assert said.code == ExitCode.CONFIGURATION
    assert said.err.startswith("Usage: ingestd")
    assert "Traceback" not in said.err


def test_the_configuration_may_be_named_before_or_after_the_command(tmp_path, capfd):
    Rows(tmp_path).close()
    command = command_in(tmp_path / "elsewhere", capfd)

    after = command("status", "-c", str(tmp_path / "config.yaml"), "--json")

    assert after.code == 0
    assert after.json["ledger"]["exists"]
    assert command("status").code == ExitCode.CONFIGURATION


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "--json"],
        ["check", "--for-start"],
        ["check", "--for-start", "--json"],
        ["explain", "1"],
        ["explain", "1", "--json"],
        ["retry", "1"],
        ["resolve", "1", "--discard"],
        ["reconcile", "--timeout", "100ms"],
        ["run", "--once", "--timeout", "100ms"],
        ["send", "--timeout", "100ms", "{folder}/drop"],
        ["dicomweb", "latest"],
    ],
    ids=" ".join,
)
def test_every_command_says_which_configuration_it_used(tmp_path, capfd, words):
    rows = Rows(tmp_path)
    rows.refuse("x")
    rows.close()

    said = command_in(tmp_path, capfd)(*(word.format(folder=tmp_path) for word in words))

    file = str(tmp_path / "config.yaml")
    if "--json" in words:
        assert said.json["config"] == file
    assert file in (said.out + said.err).replace("\n", "")


@pytest.mark.parametrize("words", [["run"], ["run", "--once"], ["status"], ["check"], ["send", "."], ["retry", "1"]])
def test_a_wrong_configuration_is_told_whole_by_every_command(tmp_path, command, words):
    (tmp_path / "config.yaml").write_text(CONFIG.replace("path: ./drop", "pth: ./drop") + "bogus: 1\n")

    said = command(*words)

    assert said.code == ExitCode.CONFIGURATION
    assert "inboxes[0].pth: unknown key; did you mean path?" in said.err
    assert "bogus: unknown key" in said.err
    assert "Traceback" not in said.err


def test_no_configuration_at_all_says_where_it_was_looked_for(tmp_path):
    said = run("status", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PROJECT), "INGESTD_CONFIG": ""})

    assert said.returncode == ExitCode.CONFIGURATION
    assert "./config.yaml" in said.stderr
    assert "-c FILE" in said.stderr


@sqlite_only
def test_a_ledger_that_is_none_is_told_in_words(tmp_path, command):
    Rows(tmp_path).close()
    (tmp_path / "ledger.db").write_bytes(b"this is no database" * 100)

    for words in (["status"], ["explain", "1"], ["retry", "1"], ["run", "--once"]):
        said = command(*words)
        assert said.code == ExitCode.CONFIGURATION
        assert str(tmp_path / "ledger.db") in said.err
        assert "Traceback" not in said.err


def ended(raising: BaseException) -> int:
    def run():
        raise raising

    with pytest.raises(SystemExit) as caught:
        end(run)
    return int(caught.value.code)


def test_a_fault_of_ours_is_one_line_without_values(capfd, monkeypatch):
    monkeypatch.delenv("INGESTD_DEBUG", raising=False)

    assert ended(KeyError("DOE^JOHN")) == ExitCode.INTERNAL

    said = capfd.readouterr().err
    assert len(said.splitlines()) == 1
    assert "KeyError" in said
    assert "DOE" not in said


def test_a_fault_of_ours_shows_its_traceback_where_asked_for(capfd, monkeypatch):
    monkeypatch.setenv("INGESTD_DEBUG", "1")

    assert ended(KeyError("DOE^JOHN")) == ExitCode.INTERNAL
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    "raised,code",
    [
        (Stop(ExitCode.TIMEOUT, "too late"), 3),
        (KeyboardInterrupt(), 130),
        (PermissionError(13, "Permission denied", "/etc/shadow"), 77),
        (OSError(28, "No space left on device", "/spool"), 2),
    ],
)
def test_errors_end_with_their_codes(raised, code):
    assert ended(raised) == code


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_no_permission_names_the_user_to_become(capfd, tmp_path):
    os.chown(tmp_path, 65534, 65534)

    ended(PermissionError(13, "Permission denied", str(tmp_path)))

    assert "become the user nobody: sudo -u nobody ingestd" in capfd.readouterr().err


@pytest.mark.parametrize(
    "words,code",
    [
        ("status", ExitCode.DONE),
        ("status --json", ExitCode.DONE),
        ("status --files", ExitCode.DONE),
        ("explain 1", ExitCode.DONE),
        ("status --exit-code", ExitCode.NEEDS_PERSON),
        ("retry 99", ExitCode.NEEDS_PERSON),
        ("resolve 2 --discard", ExitCode.NEEDS_PERSON),
        ("run --once --timeout 100ms", ExitCode.TIMEOUT),
        ("send --timeout 100ms cut", ExitCode.TIMEOUT),
        ("check", ExitCode.TIMEOUT),
    ],
)
@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_a_reader_that_has_gone_changes_no_exit_code(tmp_path, words, code, gone):
    """``ingestd send F | head -1 && rm -r F`` must not remove what the server never got, nor the like call a person."""
    rows = Rows(tmp_path)
    rows.refuse("cut")
    rows.close()
    (tmp_path / "drop" / "cut").write_bytes(b"no image")
    (tmp_path / "cut").write_bytes(bytes(128) + b"DICM" + bytes(10))
    read, write = os.pipe()
    os.close(read)

    with os.fdopen(write, "wb") as pipe, tempfile.TemporaryFile() as file:
        streams = {"out": pipe, "err": file} if gone == "stdout" else {"out": file, "err": pipe}
        process = start_program(["-c", str(tmp_path / "config.yaml"), *words.split()], cwd=tmp_path, **streams)
        ended = process.wait(60)
        file.seek(0)
        said = file.read()

    assert ended == code, said
    assert b"BrokenPipe" not in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    "words",
    [
        *(pytest.param(words, marks=sqlite_only) for words in ("status", "explain 1", "retry 1")),
        *("run", "send /etc/hostname", "reconcile"),
    ],
)
def test_what_is_roots_sends_nobody_to_become_root(capfd, words):
    """Whoever followed "become the user root" made the next files root's as well."""
    import ingestd.cli.explain
    import ingestd.cli.reconcile
    import ingestd.cli.retry
    import ingestd.cli.send
    import ingestd.cli.status
    import ingestd.daemon  # noqa: F401 - all of it, while we may still read it

    with tempfile.TemporaryDirectory(prefix="ingestd-test-", dir="/tmp") as name:
        folder = Path(name)
        Rows(folder).close()
        folder.chmod(0o755)
        command = command_in(folder, capfd)
        with as_nobody():
            said = command(*words.split())

    assert said.code == ExitCode.NO_PERMISSION, said
    assert "-u root" not in said.err
    assert "run as root" not in said.err
    assert "sudo chown -R " in said.err
    assert "Traceback" not in said.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_we_may_not_enter_is_told_as_the_place_where_we_stand(tmp_path, monkeypatch, capfd):
    """`sudo -u ingestd ingestd status` in an administrator's home said only that config.yaml was not permitted."""
    import ingestd.cli.status  # all of it, while we may still read it
    import ingestd.config  # noqa: F401

    tmp_path.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INGESTD_CONFIG", raising=False)
    with as_nobody(), pytest.raises(SystemExit) as ended:
        main(["status"])

    assert ended.value.code == ExitCode.CONFIGURATION
    assert "name the file with -c FILE, or go to another folder" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_machines_configuration_is_found_from_a_folder_that_we_may_not_enter(tmp_path, monkeypatch):
    """Out of an administrator's home, or root's crontab, a nightly `ingestd backup` had no configuration."""
    from ingestd.config import reading

    machines = tmp_path / "etc" / "config.yaml"
    machines.parent.mkdir()
    machines.write_text("spool: /srv/spool\n")
    os.chown(machines, 65534, 65534)
    (tmp_path / "home").mkdir(mode=0o700)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.delenv("INGESTD_CONFIG", raising=False)
    monkeypatch.setattr(reading, "PLACES", (Path("config.yaml"), machines))
    for above in tmp_path.parents[:-2]:
        above.chmod(above.stat().st_mode | 0o011)

    with as_nobody():
        assert reading.find_file() == machines


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_root_does_not_write_what_another_user_will_need(tmp_path, command):
    Rows(tmp_path).close()
    for path in (tmp_path / "spool", *tmp_path.glob("ledger.db")):
        os.chown(path, 65534, 65534)

    for words in (["retry", "1"], ["resolve", "1", "--discard"], ["run", "--once"], ["reconcile"]):
        said = command(*words)
        assert said.code == ExitCode.NO_PERMISSION
        assert "sudo -u nobody ingestd" in said.err
    assert command("status").code == ExitCode.DONE


def test_terms_for_people():
    assert [ago(seconds) for seconds in (0, 59.9, 60, 185, 3600, 7800, 86400, 187200)] == [
        "0 s",
        "59 s",
        "1 min",
        "3 min 5 s",
        "1 h",
        "2 h 10 min",
        "1 day",
        "2 days 4 h",
    ]
    assert [in_bytes(size) for size in (0, 999, 1500, 123_456, 64_000_000, 4_200_000_000, 5 * 10**12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "123 kB",
        "64.0 MB",
        "4.2 GB",
        "5.0 TB",
    ]
    assert plain("DOE\x1b[2J\n\udcff") == "DOE\\x1b[2J\\x0a\\xdcff"
