"""No reader process can be had, on a whole installation: told at once, waited for not for ever, and gone on from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingestd.cli.common import ExitCode
from ingestd.emulator import Emulator
from tests.daemon.test_promise import image
from tests.running import Site, environment, wait_until


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Emulator(fsync=False) as emulator:
        yield Site(tmp_path / "site", emulator.url)


def _is_away(_: Path) -> None:
    """Leave no interpreter where the program was started from, as an upgrade does that makes the venv anew."""


def _is_forbidden(program: Path) -> None:
    program.write_text("#!/bin/sh\n")
    program.chmod(0o644)


def _dies_at_once(program: Path) -> None:
    """Be an interpreter of which every reader ends before it is ready, as one does that cannot import."""
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)


pytestmark = pytest.mark.slow
WAYS = [(_is_away, "no such file"), (_is_forbidden, "permission denied"), (_dies_at_once, "exit status 1")]


def _environment() -> dict[str, str]:
    return environment({"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})


def _run(site: Site, program: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of ingestd as if it had been started as ``program``, which its readers are started as too."""
    return subprocess.run(
        [program, "-m", "ingestd", *words],
        executable=sys.executable,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=site.folder,
        env=_environment(),
    )


@pytest.mark.parametrize("break_program, why", WAYS)
def test_readers_that_cannot_be_started_are_an_alarm_until_one_is(
    site: Site, break_program: Callable[[Path], None], why: str
) -> None:
    """The file lay in the drop folder, `status` said that all was well, and nothing was told for 17 minutes."""
    program = site.folder / "python"
    break_program(program)
    with site.start(program=program, env=_environment()):
        (site.drop / "image").write_bytes(image())
        wait_until(lambda: "readers" in site.stopped(), what="an alarm")
        (told,) = [line for line in site.status()["stopped_because"] if line["kind"] == "readers"]
        assert why in told["note"].lower()
        assert site.command("status", "--exit-code").returncode == ExitCode.NEEDS_PERSON

        _mend(program)
        site.wait_for({"CONFIRMED": 1})
        wait_until(lambda: not site.stopped(), what="the end of the alarm")


def _mend(program: Path) -> None:
    program.unlink(missing_ok=True)
    program.symlink_to(sys.executable)


@pytest.mark.parametrize("word, break_program, why", [("run", *WAYS[1]), ("send", *WAYS[2])])
def test_single_run_without_readers_ends_and_says_why(
    site: Site, word: str, break_program: Callable[[Path], None], why: str
) -> None:
    program = site.folder / "python"
    break_program(program)
    (site.drop / "image").write_bytes(image())
    words = ["run", "--once"] if word == "run" else ["send", site.drop]

    ran = _run(site, program, *words, "-c", site.config_file)

    assert ran.returncode == ExitCode.TIMEOUT
    assert f"stopped because no reader can be started: {why}" in ran.stdout.lower()
    _mend(program)
    assert _run(site, program, *words, "-c", site.config_file).returncode == ExitCode.DONE
