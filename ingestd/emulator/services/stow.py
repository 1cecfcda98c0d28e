"""STOW-RS: a Store Transaction's body is taken in and stored, and what became of each part is the answer.

AZURE.md 1; PS3.18 §10.5.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from starlette.responses import JSONResponse, Response

from ..errors import INTERNAL, CutConnection, Problem
from ..faults import FaultName
from ..http.answers import DicomJson
from ..http.request import Action, Body, Route, ServiceRequest, route
from ..storage.examine import CLASS_MISMATCH
from ..storage.index import now_ticks
from ..storage.store import examine_part
from ..storage.store_job import PartResult, StoreRequest
from ..storage.writer import Writer
from .upload import Upload, body_kind

_SEVERAL_VALUES = '299 {host} "One or more indexed Dicom tag(s) have multiple values, only first value is indexed."'
_CONSUMES = ("application/dicom", "multipart/related")


async def take_in(request: ServiceRequest, writer: Writer) -> None:
    """Take the body in, part by part, and store it; what became of the parts is noted in the request. Raises Problem.

    ``POST`` or, in the managed flavour, ``PUT`` of ``/studies[/{study}]``.
    """
    archive = request.archive
    study_uid = request.optional_uid("study")
    kind = body_kind(request.header("content-type"))
    cut = request.fault(FaultName.DROP_DURING_BODY)

    def saw(size: int) -> None:
        if cut is not None and size >= (1 if cut.bytes is None else cut.bytes):
            raise CutConnection

    slow = request.fault(FaultName.BANDWIDTH)
    request.tags = archive.tags()
    examine = partial(examine_part, archive, version=request.version, study_uid=study_uid, tags=request.tags)
    with Upload(
        archive.files,
        limit=archive.settings.file_limit,
        examine=lambda path: archive.workers.submit(examine, path),
    ) as upload:
        body = request.stream() if slow is None else _slowly(request, slow.bytes or 65536)
        await upload.take(kind, body, saw=saw)
        if request.fault(FaultName.DROP_AFTER_BODY):
            raise CutConnection
        if fault := request.fault(FaultName.ERROR_BEFORE_STORE):
            raise Problem(fault.status or 500, INTERNAL)
        request.stored = await writer.store(_store_request(request), upload.parts)


async def _slowly(request: ServiceRequest, per_second: int) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        await asyncio.sleep(len(chunk) / per_second)
        yield chunk


def _store_request(request: ServiceRequest) -> StoreRequest:
    replace = request.method == "PUT"
    if replace and not request.archive.settings.is_managed:
        raise Problem(405, headers={"Allow": "POST"})
    return StoreRequest(
        number=request.number,
        version=request.version,
        study_uid=request.optional_uid("study"),
        partition_key=request.partition_key,
        replace=replace,
        expires_at=_expiry(request),
        tags=request.tags,
        method=request.method,
        path=request.url.path,
    )


def _expiry(request: ServiceRequest) -> int | None:
    # AZURE.md 1.9: managed only; all three headers say the same one thing.
    if not request.archive.settings.is_managed:
        return None
    milliseconds = request.header("msdicom-expiry-time-milliseconds")
    option, level = request.header("msdicom-expiry-option"), request.header("msdicom-expiry-level")
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


def answer_to(request: ServiceRequest) -> Response:
    """The answer to a store that is done."""
    results = request.stored
    if not results:
        return Response(status_code=204)
    uids = [uid for result in results for uid in result.examined.identity]
    if request.fault(FaultName.DROP_AFTER_STORE, uids=uids):
        raise CutConnection
    if fault := request.fault(FaultName.ERROR_AFTER_STORE, uids=uids):
        raise Problem(fault.status or 500, INTERNAL)
    stored = [result for result in results if result.is_stored]
    failed = [result for result in results if not result.is_stored]
    body: dict[str, Any] = {}
    study_uid = request.optional_uid("study")
    if study_uid is not None and stored:
        body["00081190"] = {"vr": "UR", "Value": [f"{request.dicomweb_url}/studies/{study_uid}"]}
    if failed:
        body["00081198"] = {"vr": "SQ", "Value": [_failure(result) for result in failed]}
    if stored:
        body["00081199"] = {"vr": "SQ", "Value": [_success(request, result) for result in stored]}
        _falsify(request, body, uids)
    warned = request.version == 2 and any(result.examined.warning for result in stored)
    status = 409 if not stored else 202 if failed or warned else 200
    response: JSONResponse = DicomJson(body, status_code=status)
    if any(result.examined.several_values for result in stored):
        response.headers["Warning"] = _SEVERAL_VALUES.format(host=request.url.netloc)
    return response


def _failure(result: PartResult) -> dict[str, Any]:
    found = result.examined
    item: dict[str, Any] = {}
    if found.sop_class_uid:
        item["00081150"] = {"vr": "UI", "Value": [found.sop_class_uid]}
    if found.sop_uid:
        item["00081155"] = {"vr": "UI", "Value": [found.sop_uid]}
    item["00081197"] = {"vr": "US", "Value": [found.failure]}
    if found.comments:
        item["00741048"] = _comments(found.comments)
    return item


def _success(request: ServiceRequest, result: PartResult) -> dict[str, Any]:
    found = result.examined
    url = f"{request.dicomweb_url}/studies/{found.study_uid}/series/{found.series_uid}/instances/{found.sop_uid}"
    item: dict[str, Any] = {
        "00081150": {"vr": "UI", "Value": [found.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [found.sop_uid]},
        "00081190": {"vr": "UR", "Value": [url]},
    }
    if found.warning and (request.version == 2 or found.warning == CLASS_MISMATCH):
        item["00081196"] = {"vr": "US", "Value": [found.warning]}
    if request.version == 2:
        item["00741048"] = _comments(found.comments)
    return item


def _comments(comments: list[str]) -> dict[str, Any]:
    if not comments:
        return {"vr": "SQ"}
    return {"vr": "SQ", "Value": [{"00000902": {"vr": "LO", "Value": [comment]}} for comment in comments]}


def _falsify(request: ServiceRequest, body: dict[str, Any], uids: list[str]) -> None:
    # Faults that make the answer lie about what was stored.
    stored = body["00081199"]["Value"]
    if request.fault(FaultName.FOREIGN_UID, uids=uids):
        stored[0]["00081155"]["Value"] = [f"2.25.{now_ticks()}"]
    if request.fault(FaultName.MISSING_UID, uids=uids):
        del stored[0]
        if not stored:
            body["00081199"] = {"vr": "SQ"}  # as Orthanc answers to what it cannot parse


ROUTES: list[Route] = [
    route(
        method, path, answer_to, Action.WRITE, json_answer=True, body=Body.STORE, consumes=_CONSUMES,
        creates_partition=True,
    )
    for method in ("POST", "PUT")
    for path in ("studies", "studies/{study}")
]  # fmt: skip
