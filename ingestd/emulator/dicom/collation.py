"""How values compare in searches: the collations of the original's SQL Server (AZURE.md 3.2)."""

from __future__ import annotations

import unicodedata


def fold(value: str, vr: str) -> str:
    """The form in which two values that count as equal are the same; trailing spaces and NULs never count."""
    stripped = value.rstrip(" \0")
    if vr == "PN":
        return fold_name(stripped)
    if vr == "UI":
        return stripped
    return stripped if stripped.isascii() and stripped.isdigit() else stripped.casefold()


def fold_name(value: str) -> str:
    """A person name without case and accents."""
    if value.isascii():
        return value.lower()
    decomposed = unicodedata.normalize("NFKD", value)
    return "".join(character for character in decomposed if not unicodedata.combining(character)).casefold()


def name_words(folded: str) -> list[str]:
    """The parts of a folded person name that fuzzy matching looks at."""
    return folded.replace("^", " ").replace("=", " ").split()


def matches_fuzzily(folded: str | None, wanted: str) -> bool:
    """Whether each wanted word begins a part of the name, in this order (``wanted``: folded words, spaces between)."""
    if folded is None:
        return False
    words = iter(name_words(folded))
    return all(any(word.startswith(prefix) for word in words) for prefix in wanted.split())
