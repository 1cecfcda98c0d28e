"""Our errors as callers of the older SDK catch them: as requests' own, with the server's answer hanging on them.

Each is both: of our class, which says what it means, and of the class of requests that stands for the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import requests

from ingestd.dicomweb.answers import Answer
from ingestd.dicomweb.errors import DicomWebError, MisconfiguredServer, Refused, Unavailable, Unintelligible
from ingestd.dicomweb.store_result import StoreResult


class SdkError(DicomWebError, requests.RequestException):
    """What every error of the older SDK's methods is; ``response`` is the server's answer, None if there was none.

    ``results`` are those of an upload's requests that were answered, the others' as well as the one that is told of.
    """

    ours: type[DicomWebError] = DicomWebError
    theirs: type[requests.RequestException] = requests.RequestException
    results: Sequence[StoreResult] = ()

    def __reduce__(self) -> tuple[Callable[..., SdkError], tuple[Any, ...]]:
        return _made, (self.ours, self.theirs, self.args, vars(self))


def in_terms_of_requests(error: DicomWebError, answer: Answer | None = None) -> SdkError:
    """Give the twin of an error that callers of the older SDK catch; ``answer`` is the server's last, if any."""
    heard = answer if answer is not None and answer.status == error.status else None
    facts = {**vars(error), "response": None if heard is None else _whole(heard), "request": None}
    return _made(type(error), _kind_of(error), error.args, facts)


def _kind_of(error: DicomWebError) -> type[requests.RequestException]:
    if error.status is not None and (error.status >= 300 or isinstance(error, Refused)):
        return requests.HTTPError
    if isinstance(error, Unavailable) and error.timed_out:
        return requests.Timeout
    if isinstance(error, Unavailable) or (
        error.status is None and isinstance(error, (MisconfiguredServer, Unintelligible))
    ):
        return requests.ConnectionError
    return requests.RequestException


def _made(
    ours: type[DicomWebError],
    theirs: type[requests.RequestException],
    args: tuple[Any, ...],
    facts: Mapping[str, object],
) -> SdkError:
    kind = _both(ours, theirs)  # type: ignore[arg-type]  # mypy looks at their instances' __hash__
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(facts)
    return error


@cache
def _both(ours: type[DicomWebError], theirs: type[requests.RequestException]) -> type[SdkError]:
    words = {"__doc__": ours.__doc__, "__module__": __name__, "ours": ours, "theirs": theirs}
    return cast("type[SdkError]", type(ours.__name__, (SdkError, ours, theirs), words))


def _whole(answer: Answer) -> requests.Response:
    """Give requests' own response, readable again, and without the request: in that stands our token."""
    response = answer.response
    response.raw = io.BytesIO(answer.body)
    response.encoding = response.encoding or "utf-8"  # DICOM JSON is nothing else (PS3.18 §F.2)
    response.request = None  # type: ignore[assignment]  # requests begins with it as well
    return response
