"""Search Transactions (PS3.18 §10.6, QIDO-RS): queries, pages, and an iterator that pages by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, overload

from ingestd.dicomweb.decoding import (
    HTML_TYPES,
    JSON_TYPES,
    DicomJson,
    Undecodable,
    datasets_from_json,
    to_datasets,
    uid_of,
)
from ingestd.dicomweb.errors import MisconfiguredServer
from ingestd.dicomweb.transport import Answer, path_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ANSWER_LIMIT = 256 * 1024 * 1024
PAGE_SIZE = 200  # the most that Azure gives at once

FilterValue = str | int | date | Sequence[str]
Filters = Mapping[str, FilterValue]

LEVELS = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}


@dataclass(frozen=True, slots=True)
class SearchPage(Sequence[DicomJson]):
    """One page of results as plain DICOM JSON, in the server's order."""

    items: tuple[DicomJson, ...]
    server_date: datetime | None = None
    warning_header: str = ""

    @overload
    def __getitem__(self, index: int) -> DicomJson: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[DicomJson]: ...
    def __getitem__(self, index: int | slice) -> DicomJson | Sequence[DicomJson]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def datasets(self) -> list[Dataset]:
        """Return the results as pydicom Datasets."""
        return to_datasets(self.items)


def search_path(level: str, study_uid: str | None, series_uid: str | None) -> tuple[str, str]:
    """Return the path of one of the six searches, and the same without UIDs; raises ValueError for any other."""
    if level not in LEVELS:
        raise ValueError(f"no search for {level!r}; there are {', '.join(LEVELS)}")
    if (study_uid is not None and level == "studies") or (series_uid is not None and level != "instances"):
        raise ValueError(f"{level} cannot be searched below the level given")
    if series_uid is not None and study_uid is None:
        raise ValueError("a series in the path needs its study")
    path = route = ""
    if study_uid is not None:
        path, route = path_of("studies", study_uid), "/studies/{study}"
    if series_uid is not None:
        path, route = path + path_of("series", series_uid), route + "/series/{series}"
    return f"{path}/{level}", f"{route}/{level}"


def search_params(
    filters: Filters | None, *, include: Sequence[str], fuzzy: bool | None, limit: int | None, offset: int
) -> list[tuple[str, str]]:
    """Build a query (PS3.18 §8.3.4). A date or a pair of dates becomes DICOM's form; a list joins with commas."""
    params = [(name, _filter_text(value)) for name, value in (filters or {}).items()]
    params.extend(("includefield", name) for name in include)
    if fuzzy is not None:
        params.append(("fuzzymatching", "true" if fuzzy else "false"))
    if limit is not None:
        params.append(("limit", str(limit)))
    if offset:
        params.append(("offset", str(offset)))
    return params


def date_range(first: date | None, last: date | None) -> str:
    """Write a range of days as PS3.4 §C.2.2.2.5 has it; None leaves an end open."""
    if first is None and last is None:
        raise ValueError("a range needs at least one end")
    return f"{f'{first:%Y%m%d}' if first else ''}-{f'{last:%Y%m%d}' if last else ''}"


def _filter_text(value: FilterValue) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, date):
        return f"{value:%Y%m%d}"
    if isinstance(value, int):
        return str(value)
    return ",".join(value)


def read_results(answer: Answer, *, what: str = "the search") -> SearchPage:
    """Read a page of results, none for 204; raises Unintelligible, or MisconfiguredServer for a web page."""
    if answer.status == 204:
        return SearchPage((), answer.server_date)
    if answer.media_type in HTML_TYPES:
        raise MisconfiguredServer(f"{what} is answered with a web page", status=answer.status)
    body = answer.read_all(ANSWER_LIMIT)
    if body.strip() and answer.media_type not in JSON_TYPES:
        raise answer.unintelligible(f"{what} is not answered in DICOM JSON")
    try:
        items = datasets_from_json(body)
    except Undecodable as error:
        raise answer.unintelligible(f"{what} is answered with {error}") from None
    return SearchPage(tuple(items), answer.server_date, answer.headers.get("Warning", ""))


def pages(
    read: Callable[[int, int], SearchPage], level: str, *, page_size: int, offset: int, most: int | None
) -> Iterator[DicomJson]:
    """Read page after page until one is empty or brings nothing new; nothing comes twice in neighbouring pages.

    A short page is no end: servers have limits of their own below the one asked for. Results move while instances
    arrive, so an instance stored meanwhile may be missed, and a server that ignores ``offset`` repeats its page.
    """
    uid_name = LEVELS[level]
    before: set[Any] = set()
    given = 0
    while most is None or given < most:
        page = read(offset, page_size if most is None else min(page_size, most - given))
        keys = [uid_of(item, uid_name) or repr(item) for item in page]
        if not set(keys) - before:
            return
        for key, item in zip(keys, page, strict=True):
            if key not in before and (most is None or given < most):
                given += 1
                yield item
        before = set(keys)
        offset += len(page)
