"""WADO-RS: files and metadata of studies, series and instances (AZURE.md 2)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator
from dataclasses import dataclass
from typing import IO

from starlette.responses import Response

from ..dicom.parser import EXPLICIT_LITTLE
from ..dicom.transcode import JPEG_2000, transcoded
from ..errors import INSTANCE_NOT_FOUND, INTERNAL, NOT_ACCEPTABLE, Problem
from ..http.accept import MediaRange, parse_accept
from ..http.answers import Streamed, raw_json
from ..http.request import Action, Call, Route, boolean, route
from ..storage.instances import Stored, find, find_in, metadata_bytes

_CHUNK = 1 << 20
_SEVERAL = (
    "Accept transfer syntax '{syntax}' is not supported when multiple instances are matched. "
    "Matching instances can be retrieved with their original transfer syntax by specifying 'transfer-syntax=*' in the "
    "Accept header."
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the Accept header settled on: single part or multipart, and in which transfer syntax (``*``: as stored)."""

    multipart: bool
    syntax: str
    media_type: str = "application/dicom"


@dataclass(frozen=True, slots=True)
class Offer:
    """One row of the table of what a resource can be had as: AZURE.md 2.1."""

    media_type: str
    multipart: bool
    default_syntax: str
    syntaxes: frozenset[str]


_FILE_SYNTAXES = frozenset({"*", EXPLICIT_LITTLE, JPEG_2000})
FILES = (Offer("application/dicom", multipart=True, default_syntax=EXPLICIT_LITTLE, syntaxes=_FILE_SYNTAXES),)
ONE_FILE = (
    Offer("application/dicom", multipart=False, default_syntax=EXPLICIT_LITTLE, syntaxes=_FILE_SYNTAXES),
    *FILES,
)


def choose(header: str | None, offers: tuple[Offer, ...]) -> Wanted:
    """The best offer for an Accept header; raises Problem 406."""
    candidates: list[tuple[float, bool, Wanted]] = []
    for member in parse_accept(header):
        wanted = _match(member, offers)
        if wanted is not None and member.quality > 0:
            candidates.append((member.quality, wanted.syntax == "*", wanted))
    if not candidates:
        raise Problem(406, NOT_ACCEPTABLE)
    # At equal quality the original transfer syntax is preferred; otherwise the header's order decides.
    best = max(candidates, key=lambda candidate: candidate[:2])
    return best[2]


def _match(member: MediaRange, offers: tuple[Offer, ...]) -> Wanted | None:
    asked = member.parameters.get("transfer-syntax")
    is_multipart = member.media_type == "multipart/related"
    kind = member.parameters.get("type", "").lower() if is_multipart else member.media_type
    if kind == "*/*":
        # Anything at all, in parts or not, means the original, as multipart even for one instance.
        offer = next(offer for offer in offers if offer.multipart)
        syntax = asked or "*"
        return Wanted(True, syntax, offer.media_type) if syntax in offer.syntaxes else None
    for offer in offers:
        syntax = asked or offer.default_syntax
        if (is_multipart, kind) == (offer.multipart, offer.media_type) and syntax in offer.syntaxes:
            return Wanted(offer.multipart, syntax, offer.media_type)
    return None


def wants_original(call: Call) -> bool:
    """Whether ``msdicom-request-original`` asks for the version before bulk updates."""
    return boolean("msdicom-request-original", call.header("msdicom-request-original"), default=False)


def get_files(call: Call) -> Response:
    """The files of a study, a series or an instance."""
    wanted = choose(call.header("accept"), ONE_FILE if "instance" in call.params else FILES)
    original = wants_original(call)
    found = find(call)
    if len(found) > 1 and wanted.syntax != "*":
        raise Problem(406, _SEVERAL.format(syntax=wanted.syntax))
    if not wanted.multipart:
        return _single(call, found[0], wanted, original=original)
    return _multipart(call, found, wanted, original=original)


def open_version(call: Call, stored: Stored, wanted: Wanted, *, original: bool) -> tuple[IO[bytes], int, str]:
    """A stored version, transcoded where that was asked for: the open file, its size and its transfer syntax."""
    try:
        file = call.service.kept(stored.version(original=original)).open()
    except FileNotFoundError as error:
        with call.service.index.read() as tx:
            now = find_in(tx, call.partition_key, stored.study_uid, stored.series_uid, stored.sop_uid)
        if not now:
            raise Problem(404, INSTANCE_NOT_FOUND) from error  # deleted between the two looks
        if now[0].version(original=original) == stored.version(original=original):
            raise Problem(500, INTERNAL) from error
        return open_version(call, now[0], wanted, original=original)  # replaced
    size = os.fstat(file.fileno()).st_size
    if wanted.syntax in ("*", stored.transfer_syntax):
        return file, size, stored.transfer_syntax
    with file:
        result = transcoded(file, size, wanted.syntax, limit=call.service.settings.max_transcode_bytes)
    size = result.seek(0, 2)
    result.seek(0)
    return result, size, wanted.syntax


def _single(call: Call, stored: Stored, wanted: Wanted, *, original: bool) -> Response:
    file, size, syntax = open_version(call, stored, wanted, original=original)
    return Streamed(
        _chunks(file),
        file,
        media_type=f"application/dicom; transfer-syntax={syntax}",
        headers={"Content-Length": str(size)},
    )


def _multipart(call: Call, found: list[Stored], wanted: Wanted, *, original: bool) -> Response:
    boundary = str(uuid.uuid4())
    # The first file is opened before the head is sent, so that what cannot be given still gets its status.
    first = open_version(call, found[0], wanted, original=original)

    def body() -> Generator[bytes]:
        opened = first
        for number, stored in enumerate(found):
            file, _, syntax = opened if number == 0 else open_version(call, stored, wanted, original=original)
            opening = "" if number == 0 else "\r\n"
            yield (
                f"{opening}--{boundary}\r\nContent-Type: application/dicom; transfer-syntax={syntax}\r\n\r\n".encode()
            )
            yield from _chunks(file)
        yield f"\r\n--{boundary}--\r\n".encode()

    return Streamed(body(), first[0], media_type=f'multipart/related; boundary="{boundary}"')


def _chunks(file: IO[bytes]) -> Generator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def get_metadata(call: Call) -> Response:
    """The metadata of a study, a series or an instance, with its ETag."""
    original = wants_original(call)
    found = find(call)
    marks = [stored.version(original=original) for stored in found]
    etag = str(max(marks)) if "instance" in call.params else f"{max(marks)}-{len(marks)}"
    if call.header("if-none-match") == etag:
        return Response(status_code=304)
    chunks = []
    with call.service.index.read() as tx:
        for mark in marks:
            try:
                chunks.append(metadata_bytes(tx, mark))
            except TypeError as error:
                # Deleted between the two looks: what is left would not fit the ETag.
                raise Problem(404, "The specified instance cannot be found.") from error
    answer = raw_json(chunks)
    answer.headers["ETag"] = etag
    return answer


_RESOURCES = (
    "studies/{study}",
    "studies/{study}/series/{series}",
    "studies/{study}/series/{series}/instances/{instance}",
)
ROUTES: list[Route] = [route("GET", path, get_files, Action.READ) for path in _RESOURCES] + [
    route("GET", f"{path}/metadata", get_metadata, Action.READ, json_answer=True) for path in _RESOURCES
]
