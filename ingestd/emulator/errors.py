"""What a request can end in other than an answer, with the status and the words the service uses (AZURE.md 0.3)."""

from __future__ import annotations

from collections.abc import Mapping

NOT_ACCEPTABLE = "The request headers are not acceptable"
_STUDY_NOT_FOUND = "The specified study cannot be found."
_SERIES_NOT_FOUND = "The specified series cannot be found."
INSTANCE_NOT_FOUND = "The specified instance cannot be found."
SYNTAX = "The syntax of the request body is invalid."
INTERNAL = (
    "The server encountered an internal error. Please retry the request. If the issue persists, please contact support."
)
UNAVAILABLE = (
    "The server is currently unable to receive requests. Please retry your request. "
    "If the issue persists, please contact support."
)


class Problem(Exception):
    """A request ends here with this status and this text."""

    def __init__(self, status: int, message: str = "", *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


class CutConnection(Exception):
    """The connection is to be cut without (another) byte: a fault that a test asked for."""


def not_found(series: str | None, instance: str | None) -> Problem:
    """The 404 for a path that names a study, a series of one or an instance of that."""
    return Problem(404, INSTANCE_NOT_FOUND if instance else _SERIES_NOT_FOUND if series else _STUDY_NOT_FOUND)


def bad_parameter(name: str, detail: str) -> Problem:
    """The refusal of a query parameter, in the service's words."""
    return Problem(400, f"The query parameter '{name}' is invalid. {detail}")
