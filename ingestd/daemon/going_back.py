"""Whether the server still has what it had: restored from an older backup, it lost files whose copies we hold alone.

Before files are removed the server is looked at: its change feed, where it has one, has to go as far as it ever did,
and the last that was confirmed is asked for, of what is to go and of all. The feed alone does not tell: a database may
skip sequences when it starts anew. The ledger keeps that the server went back, for all hosts, until everything that was
asked about for it is settled: confirmed again, or DELETED, which needs a person.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from ingestd.daemon.alarms import Alarms
from ingestd.daemon.now import Now
from ingestd.daemon.removals import Removals
from ingestd.ledger import Ledger, Moves
from ingestd.lifecycle import State
from ingestd.reconciler import Rules

WENT_BACK, NOT_LOOKED_AT = "went_back", "not_looked_at"
# So long after a look at the server files may go: it costs a query for two files, or a copy of them.
_GOOD_FOR_SECONDS = 120.0
# The feed is asked for so often while files are to go.
_FEED_EVERY_SECONDS = 30.0
_LOOK_EVERY_SECONDS = 1.0
# Files that should go and must not, since the server cannot be looked at, are told of after this long.
_TELL_AFTER_SECONDS = 900.0


class GoingBack:
    """Holds the removals until the server was looked at, and while it has gone back. Main thread only."""

    def __init__(
        self, *, ledger: Ledger, alarms: Alarms, removals: Removals, read_feed_soon: Callable[[], object]
    ) -> None:
        """Join the rooms; nothing is removed before the first look."""
        self._ledger = ledger
        self._alarms = alarms
        self._removals = removals
        self._read_feed_soon = read_feed_soon
        self._look_at = self._ask_at = self._feed_good_until = self._good_until = 0.0
        self._held_since: float | None = None
        self._asked: tuple[int, ...] = ()  # the rows that are asked for
        self._asked_at = 0.0
        self._asked_up_to: datetime | None = None
        self._asks = self._went_back = self._settled = False
        removals.stop(NOT_LOOKED_AT)

    @property
    def has_work(self) -> bool:
        """Whether a transaction is wanted."""
        return self._asks or self._went_back or self._settled

    def seen_whole(self, asked_at: float) -> None:
        """The feed, asked at that time (``Now.mono``), goes as far as it ever did."""
        self._feed_good_until = asked_at + _GOOD_FOR_SECONDS

    def gather(self, now: Now, rules: Rules | None, *, make_room: bool) -> None:
        """See whether files may go, and ask for what is needed to know; writes nothing."""
        self._gate(now)
        if now.mono < self._look_at or self.has_work:
            return
        self._look_at = now.mono + _LOOK_EVERY_SECONDS
        self._settled = self.tell() and not self._ledger.has_looks()
        waits = False
        if now.mono >= self._good_until:
            before = self._removals.due_before(now, make_room=make_room)
            newest = self._ledger.newest_removable(before=before)
            waits = newest is not None
            if not waits and not self._asked:
                # Nothing that is to go by now rests on the server's having it.
                self._good(now.mono + _LOOK_EVERY_SECONDS, up_to=before)
            elif rules is not None:
                self._look_at_server(now, rules, newest)
            self._gate(now)
        self._hold(now, is_held=waits)

    def hurry(self) -> None:
        """Look at the server at the next tick."""
        self._look_at = 0.0
        if self._removals.up_to is not None:
            # What was found concerns older files.
            self._good_until = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no row is being asked for."""
        return not self._asked

    def _gate(self, now: Now) -> None:
        if now.mono < self._good_until:
            self._removals.allow(NOT_LOOKED_AT)
        else:
            self._removals.stop(NOT_LOOKED_AT)

    def tell(self) -> bool:
        """Say whether the server has gone back, and hold the removals as long as it has."""
        since = self._ledger.went_back_at()
        if since is None:
            self._removals.allow(WENT_BACK)
        else:
            self._removals.stop(WENT_BACK)
        self._alarms.set(
            WENT_BACK,
            note=""
            if since is None
            else "the server has lost what it had shown, as if it had been restored from an older backup: no file is "
            "removed, and what it may have lost is asked for again",
            next_step="ask whoever runs the server; `ingestd status --state DELETED --files` lists what it lost, and "
            "`ingestd retry --state DELETED` sends what is still kept; `ingestd reconcile --full` asks about "
            "everything; files are removed again when all is settled",
        )
        return since is not None

    def record(self, moves: Moves, now: Now) -> None:
        """Write what is to be asked, and what was found."""
        if self._asks:
            moves.check_again(self._asked, at=now.utc)
        if self._went_back:
            moves.went_back(to=None, end=None, now=now.utc)
        if self._settled:
            moves.went_back_settled()

    def committed(self) -> None:
        """It is durable."""
        if self._went_back or self._settled:
            self.tell()
        self._asks = self._went_back = self._settled = False

    def _look_at_server(self, now: Now, rules: Rules, newest: tuple[int, datetime] | None) -> None:
        if rules.profile.has_feed and now.mono >= self._feed_good_until:
            if now.mono >= self._ask_at:
                self._ask_at = now.mono + _FEED_EVERY_SECONDS
                self._read_feed_soon()
            return
        rows = [row for row in self._ledger.unproven_rows(self._asked) if row.state in (State.CONFIRMED, State.DELETED)]
        if any(row.state is State.DELETED or row.absences for row in rows):
            self._went_back, self._asked = True, ()
        elif not rows and newest is not None:
            # What the last of these files rests on stands for all that were confirmed before it; the last of all
            # tells soonest.
            self._asked = (newest[0], self._ledger.newest_confirmed() or newest[0])
            self._asked_at, self._asked_up_to, self._asks = now.mono, newest[1], True
        elif all(row.next_check_at is None for row in rows):
            self._asked = ()
            if rows:
                self._good(self._asked_at + _GOOD_FOR_SECONDS, up_to=self._asked_up_to)

    def _good(self, until: float, *, up_to: datetime | None) -> None:
        self._good_until, self._removals.up_to = until, up_to

    def _hold(self, now: Now, *, is_held: bool) -> None:
        if not is_held:
            self._held_since = None
        elif self._held_since is None:
            self._held_since = now.mono
        late = self._held_since is not None and now.mono - self._held_since >= _TELL_AFTER_SECONDS
        self._alarms.set(
            NOT_LOOKED_AT,
            note="the server cannot be asked whether it still has what it had, so that no file is removed" * late,
            next_step="look at the server and at the lines about it above; files are removed again by themselves",
        )
