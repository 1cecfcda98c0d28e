"""STOW-RS: the answer to a Store Transaction (AZURE.md 1.4, 1.5)."""

from __future__ import annotations

import re
from typing import Any

from starlette.responses import JSONResponse, Response

from ..errors import INTERNAL, Problem, Vanish
from ..faults import FaultName
from ..http.answers import DicomJson
from ..http.request import Action, Body, Call, Route, route
from ..storage.examine import CLASS_MISMATCH
from ..storage.index import now_ticks
from ..storage.store_job import Entry, StoreRequest

_SEVERAL_VALUES = '299 {host} "One or more indexed Dicom tag(s) have multiple values, only first value is indexed."'
_CONSUMES = ("application/dicom", "multipart/related")


def request_of(call: Call) -> StoreRequest:
    """What a ``POST`` or, in the managed flavour, ``PUT`` of ``/studies[/{study}]`` asks for; raises Problem."""
    replace = call.request.method == "PUT"
    if replace and not call.service.settings.is_managed:
        raise Problem(405, headers={"Allow": "POST"})
    return StoreRequest(
        number=call.number,
        version=call.version,
        study_uid=call.optional_uid("study"),
        partition_key=call.partition_key,
        replace=replace,
        expires_at=_expiry(call),
        tags=call.tags,
        method=call.request.method,
        path=call.request.url.path,
    )


def answer_to(call: Call) -> Response:
    """The answer to a store that is done."""
    if not call.stored:
        return Response(status_code=204)
    uids = [uid for entry in call.stored for uid in entry.examined.identity]
    _strike_after_store(call, uids)
    return _answer(call, call.stored, uids)


def _expiry(call: Call) -> int | None:
    # AZURE.md 1.9: managed only; all three headers say the same one thing.
    if not call.service.settings.is_managed:
        return None
    milliseconds = call.header("msdicom-expiry-time-milliseconds")
    option, level = call.header("msdicom-expiry-option"), call.header("msdicom-expiry-level")
    if milliseconds is None and option is None and level is None:
        return None
    # The index has 64 bits for ticks, of which a millisecond has ten thousand; 14 digits are 3,000 years.
    if milliseconds is None or not re.fullmatch(r"[0-9]{1,14}", milliseconds) or int(milliseconds) < 1:
        raise Problem(400, "The header 'msdicom-expiry-time-milliseconds' must be a whole number greater than 0.")
    if (option or "").lower() != "relativetonow":
        raise Problem(400, "The header 'msdicom-expiry-option' must be 'RelativeToNow'.")
    if (level or "").lower() != "study":
        raise Problem(400, "The header 'msdicom-expiry-level' must be 'Study'.")
    return now_ticks() + int(milliseconds) * 10_000


def _strike_after_store(call: Call, uids: list[str]) -> None:
    faults, method, path = call.service.faults, call.request.method, call.request.url.path
    if faults.take(FaultName.DROP_AFTER_STORE, method=method, path=path, uids=uids):
        raise Vanish
    if fault := faults.take(FaultName.ERROR_AFTER_STORE, method=method, path=path, uids=uids):
        raise Problem(fault.status or 500, INTERNAL)


def _answer(call: Call, entries: list[Entry], uids: list[str]) -> Response:
    stored = [entry for entry in entries if entry.is_stored]
    failed = [entry for entry in entries if not entry.is_stored]
    body: dict[str, Any] = {}
    study_uid = call.optional_uid("study")
    if study_uid is not None and stored:
        body["00081190"] = {"vr": "UR", "Value": [f"{call.base_url}/studies/{study_uid}"]}
    if failed:
        body["00081198"] = {"vr": "SQ", "Value": [_failure(entry) for entry in failed]}
    if stored:
        body["00081199"] = {"vr": "SQ", "Value": [_success(call, entry) for entry in stored]}
    _falsify(call, body, uids)
    warned = call.version == 2 and any(entry.examined.warning for entry in stored)
    status = 409 if not stored else 202 if failed or warned else 200
    response: JSONResponse = DicomJson(body, status_code=status)
    if any(entry.examined.several_values for entry in stored):
        response.headers["Warning"] = _SEVERAL_VALUES.format(host=call.request.url.netloc)
    return response


def _failure(entry: Entry) -> dict[str, Any]:
    found = entry.examined
    item: dict[str, Any] = {}
    if found.sop_class_uid:
        item["00081150"] = {"vr": "UI", "Value": [found.sop_class_uid]}
    if found.sop_uid:
        item["00081155"] = {"vr": "UI", "Value": [found.sop_uid]}
    item["00081197"] = {"vr": "US", "Value": [found.failure]}
    if found.comments:
        item["00741048"] = _comments(found.comments)
    return item


def _success(call: Call, entry: Entry) -> dict[str, Any]:
    found = entry.examined
    url = f"{call.base_url}/studies/{found.study_uid}/series/{found.series_uid}/instances/{found.sop_uid}"
    item: dict[str, Any] = {
        "00081150": {"vr": "UI", "Value": [found.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [found.sop_uid]},
        "00081190": {"vr": "UR", "Value": [url]},
    }
    if found.warning and (call.version == 2 or found.warning == CLASS_MISMATCH):
        item["00081196"] = {"vr": "US", "Value": [found.warning]}
    if call.version == 2:
        item["00741048"] = _comments(found.comments)
    return item


def _comments(comments: list[str]) -> dict[str, Any]:
    if not comments:
        return {"vr": "SQ"}
    return {"vr": "SQ", "Value": [{"00000902": {"vr": "LO", "Value": [comment]}} for comment in comments]}


def _falsify(call: Call, body: dict[str, Any], uids: list[str]) -> None:
    # Faults that make the answer lie about what was stored.
    if "00081199" not in body:
        return
    faults, method, path = call.service.faults, call.request.method, call.request.url.path
    stored = body["00081199"]["Value"]
    if faults.take(FaultName.FOREIGN_UID, method=method, path=path, uids=uids):
        stored[0]["00081155"]["Value"] = [f"2.25.{now_ticks()}"]
    if faults.take(FaultName.MISSING_UID, method=method, path=path, uids=uids):
        del stored[0]
        if not stored:
            body["00081199"] = {"vr": "SQ"}  # as Orthanc answers to what it cannot parse


def _routes() -> list[Route]:
    return [
        route(
            method, path, answer_to, Action.WRITE, json_answer=True, body=Body.STORE, consumes=_CONSUMES,
            creates_partition=True,
        )
        for method in ("POST", "PUT")
        for path in ("studies", "studies/{study}")
    ]  # fmt: skip


ROUTES = _routes()
