"""Which failed requests concern the server as a whole and not what was asked of it, and how such a pause is called."""

from __future__ import annotations

from http import HTTPStatus

from ingestd.dicomweb import DicomWebError, MisconfiguredServer, NotAuthorized, Throttled, TokenError, Unavailable
from ingestd.lifecycle import Pause, PauseCause, clamp_retry_after

# Said by a server, or by the gateway before it, about itself and not about what was sent.
ABOUT_ITSELF = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE})
_ALWAYS = (MisconfiguredServer, NotAuthorized, Throttled)


def stops_queries(error: DicomWebError) -> bool:
    """Say whether asking about something else would fail the same way.

    A 500 is about what was asked for: Azure gives it where the database has an instance whose file is gone (AZURE.md
    0.3). So is an answer that began and came too slowly, or broke off.
    """
    return isinstance(error, _ALWAYS) or (
        isinstance(error, Unavailable) and (error.status is None or error.status in ABOUT_ITSELF)
    )


def stops_posts(error: DicomWebError) -> bool:
    """Say whether the failure of a post is the destination's and not the post's."""
    return isinstance(error, _ALWAYS) or (
        isinstance(error, Unavailable) and (error.status in ABOUT_ITSELF or error.body_bytes_left == 0)
    )


def pause_of(error: DicomWebError) -> Pause:
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
    elif isinstance(error, Unavailable) and error.status is None:
        cause = PauseCause.UNREACHABLE
    asked = error.retry_after if isinstance(error, Unavailable) else None
    return Pause(cause=cause, note=str(error), retry_after=None if asked is None else clamp_retry_after(asked))
