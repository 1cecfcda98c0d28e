"""What the judges go by, the question they share (is presence proof enough, or only the content?), and how they speak.

**What proves what.** "It is there" says whose it is, and not that it is whole and unaltered. That a server gives back
what it was given is trusted once it has shown it (the daemon keeps that trust); until then, and for a sample after it
(``Unproven.sampled``), the server's copy is compared with our file. On a server that is trusted presence is enough: the
newest entry of the change feed is current and no older than our attempt, or a query lists it that did not list it right
before the post. Whatever the trust, these may be somebody else's object under our UIDs, or part of ours, and are always
compared:

- the server said that it had one already (45070);
- the answer to our post was never read. A lenient server may have kept what came of a post that broke off. A Create
  entry newer than our attempt does not help: somebody else's post may have come first, and the answer that we lost
  may have been the refusal of ours;
- the server gives back what it was given and takes duplicates silently (Orthanc): another sender may come between
  the query before the post and the post;
- the server neither refuses duplicates nor was the row absent in the query right before the post;
- the change feed has more than our one entry, or one that is younger than the answer to our post.

**A foreign sighting** is a newest entry that our own post cannot have made: no Create, or no longer current, or stamped
after the answer to our post came. Where a server refuses duplicates each Create has one maker, so an entry that may be
ours is; but what was replaced, updated or created anew since is whatever its maker sent. A mismatch is then that
file's conflict and no fault of the server's (``may_be_foreign``). An entry *older* than our attempt says nothing of our
post: it is of an earlier life of the identity, before somebody deleted it.

**Absence needs a wait.** A server may show late what it has (an index behind its store, a post that it is still busy
with), and a copy too many does harm where duplicates are kept. So one absence is a question and two are an answer, as
far apart as that server's second copy is dangerous (``between_looks``: 10 s or 5 min), doubled with each time the row
was sent again, since an absence that was wrong once may be wrong again. STORED rows get the grace time first.

**Two clocks.** Times of ours and times of the server's (feed entries, ``Date``) are compared on the server's clock, by
the offset of its last answer, with a margin for its coarse stamps. What must have passed *for certain* is another
matter: where our wall clock was set (``jump``), a wait begins anew there, however long ago it began by a clock that
shows something else now. And a post from before the jump cannot be put in order with the feed: an entry is then neither
older than it nor a deletion after it, but counts as foreign, so that the content decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ingestd.lifecycle import REFUSALS, Jump, Outcome, Reason, ServerProfile, State, Unproven, surely_since

# Between the server's HTTP clock (whole seconds) and the one that stamps its feed entries.
CLOCK_MARGIN = timedelta(seconds=60)


class Verify(StrEnum):
    """``reconcile.verify``: what is asked for before a row is CONFIRMED."""

    AUTO = "auto"
    CONTENT = "content"
    PRESENCE = "presence"


class NextStep(StrEnum):
    """What is missing for a verdict."""

    ASK = "ask"  # a StudyQuestion
    COMPARE = "compare"  # the fetched copy, with the row's file
    WAIT = "wait"  # nothing to ask now: the feed will tell, or the grace time will end


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Everything the judges need beside the row and the time.

    ``clock_offset`` is the server's clock minus ours, from the last answer. ``feed_read_at`` is when the change feed
    was last read to its end (our clock): a feed that could not be read shows nothing, and that proves nothing; None
    means that it is being read all the time. ``jump`` is the last time that our wall clock was set: grace begins anew
    there, and what was posted before it cannot be put in order with what the server's clock says.
    """

    profile: ServerProfile
    verify: Verify = Verify.AUTO
    grace: timedelta = timedelta(minutes=15)
    lag: timedelta = timedelta(seconds=60)  # of the change feed's cursor; for FeedQuestion
    absence_wait: timedelta | None = None  # None: the profile's
    clock_offset: timedelta = timedelta(0)
    feed_read_at: datetime | None = None
    jump: Jump | None = None
    most_attempts: int = 10
    reencode_refused: bool = True  # implicit_vr: fallback
    stopped: bool = False  # nothing of this server ever matched: nothing is compared until a person has looked

    @property
    def between_looks(self) -> timedelta:
        """How far apart two answers must lie to count as two."""
        return self.absence_wait if self.absence_wait is not None else self.profile.absence_wait

    def surely_since(self, since: datetime, now: datetime) -> datetime:
        """Say from when a time counts that must have passed for certain."""
        return surely_since(since, now=now, jump=self.jump)

    def is_across_jump(self, row: Unproven) -> bool:
        """Say whether our clock was set since the row was posted."""
        return self.jump is not None and row.attempt_id is not None and row.attempt_id <= self.jump.last_attempt_id

    def wait_between_absences(self, row: Unproven) -> timedelta:
        """Say how far apart two absences must lie to prove one; doubles with each time the row was sent again."""
        least = self.between_looks
        return min(least * (1 << min(row.resends, 16)), max(least, timedelta(hours=1)))


def needs_comparison(row: Unproven, rules: Rules) -> bool:
    """Say whether only the server's copy, compared with our file, can prove this row."""
    if rules.verify is not Verify.AUTO:
        return rules.verify is Verify.CONTENT
    if row.sampled or row.state is State.UNCERTAIN or row.state is State.DELETED or may_be_foreign(row, rules):
        return True
    if rules.profile.compares_all:
        return True
    return not rules.profile.refuses_duplicates and row.present_before is not False


def may_be_foreign(row: Unproven, rules: Rules) -> bool:
    """Say whether something speaks for another sender's object under our UIDs: a mismatch is then not the server's."""
    if row.needs_content_check or row.reason is Reason.ALREADY_THERE or row.present_before:
        return True
    if not rules.profile.refuses_duplicates or row.seen_sequence is None or row.seen_state == "deleted":
        return False
    # Whether the newest feed entry cannot be the one that our own post made.
    if row.seen_action != "create" or row.seen_state != "current" or rules.is_across_jump(row):
        return True
    return _is_after_ours(row, rules)


def is_from_before(row: Unproven, rules: Rules) -> bool:
    """Say whether the newest feed entry is older than our last attempt: of an earlier life of this identity."""
    if row.seen_at is None or row.last_attempt_at is None or rules.is_across_jump(row):
        return False
    return row.seen_at < row.last_attempt_at + rules.clock_offset - CLOCK_MARGIN


def is_deleted_since(row: Unproven, rules: Rules) -> bool:
    """Say whether the feed proves that it was deleted after the server had ours."""
    return row.seen_state == "deleted" and _is_after_ours(row, rules)


def _is_after_ours(row: Unproven, rules: Rules) -> bool:
    ours = max(filter(None, (row.stored_at, row.last_attempt_at)), default=None)
    if row.seen_at is None or ours is None or rules.is_across_jump(row):
        return False
    return row.seen_at > ours + rules.clock_offset + CLOCK_MARGIN


def is_refused(row: Unproven) -> bool:
    """Say whether a post's verdict gave it up, so that the server is asked for it this last time."""
    return row.state is State.UNCERTAIN and row.reason in REFUSALS


def outcome_of(
    row: Unproven,
    reason: Reason,
    note: str,
    *,
    state: State | None = None,
    at: datetime | None = None,
    wait: timedelta | None = None,
    evidence: Mapping[str, str] | None = None,
) -> Outcome:
    """Say what becomes of a row; without ``state`` it stays: it was asked about, this came of it, ask again then."""
    return Outcome(
        delivery_id=row.delivery_id,
        state=state or row.state,
        reason=reason,
        note=note,
        wait=wait,
        evidence=evidence or {},
        expected=row.state,
        evidence_at=at,
    )


def spoken(span: timedelta) -> str:
    """Say a span of time as people do."""
    seconds = max(1, round(span.total_seconds()))
    for size, word in ((3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {word}{'s' * (count != 1)}"
    return f"{seconds} second{'s' * (seconds != 1)}"
