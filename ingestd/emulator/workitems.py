"""UPS-RS: workitems of a worklist (PS3.18 §11; facts page 7.3)."""

from __future__ import annotations

import json
import re
import sqlite3
import uuid
from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from .answers import raw_json
from .call import Action, Body, Call, Route, boolean, number, route
from .errors import Problem
from .folding import fold, matches_fuzzily
from .given import json_of, tag_of
from .index import next_numbers, one
from .validate import is_valid_uid

_TRANSACTION, _STATE, _SOP_UID, _SOP_CLASS = "00081195", "00741000", "00080018", "00080016"
_UPS_CLASS = "1.2.840.10008.5.1.4.34.6.1"
_SCHEDULED, _IN_PROGRESS, _COMPLETED, _CANCELED = "SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"
_STATES = frozenset({_SCHEDULED, _IN_PROGRESS, _COMPLETED, _CANCELED})
_NOT_FOUND = "The specified workitem cannot be found."
_EXISTS = "The workitem already exists."
_DICOM_JSON = {"body": Body.SMALL, "consumes": ("application/dicom+json", "application/json")}

# PS3.4 Table CC.2.5-3, as far as the service enforces it: what a new workitem must have, and what must have a value.
_REQUIRED_PRESENT = (
    "00404005",  # ScheduledProcedureStepStartDateTime
    "00741200",  # ScheduledProcedureStepPriority
    "00741204",  # ProcedureStepLabel
    "00404041",  # InputReadinessState
)
_REQUIRED_VALUE = ("00404005", "00741200", "00741204", "00404041")
_MUST_BE_EMPTY = (_TRANSACTION,)
# What an update may not touch (PS3.4 Table CC.2.5-3: not allowed in N-SET).
_FIXED = frozenset({
    _SOP_CLASS, _SOP_UID, _STATE, "00100010", "00100020", "00100030", "00100040", "00380010", "00081080",
    "00081084", "0040A370",
})  # fmt: skip


def _datasets(call: Call) -> dict[str, Any]:
    """The first data set of the request's array; raises Problem 400."""
    given = json_of(call)
    first = given[0] if isinstance(given, list) and given else given
    if not isinstance(first, dict) or not all(
        re.fullmatch(r"[0-9A-Fa-f]{8}", key) and isinstance(value, dict) for key, value in first.items()
    ):
        raise Problem(400, "The request body must be an array with one DICOM JSON data set.")
    return {key.upper(): value for key, value in first.items()}


def first_value(dataset: dict[str, Any], key: str) -> Any:
    """The first value of an element of DICOM JSON, None where there is none."""
    values = dataset.get(key, {}).get("Value") or [None]
    return values[0]


def _url(call: Call, uid: str) -> str:
    return f"{call.base_url}/workitems/{uid}"


def _bare_parameter(call: Call) -> str | None:
    # The UID is the *name* of the first query parameter, as in ``/workitems?1.2.3``.
    text = call.request.url.query.split("&")[0]
    return text.partition("=")[0] or None


def _find(call: Call, tx: sqlite3.Connection, *, missing: int = 404) -> tuple[sqlite3.Row, dict[str, Any]]:
    uid = call.uid("workitem")
    row = one(tx, "SELECT * FROM workitem WHERE partition_key = ? AND uid = ?", (call.partition_key, uid))
    if row is None:
        raise Problem(missing, _NOT_FOUND)
    return row, json.loads(row["json"])


def _save(
    tx: sqlite3.Connection, row: sqlite3.Row, dataset: dict[str, Any], state: str, transaction: str | None
) -> None:
    tx.execute(
        "UPDATE workitem SET json = ?, state = ?, transaction_uid = ?, watermark = ? WHERE key = ?",
        (_dump(dataset), state, transaction, next_numbers(tx, "workitem_watermark", 1), row["key"]),
    )


def _dump(dataset: dict[str, Any]) -> bytes:
    return json.dumps(dict(sorted(dataset.items())), separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def post_workitem(call: Call) -> Response:
    """``POST /workitems?{uid}``: a new workitem, SCHEDULED."""
    dataset = _datasets(call)
    given = _bare_parameter(call)
    uid = given or first_value(dataset, _SOP_UID) or f"2.25.{uuid.uuid4().int}"
    if not isinstance(uid, str) or not is_valid_uid(uid):
        raise Problem(400, f"The value '{uid}' is not a valid DICOM identifier.")
    inside = first_value(dataset, _SOP_UID)
    if given and inside and inside != given:
        raise Problem(400, "The SOP Instance UID of the data set is not the one of the query.")
    for key in _REQUIRED_PRESENT:
        if key not in dataset or (key in _REQUIRED_VALUE and first_value(dataset, key) is None):
            raise Problem(400, f"The required tag '({key[:4].lower()},{key[4:].lower()})' is missing.")
    for key in _MUST_BE_EMPTY:
        if first_value(dataset, key) is not None:
            raise Problem(400, f"The tag '({key[:4]},{key[4:]})' must not have a value.")
    state = first_value(dataset, _STATE) or _SCHEDULED
    if state != _SCHEDULED:
        raise Problem(400, "A new workitem must be SCHEDULED.")
    dataset[_SOP_UID] = {"vr": "UI", "Value": [uid]}
    dataset.setdefault(_SOP_CLASS, {"vr": "UI", "Value": [_UPS_CLASS]})
    dataset[_STATE] = {"vr": "CS", "Value": [_SCHEDULED]}
    with call.service.index.write() as tx:
        try:
            tx.execute(
                "INSERT INTO workitem (partition_key, uid, state, json, watermark) VALUES (?, ?, ?, ?, ?)",
                (call.partition_key, uid, _SCHEDULED, _dump(dataset), next_numbers(tx, "workitem_watermark", 1)),
            )
        except sqlite3.IntegrityError as error:
            raise Problem(409, _EXISTS) from error
    return Response(status_code=201, headers={"Location": _url(call, uid), "Content-Location": _url(call, uid)})


def get_workitem(call: Call) -> Response:
    """``GET /workitems/{workitem}``: without its Transaction UID, which is its owner's secret."""
    with call.service.index.read() as tx:
        _, dataset = _find(call, tx)
    dataset.pop(_TRANSACTION, None)
    return raw_json([_dump(dataset)])


def update_workitem(call: Call) -> Response:
    """``POST /workitems/{workitem}?{transaction}``."""
    change = _datasets(call)
    transaction = _bare_parameter(call)
    if transaction is not None and not is_valid_uid(transaction):
        raise Problem(400, f"The value '{transaction}' is not a valid DICOM identifier.")
    with call.service.index.write() as tx:
        row, dataset = _find(call, tx)
        if row["state"] in (_COMPLETED, _CANCELED):
            raise Problem(409, f"The workitem is already {row['state']}.")
        if row["state"] == _IN_PROGRESS and transaction is None:
            raise Problem(400, "The Transaction UID is missing.")
        if row["state"] == _IN_PROGRESS and transaction != row["transaction_uid"]:
            raise Problem(409, "The Transaction UID is not the one of the workitem.")
        if row["state"] == _SCHEDULED and transaction is not None:
            raise Problem(409, "The workitem is SCHEDULED and has no Transaction UID.")
        skipped = sorted(key for key in change if key in _FIXED or key == _TRANSACTION)
        dataset |= {key: value for key, value in change.items() if key not in skipped}
        _save(tx, row, dataset, row["state"], row["transaction_uid"])
    headers = {"Content-Location": _url(call, row["uid"])}
    if skipped:
        names = ", ".join(f"({key[:4].lower()},{key[4:].lower()})" for key in skipped)
        headers["Warning"] = (
            f'299 {call.request.url.netloc} "The workitem was updated without attributes that cannot be changed: '
            f'{names}."'
        )
    return Response(status_code=200, headers=headers)


def change_state(call: Call) -> Response:
    """``PUT /workitems/{workitem}/state``."""
    change = _datasets(call)
    state, transaction = first_value(change, _STATE), first_value(change, _TRANSACTION)
    if state not in _STATES or not isinstance(transaction, str) or not is_valid_uid(transaction):
        raise Problem(400, "The request must have a Procedure Step State and a Transaction UID.")
    with call.service.index.write() as tx:
        row, dataset = _find(call, tx)
        warning = _judge_change(row, str(state), transaction)
        if warning is None:
            dataset[_STATE] = {"vr": "CS", "Value": [state]}
            dataset[_TRANSACTION] = {"vr": "UI", "Value": [transaction]}
            _save(tx, row, dataset, str(state), transaction)
    headers = {} if warning is None else {"Warning": f'299 {call.request.url.netloc} "{warning}"'}
    return Response(status_code=200, headers=headers)


def _judge_change(row: sqlite3.Row, state: str, transaction: str) -> str | None:
    """None where the change may be made, a warning where it was made before; raises Problem."""
    now = row["state"]
    if now in (_COMPLETED, _CANCELED):
        if now == state and transaction == row["transaction_uid"]:
            return f"The UPS is already in the requested state of {state}."
        raise Problem(409, f"The workitem is already {now}.")
    if now == _SCHEDULED:
        if state != _IN_PROGRESS:
            # PS3.4 Table CC.1.1-2: C310H, the UPS is not yet in progress.
            raise Problem(409, f"The workitem is SCHEDULED and cannot become {state}.")
        return None
    if transaction != row["transaction_uid"]:
        raise Problem(409, "The Transaction UID is not the one of the workitem.")
    if state in (_SCHEDULED, _IN_PROGRESS):
        raise Problem(409, f"The workitem is IN PROGRESS and cannot become {state}.")
    return None


def request_cancellation(call: Call) -> Response:
    """``POST /workitems/{workitem}/cancelrequest``: done at once for a SCHEDULED workitem, refused for others."""
    reason = {} if call.body.strip() in (b"", b"[]") else _datasets(call)
    with call.service.index.write() as tx:
        row, dataset = _find(call, tx)
        if row["state"] != _SCHEDULED:
            headers = {}
            if row["state"] == _CANCELED:
                warning = "The UPS is already in the requested state of CANCELED."
                headers["Warning"] = f'299 {call.request.url.netloc} "{warning}"'
            raise Problem(409, f"The workitem is {row['state']} and cannot be canceled.", headers=headers)
        dataset |= {key: value for key, value in reason.items() if key not in _FIXED}
        dataset[_STATE] = {"vr": "CS", "Value": [_CANCELED]}
        _save(tx, row, dataset, _CANCELED, None)
    return Response(status_code=202)


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
    "ProcedureStepState": (_STATE,),
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
                    found.append(_dump(_returned(dataset, wanted, everything=everything)))
                if len(found) == limit:
                    break
    return raw_json(found) if found else Response(status_code=204)


_DEFAULT_FIELDS = frozenset(path[0] for path in _FILTERS.values()) | {
    _SOP_CLASS, _SOP_UID, "00741200", "00741204", "00404041", "00404018", "00404021", "00081080", "00100030",
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
    return {key: value for key, value in dataset.items() if key != _TRANSACTION and (everything or key in wanted)}


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


ROUTES: list[Route] = [
    route("POST", "workitems", post_workitem, Action.WRITE, json_answer=True, creates_partition=True, **_DICOM_JSON),
    route("GET", "workitems", search_workitems, Action.READ, json_answer=True),
    route("GET", "workitems/{workitem}", get_workitem, Action.READ, json_answer=True),
    route("POST", "workitems/{workitem}", update_workitem, Action.WRITE, json_answer=True, **_DICOM_JSON),
    route("PUT", "workitems/{workitem}/state", change_state, Action.WRITE, **_DICOM_JSON),
    route("POST", "workitems/{workitem}/cancelrequest", request_cancellation, Action.WRITE, **_DICOM_JSON),
]
