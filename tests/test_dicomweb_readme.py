"""The README's examples of the client do what they say, as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.builders import write_instance

README = Path(__file__).parent.parent / "README.md"
HEADING = "## The DICOMweb client"
EXAMPLE_URL = "http://127.0.0.1:8080/v2"


def section() -> str:
    _, found, rest = README.read_text(encoding="utf-8").partition(HEADING + "\n")
    if not found:
        pytest.skip(f"the README has no section {HEADING!r}")
    return rest.partition("\n## ")[0]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with the files that the examples name."""
    monkeypatch.chdir(tmp_path)
    write_instance(tmp_path / "scan.dcm", patient_id="4711")
    (tmp_path / "scans").mkdir()
    for number in range(3):
        write_instance(tmp_path / "scans" / str(number), patient_id="4711")
    return tmp_path


@pytest.mark.parametrize("language", ["sh", "python"])
def test_examples_run_from_first_to_last(place, tmp_path_factory, language):
    program = place / "bin" / "ingestd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ingestd "$@"\n')
    program.chmod(0o755)
    source = str(README.parent)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": source}

    for block in blocks(language):
        with Emulator(tmp_path_factory.mktemp("server"), fsync=False) as server:
            text = block.replace(EXAMPLE_URL, server.url)
            command = ["sh", "-eu", "-c", text] if language == "sh" else [sys.executable, "-W", "error", "-c", text]
            done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()

    assert blocks(language)
    assert list((place / "copies").rglob("*.dcm"))
