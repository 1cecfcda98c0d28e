"""The kinds of answer the service gives."""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import IO, Any

from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse


class DicomJson(JSONResponse):
    """DICOM JSON (PS3.18 Annex F)."""

    media_type = "application/dicom+json; charset=utf-8"


class PlainJson(JSONResponse):
    """The service's own JSON: camelCase names, nulls left out."""

    media_type = "application/json; charset=utf-8"

    def render(self, content: Any) -> bytes:
        return json.dumps(_without_nulls(content), ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "surrogatepass"
        )


class Streamed(StreamingResponse):
    """An answer that is read from an open file while it is sent; it has to be released."""

    def __init__(
        self, content: Generator[bytes], file: IO[bytes], *, media_type: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(content, media_type=media_type, headers=headers)
        self._content = content
        self._file = file

    def release(self) -> None:
        """Close what was opened, also where the client left before the first byte."""
        with suppress(ValueError):  # a thread is in it still; then it is closed with its last reference
            self._content.close()
        self._file.close()


def _without_nulls(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nulls(value) for key, value in content.items() if value is not None}
    if isinstance(content, list):
        return [_without_nulls(value) for value in content]
    return content


def raw_json(chunks: list[bytes], *, media_type: str = DicomJson.media_type) -> Response:
    """A JSON array whose members are JSON already."""
    return Response(b"[" + b",".join(chunks) + b"]", media_type=media_type)


def plain(status: int, message: str) -> Response:
    return PlainTextResponse(message, status_code=status) if message else Response(status_code=status)


def multipart(parts: Iterable[tuple[str, Iterable[bytes]]]) -> tuple[str, Generator[bytes]]:
    """The content type and the body of a multipart answer; a part is its content type and its pieces."""
    boundary = str(uuid.uuid4())

    def body() -> Generator[bytes]:
        line_break = ""
        for content_type, pieces in parts:
            yield f"{line_break}--{boundary}\r\nContent-Type: {content_type}\r\n\r\n".encode()
            yield from pieces
            line_break = "\r\n"
        yield f"\r\n--{boundary}--\r\n".encode()

    return f'multipart/related; boundary="{boundary}"', body()
