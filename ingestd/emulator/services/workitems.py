"""UPS-RS: making, changing and ending workitems (PS3.18 §11; AZURE.md 7.3); ``worklist.py`` finds them.

What is said of a workitem is a JSON string, since the service gives it to its JSON writer; what ends as an exception
there (a UID that is none, a body that is no JSON) is plain text, as everywhere.
"""

from __future__ import annotations

import json
import re
import sqlite3
import uuid
from typing import Any

from starlette.responses import Response

from ..dicom.validation import is_valid_uid, no_uid, tag_text
from ..errors import SYNTAX, Problem
from ..http.answers import DicomJson
from ..http.request import Action, Body, Call, Route, route
from ..storage.index import next_numbers, now_ticks, one, utc_text
from .body import dataset_of, json_of

TRANSACTION, STATE, SOP_UID, SOP_CLASS = "00081195", "00741000", "00080018", "00080016"
_MODIFIED, _LIST = "00404010", "00741202"  # ScheduledProcedureStepModificationDateTime, WorklistLabel
_UPS_CLASS = "1.2.840.10008.5.1.4.34.6.1"
_SCHEDULED, _IN_PROGRESS, _COMPLETED, _CANCELED = "SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"
_TARGETS = (_IN_PROGRESS, _CANCELED, _COMPLETED)
_NOT_FOUND = "The workitem instance is not found."
_NOT_CLAIMED = "The target URI did not reference a claimed Workitem."
_EXISTS = "The workitem instance already exists. Try creating using a different UID."
_ALREADY = {
    _COMPLETED: "The UPS is already COMPLETED.",
    _CANCELED: "The UPS is already in the requested state of CANCELED.",
}
_DICOM_JSON = {"body": Body.SMALL, "consumes": ("application/dicom+json",)}

# PS3.4 Table CC.2.5-3, as far as the service enforces it here: what a new workitem must have, with a value, in the
# service's order: priority and label of the step, its beginning, whether its input is ready.
_REQUIRED = ("00741200", "00741204", "00404005", "00404041")
# What an update may not touch (PS3.4 Table CC.2.5-3: not allowed in N-SET).
_FIXED = frozenset({
    SOP_CLASS, SOP_UID, STATE, "00100010", "00100020", "00100030", "00100040", "00380010", "00081080",
    "00081084", "0040A370",
})  # fmt: skip


def _dataset(call: Call) -> dict[str, Any]:
    """The first data set of the request's array; raises Problem 400."""
    given = json_of(call)
    if not isinstance(given, list) or not given:
        raise Problem(400, SYNTAX)
    return dataset_of(given[0])


def _refusal(call: Call, status: int, text: str, *, warns: bool = False) -> Problem:
    headers = {"Content-Type": DicomJson.media_type} | (_warning(call, text) if warns else {})
    return Problem(status, json.dumps(text), headers=headers)


def _warning(call: Call, text: str) -> dict[str, str]:
    # The agent is the host alone with a colon (PS3.18 §11.7.3.2 as the service reads it).
    return {"Warning": f'299 {call.request.url.hostname}: "{text}"'}


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


def _find(call: Call, tx: sqlite3.Connection, *, missing: str = _NOT_FOUND) -> tuple[sqlite3.Row, dict[str, Any]]:
    uid = call.uid("workitem")
    row = one(tx, "SELECT * FROM workitem WHERE partition_key = ? AND uid = ?", (call.partition_key, uid))
    if row is None:
        raise _refusal(call, 404, missing)
    return row, json.loads(row["json"])


def _save(
    tx: sqlite3.Connection, row: sqlite3.Row, dataset: dict[str, Any], state: str, transaction: str | None
) -> None:
    tx.execute(
        "UPDATE workitem SET json = ?, state = ?, transaction_uid = ?, watermark = ? WHERE key = ?",
        (dump(dataset), state, transaction, next_numbers(tx, "workitem_watermark", 1), row["key"]),
    )


def dump(dataset: dict[str, Any]) -> bytes:
    """The JSON text of a data set, its keys ascending."""
    return json.dumps(dict(sorted(dataset.items())), separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def post_workitem(call: Call) -> Response:
    """``POST /workitems?{uid}``: a new workitem, SCHEDULED."""
    dataset = _dataset(call)
    given = _bare_parameter(call)
    uid = given or first_value(dataset, SOP_UID) or f"2.25.{uuid.uuid4().int}"
    if not is_valid_uid(uid):
        raise Problem(400, no_uid("WorkitemInstanceUid"))
    if given and first_value(dataset, SOP_UID) not in (None, given):
        raise Problem(400, "SOPInstanceUID in the payload does not match the workitem query parameter.")
    _check_new(call, dataset)
    dataset |= {
        SOP_UID: {"vr": "UI", "Value": [uid]},
        SOP_CLASS: {"vr": "UI", "Value": [_UPS_CLASS]},
        STATE: {"vr": "CS", "Value": [_SCHEDULED]},
        _LIST: {"vr": "LO", "Value": ["worklist"]},
        _MODIFIED: _now(),
    }
    with call.service.index.write() as tx:
        try:
            tx.execute(
                "INSERT INTO workitem (partition_key, uid, state, json, watermark) VALUES (?, ?, ?, ?, ?)",
                (call.partition_key, uid, _SCHEDULED, dump(dataset), next_numbers(tx, "workitem_watermark", 1)),
            )
        except sqlite3.IntegrityError as error:
            raise _refusal(call, 409, _EXISTS) from error
    return Response(status_code=201, headers={"Location": _url(call, uid), "Content-Location": _url(call, uid)})


def _check_new(call: Call, dataset: dict[str, Any]) -> None:
    if first_value(dataset, TRANSACTION):
        raise _refusal(call, 400, f"The attribute with tag '{_shown(TRANSACTION)}' must be empty.")
    for key in _REQUIRED:
        if key not in dataset:
            raise _refusal(call, 400, f"The required tag '{_shown(key)}' is missing.")
        if first_value(dataset, key) is None:
            raise _refusal(call, 400, f"The value for tag '{_shown(key)}' is missing.")


def _shown(key: str) -> str:
    return tag_text(int(key, 16))


def _now() -> dict[str, Any]:
    instant = utc_text(now_ticks())
    return {"vr": "DT", "Value": [re.sub(r"\D", "", instant[:19]) + instant[19:26]]}


def get_workitem(call: Call) -> Response:
    """``GET /workitems/{workitem}``: without its Transaction UID, which is its owner's secret."""
    with call.service.index.read() as tx:
        _, dataset = _find(call, tx)
    dataset.pop(TRANSACTION, None)
    return Response(dump(dataset), media_type=DicomJson.media_type)


def update_workitem(call: Call) -> Response:
    """``POST /workitems/{workitem}?{transaction}``."""
    change = _dataset(call)
    transaction = _bare_parameter(call)
    if transaction is not None and not is_valid_uid(transaction):
        raise Problem(400, no_uid("TransactionUid"))
    with call.service.index.write() as tx:
        row, dataset = _find(call, tx, missing=_NOT_CLAIMED)
        _check_claim(call, row, transaction)
        skipped = sorted(key for key in change if key in _FIXED or key == TRANSACTION)
        dataset |= {key: value for key, value in change.items() if key not in skipped} | {_MODIFIED: _now()}
        _save(tx, row, dataset, row["state"], row["transaction_uid"])
    headers = {"Content-Location": _url(call, row["uid"])}
    if skipped:
        names = ", ".join(map(_shown, skipped))
        headers |= _warning(call, f"The workitem was updated without attributes that cannot be changed: {names}.")
    return Response(status_code=200, headers=headers)


def _check_claim(call: Call, row: sqlite3.Row, transaction: str | None) -> None:
    state = row["state"]
    if state in _ALREADY:
        text = f"The submitted request is inconsistent with the current state of the Workitem. {_ALREADY[state]}"
        raise _refusal(call, 409, text, warns=True)
    if state == _SCHEDULED and transaction is not None:
        raise _refusal(call, 409, "Invalid TransactionUID for the specified Workitem Instance UID.", warns=True)
    if state == _IN_PROGRESS and transaction != row["transaction_uid"]:
        raise _refusal(call, 400 if transaction is None else 409, _NOT_CLAIMED, warns=True)


def change_state(call: Call) -> Response:
    """``PUT /workitems/{workitem}/state``."""
    change = _dataset(call)
    for key in (TRANSACTION, STATE):
        if not first_value(change, key):
            raise _refusal(call, 400, f"The required tag '{_shown(key)}' is missing.", warns=True)
    state, transaction = first_value(change, STATE), first_value(change, TRANSACTION)
    if state not in _TARGETS:
        text = f"Expected value '{_shown(STATE)}' to be one of the following values: [{','.join(_TARGETS)}]"
        raise _refusal(call, 400, text, warns=True)
    if not is_valid_uid(transaction):
        raise Problem(400, no_uid("TransactionUid"))
    with call.service.index.write() as tx:
        row, dataset = _find(call, tx)
        code = _code(row, state, transaction)
        if code is None:
            dataset[STATE] = {"vr": "CS", "Value": [state]}
            dataset[TRANSACTION] = {"vr": "UI", "Value": [transaction]}
            _save(tx, row, dataset, state, transaction)
            return Response(status_code=200)
    if code.startswith("C"):
        text = f"The workitem instance can not transition to '{state}' state: {code}."
        raise _refusal(call, 409, text, warns=True)
    text = f"The workitem instance is already in the final state '{state}'. {code}."
    return DicomJson(text, headers=_warning(call, text))


def _code(row: sqlite3.Row, state: str, transaction: str) -> str | None:
    """PS3.4 Table CC.1.1-2: None where the state may be changed, B... where it was before, C... where it may not be."""
    now, owner = row["state"], row["transaction_uid"]
    if transaction != owner and not (owner is None and state == _IN_PROGRESS):
        return "C301"
    if now == _SCHEDULED:
        return None if state == _IN_PROGRESS else "C310"
    if now == _IN_PROGRESS:
        return "C302" if state == _IN_PROGRESS else None
    return {_COMPLETED: "B306", _CANCELED: "B304"}[now] if now == state else "C300"


def request_cancellation(call: Call) -> Response:
    """``POST /workitems/{workitem}/cancelrequest``: done at once for a SCHEDULED workitem, refused for others."""
    reason = _dataset(call)
    with call.service.index.write() as tx:
        row, dataset = _find(call, tx)
        if row["state"] == _CANCELED:
            raise _refusal(call, 409, _ALREADY[_CANCELED], warns=True)
        if row["state"] != _SCHEDULED:
            code = "C312" if row["state"] == _IN_PROGRESS else "C311"
            text = f"The workitem instance can not transition to 'Canceled' state: {code}."
            raise _refusal(call, 409, text, warns=True)
        dataset |= {key: value for key, value in reason.items() if key not in _FIXED}
        dataset[STATE] = {"vr": "CS", "Value": [_CANCELED]}
        _save(tx, row, dataset, _CANCELED, None)
    return DicomJson("The workitem instance has been cancelled.", status_code=202)


ROUTES: list[Route] = [
    route("POST", "workitems", post_workitem, Action.WRITE, json_answer=True, creates_partition=True, **_DICOM_JSON),
    route("GET", "workitems/{workitem}", get_workitem, Action.READ, json_answer=True),
    route("POST", "workitems/{workitem}", update_workitem, Action.WRITE, json_answer=True, **_DICOM_JSON),
    route("PUT", "workitems/{workitem}/state", change_state, Action.WRITE, **_DICOM_JSON),
    route("POST", "workitems/{workitem}/cancelrequest", request_cancellation, Action.WRITE, **_DICOM_JSON),
]
