"""The kinds of answer the service gives."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response


class DicomJson(JSONResponse):
    """DICOM JSON (PS3.18 Annex F)."""

    media_type = "application/dicom+json; charset=utf-8"


class PlainJson(JSONResponse):
    """The service's own JSON: camelCase names, nulls left out."""

    media_type = "application/json; charset=utf-8"

    def render(self, content: Any) -> bytes:
        """The bytes of the body."""
        return json.dumps(_without_nulls(content), ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "surrogatepass"
        )


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
    """A refusal as the service words it: plain text, or nothing."""
    return PlainTextResponse(message, status_code=status) if message else Response(status_code=status)
