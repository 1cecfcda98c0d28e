"""DICOM JSON (PS3.18 Annex F): written as fo-dicom writes it, and read of what clients send."""

from __future__ import annotations

import json
import math
import re
from operator import itemgetter
from struct import Struct, iter_unpack, pack
from typing import Any

from ..errors import SYNTAX, Problem
from .dictionary import tag_of
from .values import CODED_VRS, NUMBER_VRS, TEXT_VRS, DataSet, Text, numbers_of, strings_of, text_of
from .walk import BULK_VRS, Element

Json = dict[str, Any]

_UTF_8 = Text(["ISO_IR 192"])
_BY_TAG = itemgetter(0)
_DECIMAL = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*\Z")
_INTEGER = re.compile(r"\s*[+-]?\d+\s*\Z")
_FLOAT = Struct("<f")
_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def json_bytes(dataset: Json) -> bytes:
    """The JSON text of a data set, its keys ascending."""
    text = json.dumps(dict(sorted(dataset.items())), separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def element(vr: str, values: list[Any]) -> Json:
    return {"vr": vr, "Value": values} if values else {"vr": vr}


def person_name(value: str) -> Json:
    """A person name as DICOM JSON's object of component groups."""
    groups = value.split("=")
    return {name: group for name, group in zip(_NAME_GROUPS, groups, strict=False) if group}


def to_json(dataset: DataSet, *, without: frozenset[int] = frozenset()) -> Json:
    """A data set as DICOM JSON without bulk, group lengths and the given tags; keys ascending."""
    return _to_json(dataset.elements, dataset.text, big_endian=dataset.big_endian, without=without)


def _to_json(elements: list[Element], text: Text, *, big_endian: bool, without: frozenset[int] = frozenset()) -> Json:
    answer: Json = {}
    for each in sorted(elements, key=_BY_TAG):
        tag, vr = each.tag, each.vr
        if vr in BULK_VRS or tag & 0xFFFF == 0 or tag in without:
            continue
        if vr == "SQ":
            items = [_to_json(item, text_of(item, text), big_endian=big_endian) for item in each.items or ()]
            answer[f"{tag:08X}"] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
            continue
        values = json_values(each, text, big_endian=big_endian)
        answer[f"{tag:08X}"] = {"vr": vr, "Value": values} if values else {"vr": vr}
    return answer


def json_values(element: Element, text: Text, *, big_endian: bool) -> list[Any]:
    """The values of one element that is neither bulk nor a sequence, as JSON."""
    vr = element.vr
    if vr in NUMBER_VRS:
        numbers = numbers_of(element, big_endian=big_endian)
        return [_finite(_shortest(number) if vr == "FL" else number) for number in numbers]
    if vr == "AT":
        value = element.value or b""
        order = ">HH" if big_endian else "<HH"
        return [f"{group:04X}{number:04X}" for group, number in iter_unpack(order, value[: len(value) & ~3])]
    strings = strings_of(element, text)
    if vr == "PN":
        return [person_name(value) or None for value in strings]
    if vr == "DS":
        return [_decimal(value) for value in strings]
    if vr == "IS":
        return [int(value) if _is_integer(value) else value or None for value in strings]
    return [value or None for value in strings]


def from_json(metadata: Json) -> DataSet:
    """A data set of DICOM JSON as elements again, in UTF-8 and with little endian numbers; sequences have no items."""
    elements = [
        Element(int(key, 16), entry["vr"], _value_of(entry["vr"], entry.get("Value", [])), None)
        for key, entry in metadata.items()
    ]
    return DataSet(elements, text=_UTF_8)


def _value_of(vr: str, values: list[Any]) -> bytes | None:
    if vr in NUMBER_VRS:
        whole = vr not in ("FD", "FL")
        return b"".join(pack("<" + NUMBER_VRS[vr], value if whole else float(value)) for value in values)
    if vr not in TEXT_VRS:
        return None
    text = "\\".join(map(_plain, values))
    return text.encode("utf-8" if vr in CODED_VRS else "latin-1", "replace")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "=".join(str(value.get(group) or "") for group in _NAME_GROUPS).rstrip("=")
    return "" if value is None else str(value)


def _shortest(number: float) -> float:
    # What .NET writes of 32 bits: the digits it takes to tell the number from its neighbours, not those of a double.
    for digits in (6, 7, 8):
        short = float(f"{number:.{digits}g}")
        if _FLOAT.pack(short) == _FLOAT.pack(number):
            return short
    return float(f"{number:.9g}")


def _finite(number: float) -> float | str:
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return number


def _is_integer(value: str) -> bool:
    return len(value) < 18 and _INTEGER.match(value) is not None


def _decimal(value: str) -> int | float | str | None:
    if _is_integer(value):
        return int(value)
    if _DECIMAL.match(value):
        number = float(value)
        return number if math.isfinite(number) else value
    return value or None


_NUMBERS = frozenset({"FL", "FD", "SL", "SS", "UL", "US"})
_NUMBERS_OR_TEXTS = frozenset({"IS", "DS", "SV", "UV"})
_TEXTS = frozenset({"AE", "AS", "AT", "CS", "DA", "DT", "LO", "LT", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})


def dataset_of(given: Any) -> dict[str, Any]:
    """A data set of DICOM JSON (PS3.18 Annex F) as the service reads it, keys in uppercase hex; raises Problem 400.

    Keys may be keywords too: the service's own client writes them. An element needs a VR that exists; a value of
    another kind than its VR's makes the body no DICOM JSON, but a text VR leaves out what is no text.
    """
    if not isinstance(given, dict):
        raise Problem(400, SYNTAX)
    found: dict[str, Any] = {}
    for name, element in given.items():
        tag = tag_of(name) if not re.fullmatch(r"[0-9A-Fa-f]{8}", name) else int(name, 16)
        if tag is None or not isinstance(element, dict) or f"{tag:08X}" in found:
            raise Problem(400, SYNTAX)
        found[f"{tag:08X}"] = _element_of(element)
    return found


def _element_of(given: dict[str, Any]) -> dict[str, Any]:
    vr, values = given.get("vr"), given.get("Value")
    if not isinstance(vr, str):
        raise Problem(400, SYNTAX)
    if vr in BULK_VRS:
        return given
    if vr not in _TEXTS | _NUMBERS | _NUMBERS_OR_TEXTS | {"PN", "SQ"}:
        raise Problem(400, "Unsupported value representation")
    if values is None:
        return {"vr": vr}
    if not isinstance(values, list):
        raise Problem(400, SYNTAX)
    if vr == "SQ":
        values = [None if item is None else dataset_of(item) for item in values]
    elif vr in _TEXTS:
        values = [value for value in values if value is None or isinstance(value, str)]
    elif not all(_fits(value, vr) for value in values):
        raise Problem(400, SYNTAX)
    return element(vr, values)


def _fits(value: Any, vr: str) -> bool:
    if vr == "PN":
        return value is None or (isinstance(value, dict) and all(isinstance(text, str) for text in value.values()))
    if isinstance(value, str):
        return value in {"NaN", "Infinity", "-Infinity"} or (
            vr in _NUMBERS_OR_TEXTS and bool(re.fullmatch(r"\s*[+-]?[\d.]+([eE][+-]?\d+)?\s*", value))
        )
    return isinstance(value, int | float) and not isinstance(value, bool)
