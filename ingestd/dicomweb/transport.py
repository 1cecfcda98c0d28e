"""One HTTP exchange with the configured server: sent, its answer's head read, its class of failure decided.

Everything goes to paths below the one base URL, so a token can go nowhere else; nothing that a server sends back is
ever used as an address. What a status code means is decided here and nowhere else.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import ssl
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import requests
import urllib3.exceptions

from ingestd.dicomweb.auth import Auth, NoAuth
from ingestd.dicomweb.connections import Session, tls_settings
from ingestd.dicomweb.deadlines import Flight, Timeouts
from ingestd.dicomweb.errors import (
    DicomWebError,
    FileChanged,
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
READ_SIZE = 262_144


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """TLS beyond the public certificate authorities: a private one, and our own certificate (mTLS), all PEM files."""

    ca: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None  # None: in the same file as the certificate


class Answer:
    """A response whose head has been read. Close it, or use it as a context manager."""

    def __init__(self, response: requests.Response, flight: Flight, what: str) -> None:
        self._response = response
        self._flight = flight
        self._what = what
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.server_date = parse_http_date(response.headers.get("Date"))
        self.body_bytes_left = flight.body_bytes_left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else break it off."""
        # urllib3 would hand a connection with unread bytes to the next request.
        if not self._response.raw.isclosed():
            self._response.raw.close()
        self._response.close()
        self._flight.finish()

    @property
    def media_type(self) -> str:
        """The Content-Type without its parameters, lower case."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def has_known_end(self) -> bool:
        """Whether the end of the body can be told from a broken connection (RFC 9112 section 6.3)."""
        coding = self.headers.get("Transfer-Encoding", "").lower()
        return "Content-Length" in self.headers or "chunked" in coding

    def read(self, size_bytes: int) -> bytes:
        """Read up to so many bytes of the body, b"" at its end.

        Raises Unintelligible where the body breaks off, Unavailable when it comes too slowly or the connection breaks.
        """
        self._flight.begin_wait()
        data = b""
        try:
            data = self._response.raw.read(size_bytes, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            raise self._broken(error) from None  # its text may hold the URL
        finally:
            self._flight.end_wait(len(data))
        if self._flight.is_late and not data:
            raise self._broken(TimeoutError())
        return data

    def _broken(self, error: Exception) -> DicomWebError:
        facts: dict[str, Any] = {
            "status": self.status,
            "body_bytes_left": self.body_bytes_left,
            "server_date": self.server_date,
        }
        if self._flight.is_late or _is_about(error, (TimeoutError, urllib3.exceptions.ReadTimeoutError)):
            return Unavailable(f"{self._what}: the answer comes too slowly and was given up", timed_out=True, **facts)
        if _is_about(error, ConnectionError) and not _is_about(error, http.client.IncompleteRead):
            return Unavailable(f"{self._what}: the connection broke in the middle of the answer", **facts)
        return Unintelligible(f"{self._what}: the answer breaks off before its end", **facts)

    def chunks(self, size_bytes: int = READ_SIZE) -> Iterator[bytes]:
        """Iterate over the body in pieces of at most so many bytes."""
        while data := self.read(size_bytes):
            yield data

    def read_all(self, limit_bytes: int) -> bytes:
        """Read the whole body; raises Unintelligible if it is longer than the limit."""
        pieces: list[bytes] = []
        size = 0
        for piece in self.chunks(65_536):
            size += len(piece)
            if size > limit_bytes:
                raise self.unintelligible(f"the answer is longer than {limit_bytes} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def unintelligible(self, why: str, *, server_text: str = "") -> Unintelligible:
        """Build the error that says that this answer cannot be read."""
        return Unintelligible(
            f"{self._what}: {why}",
            status=self.status,
            body_bytes_left=self.body_bytes_left,
            server_date=self.server_date,
            server_text=server_text,
        )


class Transport:
    """Sends requests to one server. Thread-safe: each thread has a session, and so connections, of its own."""

    def __init__(
        self,
        base_url: str,
        *,
        auth: Auth | None = None,
        tls: Tls | None = None,
        timeouts: Timeouts | None = None,
        user_agent: str = "ingestd",
    ) -> None:
        self.base_url = check_base_url(base_url)
        self.host = urlsplit(self.base_url).netloc
        self.auth: Auth = auth if auth is not None else NoAuth()
        self.timeouts = timeouts if timeouts is not None else Timeouts()
        tls = tls if tls is not None else Tls()
        self._tls = tls_settings(ca=tls.ca, client_certificate=tls.client_certificate, client_key=tls.client_key)
        self._user_agent = user_agent
        self._local = threading.local()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._sessions_lock = threading.Lock()

    def close(self) -> None:
        """Close the idle connections of all threads."""
        with self._sessions_lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        route: str,
        params: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        accepts: Iterable[int] = (200,),
    ) -> Answer:
        """Send one request below the base URL and return its answer if its status is one of ``accepts``.

        ``path`` begins with a slash and is percent-encoded; ``route`` is the same without UIDs, for messages. ``body``
        is bytes or an object with ``__len__`` and ``__iter__`` that gives the same bytes each time. A 401 throws the
        token away, and if there is another then the request is sent once more: a complete 401 says that the server has
        not looked at the body. Nothing else is repeated.

        Raises DicomWebError, of the class that the answer or its absence means.
        """
        accepts = frozenset(accepts)
        what = f"{method} {route} on {self.host}"
        header = self.auth.header()
        answer = self._send_once(method, path, what, params, headers, body, header)
        if answer.status == 401 and 401 not in accepts:
            with contextlib.closing(answer):
                refusal = self._error(answer, what)
            if not self.auth.renew(header):
                raise refusal
            answer = self._send_once(method, path, what, params, headers, body, self.auth.header())
        if answer.status in accepts:
            return answer
        with contextlib.closing(answer):
            raise self._error(answer, what)

    def _send_once(
        self,
        method: str,
        path: str,
        what: str,
        params: Sequence[tuple[str, str]],
        headers: Mapping[str, str] | None,
        body: Any,
        authorization: str | None,
    ) -> Answer:
        session = self._session()
        all_headers = dict(headers or {})
        if authorization is not None:
            all_headers["Authorization"] = authorization
        request = session.prepare_request(
            requests.Request(method, self.base_url + path, params=list(params), data=body, headers=all_headers)
        )
        timeout = (self.timeouts.connect.total_seconds(), self.timeouts.read.total_seconds())
        flight = Flight(self.timeouts, size_bytes=0 if body is None else len(body))
        flight.__enter__()
        try:
            response = session.send(
                request,
                stream=True,
                allow_redirects=False,
                timeout=timeout,
                verify=session.verify,
                cert=session.cert,
                proxies={},
            )
        except BaseException as error:
            if isinstance(error, FileChanged):
                error.body_bytes_left = flight.body_bytes_left
            if flight.body_bytes_left:
                flight.abort()
            flight.__exit__()
            if not isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError, OSError)):
                raise
            raise _failure(error, flight, what) from None  # its text holds the URL, and that UIDs
        flight.leave_thread()
        flight.pause()
        answer = Answer(response, flight, what)
        if answer.headers.get("Content-Encoding", "identity").strip().lower() not in {"", "identity"}:
            # We asked for identity. What is sent compressed anyway is not inflated: half a megabyte can become 500.
            answer.close()
            raise answer.unintelligible("the answer is compressed although that was declined")
        return answer

    def _session(self) -> Session:
        session: Session | None = getattr(self._local, "session", None)
        if session is None:
            session = Session(timeouts=self.timeouts, user_agent=self._user_agent, **self._tls)
            self._local.session = session
            with self._sessions_lock:
                self._sessions.add(session)
        return session

    def _error(self, answer: Answer, what: str) -> DicomWebError:
        """Turn a status that was not asked for into its error (facts in the module's table below)."""
        status = answer.status
        try:
            text = answer.read(ERROR_BODY_LIMIT).decode("utf-8", "replace")[:SERVER_TEXT_LIMIT].strip()
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
            if urlsplit(self.base_url).path.strip("/") == "":
                says = f"{says}; the URL has no path: is the version (/v2) missing?"
            return NotFound(says, **facts)
        if status == 413:
            return TooLarge(says, **facts)
        if 400 <= status < 500:
            return Refused(says, **facts)
        return Unintelligible(f"{says}, which is no answer to this request", **facts)


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


def check_base_url(url: str) -> str:
    """Return the URL without a trailing slash; raises ValueError unless it is http(s), a host and maybe a path."""
    parts = urlsplit(url.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("the server's URL must begin with http:// or https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the server's URL may not hold a user name or password; use basic authentication")
    if parts.query or parts.fragment:
        raise ValueError("the server's URL may not have a query or a fragment")
    if parts.port is not None and not 0 < parts.port < 65_536:  # .port itself raises ValueError beyond
        raise ValueError("the server's URL has no valid port")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def path_of(*segments: str) -> str:
    """Join path segments, each percent-encoded whole (so that no UID can climb out of its place)."""
    for segment in segments:
        if segment in {"", ".", ".."}:
            raise ValueError("a UID in a request's path is empty")
    return "".join("/" + quote(segment, safe="$,") for segment in segments)


def parse_http_date(text: str | None) -> datetime | None:
    """Read an HTTP date (RFC 9110 section 5.6.7) as aware UTC, None if it is none."""
    if not text:
        return None
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


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
    return max(moment - (now or datetime.now(UTC)), timedelta(0))


def _failure(error: Exception, flight: Flight, what: str) -> DicomWebError:
    """Turn what requests raised into our error, without its text."""
    left = flight.body_bytes_left
    told = "part of the request had left" if left else "nothing of its body had left"
    if flight.is_late:
        return Unavailable(f"{what}: too slow, given up; {told}", body_bytes_left=left, timed_out=True)
    certificate = _find(error, (ssl.SSLCertVerificationError, ssl.CertificateError))
    if certificate is not None:
        reason = getattr(certificate, "verify_message", "") or "not valid for this host"
        return MisconfiguredServer(f"{what}: the server's certificate does not hold: {reason}", body_bytes_left=left)
    protocol = _find(error, http.client.HTTPException)
    if protocol is not None and not isinstance(protocol, http.client.RemoteDisconnected):
        return Unintelligible(f"{what}: what came back is not HTTP ({type(protocol).__name__})", body_bytes_left=left)
    cause = _find(error, OSError, last=True)
    if isinstance(cause, FileNotFoundError) and left == 0:
        return MisconfiguredServer(f"{what}: a certificate or key file is not there")
    timed_out = _is_about(error, (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)) and not _is_about(
        error, urllib3.exceptions.NewConnectionError
    )
    if timed_out:
        return Unavailable(f"{what}: no answer in time; {told}", body_bytes_left=left, timed_out=True)
    name = type(cause).__name__ if cause is not None else type(error).__name__
    strerror = getattr(cause, "strerror", None)
    detail = f"{name}: {strerror}" if strerror and isinstance(strerror, str) else name
    return Unavailable(f"{what}: no answer ({detail}); {told}", body_bytes_left=left)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Walk what an error of requests is made of: its arguments, reasons, causes and contexts."""
    seen: set[int] = set()
    todo: list[Any] = [error]
    while todo:
        item = todo.pop(0)
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        todo.extend(item.args)
        todo.extend([getattr(item, "reason", None), item.__cause__, item.__context__])


def _find(error: BaseException, kinds: Any, *, last: bool = False) -> BaseException | None:
    found = [cause for cause in _causes(error) if isinstance(cause, kinds)]
    if last:  # the innermost that is not one of requests' own, which are OSErrors as well
        found = [cause for cause in found if not isinstance(cause, requests.RequestException)] or found
        return found[-1] if found else None
    return found[0] if found else None


def _is_about(error: BaseException, kinds: Any) -> bool:
    return _find(error, kinds) is not None
