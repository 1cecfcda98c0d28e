"""Search Transactions (PS3.18 §10.6, QIDO-RS): queries, pages, and an iterator that pages by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from typing import TYPE_CHECKING, TypedDict, Unpack, overload

from ingestd.dicomweb.answers import Answer
from ingestd.dicomweb.decoding import (
    ACCEPT_JSON,
    HTML_TYPES,
    JSON_TYPES,
    DicomJson,
    Undecodable,
    datasets_from_json,
    to_datasets,
    uid_of,
)
from ingestd.dicomweb.errors import MisconfiguredServer, Unintelligible
from ingestd.dicomweb.transport import Transport, resource

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ANSWER_LIMIT = 256 * 1024 * 1024
PAGE_SIZE = 200  # the most that Azure gives at once
MOST_RESULTS = 20_000_000  # of one search; only a server without end has more

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


class Fields(TypedDict, total=False):
    """What a search returns and how it matches names: ``include`` (keywords, tags or ``all``) and ``fuzzy``."""

    include: Sequence[str]
    fuzzy: bool | None


class Query(Fields, total=False):
    """One page of a search: at most ``limit`` results after the first ``offset``."""

    limit: int | None
    offset: int


class Paging(Fields, total=False):
    """A search to its end: ``page_size`` results at a time, after the first ``offset``, ``most`` in all."""

    page_size: int
    offset: int
    most: int | None


class Searches:
    """The searches of a client (PS3.18 Table 10.6.1-1): one page of each, or all pages one after the other."""

    transport: Transport
    _prefix: str

    def search_studies(self, filters: Filters | None = None, **query: Unpack[Query]) -> SearchPage:
        """Search for studies (PS3.18 §10.6): one page, as the server gives it.

        ``filters`` are attributes by keyword or tag; ``include`` names attributes to return beside the default ones, or
        ``all``. The server decides which filters it knows and how many results it gives at most (Azure: 200).
        """
        return self._search("studies", filters, **query)

    def search_series(
        self, filters: Filters | None = None, *, study_uid: str | None = None, **query: Unpack[Query]
    ) -> SearchPage:
        """Search for series, everywhere or in one study; as ``search_studies``."""
        return self._search("series", filters, study_uid, **query)

    def search_instances(
        self,
        filters: Filters | None = None,
        *,
        study_uid: str | None = None,
        series_uid: str | None = None,
        **query: Unpack[Query],
    ) -> SearchPage:
        """Search for instances, everywhere, in one study or in one series; as ``search_studies``."""
        return self._search("instances", filters, study_uid, series_uid, **query)

    def find_studies(self, filters: Filters | None = None, **query: Unpack[Paging]) -> Iterator[DicomJson]:
        """Search for studies and page by itself, to the end or to ``most`` results."""
        return _pages("studies", partial(self.search_studies, filters), **query)

    def find_series(
        self, filters: Filters | None = None, *, study_uid: str | None = None, **query: Unpack[Paging]
    ) -> Iterator[DicomJson]:
        """Search for series and page by itself, to the end or to ``most`` results."""
        return _pages("series", partial(self.search_series, filters, study_uid=study_uid), **query)

    def find_instances(
        self,
        filters: Filters | None = None,
        *,
        study_uid: str | None = None,
        series_uid: str | None = None,
        **query: Unpack[Paging],
    ) -> Iterator[DicomJson]:
        """Search for instances and page by itself, to the end or to ``most`` results."""
        _resource(study_uid, series_uid)  # a wrong call is told of here, not when the first result is asked for
        search = partial(self.search_instances, filters, study_uid=study_uid, series_uid=series_uid)
        return _pages("instances", search, **query)

    def _search(
        self,
        level: str,
        filters: Filters | None,
        study_uid: str | None = None,
        series_uid: str | None = None,
        **query: Unpack[Query],
    ) -> SearchPage:
        path, route = _resource(study_uid, series_uid)
        with self.transport.send(
            "GET",
            f"{self._prefix}{path}/{level}",
            route=f"{route}/{level}",
            params=search_params(filters, **query),
            headers={"Accept": ACCEPT_JSON},
            accepts=(200, 204, 206),
        ) as answer:
            return read_results(answer)


def _resource(study_uid: str | None, series_uid: str | None) -> tuple[str, str]:
    if study_uid is not None:
        return resource(study_uid, series_uid)
    if series_uid is not None:
        raise ValueError("a series in the path needs its study")
    return "", ""


def search_params(filters: Filters | None, **query: Unpack[Query]) -> list[tuple[str, str]]:
    """Build the query (PS3.18 §8.3.4). A date becomes DICOM's form; a list of values joins with commas."""
    params = [(name, _filter_text(value)) for name, value in (filters or {}).items()]
    params.extend(("includefield", name) for name in query.get("include", ()))
    fuzzy = query.get("fuzzy")
    if fuzzy is not None:
        params.append(("fuzzymatching", "true" if fuzzy else "false"))
    limit = query.get("limit")
    if limit is not None:
        params.append(("limit", str(limit)))
    if query.get("offset", 0):
        params.append(("offset", str(query["offset"])))
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


def _pages(
    level: str,
    search: Callable[..., SearchPage],
    *,
    page_size: int = PAGE_SIZE,
    offset: int = 0,
    most: int | None = None,
    **query: Unpack[Fields],
) -> Iterator[DicomJson]:
    """Read page after page until one is empty or brings nothing new; nothing comes twice.

    A short page is no end: servers have limits of their own below the one asked for. Results move while instances
    arrive, so an instance stored meanwhile may be missed; a server that ignores ``offset`` repeats its page, and one
    behind a balancer may give its pages round and round. Raises Unintelligible for a search without an end.
    """
    # A UID may stand twice below another parent: the same SOP Instance UID in two series is two instances.
    names = tuple(LEVELS.values())[: tuple(LEVELS).index(level) + 1]
    given: set[int] = set()  # hashes of the UIDs: a number is half as large
    while most is None or len(given) < most:
        limit = page_size if most is None else min(page_size, most - len(given))
        page = search(offset=offset, limit=limit, **query)
        is_over = True
        for item in page:
            uids = tuple(uid_of(item, name) for name in names)
            key = hash(uids if uids[-1] else repr(item))
            if key in given or (most is not None and len(given) >= most):
                continue
            is_over = False
            given.add(key)
            yield item
        if is_over:
            return
        if len(given) > MOST_RESULTS:
            raise Unintelligible(f"the search for {level} has more than {MOST_RESULTS} results and goes on")
        offset += len(page)
