"""What a server is and can do, found out by asking it, for a person to read.

What ingestd itself goes by, where servers differ, is ``sender/profile.py``.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from ingestd.dicomweb.errors import DicomWebError, NotAuthorized, Unavailable
from ingestd.dicomweb.transport import Transport, path_of

if TYPE_CHECKING:
    from ingestd.dicomweb.client import DicomWebClient

# What a client may want a search answered in.
ACCEPTS = (
    "application/dicom+json",
    "application/json",
    'multipart/related; type="application/dicom+xml"',
    "*/*",
)
PLAIN_PATHS = frozenset({"/studies", "/changefeed/latest", "/extendedquerytags", "/workitems"})
NO_DICOM = b"this is no DICOM instance, and no server can store it\r\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """A server as far as it can be told from outside; None where it was not or could not be found out.

    ``kind`` is azure, orthanc or other. ``duplicates`` is refused (45070; Azure), kept (the older object stays and the
    answer says stored; Orthanc as it comes) or None. ``accepts`` are the Accept headers that a search takes.
    """

    kind: str
    api_version: int | None
    has_change_feed: bool
    has_query_tags: bool
    has_workitems: bool
    has_delete: bool | None
    has_upsert: bool | None
    takes_single_part: bool | None
    duplicates: str | None
    accepts: tuple[str, ...]
    searches: bool
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(slots=True)
class _Look:
    """One answer, as far as it matters here."""

    status: int
    text: str
    headers: Mapping[str, str]


def probe(client: DicomWebClient, *, try_writes: bool) -> Capabilities:
    """Ask the server harmless questions. Raises TokenError, NotAuthorized and Unavailable: then nothing can be told."""
    transport = client.transport
    notes: list[str] = []
    search = _look(transport, "GET", "/studies", params=[("limit", "1")], accept=ACCEPTS[0])
    feed = _look(transport, "GET", "/changefeed/latest", accept="application/json")
    missing = _look(transport, "GET", "/studies/1.2.3.4.5.6.7.8.9/metadata", accept=ACCEPTS[0])
    has_feed = feed.status in {200, 204}
    kind = _kind(has_feed, [search, feed, missing])
    searches = search.status in {200, 204}
    if not searches:
        notes.append(f"a search for studies is answered {search.status}")
        if search.status == 404 and client.api_version is None:
            notes.append("the URL has no version: is /v2 missing?")
    accepts = tuple(
        accept
        for accept in ACCEPTS
        if _look(transport, "GET", "/studies", params=[("limit", "1")], accept=accept).status in {200, 204}
    )
    tags = _look(transport, "GET", "/extendedquerytags", params=[("limit", "1")], accept="application/json")
    workitems = _look(transport, "GET", "/workitems", params=[("limit", "1")], accept=ACCEPTS[0])
    takes_single_part = _takes_single_part(transport, notes) if try_writes else None
    has_delete = _has_delete(transport) if try_writes else None
    if kind == "azure":
        takes_single_part = True if takes_single_part is None else takes_single_part
    elif kind == "orthanc":
        notes.append("an instance that is there already is answered as stored, and the older one kept")
    return Capabilities(
        kind=kind,
        api_version=client.api_version,
        has_change_feed=has_feed,
        has_query_tags=tags.status in {200, 204},
        has_workitems=workitems.status in {200, 204},
        has_delete=has_delete,
        has_upsert=False if kind == "orthanc" else None,
        takes_single_part=takes_single_part,
        duplicates={"azure": "refused", "orthanc": "kept"}.get(kind),
        accepts=accepts,
        searches=searches,
        notes=tuple(notes),
    )


def _kind(has_feed: bool, looks: list[_Look]) -> str:  # noqa: FBT001 - private
    if has_feed or any("api-supported-versions" in look.headers for look in looks):
        return "azure"
    # Orthanc explains each refusal in JSON with its own error number.
    if any('"OrthancStatus"' in look.text for look in looks) or any(
        "orthanc" in look.headers.get("Server", "").lower() for look in looks
    ):
        return "orthanc"
    return "other"


def may_store(client: DicomWebClient) -> bool:
    """Say whether our role may store: post what no server can store, which only a role that may not is forbidden (403).

    Raises TokenError, NotAuthorized for 401, and Unavailable.
    """
    try:
        _look(client.transport, "POST", "/studies", accept=ACCEPTS[0], body=NO_DICOM)
    except NotAuthorized as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        return False
    return True


def _takes_single_part(transport: Transport, notes: list[str]) -> bool | None:
    look = _look(transport, "POST", "/studies", accept=ACCEPTS[0], body=NO_DICOM)
    if look.status == 415:
        return False
    if look.status in {400, 409}:
        return True
    notes.append(f"a single-part store of what is no DICOM is answered {look.status}")
    return None


def _has_delete(transport: Transport) -> bool | None:
    look = _look(transport, "DELETE", path_of("studies", f"2.25.{uuid.uuid4().int}"), accept=ACCEPTS[1])
    return {404: True, 204: True, 405: False, 501: False}.get(look.status)


def _look(
    transport: Transport,
    method: str,
    path: str,
    *,
    accept: str,
    params: list[tuple[str, str]] | None = None,
    body: bytes | None = None,
) -> _Look:
    headers = {"Accept": accept}
    if body is not None:
        headers["Content-Type"] = "application/dicom"
    try:
        with transport.send(
            method,
            path,
            route=path if path in PLAIN_PATHS else "/studies/{study}",
            params=params or (),
            headers=headers,
            body=body,
            accepts=(200, 202, 204, 206, 404, 409),
        ) as answer:
            text = answer.read_all(16 * 1024 * 1024).decode("utf-8", "replace") if answer.status != 204 else ""
            return _Look(answer.status, text, dict(answer.headers))
    except NotAuthorized:
        raise
    except DicomWebError as error:
        if isinstance(error, Unavailable) and error.status in {None, 503}:
            raise
        return _Look(error.status or 0, error.server_text, {})
