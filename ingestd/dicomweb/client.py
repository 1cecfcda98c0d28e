"""DicomWebClient: one method per operation, each a request built, sent and its answer read; nothing is decided here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Self

from ingestd.dicomweb import change_feed as feed
from ingestd.dicomweb.auth import Auth
from ingestd.dicomweb.change_feed import ChangeFeedEntry, ChangeFeedPage
from ingestd.dicomweb.deadlines import Timeouts
from ingestd.dicomweb.decoding import ACCEPT_JSON, TEXT_TYPES, DicomJson
from ingestd.dicomweb.following import LAG, Follower
from ingestd.dicomweb.probing import Capabilities, probe
from ingestd.dicomweb.retrieving import Metadata, Retrieval, Saved, download, read_metadata
from ingestd.dicomweb.searching import Searches
from ingestd.dicomweb.service import (
    ExtendedQueryTags,
    Operations,
    Partition,
    read_partitions,
    start_bulk_update,
    start_export,
)
from ingestd.dicomweb.store_body import StoreBody, StorePart
from ingestd.dicomweb.store_result import StoreResult, read_store_answer
from ingestd.dicomweb.transport import Tls, Transport, path_of, resource, version_of
from ingestd.dicomweb.workitems import Workitems


class DicomWebClient(Searches):
    """A DICOMweb server below ``base_url``, its version segment included (``https://host/v2``).

    Thread-safe; each thread has connections of its own. Nothing is retried but one request after a 401 with another
    token. Every method raises DicomWebError of the class that says what it means; ValueError is a wrong call.
    ``api_version`` is read from the URL (1, 2, or None for servers without) unless given; it decides how the change
    feed is read. ``partition`` puts ``/partitions/{name}`` before every DICOMweb path (AZURE.md 7.4), and
    ``headers`` go with every request, such as Azure's ``X-MS-AZUREDICOM-AUDIT-...`` for its audit log. ``rate``: what
    all threads send leaves at so many bytes a second at most, whatever the timeouts.
    """

    def __init__(
        self,
        base_url: str,
        *,
        auth: Auth | None = None,
        tls: Tls | None = None,
        timeouts: Timeouts | None = None,
        api_version: int | None = None,
        partition: str | None = None,
        headers: Mapping[str, str] | None = None,
        rate: int | None = None,
    ) -> None:
        self.transport = Transport(base_url, auth=auth, tls=tls, timeouts=timeouts, headers=headers, rate=rate)
        self.base_url = self.transport.base_url  # without a trailing slash
        self.api_version = api_version if api_version is not None else version_of(self.base_url)
        self._prefix = path_of("partitions", partition) if partition is not None else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections; the client may still be used."""
        self.transport.close()

    def prepare(self) -> None:
        """Have a valid token ready, so that the next request does not wait for one; raises TokenError."""
        self.transport.auth.header()

    def store(
        self,
        parts: Sequence[StorePart | Path | BinaryIO],
        *,
        study_uid: str | None = None,
        single: bool = False,
        upsert: bool = False,
        expire_after: timedelta | None = None,
        meta: Mapping[str, str] | None = None,
        on_bytes: Callable[[int], object] | None = None,
        at_once: bool = False,
    ) -> StoreResult:
        """Post one Store Transaction and say what became of each instance (PS3.18 §10.5).

        Parts are streamed in order, their digests checked on the way. An instance that the server names in neither
        sequence is in ``unnamed``: nothing is known of it. ``study_uid`` makes the server refuse other studies;
        ``single`` sends one instance as plain ``application/dicom``; ``upsert`` is PUT, which replaces what is there,
        ``expire_after`` deletes the study later, and ``meta`` keeps external metadata with it, by VR and tag path
        (``{"LO-00091001": "value"}``; all three: Azure's managed service only). ``on_bytes`` is told of what has left,
        for a progress bar; ``at_once`` is held to no rate, and takes nothing from what others may send.

        Raises FileChanged (the request was killed; what it had sent may be stored), Unavailable, Throttled,
        NotAuthorized, TokenError, Refused, TooLarge, MisconfiguredServer and Unintelligible; ``body_bytes_left`` and
        ``nothing_was_stored`` of each say what the server may have seen.
        """
        described = [part if isinstance(part, StorePart) else StorePart.of(part) for part in parts]
        body = StoreBody(described, single=single, on_bytes=on_bytes)
        headers = {"Content-Type": body.content_type, "Accept": ACCEPT_JSON}
        if expire_after is not None:
            headers["msdicom-expiry-time-milliseconds"] = str(max(1, round(expire_after / timedelta(milliseconds=1))))
            headers["msdicom-expiry-option"] = "RelativeToNow"
            headers["msdicom-expiry-level"] = "Study"
        for name, value in (meta or {}).items():
            headers[f"msdicom-meta-{name}"] = value
        method = "PUT" if upsert else "POST"
        path, route = ("/studies", "/studies") if study_uid is None else resource(study_uid)
        with self.transport.send(
            method,
            self._prefix + path,
            route=route,
            headers=headers,
            body=body,
            accepts=(200, 202, 204, 400, 409),
            at_once=at_once,
        ) as answer:
            asked = [part.sop_uid for part in described]
            return read_store_answer(answer, asked, what=f"{method} {route} on {self.transport.host}")

    def retrieve_study(self, study_uid: str, *, transfer_syntax: str = "*", original: bool = False) -> Retrieval:
        """Retrieve all instances of a study, streamed (PS3.18 §10.4.1.1.1).

        ``transfer_syntax`` "*" means as stored; ``original`` asks Azure for the version before any bulk update.
        Raises NotFound here, and Unintelligible for JSON, XML or text; what breaks off later raises while reading.
        """
        return self._retrieve(resource(study_uid), transfer_syntax, original=original)

    def retrieve_series(
        self, study_uid: str, series_uid: str, *, transfer_syntax: str = "*", original: bool = False
    ) -> Retrieval:
        """Retrieve all instances of a series, streamed (PS3.18 §10.4.1.1.2); as ``retrieve_study``."""
        return self._retrieve(resource(study_uid, series_uid), transfer_syntax, original=original)

    def retrieve_instance(
        self, study_uid: str, series_uid: str, sop_uid: str, *, transfer_syntax: str = "*", original: bool = False
    ) -> Retrieval:
        """Retrieve one instance, streamed (PS3.18 §10.4.1.1.3); as ``retrieve_study``."""
        return self._retrieve(resource(study_uid, series_uid, sop_uid), transfer_syntax, original=original)

    def _retrieve(self, of: tuple[str, str], transfer_syntax: str, *, original: bool) -> Retrieval:
        path, route = of
        # The type must be quoted and the transfer syntax be named: else Azure answers 406.
        headers = {"Accept": f'multipart/related; type="application/dicom"; transfer-syntax={transfer_syntax}'}
        if original:
            headers["msdicom-request-original"] = "true"
        answer = self.transport.send("GET", self._prefix + path, route=route, headers=headers)
        if answer.media_type in TEXT_TYPES:
            # What a gateway says in the server's place is not what the server has.
            answer.close()
            raise answer.unintelligible(f"it is answered with {answer.media_type}, which is no DICOM")
        return Retrieval(answer)

    def retrieve_frames(
        self,
        study_uid: str,
        series_uid: str,
        sop_uid: str,
        frames: Sequence[int],
        *,
        transfer_syntax: str = "*",
        media_type: str = "application/octet-stream",
    ) -> Retrieval:
        """Retrieve frames, counted from 1, one part each in the order asked for (PS3.18 §10.4.1.1.6).

        The bytes are pixel data: uncompressed for ``application/octet-stream`` in 1.2.840.10008.1.2.1, else as stored.
        Raises NotFound for a frame that is not there.
        """
        if not frames or any(frame < 1 for frame in frames):
            raise ValueError("frames count from 1, and at least one must be asked for")
        path, route = resource(study_uid, series_uid, sop_uid)
        numbers = ",".join(str(frame) for frame in frames)
        headers = {"Accept": f'multipart/related; type="{media_type}"; transfer-syntax={transfer_syntax}'}
        return Retrieval(
            self.transport.send(
                "GET", f"{self._prefix}{path}/frames/{numbers}", route=f"{route}/frames/{{frames}}", headers=headers
            )
        )

    def retrieve_rendered(
        self,
        study_uid: str,
        series_uid: str,
        sop_uid: str,
        *,
        frame: int | None = None,
        media_type: str = "image/jpeg",
        quality: int | None = None,
    ) -> Retrieval:
        """Retrieve an image of an instance or one frame, jpeg or png (PS3.18 §10.4.1.1.3); one part.

        ``quality`` is 1 to 100 and for jpeg only. Without ``frame`` the server shows the first.
        """
        path, route = resource(study_uid, series_uid, sop_uid)
        if frame is not None:
            if frame < 1:
                raise ValueError("frames count from 1")
            path, route = f"{path}/frames/{frame}", f"{route}/frames/{{frame}}"
        # Exactly one media type: Azure refuses a list here, and */* as well.
        return Retrieval(
            self.transport.send(
                "GET",
                f"{self._prefix}{path}/rendered",
                route=f"{route}/rendered",
                params=() if quality is None else [("quality", str(quality))],
                headers={"Accept": media_type},
            )
        )

    def download(
        self,
        folder: Path | str,
        study_uid: str,
        series_uid: str | None = None,
        sop_uid: str | None = None,
        *,
        on_file: Callable[[Path], object] | None = None,
        on_bytes: Callable[[int], object] | None = None,
    ) -> Saved:
        """Save a study, series or instance as ``folder/<study>/<series>/<sop>.dcm`` and return what was done.

        What an earlier run has finished is not fetched again: if there is anything of it, the server is asked which
        instances it has, and those that are missing are fetched one by one. Raises what ``retrieve_study`` raises.
        """
        return download(self, Path(folder), (study_uid, series_uid, sop_uid), on_file=on_file, on_bytes=on_bytes)

    def retrieve_metadata(
        self,
        study_uid: str,
        series_uid: str | None = None,
        sop_uid: str | None = None,
        *,
        etag: str | None = None,
        original: bool = False,
        external: bool = False,
    ) -> Metadata | None:
        """Retrieve metadata of a study, series or instance (PS3.18 §10.4.1.1.5); None if ``etag`` still names it.

        ``external`` asks Azure's managed service for the metadata that was stored beside the instances as well.
        """
        path, route = resource(study_uid, series_uid, sop_uid)
        headers = {"Accept": ACCEPT_JSON}
        if etag:
            headers["If-None-Match"] = etag
        if original:
            headers["msdicom-request-original"] = "true"
        if external:
            headers["msdicom-request-meta"] = "true"
        with self.transport.send(
            "GET", f"{self._prefix}{path}/metadata", route=f"{route}/metadata", headers=headers, accepts=(200, 304)
        ) as answer:
            return None if answer.status == 304 else read_metadata(answer)

    @property
    def tags(self) -> ExtendedQueryTags:
        """The server's extended query tags (Azure)."""
        return ExtendedQueryTags(self.transport)

    @property
    def operations(self) -> Operations:
        """The server's long-running operations (Azure)."""
        return Operations(self.transport)

    @property
    def workitems(self) -> Workitems:
        """The server's worklist (PS3.18 §11, UPS-RS)."""
        return Workitems(self.transport, self._prefix)

    def partitions(self) -> list[Partition]:
        """List the server's data partitions; raises Refused where the feature is off (Azure)."""
        return read_partitions(self.transport)

    def bulk_update(self, study_uids: Sequence[str], changes: DicomJson) -> str:
        """Start changing patient and study attributes of whole studies, and return the operation's id (Azure v2)."""
        return start_bulk_update(self.transport, self._prefix, study_uids, changes)

    def export(self, values: Sequence[str], destination: Mapping[str, str | bool]) -> str:
        """Start an export of ``study[/series[/instance]]`` to a blob container; returns the operation's id (Azure)."""
        return start_export(self.transport, values, destination)

    def probe(self, *, try_writes: bool = False) -> Capabilities:
        """Find out what the server is and can do; see ``Capabilities``.

        Reads only, unless ``try_writes``: that posts a few bytes that are no DICOM, which no server can store, and
        deletes a study under a UID made up for it, which no server can have.
        """
        return probe(self, try_writes=try_writes)

    def delete(self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> None:
        """Delete a study, series or instance (AZURE.md 4); raises NotFound if nothing was there."""
        path, route = resource(study_uid, series_uid, sop_uid)
        self.transport.send("DELETE", self._prefix + path, route=route, accepts=(200, 202, 204)).close()

    def change_feed(
        self,
        *,
        start_at: datetime | None = None,
        end_at: datetime | None = None,
        offset: int = 0,
        limit: int | None = None,
        include_metadata: bool = False,
    ) -> ChangeFeedPage:
        """Read a page of the change feed (AZURE.md 5).

        v2: entries with start_at <= timestamp < end_at, ``offset`` rows skipped, at most ``limit`` (200). v1: entries
        whose sequence lies in [offset + 1, offset + limit] (100), so a page may be empty in the middle of the feed.
        Raises NotFound, or another Refused, from a server without a feed.
        """
        if self.api_version == 1 and (start_at is not None or end_at is not None):
            raise ValueError("the change feed of v1 has no time window")
        params = [("includemetadata", "true" if include_metadata else "false"), ("offset", str(offset))]
        if limit is not None:
            params.append(("limit", str(limit)))
        for name, moment in (("startTime", start_at), ("endTime", end_at)):
            if moment is not None:
                params.append((name, feed.format_time(moment)))
        # Never below a partition: the feed covers them all.
        with self.transport.send(
            "GET", "/changefeed", route="/changefeed", params=params, headers={"Accept": "application/json"}
        ) as answer:
            return feed.read_page(answer)

    def follow(self, cursor: str | None = None, *, lag: timedelta = LAG) -> Follower:
        """Follow the change feed from a cursor, or from its beginning; see ``Follower``."""
        return Follower(self, cursor, lag=lag)

    def change_feed_latest(self, *, include_metadata: bool = False) -> ChangeFeedEntry | None:
        """Read the newest entry of the change feed, None from an empty server; raises as ``change_feed``."""
        params = [("includemetadata", "true" if include_metadata else "false")]
        with self.transport.send(
            "GET",
            "/changefeed/latest",
            route="/changefeed/latest",
            params=params,
            headers={"Accept": "application/json"},
            accepts=(200, 204),
        ) as answer:
            return feed.read_latest(answer)
