"""The server's change feed: when it is read, and what it shows written with the cursor that passes it.

A reading at the interval begins at the cursor and goes back by ``lag``, so that entries that come late are met. While
somebody waits for the end (``RunProgress``) and no post of its own is out, readings in between begin just before the
newest entry seen, and move no cursor. A server whose feed could not be read is left alone for a while, whoever wants it
read.

With the defaults an entry is read seven times before the cursor passes it. Its row is looked for when it is first seen
and in the reading that passes it, for whatever took the identity in between.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from math import inf

from structlog.typing import FilteringBoundLogger

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.circuit_breaker import PROBE_AT_LEAST_EVERY
from ingestd.daemon.server_questions import Asker, ServerQuestions
from ingestd.daemon.stage import Gate, RunProgress, Stage
from ingestd.daemon.unanswered import Unanswered
from ingestd.ledger import Ledger, Transaction, moves, queries
from ingestd.lifecycle import FeedCursor, Sighting, State
from ingestd.reconciler import FeedAnswer, FeedQuestion, Rules

# Why no file is removed, as ServerRollback has it.
WENT_BACK = "went_back"
# With nothing waiting for proof the feed is still read this often: it tells of deletions.
_IDLE_EVERY = timedelta(minutes=1)
# With nothing left to post, whoever waits for the end has the feed read again after this long, doubling up to the
# interval.
_HURRY = timedelta(milliseconds=100)
# Such a reading in between begins so long before the newest entry seen, not a whole lag before the server's clock: that
# may be tens of thousands of entries. What comes later than that is met by the readings at the interval.
_GLANCE_BACK = timedelta(seconds=2)
# So many entries are remembered as written, some 10 MB; more are looked up again each time.
_WRITTEN_MOST = 100_000


class FeedReading(Stage):
    """Reads the change feed, of a server that has one."""

    def __init__(
        self,
        *,
        questions: ServerQuestions,
        ledger: Ledger,
        alarms: Alarms,
        progress: RunProgress,
        removals: Gate,
        posts_written: Callable[[], int],
        no_post_is_out: Callable[[], bool],
        rows_are_left: Callable[[], bool],
        others_post: Callable[[], bool],
        interval: timedelta,
        lag: timedelta,
        log: FilteringBoundLogger,
    ) -> None:
        """``posts_written`` counts posts whose results are durable; ``rows_are_left``: what was shown is not settled.
        ``others_post``: other workers send to this server, too, of which nobody tells.

        ``removals`` are shut when the feed shows that the server went back.
        """
        self._questions = questions
        self._ledger = ledger
        self._progress = progress
        self._removals = removals
        self._posts_written = posts_written
        self._posts_known = posts_written()
        self._no_post_is_out = no_post_is_out
        self._rows_are_left = rows_are_left
        self._others_post = others_post
        self._interval = interval
        self._lag = lag
        self._unanswered = Unanswered(
            alarms,
            "feed_not_read",
            wanted="does not let its change feed be read",
            again="once a minute, or when its Retry-After says",
        )
        self._log = log
        self._answer: FeedAnswer | None = None
        self._is_asked = False  # until the answer is written
        self._glances = False  # whether that reading is one in between
        self._unreadable = 0
        self._due_at = self._hurry_at = self._barred_until = 0.0
        self._hurries = 0
        self._asked_at = -interval.total_seconds()
        self._newest_seen_at: datetime | None = None
        self._written: set[int] = set()  # the entries that were written lastly
        self._counted_at: float | None = None  # when the reading that last moved the cursor was asked for
        # When that reading was asked for (``Now.mono``) which went as far as the feed ever did, lastly.
        self.whole_at: float | None = None

    def read_soon(self) -> None:
        """Read the feed at once, whatever its interval: somebody has to know where it ends."""
        self._due_at = 0.0

    def collect(self, now: Now) -> None:
        """Take the answer; ask where it is time to."""
        posts_written = self._posts_written()
        if posts_written != self._posts_known:
            self._posts_known = posts_written
            # Something was just posted: as soon as the interval allows.
            self._due_at = min(self._due_at, self._asked_at + self._interval.total_seconds())
            self._hurry_at, self._hurries = 0.0, 0
        for answer, _ in self._questions.take(Asker.FEED_READING):
            assert isinstance(answer, FeedAnswer)
            self._answer = answer
        rules = self._questions.rules
        if rules is not None and now.mono >= self.next_at(now):
            self._ask(now, rules)

    def next_at(self, now: Now) -> float:  # noqa: ARG002 - the times are known
        rules = self._questions.rules
        if rules is None or not rules.profile.has_feed or self._is_asked:
            return inf
        # What it has shown already is settled first.
        hurries = self._progress.flushes and self._no_post_is_out() and not self._rows_are_left()
        return max(min(self._due_at, self._hurry_at) if hurries else self._due_at, self._barred_until)

    def _ask(self, now: Now, rules: Rules) -> None:
        cursor, glances = queries.cursor(self._ledger), False
        if now.mono < self._due_at and cursor is not None and cursor.since and self._newest_seen_at is not None:
            cursor = replace(cursor, since=max(cursor.since, self._newest_seen_at - _GLANCE_BACK))
            glances = True
        first_attempt_at = queries.first_attempt_at(self._ledger)
        if not glances:
            counts = queries.counts(self._ledger, destination_id=self._ledger.destination_id)
            waiting = counts.get(State.STORED, 0) + counts.get(State.UNCERTAIN, 0)
            every = self._interval if waiting or self._others_post() else max(self._interval, _IDLE_EVERY)
            self._due_at = now.mono + every.total_seconds()
        if first_attempt_at is None:
            return
        question = FeedQuestion(
            cursor=cursor,
            version=rules.profile.feed_version or 2,
            lag=self._lag,
            first_attempt_at=first_attempt_at,
            end=queries.feed_end(self._ledger),
            cursor_moved_at=queries.cursor_moved_at(self._ledger),
            elapsed=timedelta(seconds=0 if self._counted_at is None else now.mono - self._counted_at),
        )
        # Behind every read of the ledger: one that fails must not leave a feed that counts as asked.
        self._is_asked, self._glances, self._asked_at = True, glances, now.mono
        self._questions.ask(Asker.FEED_READING, question)

    is_of_studies = True

    @property
    def studies(self) -> Collection[str] | None:
        """Those of the entries that are new; of a feed that went back any."""
        answer = self._answer
        if answer is None:
            return ()
        if answer.went_back_to is not None:
            return None
        return {each.identity.study_uid for each in self._news_of(answer, self._cursor_of(answer))}

    def _cursor_of(self, answer: FeedAnswer) -> FeedCursor | None:
        """Say where the cursor goes; a reading that did not begin at it does not move it."""
        return None if self._glances else answer.cursor

    def _news_of(self, answer: FeedAnswer, cursor: FeedCursor | None) -> list[Sighting]:
        return [each for each in answer.sightings if _key(each) not in self._written or _is_passed(each, cursor)]

    def write(self, tx: Transaction, now: Now) -> None:
        """Write what it showed, before anything else is judged in this transaction."""
        tx = tx.at(self._ledger.destination_id)
        answer = self._answer
        if answer is None:
            return
        cursor = self._cursor_of(answer)
        if answer.went_back_to is not None:
            # First of all: what these entries show is newer than what the rows remember of such sequences.
            moves.went_back(tx, to=answer.went_back_to, end=answer.end, now=now.utc)
            self._written.clear()
        elif answer.end is not None and answer.end != answer.question.end:
            moves.seen_end(tx, answer.end)
        news = self._news_of(answer, cursor)
        if news or cursor is not None:
            moves.record_sightings(tx, news, now=now.utc, cursor=cursor)
        tx.on_commit(partial(self._committed, answer, now))

    def _committed(self, answer: FeedAnswer, now: Now) -> None:
        self._answer, self._is_asked = None, False
        if answer.went_back_to is not None:
            self._removals.shut(WENT_BACK)
        elif answer.end is not None:
            self.whole_at = self._asked_at
        self._hurry_at = now.mono + min(self._interval, _HURRY * (1 << min(self._hurries, 16))).total_seconds()
        self._hurries += 1
        if answer.unreadable not in {0, self._unreadable}:
            self._log.warning("feed.entries_unreadable", rows=answer.unreadable)
        self._unreadable = answer.unreadable
        error = answer.error or (answer.pause.note if answer.pause else "")
        if error or answer.pause is not None:
            self._unanswered.failed(error, now, answer.pause)
            # Nobody can wake it, as one can the rows.
            wait = self._unanswered.wait(answer.pause, now, cap=PROBE_AT_LEAST_EVERY)
            self._barred_until = now.mono + max(self._interval, wait).total_seconds()
            self._log.warning("feed.not_read", error=error)
            return
        self._unanswered.end()
        former = self._written if self._glances and len(self._written) < _WRITTEN_MOST else set()
        self._written = former.union(map(_key, answer.sightings[-_WRITTEN_MOST:]))
        seen = [sighting.at for sighting in answer.sightings]
        if not answer.complete:
            self._due_at = 0.0
        elif seen:
            self._newest_seen_at = max(seen)
        if not self._glances:
            self._counted_at = self._asked_at
            if answer.complete:
                self._questions.feed_was_read(now.utc)


def _key(sighting: Sighting) -> int:
    """Know an entry by this. A feed that began again gives its sequences out anew, at other times."""
    return hash((sighting.sequence, sighting.at))


def _is_passed(sighting: Sighting, cursor: FeedCursor | None) -> bool:
    """Whether this cursor lies behind an entry, so that it may not be read again."""
    if cursor is None:
        return False
    if cursor.since is not None:
        return sighting.at <= cursor.since
    return cursor.sequence is not None and sighting.sequence <= cursor.sequence
