"""The routing table: every resource of the service, how one is found, and the OpenAPI document that lists them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from .errors import Problem
from .http.answers import PlainJson
from .http.request import Action, Body, Route, ServiceRequest, route
from .services import browser, feed, frames, operations, partitions, qido, stow, tags, update, wado, workitems, worklist

SUPPORTED_VERSIONS = "1.0-prerelease, 1, 2"
_VERSION = re.compile(r"v(1\.0-prerelease|[0-9]+(?:\.[0-9]+)?[a-z0-9.-]*)\Z", re.IGNORECASE)
_VERSIONS = {"1.0-prerelease": 1, "1": 1, "1.0": 1, "2": 2, "2.0": 2}


def get_health(request: ServiceRequest) -> Response:
    """``GET /health/check``: whether the index answers."""
    with request.archive.index.read() as tx:
        tx.execute("SELECT 1").fetchone()
    return PlainJson(
        {
            "overallStatus": "Healthy",
            "details": [{"name": "Index", "status": "Healthy", "description": "The index answers."}],
        }
    )


def get_document(request: ServiceRequest) -> Response:
    """``GET /api.json`` and ``GET /api.yaml``; the latter is the same text, for JSON is YAML."""
    paths: dict[str, dict[str, Any]] = {}
    for each in ROUTES:
        if request.version in each.versions:
            paths.setdefault("/" + "/".join(each.pattern), {})[each.method.lower()] = _described(each)
    document = {
        "openapi": "3.0.1",
        "info": {
            "title": "Medical Imaging Server for DICOM (emulated)",
            "version": f"v{request.version}",
            "description": "An emulation of the Azure DICOM service for tests and first minutes.",
        },
        "servers": [{"url": request.root_url}],
        "paths": paths,
    }
    is_yaml = request.url.path.lower().rstrip("/").endswith(".yaml")
    return Response(json.dumps(document, indent=2), media_type="application/yaml" if is_yaml else "application/json")


_STATUS = {"GET": "200", "POST": "200", "PUT": "200", "PATCH": "200", "DELETE": "204"}


def _described(each: Route) -> dict[str, Any]:
    # What an endpoint's docstring says first is its summary.
    summary = (each.endpoint.__doc__ or "").split("\n")[0] or f"{each.method} {'/'.join(each.pattern)}"
    names = [segment[1:-1] for segment in each.pattern if segment.startswith("{")]
    described: dict[str, Any] = {
        "summary": summary,
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names],
        "responses": {_STATUS[each.method]: {"description": "Success"}, "default": {"description": "A refusal"}},
    }
    if each.body is not Body.IGNORED:
        described["requestBody"] = {"content": {kind: {} for kind in each.consumes or ("application/json",)}}
    return described


ROUTES: tuple[Route, ...] = (
    *update.ROUTES,  # before the store: a study is not called $bulkUpdate
    *stow.ROUTES,
    *wado.ROUTES,
    *frames.ROUTES,
    *qido.ROUTES,
    *feed.ROUTES,
    *tags.ROUTES,
    *operations.ROUTES,
    *workitems.ROUTES,
    *worklist.ROUTES,
    *partitions.ROUTES,
    *(route("GET", f"api.{kind}", get_document, Action.NONE, partitioned=False) for kind in ("json", "yaml")),
)
UNVERSIONED: tuple[Route, ...] = (route("GET", "health/check", get_health, Action.NONE), *browser.UNVERSIONED)


def find_route(request: ServiceRequest, unversioned: Sequence[Route]) -> Route:
    """The row for a request, whose version, partition and segments are noted in it; raises Problem 400, 404 or 405."""
    decoded = request.scope["path"].strip("/")  # a trailing slash is tolerated
    segments = decoded.split("/")
    for candidate in unversioned:
        params = _match(candidate.pattern, segments)
        if params is not None and candidate.method == request.method:
            request.params = params
            return candidate
    found = _VERSION.match(segments[0])
    if found is None:
        has_viewer = request.archive.settings.viewer is not None
        if request.method == "GET" and (not decoded or has_viewer):
            return browser.VIEWER if has_viewer else browser.HOME
        raise Problem(404)
    if found[1].lower() not in _VERSIONS:
        raise _unsupported_version(request, segments[0])
    request.version, request.segment = _VERSIONS[found[1].lower()], segments[0]
    rest = segments[1:]
    if rest[:1] and rest[0].lower() == "partitions" and len(rest) > 2:
        request.partition_name = rest[1]
        rest = rest[2:]
    return _find_versioned(request, rest)


def _find_versioned(request: ServiceRequest, segments: list[str]) -> Route:
    allowed = set()
    for candidate in ROUTES:
        params = _match(candidate.pattern, segments)
        if params is None or request.version not in candidate.versions:
            continue
        if request.partition_name is not None and not candidate.partitioned:
            continue
        if candidate.method == request.method:
            request.params = params
            return candidate
        allowed.add(candidate.method)
    if allowed:
        raise Problem(405, headers={"Allow": ", ".join(sorted(allowed))})
    raise Problem(404)


def _match(pattern: tuple[str, ...], segments: list[str]) -> dict[str, str] | None:
    """The named segments of a path that fits the pattern; literals are case-insensitive."""
    if len(pattern) != len(segments):
        return None
    found: dict[str, str] = {}
    for wanted, got in zip(pattern, segments, strict=True):
        if wanted[0] == "{":
            if not got:
                return None
            found[wanted[1:-1]] = got
        elif wanted != got.lower():
            return None
    return found


def _unsupported_version(request: ServiceRequest, segment: str) -> Problem:
    message = (
        f"The HTTP resource that matches the request URI '{request.url}' does not support the API version "
        f"'{segment[1:]}'."
    )
    body = {"error": {"code": "UnsupportedApiVersion", "message": message, "innerError": None}}
    return Problem(400, json.dumps(body), headers={"Content-Type": "application/json; charset=utf-8"})
