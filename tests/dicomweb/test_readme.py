"""The README's examples do what they say, as they stand, from the first to the last, with what pydicom brings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from ingestd.emulator import Emulator

README = Path(__file__).parents[2] / "README.md"
FIRST_STEPS, CLIENT = "## From an empty machine to a file confirmed on Orthanc", "## The DICOMweb client"
# What a test may not do, or has done.
SET_UP = ("sudo apt-get ", "python3 -m venv ", ". .venv/bin/activate")


def blocks(heading: str, *languages: str) -> list[tuple[str, str]]:
    _, found, rest = README.read_text(encoding="utf-8").partition(heading + "\n")
    assert found, f"the README has no section {heading!r}"
    section = rest.partition("\n## ")[0]
    return re.findall(rf"^```({'|'.join(languages)})\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def run(tmp_path):
    """Runs a block in a folder that has what `pip install` leaves there, and nothing else."""
    (tmp_path / ".venv/lib/python3").mkdir(parents=True)
    (tmp_path / ".venv/lib/python3/site-packages").symlink_to(Path(pydicom.__file__).parents[1])
    program = tmp_path / ".venv/bin/ingestd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ingestd "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(README.parent),
    }

    def run(language: str, text: str) -> str:
        command = ["sh", "-eu", "-c", text] if language == "sh" else [sys.executable, "-W", "error", "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        told = done.stdout.decode() + done.stderr.decode()
        assert done.returncode == 0, told
        return told

    return run


def test_first_steps_lead_to_a_confirmed_file(run, tmp_path_factory):
    [(language, text)] = blocks(FIRST_STEPS, "sh")
    steps = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(SET_UP))

    with Emulator(tmp_path_factory.mktemp("server"), fsync=False) as server:
        told = run(language, steps.replace("http://127.0.0.1:8042/dicom-web", server.url))

    assert ". .venv/bin/activate" in text, "else `ingestd` is no command"
    assert "1 CONFIRMED" in told
    assert "File 1 CONFIRMED" in told


def test_examples_of_the_client_run_from_first_to_last(run, tmp_path, tmp_path_factory):
    found = blocks(CLIENT, "sh", "python")
    for language, text in found:
        with Emulator(tmp_path_factory.mktemp("server"), fsync=False) as server:
            told = run(language, text.replace("http://127.0.0.1:8080/v2", server.url))
        assert "stored" in told

    assert [language for language, _ in found] == ["sh", "python"]
    assert list((tmp_path / "copies").rglob("*.dcm"))
