"""What it means that a request failed, by its status or for want of an answer: decided here and nowhere else.

Each sentence says what was tried and on what, what came back, and what to do. Nothing of a library's own text is in it:
that holds the URL.
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
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

# OpenSSL's reasons that say that the two sides do not fit, rather than that one is in trouble.
_TLS_MISMATCHES = (
    "WRONG_VERSION",
    "UNSUPPORTED_PROTOCOL",
    "PROTOCOL_VERSION",
    "HANDSHAKE_FAILURE",
    "CERTIFICATE_REQUIRED",
    "BAD_CERTIFICATE",
    "UNKNOWN_CA",
)

# OpenSSL's X509_V_ERR_*: what is wrong with the server's certificate, and what to do.
_CERTIFICATES: Mapping[int, str] = {
    9: "is not valid yet; look at the clocks of both machines",
    10: "is no longer valid; renew it on the server, or set this machine's clock",
    62: "is made for another name; use the name that stands in it as address, or have it made for this one",
    64: "is made for another name; use the name that stands in it as address, or have it made for this one",
}
_UNTRUSTED = (
    "is not trusted ({why}); if it comes from an authority of your own, name that one's certificate "
    "(`tls: {{ca_file: ...}}`, `--ca`)"
)

# Of a call that asks for a connection.
_NO_CONNECTION: Mapping[int, str] = {
    errno.ECONNREFUSED: "the connection is refused: nothing listens there; start the server, or mend its address "
    "and port",
    errno.ENETUNREACH: "no way leads there; look at this machine's network, its routes and the address",
    errno.EHOSTUNREACH: "no way leads there; look at the network, its firewalls and the address",
    errno.EACCES: "no way leads there, it is forbidden; look at this machine's network, its firewall and the address",
    errno.EPERM: "no way leads there, it is forbidden; look at this machine's network, its firewall and the address",
}
_OTHERWISE = "no connection ({why}); look at this machine's network and the address"
_NO_NAME = "no such name is found; look at how the address is spelt, and at this machine's DNS"
_NO_NAME_SERVER = "its name cannot be looked up at present; look at this machine's network and its DNS"
_CUT = "the connection was cut before an answer came; look at the server, and at what stands between (proxy, firewall)"


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


def failure_of(error: Exception, flight: Flight, what: str) -> DicomWebError:
    """Turn what requests raised into our error, without its text."""
    left = flight.body_bytes_left
    told = _what_left(flight)
    if flight.is_late:
        says = f"{what}: it took too long and was given up; look at the server and the network{told}"
        return Unavailable(says, body_bytes_left=left, timed_out=True)
    certificate = find_cause(error, (ssl.SSLCertVerificationError, ssl.CertificateError))
    if certificate is not None:
        return MisconfiguredServer(f"{what}: the server's certificate {_distrust(certificate)}", body_bytes_left=left)
    tls = find_cause(error, ssl.SSLError)
    reason = getattr(tls, "reason", None) or ""
    if any(word in reason for word in _TLS_MISMATCHES):
        # Both sides are there and will never agree: another try gives the same.
        return MisconfiguredServer(
            f"{what}: TLS fails ({reason.replace('_', ' ').lower()}); look at the address's scheme and port, and at "
            "the client certificate if the server wants one",
            body_bytes_left=left,
        )
    protocol = find_cause(error, http.client.HTTPException)
    if protocol is not None and not isinstance(protocol, http.client.RemoteDisconnected):
        says = f"{what}: what came back is not HTTP; look at the address's scheme and port"
        return Unintelligible(says, body_bytes_left=left)
    cause = find_cause(error, OSError, last=True)
    # requests looks for certificate files before it connects, and says so in a bare OSError.
    if isinstance(cause, FileNotFoundError) or (type(error) is OSError and error.errno is None):
        return MisconfiguredServer(f"{what}: a certificate or key file is not there; look at the settings for TLS")
    connecting = is_about(error, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError))
    timed_out = is_about(error, (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)) and not is_about(
        error, urllib3.exceptions.NewConnectionError
    )
    if timed_out:
        happened = _too_late(flight, connecting=connecting)
    elif isinstance(cause, socket.gaierror):
        happened = _NO_NAME_SERVER if cause.errno == socket.EAI_AGAIN else _NO_NAME
    elif connecting and isinstance(cause, OSError):
        why = os.strerror(cause.errno).lower() if cause.errno else "no reason given"
        happened = _NO_CONNECTION.get(cause.errno or 0, _OTHERWISE.format(why=why))
    else:
        happened = _CUT
    return Unavailable(f"{what}: {happened}{told}", body_bytes_left=left, timed_out=timed_out)


def _what_left(flight: Flight) -> str:
    """Say, of a request that carries something, whether its outcome is known."""
    if not flight.size_bytes:
        return ""
    if not flight.body_bytes_left:
        return "; nothing of it had left"
    return (
        "; the outcome is unknown: some or all of it may have arrived, and the server has to be searched for it before "
        "it is sent again"
    )


def _distrust(certificate: BaseException) -> str:
    code = getattr(certificate, "verify_code", 0)
    if not code:  # urllib3's own comparison of names
        code = 62
    why = str(getattr(certificate, "verify_message", "")) or "no reason given"
    return _CERTIFICATES.get(code) or _UNTRUSTED.format(why=why)


def _too_late(flight: Flight, *, connecting: bool) -> str:
    if connecting:
        return (
            f"nothing answers at that address (waited {flight.timeouts.connect.total_seconds():g} s); look whether it "
            "is right, whether the machine is on, and whether a firewall is between"
        )
    waited = flight.timeouts.read.total_seconds()
    return f"connected, and no answer came in {waited:g} s; look at the server: it may hang, or have too much to do"
