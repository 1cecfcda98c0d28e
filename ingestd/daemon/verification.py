"""STORED and UNCERTAIN rows to CONFIRMED, DELETED, or back: asks the server, lets the judges say what proves what.

The questions and judges are the reconciler's; here they are married to the ledger (which rows are due, what was
seen) and to the readers (is the server's copy the same object?). What is asked is not asked again until the answer
was written, and everything is judged in the transaction that writes it, by the row as it is there: `send`, a person
and the feed write on the same rows, and what they wrote since the row was read is neither overlooked nor slept over.
A copy that was fetched is removed when its comparison was written; a crash leaves it in scratch, which start-up
empties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from math import inf
from pathlib import Path
from random import SystemRandom
from typing import TypeAlias

import structlog

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.circuit_breaker import PROBE_AT_LEAST_EVERY
from ingestd.daemon.posting import Posting
from ingestd.daemon.reader_client import Owner, ReaderClient
from ingestd.daemon.stage import Ending, Gate, Stage
from ingestd.daemon.trust import Trust, sameness_of
from ingestd.daemon.unanswered import Unanswered
from ingestd.daemon.wallclock import WallClock
from ingestd.fs.places import is_gone
from ingestd.ledger import Ledger, Transaction, moves, queries
from ingestd.lifecycle import (
    Backoff,
    Jump,
    Outcome,
    Reason,
    Sameness,
    ServerKind,
    ServerProfile,
    State,
    Unproven,
    compare_content,
)
from ingestd.reader import CompareJob, InspectJob, Read, Verdict
from ingestd.reconciler import (
    Answer,
    FeedAnswer,
    FeedQuestion,
    Finding,
    NextStep,
    Plan,
    Reconciler,
    Rules,
    StudyAnswer,
    StudyQuestion,
    judge,
    not_told,
    plan,
)

# Why no file is removed, as GoingBack has it.
WENT_BACK = "went_back"
# With nothing waiting for proof the feed is still read this often: it tells of deletions.
_IDLE_FEED_EVERY = timedelta(minutes=1)
# With nothing left to post, whoever waits for the end has the feed read again after this long, doubling up to the
# interval.
_HURRY = timedelta(milliseconds=100)
# Such a reading in between begins so long before the newest entry seen, not a whole lag before the server's clock: that
# may be tens of thousands of entries. What comes later than that is met by the readings at the interval.
_GLANCE_BACK = timedelta(seconds=2)
# A server that could not be asked is asked again after this long.
_ASK_AGAIN = timedelta(seconds=10)
# A copy that cannot be had is asked for ever more rarely.
_FETCH_AGAIN = Backoff(base=_ASK_AGAIN)
# A copy that the server does not have is asked for again after this long: its row is looked at meanwhile.
_FETCH_ABSENT_AGAIN = timedelta(seconds=2)
# Rows taken up for one round of questions; the rest follows when these are answered.
_ROWS_MOST = 1000
_GONE_NOTE = (
    "its file is no longer where it was taken in, and the server does not have it; put it back and `ingestd retry`, or "
    "drop the file again"
)


# What ends a row of absences, as in the ledger.
_SEEN = frozenset({Reason.FEED, Reason.QUERY, Reason.CONTENT_CHECK})


# What becomes of a wanted copy: its place; None where the row is not CONFIRMED any more; or that it is no copy of ours.
Done: TypeAlias = Callable[[Path | Sameness | None], object]


@dataclass(frozen=True, slots=True)
class _Fetch:
    """Who waits for the server's copy of a row."""

    entry_id: int
    done: Done
    at: float = 0.0  # when to ask (``Now.mono``)
    asked: int = 0  # times in a row that it could not be had
    untold_at: float | None = None  # the first of these (``Now.mono``)


class Verification(Stage):
    """Settles what is not proven yet."""

    def __init__(
        self,
        *,
        reconciler: Reconciler,
        desk: ReaderClient,
        ledger: Ledger,
        posting: Posting,
        trust: Trust,
        alarms: Alarms,
        wall: WallClock,
        ending: Ending,
        removals: Gate,
        tells_gone: Callable[[str], bool],
        rules_of: Callable[[ServerProfile], Rules],
        profile: Callable[[], ServerProfile | None],
        interval: timedelta,
        lag: timedelta,
        backoff: Backoff,
    ) -> None:
        """Join the rooms; nothing is asked until the server's ``profile`` is known; ``tells_gone`` as for Posting."""
        self._wall = wall
        self._set_by = wall.set_by
        self._ending = ending
        self._removals = removals
        self._rules_of = rules_of
        self._profile = profile
        self._results_known = posting.results_written
        self._tells_gone = tells_gone
        self._reconciler = reconciler
        self._desk = desk
        self._ledger = ledger
        self._posting = posting
        self._trust = trust
        at_once = "and at once with `ingestd reconcile`"
        # By whether a question wants copies, and not only to know what is there.
        self._unanswered = {
            True: Unanswered(alarms, "not_retrieved", wanted="gives back nothing of what it stored", again=at_once),
            False: Unanswered(alarms, "not_searched", wanted="does not say what it has", again=at_once),
        }
        self._feed_unanswered = Unanswered(
            alarms,
            "feed_not_read",
            wanted="does not let its change feed be read",
            again="once a minute, or when its Retry-After says",
        )
        self._interval = interval
        self._lag = lag
        self._backoff = backoff
        self._log = structlog.get_logger()
        self._jitter = SystemRandom().random
        self.rules: Rules | None = None
        self._answers: list[Answer] = []
        self._reads: list[tuple[Finding, Read]] = []
        self._asked: set[int] = set()
        # Rows are due that wait for what is being compared: no use in planning before some of it has come.
        self._waits_for_trust = False
        # The rows of the answers and comparisons at hand, as they are in the transaction under way.
        self._rows: dict[int, Unproven] = {}
        self._rows_are_due = False
        self._more_rows = False
        self._fetches: list[_Fetch] = []
        # By the question's own identity: two files may wait for the copy of one row.
        self._fetching: dict[int, _Fetch] = {}
        self._feed_asked = False
        self._feed_unreadable = 0
        self._feed_at = 0.0
        self._feed_barred_until = 0.0  # whoever wants it read: its server is left alone
        self._feed_read_at = -self._interval.total_seconds()
        self._hurry_at = 0.0
        self._glances = False
        self._newest_seen_at: datetime | None = None
        self._counted_at: float | None = None  # when the reading that last moved the cursor was asked for
        self._hurries = 0
        self.feed_whole_at: float | None = None  # when the feed was asked for that went as far as it ever did, lastly
        # When this process first saw a row absent (``Now.mono``), until something else is seen of it.
        self._absent: dict[int, float] = {}
        # Rows that are being asked about since before the wall clock was set: the answer is newer than nothing.
        self._asked_before_jump: set[int] = set()
        self._feed_asked_before_jump = False

    def start(self) -> None:
        self._trust.start()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being asked or compared."""
        return not (self._asked or self._answers or self._reads or self._fetches or self._fetching)

    def read_feed_soon(self) -> None:
        """Read the feed at once, whatever its interval: somebody has to know where it ends."""
        self._feed_at = 0.0

    def _expect(self) -> None:
        """Something was just posted: read the feed again as soon as its interval allows."""
        self._feed_at = min(self._feed_at, self._feed_read_at + self._interval.total_seconds())
        self._hurry_at, self._hurries = 0.0, 0

    def _clock_was_set(self, by: timedelta, jump: Jump | None) -> None:
        """Go on by the new wall clock: what was measured by the old one moves along, what is being asked is void."""
        self._asked_before_jump |= self._asked
        self._feed_asked_before_jump = self._feed_asked
        rules = self.rules
        if rules is not None:
            read_at = rules.feed_read_at + by if rules.feed_read_at is not None else None
            self.rules = replace(rules, jump=jump, clock_offset=rules.clock_offset - by, feed_read_at=read_at)

    def fetch(self, entry_id: int, done: Done) -> None:
        """Fetch the server's copy of a confirmed row; ``done`` gets its path in scratch, and unlinks it.

        Asked again until the server gives it. One that cannot be had for the grace time, though the server can be
        asked, cannot be compared with, and ``done`` gets Sameness.OTHER. A copy that the server has no more makes the
        row itself be looked at again: it becomes DELETED, and ``done`` gets None, as for any row that is not CONFIRMED
        by then.
        """
        self._fetches.append(_Fetch(entry_id, done))

    def collect(self, now: Now) -> None:
        """Collect answers and comparisons, and see whether anything is due to be asked."""
        if self._wall.set_by != self._set_by:
            self._clock_was_set(self._wall.set_by - self._set_by, self._wall.jump)
            self._set_by = self._wall.set_by
        if self._posting.results_written != self._results_known:
            self._results_known = self._posting.results_written
            self._expect()
        profile = self._profile()
        if profile is not None and (self.rules is None or self.rules.profile != profile):
            self.rules = replace(self._rules_of(profile), jump=self._wall.jump)
        self._answers += self._reconciler.collect()
        for context, read in self._desk.take(Owner.PROOF):
            assert isinstance(context, Finding)
            self._reads.append((context, read))
        if self.rules is None:
            return
        self._plan_feed(now, self.rules)
        self._trust.gather(now, self.rules, is_busy=bool(self._asked))
        if self._reads or self._answers or not self._asked:
            self._waits_for_trust = False
        may_ask = len(self._asked) < _ROWS_MOST and not self._waits_for_trust
        check = queries.next_check_at(self._ledger, now=now.utc) if may_ask else None
        self._rows_are_due = check is not None and check <= now.utc
        if may_ask and check is None and self.is_idle:
            for each in self._unanswered.values():
                each.end()
        if any(now.mono >= fetch.at for fetch in self._fetches):
            self._plan_fetches(now, self.rules)

    def write(self, tx: Transaction, now: Now) -> None:
        """Write what answers and comparisons settle, and plan for the rows that are due then."""
        if not (self._answers or self._reads or self._rows_are_due or self._trust.has_work):
            return
        tx.begin()
        tx.on_commit(self._forget)
        self._trust.begin_record()
        # What the feed shows comes first: everything else is judged by it.
        studies: list[StudyAnswer] = []
        for answer in self._answers:
            if isinstance(answer, FeedAnswer):
                self._settle_feed(answer, tx, now)
                continue
            tx.on_commit(partial(self._unanswered[answer.question.fetch].take, answer, now))
            if (fetch := self._fetching.get(id(answer.question))) is not None:
                self._settle_fetch(answer, fetch, tx, now)
            else:
                studies.append(answer)
        self._read_rows(studies)
        outcomes: list[Outcome] = []
        for answer in studies:
            self._settle_study(answer, tx, outcomes, now)
        for finding, read in self._reads:
            self._settle_comparison(finding, read, tx, outcomes, now)
        self._apply(outcomes, tx, now)
        self._trust.record(tx, now)
        if self.rules is not None and (self._rows_are_due or self._answers):
            self._plan_rows(tx, now, self.rules)

    def _forget(self) -> None:
        self._answers, self._reads, self._rows_are_due = [], [], False
        self._trust.committed()

    def next_at(self, now: Now) -> float:
        if self.rules is None:
            return inf
        times: list[float] = []
        if self.rules.profile.has_feed and not self._feed_asked:
            times.append(self._next_feed_at)
        times += [fetch.at for fetch in self._fetches]
        check = queries.next_check_at(self._ledger, now=now.utc)
        if check is not None and len(self._asked) < _ROWS_MOST:
            if self._more_rows:
                return now.mono
            left = (check - now.utc).total_seconds()
            # Rows that are being asked about stay due until the answer is written; the answer wakes us.
            if left > 0 or not self._asked:
                times.append(now.mono + max(0.0, left))
        return min(times, default=inf)

    @property
    def _next_feed_at(self) -> float:
        # What it has shown already is settled first.
        wanted = min(self._feed_at, self._hurry_at) if self._ending.hurries and not self._more_rows else self._feed_at
        return max(wanted, self._feed_barred_until)

    def _plan_feed(self, now: Now, rules: Rules) -> None:
        if not rules.profile.has_feed or self._feed_asked or now.mono < self._next_feed_at:
            return
        cursor, glances = queries.cursor(self._ledger), False
        if now.mono < self._feed_at and cursor is not None and cursor.since and self._newest_seen_at is not None:
            cursor = replace(cursor, since=max(cursor.since, self._newest_seen_at - _GLANCE_BACK))
            glances = True
        first_attempt_at = queries.first_attempt_at(self._ledger)
        if not glances:
            counts = queries.counts(self._ledger)
            waiting = counts.get(State.STORED, 0) + counts.get(State.UNCERTAIN, 0)
            every = self._interval if waiting else max(self._interval, _IDLE_FEED_EVERY)
            self._feed_at = now.mono + every.total_seconds()
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
        self._feed_asked, self._glances = True, glances
        self._feed_read_at = now.mono
        self._reconciler.submit(question)

    def _plan_rows(self, tx: Transaction, now: Now, rules: Rules) -> None:
        if len(self._asked) >= _ROWS_MOST:
            return
        due = queries.unproven(self._ledger, now=now.utc, limit=_ROWS_MOST)
        free = [row for row in due if row.entry_id not in self._asked]
        chosen = self._trust.choose(free, rules)
        rules = self._trust.applied_to(rules)
        probes = self._trust.probe(now, asked=self._asked) if rules.stopped else []
        probed = {row.entry_id for row in probes}
        rest = [row for row in chosen if row.entry_id not in probed]
        waits = len(chosen) < len(free)
        # Those whose answers are written now, and which somebody has woken meanwhile, are taken up in the next round.
        more = not waits and (len(due) >= _ROWS_MOST or any(row.entry_id in self._rows for row in due))
        for some, under in ((rest, rules), (probes, replace(rules, stopped=False))):
            planned = plan(some, rules=under, now=now.utc)
            self._apply(planned.outcomes, tx, now)
            tx.on_commit(partial(self._take_up, planned, some))
        tx.on_commit(partial(self._plan_again, waits=waits, more=more))

    def _take_up(self, planned: Plan, rows: Sequence[Unproven]) -> None:
        for question in planned.questions:
            self._reconciler.submit(question)
        self._asked |= planned.asked
        self._trust.begin(row for row in rows if row.entry_id in planned.asked)

    def _plan_again(self, *, waits: bool, more: bool) -> None:
        self._waits_for_trust, self._more_rows = waits, more

    def _read_rows(self, answers: Sequence[StudyAnswer]) -> None:
        ids = {row.entry_id for answer in answers for row in answer.question.rows}
        ids.update(finding.row.entry_id for finding, _ in self._reads)
        self._rows = {row.entry_id: row for row in queries.unproven_rows(self._ledger, ids)}

    def _as_it_is(self, asked: Unproven, tx: Transaction) -> Unproven | None:
        """Give the row of an answer as it is by now; None if it moved meanwhile, and the answer says nothing of it."""
        row = self._rows.get(asked.entry_id)
        if row is None or (row.state, row.content, row.last_attempt_at) != (
            asked.state,
            asked.content,
            asked.last_attempt_at,
        ):
            tx.on_commit(partial(self._log.warning, "reconciler.rows_moved_meanwhile", rows=1))
            return None
        return row

    def _was_woken(self, asked: Unproven) -> bool:
        """Whether somebody wants to have the row looked at since it was asked about: that stands."""
        row = self._rows.get(asked.entry_id)
        return row is not None and row.next_check_at != asked.next_check_at

    def _apply(self, outcomes: Sequence[Outcome], tx: Transaction, now: Now) -> None:
        if outcomes:
            applied = moves.apply(tx, outcomes, now=now.utc, backoff=self._backoff, jitter=self._jitter())
            tx.on_commit(partial(self._tell, outcomes, applied.lost))

    def _plan_fetches(self, now: Now, rules: Rules) -> None:
        wanted = [fetch for fetch in self._fetches if now.mono >= fetch.at]
        rows = {row.entry_id: row for row in queries.unproven_rows(self._ledger, (fetch.entry_id for fetch in wanted))}
        self._fetches = [fetch for fetch in self._fetches if now.mono < fetch.at]
        for fetch in wanted:
            row = rows.get(fetch.entry_id)
            if row is None or row.state is not State.CONFIRMED:
                fetch.done(None)
                continue
            question = StudyQuestion(
                study_uid=row.identity.study_uid,
                rows=(row,),
                fetch=True,
                original=rules.profile.kind is ServerKind.AZURE,
                keep=True,
            )
            self._fetching[id(question)] = fetch
            self._reconciler.submit(question)

    def _settle_fetch(self, answer: StudyAnswer, fetch: _Fetch, tx: Transaction, now: Now) -> None:
        copies = [copy for finding in answer.findings for copy in finding.copies]
        for needless in copies[1:]:
            tx.on_commit(partial(needless.unlink, missing_ok=True))
        copy = copies[0] if copies else None
        tx.on_commit(partial(self._fetching.pop, id(answer.question)))
        if copy is not None:
            tx.on_commit(partial(fetch.done, copy))
            return
        if not answer.findings:
            # The server could not be asked at all; that says nothing of its copy.
            wait = max(_ASK_AGAIN, self._wait_for(answer, now))
            self._fetch_again(tx, replace(fetch, at=now.mono + wait.total_seconds()))
        elif any(finding.present is False for finding in answer.findings):
            moves.check_again(tx, [fetch.entry_id], at=now.utc)
            self._fetch_again(tx, replace(fetch, at=now.mono + _FETCH_ABSENT_AGAIN.total_seconds()))
        else:
            self._settle_untold(fetch, tx, now)

    def _settle_untold(self, fetch: _Fetch, tx: Transaction, now: Now) -> None:
        """Wait ever longer for a copy that cannot be had, or is far too large for one, and no longer than the grace."""
        assert self.rules is not None
        since = now.mono if fetch.untold_at is None else fetch.untold_at
        left = self.rules.grace.total_seconds() - (now.mono - since)
        if left <= 0:
            tx.on_commit(partial(fetch.done, Sameness.OTHER))
            return
        wait = min(left, _FETCH_AGAIN.wait(fetch.asked + 1, jitter=0.0).total_seconds())
        self._fetch_again(tx, replace(fetch, at=now.mono + wait, asked=fetch.asked + 1, untold_at=since))

    def _fetch_again(self, tx: Transaction, fetch: _Fetch) -> None:
        tx.on_commit(partial(self._fetches.append, fetch))

    def _settle_feed(self, answer: FeedAnswer, tx: Transaction, now: Now) -> None:
        # A reading that did not begin at the cursor does not move it.
        cursor = None if self._glances else answer.cursor
        if answer.went_back_to is not None:
            # First of all: what these entries show is newer than what the rows remember of such sequences.
            moves.went_back(tx, to=answer.went_back_to, end=answer.end, now=now.utc)
            tx.on_commit(partial(self._removals.shut, WENT_BACK))
        elif answer.end is not None:
            if answer.end != answer.question.end:
                moves.seen_end(tx, answer.end)
            tx.on_commit(partial(self._feed_is_whole, self._feed_read_at))
        if answer.sightings or cursor is not None:
            moves.record_sightings(tx, answer.sightings, now=now.utc, cursor=cursor)
        tx.on_commit(partial(self._feed_answered, answer, now))

    def _feed_is_whole(self, asked_at: float) -> None:
        self.feed_whole_at = asked_at

    def _feed_answered(self, answer: FeedAnswer, now: Now) -> None:
        self._feed_asked = False
        self._hurry_at = now.mono + min(self._interval, _HURRY * (1 << min(self._hurries, 16))).total_seconds()
        self._hurries += 1
        if not self._feed_asked_before_jump:
            self._keep_clock_offset(answer.clock_offset)
        self._feed_asked_before_jump = False
        if answer.unreadable not in {0, self._feed_unreadable}:
            self._log.warning("feed.entries_unreadable", rows=answer.unreadable)
        self._feed_unreadable = answer.unreadable
        error = answer.error or (answer.pause.note if answer.pause else "")
        if error or answer.pause is not None:
            self._feed_unanswered.failed(error, now)
            # Nobody can wake it, as one can the rows.
            wait = self._feed_unanswered.wait(answer.pause, now, cap=PROBE_AT_LEAST_EVERY)
            self._feed_barred_until = now.mono + max(self._interval, wait).total_seconds()
            self._log.warning("feed.not_read", error=error)
            return
        self._feed_unanswered.end()
        seen = [sighting.at for sighting in answer.sightings]
        if not answer.complete:
            self._feed_at = 0.0
        elif seen:
            self._newest_seen_at = max(seen)
        if not self._glances:
            self._counted_at = self._feed_read_at
        if answer.complete and not self._glances and self.rules is not None:
            self.rules = replace(self.rules, feed_read_at=now.utc)

    def _settle_study(self, answer: StudyAnswer, tx: Transaction, outcomes: list[Outcome], now: Now) -> None:
        assert self.rules is not None
        rules = self._trust.applied_to(self.rules)
        found = {finding.row.entry_id for finding in answer.findings}
        unasked = [row for row in answer.question.rows if row.entry_id not in found]
        if unasked:
            self._ask_later(unasked, tx, now, note=answer.failure, wait=self._wait_for(answer, now))
            for left_out in unasked:
                tx.on_commit(partial(self._let_go, left_out.entry_id))
            self._log.warning("study.not_asked", rows=len(unasked), error=answer.failure)
        if self._asked_before_jump.isdisjoint(row.entry_id for row in answer.question.rows):
            tx.on_commit(partial(self._keep_clock_offset, answer.clock_offset))
        for finding in answer.findings:
            row = self._as_it_is(finding.row, tx)
            judged: Outcome | NextStep | None = None
            if row is not None and row.entry_id in self._asked_before_jump:
                judged = NextStep.ASK
            elif row is not None:
                row = self._with_absence(row, finding)
                give_up = self._posting.takes_others(row, now)
                if finding.sameness is not None:
                    judged = self._trust.judge(row, finding.sameness, rules=rules, at=finding.asked_at)
                else:
                    lost = self._is_lost(row.path)
                    judged = judge(replace(finding, row=row), rules=rules, give_up=give_up, lost=lost)
            if judged is NextStep.COMPARE and finding.copy is not None:
                tx.on_commit(partial(self._compare, finding, finding.copy))
                continue
            if isinstance(judged, Outcome) and judged.state is State.PENDING and self._is_lost(finding.row.path):
                moves.fail_gone(tx, [judged.entry_id], note=_GONE_NOTE, now=now.utc)
            elif isinstance(judged, Outcome):
                self._take_outcome(judged, finding, outcomes, now)
            elif judged is not None:
                self._ask_later([finding.row], tx, now)
            tx.on_commit(partial(self._close, finding))

    def _with_absence(self, row: Unproven, finding: Finding) -> Unproven:
        """Say how long ago this process saw it absent first, if that is in a row with now."""
        if finding.present is not False:
            return row
        if not row.absences:
            self._absent.pop(row.entry_id, None)
        first = self._absent.setdefault(row.entry_id, finding.asked_boot)
        return replace(row, absent_for=timedelta(seconds=finding.asked_boot - first))

    def _take_outcome(self, outcome: Outcome, finding: Finding, outcomes: list[Outcome], now: Now) -> None:
        """Have an outcome written, unless it would only put to sleep what somebody has woken meanwhile."""
        if outcome.state is State.CONFIRMED:
            self._posting.found(finding.row, now)
        if outcome.state is not finding.row.state or not self._was_woken(finding.row):
            outcomes.append(outcome)

    def _wait_for(self, answer: StudyAnswer, now: Now) -> timedelta:
        """Say how long a server that answered nothing of this is left alone."""
        return self._unanswered[answer.question.fetch].wait(answer.pause, now, cap=self._backoff.cap)

    def _ask_later(
        self, asked: Sequence[Unproven], tx: Transaction, now: Now, *, note: str = "", wait: timedelta = timedelta(0)
    ) -> None:
        sleeping = [row.entry_id for row in asked if not self._was_woken(row)]
        moves.check_again(tx, sleeping, at=now.utc + max(_ASK_AGAIN, self._interval, wait), note=note)

    def _compare(self, finding: Finding, copy: Path) -> None:
        row = finding.row
        if row.path is None:
            self._inspect_copy(finding, copy)
            return
        ours, digest = row.path, row.content.digest
        self._desk.ask(
            Owner.PROOF,
            finding,
            lambda key: CompareJob(key=key, ours=ours, theirs=str(copy), our_digest=digest),
        )

    def _inspect_copy(self, finding: Finding, copy: Path) -> None:
        self._desk.ask(Owner.PROOF, finding, lambda key: InspectJob(key=key, path=str(copy)))

    def _settle_comparison(
        self, finding: Finding, read: Read, tx: Transaction, outcomes: list[Outcome], now: Now
    ) -> None:
        assert self.rules is not None
        compared = isinstance(read.job, CompareJob)
        if finding.copy is not None and (read.lost or (compared and self._is_lost(finding.row.path))):
            # A file that is gone, or was altered in place since it was sent, says nothing of what was: its digest does.
            tx.on_commit(partial(self._inspect_copy, finding, finding.copy))
            return
        sameness, differs = _sameness(finding, read)
        rest = finding.next_copy()
        if sameness is not Sameness.SAME and rest is not None and rest.copy is not None:
            # One of several copies: another one may be ours.
            assert finding.copy is not None
            tx.on_commit(partial(finding.copy.unlink, missing_ok=True))
            tx.on_commit(partial(self._compare, rest, rest.copy))
            return
        row = self._as_it_is(finding.row, tx)
        if row is None:
            pass
        elif row.entry_id in self._asked_before_jump:
            self._ask_later([finding.row], tx, now)
        elif sameness is not None:
            judged = self._trust.judge(row, sameness, rules=self.rules, at=finding.asked_at, differs=differs)
            self._take_outcome(judged, finding, outcomes, now)
        else:
            # Nothing was learnt (a reader died of it, or one of the two could not be read): ask again, ever later.
            why = f": {read.waits}" if read.waits else ""
            note = f"the server's copy could not be compared with the file this time{why}"
            told = not_told(row, note, rules=self.rules, now=finding.asked_at, lost=self._is_lost(row.path))
            self._take_outcome(told, finding, outcomes, now)
        tx.on_commit(partial(self._close, finding))

    def _is_lost(self, path: str | None) -> bool:
        return path is not None and is_gone(path) and self._tells_gone(path)

    def _close(self, finding: Finding) -> None:
        self._let_go(finding.row.entry_id)
        for copy in finding.copies:
            copy.unlink(missing_ok=True)

    def _let_go(self, entry_id: int) -> None:
        self._asked.discard(entry_id)
        self._asked_before_jump.discard(entry_id)
        self._trust.end(entry_id)

    def _keep_clock_offset(self, offset: timedelta | None) -> None:
        if offset is not None and self.rules is not None:
            self.rules = replace(self.rules, clock_offset=offset)

    def _tell(self, outcomes: Sequence[Outcome], lost: int) -> None:
        for outcome in outcomes:
            if outcome.reason in _SEEN or outcome.state is not outcome.expected:
                self._absent.pop(outcome.entry_id, None)
        confirmed = sum(outcome.state is State.CONFIRMED for outcome in outcomes)
        if confirmed:
            self._log.info("instance.confirmed", instances=confirmed)
        for outcome in outcomes:
            if outcome.state is State.DELETED:
                self._log.error("instance.deleted", entry_id=outcome.entry_id, note=outcome.note)
            elif outcome.state in (State.CONFLICT, State.FAILED):
                self._log.error(
                    "instance.needs_person",
                    entry_id=outcome.entry_id,
                    state=outcome.state.value,
                    reason=outcome.reason.value,
                )
            elif outcome.reason is Reason.NOT_SHOWN:
                self._log.warning("instance.not_shown", entry_id=outcome.entry_id, note=outcome.note)
        if lost:
            self._log.warning("reconciler.rows_moved_meanwhile", rows=lost)


def _sameness(finding: Finding, read: Read) -> tuple[Sameness | None, str]:
    """Say how the copy compares with the row, and what differs; None when nothing could be told."""
    found = read.inspection
    if found is None:
        return (Sameness.OTHER, read.refused) if read.refused else sameness_of(read)
    if found.verdict in (Verdict.CHANGED, Verdict.UNREADABLE):
        return None, ""
    if found.verdict not in (Verdict.WHOLE, Verdict.ZEROS):
        return Sameness.NOT_WHOLE, found.reason_text
    theirs = replace(
        finding.row.content,
        transfer_syntax=found.transfer_syntax,
        digest=found.digest,
        meta_digest=found.meta_digest,
    )
    compared = compare_content(finding.row.content, theirs)
    # Our bytes are gone: a canonical digest of ours cannot be had, so unequal bytes are a person's to judge.
    return Sameness.OTHER if compared is Sameness.COMPARE else compared, ""
