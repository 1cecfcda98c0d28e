"""QIDO-RS: the six search resources (AZURE.md 3). This file reads the query; ``search.py`` asks the index."""

from __future__ import annotations

import re
import sqlite3

from starlette.responses import Response

from ..dicom.attributes import (
    ALL_FIELDS,
    CORE_BY_TAG,
    DEFAULT_FIELDS,
    MODALITIES_IN_STUDY,
    SERIES_UID,
    STUDY_UID,
    Level,
)
from ..dicom.collation import fold, fold_name, name_words, parse_date, parse_integer, parse_time
from ..dicom.dictionary import keyword_of, tag_of
from ..dicom.minimum_rules import is_valid_uid
from ..errors import Problem
from ..http.answers import raw_json
from ..http.request import Action, Route, ServiceRequest, route
from . import query
from .search import Filter, Question, known_tags, run

# What a path searches, and at which levels its filters and default attributes are.
_SCOPES: dict[str, tuple[Level, frozenset[Level]]] = {
    "studies": (Level.STUDY, frozenset({Level.STUDY})),
    "series": (Level.SERIES, frozenset({Level.STUDY, Level.SERIES})),
    "instances": (Level.INSTANCE, frozenset(Level)),
    "studies/{study}/series": (Level.SERIES, frozenset({Level.SERIES})),
    "studies/{study}/instances": (Level.INSTANCE, frozenset({Level.SERIES, Level.INSTANCE})),
    "studies/{study}/series/{series}/instances": (Level.INSTANCE, frozenset({Level.INSTANCE})),
}


def _search(path: str, request: ServiceRequest) -> Response:
    level, levels = _SCOPES[path]
    study, series = request.optional_uid("study"), request.optional_uid("series")
    with request.archive.index.read() as tx:
        limit, offset = query.page(request)
        include = query.included(request)
        asked = _filters(request, levels, known_tags(tx), fuzzy=request.flag("FuzzyMatching", default=False))
        sets = ALL_FIELDS if include is None else DEFAULT_FIELDS[request.version]
        fields = {filter_.tag for filter_ in asked.values()}.union(include or (), *(sets[level] for level in levels))
        if study is not None:
            fields.add(STUDY_UID)
        if series is not None:
            fields.add(SERIES_UID)
        question = Question(
            level=level,
            partition_key=request.partition_key,
            study_uid=study,
            series_uid=series,
            filters=list(asked.values()),
            fields=frozenset(fields),
            limit=limit,
            offset=offset,
        )
        found = run(tx, question, hidden=request.archive.index_delay.hidden())
    response = raw_json(found) if found else Response(status_code=204)
    erroneous = [name for name, filter_ in asked.items() if filter_.extended is not None and filter_.extended["errors"]]
    if erroneous:
        response.headers["erroneous-dicom-attributes"] = ",".join(erroneous)
    return response


def _filters(
    request: ServiceRequest, levels: frozenset[Level], tags: dict[int, sqlite3.Row], *, fuzzy: bool
) -> dict[str, Filter]:
    """The filters by the names they are asked by; raises Problem 400."""
    found: dict[str, Filter] = {}
    for name, value in query.filters(request).items():
        tag = tag_of(name)
        if tag is None:
            raise query.unknown(name)
        filter_ = _filter(name, tag, value, levels, tags, fuzzy=fuzzy)
        if any(tag == other.tag for other in found.values()):
            raise query.named_twice(name)
        found[name] = filter_
    return found


def _filter(
    name: str, tag: int, value: str, levels: frozenset[Level], tags: dict[int, sqlite3.Row], *, fuzzy: bool
) -> Filter:
    core, extended = CORE_BY_TAG.get(tag), tags.get(tag)
    if tag == MODALITIES_IN_STUDY:
        level, vr = Level.STUDY, "CS"
    elif core is not None:
        level, vr = core.level, core.vr
    elif extended is not None:
        level, vr = Level(extended["level"]), extended["vr"]
    else:
        raise query.unqueryable(name)
    if level not in levels:
        raise query.unqueryable(name)
    if extended is not None and not extended["is_usable"]:
        raise Problem(400, f"Query is disabled on specified attribute '{name}'.")
    query.check_filled(name, value)
    test, values = _test(keyword_of(tag, name), vr, value, fuzzy=fuzzy)
    return Filter(tag=tag, level=level, extended=extended, test=test, values=values)


# What the service calls either end of a range.
_RANGES = {"DA": "date", "DT": "DateTime", "TM": "time"}


def _test(name: str, vr: str, value: str, *, fuzzy: bool) -> tuple[str, list[str | float]]:
    """The test of a column, which stands where the ``{0}`` is, and the values in it; raises Problem 400."""

    def parsed(text: str) -> str:
        if vr == "DA":
            result = text if parse_date(text) else None
        elif vr == "DT":
            result = query.parse_instant(text, name)
        else:
            result = parse_time(text)
        if result is None:
            raise _no_time(vr, text, name)
        return result

    if vr == "PN" and fuzzy:
        if '"' in value:
            raise Problem(
                400,
                f"Invalid query: specified tag '{name}' value '{value}' contains unsupported character '\"'. Character "
                "is not supported with Fuzzy match, try exact match or removing the invalid character. ",
            )
        return "fuzzy({0}, ?)", [" ".join(name_words(fold_name(value)))]
    if vr not in _RANGES:
        return "{0} = ?", [_equal_to(name, vr, value)]
    ends = query.range_of(value, parsed, _RANGES[vr])
    if ends is None:
        return "{0} = ?", [parsed(value)]
    bounds = [(f"{{0}} {sign} ?", end) for sign, end in zip((">=", "<="), ends, strict=True) if end is not None]
    return " AND ".join(test for test, _ in bounds), [end for _, end in bounds]


# What .NET takes for a double: Python takes more.
_DOUBLE = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|infinity|nan)", re.IGNORECASE)


def _equal_to(name: str, vr: str, value: str) -> str | float:
    if vr in ("SL", "SS", "UL", "US"):
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", value) or not -(1 << 63) <= int(value) < 1 << 63:
            raise _no_number(value, name, "long")
        return int(value)
    if vr in ("FD", "FL"):
        if not _DOUBLE.fullmatch(value.strip()):
            raise _no_number(value, name, "double")
        return float(value)
    if vr == "IS":
        result: str | float | None = parse_integer(value.strip())
    else:
        result = fold(value, vr) if vr != "UI" or is_valid_uid(value.rstrip("\0")) else None
    if result is None:
        raise Problem(400, f"Invalid query: specified value '{value}' is invalid for attribute '{name}'.")
    return result


def _no_number(value: str, name: str, kind: str) -> Problem:
    return Problem(
        400,
        f"Invalid query: specified value '{value}' extended query tag with path '{name}' is not a valid {kind} value.",
    )


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


def _route(path: str) -> Route:
    return route("GET", path, lambda request: _search(path, request), Action.READ, json_answer=True)


ROUTES: list[Route] = [_route(path) for path in _SCOPES]
