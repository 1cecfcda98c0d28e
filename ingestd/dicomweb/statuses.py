"""What a status code means, and what it means that there is none: decided here and nowhere else."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from ingestd.clocks import utc_now
from ingestd.dicomweb.answers import Answer, find_cause, is_about, parse_http_date
from ingestd.dicomweb.deadlines import Flight
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
# OpenSSL's reasons that say that the two sides do not fit, rather than that one is in trouble.
TLS_MISMATCHES = (
    "WRONG_VERSION",
    "UNSUPPORTED_PROTOCOL",
    "PROTOCOL_VERSION",
    "HANDSHAKE_FAILURE",
    "CERTIFICATE_REQUIRED",
    "BAD_CERTIFICATE",
    "UNKNOWN_CA",
)

ADVICE: Mapping[int, str] = {
    400: "the request is not valid in the server's eyes",
    401: "the token is missing, expired or for another audience "
    "(Azure: scope https://dicom.healthcareapis.azure.com/.default)",
    403: "the role is missing (Azure: DICOM Data Owner to write, DICOM Data Reader to read; "
    "a new role takes up to five minutes)",
    405: "the server does not have this operation here",
    406: "the server cannot give the representation that the Accept header asks for (try transfer-syntax=*)",
    407: "a proxy wants a login; proxies of the environment are not used",
    413: "fewer or smaller files per request may pass",
    415: "the server does not take the Content-Type of this request",
    424: "the service cannot reach its own storage or key",
    429: "it will be tried again later",
    503: "it will be tried again later",
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


def failure_of(error: Exception, flight: Flight, what: str) -> DicomWebError:
    """Turn what requests raised into our error, without its text."""
    left = flight.body_bytes_left
    told = "part of the request had left" if left else "nothing of its body had left"
    if flight.is_late:
        return Unavailable(f"{what}: too slow, given up; {told}", body_bytes_left=left, timed_out=True)
    certificate = find_cause(error, (ssl.SSLCertVerificationError, ssl.CertificateError))
    if certificate is not None:
        reason = getattr(certificate, "verify_message", "") or "not valid for this host"
        return MisconfiguredServer(f"{what}: the server's certificate does not hold: {reason}", body_bytes_left=left)
    tls = find_cause(error, ssl.SSLError)
    reason = getattr(tls, "reason", None) or ""
    if any(word in reason for word in TLS_MISMATCHES):
        # Both sides are there and will never agree: another try gives the same.
        return MisconfiguredServer(
            f"{what}: TLS fails ({reason.replace('_', ' ').lower()}); look at the address's scheme and port, and at "
            "the client certificate if the server wants one",
            body_bytes_left=left,
        )
    protocol = find_cause(error, http.client.HTTPException)
    if protocol is not None and not isinstance(protocol, http.client.RemoteDisconnected):
        return Unintelligible(f"{what}: what came back is not HTTP ({type(protocol).__name__})", body_bytes_left=left)
    cause = find_cause(error, OSError, last=True)
    # requests looks for certificate files before it connects, and says so in a bare OSError.
    if isinstance(cause, FileNotFoundError) or (type(error) is OSError and error.errno is None):
        return MisconfiguredServer(f"{what}: a certificate or key file is not there")
    timed_out = is_about(error, (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)) and not is_about(
        error, urllib3.exceptions.NewConnectionError
    )
    if timed_out:
        return Unavailable(f"{what}: no answer in time; {told}", body_bytes_left=left, timed_out=True)
    name = type(cause).__name__ if cause is not None else type(error).__name__
    strerror = getattr(cause, "strerror", None)
    detail = f"{name}: {strerror}" if strerror and isinstance(strerror, str) else name
    return Unavailable(f"{what}: no answer ({detail}); {told}", body_bytes_left=left)


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
