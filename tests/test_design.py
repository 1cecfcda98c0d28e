"""ingestd/DESIGN.md says what is so: numbers that are cited are there, its files stand, its states are ours."""

from __future__ import annotations

import re
from pathlib import Path

from ingestd.lifecycle import HOLDING, State
from tests.test_imports import MAY_IMPORT

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "ingestd"
DESIGN = (PACKAGE / "DESIGN.md").read_text(encoding="utf-8")
NUMBERS = set(re.findall(r"^(?:## |\*\*)(\d+(?:\.\d+)?)\b", DESIGN, re.MULTILINE))
# "DESIGN.md 6.2", and what follows it: "DESIGN.md 4.6, 4.7", "DESIGN.md 5.2 to 5.5".
CITATION = re.compile(r"DESIGN\.md(?P<numbers> \d+(?:\.\d+)?(?:(?:,| to| and) \d+(?:\.\d+)?)*)")


def test_every_number_of_the_design_that_is_cited_is_there():
    texts = {
        path: path.read_text(encoding="utf-8")
        for folder in (PACKAGE, PROJECT / "tests")
        for path in folder.rglob("*.py")
        if path != Path(__file__)
    }
    cited = {
        (path.relative_to(PROJECT).as_posix(), number)
        for path, text in texts.items()
        for citation in CITATION.finditer(text)
        for number in re.findall(r"\d+(?:\.\d+)?", citation["numbers"])
    }
    inside = {("DESIGN.md", number) for number in re.findall(r"\((\d+\.\d+)\)", DESIGN)}

    assert {(path, number) for path, number in cited | inside if number not in NUMBERS} == set()
    assert len(cited) > 5


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
