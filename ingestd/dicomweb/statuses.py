"""What a status code means: decided here and nowhere else."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from ingestd.clocks import utc_now
from ingestd.dicomweb.answers import Answer, parse_http_date
from ingestd.dicomweb.errors import (
    DicomWebError,
    MisconfiguredServer,
    NotAuthorized,
    NotFound,
    Refused,
    Throttled,
    TooLarge,
    Unavailable,
    Unintelligible,
)

ERROR_BODY_LIMIT = 65_536
SERVER_TEXT_LIMIT = 2_000

ADVICE: Mapping[int, str] = {
    400: "the request is not valid in the server's eyes",
    401: "the token or password is missing, wrong, expired or for another audience; look at the settings for "
    "authentication (Azure: scope https://dicom.healthcareapis.azure.com/.default)",
    403: "who we are is accepted, and may not do this; give it the right to read and to write "
    "(Azure: the role DICOM Data Owner; a new role takes up to five minutes)",
    405: "the server does not have this operation here",
    406: "the server cannot give the representation that the Accept header asks for (try transfer-syntax=*)",
    407: "a proxy wants a login; proxies of the environment are not used",
    413: "fewer or smaller files per request may pass",
    415: "the server does not take the Content-Type of this request",
    424: "the service cannot reach its own storage or key",
    429: "it may work later",
    503: "it may work later",
}


def error_of(answer: Answer, what: str, *, base_url: str) -> DicomWebError:
    """Turn an answer whose status was not asked for into its error; reads the beginning of its body."""
    status = answer.status
    try:
        text = answer.read_all(ERROR_BODY_LIMIT).decode("utf-8", "replace")[:SERVER_TEXT_LIMIT].strip()
    except DicomWebError:
        text = ""
    facts: dict[str, Any] = {
        "status": status,
        "body_bytes_left": answer.body_bytes_left,
        "server_date": answer.server_date,
        "server_text": text,
    }
    says = f"{what}: the server answered {status} {http.client.responses.get(status, '')}".rstrip()
    advice = ADVICE.get(status, "")
    if advice:
        says = f"{says}; {advice}"
    if status in {401, 403}:
        return NotAuthorized(says, **facts)
    if status in {408, 424, 425, 429} or status >= 500:
        retry_after = parse_retry_after(answer.headers.get("Retry-After"), now=answer.server_date)
        if status == 429:
            return Throttled(says, retry_after=retry_after, **facts)
        if status in {501, 505, 511}:
            return Refused(says, **facts)
        return Unavailable(says, retry_after=retry_after, **facts)
    if 300 <= status < 400:
        return MisconfiguredServer(f"{says}; redirects are not followed: use the final address as URL", **facts)
    if status in {404, 410}:
        if urlsplit(base_url).path.strip("/") == "":
            says = f"{says}; the URL has no path: is the version (/v2) missing?"
        return NotFound(says, **facts)
    if status == 413:
        return TooLarge(says, **facts)
    if 400 <= status < 500:
        return Refused(says, **facts)
    return Unintelligible(f"{says}, which is no answer to this request", **facts)


def parse_retry_after(text: str | None, *, now: datetime | None) -> timedelta | None:
    """Read Retry-After, seconds or a date (RFC 9110 section 10.2.3); never negative, None if it cannot be read."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return timedelta(seconds=min(int(text[:12]), 10**9))
    moment = parse_http_date(text)
    if moment is None:
        return None
    # The date is the server's, so it counts from the server's own clock where that is known.
    return max(moment - (now or utc_now()), timedelta(0))
