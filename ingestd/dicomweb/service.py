"""What the Azure DICOM service has beyond DICOMweb: query tags, operations, bulk update, export, partitions.

Names and values in its JSON are matched whatever their case (the pages write them otherwise than the source does).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from ingestd.clocks import boottime
from ingestd.dicomweb.answers import Answer
from ingestd.dicomweb.change_feed import parse_time
from ingestd.dicomweb.decoding import JSON_TYPES, DicomJson, Undecodable, load_json
from ingestd.dicomweb.errors import Unavailable
from ingestd.dicomweb.transport import Transport, path_of

ANSWER_LIMIT = 16 * 1024 * 1024
PAGE_SIZE = 200
JSON_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}

Item = TypeVar("Item")

RUNNING = frozenset({"notstarted", "running"})


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryTag:
    """An attribute to search by: its path (eight hex digits or a keyword) and level (study, series or instance).

    ``vr`` is needed for private attributes, ``private_creator`` only for those.
    """

    path: str
    level: str
    vr: str | None = None
    private_creator: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryTagEntry:
    """A query tag as the server has it. ``status`` is adding, ready or deleting."""

    path: str
    vr: str
    level: str
    status: str
    is_query_enabled: bool
    private_creator: str = ""
    error_count: int = 0
    operation_id: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryTagError:
    """An instance that cannot be searched by a tag, and why in the server's words."""

    study_uid: str
    series_uid: str
    sop_uid: str
    message: str
    created_at: datetime | None = None
    partition: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """A long-running operation. ``status`` is notstarted, running, succeeded, failed, canceled or unknown."""

    id: str
    type: str
    status: str
    percent: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None
    resources: tuple[str, ...] = ()
    results: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        """Whether it has not come to an end."""
        return self.status in RUNNING

    @property
    def has_succeeded(self) -> bool:
        """Whether it ended well."""
        return self.status == "succeeded"


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """A data partition of the server."""

    name: str
    key: int
    created_at: datetime | None = None


class ExtendedQueryTags:
    """Add, list, get, enable, disable and delete query tags (AZURE.md 6)."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def add(self, tags: Sequence[QueryTag]) -> str:
        """Add tags and return the id of the operation that indexes what is stored; raises Refused (400, 409)."""
        body = [
            {
                name: value
                for name, value in {
                    "Path": tag.path,
                    "VR": tag.vr,
                    "PrivateCreator": tag.private_creator,
                    "Level": tag.level.capitalize(),
                }.items()
                if value is not None
            }
            for tag in tags
        ]
        return _begin(self._transport, "/extendedquerytags", body)

    def page(self, *, limit: int | None = None, offset: int = 0) -> list[QueryTagEntry]:
        """List one page of tags."""
        fields = _get(self._transport, "/extendedquerytags", "/extendedquerytags", _paging(limit, offset))
        return [_tag(item) for item in _list(fields)]

    def all(self) -> Iterator[QueryTagEntry]:
        """Iterate over all tags, page by page."""
        return _all(lambda offset: self.page(limit=PAGE_SIZE, offset=offset))

    def get(self, path: str) -> QueryTagEntry:
        """Return one tag; raises NotFound."""
        return _tag(_get(self._transport, path_of("extendedquerytags", path), "/extendedquerytags/{tag}"))

    def set_query_status(self, path: str, *, enabled: bool) -> QueryTagEntry:
        """Let searches use a tag, or not."""
        body = json.dumps({"QueryStatus": "Enabled" if enabled else "Disabled"}).encode()
        with self._transport.send(
            "PATCH",
            path_of("extendedquerytags", path),
            route="/extendedquerytags/{tag}",
            headers=JSON_HEADERS,
            body=body,
        ) as answer:
            return _tag(_fields(answer))

    def delete(self, path: str) -> None:
        """Delete a tag and its index; raises NotFound."""
        self._transport.send(
            "DELETE", path_of("extendedquerytags", path), route="/extendedquerytags/{tag}", accepts=(200, 202, 204)
        ).close()

    def errors(self, path: str, *, limit: int | None = None, offset: int = 0) -> list[QueryTagError]:
        """List one page of the instances that could not be indexed by a tag."""
        url = path_of("extendedquerytags", path) + "/errors"
        fields = _get(self._transport, url, "/extendedquerytags/{tag}/errors", _paging(limit, offset))
        return [_tag_error(item) for item in _list(fields)]

    def all_errors(self, path: str) -> Iterator[QueryTagError]:
        """Iterate over all instances that could not be indexed by a tag."""
        return _all(lambda offset: self.errors(path, limit=PAGE_SIZE, offset=offset))


class Operations:
    """Look at long-running operations and wait for them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, operation_id: str) -> Operation:
        """Return an operation as it is now; raises NotFound."""
        path = path_of("operations", operation_id)
        return _operation(_get(self._transport, path, "/operations/{operation}", accepts=(200, 202)))

    def wait(
        self,
        operation_id: str,
        *,
        every: timedelta = timedelta(seconds=2),
        give_up_after: timedelta | None = None,
        on_progress: Callable[[Operation], object] | None = None,
        stop: threading.Event | None = None,
    ) -> Operation:
        """Wait until an operation has ended, well or not, and return it.

        Asks quickly at first and then each ``every``. ``on_progress`` gets each look; ``stop`` ends the wait with the
        operation as it then is. Raises Unavailable (``timed_out``) after ``give_up_after``.
        """
        stop = stop if stop is not None else threading.Event()
        give_up_at = None if give_up_after is None else boottime() + give_up_after.total_seconds()
        pause = min(0.1, every.total_seconds())
        while True:
            operation = self.get(operation_id)
            if on_progress is not None:
                on_progress(operation)
            if not operation.is_running or stop.is_set():
                return operation
            if give_up_at is not None and boottime() + pause > give_up_at:
                raise Unavailable(
                    f"the operation is still {operation.status} ({operation.percent} %) after {give_up_after}",
                    timed_out=True,
                )
            stop.wait(pause)
            pause = min(pause * 2, every.total_seconds())


def read_partitions(transport: Transport) -> list[Partition]:
    """List the data partitions."""
    return [
        Partition(
            name=_text(item, "partitionname"),
            key=_number(item, "partitionkey"),
            created_at=_moment(item, "createddate"),
        )
        for item in _list(_get(transport, "/partitions", "/partitions"))
    ]


def start_bulk_update(transport: Transport, prefix: str, study_uids: Sequence[str], changes: DicomJson) -> str:
    """Start a bulk update (AZURE.md 7.1) and return its operation's id."""
    body = {"studyInstanceUids": list(study_uids), "changeDataset": changes}
    return _begin(transport, "/studies/$bulkUpdate", body, prefix=prefix)


def start_export(transport: Transport, values: Sequence[str], destination: Mapping[str, str | bool]) -> str:
    """Start an export to a blob container and return its operation's id."""
    body = {
        "source": {"type": "identifiers", "settings": {"values": list(values)}},
        "destination": {"type": "azureblob", "settings": dict(destination)},
    }
    return _begin(transport, "/export", body)


def _begin(transport: Transport, path: str, body: Any, *, prefix: str = "") -> str:
    """Start an operation and return its id; the address in its reference is not used."""
    with transport.send(
        "POST", prefix + path, route=path, headers=JSON_HEADERS, body=json.dumps(body).encode(), accepts=(202,)
    ) as answer:
        identifier = _text(_fields(answer), "id")
        if not identifier:
            raise answer.unintelligible("the answer names no operation")
        return identifier


def _get(
    transport: Transport,
    path: str,
    route: str,
    params: Sequence[tuple[str, str]] = (),
    *,
    accepts: Sequence[int] = (200, 204),
) -> Any:
    with transport.send(
        "GET", path, route=route, params=params, headers={"Accept": "application/json"}, accepts=accepts
    ) as answer:
        return [] if answer.status == 204 else _fields(answer)


def _paging(limit: int | None, offset: int) -> list[tuple[str, str]]:
    params = [] if limit is None else [("limit", str(limit))]
    return [*params, ("offset", str(offset))] if offset else params


def _all(read: Callable[[int], list[Item]]) -> Iterator[Item]:
    offset = 0
    while page := read(offset):
        yield from page
        offset += len(page)


def _fields(answer: Answer) -> Any:
    """Read a JSON answer, its objects' names in lower case at the top and in a list at the top."""
    body = answer.read_all(ANSWER_LIMIT)
    if answer.media_type not in JSON_TYPES:
        raise answer.unintelligible("the answer is not JSON")
    try:
        parsed = load_json(body)
    except Undecodable as error:
        raise answer.unintelligible(f"the answer is {error}") from None
    if isinstance(parsed, list):
        return [_lower(item) for item in parsed]
    if not isinstance(parsed, dict):
        raise answer.unintelligible("the answer is neither object nor list")
    return _lower(parsed)


def _lower(item: Any) -> dict[str, Any]:
    return {str(name).lower(): value for name, value in item.items()} if isinstance(item, dict) else {}


def _list(fields: Any) -> list[dict[str, Any]]:
    return fields if isinstance(fields, list) else [fields]


def _operation(fields: Mapping[str, Any]) -> Operation:
    status = _text(fields, "status").lower()
    results = fields.get("results")
    resources = fields.get("resources")
    return Operation(
        id=_text(fields, "operationid"),
        type=_text(fields, "type").lower(),
        status={"completed": "succeeded"}.get(status, status) or "unknown",  # v1 says completed
        percent=_number(fields, "percentcomplete"),
        created_at=_moment(fields, "createdtime"),
        updated_at=_moment(fields, "lastupdatedtime"),
        resources=tuple(str(item) for item in resources) if isinstance(resources, list) else (),
        results=results if isinstance(results, dict) else {},
    )


def _tag(fields: Mapping[str, Any]) -> QueryTagEntry:
    errors = _lower(fields.get("errors"))
    return QueryTagEntry(
        path=_text(fields, "path"),
        vr=_text(fields, "vr"),
        level=_text(fields, "level").lower(),
        status=_text(fields, "status").lower(),
        is_query_enabled=_text(fields, "querystatus").lower() == "enabled",
        private_creator=_text(fields, "privatecreator"),
        error_count=_number(errors, "count"),
        operation_id=_text(_lower(fields.get("operation")), "id"),
    )


def _tag_error(fields: Mapping[str, Any]) -> QueryTagError:
    return QueryTagError(
        study_uid=_text(fields, "studyinstanceuid"),
        series_uid=_text(fields, "seriesinstanceuid"),
        sop_uid=_text(fields, "sopinstanceuid"),
        message=_text(fields, "errormessage"),
        created_at=_moment(fields, "createdtime"),
        partition=_text(fields, "partitionname"),
    )


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _number(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _moment(fields: Mapping[str, Any], name: str) -> datetime | None:
    try:
        return parse_time(fields.get(name))
    except (ValueError, TypeError):
        return None
