"""The daemon's loop: take in -> send -> prove -> wait. Every tick is one ledger transaction at most.

``gather`` collects what the rooms have finished and writes nothing; ``record`` writes all of it into one transaction;
``committed`` does what is now allowed: read, move, post, ask. A transaction that fails (disk full, ledger locked)
leaves everything collected in place, stops the intake, and is tried again. The main thread is the only one that
writes the ledger; readers are processes, posts and questions are threads, and all of them only wake this one.
"""

from __future__ import annotations

import queue
import time
from dataclasses import replace
from datetime import timedelta

import structlog

from ingestd.config import Config
from ingestd.daemon import wiring
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.desk import ReaderDesk
from ingestd.daemon.dispatch import Dispatch
from ingestd.daemon.elsewhere import Elsewhere
from ingestd.daemon.going_back import GoingBack
from ingestd.daemon.hand import Hand
from ingestd.daemon.housekeeping import Housekeeping, what_was_read
from ingestd.daemon.intake import Intake
from ingestd.daemon.mover import Mover
from ingestd.daemon.now import Now, read_clocks, utc_now
from ingestd.daemon.orphans import Orphans
from ingestd.daemon.outage import Outage
from ingestd.daemon.proof import Proof
from ingestd.daemon.rework import Rework
from ingestd.daemon.trust import Trust
from ingestd.daemon.wallclock import WallClock
from ingestd.inbox import Inboxes, InboxPolicy, Spool
from ingestd.ledger import KEY_MADE_ANEW, Ledger, LedgerError, moves, queries
from ingestd.reader import ReaderPool
from ingestd.reconciler import Reconciler
from ingestd.sender import Sender

# With nothing to do the loop still looks around this often.
_IDLE_SECONDS = 5.0
# Under load, what finishes within the time of so many commits goes into one transaction: a slow disk makes larger ones.
_GROUP_COMMITS = 2
_GROUP_SECONDS_MOST = 0.04


class Wake:
    """A bell that any thread, or a signal handler, may ring; only the main thread waits for it."""

    def __init__(self) -> None:
        # A SimpleQueue, because a threading.Event set from a signal handler can die of RecursionError.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._rung = False

    def __call__(self) -> None:
        """Ring."""
        if not self._rung:
            self._rung = True
            self._bell.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait until it rings, at most so long; say whether it did."""
        try:
            self._bell.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return False
        # The queue is not emptied here: a ring that came in since would be taken out, its mark would stay, and no
        # ring would ever be heard again. What is left in it costs an empty tick.
        self._rung = False
        return True


class Daemon:
    """All rooms of one spool, wired; owns their order of starting and stopping."""

    def __init__(
        self,
        config: Config,
        *,
        policies: tuple[InboxPolicy, ...] | None = None,
        wake: Wake | None = None,
        before: Daemon | None = None,
    ) -> None:
        """Open spool and ledger and start the workers; ``policies`` stand in for the configured inboxes.

        With ``before``, whose place it is to take, it has that one's spool and ledger; ``start`` only once that one
        was stopped. Raises SpoolInUse, SpoolError, LedgerError, and ValueError for inboxes that cannot be used
        together; nothing is left running then, and nothing of ``before`` was touched.
        """
        self.config = config
        self.wake = wake or Wake()
        self._log = structlog.get_logger()
        policies = policies if policies is not None else wiring.policies_of(config)
        self.spool: Spool
        self.ledger: Ledger
        self.spool, self.ledger = (before.spool, before.ledger) if before is not None else _opened(config)
        try:
            self.inboxes = Inboxes(policies, spool=self.spool.path, wake=self.wake)
            self.client = wiring.client_of(config)
        except BaseException:
            if before is None:
                self.ledger.close()
                self.spool.unlock()
            raise
        self._replaces = before.inboxes if before is not None else None
        self.spool.low_water = config.spool.low_water
        backoff = wiring.backoff_of(config)
        self.readers = ReaderPool(
            processes=config.reader.processes, limits=wiring.reader_limits_of(config), wake=self.wake
        )
        self.sender = Sender(
            self.client,
            profile=wiring.profile_from(config),
            wake=self.wake,
            utc_now=utc_now,
            most_posts=config.destination.max_posts,
            reencode_refused=config.destination.implicit_vr == "fallback",
            file_meta=wiring.file_meta_of,
        )
        self.reconciler = Reconciler(self.client, scratch=self.spool.scratch(), wake=self.wake, utc_now=utc_now)
        self.mover: Mover[Hand] = Mover(self.spool, wake=self.wake)
        self.desk = ReaderDesk(self.readers)
        self.alarms = Alarms()
        self.wall = WallClock(self.ledger)
        self.intake = Intake(
            inboxes=self.inboxes, spool=self.spool, mover=self.mover, desk=self.desk, ledger=self.ledger
        )
        self.dispatch = Dispatch(
            sender=self.sender,
            ledger=self.ledger,
            limits=wiring.limits_of(config),
            backoff=backoff,
            most_attempts=config.retry.max_attempts,
            alarms=self.alarms,
            tells_gone=self._tells_gone,
        )
        self.trust = Trust(
            ledger=self.ledger,
            alarms=self.alarms,
            keep_files=self._keep_files,
            sample=config.reconcile.sample,
            grace=config.reconcile.grace,
        )
        self.proof = Proof(
            reconciler=self.reconciler,
            desk=self.desk,
            ledger=self.ledger,
            dispatch=self.dispatch,
            trust=self.trust,
            alarms=self.alarms,
            tells_gone=self._tells_gone,
            rules=None,
            interval=config.reconcile.interval,
            lag=config.reconcile.lag,
            backoff=backoff,
        )
        self.intake.fetch = self.proof.fetch
        self.rework = Rework(
            ledger=self.ledger,
            desk=self.desk,
            spool=self.spool,
            intake=self.intake,
            tells_gone=self._tells_gone,
        )
        self.housekeeping = Housekeeping(
            ledger=self.ledger,
            spool=self.spool,
            inboxes=self.inboxes,
            mover=self.mover,
            desk=self.desk,
            adopt=lambda candidate: self.intake.adopt(Hand(candidate=candidate)),
            policies=policies,
            wall=self.wall,
            retain=config.spool.retain,
            low_water=config.spool.low_water,
            alarms=self.alarms,
        )
        self.elsewhere = Elsewhere(self.ledger)
        self.going_back = GoingBack(
            ledger=self.ledger,
            alarms=self.alarms,
            removals=self.housekeeping.removals,
            read_feed_soon=self.proof.read_feed_soon,
        )
        self.proof.feed_ends_where_it_did = self.going_back.seen_whole
        self.proof.feed_went_back = self.going_back.tell
        self._policies = policies
        self.orphans = Orphans(
            ledger=self.ledger,
            spool=self.spool,
            inboxes=self.inboxes,
            intake=self.intake,
            removals=self.housekeeping.removals,
            alarms=self.alarms,
        )
        self._outage = Outage(self._log, self.ledger.file, self.spool.tell)
        self.stopping = False

    def start(self) -> None:
        """Settle what the last run left, arm the observers; then the first scan belongs to the first ticks."""
        now = read_clocks()
        if self._replaces is not None:
            self.inboxes.take_over(self._replaces)
            self._replaces = None
            self.spool.empty_scratch()
            self.spool.tell("")  # what the one before had told; if the ledger fails still, that is found anew
            self.ledger.longest = wiring.longest_waits_of(self.config)
            self.ledger.set_limits(wiring.limits_of(self.config))
        self.wall.look(now)
        with self.ledger.transaction() as tx:
            self.wall.record(tx)
            recovered = moves.recover(tx, now=now.utc)
        self.wall.committed()
        if recovered.uncertain or recovered.attempts or recovered.candidates:
            self._log.warning(
                "ledger.recovered",
                uncertain=recovered.uncertain,
                attempts=recovered.attempts,
                candidates=recovered.candidates,
            )
        self._tell_of_key()
        unremoved = [(what_was_read(row), row.path) for row in queries.unremoved_sources(self.ledger)]
        for policy in self._policies:
            self.mover.recover_removals(policy.path, unremoved)
        self.orphans.start()
        self.trust.start()
        self.inboxes.open()

    def _tell_of_key(self) -> None:
        self.alarms.set(
            KEY_MADE_ANEW,
            note="the key of the search words (the ledger's .key file) was missing and another was made, or another was"
            " put there: what was taken in before is not found by patient or accession"
            if self.ledger.key_is_another
            else "",
            next_step="stop ingestd, put the key file back from the backup of the ledger's folder, and start it; or,"
            " where there is no backup of it, go on with the new one: `ingestd resolve --new-key`",
        )

    def _keep_files(self, keeps: bool) -> None:  # noqa: FBT001 - a callback
        removals = self.housekeeping.removals
        (removals.stop if keeps else removals.allow)("mismatch")

    def tick(self) -> float:
        """Do what is ready, once; say when (``Now.mono``) there is something to do by the clock.

        Raises LedgerError only for a ledger that cannot be used for a minute and is neither busy nor full.
        """
        now = read_clocks()
        try:
            return self._tick(now)
        except LedgerError as error:
            return self._outage.failed(error, now.mono)

    def let_go(self, *, until: float) -> None:
        """Remove what may go before the end; the server is looked at for it no longer than that (``Now.mono``)."""
        self.going_back.hurry()
        self.tick()
        while not self.going_back.is_idle and read_clocks().mono < until:
            self.going_back.hurry()
            self.wait(min(self.tick(), until))
        self.housekeeping.hurry_to_the_end()
        due = self.tick()
        while not self.housekeeping.is_tidy and read_clocks().mono < until:
            self.wait(min(due, until))
            due = self.tick()

    def _tick(self, now: Now) -> float:
        set_by = self.wall.look(now)
        if set_by is not None:
            self.proof.clock_was_set(set_by, self.wall.jump)
        self._gather(now)
        if now.mono < self._outage.until:
            return self._outage.until
        claim = self.housekeeping.spool_stands and self.dispatch.may_claim(now)
        wake_at = queries.next_wake_at(self.ledger, now=now.utc)
        woken = wake_at is not None and wake_at <= now.utc
        # After a failure also an empty transaction: it shows that the ledger works again.
        if claim or woken or self._outage.holds or self._has_work():
            self._record(now, claim=claim, woken=woken)
            self._committed(now)
        self.proof.ask()
        return self._next_at(now)

    def wait(self, until: float) -> None:
        """Wait for a ring or the clock; under load a moment longer, so that one transaction carries more."""
        rung = self.wake.wait(min(until - read_clocks().mono, _IDLE_SECONDS))
        crowd = self.intake.in_hand + self.dispatch.in_flight
        if rung and crowd > 1:
            time.sleep(min(_GROUP_SECONDS_MOST, _GROUP_COMMITS * self.ledger.commit_seconds))

    @property
    def orphans_adopted(self) -> bool:
        """Whether every spool file without a row has been taken up."""
        return self.orphans.adopted

    @property
    def is_idle(self) -> bool:
        """Whether no room has anything under way."""
        return (
            self.intake.is_idle
            and self.dispatch.is_idle
            and self.rework.is_idle
            and self.proof.is_idle
            and self.housekeeping.is_idle
            and self.elsewhere.is_idle
        )

    def is_healthy(self) -> bool:
        """Whether every worker makes progress or is provably idle."""
        return (
            self.readers.is_healthy()
            and self.inboxes.is_healthy()
            and self.mover.is_healthy()
            and self.sender.is_healthy()
            and self.reconciler.is_healthy()
        )

    def stop(self, grace: timedelta, *, hand_over: bool = False) -> None:
        """Stop claiming, finish the posts in flight within ``grace``, close; the next start finds the rest.

        With ``hand_over`` spool and ledger stay open, for the one that takes this one's place.
        """
        self.stopping = True
        self.dispatch.stopping = True
        deadline = read_clocks().mono + grace.total_seconds()
        while not self.dispatch.is_idle and read_clocks().mono < deadline:
            due = self.tick()
            self.wait(min(due, deadline))
        given_up = self.sender.close(timedelta(0))
        if given_up:
            self._log.warning("sender.given_up", posts=given_up)
        self.close(hand_over=hand_over)

    def close(self, *, hand_over: bool = False) -> None:
        """Let go of everything; safe at any moment, since every durable step came before the act it guards."""
        self.inboxes.close()
        self.mover.close(5.0)
        self.reconciler.close(timedelta(0))
        self.readers.close()
        self.client.close()
        if not hand_over:
            self.ledger.close()
            self.spool.unlock()

    def _gather(self, now: Now) -> None:
        self.desk.collect()
        trouble = self.readers.trouble
        self.alarms.set(
            "readers",
            note=f"no reader can be started: {trouble}" if trouble else "",
            next_step="a reader is a process of this same Python: see that it is there and may be run, that ingestd was"
            " not replaced while it ran (restart it then), and that memory and processes are to be had",
        )
        self.going_back.gather(now, self.proof.rules, make_room=self.housekeeping.disk_low)
        self.housekeeping.gather(now)
        if not self.stopping and self.housekeeping.spool_stands:
            self.orphans.gather(now)
        accepting = self.housekeeping.may_take_in and self.orphans_adopted
        accepting = accepting and not (self.stopping or self._outage.holds)
        self.intake.gather(now, accepting=accepting)
        # What is being re-encoded must not be taken for an orphan.
        if not self.stopping and self.orphans_adopted:
            self.rework.gather(now)
        if self.alarms.stands(KEY_MADE_ANEW):
            self._tell_of_key()
        self.dispatch.gather(now)
        profile = self.sender.profile
        if profile is not None and (self.proof.rules is None or self.proof.rules.profile != profile):
            self.proof.rules = replace(wiring.rules_of(self.config, profile), jump=self.wall.jump)
        if not self.stopping:
            self.elsewhere.gather(now)
            self.proof.gather(now)

    def _tells_gone(self, place: str) -> bool:
        """Whether a file that is not found is gone, and not the folder or the spool that it lay in."""
        return self.inboxes.tells_gone(place) and self.spool.tells_gone(place)

    def _has_work(self) -> bool:
        return (
            bool(self.orphans.nameless)
            or self.intake.has_work
            or self.dispatch.has_work
            or self.proof.has_work
            or self.rework.has_work
            or self.going_back.has_work
            or self.housekeeping.has_work
            or self.elsewhere.has_work
            or self.alarms.has_work
            or self.wall.has_work
        )

    def _record(self, now: Now, *, claim: bool, woken: bool) -> None:
        with self.ledger.transaction() as tx:
            self.wall.record(tx)
            if woken:
                moves.wake(tx, now=now.utc)
            # Before the intake, which may put the same files down anew.
            moves.drop_candidates(tx, self.orphans.nameless)
            self.intake.record(tx, now)
            self.rework.record(tx, now)
            self.proof.record(tx, now)
            self.going_back.record(tx, now)
            self.housekeeping.record(tx, now)
            self.elsewhere.record(tx, now)
            # A claim sees everything that this tick has settled.
            self.dispatch.record(tx, now, claim=claim)
            self.alarms.record(tx)

    def _committed(self, now: Now) -> None:
        self._outage.passed(now.mono, wrote=self.ledger.wrote)
        self.orphans.nameless = []
        self.alarms.committed()
        self.wall.committed()
        self.intake.committed(now)
        self.rework.committed()
        self.proof.committed()
        self.going_back.committed()
        self.housekeeping.committed()
        self.elsewhere.committed()
        if self.intake.copied:
            self.intake.copied = False
            self.housekeeping.hurry()
        if self.dispatch.committed():
            self.proof.expect()
            self.rework.hurry()

    def _next_at(self, now: Now) -> float:
        times = [self.housekeeping.next_at]
        asked = [self.intake.look_at, self.dispatch.next_at(now)]
        if not self.stopping:
            # Nothing else is taken up while stopping, and what nobody serves must not count as due.
            asked.append(self.proof.next_at(now))
            if self.orphans_adopted:
                asked.append(self.rework.next_at)
        times += [at for at in asked if at is not None]
        wake_at = queries.next_wake_at(self.ledger, now=now.utc)
        if wake_at is not None:
            times.append(now.mono + max(0.0, (wake_at - now.utc).total_seconds()))
        if self.intake.has_work:
            times.append(now.mono)
        if not self.stopping:
            times.append(self.orphans.next_at(now))
        return min(times)


def _opened(config: Config) -> tuple[Spool, Ledger]:
    spool = Spool(config.spool.path)
    spool.lock()
    try:
        ledger = Ledger.open(
            config.ledger,
            host=spool.host,
            destination=config.destination.url,
            spool=spool.path,
            limits=wiring.limits_of(config),
            longest=wiring.longest_waits_of(config),
        )
    except BaseException:
        spool.unlock()
        raise
    return spool, ledger
