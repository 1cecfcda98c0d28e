"""One request on its way through the server, and what a row of the routing table says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from enum import StrEnum
from functools import lru_cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from ..dicom.minimum_rules import is_valid_uid, no_uid
from ..errors import SYNTAX, Problem, bad_parameter
from ..faults import Fault, FaultName
from ..storage.archive import Archive
from ..storage.store_job import PartResult
from ..storage.tags import Tag

_MOST_LEVELS = 64  # of arrays and objects in each other, as the service's reader counts them


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
    STORE = "store"  # taken in part by part, and stored before the endpoint is asked for its answer


# What the service calls the UIDs of its paths.
_UIDS = {
    "study": "StudyInstanceUid",
    "series": "SeriesInstanceUid",
    "instance": "SopInstanceUid",
    "workitem": "WorkitemInstanceUid",
}


class ServiceRequest(Request):
    """A request, the archive it works on, and what its route says once that is known."""

    def __init__(self, scope: Scope, receive: Receive, *, archive: Archive, number: int) -> None:
        super().__init__(scope, receive)
        self.archive = archive
        self.number = number
        self.version = 2
        self.segment = "v2"
        self.partition_key = 1
        self.partition_name: str | None = None
        self.params: dict[str, str] = {}  # the named segments of the path
        self.content = b""  # a small body
        self.stored: list[PartResult] = []  # what a store came to
        self.tags: list[Tag] = []  # the extended query tags when the request began

    @property
    def origin(self) -> str:
        """``scheme://host`` as the client addressed it."""
        return f"{self.url.scheme}://{self.url.netloc}"

    @property
    def root_url(self) -> str:
        """The same with the version."""
        return f"{self.origin}/{self.segment}"

    @property
    def dicomweb_url(self) -> str:
        """The root of the DICOMweb resources, with the partition if one was named."""
        return self.root_url if self.partition_name is None else f"{self.root_url}/partitions/{self.partition_name}"

    @property
    def query(self) -> list[tuple[str, str]]:
        """The query parameters in order, repeated ones included."""
        return list(self.query_params.multi_items())

    def header(self, name: str) -> str | None:
        """A request header's value; repeated headers are joined by commas."""
        values = self.headers.getlist(name)
        return ", ".join(values) if values else None

    def parameter(self, name: str) -> str | None:
        """The last value of a query parameter; names are case-insensitive."""
        found = None
        for key, value in self.query:
            if key.lower() == name.lower():
                found = value
        return found

    def flag(self, name: str, *, default: bool) -> bool:
        """A query parameter that is ``true`` or ``false``; raises Problem 400."""
        return boolean(name, self.parameter(name), default=default)

    def integer(self, name: str, *, default: int, least: int, most: int = (1 << 63) - 1) -> int:
        """A whole number in a query parameter; raises Problem 400."""
        value = self.parameter(name)
        if value is None:
            return default
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", value.strip()):
            raise bad_parameter(name, f"The value '{value}' is not valid for {name}.")
        if not least <= int(value) <= most:
            raise bad_parameter(name, f"The field {name} must be between {least} and {most}.")
        return int(value)

    def uid(self, name: str) -> str:
        """A UID of the path, padding removed; raises Problem 400."""
        value = self.params[name]
        if not is_valid_uid(value):
            raise Problem(400, no_uid(_UIDS[name]))
        return value.rstrip(" ")

    def optional_uid(self, name: str) -> str | None:
        """Like ``uid``, None where the route has no such segment."""
        return self.uid(name) if name in self.params else None

    def resource(self) -> tuple[str, str | None, str | None]:
        """The study, series and instance of the path, None below what it names; raises Problem 400."""
        return self.uid("study"), self.optional_uid("series"), self.optional_uid("instance")

    def fault(self, name: FaultName, *, uids: list[str] | None = None) -> Fault | None:
        """The fault of this name that fires on this request, if one does."""
        return self.archive.faults.take(name, method=self.method, path=self.url.path, uids=uids or ())

    def json_content(self) -> Any:
        """A small body as JSON; raises Problem 400 and, without a content type, 415."""
        if self.header("content-type") is None:
            raise Problem(415)
        try:
            given = json.loads(self.content, parse_constant=_refuse)
            json.dumps(given, ensure_ascii=False).encode()  # refuses half a character, which no answer could repeat
        except (ValueError, RecursionError) as error:
            raise Problem(400, SYNTAX) from error
        if _is_deeper(given, _MOST_LEVELS):
            raise Problem(400, SYNTAX)
        return given


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # of Python's JSON, not of anybody else's


def _is_deeper(given: Any, most: int) -> bool:
    level = [given]
    for _ in range(most + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


@lru_cache(maxsize=256)
def content_type_of(header: str) -> Message:
    """A Content-Type header with its parameters."""
    message = Message()
    message["Content-Type"] = header
    return message


def boolean(name: str, value: str | None, *, default: bool) -> bool:
    """The value of a parameter or header that is ``true`` or ``false``; raises Problem 400."""
    if value is None:
        return default
    lowered = value.strip().lower()
    if lowered not in ("true", "false"):
        raise bad_parameter(name, f"The value '{value}' is not valid for {name}.")
    return lowered == "true"


async def small_body(request: Request, *, most: int = 32 << 20) -> bytes:
    """The whole request body, of ``most`` bytes at most; raises Problem 413."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Problem(413, f"The request exceeded the allowed limit of {most} bytes.")
    return bytes(body)


Endpoint = Callable[[ServiceRequest], Response]


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
