"""The worklist service (PS3.18 §11, UPS-RS), as far as the Azure DICOM service has it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Unpack
from urllib.parse import quote

from ingestd.dicomweb.answers import Answer
from ingestd.dicomweb.decoding import ACCEPT_JSON, DicomJson, Undecodable, datasets_from_json, uid_of
from ingestd.dicomweb.searching import Filters, Query, SearchPage, read_results, search_params
from ingestd.dicomweb.transport import Transport, path_of

ANSWER_LIMIT = 16 * 1024 * 1024
HEADERS = {"Content-Type": "application/dicom+json", "Accept": ACCEPT_JSON}
STATES = ("IN PROGRESS", "COMPLETED", "CANCELED")

PROCEDURE_STEP_STATE = "00741000"
TRANSACTION_UID = "00081195"


class Workitems:
    """Add, get, update, move on, ask to cancel and search workitems.

    A workitem is a DICOM JSON data set. It begins SCHEDULED; who takes it IN PROGRESS gives it a Transaction UID, which
    every later change must name.
    """

    def __init__(self, transport: Transport, prefix: str = "") -> None:
        self._transport = transport
        self._prefix = prefix

    def add(self, workitem: DicomJson, uid: str | None = None) -> str:
        """Create a workitem (PS3.18 §11.4) and return its UID; raises Refused 409 if there is one with this UID."""
        query = f"?{quote(uid, safe='')}" if uid is not None else ""
        with self._send("POST", f"/workitems{query}", "/workitems", workitem, accepts=(200, 201)) as answer:
            location = answer.headers.get("Content-Location", "") or answer.headers.get("Location", "")
        return uid or location.rstrip("/").rpartition("/")[2] or uid_of(workitem, "SOPInstanceUID")

    def get(self, uid: str) -> DicomJson:
        """Return a workitem (PS3.18 §11.5); raises NotFound."""
        with self._transport.send(
            "GET",
            self._prefix + path_of("workitems", uid),
            route="/workitems/{workitem}",
            headers={"Accept": ACCEPT_JSON},
        ) as answer:
            try:
                items = datasets_from_json(answer.read_all(ANSWER_LIMIT))
            except Undecodable as error:
                raise answer.unintelligible(f"the answer is {error}") from None
            if len(items) != 1:
                raise answer.unintelligible("the answer is not one workitem")
            return items[0]

    def update(self, uid: str, changes: DicomJson, *, transaction_uid: str | None = None) -> str:
        """Change attributes (PS3.18 §11.6); returns the server's warning, "" if it took all."""
        query = f"?{quote(transaction_uid, safe='')}" if transaction_uid is not None else ""
        path = path_of("workitems", uid) + query
        with self._send("POST", path, "/workitems/{workitem}", changes) as answer:
            return answer.headers.get("Warning", "")

    def change_state(self, uid: str, state: str, *, transaction_uid: str) -> None:
        """Move a workitem to IN PROGRESS, COMPLETED or CANCELED (PS3.18 §11.7); raises Refused 409 if it may not."""
        if state not in STATES:
            raise ValueError(f"no workitem state {state!r} to move to; there are {', '.join(STATES)}")
        change = {
            TRANSACTION_UID: {"vr": "UI", "Value": [transaction_uid]},
            PROCEDURE_STEP_STATE: {"vr": "CS", "Value": [state]},
        }
        self._send("PUT", path_of("workitems", uid) + "/state", "/workitems/{workitem}/state", change).close()

    def request_cancel(self, uid: str, reason: DicomJson | None = None) -> str:
        """Ask for a SCHEDULED workitem's cancellation (PS3.18 §11.8); returns the server's warning, "" if none."""
        path, route = path_of("workitems", uid) + "/cancelrequest", "/workitems/{workitem}/cancelrequest"
        with self._send("POST", path, route, reason or {}, accepts=(200, 202)) as answer:
            return answer.headers.get("Warning", "")

    def search(self, filters: Filters | None = None, **query: Unpack[Query]) -> SearchPage:
        """Search workitems (PS3.18 §11.9): one page."""
        with self._transport.send(
            "GET",
            f"{self._prefix}/workitems",
            route="/workitems",
            params=search_params(filters, **query),
            headers={"Accept": ACCEPT_JSON},
            accepts=(200, 204, 206),
        ) as answer:
            return read_results(answer, what="the search for workitems")

    def _send(
        self, method: str, path: str, route: str, dataset: Mapping[str, object], *, accepts: Iterable[int] = (200,)
    ) -> Answer:
        body = json.dumps([dataset]).encode()  # an array, of which the service takes the first
        return self._transport.send(
            method, self._prefix + path, route=route, headers=HEADERS, body=body, accepts=accepts
        )
