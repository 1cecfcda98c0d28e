"""Which server this is, as far as its habits decide what an answer proves; found by asking it cheaply."""

from __future__ import annotations

from datetime import timedelta

from ingestd.dicomweb import DicomWebClient, DicomWebError, Refused, Unintelligible
from ingestd.lifecycle import ServerKind, ServerProfile

# A second copy is harmless on Azure (refused) and on Orthanc (ignored); elsewhere it may do damage (reliability 0.12).
HARMLESS_ABSENCE_WAIT = timedelta(seconds=10)
CAREFUL_ABSENCE_WAIT = timedelta(minutes=5)


def profile_of(kind: ServerKind, *, feed_version: int | None = None) -> ServerProfile:
    """Return what is known of a kind of server; ``feed_version`` is that of the URL where there is a change feed."""
    azure = kind is ServerKind.AZURE
    orthanc = kind is ServerKind.ORTHANC
    version = (feed_version or 2) if azure else feed_version
    return ServerProfile(
        kind=kind,
        refuses_duplicates=azure,
        compares_all=orthanc,
        gives_original=azure,
        has_feed=version is not None,
        feed_version=version,
        absence_wait=HARMLESS_ABSENCE_WAIT if azure or orthanc else CAREFUL_ABSENCE_WAIT,
    )


def probe_profile(client: DicomWebClient) -> ServerProfile:
    """Ask the server what it is: Azure has a change feed, Orthanc's DICOMweb plugin a list of peers.

    Raises DicomWebError where the server cannot be asked now (Unavailable, NotAuthorized, MisconfiguredServer).
    """
    if _has_feed(client):
        return profile_of(ServerKind.AZURE, feed_version=1 if client.api_version == 1 else 2)
    return profile_of(ServerKind.ORTHANC if _is_orthanc(client) else ServerKind.OTHER)


def look_in(client: DicomWebClient, profile: ServerProfile | None) -> None:
    """Make the cheapest request that needs the token and the server's mind; raises DicomWebError if it does not work.

    Any complete answer to it will do, also a refusal: it shows that somebody is at home.
    """
    try:
        if profile is not None and profile.has_feed:
            client.change_feed_latest()
        else:
            client.search_studies(limit=1)
    except (Refused, Unintelligible) as error:
        if error.status is None:
            raise


def _has_feed(client: DicomWebClient) -> bool:
    try:
        # Not /latest: an empty server answers that with a bare 204, which something else may say to anything.
        client.change_feed(limit=1)
    except (Refused, Unintelligible) as error:
        if error.status is None:
            raise
        return False
    return True


def _is_orthanc(client: DicomWebClient) -> bool:
    try:
        with client.transport.send("GET", "/servers", route="/servers") as answer:
            return answer.media_type == "application/json" and answer.read(1) == b"["
    except DicomWebError as error:
        # Only asked where the server has just answered something else.
        if error.status is None:
            raise
        return False
