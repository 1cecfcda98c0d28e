"""One HTTP exchange with the configured server: sent, and its answer's head read.

Everything goes to paths below the one base URL, so a token can go nowhere else; nothing that a server sends back is
ever used as an address.
"""

from __future__ import annotations

import contextlib
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests
import urllib3.exceptions

from ingestd.dicomweb.answers import Answer
from ingestd.dicomweb.auth import Auth, NoAuth
from ingestd.dicomweb.connections import HttpSession
from ingestd.dicomweb.deadlines import Flight, Timeouts
from ingestd.dicomweb.errors import FileChanged, MisconfiguredServer, SendingEnded, TokenError
from ingestd.dicomweb.failures import error_of, failure_of
from ingestd.dicomweb.pacing import Pace
from ingestd.fs.places import expect_named

_VERSION = re.compile(r"v?(\d+)(?:\.\d+)?(?:-prerelease)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """TLS beyond the public certificate authorities: a private one, and our own certificate (mTLS), all PEM files."""

    ca: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None  # None: in the same file as the certificate

    def __post_init__(self) -> None:
        if self.client_key is not None and self.client_certificate is None:
            raise ValueError("a client key needs its certificate")


class Transport:
    """Sends requests to one server. Thread-safe: each thread has a session, and so connections, of its own."""

    def __init__(
        self,
        base_url: str,
        *,
        auth: Auth | None = None,
        tls: Tls | None = None,
        timeouts: Timeouts | None = None,
        headers: Mapping[str, str] | None = None,
        rate: int | None = None,
    ) -> None:
        self.base_url = check_base_url(base_url)
        self.host = urlsplit(self.base_url).netloc
        self.auth: Auth = auth if auth is not None else NoAuth()
        self.timeouts = timeouts if timeouts is not None else Timeouts()
        self.pace = None if rate is None else Pace(rate)
        self._tls = tls if tls is not None else Tls()
        # Whether a body may go on leaving, asked before each piece of it; False kills the request.
        self.may_send: Callable[[], bool] = lambda: True
        self.on_answer: Callable[[Answer], object] | None = None  # told of each answer, in the asking thread
        self._headers = dict(headers or {})
        if any(name.lower() == "authorization" for name in self._headers):
            raise ValueError("authorization is not given as a header; use auth")
        self._local = threading.local()
        self._sessions: weakref.WeakSet[HttpSession] = weakref.WeakSet()
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
        at_once: bool = False,
    ) -> Answer:
        """Send one request below the base URL and return its answer if its status is one of ``accepts``.

        ``path`` begins with a slash and is percent-encoded; ``route`` is the same without UIDs, for messages. ``body``
        is bytes or an object with ``__len__`` and ``__iter__`` that gives the same bytes each time. A 401 throws the
        token away, and if there is another then the request is sent once more: a complete 401 says that the server has
        not looked at the body. Nothing else is repeated.

        ``at_once`` holds the body to no rate. Raises DicomWebError, of the class that the answer or its absence means.
        """
        accepts = frozenset(accepts)
        what = f"{method} {route} on {self.host}"
        header = self.auth.header()
        pace = None if at_once else self.pace
        answer = self._send_once(method, path, what, params, headers, body, header, pace)
        if answer.status == 401 and 401 not in accepts:
            with contextlib.closing(answer):
                refusal = error_of(answer, what, base_url=self.base_url)
            if not self.auth.renew(header):
                raise refusal
            answer = self._send_once(method, path, what, params, headers, body, self.auth.header(), pace)
        if answer.status in accepts:
            return answer
        with contextlib.closing(answer):
            raise error_of(answer, what, base_url=self.base_url)

    def _send_once(
        self,
        method: str,
        path: str,
        what: str,
        params: Sequence[tuple[str, str]],
        headers: Mapping[str, str] | None,
        body: Any,
        authorization: str | None,
        pace: Pace | None,
    ) -> Answer:
        session = self._session(what)
        all_headers = {**self._headers, **(headers or {})}
        if authorization is not None:
            if not (authorization.isascii() and authorization.isprintable()):
                # What sends headers would refuse it too, with the whole token in its words.
                raise TokenError("no token: what was given for one holds more than plain characters on one line")
            all_headers["Authorization"] = authorization
        request = session.prepare_request(
            requests.Request(method, self.base_url + path, params=list(params), data=body, headers=all_headers)
        )
        timeout = (self.timeouts.connect.total_seconds(), self.timeouts.read.total_seconds())
        size_bytes = 0 if body is None else len(body)
        flight = Flight(self.timeouts, size_bytes=size_bytes, pace=pace, may_send=self.may_send)
        try:
            flight.__enter__()
            response = session.send(request, stream=True, allow_redirects=False, timeout=timeout, proxies={})
        except BaseException as error:
            if isinstance(error, (FileChanged, SendingEnded)):
                error.body_bytes_left = flight.body_bytes_left
            if flight.body_bytes_left:
                flight.abort()
            flight.__exit__()
            if not isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError, OSError)):
                raise
            raise failure_of(error, flight, what) from None  # its text holds the URL, and that UIDs
        flight.leave_thread()
        answer = Answer(response, flight, what)
        if self.on_answer is not None:
            self.on_answer(answer)
        if answer.headers.get("Content-Encoding", "identity").strip().lower() not in {"", "identity"}:
            # We asked for identity. What is sent compressed anyway is not inflated: half a megabyte can become 500.
            answer.close()
            raise answer.unintelligible("the answer is compressed although that was declined")
        return answer

    def _session(self, what: str) -> HttpSession:
        session: HttpSession | None = getattr(self._local, "session", None)
        if session is None:
            self._expect_certificates(what)
            tls = self._tls
            cert: tuple[str, str] | str | None = None
            if tls.client_certificate is not None:
                cert = str(tls.client_certificate)
                cert = cert if tls.client_key is None else (cert, str(tls.client_key))
            verify = True if tls.ca is None else str(tls.ca)
            session = HttpSession(timeouts=self.timeouts, verify=verify, cert=cert)
            self._local.session = session
            with self._sessions_lock:
                self._sessions.add(session)
        return session

    def _expect_certificates(self, what: str) -> None:
        tls = self._tls
        for file in filter(None, (tls.ca, tls.client_certificate, tls.client_key)):
            try:
                expect_named(file)
            except FileNotFoundError:
                continue  # told by requests
            except OSError as error:
                says = f"{what}: cannot read the certificate or key file {str(file)!r}: {error.strerror}"
                raise MisconfiguredServer(f"{says}; look at the settings for TLS") from None


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
    path = ""
    for segment in segments:
        if segment in {"", ".", ".."}:
            raise ValueError("a UID in a request's path is empty")
        path += "/" + quote(segment, safe="$,")
    return path


def version_of(base_url: str) -> int | None:
    """Read the API version from the URL's last segment (``/v2``), None if it has none."""
    match = _VERSION.fullmatch(urlsplit(base_url).path.rpartition("/")[2])
    return int(match[1]) if match else None


def resource(study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> tuple[str, str]:
    """Return the path of a study, series or instance, and the same without UIDs; raises ValueError for a gap."""
    if sop_uid is not None and series_uid is None:
        raise ValueError("an instance needs its series")
    path, route = path_of("studies", study_uid), "/studies/{study}"
    if series_uid is not None:
        path, route = path + path_of("series", series_uid), route + "/series/{series}"
    if sop_uid is not None:
        path, route = path + path_of("instances", sop_uid), route + "/instances/{instance}"
    return path, route
