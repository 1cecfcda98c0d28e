"""QIDO-RS: the six search resources (facts page 3). This file reads the query; ``search.py`` asks the index."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pydicom.datadict import dictionary_keyword
from starlette.responses import Response

from . import validate
from .answers import raw_json
from .call import Action, Call, Route, boolean, number, route
from .errors import Problem
from .examine import Tag
from .folding import fold, fold_name
from .given import tag_of
from .indexed import (
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
        erroneous = _erroneous(tags, reading)
    response = raw_json(found) if found else Response(status_code=204)
    if erroneous:
        response.headers["erroneous-dicom-attributes"] = ",".join(erroneous)
    return response


def _erroneous(tags: dict[int, Tag], reading: _Reading) -> list[str]:
    return [tags[filter_.tag].name for filter_ in reading.filters if filter_.tag in tags and filter_.has_errors]


def _fields(version: int, levels: frozenset[Level], reading: _Reading) -> set[int]:
    sets = _ALL if reading.include_all else _SETS[version]
    fields = set().union(*(sets[level] for level in levels))
    return fields | reading.include


def _read(call: Call, levels: frozenset[Level], tags: dict[int, Tag]) -> _Reading:
    reading = _Reading(
        limit=number("limit", call.parameter("limit"), default=100, least=1, most=200),
        offset=number("offset", call.parameter("offset"), default=0, least=0, most=(1 << 31) - 1),
        fuzzy=boolean("fuzzymatching", call.parameter("fuzzymatching"), default=False),
    )
    seen: set[int] = set()
    for name, value in call.query:
        lowered = name.lower()
        if lowered in ("limit", "offset", "fuzzymatching"):
            continue
        if lowered == "includefield":
            _include(reading, value)
            continue
        tag = tag_of(name.strip())
        if tag is None:
            raise Problem(
                400,
                f"Invalid query: unknown query parameter '{name}'. If the parameter is an attribute keyword, check "
                "the casing as they are case-sensitive.",
            )
        if tag in seen:
            raise Problem(400, f"Invalid query: attribute '{name}' is specified more than once.")
        seen.add(tag)
        reading.filters.append(_filter(name, tag, value, levels, tags, fuzzy=reading.fuzzy))
    if reading.include_all and reading.include:
        raise Problem(400, "Invalid query: includefield 'all' cannot be combined with other attributes.")
    return reading


def _include(reading: _Reading, value: str) -> None:
    for name in value.split(","):
        stripped = name.strip()
        if stripped.lower() == "all":
            reading.include_all = True
            continue
        tag = tag_of(stripped)
        if tag is None:
            raise Problem(400, f"Invalid query: includefield has unknown attribute '{stripped}'.")
        reading.include.add(tag)


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
        raise Problem(
            400,
            f"Invalid query: AttributeId {name} is not queryable.  If the parameter is an attribute keyword, check "
            "the casing as they are case-sensitive.",
        )
    if not value.strip():
        raise Problem(400, f"Invalid query: the value of attribute '{name}' is empty.")
    found = Filter(tag=tag, vr=vr, level=level, extended=extended)
    if extended is not None:
        found.check_usable(name)
    shown = core_keyword(tag, name)
    if vr == "PN":
        _read_name(found, shown, value, fuzzy=fuzzy)
    elif vr in _RANGES:
        _read_range(found, shown, vr, value)
    elif vr in ("SL", "SS", "UL", "US"):
        if not re.fullmatch(r"[+-]?\d{1,19}", value.strip()):
            raise Problem(400, f"Invalid query: specified value '{value}' is invalid for attribute '{shown}'.")
        found.equals = int(value)
    elif vr in ("FD", "FL"):
        try:
            found.equals = float(value)
        except ValueError as error:
            raise Problem(
                400, f"Invalid query: specified value '{value}' is invalid for attribute '{shown}'."
            ) from error
    elif vr == "IS":
        parsed = validate.parse_integer(value.strip())
        if parsed is None:
            raise Problem(400, f"Invalid query: specified value '{value}' is invalid for attribute '{shown}'.")
        found.equals = parsed
    elif vr == "UI":
        if not validate.is_valid_uid(value.rstrip("\0")):
            raise Problem(400, f"Invalid query: specified value '{value}' is invalid for attribute '{shown}'.")
        found.equals = fold(value, vr)
    else:
        found.equals = fold(value, vr)
    return found


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
        raise Problem(400, f"Invalid query: the value of attribute '{name}' contains an invalid character.")
    found.words = " ".join(fold_name(value).replace("^", " ").replace("=", " ").split())


_RANGES = {
    "DA": ("Date", "Date should be valid and formatted as yyyyMMdd."),
    "DT": ("DateTime", "DateTime should be valid and formatted as yyyyMMddHHmmss.FFFFFF without an offset."),
    "TM": ("Time", "Time should be valid and formatted as HHmmss.FFFFFF."),
}


def _read_range(found: Filter, name: str, vr: str, value: str) -> None:
    first, dash, last = value.strip().partition("-")
    kind, advice = _RANGES[vr]

    def parsed(text: str) -> str:
        stripped = text.strip()
        result = {
            "DA": lambda: stripped if validate.parse_date(stripped) else None,
            "DT": lambda: None if "+" in stripped else validate.parse_datetime(stripped),
            "TM": lambda: validate.parse_time(stripped),
        }[vr]()
        if result is None:
            raise Problem(
                400,
                f"Invalid query: specified {kind} value '{stripped}' is invalid for attribute '{name}'. {advice}",
            )
        return result

    if not dash:
        found.equals = parsed(first)
        return
    found.least = parsed(first) if first.strip() else None
    found.most = parsed(last) if last.strip() else None
    if found.least is None and found.most is None:
        raise Problem(400, f"Invalid query: the range of attribute '{name}' has neither a beginning nor an end.")
    if found.least is not None and found.most is not None and found.least > found.most:
        raise Problem(400, f"Invalid query: the range '{value}' of attribute '{name}' begins after its end.")


def _endpoint(path: str) -> Route:
    return route("GET", path, lambda call: _search(path, call), Action.READ, json_answer=True)


ROUTES: list[Route] = [_endpoint(path) for path in _SCOPES]
