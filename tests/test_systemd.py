"""The unit and what belongs beside it: understood by systemd, shut tight, and in step with the program."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ingestd.config import LoggingSection, parse
from ingestd.config.units import parse_duration

PROJECT = Path(__file__).resolve().parents[1]
FOLDER = PROJECT / "systemd"
UNIT = FOLDER / "ingestd.service"
MOST_EXPOSURE = 2.0


@pytest.fixture
def systemd_analyze():
    """The program, required where peers are."""
    found = shutil.which("systemd-analyze")
    if found is None:
        reason = "systemd-analyze is not installed (Debian package systemd)"
        if os.environ.get("INGESTD_REQUIRE_PEERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def settings(path: Path = UNIT) -> dict[str, dict[str, list[str]]]:
    """Section: key: its values in order (a key may stand more than once)."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in path.read_text().splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(section, {}).setdefault(key, []).append(value)
    return found


def test_systemd_understands_the_unit_without_a_complaint(systemd_analyze):
    ran = subprocess.run([systemd_analyze, "verify", str(UNIT)], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_sandbox_leaves_little_exposed(systemd_analyze):
    ran = subprocess.run(
        [systemd_analyze, "security", "--offline=true", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )

    found = re.search(r"Overall exposure level for ingestd.service: (\d+\.\d+)", ran.stdout)
    assert found, ran.stdout + ran.stderr
    assert float(found[1]) <= MOST_EXPOSURE


def test_the_commands_of_the_unit_are_commands_of_ours():
    from ingestd.cli import commands

    service = settings()["Service"]

    for line in service["ExecStartPre"] + service["ExecStart"]:
        _, program, name, *options = line.split()
        command = commands.get_command(None, name)
        known = {option for parameter in command.params for option in parameter.opts}
        assert program == "ingestd"
        assert set(options) <= known


def test_systemd_waits_longer_than_the_daemon_does():
    service = settings()["Service"]
    default = parse("inboxes: [{path: a}]\nspool: b\nledger: sqlite:///c\ndestination: {url: http://h}", base=Path("/"))

    stop = service["TimeoutStopSec"][0].replace("min", "m")
    assert parse_duration(stop) > default.shutdown_grace
    assert service["Type"] == ["notify"]
    assert service["WatchdogSec"]


def test_the_service_is_never_given_up():
    found = settings()

    assert found["Unit"]["StartLimitIntervalSec"] == ["0"]
    assert found["Service"]["Restart"] == ["on-failure"]
    # A worker whose place another took ends with the code of a wrong configuration, and stands by once it is back.
    assert "RestartPreventExitStatus" not in found["Service"]
    assert found["Service"]["OOMPolicy"] == ["continue"]


def test_a_spool_on_a_share_is_mounted_before():
    assert "remote-fs.target" in settings()["Unit"]["After"][0].split()


def test_the_user_is_the_same_everywhere():
    user = settings()["Service"]["User"]

    assert user == ["ingestd"]
    assert re.search(rf"^u {user[0]} ", (FOLDER / "ingestd.sysusers").read_text(), re.MULTILINE)
    owners = re.findall(r"^d /srv/ingestd/\w+ +\d+ +(\w+)", (FOLDER / "ingestd.tmpfiles").read_text(), re.MULTILINE)
    assert owners == user * 2


def test_who_may_drop_files_may_read_neither_configuration_nor_secrets():
    """Droppers were told to join the service's own group, which reads /etc/ingestd."""
    groups = dict(re.findall(r"^d (/\S+) +\d+ +\w+ +([\w-]+)", (FOLDER / "ingestd.tmpfiles").read_text(), re.MULTILINE))
    users = (FOLDER / "ingestd.sysusers").read_text()
    readme = (PROJECT / "README.md").read_text()

    assert groups["/srv/ingestd/drop"] == "ingestd-drop"
    assert "ingestd-drop" not in {groups["/etc/ingestd"], groups["/srv/ingestd/spool"]}
    assert re.search(r"^g ingestd-drop ", users, re.MULTILINE)
    assert re.search(r"^m ingestd ingestd-drop$", users, re.MULTILINE), "it moves out what the group may write"
    assert settings()["Service"]["SupplementaryGroups"] == ["ingestd-drop"]
    assert "usermod -aG ingestd-drop " in readme
    assert "usermod -aG ingestd " not in readme + (FOLDER / "ingestd.tmpfiles").read_text()


def test_drop_folder_and_spool_lie_under_one_writable_path():
    """Between two bind mounts of one filesystem rename(2) says EXDEV, and every move would be a copy."""
    writable = [path.lstrip("-") for path in settings()["Service"]["ReadWritePaths"]]
    folders = re.findall(r"^d (/srv/\S+)", (FOLDER / "ingestd.tmpfiles").read_text(), re.MULTILINE)

    assert writable == ["/srv/ingestd"]
    assert all(Path(folder).is_relative_to(writable[0]) for folder in folders)


def test_the_limits_of_inotify_are_raised():
    parser = configparser.ConfigParser()
    parser.read_string("[sysctl]\n" + (FOLDER / "60-ingestd.conf").read_text())

    assert int(parser["sysctl"]["fs.inotify.max_queued_events"]) >= 1_048_576
    assert int(parser["sysctl"]["fs.inotify.max_user_watches"]) >= 524_288


def test_lines_are_json_for_the_journal():
    assert LoggingSection().format == "auto"
    assert "StandardError" not in settings()["Service"]


def test_the_journal_has_the_lines_by_the_name_of_the_program():
    """They stood there by the name of what starts it, "env"."""
    assert settings()["Service"]["SyslogIdentifier"] == ["ingestd"]


def test_why_a_service_ended_is_an_error_in_the_journal(tmp_path):
    with (tmp_path / "stderr").open("w") as stderr:
        there = os.fstat(stderr.fileno())
        subprocess.run(
            [sys.executable, "-m", "ingestd", "-c", str(tmp_path / "none.yaml"), "run"],
            env={**os.environ, "JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"},
            stderr=stderr,
            cwd=PROJECT,
            check=False,
        )

    lines = (tmp_path / "stderr").read_text().splitlines()
    assert lines
    assert all(line.startswith("<3>") for line in lines)


def test_every_file_of_the_folder_says_where_it_goes():
    for file in FOLDER.iterdir():
        assert file.read_text().startswith("#"), file.name
        assert file.name == "ingestd.service" or "/etc/" in file.read_text(), file.name
