"""What keeps an attribute out of the index: the original's *minimum* validators, and their words (AZURE.md 1.7).

They look at the first value of an attribute that is indexed. A refusal is a text; ``comment`` puts before it what it
has on the wire.
"""

from __future__ import annotations

import re

from .collation import parse_date, parse_datetime, parse_integer, parse_time
from .dictionary import dictionary_vr, keyword_of, tag_text
from .values import TEXT_VRS, Text, strings_of
from .walk import Element

_UID = re.compile(r"[0-9.]*[0-9]\Z")
CONTROLS = "\x00-\x1a\x1c-\x1f\x7f-\x9f"  # but for ESC
CONTROL_BUT_ESC = re.compile(f"[{CONTROLS}]")
_UID_TEXT = (
    "DICOM Identifier is invalid. Value length should not exceed the maximum length of 64 characters. "
    "Value should contain characters in '0'-'9' and '.'. Each component must start with non-zero number."
)
_FIXED = {"AS": 4, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "UL": 4, "US": 2}
_LONGEST = {"AE": 16, "CS": 16, "SH": 16}
INDEXABLE_VRS = frozenset(
    {"AE", "AS", "CS", "DA", "DT", "FD", "FL", "IS", "LO", "PN", "SH", "SL", "SS", "TM", "UI", "UL", "US"}
)


def comment(tag: int, message: str) -> str:
    """A refusal or warning as answers have it."""
    return f"DICOM100: {tag_text(tag)} - {message}"


def no_uid(name: str) -> str:
    """The message for what should be a UID: of a path, a query or a body."""
    return failed(name, "UI", _UID_TEXT)


def is_valid_uid(value: str) -> bool:
    """The service's UID rule: leading zeros and empty components pass, trailing spaces do not count."""
    stripped = value.rstrip(" ")
    return len(stripped) <= 64 and _UID.match(stripped) is not None


def missing(tag: int) -> str:
    return f"The required tag '{tag_text(tag)}' is missing."


def minimum(element: Element, text: Text, *, name: str | None = None, vr: str | None = None) -> str | None:
    """What keeps the element's first value out of the index, in the service's words; None when nothing does."""
    expected = vr or dictionary_vr(element.tag)
    shown = name or keyword_of(element.tag)
    if expected is not None and element.vr not in expected.split(" or "):
        detail: str | None = (
            f"The extended query tag '{shown}' is expected to have VR '{expected}' but has '{element.vr}' in file."
        )
    elif element.vr in TEXT_VRS:
        strings = strings_of(element, text)
        value = strings[0].rstrip("\0") if strings else ""
        detail = minimum_text(element.vr, value)
    else:
        size = _FIXED.get(element.vr, 0)
        detail = f"Value length is not {size}." if len(element.value or b"") < size else None
    return None if detail is None else failed(shown, element.vr, detail)


def failed(name: str, vr: str, detail: str) -> str:
    return f"Dicom element '{name}' failed validation for VR '{vr}': {detail}"


def minimum_text(vr: str, value: str) -> str | None:
    """The minimum rule of a text VR for one value; None when it passes."""
    if not value:
        return None
    if vr in _LONGEST and len(value) > _LONGEST[vr]:
        return f"Value length exceeds maximum length of {_LONGEST[vr]}."
    if vr == "AS" and len(value) != 4:
        return "Value length is not 4."
    if vr == "LO":
        if len(value) > 64:
            return "Value length exceeds maximum length of 64."
        if "\\" in value or CONTROL_BUT_ESC.search(value):
            return "Value contains invalid character."
    if vr == "PN":
        return _minimum_name(value)
    if vr == "UI" and not is_valid_uid(value):
        return _UID_TEXT
    if vr == "DA" and parse_date(value) is None:
        return "Value cannot be parsed as a valid date."
    if vr == "DT" and parse_datetime(value) is None:
        return "Value cannot be parsed as a valid DateTime."
    if vr == "TM" and parse_time(value) is None:
        return "Value cannot be parsed as a valid Time."
    if vr == "IS" and parse_integer(value) is None:
        return "Value cannot be parsed as a valid integer string."
    return None


def _minimum_name(value: str) -> str | None:
    groups = value.split("=")
    if len(groups) > 3:
        return "Value contains more than 3 groups."
    for group in groups:
        if len(group) > 64:
            return "One or more group of person name exceeds maxium length of 64."
        if CONTROL_BUT_ESC.search(group):
            return "Value contains invalid character."
        if group.count("^") > 4:
            return "Value contains more than 5 components."
    return None
