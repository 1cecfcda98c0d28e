"""How values compare in searches: the collations of the original's SQL Server (AZURE.md 3.2)."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime


def fold(value: str, vr: str) -> str:
    """The form in which two values that count as equal are the same; trailing spaces and NULs never count."""
    stripped = value.rstrip(" \0")
    if vr == "PN":
        return fold_name(stripped)
    if vr == "UI":
        return stripped
    return stripped if stripped.isascii() and stripped.isdigit() else stripped.casefold()


def fold_name(value: str) -> str:
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


def parse_date(value: str) -> datetime | None:
    """``yyyyMMdd`` as a real date, else None."""
    if len(value) != 8 or not (value.isascii() and value.isdigit()):
        return None
    try:
        return datetime(int(value[:4]), int(value[4:6]), int(value[6:]))  # noqa: DTZ001 - a calendar day has no zone
    except ValueError:
        return None


_DT_FULL = re.compile(r"(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(?:\.(\d{1,6}))?([+-]\d{4})?\Z")
_TM = re.compile(r"(\d\d)(?:(\d\d)(?:(\d\d)(?:\.(\d{1,6}))?)?)?\Z")


def parse_datetime(value: str) -> str | None:
    """A DT as 20 digits ``YYYYMMDDHHMMSSFFFFFF`` that sort in time order, else None."""
    found = _DT_FULL.match(value.rstrip())
    if found is None or (found[7] and not found[6]):
        return None
    year, month, day, hour, minute, second = (
        int(found[n] or default) for n, default in ((1, 0), (2, 1), (3, 1), (4, 0), (5, 0), (6, 0))
    )
    try:
        datetime(year, month, day, hour, minute, min(second, 59))  # noqa: DTZ001 - only its digits are checked
    except ValueError:
        return None
    return f"{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}{(found[7] or ''):0<6}"


def parse_time(value: str) -> str | None:
    """A TM as 12 digits ``HHMMSSFFFFFF`` that sort in time order, else None."""
    found = _TM.match(value.rstrip())
    if found is None:
        return None
    hour, minute, second = int(found[1]), int(found[2] or 0), int(found[3] or 0)
    if hour > 23 or minute > 59 or second > 60:
        return None
    return f"{hour:02}{minute:02}{second:02}{(found[4] or ''):0<6}"


def parse_integer(value: str) -> int | None:
    """An IS within 32 bits, else None."""
    try:
        number = int(value)
    except ValueError:
        return None
    return number if -(1 << 31) <= number < 1 << 31 and value.isascii() and "_" not in value else None


def comparable(value: str, vr: str) -> str | float | None:
    """A text value in the form in which searches compare it; None when it is none of its VR."""
    if vr == "DT":
        return parse_datetime(value)
    if vr == "TM":
        return parse_time(value)
    if vr == "IS":
        return parse_integer(value)
    return fold(value, vr)
