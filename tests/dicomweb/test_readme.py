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
from tests.ports import own_port
from tests.postgres import USER

README = Path(__file__).parents[2] / "README.md"
FIRST_STEPS, CLIENT = "## From an empty machine to a file confirmed on Orthanc", "## The DICOMweb client"
TWO_GATEWAYS = "### Try it on one machine"
# What a test may not do, or has done.
SET_UP = ("sudo ", "python3 -m venv ", ". .venv/bin/activate")


def blocks(heading: str, *languages: str) -> list[tuple[str, str]]:
    _, found, rest = README.read_text(encoding="utf-8").partition(heading + "\n")
    assert found, f"the README has no section {heading!r}"
    section = re.split(rf"\n#{{2,{heading.index(' ')}}} ", rest, maxsplit=1)[0]
    return re.findall(rf"^```({'|'.join(languages)})\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def steps_of(heading: str) -> tuple[str, str]:
    """The one block of a section, without what is set up already."""
    [(language, text)] = blocks(heading, "sh")
    assert ". .venv/bin/activate" in text, "else `ingestd` is no command"
    return language, "".join(line for line in text.splitlines(keepends=True) if not line.startswith(SET_UP))


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

    def run(language: str, text: str, **more: str) -> str:
        command = ["sh", "-eu", "-c", text] if language == "sh" else [sys.executable, "-W", "error", "-c", text]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment | more, capture_output=True, check=False, start_new_session=True
        )
        told = done.stdout.decode() + done.stderr.decode()
        assert done.returncode == 0, told
        return told

    return run


def test_first_steps_lead_to_a_confirmed_file(run, tmp_path_factory):
    language, steps = steps_of(FIRST_STEPS)
    with Emulator(tmp_path_factory.mktemp("server"), fsync=False) as server:
        told = run(language, steps.replace("http://127.0.0.1:8042/dicom-web", server.url))

    assert "1 CONFIRMED" in told
    assert "File 1 CONFIRMED" in told


@pytest.mark.slow
def test_two_daemons_on_one_machine_share_a_ledger(run, cluster):
    """What still runs at its end, or after two minutes, is ended with it."""
    language, steps = steps_of(TWO_GATEWAYS)
    port = own_port()
    ends = "trap 'trap \"\" TERM; kill 0' EXIT\n(sleep 120; kill 0) &\n"
    cluster.make("ingestd")

    told = run(
        language,
        ends + steps.replace("8080", str(port)),
        PGHOST="127.0.0.1",
        PGPORT=str(cluster.port),
        PGUSER=USER,
    )

    assert "; proves and removes" in told
    assert re.search(r"\n1 .* 2 on ", told), "sent by the other one"
    cluster.drop("ingestd")


def test_examples_of_the_client_run_from_first_to_last(run, tmp_path, tmp_path_factory):
    found = blocks(CLIENT, "sh", "python")
    for language, text in found:
        with Emulator(tmp_path_factory.mktemp("server"), fsync=False) as server:
            told = run(language, text.replace("http://127.0.0.1:8080/v2", server.url))
        assert "stored" in told

    assert [language for language, _ in found] == ["sh", "python"]
    assert list((tmp_path / "copies").rglob("*.dcm"))
