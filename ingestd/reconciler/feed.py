"""Reading the change feed forward from a cursor (DESIGN.md 6.10; AZURE.md 5.3).

Entries are stamped before they are committed, so one may appear behind a reader that is up to date. Everything is used
as soon as it is seen, but the cursor stays ``lag`` behind the server's clock: the last minute is read again and again,
and what comes late is met then. v2 is a window of time, paged by offset; v1 is a range of sequences with gaps, where a
page may be empty in the middle and only ``/latest`` says where the feed ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import attrgetter

from ingestd.dicomweb import ChangeFeedEntry, ChangeFeedPage, DicomWebClient, DicomWebError, Unintelligible
from ingestd.lifecycle import FeedCursor, FeedEnd, Identity, Sighting
from ingestd.outages import pause_of, stops_queries
from ingestd.reconciler.questions import FeedAnswer, FeedQuestion

V1_PAGE = 100  # the widest range of sequences
V2_PAGE = 200
# One answer's worth; more is a next question, so that what was seen so far is written. What is younger than the lag is
# read to its end all the same: the cursor may not pass it, and the next question would begin before it again.
MOST_PAGES = 50
# Entries within the lag, or under one timestamp, are read together, up to here.
MOST_TOGETHER = 200_000
BEFORE_FIRST_ATTEMPT = timedelta(minutes=10)
# An entry is stamped before it can be seen, never by so much: one with an old sequence is of a feed that began again.
STAMPED_BEFORE_SEEN = timedelta(minutes=5)
_OUR_PARTITION = ("", "microsoft.default")
_AT = attrgetter("at")
_SEQUENCE = attrgetter("sequence")


@dataclass(slots=True)
class _Reading:
    """What has been read so far, and the server's clock beside ours."""

    asked_at: datetime
    lag: timedelta
    entries: dict[int, ChangeFeedEntry] = field(default_factory=dict)
    unreadable: int = 0
    pages_without_news: int = 0
    newest_at: datetime | None = None
    server_date: datetime | None = None

    @property
    def clock_offset(self) -> timedelta | None:
        return None if self.server_date is None else self.server_date - self.asked_at

    @property
    def horizon(self) -> datetime:
        """No entry stamped before this can still appear."""
        return (self.server_date or self.asked_at) - self.lag

    def cursor_from(self, since: datetime, elapsed: timedelta) -> datetime:
        """Say how far a reading from ``since`` counts: no further than anything but the server's word for it shows.

        That is its newest entry, or as much time as has passed since the last answer: one wrong Date, a day ahead,
        would otherwise hide a day's entries.
        """
        return max(since, min(self.horizon, max(self.newest_at or since, since + elapsed)))

    def take(self, page: ChangeFeedPage) -> None:
        if self.server_date is None:
            self.server_date = page.server_date
        known = len(self.entries)
        for entry in page.entries:
            self.entries[entry.sequence] = entry
        self.newest_at = max(map(_AT, page.entries), default=self.newest_at)
        self.unreadable += page.unreadable
        self.pages_without_news = self.pages_without_news + 1 if len(self.entries) == known else 0

    @property
    def goes_on_young(self) -> bool:
        """Whether it has come to what is younger than the lag, and has not lost itself there."""
        if self.pages_without_news >= MOST_PAGES or len(self.entries) > MOST_TOGETHER:
            return False
        return self.newest_at is not None and self.newest_at > self.horizon


def newest_sightings(entries: Iterable[ChangeFeedEntry]) -> tuple[Sighting, ...]:
    """Keep each identity's newest entry, by sequence; disturbed where there were several. Of our partition only."""
    newest: dict[Identity, Sighting] = {}
    for entry in sorted(entries, key=_SEQUENCE):
        if entry.partition.lower() not in _OUR_PARTITION:
            continue
        identity = Identity(study_uid=entry.study_uid, series_uid=entry.series_uid, sop_uid=entry.sop_uid)
        newest[identity] = Sighting(
            identity=identity,
            sequence=entry.sequence,
            action=entry.action,
            state=entry.state,
            at=entry.at,
            disturbed=identity in newest,
        )
    return tuple(newest.values())


def read_feed(client: DicomWebClient, question: FeedQuestion, *, utc_now: Callable[[], datetime]) -> FeedAnswer:
    """Read from the cursor to the present, or as far as one answer goes.

    What was seen before a failure is given beside the error, without a cursor: it is seen again.
    """
    reading = _Reading(asked_at=utc_now(), lag=question.lag)
    read = _read_v1 if question.version == 1 else _read_v2
    cursor: FeedCursor | None = None
    end: FeedEnd | None = None
    complete = False
    failure: DicomWebError | None = None
    try:
        cursor, complete = read(client, question, reading)
        end = _end_of(client, question, reading)
    except DicomWebError as error:
        failure = error
    return FeedAnswer(
        question=question,
        sightings=newest_sightings(reading.entries.values()),
        unreadable=reading.unreadable,
        cursor=cursor,
        end=end,
        went_back_to=None if end is None else _went_back_to(question, reading, end),
        complete=complete,
        asked_at=reading.asked_at,
        clock_offset=reading.clock_offset,
        pause=pause_of(failure) if failure is not None and stops_queries(failure) else None,
        error="" if failure is None else str(failure),
    )


def _end_of(client: DicomWebClient, question: FeedQuestion, reading: _Reading) -> FeedEnd | None:
    """Say how far the feed goes; None where its latest entry cannot be read."""
    entries = list(reading.entries.values())
    # With nothing to compare it with, what was read is enough.
    if question.end is not None:
        try:
            latest = client.change_feed_latest()
        except Unintelligible:
            return None
        entries += [] if latest is None else [latest]
    times = list(map(_AT, entries))
    if question.end is not None and question.end.at is not None:
        times.append(question.end.at)
    return FeedEnd(sequence=max(map(_SEQUENCE, entries), default=0), at=max(times, default=None))


def _went_back_to(question: FeedQuestion, reading: _Reading, end: FeedEnd) -> int | None:
    """Say up to which sequence the feed is still the one that was read before; None where all of it is."""
    seen = question.end
    if seen is None and question.cursor is not None and question.cursor.sequence is not None:
        seen = FeedEnd(sequence=question.cursor.sequence)
    if seen is None:
        return None
    again: list[int] = []
    overtaken = end.sequence < seen.sequence
    for entry in reading.entries.values():
        # Its sequence was given out before that time, and so it was to another entry.
        if seen.at is not None and entry.sequence <= seen.sequence and entry.at > seen.at:
            again.append(entry.sequence)
            overtaken = overtaken or entry.at > seen.at + STAMPED_BEFORE_SEEN
    return min([end.sequence, *(sequence - 1 for sequence in again)]) if overtaken else None


def _read_v2(client: DicomWebClient, question: FeedQuestion, reading: _Reading) -> tuple[FeedCursor, bool]:
    since = question.cursor.since if question.cursor is not None else None
    if since is None:
        reading.server_date = client.change_feed(limit=1).server_date  # one cheap page tells the server's clock
        since = _before_first_attempt(question, reading)
    end: datetime | None = None
    offset = 0
    last: datetime | None = None
    while True:
        page = client.change_feed(start_at=since, end_at=end, offset=offset, limit=V2_PAGE)
        reading.take(page)
        if offset == 0 and reading.server_date is not None and reading.server_date < since:
            # The cursor went by a Date that was wrong, or the server's clock was set back.
            since = _time_before(question, reading)
            page = client.change_feed(start_at=since, limit=V2_PAGE)
            reading.take(page)
        offset += page.size
        if page.entries:
            last = max(map(_AT, page.entries))
        if page.size < V2_PAGE:
            return FeedCursor(version=2, since=reading.cursor_from(since, question.elapsed)), True
        if end is None and reading.server_date is not None:
            # Closed from here on, so that a busy server's feed has an end. Its Date is cut to the second.
            end = max(reading.server_date, since) + timedelta(seconds=1)
        if offset < MOST_PAGES * V2_PAGE:
            continue
        if last is not None and since < last <= reading.horizon:
            return FeedCursor(version=2, since=last), False
        # A burst, within the lag or under one timestamp: cut here, the next question would begin before it again.
        if reading.pages_without_news >= MOST_PAGES or len(reading.entries) > MOST_TOGETHER:
            raise Unintelligible("the change feed goes on and on with nothing new that can be read")


def _time_before(question: FeedQuestion, reading: _Reading) -> datetime:
    """Say from when on the feed may not have been read, on the server's clock: since the cursor was put in place."""
    if question.cursor_moved_at is None or reading.clock_offset is None:
        return reading.horizon
    return min(reading.horizon, question.cursor_moved_at + reading.clock_offset - reading.lag)


def _before_first_attempt(question: FeedQuestion, reading: _Reading) -> datetime:
    """Say when, on the server's clock, nothing of ours can have been there; our own may have been set back since."""
    first = question.first_attempt_at or reading.asked_at
    return min(first, reading.asked_at) + (reading.clock_offset or timedelta(0)) - BEFORE_FIRST_ATTEMPT


def _read_v1(client: DicomWebClient, question: FeedQuestion, reading: _Reading) -> tuple[FeedCursor, bool]:
    cursor = question.cursor.sequence if question.cursor is not None else None
    try:
        latest = client.change_feed_latest()
    except Unintelligible:
        if cursor is None:
            raise
        return _read_v1_unended(client, cursor, reading)
    end = 0 if latest is None else latest.sequence
    if cursor is None:
        cursor = _first_sequence(client, question, reading, latest)
    elif cursor > end:
        # The server was restored from an older backup: read what it has entered since.
        cursor = _first_sequence(client, question, reading, latest, before=question.end.at if question.end else None)
    offset = cursor
    pages = 0
    while offset < end and (pages < MOST_PAGES or reading.pages_without_news or reading.goes_on_young):
        if reading.pages_without_news >= MOST_PAGES:
            # No cursor goes past this: where the end is said to be wrongly, all that is still to come would lie behind.
            empty = MOST_PAGES * V1_PAGE
            raise Unintelligible(f"the change feed is said to go on to {end}, and has no entry in {empty} numbers")
        reading.take(client.change_feed(offset=offset, limit=V1_PAGE))
        offset = min(offset + V1_PAGE, end)
        pages += 1
    return FeedCursor(version=1, sequence=max(cursor, _settled_up_to(reading, offset))), offset >= end


def _read_v1_unended(client: DicomWebClient, cursor: int, reading: _Reading) -> tuple[FeedCursor, bool]:
    """Read on to the first empty page, where the latest entry cannot be read: nothing else tells where the end is."""
    for offset in range(cursor, cursor + MOST_PAGES * V1_PAGE, V1_PAGE):
        page = client.change_feed(offset=offset, limit=V1_PAGE)
        reading.take(page)
        if page.size == 0:
            break
    highest = max(reading.entries, default=cursor)
    return FeedCursor(version=1, sequence=max(cursor, _settled_up_to(reading, highest))), True


def _settled_up_to(reading: _Reading, offset: int) -> int:
    """Say up to which sequence nothing can appear any more: before the first entry that is younger than the lag."""
    settled = 0
    for sequence in sorted(reading.entries):
        if reading.entries[sequence].at > reading.horizon:
            return settled
        settled = sequence
    # No young entry at all: the gaps up to here are gaps for good.
    return offset


def _first_sequence(
    client: DicomWebClient,
    question: FeedQuestion,
    reading: _Reading,
    latest: ChangeFeedEntry | None,
    *,
    before: datetime | None = None,
) -> int:
    """Walk back from the end, in growing steps, to a sequence from ``before``, or from before the first attempt."""
    if latest is None:
        return 0
    offset, step = max(0, latest.sequence - V1_PAGE), V1_PAGE
    while True:
        page = client.change_feed(offset=offset, limit=V1_PAGE)
        if reading.server_date is None:
            reading.server_date = page.server_date
        wanted = before or _before_first_attempt(question, reading)
        if offset == 0 or any(entry.at < wanted for entry in page.entries):
            return offset
        step *= 2
        offset = max(0, offset - step)
