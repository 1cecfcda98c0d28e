"""What the judges go by, and the question they share: is presence proof enough, or only the content itself.

A server that refuses duplicates proves our content by answering "stored": at that instant nothing else was there, and
the change feed then shows whether anybody touched it since. Every other "it is there" may be somebody else's object
under our UIDs - Orthanc answers "stored" and keeps the older one - and is compared with our file:

- the server said that it had one already (45070);
- the answer to our post was never read. A Create entry newer than our attempt does not help here: somebody else's
  post may have come first, and the answer that we lost may have been the refusal of ours;
- the server gives back what it was given and takes duplicates silently (Orthanc): another sender may come between
  the query before the post and the post;
- the change feed has more than our one entry, or one that is younger than the answer to our post.

On a server that neither refuses duplicates nor is known to give back the very bytes (many coerce attributes while
storing), comparing everything would find a conflict in every file. There, absent in the query right before the post
and present after it counts as ours, and the rest is compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ingestd.lifecycle import Reason, ServerProfile, State, Unproven

# Between the server's HTTP clock (whole seconds) and the one that stamps its feed entries.
CLOCK_MARGIN = timedelta(seconds=60)


class Verify(StrEnum):
    """``reconcile.verify``: what is asked for before a row is CONFIRMED."""

    AUTO = "auto"
    CONTENT = "content"
    PRESENCE = "presence"


class Need(StrEnum):
    """What is missing for a verdict."""

    ASK = "ask"  # a StudyQuestion
    COMPARE = "compare"  # the fetched copy, with the row's file
    WAIT = "wait"  # nothing to ask now: the feed will tell, or the grace time will end


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Everything the judges need beside the row and the time.

    ``clock_offset`` is the server's clock minus ours, from the last answer. ``feed_read_at`` is when the change feed
    was last read to its end (our clock): a feed that could not be read shows nothing, and that proves nothing; None
    means that it is being read all the time.
    """

    profile: ServerProfile
    verify: Verify = Verify.AUTO
    grace: timedelta = timedelta(minutes=15)
    lag: timedelta = timedelta(seconds=60)  # of the change feed's cursor; for FeedQuestion
    absence_wait: timedelta | None = None  # None: the profile's
    clock_offset: timedelta = timedelta(0)
    feed_read_at: datetime | None = None
    most_attempts: int = 10

    def on_server_clock(self, at: datetime) -> datetime:
        """Say what the server's clock showed at this instant of ours."""
        return at + self.clock_offset

    def wait_between_absences(self, row: Unproven) -> timedelta:
        """Say how far apart two absences must lie to prove one; doubles with each time the row was sent again."""
        least = self.absence_wait if self.absence_wait is not None else self.profile.absence_wait
        return min(least * (1 << min(row.resends, 16)), max(least, timedelta(hours=1)))


def needs_comparison(row: Unproven, rules: Rules) -> bool:
    """Say whether only the server's copy, compared with our file, can prove this row."""
    if rules.verify is not Verify.AUTO:
        return rules.verify is Verify.CONTENT
    if row.needs_content_check or row.reason is Reason.ALREADY_THERE or row.state is State.DELETED:
        return True
    if rules.profile.compares_all:
        return True
    if not rules.profile.refuses_duplicates:
        return row.present_before is not False
    return row.state is State.UNCERTAIN or has_foreign_sighting(row, rules)


def has_foreign_sighting(row: Unproven, rules: Rules) -> bool:
    """Say whether the newest feed entry cannot be the one that our own post made."""
    if row.seen_sequence is None or row.seen_state == "deleted":
        return False
    if row.seen_action != "create" or row.seen_state != "current":
        return True
    return _is_after_ours(row, rules)


def is_from_before(row: Unproven, rules: Rules) -> bool:
    """Say whether the newest feed entry is older than our last attempt: of an earlier life of this identity."""
    if row.seen_at is None or row.last_attempt_at is None:
        return False
    return row.seen_at < rules.on_server_clock(row.last_attempt_at) - CLOCK_MARGIN


def is_deleted_since(row: Unproven, rules: Rules) -> bool:
    """Say whether the feed proves that it was deleted after the server had ours."""
    return row.seen_state == "deleted" and _is_after_ours(row, rules)


def _is_after_ours(row: Unproven, rules: Rules) -> bool:
    ours = [at for at in (row.stored_at, row.last_attempt_at) if at is not None]
    if row.seen_at is None or not ours:
        return False
    return row.seen_at > rules.on_server_clock(max(ours)) + CLOCK_MARGIN
