"""The query string of a search, as QIDO and the worklist read it: paging, fields, filters, and the words of refusals.

AZURE.md 0.3, 3.1, 3.2; the end-to-end tests compare whole sentences.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote_plus

from ..dicom.collation import parse_datetime
from ..dicom.dictionary import tag_of
from ..errors import Problem
from ..http.request import ServiceRequest

_HINT = (
    "If the parameter is an attribute keyword, check the casing as they are case-sensitive. The conformance statement "
    "has a list of supported query parameters, attributes and the levels."
)
_NO_RANGE = (
    "Invalid query: specified range is invalid.\nBoth parts in the range cannot be empty.\nFor details on valid range "
    "queries, please refer to Search Matching section in Conformance Statement (https://github.com/microsoft/dicom-server"
    "/blob/main/docs/resources/conformance-statement.md#search-matching)."
)
_PARAMETERS = frozenset({"limit", "offset", "fuzzymatching", "includefield"})


def unqueryable(name: str) -> Problem:
    """The refusal of an attribute that cannot be searched, there or at all."""
    return Problem(400, f"Invalid query: AttributeId {name} is not queryable.  {_HINT}")


def unknown(name: str) -> Problem:
    """The refusal of what names no attribute."""
    return Problem(400, f"Invalid query: unknown query parameter '{name}'. {_HINT}")


def named_twice(name: str) -> Problem:
    """The refusal of an attribute that another filter names in another way."""
    return Problem(
        400,
        f"Invalid query: attribute '{name}' has been specified more than once using different ID formats. Each "
        "attribute is only allowed to be specified once.",
    )


def page(request: ServiceRequest) -> tuple[int, int]:
    """How many results are wanted at most, and how many are passed over; raises Problem 400."""
    return request.integer("Limit", default=100, least=1, most=200), request.integer("Offset", default=0, least=0)


def included(request: ServiceRequest) -> set[int] | None:
    """The tags of ``includefield``, None for all there are; raises Problem 400."""
    names = [
        part.strip() for name, value in request.query if name.lower() == "includefield" for part in value.split(",")
    ]
    if "all" in (name.lower() for name in names):
        if len(names) > 1:
            raise Problem(400, "Invalid query: cannot specify included fields in addition to 'all'.")
        return None
    found = set()
    for name in names:
        tag = tag_of(name)
        if tag is None:
            raise Problem(400, f"Invalid query: IncludeField has unknown attribute '{name}'.")
        found.add(tag)
    return found


def filters(request: ServiceRequest) -> dict[str, str]:
    """The filters' values by the names they are asked by, both without spaces around; raises Problem 400."""
    found: dict[str, str] = {}
    for written, value in request.query:
        name = written.strip()
        if name.lower() in _PARAMETERS:
            continue
        if name in found:
            raise Problem(
                400,
                f"Invalid QIDO-RS query. Duplicate AttributeId '{name}'. Each attribute is only allowed to be "
                "specified once.",
            )
        found[name] = value.strip()
    return found


def check_filled(name: str, value: str) -> None:
    """Raise Problem 400 where a filter has no value."""
    if not value:
        raise Problem(400, f"Invalid query: AttributeId '{name}' has empty string value that is not supported.")


def range_of(value: str, parsed: Callable[[str], str], part: str) -> tuple[str | None, str | None] | None:
    """Beginning and end of a range, None where the value is none; raises Problem 400.

    ``parsed`` gives texts that compare as what they mean, or raises; ``part`` is what the service calls either end.
    """
    texts = [text.strip() for text in value.split("-")]
    if len(texts) != 2:
        return None
    if not any(texts):
        raise Problem(400, _NO_RANGE)
    least, most = (parsed(text) if text else None for text in texts)
    if least is not None and most is not None and least > most:
        raise Problem(
            400,
            f"Invalid query: specified date range '{value}' is invalid.\nThe first part {part} {texts[0]} should be "
            f"lesser than or equal to the second part {part} {texts[1]}.",
        )
    return least, most


def parse_instant(text: str, name: str) -> str:
    """A date-time of a search as digits that compare; raises Problem 400."""
    result = None if "+" in text else parse_datetime(text)
    if result is not None:
        return result
    shown = quote_plus(text)
    if "+" in text and parse_datetime(text) is not None:
        raise Problem(
            400,
            f"Invalid query: specified DateTime value '{shown}' for attribute {name} contains offset which is not "
            "supported.",
        )
    raise Problem(
        400,
        f"Invalid query: specified DateTime value '{shown}' is invalid for attribute '{name}'. DateTime should be "
        "valid and formatted as yyyyMMddHHmmss.FFFFFF where yyyy is mandatory.",
    )
