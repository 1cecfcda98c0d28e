"""A start without imports is a start: the same words, streams, environment, session and end."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.forking import Forked
from tests.running import Site, environment, kill_session, run_program, start_program

SCRIPT = "import sys; print(__name__, *sys.argv); sys.exit('ends')"


def said_by(*words: str, folder: Path, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    said = run_program(words, cwd=folder, env=env)
    return said.returncode, said.stdout, said.stderr


@pytest.mark.parametrize(
    "words", [["status", "--frobnicate"], ["--version"], ["status"], ["run", "--once"], ["-c", SCRIPT, "word"]]
)
def test_what_is_forked_says_what_an_interpreter_of_its_own_says(tmp_path: Path, words: list[str]):
    assert said_by(*words, folder=tmp_path) == said_by(*words, folder=tmp_path, env={"PYTHONHASHSEED": "1"})


def test_environment_of_a_test_is_that_of_what_is_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("INGESTD_CONFIG", "/of this test.yaml")

    assert "/of this test.yaml" in said_by("status", folder=tmp_path)[2]


def test_it_has_its_session_when_it_is_known_and_ends_by_the_signal_that_it_got(tmp_path: Path):
    Site(tmp_path, "http://127.0.0.1:9/v2")
    for _ in range(20):
        with tempfile.TemporaryFile() as log:
            process = start_program(["run"], out=log, err=log, cwd=tmp_path, notify=tmp_path / "notify")
        assert isinstance(process, Forked)
        assert os.getsid(process.pid) == process.pid
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0)

        kill_session(process.pid)

        assert process.wait(10) == process.poll() == -signal.SIGKILL


def test_signal_to_what_has_ended_goes_nowhere(tmp_path: Path):
    with tempfile.TemporaryFile() as log:
        process = Forked(["--version"], out=log, err=log, cwd=tmp_path, env=environment(), session=False)
        process.wait(30)

    process.terminate()

    assert process.poll() == 0
