"""What a client names and sends: attributes by keyword or number, bodies as JSON."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from pydicom.datadict import dictionary_has_tag, repeater_has_tag, tag_for_keyword

from ..errors import SYNTAX, Problem
from ..http.request import Call

_MOST_LEVELS = 64  # of arrays and objects in each other, as the service's reader counts them


@lru_cache(maxsize=2048)
def tag_of(name: str) -> int | None:
    """The tag of a keyword (case-sensitive) or of eight hex digits; None where the standard knows no such tag."""
    if not re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        return tag_for_keyword(name)
    tag = int(name, 16)
    is_private = bool(tag >> 16 & 1)
    return tag if is_private or dictionary_has_tag(tag) or repeater_has_tag(tag) else None


def json_of(call: Call) -> Any:
    """The request body as JSON; raises Problem 400 and, without a content type, 415."""
    if call.header("content-type") is None:
        raise Problem(415)
    try:
        given = json.loads(call.body, parse_constant=_refuse)
        json.dumps(given, ensure_ascii=False).encode()  # refuses half a character, which no answer could repeat
    except (ValueError, RecursionError) as error:
        raise Problem(400, SYNTAX) from error
    if _is_deeper(given, _MOST_LEVELS):
        raise Problem(400, SYNTAX)
    return given


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # of Python's JSON, not of anybody else's


def _is_deeper(given: Any, most: int) -> bool:
    level = [given]
    for _ in range(most + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


_NUMBERS = frozenset({"FL", "FD", "SL", "SS", "UL", "US"})
_NUMBERS_OR_TEXTS = frozenset({"IS", "DS", "SV", "UV"})
_BYTES = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
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
    if vr in _BYTES:
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
    return {"vr": vr, "Value": values} if values else {"vr": vr}


def _fits(value: Any, vr: str) -> bool:
    if vr == "PN":
        return value is None or (isinstance(value, dict) and all(isinstance(text, str) for text in value.values()))
    if isinstance(value, str):
        return value in {"NaN", "Infinity", "-Infinity"} or (
            vr in _NUMBERS_OR_TEXTS and bool(re.fullmatch(r"\s*[+-]?[\d.]+([eE][+-]?\d+)?\s*", value))
        )
    return isinstance(value, int | float) and not isinstance(value, bool)
