"""An answer whose head has been read, and its body as it comes; what broke it, when it breaks."""

from __future__ import annotations

import email.utils
import http.client
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Self

import requests
import urllib3.exceptions

from ingestd.dicomweb.deadlines import Flight
from ingestd.dicomweb.errors import DicomWebError, Unavailable, Unintelligible

READ_SIZE = 1_048_576
# What may follow the last byte that matters: a line's end, the empty chunk. One that is held back is not waited for.
END_READS, END_READ_SECONDS = 4, 0.5
# No clock of a server shows other years; beyond them, sums of times have no value any more.
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


class Answer:
    """A response whose head has been read. Close it, or use it as a context manager."""

    def __init__(self, response: requests.Response, flight: Flight, what: str) -> None:
        self.response = response
        self.body = b""  # what ``read_all`` has read of it
        self._flight = flight
        self._what = what
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        # Content-Type without its parameters, lower case.
        self.media_type = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        self.server_date = parse_http_date(response.headers.get("Date"))
        self.body_bytes_left = flight.body_bytes_left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else break it off."""
        if self._has_no_body:
            self.response.raw.read()  # else it does not count as read to its end
        # urllib3 would hand a connection with unread bytes to the next request.
        if not self.response.raw.isclosed():
            self.response.raw.close()
        self.response.close()
        self._flight.finish()

    @property
    def _has_no_body(self) -> bool:
        """Whether nothing follows the head (RFC 9112 section 6.3); not where a 204 says that something does."""
        announced = self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers
        return not announced and self.response.raw.length_remaining == 0

    @property
    def has_known_end(self) -> bool:
        """Whether the end of the body can be told from a broken connection (RFC 9112 section 6.3)."""
        coding = self.headers.get("Transfer-Encoding", "").lower()
        return "Content-Length" in self.headers or "chunked" in coding

    def read(self, size_bytes: int) -> bytes:
        """Read what has come of the body, at most so many bytes; b"" at its end.

        Raises Unintelligible where the body breaks off, Unavailable when it comes too slowly or the connection breaks.
        """
        self._flight.begin_wait()
        data = b""
        try:
            # What has come, not more: a ``read`` would wait until it has so many bytes, or lose what it has.
            data = self.response.raw.read1(size_bytes, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            raise self._broken(error) from None  # its text may hold the URL
        finally:
            self._flight.end_wait(len(data))
        if self._flight.is_late and not data:
            raise self._broken(TimeoutError())
        return data

    def read_end(self) -> None:
        """Read what little follows a body of which all that matters was had, so that its connection can be kept.

        Where the end does not come at once, ``close`` breaks the connection off; the answer is no worse for it.
        """
        sock = getattr(self.response.raw.connection, "sock", None)
        if sock is None:
            return  # it was read to its end, or is the connection's last
        patience = sock.gettimeout()
        sock.settimeout(END_READ_SECONDS)
        try:
            for _ in range(END_READS):
                if not self.read(READ_SIZE):
                    break
        except DicomWebError:
            return  # it cannot be used again
        sock.settimeout(patience)

    def _broken(self, error: Exception) -> DicomWebError:
        facts: dict[str, Any] = {
            "status": self.status,
            "body_bytes_left": self.body_bytes_left,
            "server_date": self.server_date,
        }
        if self._flight.is_late or is_about(error, (TimeoutError, urllib3.exceptions.ReadTimeoutError)):
            return Unavailable(f"{self._what}: the answer comes too slowly and was given up", timed_out=True, **facts)
        if is_about(error, ConnectionError) and not is_about(error, http.client.IncompleteRead):
            return Unavailable(f"{self._what}: the connection broke in the middle of the answer", **facts)
        return Unintelligible(f"{self._what}: the answer breaks off before its end", **facts)

    def read_all(self, limit_bytes: int) -> bytes:
        """Read the whole body; raises Unintelligible if it is longer than the limit."""
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := self.read(65_536):
                size += len(piece)
                if size > limit_bytes:
                    raise self.unintelligible(f"the answer is longer than {limit_bytes} bytes")
                pieces.append(piece)
        finally:
            self.body = b"".join(pieces)
        return self.body

    def unintelligible(self, why: str, *, server_text: str = "") -> Unintelligible:
        """Build the error that says that this answer cannot be read."""
        return Unintelligible(
            f"{self._what}: {why}",
            status=self.status,
            body_bytes_left=self.body_bytes_left,
            server_date=self.server_date,
            server_text=server_text,
        )


def parse_http_date(text: str | None) -> datetime | None:
    """Read an HTTP date (RFC 9110 section 5.6.7) as aware UTC, None if it is none."""
    if not text:
        return None
    try:
        return bounded_utc(email.utils.parsedate_to_datetime(text))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def bounded_utc(moment: datetime) -> datetime:
    """Return an instant that came from a server as aware UTC, no zone counting as UTC; ValueError beyond all clocks."""
    try:
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time that no calendar has") from None
    if not EARLIEST <= moment < LATEST:
        raise ValueError("a time that no clock shows")
    return moment


def causes_of(error: BaseException) -> Iterator[BaseException]:
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


def find_cause(error: BaseException, kinds: Any, *, last: bool = False) -> BaseException | None:
    """Return the first (or the innermost) of an error's causes that is one of these kinds."""
    found = [cause for cause in causes_of(error) if isinstance(cause, kinds)]
    if last:  # the innermost that is not one of requests' own, which are OSErrors as well
        found = [cause for cause in found if not isinstance(cause, requests.RequestException)] or found
        return found[-1] if found else None
    return found[0] if found else None


def is_about(error: BaseException, kinds: Any) -> bool:
    """Whether one of these kinds is among an error's causes."""
    return find_cause(error, kinds) is not None
