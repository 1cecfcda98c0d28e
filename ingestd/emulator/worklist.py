"""UPS-RS: searching workitems (PS3.18 §11.9; facts page 7.3)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from .answers import raw_json
from .call import Action, Call, Route, boolean, number, route
from .errors import Problem
from .folding import fold, matches_fuzzily
from .given import tag_of
from .workitems import SOP_CLASS, SOP_UID, STATE, TRANSACTION, dump

Test = Callable[[dict[str, Any]], bool]
# Searchable attributes, as paths of keys into a workitem; a range is allowed for the first date-time only.
_FILTERS: dict[str, tuple[str, ...]] = {
    "PatientName": ("00100010",),
    "PatientID": ("00100020",),
    "ReferencedRequestSequence.AccessionNumber": ("0040A370", "00080050"),
    "ReferencedRequestSequence.RequestedProcedureID": ("0040A370", "00401001"),
    "ScheduledProcedureStepStartDateTime": ("00404005",),
    "ScheduledStationNameCodeSequence.CodeValue": ("00404025", "00080100"),
    "ScheduledStationClassCodeSequence.CodeValue": ("00404026", "00080100"),
    "ScheduledStationGeographicLocationCodeSequence.CodeValue": ("00404027", "00080100"),
    "ProcedureStepState": (STATE,),
    "StudyInstanceUID": ("0020000D",),
}
_BY_PATH = {path: name for name, path in _FILTERS.items()}


def search_workitems(call: Call) -> Response:
    """``GET /workitems``: newest first."""
    limit = number("limit", call.parameter("limit"), default=100, least=1, most=200)
    offset = number("offset", call.parameter("offset"), default=0, least=0, most=(1 << 31) - 1)
    fuzzy = boolean("fuzzymatching", call.parameter("fuzzymatching"), default=False)
    tests = [
        _test(name, value, fuzzy=fuzzy)
        for name, value in call.query
        if name.lower() not in ("limit", "offset", "fuzzymatching", "includefield")
    ]
    wanted, everything = _included(call)
    found: list[bytes] = []
    with call.service.index.read() as tx:
        rows = tx.execute("SELECT json FROM workitem WHERE partition_key = ? ORDER BY key DESC", (call.partition_key,))
        for row in rows:
            dataset = json.loads(row["json"])
            if all(test(dataset) for test in tests):
                offset -= 1
                if offset < 0:
                    found.append(dump(_returned(dataset, wanted, everything=everything)))
                if len(found) == limit:
                    break
    return raw_json(found) if found else Response(status_code=204)


_DEFAULT_FIELDS = frozenset(path[0] for path in _FILTERS.values()) | {
    SOP_CLASS, SOP_UID, "00741200", "00741204", "00404041", "00404018", "00404021", "00081080", "00100030",
    "00100040",
}  # fmt: skip


def _included(call: Call) -> tuple[frozenset[str], bool]:
    wanted, everything = set(_DEFAULT_FIELDS), False
    for name, value in call.query:
        if name.lower() != "includefield":
            continue
        for part in value.split(","):
            if part.strip().lower() == "all":
                everything = True
                continue
            tag = tag_of(part.strip())
            if tag is None:
                raise Problem(400, f"Invalid query: includefield has unknown attribute '{part}'.")
            wanted.add(f"{tag:08X}")
    return frozenset(wanted), everything


def _returned(dataset: dict[str, Any], wanted: frozenset[str], *, everything: bool) -> dict[str, Any]:
    return {key: value for key, value in dataset.items() if key != TRANSACTION and (everything or key in wanted)}


def _test(name: str, value: str, *, fuzzy: bool) -> Test:
    path = tuple(f"{tag_of(part) or 0:08X}" for part in name.split("."))
    known = _BY_PATH.get(path)
    if known is None:
        raise Problem(400, f"Invalid query: unknown query parameter '{name}'.")
    if not value.strip():
        raise Problem(400, f"Invalid query: the value of attribute '{name}' is empty.")
    if known == "ScheduledProcedureStepStartDateTime":
        return _range_test(path, name, value)
    if known == "PatientName":
        folded = fold(value, "PN")
        if fuzzy:
            return lambda dataset: any(matches_fuzzily(fold(each, "PN"), folded) for each in _names(dataset))
        return lambda dataset: folded in {fold(each, "PN") for each in _names(dataset)}
    vr = "UI" if known == "StudyInstanceUID" else "LO"
    wanted = fold(value, vr)
    return lambda dataset: wanted in {fold(str(each), vr) for each in _values(dataset, path)}


def _range_test(path: tuple[str, ...], name: str, value: str) -> Test:
    first, dash, last = value.partition("-")
    for text in (first, last):
        if text and not re.fullmatch(r"\d{4,14}(\.\d{1,6})?", text):
            raise Problem(400, f"Invalid query: specified DateTime value '{text}' is invalid for attribute '{name}'.")
    if not first and not last:
        raise Problem(400, f"Invalid query: the range of attribute '{name}' has neither a beginning nor an end.")
    if not dash:
        return lambda dataset: any(str(each) == first for each in _values(dataset, path))
    least, most = first, last or "9" * 14
    return lambda dataset: any(least <= str(each) and str(each)[: len(most)] <= most for each in _values(dataset, path))


def _names(dataset: dict[str, Any]) -> list[str]:
    return [
        "=".join((each.get("Alphabetic", ""), each.get("Ideographic", ""), each.get("Phonetic", ""))).rstrip("=")
        for each in dataset.get("00100010", {}).get("Value", ())
        if isinstance(each, dict)
    ]


def _values(dataset: dict[str, Any], path: tuple[str, ...]) -> list[Any]:
    values = dataset.get(path[0], {}).get("Value", [])
    if len(path) == 1:
        return [value for value in values if value is not None]
    return [inner for item in values if isinstance(item, dict) for inner in _values(item, path[1:])]


ROUTES: list[Route] = [route("GET", "workitems", search_workitems, Action.READ, json_answer=True)]
