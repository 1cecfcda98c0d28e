"""Following the change feed: every entry once, also those that show themselves late, from a cursor that survives.

Theory of operation. Entries get their time (v2) or sequence (v1) before they become visible, so one may appear behind a
reader that is up to date. The follower therefore reads again from ``lag`` before the server's own clock each time, and
drops what it has given already by its sequence. Its cursor says where to begin and which sequences after that point
were given, so a restart neither repeats nor skips. In v1 an empty page is no end (sequences have gaps): only the latest
entry's sequence is.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ingestd.dicomweb.change_feed import ChangeFeedEntry, format_time, parse_time
from ingestd.dicomweb.errors import Unintelligible

if TYPE_CHECKING:
    from ingestd.dicomweb.client import DicomWebClient

LAG = timedelta(seconds=60)
PAGE_V1 = 100
PAGE_V2 = 200
STRETCH = 5_000  # entries held at a time
MOST_PAGES_WITHOUT_NEWS = 50  # entries that cannot be read, or a server that gives one page again and again
MOST_AT_ONE_TIME = 200_000  # entries with the same time have to be held together


class Follower:
    """Reads what is new in a change feed. ``cursor`` is a short text to keep; give it back to go on from there.

    An entry that becomes visible more than ``lag`` after its own time is missed; Azure's are late by a transaction's
    length. Not for several threads at once.
    """

    def __init__(self, feed: DicomWebClient, cursor: str | None = None, *, lag: timedelta = LAG) -> None:
        self._feed = feed
        self._version = feed.api_version or 2
        self._lag = lag
        self._since: datetime | None = None  # v2: entries before it are done with
        self._after = 0  # v1: entries up to this sequence are done with
        self._given: dict[int, datetime] = {}  # sequences beyond that point that were given already, and their time
        if cursor is not None:
            self._restore(cursor)

    @classmethod
    def from_time(cls, feed: DicomWebClient, since: datetime, *, lag: timedelta = LAG) -> Follower:
        """Begin at an instant (v2 only)."""
        follower = cls(feed, lag=lag)
        if follower._version == 1:
            raise ValueError("the change feed of v1 has no times to begin at")
        follower._since = since.astimezone(UTC)
        return follower

    @property
    def cursor(self) -> str:
        """Where the follower is, after all entries it has given."""
        return json.dumps(
            {
                "version": self._version,
                "since": format_time(self._since) if self._since is not None else None,
                "after": self._after,
                "given": {str(sequence): format_time(at) for sequence, at in sorted(self._given.items())},
            },
            separators=(",", ":"),
        )

    def _restore(self, cursor: str) -> None:
        try:
            fields: dict[str, Any] = json.loads(cursor)
            version = fields["version"]
            self._since = parse_time(fields["since"]) if fields["since"] is not None else None
            self._after = int(fields["after"])
            self._given = {int(sequence): parse_time(at) for sequence, at in fields["given"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError("this is no change feed cursor") from None
        if version != self._version:
            raise ValueError(f"this cursor is of change feed v{version}, the server's address is v{self._version}")

    def read(self) -> list[ChangeFeedEntry]:
        """Return all that is new, [] if nothing is. Raises DicomWebError; what was read before it is then lost here,
        but not in a cursor taken earlier: prefer ``once`` for a feed that may be long.
        """
        return list(self.once())

    def entries(
        self, *, every: timedelta = timedelta(seconds=5), stop: threading.Event | None = None
    ) -> Iterator[ChangeFeedEntry]:
        """Yield entries for ever, asking again each ``every``, until ``stop`` is set.

        The cursor counts what was yielded, the entry in hand included. Raises DicomWebError; call it again to go on.
        """
        stop = stop if stop is not None else threading.Event()
        while not stop.is_set():
            yield from self.once()
            stop.wait(every.total_seconds())

    def once(self) -> Iterator[ChangeFeedEntry]:
        """Yield what is new, some thousands held at a time; the cursor counts the entry in hand as given.

        Raises DicomWebError; call it again to go on after the last entry.
        """
        is_last = False
        while not is_last:
            stretch = self._read_v1() if self._version == 1 else self._read_v2()
            new = {entry.sequence: entry for entry in stretch.entries if entry.sequence not in self._given}
            for sequence in sorted(new):
                self._given[sequence] = new[sequence].at
                yield new[sequence]
            self._settle(stretch)
            is_last = stretch.is_last

    def _settle(self, stretch: _Stretch) -> None:
        """Move the beginning behind what cannot change any more, and forget what lies before it."""
        entries = stretch.entries
        # The server's clock; without a Date header its newest entry is the best that is known of it.
        now = stretch.server_date or max((entry.at for entry in entries), default=None)
        if now is None:
            return
        settled = now - self._lag
        if self._version == 1:
            young = [entry.sequence for entry in entries if entry.at >= settled]
            done = [entry.sequence for entry in entries if entry.at < settled]
            upto = min(young) - 1 if young else max(done, default=self._after)
            self._after = max(self._after, upto)
            self._given = {sequence: at for sequence, at in self._given.items() if sequence > self._after}
            return
        if not stretch.is_last:
            settled = min(settled, entries[-1].at)  # what comes after it has not been read
        if self._since is None or settled > self._since:
            self._since = settled
        self._given = {sequence: at for sequence, at in self._given.items() if at >= self._since}

    def _has_news(self, sequences: Iterable[int]) -> bool:
        return any(sequence not in self._given for sequence in sequences)

    def _read_v2(self) -> _Stretch:
        entries: dict[int, ChangeFeedEntry] = {}
        server_date: datetime | None = None
        offset = without_news = 0
        while True:
            page = self._feed.change_feed(start_at=self._since, offset=offset, limit=PAGE_V2)
            if server_date is None:
                server_date = page.server_date  # of the first page: what came later may have been missed
            known = len(entries)
            entries.update((entry.sequence, entry) for entry in page.entries)
            offset += page.size
            if page.size < PAGE_V2:
                return _Stretch([*entries.values()], server_date, is_last=True)
            without_news = without_news + 1 if len(entries) == known else 0
            if without_news >= MOST_PAGES_WITHOUT_NEWS or len(entries) > MOST_AT_ONE_TIME:
                raise Unintelligible("the change feed goes on and on without an entry that is new and can be read")
            # A stretch ends only where the next one begins later: many entries may have the same time.
            ends_later = bool(page.entries) and page.entries[-1].at != self._since
            if len(entries) >= STRETCH and ends_later and self._has_news(entries):
                return _Stretch([*entries.values()], server_date, is_last=False)

    def _read_v1(self) -> _Stretch:
        latest = self._feed.change_feed_latest()
        entries: list[ChangeFeedEntry] = []
        server_date: datetime | None = None
        offset = self._after
        while latest is not None and offset < latest.sequence:
            page = self._feed.change_feed(offset=offset, limit=PAGE_V1)
            if server_date is None:
                server_date = page.server_date
            entries.extend(page.entries)
            offset += PAGE_V1
            if len(entries) >= STRETCH and self._has_news(entry.sequence for entry in entries):
                return _Stretch(entries, server_date, is_last=False)
        return _Stretch(entries, server_date, is_last=True)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Entries that follow each other in the feed's own order, and whether they reach its end."""

    entries: list[ChangeFeedEntry]
    server_date: datetime | None
    is_last: bool
