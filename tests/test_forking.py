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


@pytest.mark.parametrize(
    "words", [["status", "--frobnicate"], ["--version"], ["-c", "/nowhere", "status"], ["status"], ["run", "--once"]]
)
@pytest.mark.parametrize("script", [None, "import sys; print(__name__, *sys.argv); sys.exit('ends')"])
def test_what_is_forked_says_what_an_interpreter_of_its_own_says(tmp_path: Path, words: list[str], script: str | None):
    forked, own = (run_program(words, script=script, cwd=tmp_path, env=env) for env in (None, {}))

    assert (forked.returncode, forked.stdout, forked.stderr) == (own.returncode, own.stdout, own.stderr)


def test_environment_of_a_test_is_that_of_what_is_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("INGESTD_CONFIG", "/of this test.yaml")

    assert "/of this test.yaml" in run_program(["status"], cwd=tmp_path).stderr


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
        process = Forked(["--version"], out=log, err=log, cwd=tmp_path, env=environment())
        process.wait(30)

    process.terminate()

    assert process.poll() == 0
