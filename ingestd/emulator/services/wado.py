"""WADO-RS: files and metadata of studies, series and instances, and DELETE of them (AZURE.md 2, 4)."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import IO

from starlette.responses import Response

from ..dicom.parser import EXPLICIT_LITTLE
from ..dicom.transcode import JPEG_2000, transcoded
from ..errors import INSTANCE_NOT_FOUND, INTERNAL, Problem, not_found
from ..http.accept import Offer, Representation, choose
from ..http.answers import Streamed, multipart, raw_json
from ..http.request import Action, Route, ServiceRequest, boolean, route
from ..storage.instances import InstanceRow, find_created, metadata_bytes
from ..storage.removal import remove

_CHUNK = 1 << 20
_SEVERAL = (
    "Accept transfer syntax '{syntax}' is not supported when multiple instances are matched. "
    "Matching instances can be retrieved with their original transfer syntax by specifying 'transfer-syntax=*' in the "
    "Accept header."
)
_FILE_SYNTAXES = frozenset({"*", EXPLICIT_LITTLE, JPEG_2000})
_FILES = (Offer("application/dicom", multipart=True, default_syntax=EXPLICIT_LITTLE, syntaxes=_FILE_SYNTAXES),)
_ONE_FILE = (
    Offer("application/dicom", multipart=False, default_syntax=EXPLICIT_LITTLE, syntaxes=_FILE_SYNTAXES),
    *_FILES,
)


def find(request: ServiceRequest) -> list[InstanceRow]:
    """The instances of the study, series or instance that the path names, in order of storing; raises Problem 404."""
    resource = request.resource()
    with request.archive.index.read() as tx:
        found = find_created(tx, request.partition_key, *resource)
    if not found:
        raise not_found(*resource[1:])
    return found


def wants_original(request: ServiceRequest) -> bool:
    """Whether ``msdicom-request-original`` asks for the version before bulk updates."""
    return boolean("msdicom-request-original", request.header("msdicom-request-original"), default=False)


def get_files(request: ServiceRequest) -> Response:
    """The files of a study, a series or an instance."""
    chosen = choose(request.header("accept"), _ONE_FILE if "instance" in request.params else _FILES)
    original = wants_original(request)
    found = find(request)
    if len(found) > 1 and chosen.syntax != "*":
        raise Problem(406, _SEVERAL.format(syntax=chosen.syntax))
    # The first file is opened before the head is sent, so that what cannot be given still gets its status.
    file, size, syntax = _open_version(request, found[0], chosen, original=original)
    if not chosen.multipart:
        return Streamed(
            _chunks(file),
            file,
            media_type=f"application/dicom; transfer-syntax={syntax}",
            headers={"Content-Length": str(size)},
        )

    def parts() -> Iterator[tuple[str, Iterator[bytes]]]:
        yield f"application/dicom; transfer-syntax={syntax}", _chunks(file)
        for row in found[1:]:
            other, _, its_syntax = _open_version(request, row, chosen, original=original)
            yield f"application/dicom; transfer-syntax={its_syntax}", _chunks(other)

    media_type, body = multipart(parts())
    return Streamed(body, file, media_type=media_type)


def _open_version(
    request: ServiceRequest, row: InstanceRow, chosen: Representation, *, original: bool
) -> tuple[IO[bytes], int, str]:
    """A stored version, transcoded where that was asked for: the open file, its size and its transfer syntax."""
    try:
        file = request.archive.file(row.version(original=original)).open()
    except FileNotFoundError as error:
        with request.archive.index.read() as tx:
            now = find_created(tx, request.partition_key, row.study_uid, row.series_uid, row.sop_uid)
        if not now:
            raise Problem(404, INSTANCE_NOT_FOUND) from error  # deleted between the two looks
        if now[0].version(original=original) == row.version(original=original):
            raise Problem(500, INTERNAL) from error
        return _open_version(request, now[0], chosen, original=original)  # replaced
    size = os.fstat(file.fileno()).st_size
    if chosen.syntax in ("*", row.transfer_syntax):
        return file, size, row.transfer_syntax
    with file:
        result = transcoded(file, size, chosen.syntax, limit=request.archive.settings.max_transcode_bytes)
    size = result.seek(0, 2)
    result.seek(0)
    return result, size, chosen.syntax


def _chunks(file: IO[bytes]) -> Generator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def get_metadata(request: ServiceRequest) -> Response:
    """The metadata of a study, a series or an instance, with its ETag."""
    original = wants_original(request)
    marks = [row.version(original=original) for row in find(request)]
    etag = str(max(marks)) if "instance" in request.params else f"{max(marks)}-{len(marks)}"
    if request.header("if-none-match") == etag:
        return Response(status_code=304)
    try:
        with request.archive.index.read() as tx:
            chunks = [metadata_bytes(tx, mark) for mark in marks]
    except LookupError as error:
        # Deleted between the two looks: what is left would not fit the ETag.
        raise Problem(404, INSTANCE_NOT_FOUND) from error
    answer = raw_json(chunks)
    answer.headers["ETag"] = etag
    return answer


def delete(request: ServiceRequest) -> Response:
    """``DELETE /studies/{study}[/series/{series}[/instances/{instance}]]``."""
    resource = request.resource()
    if not remove(request.archive, request.partition_key, *resource):
        raise not_found(*resource[1:])
    return Response(status_code=204)


RESOURCES = (
    "studies/{study}",
    "studies/{study}/series/{series}",
    "studies/{study}/series/{series}/instances/{instance}",
)
ROUTES: list[Route] = [
    *(route("GET", path, get_files, Action.READ) for path in RESOURCES),
    *(route("GET", f"{path}/metadata", get_metadata, Action.READ, json_answer=True) for path in RESOURCES),
    *(route("DELETE", path, delete, Action.DELETE) for path in RESOURCES),
]
