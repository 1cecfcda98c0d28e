"""The Azure DICOM service's change feed, v1 and v2 (AZURE.md 5).

The two versions take other parameters under the same names: v1's ``offset`` is the sequence to read after, v2's the
rows to skip in a window of time. Names and values are matched whatever their case: pages and source disagree on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ingestd.dicomweb.answers import Answer, bounded_utc
from ingestd.dicomweb.decoding import HTML_TYPES, JSON_TYPES, DicomJson, Undecodable, load_json
from ingestd.dicomweb.errors import MisconfiguredServer

ANSWER_LIMIT = 128 * 1024 * 1024  # 200 entries with metadata
HIGHEST_SEQUENCE = 2**63 - 1  # the service's own type
_WORD_MOST = 256  # characters of a UID, a partition's name, an action, a state
_MICROSECONDS = re.compile(r"(\.\d{6})\d+")
_FRACTION = re.compile(r"\.(\d{1,5})(?=\D|$)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeFeedEntry:
    """One change on the server. ``action`` is create, update or delete; ``state`` is current, replaced or deleted.

    The state is that of the instance *now*, the same in all its entries; ``at`` is the server's clock, cut to
    microseconds. ``metadata`` is that of the current version where it was asked for.
    """

    sequence: int
    study_uid: str
    series_uid: str
    sop_uid: str
    action: str
    state: str
    at: datetime
    partition: str = ""
    metadata: DicomJson | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeFeedPage:
    """A page of the feed and the server's clock when it was read.

    In v1 a page may be empty although later entries exist: only ``change_feed_latest`` says where the feed ends.
    ``unreadable`` counts what stands between the entries and cannot be read; the next page begins after ``size``.
    """

    entries: tuple[ChangeFeedEntry, ...]
    server_date: datetime | None = None
    unreadable: int = 0

    @property
    def size(self) -> int:
        """How many entries the server gave, those that cannot be read included."""
        return len(self.entries) + self.unreadable


def format_time(moment: datetime) -> str:
    """Write an instant as the feed takes it: UTC, with its zone; raises ValueError for a naive one."""
    if moment.tzinfo is None:
        raise ValueError("the change feed takes aware times only")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def read_page(answer: Answer) -> ChangeFeedPage:
    """Read a page, an entry that is none counted; raises Unintelligible, or MisconfiguredServer for a web page."""
    parsed = _json(answer)
    if not isinstance(parsed, list):
        raise answer.unintelligible("the change feed's page is no list")
    entries: list[ChangeFeedEntry] = []
    for item in parsed:
        try:
            entries.append(_entry(item))
        except (KeyError, ValueError, TypeError):
            continue
    return ChangeFeedPage(entries=tuple(entries), server_date=answer.server_date, unreadable=len(parsed) - len(entries))


def read_latest(answer: Answer) -> ChangeFeedEntry | None:
    """Read the newest entry, None from an empty server (204); raises as ``read_page``."""
    if answer.status == 204:
        return None
    parsed = _json(answer)
    if parsed is None:
        return None
    try:
        return _entry(parsed)
    except (KeyError, ValueError, TypeError):
        raise answer.unintelligible("the latest entry of the change feed cannot be read") from None


def _json(answer: Answer) -> Any:
    if answer.media_type in HTML_TYPES:
        raise MisconfiguredServer("the change feed answers with a web page", status=answer.status)
    body = answer.read_all(ANSWER_LIMIT)
    if answer.media_type not in JSON_TYPES:
        raise answer.unintelligible("the change feed is not JSON")
    try:
        return load_json(body)
    except Undecodable as error:
        raise answer.unintelligible(f"the change feed is {error}") from None


def _entry(item: Any) -> ChangeFeedEntry:
    if not isinstance(item, Mapping):
        raise TypeError
    fields = {str(name).lower(): value for name, value in item.items()}
    sequence = fields["sequence"]
    if isinstance(sequence, bool) or not isinstance(sequence, int):
        raise TypeError
    if not 0 <= sequence <= HIGHEST_SEQUENCE:
        raise ValueError
    metadata = fields.get("metadata")
    return ChangeFeedEntry(
        sequence=sequence,
        study_uid=_uid(fields["studyinstanceuid"]),
        series_uid=_uid(fields["seriesinstanceuid"]),
        sop_uid=_uid(fields["sopinstanceuid"]),
        action=_word(fields["action"]).lower(),
        state=_word(fields["state"]).lower(),
        at=parse_time(fields["timestamp"]),
        partition=_word(fields.get("partitionname") or ""),
        metadata=metadata if isinstance(metadata, dict) else None,
    )


def _word(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _WORD_MOST:
        raise TypeError
    return value


def _uid(value: Any) -> str:
    uid = _word(value).strip(" \0")
    if not uid:
        raise ValueError
    return uid


def parse_time(text: Any) -> datetime:
    """Read an ISO 8601 instant as .NET writes it (seven digits of fraction); no zone counts as UTC.

    Raises TypeError or ValueError, also for what no clock shows.
    """
    if not isinstance(text, str):
        raise TypeError
    text = _MICROSECONDS.sub(r"\1", text.strip())
    text = _FRACTION.sub(lambda match: "." + match[1].ljust(6, "0"), text)
    return bounded_utc(datetime.fromisoformat(text))
