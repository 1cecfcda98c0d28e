"""ingestd/DESIGN.md says what is so: its files stand, and its rooms and states are ours (and see test_citations)."""

from __future__ import annotations

import re
from pathlib import Path

from ingestd.lifecycle import HOLDING, State
from tests.test_citations import sections
from tests.test_imports import MAY_IMPORT

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "ingestd"
DESIGN = (PACKAGE / "DESIGN.md").read_text(encoding="utf-8")


def test_every_number_that_the_design_refers_to_is_there():
    referred = set(re.findall(r"\((\d+\.\d+)\)", DESIGN))

    assert referred - sections("DESIGN.md") == set()
    assert len(referred) > 10


def test_every_file_that_the_design_names_is_there():
    named = set(re.findall(r"`([\w/.]+(?:\.py|\.md|\.yaml))`", DESIGN))

    assert {name for name in named if not ((PACKAGE / name).exists() or (PROJECT / name).exists())} == set()
    assert len(named) > 20


def test_the_design_has_every_room():
    cells = re.findall(r"^\| \d \| ((?:`\w+` ?)+)", DESIGN, re.MULTILINE)

    assert sorted(re.findall(r"\w+", " ".join(cells))) == sorted(MAY_IMPORT.keys() - {"__init__", "__main__"})


def test_the_design_has_every_state_and_says_which_ones_hold_their_identity():
    rows = re.findall(r"^\| ([A-Z]+) \| [^|]+ \| (yes|no) \|", DESIGN, re.MULTILINE)

    assert {State(name): holds == "yes" for name, holds in rows} == {state: state in HOLDING for state in State}
