"""QIDO-RS: the six search resources (AZURE.md 3). This file reads the query; ``search.py`` asks the index."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pydicom.datadict import dictionary_keyword
from starlette.responses import Response

from ..dicom import validation
from ..dicom.attributes import (
    ALL_INSTANCE,
    ALL_SERIES,
    ALL_STUDY,
    CORE_BY_TAG,
    MODALITIES_IN_STUDY,
    SERIES_UID,
    STUDY_UID,
    V1_INSTANCE,
    V1_SERIES,
    V1_STUDY,
    V2_INSTANCE,
    V2_SERIES,
    V2_STUDY,
    Level,
)
from ..dicom.collation import fold, fold_name
from ..errors import Problem
from ..http.answers import raw_json
from ..http.request import Action, Call, Route, route
from ..storage.examine import Tag
from .body import tag_of
from .query import (
    check_filled,
    filters,
    included,
    is_fuzzy,
    named_twice,
    page,
    parse_instant,
    range_of,
    unknown,
    unqueryable,
)  # fmt: skip
from .search import Filter, Question, known_tags, run

_SETS = {
    1: {Level.STUDY: V1_STUDY, Level.SERIES: V1_SERIES, Level.INSTANCE: V1_INSTANCE},
    2: {Level.STUDY: V2_STUDY, Level.SERIES: V2_SERIES, Level.INSTANCE: V2_INSTANCE},
}
_ALL = {Level.STUDY: ALL_STUDY, Level.SERIES: ALL_SERIES, Level.INSTANCE: ALL_INSTANCE}
# What a path searches, and at which levels its filters and default attributes are.
_SCOPES: dict[str, tuple[Level, frozenset[Level]]] = {
    "studies": (Level.STUDY, frozenset({Level.STUDY})),
    "series": (Level.SERIES, frozenset({Level.STUDY, Level.SERIES})),
    "instances": (Level.INSTANCE, frozenset(Level)),
    "studies/{study}/series": (Level.SERIES, frozenset({Level.SERIES})),
    "studies/{study}/instances": (Level.INSTANCE, frozenset({Level.SERIES, Level.INSTANCE})),
    "studies/{study}/series/{series}/instances": (Level.INSTANCE, frozenset({Level.INSTANCE})),
}


@dataclass(kw_only=True)
class _Reading:
    """The query string, read."""

    limit: int = 100
    offset: int = 0
    fuzzy: bool = False
    include_all: bool = False
    include: set[int] = field(default_factory=set)
    filters: list[Filter] = field(default_factory=list)
    erroneous: list[str] = field(default_factory=list)  # filters whose tag some instances could not be indexed for


def _search(path: str, call: Call) -> Response:
    level, levels = _SCOPES[path]
    study, series = call.optional_uid("study"), call.optional_uid("series")
    with call.service.index.read() as tx:
        tags = known_tags(tx)
        reading = _read(call, levels, tags)
        fields = _fields(call.version, levels, reading)
        for filter_ in reading.filters:
            fields.add(filter_.tag)
        if study is not None:
            fields.add(STUDY_UID)
        if series is not None:
            fields.add(SERIES_UID)
        question = Question(
            level=level,
            partition_key=call.partition_key,
            study_uid=study,
            series_uid=series,
            filters=reading.filters,
            fields=frozenset(fields),
            limit=reading.limit,
            offset=reading.offset,
        )
        found = run(tx, question, hidden=call.service.lag.hidden())
    response = raw_json(found) if found else Response(status_code=204)
    if reading.erroneous:
        response.headers["erroneous-dicom-attributes"] = ",".join(reading.erroneous)
    return response


def _fields(version: int, levels: frozenset[Level], reading: _Reading) -> set[int]:
    sets = _ALL if reading.include_all else _SETS[version]
    fields = set().union(*(sets[level] for level in levels))
    return fields | reading.include


def _read(call: Call, levels: frozenset[Level], tags: dict[int, Tag]) -> _Reading:
    limit, offset = page(call)
    wanted = included(call)
    reading = _Reading(
        limit=limit, offset=offset, fuzzy=is_fuzzy(call), include_all=wanted is None, include=wanted or set()
    )
    seen: set[int] = set()
    for name, value in filters(call).items():
        tag = tag_of(name)
        if tag is None:
            raise unknown(name)
        found = _filter(name, tag, value, levels, tags, fuzzy=reading.fuzzy)
        if tag in seen:
            raise named_twice(name)
        seen.add(tag)
        reading.filters.append(found)
        if found.has_errors:
            reading.erroneous.append(name)
    return reading


def _filter(name: str, tag: int, value: str, levels: frozenset[Level], tags: dict[int, Tag], *, fuzzy: bool) -> Filter:
    core, extended = CORE_BY_TAG.get(tag), tags.get(tag)
    if tag == MODALITIES_IN_STUDY:
        level, vr = Level.STUDY, "CS"
    elif core is not None:
        level, vr = core.level, core.vr
    elif extended is not None:
        level, vr = extended.level, extended.vr
    else:
        level, vr = None, ""
    if level is None or level not in levels:
        raise unqueryable(name)
    found = Filter(tag=tag, vr=vr, level=level, extended=extended)
    if extended is not None:
        found.check_usable(name)
    check_filled(name, value)
    shown = core_keyword(tag, name)
    if vr == "PN":
        _read_name(found, shown, value, fuzzy=fuzzy)
    elif vr in _RANGES:
        _read_range(found, shown, vr, value)
    elif vr in ("SL", "SS", "UL", "US"):
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", value) or not -(1 << 63) <= int(value) < 1 << 63:
            raise _no_number(value, shown, "long")
        found.equals = int(value)
    elif vr in ("FD", "FL"):
        if not _DOUBLE.fullmatch(value.strip()):
            raise _no_number(value, shown, "double")
        found.equals = float(value)
    elif vr == "IS":
        parsed = validation.parse_integer(value.strip())
        if parsed is None:
            raise Problem(400, f"Invalid query: specified value '{value}' is invalid for attribute '{shown}'.")
        found.equals = parsed
    elif vr == "UI":
        if not validation.is_valid_uid(value.rstrip("\0")):
            raise Problem(400, f"Invalid query: specified value '{value}' is invalid for attribute '{shown}'.")
        found.equals = fold(value, vr)
    else:
        found.equals = fold(value, vr)
    return found


# What .NET takes for a double: Python takes more.
_DOUBLE = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|infinity|nan)", re.IGNORECASE)


def _no_number(value: str, name: str, kind: str) -> Problem:
    return Problem(
        400,
        f"Invalid query: specified value '{value}' extended query tag with path '{name}' is not a valid {kind} value.",
    )


def core_keyword(tag: int, name: str) -> str:
    """How an attribute is called in error texts: its keyword, or as the client wrote it."""
    try:
        return dictionary_keyword(tag) or name
    except KeyError:
        return name


def _read_name(found: Filter, name: str, value: str, *, fuzzy: bool) -> None:
    if not fuzzy:
        found.equals = fold(value, "PN")
        return
    if '"' in value:
        raise Problem(
            400,
            f"Invalid query: specified tag '{name}' value '{value}' contains unsupported character '\"'. Character is "
            "not supported with Fuzzy match, try exact match or removing the invalid character. ",
        )
    found.words = " ".join(fold_name(value).replace("^", " ").replace("=", " ").split())


# What the service calls either end of a range.
_RANGES = {"DA": "date", "DT": "DateTime", "TM": "time"}


def _read_range(found: Filter, name: str, vr: str, value: str) -> None:
    def parsed(text: str) -> str:
        if vr == "DA":
            result = text if validation.parse_date(text) else None
        elif vr == "DT":
            result = parse_instant(text, name)
        else:
            result = validation.parse_time(text)
        if result is None:
            raise _no_time(vr, text, name)
        return result

    ends = range_of(value, parsed, _RANGES[vr])
    if ends is None:
        found.equals = parsed(value)
    else:
        found.least, found.most = ends


def _no_time(vr: str, text: str, name: str) -> Problem:
    if vr == "TM":
        return Problem(
            400,
            f"Invalid query: specified Time value '{text}' is invalid for parameter '{name}'. Time should be valid and "
            "formatted as HHmmss.FFFFFF where HH is mandatory.",
        )
    return Problem(
        400,
        f"Invalid query: specified Date value '{text}' is invalid for attribute '{name}'. Date should be valid and "
        "formatted as yyyyMMdd.",
    )


def _endpoint(path: str) -> Route:
    return route("GET", path, lambda call: _search(path, call), Action.READ, json_answer=True)


ROUTES: list[Route] = [_endpoint(path) for path in _SCOPES]
