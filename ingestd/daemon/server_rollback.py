"""Whether the server still has what it had: restored from an older backup, it lost files whose copies we hold alone.

Before files are removed the server is looked at: its change feed, where it has one, has to go as far as it ever did,
and what was confirmed last before it may have happened is asked for. The feed alone does not tell: a database may skip
sequences when it starts anew. Nor does the last of all: it may have been stored since. The ledger keeps that the server
went back, for all hosts, until everything that was asked about for it is settled: confirmed again, or DELETED, which
needs a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.feed_reading import WENT_BACK, FeedReading
from ingestd.daemon.server_questions import ServerQuestions
from ingestd.daemon.spool_disk import SpoolDisk
from ingestd.daemon.stage import Gate, Stage
from ingestd.ledger import Ledger, Resting, Transaction, moves, queries
from ingestd.lifecycle import State, Unproven
from ingestd.reconciler import Rules

NOT_LOOKED_AT = "not_looked_at"
# So long after a look at the server files may go: it costs a query for two files, or a copy of them.
_GOOD_FOR_SECONDS = 30.0
# The feed is asked for so often while files are to go.
_FEED_EVERY_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 1.0
# No server is stopped, put back and started again in less: rows that were confirmed closer together tell of each other.
_LEAST_OUTAGE = timedelta(seconds=1)
# So many times when that may have happened are asked about in one look, and so many rows looked through for them.
_OUTAGES_AT_ONCE, _ROWS_AT_ONCE = 20, 20_000
# Files that should go and must not, since the server cannot be looked at, are told of after this long.
_TELL_AFTER_SECONDS = 900.0
# What is written late, by a person's command say, bears a time of before.
_LATE = timedelta(minutes=1)


class ServerRollback(Stage):
    """Holds the removals of what rests on the server until it was looked at, and while it has gone back."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        alarms: Alarms,
        removals: Gate,
        disk: SpoolDisk,
        questions: ServerQuestions,
        feed: FeedReading,
        retain: timedelta,
    ) -> None:
        """Join the rooms; nothing is removed before the first look, and nothing before ``retain`` but to make room."""
        self._ledger = ledger
        self._alarms = alarms
        self._removals = removals
        self._disk = disk
        self._questions = questions
        self._feed = feed
        self._retain = retain
        self.up_to: datetime | None = None  # only what has not been needed since then may go, for now
        # What has not been needed since then does not rest here. That may be held for long, and is looked at once.
        self._rests_since: datetime | None = None
        self._look_at = self._ask_at = self._feed_good_until = self._good_until = 0.0
        self._held_since: float | None = None
        self._asked: tuple[int, ...] = ()  # the rows that are asked for
        self._asked_at = 0.0
        self._asked_up_to: datetime | None = None
        self._asks = self._went_back = self._settled = False
        removals.shut(NOT_LOOKED_AT)

    def collect(self, now: Now) -> None:
        """See whether files may go, and ask for what is needed to know."""
        if self._feed.whole_at is not None:
            self._feed_good_until = self._feed.whole_at + _GOOD_FOR_SECONDS
        rules = self._questions.rules
        self._gate(now)
        if now.mono < self._look_at or self._asks or self._went_back or self._settled:
            return
        self._look_at = now.mono + _LOOK_EVERY_SECONDS
        self._settled = self.tell() and not queries.has_looks(self._ledger)
        waits = False
        before = self._disk.due_before(now, self._retain)
        if now.mono >= self._good_until or self._is_used_up(before):
            waits = bool(self._asked or self._resting(before, limit=1))
            if not waits:
                # Nothing that is to go by now rests on the server's having it.
                self._rests_since = before - _LATE
                self._good(now.mono + _LOOK_EVERY_SECONDS, up_to=before)
            elif rules is not None:
                self._look_at_server(now, rules, before)
            self._gate(now)
        self._hold(now, is_held=waits)

    def hurry(self) -> None:
        """Look at the server at the next tick."""
        self._look_at = 0.0
        if self.up_to is not None:
            # What was found concerns older files.
            self._good_until = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no row is being asked for."""
        return not self._asked

    def _gate(self, now: Now) -> None:
        self._removals.set(NOT_LOOKED_AT, is_open=now.mono < self._good_until)

    def tell(self) -> bool:
        """Say whether the server has gone back, and hold the removals as long as it has."""
        since = queries.went_back_at(self._ledger)
        self._removals.set(WENT_BACK, is_open=since is None)
        self._alarms.set(
            WENT_BACK,
            note=""
            if since is None
            else "the server has lost what it had shown, as if it had been restored from an older backup: no file that "
            "it had is removed, and what it may have lost is asked for again",
            next_step="ask whoever runs the server; `ingestd status --state DELETED --files` lists what it lost, and "
            "`ingestd retry --state DELETED` sends what is still kept; `ingestd reconcile --full` asks about "
            "everything; files are removed again when all is settled",
        )
        return since is not None

    def write(self, tx: Transaction, now: Now) -> None:
        """Write what is to be asked, and what was found."""
        tx = tx.at(self._ledger.destination_id)
        if self._asks:
            moves.check_again(tx, self._asked, at=now.utc)
        if self._went_back and _tells_of_loss(queries.unproven_rows(tx, self._asked)):
            moves.went_back(tx, to=None, end=None, now=now.utc)
        # In this very transaction the feed may have shown that it went back again.
        if self._settled and not queries.has_looks(tx):
            moves.went_back_settled(tx)
        if self._asks or self._went_back or self._settled:
            tx.on_commit(self._committed)

    def _committed(self) -> None:
        if self._went_back:
            self._asked = ()
        if self._went_back or self._settled:
            self.tell()
        self._asks = self._went_back = self._settled = False

    def _is_used_up(self, before: datetime) -> bool:
        """Whether all that the last look allows has gone, while more may be to go."""
        up_to = self.up_to
        return up_to is not None and up_to < before and not self._resting(up_to, limit=1)

    def _resting(self, before: datetime, *, limit: int) -> list[Resting]:
        if self._rests_since is not None and before < self._rests_since:
            # The clock was set back, or the disk is low no more.
            self._rests_since = None
        return queries.resting(self._ledger, before=before, since=self._rests_since, limit=limit)

    def _look_at_server(self, now: Now, rules: Rules, before: datetime) -> None:
        if rules.profile.has_feed and now.mono >= self._feed_good_until:
            if now.mono >= self._ask_at:
                self._ask_at = now.mono + _FEED_EVERY_SECONDS
                self._feed.read_soon()
            return
        rows = [
            row
            for row in queries.unproven_rows(self._ledger, self._asked)
            if row.state in (State.CONFIRMED, State.DELETED)
        ]
        if _tells_of_loss(rows):
            self._went_back = True
        elif not self._asked:
            resting = self._resting(before, limit=_ROWS_AT_ONCE)
            if not resting:
                return  # somebody else let go of them just now
            asked, self._asked_up_to = last_before_outages(resting)
            # The last of all tells soonest.
            self._asked = tuple(asked.union(queries.newest_confirmed(self._ledger)))
            self._asked_at, self._asks = now.mono, True
        elif all(row.next_check_at is None for row in rows):
            self._asked = ()
            if rows:
                self._good(self._asked_at + _GOOD_FOR_SECONDS, up_to=self._asked_up_to)

    def _good(self, until: float, *, up_to: datetime | None) -> None:
        self._good_until, self.up_to = until, up_to

    def _hold(self, now: Now, *, is_held: bool) -> None:
        if not is_held:
            self._held_since = None
        elif self._held_since is None:
            self._held_since = now.mono
        late = self._held_since is not None and now.mono - self._held_since >= _TELL_AFTER_SECONDS
        self._alarms.set(
            NOT_LOOKED_AT,
            note="the server cannot be asked whether it still has what it had, so that no such file is removed" * late,
            next_step="look at the server and at the lines about it above; files are removed again by themselves",
        )


def _tells_of_loss(rows: Iterable[Unproven]) -> bool:
    return any(row.state is State.DELETED or (row.state is State.CONFIRMED and row.absences) for row in rows)


def last_before_outages(resting: Sequence[Resting]) -> tuple[set[int], datetime]:
    """Choose the rows that tell of as many of these as one look may ask for, and say up to when they do.

    What a server lost was stored last before it was away, and that may have been wherever nothing was confirmed for a
    while. Beside the row that was confirmed last before it, the one that was taken in last is asked for: a comparison
    may have held up the other.
    """
    asked: set[int] = set()
    outages, highest = 0, 0
    ordered = sorted(resting, key=lambda one: one.confirmed_at)
    for at, one in enumerate(ordered):
        highest = max(highest, one.delivery_id)
        if at + 1 == len(ordered) or ordered[at + 1].confirmed_at - one.confirmed_at >= _LEAST_OUTAGE:
            asked |= {one.delivery_id, highest}
            outages, highest = outages + 1, 0
    if outages > _OUTAGES_AT_ONCE:
        return last_before_outages(resting[: len(resting) // 2])
    return asked, resting[-1].settled_at
