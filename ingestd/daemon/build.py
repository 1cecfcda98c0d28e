"""What a daemon is made of: the workers beside the loop, and the stages that it turns.

``workers_of`` starts what works beside the loop, ``Stages`` joins the stages in the order in which they write.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial

from ingestd.clocks import utc_now
from ingestd.config import Config
from ingestd.daemon.admission import Admission
from ingestd.daemon.alarms import Alarms, KeyAlarm
from ingestd.daemon.feed_reading import FeedReading
from ingestd.daemon.inbox_reports import InboxReports
from ingestd.daemon.mover import Mover
from ingestd.daemon.orphans import Orphans
from ingestd.daemon.posting import Posting
from ingestd.daemon.reader_client import ReaderClient
from ingestd.daemon.rereads import Rereads
from ingestd.daemon.retention import Retention
from ingestd.daemon.server_copies import ServerCopies
from ingestd.daemon.server_questions import ServerQuestions
from ingestd.daemon.server_rollback import ServerRollback
from ingestd.daemon.settings import (
    backoff_of,
    client_of,
    file_meta_of,
    limits_of,
    profile_from,
    reader_limits_of,
    rules_of,
)
from ingestd.daemon.source_removal import SourceRemoval
from ingestd.daemon.spool_disk import SpoolDisk
from ingestd.daemon.stage import Gates, RunProgress, Stage
from ingestd.daemon.steps import Origin
from ingestd.daemon.takeover import Takeover
from ingestd.daemon.trust import Trust
from ingestd.daemon.verification import Verification
from ingestd.daemon.wallclock import WallClock
from ingestd.dicomweb import DicomWebClient
from ingestd.fs.places import is_gone
from ingestd.inbox import Inboxes, InboxPolicy, Spool
from ingestd.ledger import Ledger
from ingestd.reader import ReaderPool, Readers
from ingestd.reconciler import Reconciler
from ingestd.sender import Sender


@dataclass(frozen=True, kw_only=True, slots=True)
class DaemonWorkers:
    """What works beside the loop: processes and threads that only wake it."""

    inboxes: Inboxes
    client: DicomWebClient
    readers: Readers
    sender: Sender
    reconciler: Reconciler
    mover: Mover[int]

    def are_healthy(self) -> bool:
        rooms = (self.readers, self.inboxes, self.mover, self.sender, self.reconciler)
        return all(room.is_healthy() for room in rooms)

    def close(self) -> None:
        """Let go of everything; safe at any moment, since every durable step came before the act it guards."""
        self.inboxes.close()
        self.mover.close(5.0)
        self.sender.close(timedelta(0))
        self.reconciler.close(timedelta(0))
        self.readers.close()
        self.client.close()


def workers_of(
    config: Config, *, policies: tuple[InboxPolicy, ...], spool: Spool, wake: Callable[[], None]
) -> DaemonWorkers:
    """Start the workers. Raises ValueError for inboxes that cannot be used together, and NoThread; none runs then."""
    with ExitStack() as undo:
        inboxes = Inboxes(policies, spool=spool.path, wake=wake)
        undo.callback(inboxes.close)
        client = client_of(config)
        undo.callback(client.close)
        readers = ReaderPool(processes=config.reader.processes, limits=reader_limits_of(config), wake=wake)
        undo.callback(readers.close)
        sender = Sender(
            client,
            profile=profile_from(config),
            wake=wake,
            utc_now=utc_now,
            most_posts=config.destination.max_posts,
            reencode_refused=config.destination.implicit_vr == "fallback",
            file_meta=file_meta_of,
        )
        undo.callback(sender.close, timedelta(0))
        reconciler = Reconciler(client, scratch=spool.scratch(), wake=wake, utc_now=utc_now)
        undo.callback(reconciler.close, timedelta(0))
        mover: Mover[int] = Mover(spool, wake=wake)
        undo.pop_all()
    return DaemonWorkers(
        inboxes=inboxes, client=client, readers=readers, sender=sender, reconciler=reconciler, mover=mover
    )


class Stages:
    """Every stage of a daemon; each is made once, when it is first asked for, of what its constructor needs."""

    def __init__(
        self,
        config: Config,
        *,
        policies: tuple[InboxPolicy, ...],
        spool: Spool,
        ledger: Ledger,
        workers: DaemonWorkers,
        gates: Gates,
        progress: RunProgress,
    ) -> None:
        self._config = config
        self._policies = policies
        self._spool = spool
        self._ledger = ledger
        self._workers = workers
        self._gates = gates
        self._progress = progress
        self._backoff = backoff_of(config)

    @cached_property
    def all(self) -> tuple[Stage, ...]:
        """The list for the loop, in the order in which they write."""
        return (
            self.wall,
            self.reader_client,
            self.key,
            self.disk,
            self.orphans,
            self.admission,
            self.rereads,
            self.server_questions,
            self.feed_reading,  # all else is judged by what the feed has shown
            self.server_copies,
            self.verification,
            self.server_rollback,
            self.retention,
            self.source_removal,
            self.reports,
            self.takeover,
            self.posting,  # a claim sees everything that this tick has settled
            self.alarms,
        )

    def _tells_gone(self, place: str) -> bool:
        """Whether a file that is not found is gone, and not the folder or the spool that it lay in."""
        return self._workers.inboxes.tells_gone(place) and self._spool.tells_gone(place)

    def _is_lost(self, place: str) -> bool:
        """Whether there is no file any more, for certain: it is not there, and what it lay in is."""
        return is_gone(place) and self._tells_gone(place)

    @cached_property
    def alarms(self) -> Alarms:
        return Alarms()

    @cached_property
    def wall(self) -> WallClock:
        return WallClock(self._ledger)

    @cached_property
    def reader_client(self) -> ReaderClient:
        return ReaderClient(self._workers.readers, self.alarms)

    @cached_property
    def key(self) -> KeyAlarm:
        return KeyAlarm(self._ledger, self.alarms)

    @cached_property
    def disk(self) -> SpoolDisk:
        low_water = self._config.spool.low_water
        return SpoolDisk(spool=self._spool, gates=self._gates, alarms=self.alarms, low_water=low_water)

    @cached_property
    def orphans(self) -> Orphans:
        return Orphans(
            ledger=self._ledger,
            spool=self._spool,
            inboxes=self._workers.inboxes,
            admission=self.admission,
            disk=self.disk,
            gates=self._gates,
            alarms=self.alarms,
        )

    @cached_property
    def admission(self) -> Admission:
        return Admission(
            inboxes=self._workers.inboxes,
            spool=self._spool,
            mover=self._workers.mover,
            reader_client=self.reader_client,
            ledger=self._ledger,
            gate=self._gates.intake,
            on_copied=self.source_removal.hurry,
            fetch=self.server_copies.fetch,
            is_lost=self._is_lost,
        )

    @cached_property
    def rereads(self) -> Rereads:
        return Rereads(
            ledger=self._ledger,
            reader_client=self.reader_client,
            spool=self._spool,
            admission=self.admission,
            gate=self._gates.rereads,
            posting=self.posting,
            is_lost=self._is_lost,
            alarms=self.alarms,
        )

    @cached_property
    def posting(self) -> Posting:
        return Posting(
            sender=self._workers.sender,
            ledger=self._ledger,
            limits=limits_of(self._config),
            backoff=self._backoff,
            most_attempts=self._config.retry.max_attempts,
            alarms=self.alarms,
            claims=self._gates.claims,
            progress=self._progress,
            tells_gone=self._tells_gone,
        )

    @cached_property
    def server_questions(self) -> ServerQuestions:
        return ServerQuestions(
            reconciler=self._workers.reconciler,
            alarms=self.alarms,
            wall=self.wall,
            rules_of=partial(rules_of, self._config),
            profile=lambda: self._workers.sender.profile,
            longest_wait=self._backoff.cap,
        )

    @cached_property
    def feed_reading(self) -> FeedReading:
        return FeedReading(
            questions=self.server_questions,
            ledger=self._ledger,
            alarms=self.alarms,
            progress=self._progress,
            removals=self._gates.removals,
            posts_written=lambda: self.posting.results_written,
            rows_are_left=lambda: self.verification.more_rows,
            interval=self._config.reconcile.interval,
            lag=self._config.reconcile.lag,
        )

    @cached_property
    def server_copies(self) -> ServerCopies:
        return ServerCopies(self.server_questions, self._ledger)

    @cached_property
    def verification(self) -> Verification:
        return Verification(
            questions=self.server_questions,
            reader_client=self.reader_client,
            ledger=self._ledger,
            posting=self.posting,
            trust=Trust(
                ledger=self._ledger,
                alarms=self.alarms,
                removals=self._gates.removals,
                sample=self._config.reconcile.sample,
                grace=self._config.reconcile.grace,
            ),
            others_wait=lambda: not self.server_copies.is_idle,
            is_lost=self._is_lost,
            interval=self._config.reconcile.interval,
            backoff=self._backoff,
        )

    @cached_property
    def server_rollback(self) -> ServerRollback:
        return ServerRollback(
            ledger=self._ledger,
            alarms=self.alarms,
            removals=self._gates.removals,
            disk=self.disk,
            questions=self.server_questions,
            feed=self.feed_reading,
            retain=self._config.spool.retain,
        )

    @cached_property
    def retention(self) -> Retention:
        return Retention(
            ledger=self._ledger,
            spool=self._spool,
            reader_client=self.reader_client,
            adopt=lambda candidate: self.admission.adopt(candidate, Origin(adopted=True)),
            wall=self.wall,
            gate=self._gates.removals,
            disk=self.disk,
            retain=self._config.spool.retain,
            up_to=lambda: self.server_rollback.up_to,
        )

    @cached_property
    def source_removal(self) -> SourceRemoval:
        return SourceRemoval(
            ledger=self._ledger,
            inboxes=self._workers.inboxes,
            mover=self._workers.mover,
            policies=self._policies,
            alarms=self.alarms,
        )

    @cached_property
    def reports(self) -> InboxReports:
        return InboxReports(inboxes=self._workers.inboxes, policies=self._policies, alarms=self.alarms)

    @cached_property
    def takeover(self) -> Takeover:
        return Takeover(self._ledger)
