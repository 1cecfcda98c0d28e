"""Printed advice names commands that work for who asks: by the name, the path or the sudo by which they asked."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ingestd.cli.asker import become
from tests.commanding import Rows, as_nobody

PROGRAM = Path(sys.executable).with_name("ingestd")
PROJECT = Path(__file__).resolve().parents[2]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def folder(tmp_path):
    """Where a configuration is found by the search, and a ledger with nothing waiting."""
    Rows(tmp_path).close()
    return tmp_path


def asked(folder: Path, program: str, **environment: str) -> str:
    """What `explain` of an unknown number advises to who called it by these words."""
    ran = subprocess.run(
        [program, "explain", "4711"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"PATH": SYSTEM_PATH} | environment,
    )
    assert ran.returncode == 2, ran
    return ran.stderr


def test_who_has_it_on_the_path_is_told_its_name(folder):
    (folder / "bin").mkdir()
    (folder / "bin/ingestd").symlink_to(PROGRAM)

    said = asked(folder, "ingestd", PATH=f"{folder}/bin:{SYSTEM_PATH}")

    assert "`ingestd status --files` lists" in said


def test_who_called_it_by_a_path_is_told_that_path(folder):
    """After the chapter on systemd `ingestd` was on no PATH, and all advice named it."""
    assert f"`{PROGRAM} status --files` lists" in asked(folder, str(PROGRAM))


def test_who_called_the_module_is_told_to_do_so_again(folder):
    ran = subprocess.run(
        [sys.executable, "-m", "ingestd", "explain", "4711"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"PATH": SYSTEM_PATH, "PYTHONPATH": str(PROJECT)},
    )

    assert f"`{sys.executable} -m ingestd status --files` lists" in ran.stderr


@as_root
def test_who_asked_by_sudo_is_told_to_use_it_again(folder):
    by_sudo = {"SUDO_UID": "1000", "SUDO_USER": "admin"}

    assert f"`sudo {PROGRAM} status" in asked(folder, str(PROGRAM), SUDO_COMMAND=f"{PROGRAM} explain 4711", **by_sudo)
    assert f"`{PROGRAM} status" in asked(folder, str(PROGRAM), SUDO_COMMAND="/bin/bash", **by_sudo)


@as_root
def test_whom_to_become_is_the_whole_command(monkeypatch, tmp_path):
    """sudo takes neither the PATH nor INGESTD_CONFIG along."""
    from ingestd.cli.asker import typed

    monkeypatch.setattr("sys.argv", ["bin/ingestd"])
    monkeypatch.setenv("INGESTD_CONFIG", "/srv/a b/config.yaml")
    monkeypatch.chdir(tmp_path)
    os.chown(tmp_path, 65534, 65534)
    typed(["status", "--json"])

    wanted = f"sudo -u nobody {tmp_path}/bin/ingestd -c '/srv/a b/config.yaml' status --json"
    assert become(tmp_path) == f"become the user nobody: {wanted}"


@as_root
def test_what_root_lets_a_group_read_is_for_the_user_of_that_group():
    """/etc/ingestd is root's and the group ingestd's: "become the user root", `status` told an administrator."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chown(name, 0, 2)
        Path(name).chmod(0o750)
        with as_nobody():
            said = become(Path(name, "config.yaml"))

    assert said.startswith("become the user bin: sudo -u bin ")


@as_root
def test_a_folder_that_is_missing_is_made_for_the_user_and_nothing_of_roots_is_given_away():
    """Before the first start "become the user root" was what `check` said of /var/lib/ingestd/ledger.db."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        with as_nobody():
            missing = become(Path(name, "ingestd", "ledger.db"))
            straight_in_it = become(Path(name, "ledger.db"))

    assert f" {name}/ingestd" in missing
    assert "sudo install -d " in missing
    assert "sudo " not in straight_in_it


def test_nothing_is_advised_without_the_quotes_by_which_it_is_found():
    """A bare "(start it: ingestd run)" would not be written as the asker has to type it."""
    found = [
        f"{file.name}: {line.strip()}"
        for file in (PROJECT / "ingestd" / "cli").glob("*.py")
        for line in file.read_text().splitlines()
        if any(
            f"{before} ingestd {name}" in line for before in (":", ": ") for name in ("run", "status", "check", "-c")
        )
    ]

    assert found == []
