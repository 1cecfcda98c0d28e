"""What serves one destination: the workers that talk to it, and the stages that turn on them.

There is one ``ServerStages`` for each destination, on the ledger as that one has it. What they share is the spool's:
readers, gates, alarms, and how far the run has come. One that is away holds up nothing of another; its own gate holds
the removals of what rests on it (``daemon.retention.Looks``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path

import structlog
from structlog.typing import FilteringBoundLogger

from ingestd.clocks import Clock
from ingestd.config import Config, Destination
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.assignment import Assignment
from ingestd.daemon.feed_reading import FeedReading
from ingestd.daemon.holder_comparison import HolderComparison
from ingestd.daemon.posting import Posting
from ingestd.daemon.reach import Reach
from ingestd.daemon.reader_client import ReaderClient
from ingestd.daemon.server_copies import ServerCopies
from ingestd.daemon.server_questions import ServerQuestions
from ingestd.daemon.server_rollback import ServerRollback
from ingestd.daemon.settings import (
    backoff_of,
    client_of,
    file_meta_of,
    limits_of,
    most_bytes_of,
    most_posts_of,
    profile_from,
    rules_of,
)
from ingestd.daemon.spool_disk import SpoolDisk
from ingestd.daemon.stage import Gate, Gates, RunProgress, Stage
from ingestd.daemon.trust import Trust
from ingestd.daemon.verification import Verification
from ingestd.daemon.wallclock import WallClock
from ingestd.dicomweb import DicomWebClient
from ingestd.ledger import Ledger
from ingestd.reconciler import Reconciler
from ingestd.sender import Sender


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerWorkers:
    """What talks to one server."""

    client: DicomWebClient
    sender: Sender
    reconciler: Reconciler

    def is_healthy(self) -> bool:
        return self.sender.is_healthy() and self.reconciler.is_healthy()

    def close(self) -> None:
        """Let go of it; safe at any moment, since every durable step came before the act it guards."""
        self.sender.close(timedelta(0))
        self.reconciler.close(timedelta(0))
        self.client.close()


def server_workers_of(
    destination: Destination, *, batch_bytes: int, scratch: Path, clock: Clock, wake: Callable[[], None]
) -> ServerWorkers:
    """Start what talks to this destination; raises NoThread, and none runs then."""
    with ExitStack() as undo:
        client = client_of(destination)
        undo.callback(client.close)
        sender = Sender(
            client,
            profile=profile_from(destination),
            wake=wake,
            utc_now=clock.utc,
            most_posts=most_posts_of(destination, batch_bytes),
            reencode_refused=destination.implicit_vr == "fallback",
            file_meta=file_meta_of,
        )
        undo.callback(sender.close, timedelta(0))
        reconciler = Reconciler(client, scratch=scratch, wake=wake, utc_now=clock.utc)
        undo.pop_all()
    return ServerWorkers(client=client, sender=sender, reconciler=reconciler)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """What all destinations share; the callables say of a place whether its file is gone, and not what it lay in."""

    gates: Gates
    progress: RunProgress
    alarms: Alarms
    wall: WallClock
    reader_client: ReaderClient
    disk: SpoolDisk
    assignment: Assignment
    tells_gone: Callable[[str], bool]
    is_lost: Callable[[str], bool]


class ServerStages:
    """The stages of one destination; each is made once, when it is first asked for."""

    def __init__(
        self,
        config: Config,
        destination: Destination,
        *,
        ledger: Ledger,
        workers: ServerWorkers,
        shared: Shared,
        gives_way: Callable[[], bool],
        reach: Reach,
        whose: str,
    ) -> None:
        """``ledger`` is the one that this destination has; ``whose`` its name, "" where it is the only one.

        ``gives_way`` as for Posting.
        """
        self._config = config
        self._destination = destination
        self._ledger = ledger
        self._workers = workers
        self._shared = shared
        self._gives_way = gives_way
        self._reach = reach
        self._backoff = backoff_of(config)
        self.alarms = shared.alarms.of(whose)
        # Each line says whose it is.
        self._log: FilteringBoundLogger = structlog.get_logger(**({"destination": whose} if whose else {}))
        # Of the files that rest on this server.
        self.removals = Gate()

    @property
    def asking(self) -> tuple[Stage, ...]:
        """Whatever asks the server, in the order in which it writes."""
        return (
            self.server_questions,
            self.feed_reading,  # all else is judged by what the feed has shown
            self.server_copies,
            self.holder_comparison,
            self.verification,
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
            claims=self._shared.gates.claims,
            window=None if self._shared.progress.is_single else self._destination.hours,
            most_bytes=most_bytes_of(self._destination),
            progress=self._shared.progress,
            gives_way=self._gives_way,
            reach=self._reach,
            tells_gone=self._shared.tells_gone,
            assignment=self._shared.assignment,
            log=self._log,
        )

    @cached_property
    def server_questions(self) -> ServerQuestions:
        return ServerQuestions(
            reconciler=self._workers.reconciler,
            alarms=self.alarms,
            wall=self._shared.wall,
            rules_of=partial(rules_of, self._config, self._destination),
            profile=lambda: self._workers.sender.profile,
            longest_wait=self._backoff.cap,
            reach=self._reach,
        )

    @cached_property
    def feed_reading(self) -> FeedReading:
        return FeedReading(
            questions=self.server_questions,
            ledger=self._ledger,
            alarms=self.alarms,
            progress=self._shared.progress,
            removals=self.removals,
            posts_written=lambda: self.posting.results_written,
            no_post_is_out=lambda: self.posting.is_idle,
            rows_are_left=lambda: self.verification.more_rows,
            others_post=lambda: self._shared.assignment.workers > 1,
            interval=self._config.reconcile.interval,
            lag=self._config.reconcile.lag,
            log=self._log,
        )

    @cached_property
    def server_copies(self) -> ServerCopies:
        return ServerCopies(self.server_questions, self._ledger)

    @cached_property
    def holder_comparison(self) -> HolderComparison:
        return HolderComparison(
            ledger=self._ledger,
            reader_client=self._shared.reader_client,
            copies=self.server_copies,
            alarms=self.alarms,
            is_lost=self._shared.is_lost,
            log=self._log,
        )

    @cached_property
    def verification(self) -> Verification:
        return Verification(
            questions=self.server_questions,
            reader_client=self._shared.reader_client,
            ledger=self._ledger,
            posting=self.posting,
            trust=Trust(
                ledger=self._ledger,
                alarms=self.alarms,
                removals=self.removals,
                sample=self._config.reconcile.sample,
                grace=self._config.reconcile.grace,
            ),
            others_wait=lambda: not self.server_copies.is_idle,
            is_lost=self._shared.is_lost,
            interval=self._config.reconcile.interval,
            backoff=self._backoff,
            log=self._log,
        )

    @cached_property
    def server_rollback(self) -> ServerRollback:
        return ServerRollback(
            ledger=self._ledger,
            alarms=self.alarms,
            removals=self.removals,
            disk=self._shared.disk,
            questions=self.server_questions,
            feed=self.feed_reading,
            retain=self._config.spool.retain,
        )
