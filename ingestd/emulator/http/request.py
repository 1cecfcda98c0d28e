"""One request on its way through the server, and the table of routes it is matched against."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from ..dicom.validation import is_valid_uid, no_uid
from ..errors import Problem
from ..storage.archive import Service
from ..storage.examine import Tag

if TYPE_CHECKING:
    from ..storage.store_job import Entry


class Action(StrEnum):
    """What a role may be allowed to do (AZURE.md 8)."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    MANAGE_TAGS = "manageExtendedQueryTags"
    NONE = "none"  # open to everybody


class Body(StrEnum):
    """How a route takes its request body."""

    IGNORED = "ignored"
    SMALL = "small"  # read into memory up to a limit
    STORE = "store"  # spooled part by part, and stored before the endpoint is asked for its answer


@dataclass(kw_only=True)
class Call:
    """A request whose route is known."""

    service: Service
    request: Request
    number: int
    version: int = 2
    segment: str = "v2"
    partition_key: int = 1
    partition_name: str = ""
    in_partition: bool = False
    params: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stored: list[Entry] = field(default_factory=list)  # what a store came to
    tags: list[Tag] = field(default_factory=list)  # the extended query tags when the request began

    @property
    def root_url(self) -> str:
        """``scheme://host/v2`` as the client addressed it."""
        url = self.request.url
        return f"{url.scheme}://{url.netloc}/{self.segment}"

    @property
    def base_url(self) -> str:
        """The root of the DICOMweb resources, with the partition if one was named."""
        return f"{self.root_url}/partitions/{self.partition_name}" if self.in_partition else self.root_url

    @property
    def query(self) -> list[tuple[str, str]]:
        """The query parameters in order, repeated ones included."""
        return list(self.request.query_params.multi_items())

    def header(self, name: str) -> str | None:
        """A request header's value; repeated headers are joined by commas."""
        values = self.request.headers.getlist(name)
        return ", ".join(values) if values else None

    def parameter(self, name: str) -> str | None:
        """The last value of a query parameter; names are case-insensitive."""
        found = None
        for key, value in self.query:
            if key.lower() == name.lower():
                found = value
        return found

    def uid(self, name: str) -> str:
        """A UID of the path, padding removed; raises Problem 400."""
        value = self.params[name]
        if not is_valid_uid(value):
            raise Problem(400, no_uid(_UIDS[name]))
        return value.rstrip(" ")

    def optional_uid(self, name: str) -> str | None:
        """Like ``uid``, None where the route has no such segment."""
        return self.uid(name) if name in self.params else None


# What the service calls the UIDs of its paths.
_UIDS = {
    "study": "StudyInstanceUid",
    "series": "SeriesInstanceUid",
    "instance": "SopInstanceUid",
    "workitem": "WorkitemInstanceUid",
}
Endpoint = Callable[[Call], Response]


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One row of the routing table."""

    method: str
    pattern: tuple[str, ...]
    endpoint: Endpoint
    action: Action
    partitioned: bool = True
    json_answer: bool = False  # the Accept filter of AZURE.md 0.4 applies
    body: Body = Body.IGNORED
    consumes: tuple[str, ...] = ()
    versions: frozenset[int] = frozenset({1, 2})
    creates_partition: bool = False


def route(method: str, path: str, endpoint: Endpoint, action: Action, **settings: Any) -> Route:
    """A row of the routing table from a path such as ``studies/{study}/metadata``."""
    return Route(method=method, pattern=tuple(path.split("/")), endpoint=endpoint, action=action, **settings)


def match(pattern: tuple[str, ...], segments: list[str]) -> dict[str, str] | None:
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


_VERSION = re.compile(r"v(1\.0-prerelease|[0-9]+(?:\.[0-9]+)?[a-z0-9.-]*)\Z", re.IGNORECASE)
_VERSIONS = {"1.0-prerelease": 1, "1": 1, "1.0": 1, "2": 2, "2.0": 2}
SUPPORTED_VERSIONS = "1.0-prerelease, 1, 2"


def version_of(segment: str) -> int | None:
    """The version a path segment asks for: 1, 2, 0 for one that does not exist, None if it is no version at all."""
    found = _VERSION.match(segment)
    return _VERSIONS.get(found[1].lower(), 0) if found else None


async def small_body(request: Request, *, most: int = 32 << 20) -> bytes:
    """The whole request body, of ``most`` bytes at most; raises Problem 413."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Problem(413, f"The request exceeded the allowed limit of {most} bytes.")
    return bytes(body)


def boolean(name: str, value: str | None, *, default: bool) -> bool:
    """A query parameter that is ``true`` or ``false``; raises Problem 400."""
    if value is None:
        return default
    lowered = value.strip().lower()
    if lowered not in ("true", "false"):
        raise Problem(400, f"The query parameter '{name}' is invalid. The value '{value}' is not valid for {name}.")
    return lowered == "true"


def number(name: str, value: str | None, *, default: int, least: int, most: int) -> int:
    """A whole number in a query parameter; raises Problem 400."""
    if value is None:
        return default
    text = value.strip()
    parsed = int(text) if re.fullmatch(r"[+-]?[0-9]{1,19}", text) else None
    if parsed is None:
        raise Problem(400, f"The query parameter '{name}' is invalid. The value '{value}' is not valid for {name}.")
    if not least <= parsed <= most:
        raise Problem(
            400,
            f"The query parameter '{name}' is invalid. The field {name} must be between {least} and {most}.",
        )
    return parsed
