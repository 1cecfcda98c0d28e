"""Takes a request's body in, part by part, in memory that does not grow with it (AZURE.md 1.1, 1.3).

A small part stays in memory, as long as all of them together fit into ``_MOST_IN_MEMORY``; any other goes to a file in
``incoming`` as it comes. As soon as such a part is whole it is examined in a thread of its own, while the next one
still comes in. Nothing is stored before the last byte: one part of a wrong type or beyond the limit refuses the whole
request, and leaving the context then removes what there is. A part whose end never comes is dropped, those before it
count.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from ..errors import Problem
from ..http.multipart import Malformed, PartBegins, PartData, Splitter
from ..http.request import content_type_of
from ..storage.examine import Examined
from ..storage.files import Files
from ..storage.store_job import UploadedPart

_DICOM = "application/dicom"
_MOST_PARTS = 100_000
_SMALL = 64 << 10
_MOST_IN_MEMORY = 2 << 20


@dataclass(frozen=True, slots=True)
class BodyKind:
    """What the Content-Type says about the body: single part, or multipart with this boundary and type."""

    boundary: str | None
    part_type: str | None


@lru_cache(maxsize=256)
def body_kind(content_type: str | None) -> BodyKind:
    """Judge the Content-Type of a store; raises Problem 415, or 400 for a ``start`` parameter."""
    if not content_type or not content_type.strip():
        raise Problem(415, "The request has no content type.")
    if content_type.strip().lower() == _DICOM:
        return BodyKind(None, None)
    message = content_type_of(content_type)
    if message.get_content_type() != "multipart/related":
        raise Problem(415, f"The specified content type '{content_type}' is not supported.")
    boundary = str(message.get_param("boundary") or "").strip()
    if not boundary:
        raise Problem(415, f"The content type '{content_type}' is either not multipart or is missing boundary.")
    if message.get_param("start") is not None:
        raise Problem(400, "The start parameter in multipart/related request is not supported.")
    if len(boundary) > 70 or not re.fullmatch(r"[ -~]+", boundary):
        raise Problem(400, "The boundary of the multipart request is not valid.")
    part_type = message.get_param("type")
    return BodyKind(boundary, str(part_type) if part_type is not None else None)


class Upload:
    """The parts of one request as they come in; use as a context manager, what is left over goes away."""

    def __init__(self, files: Files, *, limit: int, examine: Callable[[Path], Future[Examined]]) -> None:
        self._files = files
        self._limit = limit
        self._examine = examine
        self._in_memory = 0
        self.parts: list[UploadedPart] = []
        # The part that is coming in: in memory, or beyond that in a file.
        self._size = 0
        self._part_type: str | None = None
        self._small: bytearray | None = None
        self._file: tuple[int, Path] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop_unfinished()
        for part in self.parts:
            if part.examined is not None:
                part.examined.cancel()
            if isinstance(part.source, Path):
                part.source.unlink(missing_ok=True)

    async def take(self, kind: BodyKind, body: AsyncIterator[bytes], *, saw: Callable[[int], None]) -> None:
        """Read the whole body; ``saw`` hears the number of bytes so far. Raises Problem 400, 413 or 415."""
        splitter = None if kind.boundary is None else Splitter(kind.boundary)
        if splitter is None:
            self._begin()
        seen = 0
        try:
            async for chunk in body:
                seen += len(chunk)
                saw(seen)
                if splitter is not None:
                    self._split(splitter, chunk, kind)
                else:
                    self._write(chunk)
        except Malformed as error:
            raise Problem(400, f"The multipart body is malformed: {error}") from error
        if splitter is None:
            self._end()
        elif not splitter.saw_delimiter:
            raise Problem(400, "Unexpected end of the multipart body: its boundary was not found.")
        else:
            # A part that was cut short is dropped without a word; the ones before it count (AZURE.md 1.3).
            self._drop_unfinished()

    def _split(self, splitter: Splitter, chunk: bytes, kind: BodyKind) -> None:
        for event in splitter.feed(chunk):
            if isinstance(event, PartData):
                self._write(event.chunk)
            elif isinstance(event, PartBegins):
                self._part_type = event.headers.get("content-type")
                self._begin()
            else:
                # Only now: of a part that never ends, the type does not matter either.
                self._check_type(self._part_type, kind)
                self._end()

    def _check_type(self, content_type: str | None, kind: BodyKind) -> None:
        if content_type is None and not self.parts:
            content_type = kind.part_type  # the first part may leave it to the request's type
        if content_type is None or content_type.strip().lower() != _DICOM:
            raise Problem(415, f"The specified content type '{content_type or ''}' is not supported.")

    def _begin(self) -> None:
        if len(self.parts) >= _MOST_PARTS:
            raise Problem(400, "The request has too many parts.")
        self._small = bytearray()
        self._size = 0

    def _write(self, chunk: bytes | memoryview) -> None:
        self._size += len(chunk)
        if self._size > self._limit:
            raise Problem(413, f"The request exceeded the allowed limit of {self._limit} bytes.")
        if self._small is not None:
            if self._size <= _SMALL and self._in_memory + self._size <= _MOST_IN_MEMORY:
                self._small += chunk
                return
            self._file = self._files.new_part()
            begun, self._small = self._small, None
            _write_all(self._file[0], begun)
        assert self._file is not None, "what is not small has a file"
        _write_all(self._file[0], chunk)

    def _end(self) -> None:
        if self._small is not None:
            self._in_memory += len(self._small)
            self.parts.append(UploadedPart(bytes(self._small)))
            self._small = None
            return
        assert self._file is not None, "only a begun part can end"
        (descriptor, path), self._file = self._file, None
        os.close(descriptor)
        self.parts.append(UploadedPart(path, self._examine(path)))

    def _drop_unfinished(self) -> None:
        self._small = None
        if self._file is not None:
            descriptor, path = self._file
            self._file = None
            os.close(descriptor)
            path.unlink(missing_ok=True)


def _write_all(descriptor: int, chunk: bytes | bytearray | memoryview) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]
