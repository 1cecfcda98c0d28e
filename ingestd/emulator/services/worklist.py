"""UPS-RS: searching workitems (PS3.18 §11.9; AZURE.md 7.3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from ..dicom.collation import fold, matches_fuzzily, parse_datetime
from ..dicom.dicom_json import json_bytes
from ..dicom.dictionary import tag_of
from ..http.answers import raw_json
from ..http.request import Action, Route, ServiceRequest, route
from . import query
from .workitems import SOP_CLASS, SOP_UID, STATE, TRANSACTION

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


def search_workitems(request: ServiceRequest) -> Response:
    """``GET /workitems``: newest first."""
    limit, offset = query.page(request)
    fuzzy = request.flag("FuzzyMatching", default=False)
    tests: dict[str, Test] = {}
    for name, value in query.filters(request).items():
        known = _known(name)
        query.check_filled(name, value)
        if known in tests:
            raise query.named_twice(name)
        tests[known] = _test(known, value, fuzzy=fuzzy)
    also = query.included(request)
    wanted = None if also is None else _RETURNED | {f"{tag:08X}" for tag in also}
    found: list[bytes] = []
    with request.archive.index.read() as tx:
        rows = tx.execute(
            "SELECT json FROM workitem WHERE partition_key = ? ORDER BY key DESC", (request.partition_key,)
        )
        for row in rows:
            dataset = json.loads(row["json"])
            if all(test(dataset) for test in tests.values()):
                offset -= 1
                if offset < 0:
                    found.append(json_bytes(_returned(dataset, wanted)))
                if len(found) == limit:
                    break
    return raw_json(found) if found else Response(status_code=204)


# PS3.18 §11.9.2 (PS3.4 Table CC.2.5-3, return key type 1 and 2), as the service has it.
_RETURNED = frozenset({
    "00080005", SOP_CLASS, SOP_UID, "00081080", "00081084", "00100010", "00100020", "00100021", "00100024", "00100030",
    "00100040", "00101002", "00102000", "001021C0", "0020000D", "00380010", "00380014", "00380050", "00404005",
    "00404018", "00404021", "00404025", "00404026", "00404027", "00404034", "00404041", "0040A370", STATE, "00741002",
    "00741200", "00741202", "00741204", "00741210",
})  # fmt: skip


def _returned(dataset: dict[str, Any], wanted: frozenset[str] | None) -> dict[str, Any]:
    return {key: value for key, value in dataset.items() if key != TRANSACTION and (wanted is None or key in wanted)}


def _known(name: str) -> str:
    known = _BY_PATH.get(tuple(f"{tag_of(part) or 0:08X}" for part in name.split(".")))
    if known is None:
        raise query.unqueryable(name)
    return known


def _test(known: str, value: str, *, fuzzy: bool) -> Test:
    path = _FILTERS[known]
    if known == "ScheduledProcedureStepStartDateTime":
        return _instant_test(path, known, value)
    if known == "PatientName":
        folded = fold(value, "PN")
        if fuzzy:
            return lambda dataset: any(matches_fuzzily(fold(each, "PN"), folded) for each in _names(dataset))
        return lambda dataset: folded in {fold(each, "PN") for each in _names(dataset)}
    vr = "UI" if known == "StudyInstanceUID" else "LO"
    wanted = fold(value, vr)
    return lambda dataset: wanted in {fold(str(each), vr) for each in _values(dataset, path)}


def _instant_test(path: tuple[str, ...], name: str, value: str) -> Test:
    def parsed(text: str) -> str:
        return query.parse_instant(text, name)

    ends = query.range_of(value, parsed, "DateTime")
    least, most = (parsed(value),) * 2 if ends is None else (ends[0] or "", ends[1] or "9" * 20)

    def test(dataset: dict[str, Any]) -> bool:
        found = (parse_datetime(str(each)) for each in _values(dataset, path))
        return any(each is not None and least <= each <= most for each in found)

    return test


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
