"""Takes a request's body in, part by part, in memory that does not grow with it (AZURE.md 1.1, 1.3).

Small parts stay in memory, as many as ``_MOST_IN_MEMORY`` allows; all others go to disk as they come.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from email.message import Message
from functools import lru_cache
from pathlib import Path
from typing import Self

from ..errors import Problem
from ..http.multipart import Malformed, PartBegins, PartData, Splitter
from ..storage.examine import Examined
from ..storage.files import Files

_DICOM = "application/dicom"
_MOST_PARTS = 100_000
_SMALL = 64 << 10
_MOST_IN_MEMORY = 2 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a request, whole; where it is on disk, ``looked_at`` is what ``store.look_at`` gives, meanwhile."""

    source: Path | bytes
    looked_at: Future[Examined] | None = None


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
    message = Message()
    message["Content-Type"] = content_type
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


class Spool:
    """The parts of one request on their way to disk; use as a context manager, what is left over goes away."""

    def __init__(self, files: Files, *, limit: int, look_at: Callable[[Path], Future[Examined]]) -> None:
        self._files = files
        self._limit = limit
        self._look_at = look_at
        self._small: bytearray | None = None
        self._in_memory = 0
        self._descriptor: int | None = None
        self._size = 0
        self.parts: list[Part] = []
        self._open: Path | None = None
        self._part_type: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._abandon()
        for part in self.parts:
            if part.looked_at is not None:
                part.looked_at.cancel()
            if isinstance(part.source, Path):
                part.source.unlink(missing_ok=True)

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
            self._descriptor, self._open = self._files.new_part()
            begun, self._small = self._small, None
            self._put_down(begun)
        self._put_down(chunk)

    def _put_down(self, chunk: bytes | bytearray | memoryview) -> None:
        assert self._descriptor is not None, "what is not small has a file"
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def _end(self) -> None:
        if self._small is not None:
            self._in_memory += len(self._small)
            self.parts.append(Part(bytes(self._small)))
            self._small = None
            return
        assert self._descriptor is not None, "only a begun part can end"
        assert self._open is not None, "it has a name as long as it has a descriptor"
        os.close(self._descriptor)
        self._descriptor = None
        self.parts.append(Part(self._open, self._look_at(self._open)))
        self._open = None

    def _abandon(self) -> None:
        self._small = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._open is not None:
            self._open.unlink(missing_ok=True)
            self._open = None

    async def take(self, kind: BodyKind, body: AsyncIterator[bytes], *, saw: Callable[[int], None]) -> None:
        """Read the whole body; ``saw`` hears the number of bytes so far. Raises Problem 400, 413 or 415."""
        if kind.boundary is None:
            self._begin()
            seen = 0
            async for chunk in body:
                seen += len(chunk)
                saw(seen)
                if chunk:
                    self._write(chunk)
            self._end()
            return
        splitter = Splitter(kind.boundary)
        seen = 0
        try:
            async for chunk in body:
                seen += len(chunk)
                saw(seen)
                self._split(splitter, chunk, kind)
        except Malformed as error:
            raise Problem(400, f"The multipart body is malformed: {error}") from error
        if not splitter.saw_delimiter:
            raise Problem(400, "Unexpected end of the multipart body: its boundary was not found.")
        # A part that was cut short is dropped without a word; the ones before it count (AZURE.md 1.3).
        self._abandon()

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
