"""What can go wrong between us and a DICOMweb server, as one small tree; permanence is decided by the class.

    DicomWebError
    +- Unavailable            no verdict on the request: no connection, a deadline, 408, 424, 5xx; try later
    |  +- SendingEnded        we killed it ourselves: what is sent may be another's to send by now
    |  +- Throttled           429: the server asks for patience and has looked at nothing
    |  +- NotAuthorized       401, 403: says nothing about the request itself
    |     +- TokenError       we could not even get a token; nothing was sent
    +- Refused                the server understood and said no: 400, 404, 405, 406, 409, 410, 415 ...
    |  +- NotFound            404, 410
    |  +- TooLarge            413
    +- MisconfiguredServer    a redirect, a login page, a wrong certificate: a person has to look at the settings
    +- Unintelligible         an answer that we cannot read, or that breaks off
    +- FileChanged            a file is no longer what its digest says; the request was killed

No message holds a UID, a URL with a UID, a file name or a server's own words: those may be patient data. What the
server said is in ``server_text`` for a caller who asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from datetime import datetime, timedelta


class DicomWebError(Exception):
    """A DICOMweb request failed.

    ``body_bytes_left`` counts the bytes of the request's body that may have left this machine; 0 is proof that the
    server saw none of it. ``nothing_was_stored`` is True where a store is proven to have had no effect: no body byte
    left, or a complete answer that says that the server has not looked at the body (401, 403, 413, 429).
    """

    is_temporary: ClassVar[bool] = False
    proves_nothing_stored: ClassVar[bool] = False

    def __init__(
        self,
        message: str | None = None,
        *,
        status: int | None = None,
        body_bytes_left: int = 0,
        server_date: datetime | None = None,
        server_text: str = "",
    ) -> None:
        first_line = (type(self).__doc__ or "").strip().partition("\n")[0].rstrip(".")
        super().__init__(message or first_line)
        self.status = status
        self.body_bytes_left = body_bytes_left
        self.server_date = server_date
        self.server_text = server_text

    @property
    def nothing_was_stored(self) -> bool:
        """Whether a store that ended so is proven to have had no effect on the server."""
        return self.body_bytes_left == 0 or (self.proves_nothing_stored and self.status is not None)


class Unavailable(DicomWebError):
    """The server gave no verdict; the same request may work later.

    ``retry_after`` is what the server asked for, unclamped; ``timed_out`` tells a deadline from a broken connection.
    """

    is_temporary = True

    def __init__(
        self,
        message: str | None = None,
        *,
        status: int | None = None,
        body_bytes_left: int = 0,
        server_date: datetime | None = None,
        server_text: str = "",
        retry_after: timedelta | None = None,
        timed_out: bool = False,
    ) -> None:
        super().__init__(
            message, status=status, body_bytes_left=body_bytes_left, server_date=server_date, server_text=server_text
        )
        self.retry_after = retry_after
        self.timed_out = timed_out


class Throttled(Unavailable):
    """The server asks us to slow down (429)."""

    proves_nothing_stored = True


class SendingEnded(Unavailable):
    """The request was killed, because what is sent may be another's to send by now."""


class NotAuthorized(Unavailable):
    """The server does not accept our token (401) or our role (403)."""

    proves_nothing_stored = True


class TokenError(NotAuthorized):
    """No token could be had, so nothing was sent."""


class Refused(DicomWebError):
    """The server understood the request and refused it."""


class NotFound(Refused):
    """The server does not have it (404, 410)."""


class TooLarge(Refused):
    """The request is larger than the server allows (413)."""

    proves_nothing_stored = True


class MisconfiguredServer(DicomWebError):
    """What answered is not the DICOMweb service that was configured: a redirect, a web page, a wrong certificate."""


class Unintelligible(DicomWebError):
    """The answer cannot be read, or breaks off."""


class FileChanged(DicomWebError):
    """A file is not what its digest says; the request was killed before the end of that part left.

    ``part_index`` counts from 0, ``sop_uid`` is the one its part was given ("" if none). ``why`` is one of ``gone``
    (there is no file, or only what is none: a link, a folder), ``unreadable``, ``size``, ``meta`` (preamble and group
    0002 differ) and ``content`` (the data set differs).
    """

    def __init__(self, why: str, *, part_index: int, sop_uid: str = "", body_bytes_left: int = 0) -> None:
        words = {
            "gone": "is gone",
            "unreadable": "cannot be read",
            "size": "has another size than when it was read",
            "meta": "has another preamble or File Meta group than when it was read",
            "content": "has other content than when it was read",
        }
        message = f"part {part_index} of a store {words[why]}; the request was killed"
        super().__init__(message, body_bytes_left=body_bytes_left)
        self.why = why
        self.part_index = part_index
        self.sop_uid = sop_uid
