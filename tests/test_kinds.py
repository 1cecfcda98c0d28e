"""The table of kinds names only tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_test_that_the_table_of_kinds_names_stands_in_the_file_it_names():
    table = (TESTS / "KINDS.md").read_text(encoding="utf-8")
    missing = []
    for cell in (line.split("|")[2] for line in table.splitlines() if line.startswith("| ") and "test_" in line):
        for file, names in re.findall(r"((?:\w+/)?test_\w+\.py)((?:: | and |, |`test_\w+`)*)", cell):
            text = (TESTS / file).read_text(encoding="utf-8") if (TESTS / file).exists() else ""
            missing += [file] if not text else []
            missing += [f"{file}: {name}" for name in re.findall(r"`(test_\w+)`", names) if f"def {name}(" not in text]

    assert missing == []
    assert len(re.findall(r"`test_\w+`", table)) > 60
