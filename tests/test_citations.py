"""What code and tests cite of the two pages in the package is there to be read."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PAGES = {"AZURE.md": PROJECT / "ingestd" / "emulator" / "AZURE.md", "DESIGN.md": PROJECT / "ingestd" / "DESIGN.md"}

# "AZURE.md 3.2", "AZURE.md 1.2, 1.8", "DESIGN.md 4 to 6", "DESIGN.md 4 and 5"; a sentence may end behind it.
CITED = re.compile(r"(AZURE|DESIGN)\.md(?: sections?)? (\d+(?:\.\d+)*(?:(?:, | and | to )\d+(?:\.\d+)*\b)*)")
# A heading, or a line of a list, that begins with its number.
NUMBERED = re.compile(r"^(?:#+ |[-*] )?\**(\d+(?:\.\d+)*)\.?\**(?=[ .:])", re.MULTILINE)
SOURCES = [
    path for room in ("ingestd", "tests") for path in sorted((PROJECT / room).rglob("*.py")) if path != Path(__file__)
]


@cache
def sections(page: str) -> frozenset[str]:
    """The numbers that a page has; none where there is no such page."""
    path = PAGES[page]
    return frozenset(NUMBERED.findall(path.read_text(encoding="utf-8"))) if path.exists() else frozenset()


def citations(text: str) -> list[tuple[str, str]]:
    """Every page and number that a text cites, also where the comment or docstring is wrapped in between."""
    flowing = re.sub(r"\s+(?:# )?", " ", text)
    return [
        (f"{name}.md", number)
        for name, numbers in CITED.findall(flowing)
        for number in re.findall(r"[\d.]+\d|\d", numbers)
    ]


def test_every_citation_resolves():
    unresolved = [
        (str(path.relative_to(PROJECT)), page, number)
        for path in SOURCES
        for page, number in citations(path.read_text(encoding="utf-8"))
        if number not in sections(page)
    ]

    assert unresolved == []


def test_citations_are_found_in_every_form():
    text = """see AZURE.md 3.2 (AZURE.md 1.2, 1.8: both) DESIGN.md
    # 4 to 6, AZURE.md 0.4 and 10."""

    assert citations(text) == [
        *(("AZURE.md", "3.2"), ("AZURE.md", "1.2"), ("AZURE.md", "1.8")),
        *(("DESIGN.md", "4"), ("DESIGN.md", "6"), ("AZURE.md", "0.4"), ("AZURE.md", "10")),
    ]


def test_sections_are_the_numbered_headings_of_a_page():
    assert {"0.4", "3.2", "6.4", "9", "10"} <= sections("AZURE.md")
    assert "3.9" not in sections("AZURE.md")
