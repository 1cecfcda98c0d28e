"""What the service says about a data set before it stores it (AZURE.md 1.7).

Two sets of rules, both the original's: the *minimum* validators look at the first value of an indexed attribute and
decide whether it can go into the index; the *full* ones are fo-dicom's VR and VM rules, which version 2 turns into
warnings. A refusal or warning is a text; ``DICOM100: (gggg,eeee) - `` is put in front of it where it goes on the wire.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache

from pydicom.datadict import dictionary_keyword, dictionary_VM, dictionary_VR

from .parser import Element
from .values import SPLIT_VRS, TEXT_VRS, Text, is_number, numbers_of, strings_of, text_of, width_of

_UID = re.compile(r"[0-9.]*[0-9]\Z")
_CONTROL_BUT_ESC = re.compile("[\x00-\x1a\x1c-\x1f\x7f-\x9f]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_UID_TEXT = (
    "DICOM Identifier is invalid. Value length should not exceed the maximum length of 64 characters. "
    "Value should contain characters in '0'-'9' and '.'. Each component must start with non-zero number."
)
_FIXED = {"AS": 4, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "UL": 4, "US": 2}
_LONGEST = {"AE": 16, "CS": 16, "SH": 16}
INDEXABLE_VRS = frozenset(
    {"AE", "AS", "CS", "DA", "DT", "FD", "FL", "IS", "LO", "PN", "SH", "SL", "SS", "TM", "UI", "UL", "US"}
)


def no_uid(name: str) -> str:
    """The message for what should be a UID: of a path, a query or a body."""
    return f"Dicom element '{name}' failed validation for VR 'UI': {_UID_TEXT}"


def is_valid_uid(value: str) -> bool:
    """The service's UID rule: leading zeros and empty components pass, trailing spaces do not count."""
    stripped = value.rstrip(" ")
    return len(stripped) <= 64 and _UID.match(stripped) is not None


def tag_text(tag: int) -> str:
    """``(gggg,eeee)``, lowercase, as every message has it."""
    return f"({tag >> 16:04x},{tag & 0xFFFF:04x})"


def missing(tag: int) -> str:
    """The message for a required attribute that is not there."""
    return f"The required tag '{tag_text(tag)}' is missing."


@lru_cache(maxsize=4096)
def keyword_of(tag: int) -> str:
    """The dictionary's keyword, or the tag where there is none."""
    try:
        return dictionary_keyword(tag) or tag_text(tag)
    except KeyError:
        return tag_text(tag)


def minimum(element: Element, text: Text, *, name: str | None = None, vr: str | None = None) -> str | None:
    """What keeps the element's first value out of the index, in the service's words; None when nothing does."""
    expected = vr or _dictionary_vr(element.tag)
    shown = name or keyword_of(element.tag)
    if expected is not None and element.vr not in expected.split(" or "):
        detail: str | None = (
            f"The extended query tag '{shown}' is expected to have VR '{expected}' but has '{element.vr}' in file."
        )
    elif element.vr in TEXT_VRS:
        strings = strings_of(element, text)
        value = strings[0].rstrip("\0") if strings else ""
        if element.vr == "UI":
            return None if not value or is_valid_uid(value) else _failed(shown, "UI", _UID_TEXT)
        detail = minimum_text(element.vr, value)
    else:
        detail = _minimum_binary(element)
    return None if detail is None else _failed(shown, element.vr, detail)


def _failed(name: str, vr: str, detail: str) -> str:
    return f"Dicom element '{name}' failed validation for VR '{vr}': {detail}"


def _dictionary_vr(tag: int) -> str | None:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return None


def _minimum_binary(element: Element) -> str | None:
    size = _FIXED.get(element.vr)
    if size is not None and len(element.value or b"") < size:
        return f"Value length is not {size}."
    return None


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
        if "\\" in value or _CONTROL_BUT_ESC.search(value):
            return "Value contains invalid character."
    if vr == "PN":
        return _minimum_name(value)
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
        if _CONTROL_BUT_ESC.search(group):
            return "Value contains invalid character."
        if group.count("^") > 4:
            return "Value contains more than 5 components."
    return None


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


def full(elements: list[Element], *, skip: frozenset[int], big_endian: bool) -> Iterator[tuple[int, str]]:
    """Every attribute that breaks fo-dicom's rules, nested ones included, as (tag, message); not the skipped ones."""
    stack = [(elements, Text())]
    while stack:
        dataset, outer = stack.pop()
        text = text_of(dataset, outer)
        for element in dataset:
            if element.vr == "SQ":
                stack.extend((item, text) for item in element.items or ())
            elif element.tag not in skip:
                message = _full(element, text, big_endian=big_endian)
                if message is not None:
                    yield element.tag, message


def _full(element: Element, text: Text, *, big_endian: bool) -> str | None:
    vr = element.vr
    if not element.value:
        return None
    rule = _RULES.get(vr)
    if vr in TEXT_VRS:
        whole = text.decode(element.value, vr).rstrip("\0")
        strings = [part.rstrip(" ") for part in whole.split("\\")] if vr in SPLIT_VRS else [whole]
        if rule is not None:
            for value in strings:
                detail = rule(value) if value else None
                if detail is not None:
                    return f'Content "{value}" does not validate VR {vr}: {detail}'
        count = len(strings) if whole else 0
    elif is_number(vr):
        if len(element.value) % width_of(vr):
            return None
        count = len(element.value) // width_of(vr)
        strings = []
    else:
        return None
    limits = _multiplicity(element.tag)
    if limits is None or vr == "UC" or not count:
        return None
    least, most, step, words = limits
    if count < least or (most and count > most) or (step > 1 and count % step):
        shown = "\\".join(strings) or "\\".join(map(str, numbers_of(element, big_endian=big_endian)[:16]))
        return (
            f'Content "{shown}" does not validate VR {vr}: '
            f"Number of items {count} does not match ValueMultiplicity {words}"
        )
    return None


@lru_cache(maxsize=8192)
def _multiplicity(tag: int) -> tuple[int, int, int, str] | None:
    # (least, most or 0, multiple of, as written); None where nothing is checked.
    if (tag >> 16) & 1 or tag & 0xFFFF == 0:
        return None
    try:
        words = dictionary_VM(tag)
    except KeyError:
        return None
    words = words.split(" or ")[0]
    least, _, most = words.partition("-")
    if not most:
        return int(least), int(least), 1, words
    if most == "n":
        return int(least), 0, 1, words
    if most.endswith("n"):
        return int(least), 0, int(most[:-1]), words
    return int(least), int(most), 1, words


def _ae(value: str) -> str | None:
    if len(value) > 16:
        return "value exceeds maximum length of 16 characters"
    if not value.strip():
        return "value may not consist only of spaces"
    return "value contains invalid control character" if _CONTROL.search(value) else None


_AS = re.compile(r"[0-9]{3}[DWMY]\Z")


def _as(value: str) -> str | None:
    return None if _AS.match(value) else "value does not have pattern 000[DWMY]"


_CS = re.compile(r"[A-Z0-9_ ]*\Z")


def _cs(value: str) -> str | None:
    if len(value) > 16:
        return "value exceeds maximum length of 16 characters"
    if _CS.match(value):
        return None
    return "value contains invalid character. Only uppercase character, digits, space and underscore alre allowed"


_DA = re.compile(r"[0-9]{8}\Z")


def _da(value: str) -> str | None:
    parts = value.split("-")
    if len(parts) > 2:
        return "value contains too many range separators '-'"
    for part in parts:
        day = part.rstrip(" ")
        if not day:
            continue
        if not _DA.match(day):
            return "one of the date values does not match the pattern YYYYMMDD"
        if int(day[4:6]) > 12:
            return "month component exceeds the value 12"
        if int(day[6:8]) > 31:
            return "day component exceeds the value 31"
    return None


_DS = re.compile(r"[+-]?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))([eE][-+]?[0-9]+)?\Z")


def _ds(value: str) -> str | None:
    if len(value) > 16:
        return "value exceeds maximum length of 16 characters"
    return None if _DS.match(value.strip()) else "value is no decimal string"


_DT_PATTERN = re.compile(r"[0-9]{4}(?:[0-9]{2}){0,4}\Z|[0-9]{14}(?:\.[0-9]{1,6})?\Z")
_OFFSET = re.compile(r"[0-9]{4}\Z")


def _dt(value: str) -> str | None:
    if "-0000" in value:
        return "negative UTC hours component with value -0000 is not allowed"
    if value.strip() == "-":
        return "both dateTime components in range cannot be empty"
    parts = value.split("-")
    if len(parts) > 4:
        return "value contains too many range separators '-'"
    joined = _joined_offsets(parts)
    if joined is None:
        return "value is in invalid range format"
    for part in joined:
        detail = _one_dt(part.rstrip(" "))
        if detail is not None:
            return detail
    return None


def _joined_offsets(parts: list[str]) -> list[str] | None:
    # A minus may part a range or begin an offset of up to 12 hours; fo-dicom decides by looking.
    def is_offset(part: str) -> bool:
        return _OFFSET.match(part) is not None and int(part) <= 1200

    if len(parts) == 4:
        return [f"{parts[0]}-{parts[1]}", f"{parts[2]}-{parts[3]}"]
    if len(parts) == 3:
        if is_offset(parts[1]):
            return [f"{parts[0]}-{parts[1]}", parts[2]]
        return [parts[0], f"{parts[1]}-{parts[2]}"] if is_offset(parts[2]) else None
    if len(parts) == 2 and is_offset(parts[1]):
        return [f"{parts[0]}-{parts[1]}"]
    return parts


def _one_dt(value: str) -> str | None:
    if not value:
        return None
    digits, *offsets = re.split("[+-]", value)
    if len(offsets) > 1:
        return "value contains too many UTC separators '+' or '-'"
    if offsets:
        if not _OFFSET.match(offsets[0]):
            return "value does not match the UTC pattern &ZZXX"
        most, sign = (14, "positive") if "+" in value else (12, "negative")
        if int(offsets[0][:2]) > most:
            return f"{sign} UTC hours component exceeds {most} (allowed range is -1200 to +1400)"
        if int(offsets[0][2:]) > 59:
            return "UTC minutes component exceeds 59"
    if not _DT_PATTERN.match(digits):
        return "value does not mach pattern YYYY[MM[DD[HH[MM[SS[.F{1-6}]]]]]]"
    for name, at, most in (
        ("seconds", 12, 60),
        ("minutes", 10, 59),
        ("hours", 8, 23),
        ("day", 6, 31),
        ("month", 4, 12),
    ):
        if len(digits) >= at + 2:
            number = int(digits[at : at + 2])
            if number > most:
                return f"{name} component exceeds {most}"
            if number == 0 and at in (4, 6):
                return f"{name} component cannot be 0"
    return None


_IS = re.compile(r"[+-]?[0-9]+\Z")


def _is(value: str) -> str | None:
    stripped = value.strip(" ")
    if not _IS.match(stripped):
        return "value is not an integer string"
    # Python makes no number of thousands of digits.
    fits = len(stripped) < 1000 and -(1 << 31) <= int(stripped) < 1 << 31
    return None if fits else "value too large to fit 32 bit integer"


def _limited(longest: int, *, control_free: bool = True) -> Callable[[str], str | None]:
    def rule(value: str) -> str | None:
        if len(value) > longest:
            return f"value exceeds maximum length of {longest} characters"
        if control_free and _CONTROL_BUT_ESC.search(value):
            return "value contains invalid character"
        return None

    return rule


def _pn(value: str) -> str | None:
    groups = value.split("=")
    if len(groups) > 3:
        return "value contains too many groups"
    for group in groups:
        if len(group) > 64:
            return "value exceeds maximum length of 64 characters"
        if _CONTROL_BUT_ESC.search(group):
            return "value contains invalid control character"
    return "value contains too many components" if any(group.count("^") > 4 for group in groups) else None


_TM_PATTERN = re.compile(r"[0-9]{2}(?:[0-9]{2}){0,2}\Z|[0-9]{6}\.[0-9]{1,6}\Z")


def _tm(value: str) -> str | None:
    parts = value.split("-")
    if len(parts) > 2:
        return "value contains too many range separators '-'"
    for part in parts:
        time = part.rstrip(" ")
        if not time:
            continue
        if not _TM_PATTERN.match(time):
            return "value does not mach pattern HH or HHMM or HHMMSS or HHMMSS.F{1-6}"
        for name, at, most in (("hour", 0, 23), ("minutes", 2, 59), ("seconds", 4, 60)):
            if len(time) >= at + 2 and int(time[at : at + 2]) > most:
                return f"{name} component exceeds {most}"
    return None


_UI_CHARACTERS = re.compile(r"[0-9.]*\Z")


def _ui(value: str) -> str | None:
    uid = value.rstrip(" \0")
    if not uid:
        return None
    if len(uid) > 64:
        return "value exceeds maximum length of 64 characters"
    if not _UI_CHARACTERS.match(uid):
        return "value contains invalid characters other than '0'-'9' and '.'"
    if uid.startswith("0") or re.search(r"\.0[0-9]", uid):
        return "components must not have leading zeros"
    return "a component can not be empty" if uid.startswith(".") or ".." in uid or uid.endswith(".") else None


_RULES: dict[str, Callable[[str], str | None]] = {
    "AE": _ae,
    "AS": _as,
    "CS": _cs,
    "DA": _da,
    "DS": _ds,
    "DT": _dt,
    "IS": _is,
    "LO": _limited(64),
    "LT": _limited(10240, control_free=False),
    "PN": _pn,
    "SH": _limited(16),
    "ST": _limited(1024, control_free=False),
    "TM": _tm,
    "UI": _ui,
}


def rule_of(vr: str) -> Callable[[str], str | None] | None:
    """The full rule of a text VR for one value, None where there is none."""
    return _RULES.get(vr)
