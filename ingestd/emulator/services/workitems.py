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

from ..dicom.dicom_json import dataset_of, json_bytes
from ..dicom.dictionary import tag_text
from ..dicom.minimum_rules import is_valid_uid, missing, no_uid
from ..errors import SYNTAX, Problem
from ..http.answers import DicomJson
from ..http.request import Action, Body, Route, ServiceRequest, route
from ..storage.index import next_number, now_ticks, one, utc_text

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


def _dataset(request: ServiceRequest) -> dict[str, Any]:
    """The first data set of the request's array; raises Problem 400."""
    given = request.json_content()
    if not isinstance(given, list) or not given:
        raise Problem(400, SYNTAX)
    return dataset_of(given[0])


def _refusal(request: ServiceRequest, status: int, text: str, *, warns: bool = False) -> Problem:
    headers = {"Content-Type": DicomJson.media_type} | (_warning(request, text) if warns else {})
    return Problem(status, json.dumps(text), headers=headers)


def _warning(request: ServiceRequest, text: str) -> dict[str, str]:
    # The agent is the host alone with a colon (PS3.18 §11.7.3.2 as the service reads it).
    return {"Warning": f'299 {request.url.hostname}: "{text}"'}


def first_value(dataset: dict[str, Any], key: str) -> Any:
    """The first value of an element of DICOM JSON, None where there is none."""
    values = dataset.get(key, {}).get("Value") or [None]
    return values[0]


def _url(request: ServiceRequest, uid: str) -> str:
    return f"{request.dicomweb_url}/workitems/{uid}"


def _bare_parameter(request: ServiceRequest) -> str | None:
    # The UID is the *name* of the first query parameter, as in ``/workitems?1.2.3``.
    text = request.url.query.split("&")[0]
    return text.partition("=")[0] or None


def _find(
    request: ServiceRequest, tx: sqlite3.Connection, *, missing: str = _NOT_FOUND
) -> tuple[sqlite3.Row, dict[str, Any]]:
    uid = request.uid("workitem")
    row = one(tx, "SELECT * FROM workitem WHERE partition_key = ? AND uid = ?", (request.partition_key, uid))
    if row is None:
        raise _refusal(request, 404, missing)
    return row, json.loads(row["json"])


def _save(
    tx: sqlite3.Connection, row: sqlite3.Row, dataset: dict[str, Any], state: str, transaction: str | None
) -> None:
    tx.execute(
        "UPDATE workitem SET json = ?, state = ?, transaction_uid = ?, watermark = ? WHERE key = ?",
        (json_bytes(dataset), state, transaction, next_number(tx, "workitem_watermark"), row["key"]),
    )


def post_workitem(request: ServiceRequest) -> Response:
    """``POST /workitems?{uid}``: a new workitem, SCHEDULED."""
    dataset = _dataset(request)
    given = _bare_parameter(request)
    uid = given or first_value(dataset, SOP_UID) or f"2.25.{uuid.uuid4().int}"
    if not is_valid_uid(uid):
        raise Problem(400, no_uid("WorkitemInstanceUid"))
    if given and first_value(dataset, SOP_UID) not in (None, given):
        raise Problem(400, "SOPInstanceUID in the payload does not match the workitem query parameter.")
    _check_new(request, dataset)
    dataset |= {
        SOP_UID: {"vr": "UI", "Value": [uid]},
        SOP_CLASS: {"vr": "UI", "Value": [_UPS_CLASS]},
        STATE: {"vr": "CS", "Value": [_SCHEDULED]},
        _LIST: {"vr": "LO", "Value": ["worklist"]},
        _MODIFIED: _now(),
    }
    with request.archive.index.write() as tx:
        try:
            tx.execute(
                "INSERT INTO workitem (partition_key, uid, state, json, watermark) VALUES (?, ?, ?, ?, ?)",
                (request.partition_key, uid, _SCHEDULED, json_bytes(dataset), next_number(tx, "workitem_watermark")),
            )
        except sqlite3.IntegrityError as error:
            raise _refusal(request, 409, _EXISTS) from error
    return Response(status_code=201, headers={"Location": _url(request, uid), "Content-Location": _url(request, uid)})


def _check_new(request: ServiceRequest, dataset: dict[str, Any]) -> None:
    if first_value(dataset, TRANSACTION):
        raise _refusal(request, 400, f"The attribute with tag '{_shown(TRANSACTION)}' must be empty.")
    for key in _REQUIRED:
        if key not in dataset:
            raise _refusal(request, 400, missing(int(key, 16)))
        if first_value(dataset, key) is None:
            raise _refusal(request, 400, f"The value for tag '{_shown(key)}' is missing.")


def _shown(key: str) -> str:
    return tag_text(int(key, 16))


def _now() -> dict[str, Any]:
    instant = utc_text(now_ticks())
    return {"vr": "DT", "Value": [re.sub(r"\D", "", instant[:19]) + instant[19:26]]}


def get_workitem(request: ServiceRequest) -> Response:
    """``GET /workitems/{workitem}``: without its Transaction UID, which is its owner's secret."""
    with request.archive.index.read() as tx:
        _, dataset = _find(request, tx)
    dataset.pop(TRANSACTION, None)
    return Response(json_bytes(dataset), media_type=DicomJson.media_type)


def update_workitem(request: ServiceRequest) -> Response:
    """``POST /workitems/{workitem}?{transaction}``."""
    change = _dataset(request)
    transaction = _bare_parameter(request)
    if transaction is not None and not is_valid_uid(transaction):
        raise Problem(400, no_uid("TransactionUid"))
    with request.archive.index.write() as tx:
        row, dataset = _find(request, tx, missing=_NOT_CLAIMED)
        _check_claim(request, row, transaction)
        skipped = sorted(key for key in change if key in _FIXED or key == TRANSACTION)
        dataset |= {key: value for key, value in change.items() if key not in skipped} | {_MODIFIED: _now()}
        _save(tx, row, dataset, row["state"], row["transaction_uid"])
    headers = {"Content-Location": _url(request, row["uid"])}
    if skipped:
        names = ", ".join(map(_shown, skipped))
        headers |= _warning(request, f"The workitem was updated without attributes that cannot be changed: {names}.")
    return Response(status_code=200, headers=headers)


def _check_claim(request: ServiceRequest, row: sqlite3.Row, transaction: str | None) -> None:
    state = row["state"]
    if state in _ALREADY:
        text = f"The submitted request is inconsistent with the current state of the Workitem. {_ALREADY[state]}"
        raise _refusal(request, 409, text, warns=True)
    if state == _SCHEDULED and transaction is not None:
        raise _refusal(request, 409, "Invalid TransactionUID for the specified Workitem Instance UID.", warns=True)
    if state == _IN_PROGRESS and transaction != row["transaction_uid"]:
        raise _refusal(request, 400 if transaction is None else 409, _NOT_CLAIMED, warns=True)


def change_state(request: ServiceRequest) -> Response:
    """``PUT /workitems/{workitem}/state``."""
    change = _dataset(request)
    for key in (TRANSACTION, STATE):
        if not first_value(change, key):
            raise _refusal(request, 400, missing(int(key, 16)), warns=True)
    state, transaction = first_value(change, STATE), first_value(change, TRANSACTION)
    if state not in _TARGETS:
        text = f"Expected value '{_shown(STATE)}' to be one of the following values: [{','.join(_TARGETS)}]"
        raise _refusal(request, 400, text, warns=True)
    if not is_valid_uid(transaction):
        raise Problem(400, no_uid("TransactionUid"))
    with request.archive.index.write() as tx:
        row, dataset = _find(request, tx)
        code = _code(row, state, transaction)
        if code is None:
            dataset[STATE] = {"vr": "CS", "Value": [state]}
            dataset[TRANSACTION] = {"vr": "UI", "Value": [transaction]}
            _save(tx, row, dataset, state, transaction)
            return Response(status_code=200)
    if code.startswith("C"):
        text = f"The workitem instance can not transition to '{state}' state: {code}."
        raise _refusal(request, 409, text, warns=True)
    text = f"The workitem instance is already in the final state '{state}'. {code}."
    return DicomJson(text, headers=_warning(request, text))


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


def request_cancellation(request: ServiceRequest) -> Response:
    """``POST /workitems/{workitem}/cancelrequest``: done at once for a SCHEDULED workitem, refused for others."""
    reason = _dataset(request)
    with request.archive.index.write() as tx:
        row, dataset = _find(request, tx)
        if row["state"] == _CANCELED:
            raise _refusal(request, 409, _ALREADY[_CANCELED], warns=True)
        if row["state"] != _SCHEDULED:
            code = "C312" if row["state"] == _IN_PROGRESS else "C311"
            text = f"The workitem instance can not transition to 'Canceled' state: {code}."
            raise _refusal(request, 409, text, warns=True)
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
