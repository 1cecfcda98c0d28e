"""fo-dicom's rules of each VR and multiplicity, which version 2 turns into warnings (AZURE.md 1.7; PS3.5 §6.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from pydicom.datadict import dictionary_VM

from .dictionary import is_private
from .minimum_rules import CONTROL_BUT_ESC, CONTROLS
from .values import NUMBER_VRS, SPLIT_VRS, TEXT_VRS, WIDTHS, DataSet, Text, numbers_of, text_of
from .walk import Element

Rule = Callable[[str], str | None]  # what is wrong with a value that is not empty
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def broken_rules(dataset: DataSet, *, skip: frozenset[int]) -> Iterator[tuple[int, str]]:
    """Every attribute that breaks a rule, nested ones included, as (tag, message); not the skipped ones."""
    stack = [(dataset.elements, dataset.text)]
    while stack:
        elements, outer = stack.pop()
        text = text_of(elements, outer)
        for element in elements:
            if element.vr == "SQ":
                stack.extend((item, text) for item in element.items or ())
            elif element.tag not in skip and element.value:
                message = _broken_by(element, element.value, text, big_endian=dataset.big_endian)
                if message is not None:
                    yield element.tag, message


def _broken_by(element: Element, value: bytes, text: Text, *, big_endian: bool) -> str | None:
    vr = element.vr
    strings: list[str] = []
    if vr in TEXT_VRS:
        whole = text.decode(value, vr).rstrip("\0")
        strings = [part.rstrip(" ") for part in whole.split("\\")] if vr in SPLIT_VRS else [whole]
        for each in strings:
            message = broken_text_rule(vr, each)
            if message is not None:
                return message
        count = len(strings) if whole else 0
    elif vr in NUMBER_VRS and len(value) % WIDTHS[vr] == 0:
        count = len(value) // WIDTHS[vr]
    else:
        return None
    limits = _multiplicity(element.tag)
    if limits is None or vr == "UC" or not count:
        return None
    least, most, step, words = limits
    if count < least or (most and count > most) or (step > 1 and count % step):
        shown = "\\".join(strings) or "\\".join(map(str, numbers_of(element, big_endian=big_endian)[:16]))
        return _message(shown, vr, f"Number of items {count} does not match ValueMultiplicity {words}")
    return None


def broken_text_rule(vr: str, value: str) -> str | None:
    """The message for a text value that breaks its VR's rule, None for one that does not."""
    rule = _RULES.get(vr)
    detail = rule(value) if rule is not None and value else None
    return None if detail is None else _message(value, vr, detail)


def _message(shown: str, vr: str, detail: str) -> str:
    return f'Content "{shown}" does not validate VR {vr}: {detail}'


@lru_cache(maxsize=8192)
def _multiplicity(tag: int) -> tuple[int, int, int, str] | None:
    # (least, most or 0, multiple of, as written); None where nothing is checked.
    if is_private(tag) or tag & 0xFFFF == 0:
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


def _range_of(rule: Rule) -> Rule:
    def of_both(value: str) -> str | None:
        parts = value.split("-")
        return "value contains too many range separators '-'" if len(parts) > 2 else _first_broken(parts, rule)

    return of_both


def _first_broken(parts: list[str], rule: Rule) -> str | None:
    for part in parts:
        text = part.rstrip(" ")
        if text and (detail := rule(text)) is not None:
            return detail
    return None


def _beyond(digits: str, *limits: tuple[str, int, int, int]) -> str | None:
    # A component's name, its place, its least and its greatest value.
    for name, at, least, most in limits:
        if len(digits) >= at + 2:
            number = int(digits[at : at + 2])
            if number > most:
                return f"{name} component exceeds {most}"
            if number < least:
                return f"{name} component cannot be 0"
    return None


_DA = re.compile(r"[0-9]{8}\Z")


def _da(day: str) -> str | None:
    if not _DA.match(day):
        return "one of the date values does not match the pattern YYYYMMDD"
    if int(day[4:6]) > 12:
        return "month component exceeds the value 12"
    return "day component exceeds the value 31" if int(day[6:8]) > 31 else None


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
    return "value is in invalid range format" if joined is None else _first_broken(joined, _one_dt)


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
    seconds, minutes, hours = ("seconds", 12, 0, 60), ("minutes", 10, 0, 59), ("hours", 8, 0, 23)
    return _beyond(digits, seconds, minutes, hours, ("day", 6, 1, 31), ("month", 4, 1, 12))


_IS = re.compile(r"[+-]?[0-9]+\Z")


def _is(value: str) -> str | None:
    stripped = value.strip(" ")
    if not _IS.match(stripped):
        return "value is not an integer string"
    # Python makes no number of thousands of digits.
    fits = len(stripped) < 1000 and -(1 << 31) <= int(stripped) < 1 << 31
    return None if fits else "value too large to fit 32 bit integer"


def _text(longest: int = 0, pattern: str = "", detail: str = "") -> Rule:
    shape = re.compile(pattern)

    def rule(value: str) -> str | None:
        if longest and len(value) > longest:
            return f"value exceeds maximum length of {longest} characters"
        return detail if pattern and not shape.fullmatch(value) else None

    return rule


def _pn(value: str) -> str | None:
    groups = value.split("=")
    if len(groups) > 3:
        return "value contains too many groups"
    for group in groups:
        if len(group) > 64:
            return "value exceeds maximum length of 64 characters"
        if CONTROL_BUT_ESC.search(group):
            return "value contains invalid control character"
    return "value contains too many components" if any(group.count("^") > 4 for group in groups) else None


_TM_PATTERN = re.compile(r"[0-9]{2}(?:[0-9]{2}){0,2}\Z|[0-9]{6}\.[0-9]{1,6}\Z")


def _tm(time: str) -> str | None:
    if not _TM_PATTERN.match(time):
        return "value does not mach pattern HH or HHMM or HHMMSS or HHMMSS.F{1-6}"
    return _beyond(time, ("hour", 0, 0, 23), ("minutes", 2, 0, 59), ("seconds", 4, 0, 60))


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


_NO_CODE = "value contains invalid character. Only uppercase character, digits, space and underscore alre allowed"
_DECIMAL = r"\s*[+-]?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))([eE][-+]?[0-9]+)?\s*"
_RULES: dict[str, Rule] = {
    "AE": _ae,
    "AS": _text(pattern="[0-9]{3}[DWMY]", detail="value does not have pattern 000[DWMY]"),
    "CS": _text(16, "[A-Z0-9_ ]*", _NO_CODE),
    "DA": _range_of(_da),
    "DS": _text(16, _DECIMAL, "value is no decimal string"),
    "DT": _dt,
    "IS": _is,
    "LO": _text(64, f"[^{CONTROLS}]*", "value contains invalid character"),
    "LT": _text(10240),
    "PN": _pn,
    "SH": _text(16, f"[^{CONTROLS}]*", "value contains invalid character"),
    "ST": _text(1024),
    "TM": _range_of(_tm),
    "UI": _ui,
}
