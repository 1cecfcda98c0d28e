"""A file that an administrator names is a regular file, or is refused in words: a pipe or a device never ends."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ingestd.cli.common import ExitCode
from ingestd.emulator import Emulator
from tests.builders import write_instance
from tests.running import PROGRAM, Site, environment, wait_until

PIPE = "it is a pipe, not a regular file"
AZURE = {"kind": "azure", "tenant_id": "t", "client_id": "c"}
LIMIT_SECONDS = 30.0


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path / "site", "https://127.0.0.1:9/v2")
    os.mkfifo(site.folder / "pipe")
    (site.folder / "large").write_bytes(b"x" * 10_000_001)
    return site


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"auth": {"kind": "bearer", "token_file": "pipe"}}, PIPE),
        ({"auth": {"kind": "bearer", "token_file": "large"}}, "it is larger than 1,000,000 bytes"),
        ({"auth": {"kind": "basic", "username": "me", "password_file": "/dev/zero"}}, "it is a device, not a regular"),
        ({"auth": {**AZURE, "credential": "certificate", "certificate_file": "pipe"}}, PIPE),
        ({"tls": {"ca_file": "pipe"}}, PIPE),
        ({"tls": {"client_cert": "pipe", "client_key": "large"}}, PIPE),
        ({"tls": {"client_cert": "large"}}, "it is larger than 10,000,000 bytes"),
    ],
)
def test_check_refuses_what_is_no_file_to_be_read_whole(site: Site, settings: dict[str, Any], said: str) -> None:
    site.configure(destination={"url": site.url, **settings})

    done = site.command("check", "--json", within_seconds=LIMIT_SECONDS)

    bad = [check for check in json.loads(done.stdout)["checks"] if check["result"] == "bad"]
    assert [said in check["text"] for check in bad] == [True], bad
    assert done.returncode == ExitCode.CONFIGURATION


@pytest.mark.parametrize(
    "auth",
    [
        {"kind": "bearer", "token_file": "pipe"},
        {**AZURE, "credential": "certificate", "certificate_file": "pipe"},
    ],
    ids=["token", "certificate"],
)
def test_daemon_without_its_secret_takes_in_and_says_why_it_does_not_send(site: Site, auth: dict[str, Any]) -> None:
    with Emulator(fsync=False) as server:
        site.configure(destination={"url": server.url, "auth": auth})
        write_instance(site.drop / "image")
        with site.start():
            site.wait_for({"PENDING": 1})
            wait_until(lambda: site.stopped() == {"paused"}, what="the pause")
            [paused] = site.status()["stopped_because"]
            assert PIPE in paused["note"]


@pytest.mark.parametrize("option", ["--ca", "--cert"])
def test_pipe_in_the_place_of_a_certificate_keeps_no_request_waiting(site: Site, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}/v2"
        words = ["dicomweb", "--url", url, option, str(site.folder / "pipe"), "latest"]

        done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)

    assert PIPE in done.stderr
    assert done.returncode == ExitCode.CONFIGURATION


@pytest.mark.parametrize("words", [["check", "--for-start"], ["run", "--once"], ["status"]], ids=" ".join)
def test_ledger_that_is_a_pipe_is_none(site: Site, words: list[str]) -> None:
    site.configure(ledger="sqlite:///pipe")

    # In a process of its own, which can be given up.
    command = [*PROGRAM, words[0], "-c", str(site.config_file), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)

    assert "is no ledger (it is a pipe, not a regular file)" in done.stdout + done.stderr
    assert done.returncode == ExitCode.CONFIGURATION


@pytest.mark.parametrize(
    "name, said", [("pipe", PIPE), ("/dev/zero", "it is a device"), ("large", "larger than 1,000,000 bytes")]
)
def test_configuration_that_would_never_end_is_refused(site: Site, name: str, said: str) -> None:
    words = [*PROGRAM, "check", "-c", str(site.folder / name)]

    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)

    assert said in done.stderr
    assert done.returncode == ExitCode.CONFIGURATION


@pytest.mark.parametrize("way", ["pipe", "file", "substitution", "terminal"])
def test_configuration_can_be_handed_over(site: Site, way: str) -> None:
    """What a person does with ``-c /dev/stdin`` and ``-c <(...)``."""
    words = [*PROGRAM, "check", "-c", "/dev/stdin"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": LIMIT_SECONDS, "env": environment()}
    if way == "pipe":
        done = subprocess.run(words, input=site.config_file.read_text(), check=False, **options)
    elif way == "file":
        with site.config_file.open() as file:
            done = subprocess.run(words, stdin=file, check=False, **options)
    elif way == "substitution":
        script = '"$@" check -c <(cat "$CONFIG")'
        options["env"]["CONFIG"] = str(site.config_file)
        done = subprocess.run(["bash", "-c", script, "bash", *PROGRAM], check=False, **options)
    else:
        ours, theirs = pty.openpty()
        os.write(ours, site.config_file.read_bytes() + b"\n\x04")
        done = subprocess.run(words, stdin=theirs, check=False, **options)
        os.close(ours)
        os.close(theirs)

    assert "every key is known and every value fits" in done.stdout, done.stderr
