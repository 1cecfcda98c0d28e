"""Which failures concern one instance, and which the server as a whole."""

from __future__ import annotations

from http import HTTPStatus

from ingestd.dicomweb import DicomWebError, MisconfiguredServer, NotAuthorized, Throttled, TokenError, Unavailable
from ingestd.lifecycle import Pause, PauseCause, clamp_retry_after


def concerns_server(error: DicomWebError) -> bool:
    """Say whether asking about something else would fail the same way.

    A 500 is about what was asked for: Azure gives it where the database has an instance whose file is gone (Azure
    conformance v2, 0.3). So is an answer that began and came too slowly, or broke off.
    """
    if isinstance(error, (MisconfiguredServer, NotAuthorized, Throttled)):
        return True
    if not isinstance(error, Unavailable):
        return False
    return error.status in {None, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE}


def pause_for(error: DicomWebError) -> Pause:
    """Say what keeps the server from being asked."""
    cause = PauseCause.UNAVAILABLE
    if isinstance(error, TokenError):
        cause = PauseCause.NO_TOKEN
    elif isinstance(error, NotAuthorized):
        cause = PauseCause.NOT_AUTHORIZED
    elif isinstance(error, Throttled):
        cause = PauseCause.THROTTLED
    elif isinstance(error, MisconfiguredServer):
        cause = PauseCause.MISCONFIGURED
    elif error.status is None:
        cause = PauseCause.UNREACHABLE
    asked = error.retry_after if isinstance(error, Unavailable) else None
    retry_after = None if asked is None else clamp_retry_after(asked)
    return Pause(cause=cause, note=str(error), retry_after=retry_after)
