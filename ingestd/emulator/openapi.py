"""The OpenAPI document of the service, written from the routing table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .http.request import Body, Route

_STATUS = {"GET": "200", "POST": "200", "PUT": "200", "PATCH": "200", "DELETE": "204"}


def document(routes: Sequence[Route], *, version: int, server: str) -> dict[str, Any]:
    """The document of one version; what an endpoint's docstring says first is its summary."""
    paths: dict[str, dict[str, Any]] = {}
    for each in routes:
        if version in each.versions:
            paths.setdefault("/" + "/".join(each.pattern), {})[each.method.lower()] = _operation(each)
    return {
        "openapi": "3.0.1",
        "info": {
            "title": "Medical Imaging Server for DICOM (emulated)",
            "version": f"v{version}",
            "description": "An emulation of the Azure DICOM service for tests and first minutes.",
        },
        "servers": [{"url": server}],
        "paths": paths,
    }


def _operation(each: Route) -> dict[str, Any]:
    summary = (each.endpoint.__doc__ or "").split("\n")[0] or f"{each.method} {'/'.join(each.pattern)}"
    names = [segment[1:-1] for segment in each.pattern if segment.startswith("{")]
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names],
        "responses": {_STATUS[each.method]: {"description": "Success"}, "default": {"description": "A refusal"}},
    }
    if each.body is not Body.IGNORED:
        operation["requestBody"] = {"content": {kind: {} for kind in each.consumes or ("application/json",)}}
    return operation
