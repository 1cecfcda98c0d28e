"""``run --once`` and ``send``: take in what is there, send it, see it proven, and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from math import inf
from pathlib import Path

import structlog

from ingestd.clocks import read_clocks
from ingestd.config import Config, agreement_of
from ingestd.daemon.daemon import Daemon, spool_of
from ingestd.daemon.loop import Wake
from ingestd.daemon.sending import not_taken_in, send_known
from ingestd.daemon.server_rollback import ServerRollback
from ingestd.daemon.settings import routing_to
from ingestd.daemon.signals import Asked, Signals, set_up_interpreter
from ingestd.inbox import InboxPolicy
from ingestd.ledger import Alarm, LedgerHeld, Writer, queries

# At its end a single run looks at the server no longer than this, for the files that may go.
_LET_GO_SECONDS = 5.0
# A single run goes on for so long while no reader can be started; memory may come back.
_NO_READER_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class OnceResult:
    """What ``run --once`` came to. ``done``: everything it waited for is settled; ``stopped``: a signal ended it.

    ``left`` are the paths of files that could be neither read nor moved, ``not_taken_in`` those that a person named and
    of which nothing was taken, ``alarms`` what stood in the way at the end.
    """

    done: bool
    stopped: bool
    last_event_before: int
    taken_in: int
    unfinished: int
    left: tuple[str, ...] = ()
    not_taken_in: tuple[str, ...] = ()
    alarms: tuple[Alarm, ...] = ()


class _SingleRun:
    """How far a run has come."""

    def __init__(self, daemon: Daemon, signals: Signals, watch: Callable[[Daemon], None] | None) -> None:
        self._daemon = daemon
        self._signals = signals
        self._watch = watch
        self._since = read_clocks().mono
        self._readers_until = inf
        self.is_done = False

    def is_over(self) -> bool:
        """Look how far it has come; say whether it is done, or has to end before it is."""
        if self._watch is not None:
            self._watch(self._daemon)
        if self._daemon.stages.admission.is_held:
            self._daemon.ledger.expect_agreement(agreement_of(self._daemon.config))
        stages, progress = self._daemon.stages, self._daemon.progress
        flushed = progress.flushes
        progress.flushes = (
            stages.admission.is_idle
            and stages.orphans.are_adopted
            and self._daemon.workers.inboxes.is_drained(self._since)
        )
        if progress.flushes and not flushed:
            # The tick before knew nothing of it, and said when to wake by the quiet period and the next scan.
            self._daemon.wake()
        # A look at the server for files that may go is no part of what is waited for: `_let_go` gives it its time.
        is_idle = all(stage.is_idle for stage in stages.all if not isinstance(stage, ServerRollback))
        self.is_done = progress.flushes and is_idle and queries.unfinished(self._daemon.ledger) == 0
        now = read_clocks().mono
        # Without readers nothing more is taken in, and a person waits.
        has_readers = not self._daemon.workers.readers.trouble
        self._readers_until = inf if has_readers else min(self._readers_until, now + _NO_READER_SECONDS)
        return self.is_done or self._signals.asked is Asked.STOP or now >= self._readers_until


def run_once(
    config: Config,
    *,
    timeout: timedelta,
    policies: tuple[InboxPolicy, ...] | None = None,
    named: Sequence[Path] = (),
    to: Sequence[str] = (),
    watch: Callable[[Daemon], None] | None = None,
) -> OnceResult:
    """Take in what lies in the inboxes, send it, see it proven, and end; at most ``timeout``.

    A person asks for it now: no window holds it, a rate does.
    Waits for the rows that were waiting at the start and for what it takes in itself. The quiet period is ignored
    after the inboxes are drained. ``named`` are the paths that a person gave, ``to`` the destinations that they are
    for, whatever the rules say: what was sent from there elsewhere goes to these as well. ``watch`` is called after
    each tick, for a progress bar.
    Raises SpoolInUse, SpoolError and LedgerError at the start, and LedgerDiffers where another configuration comes to
    hold meanwhile.
    """
    set_up_interpreter()
    wake = Wake()
    signals = Signals(wake)
    with signals.caught():
        routing = routing_to(to) if to else None
        begun = partial(Daemon, config, policies=policies, wake=wake, routing=routing, is_single=True)
        try:
            daemon = begun()
        except LedgerHeld as held:
            daemon = begun(writer=_after(held, config, wake, signals, at_most=timeout))
        try:
            before = queries.last_event_id(daemon.ledger)
            if to:
                send_known(daemon.ledger, policies or (), named, to, agreement_of(config))
            daemon.start()
            run = _SingleRun(daemon, signals, watch)
            deadline = read_clocks().mono + timeout.total_seconds()
            daemon.loop.run_until(run.is_over, deadline=deadline)
            _let_go(daemon, min(deadline, read_clocks().mono + _LET_GO_SECONDS))
            unfinished = queries.unfinished(daemon.ledger)
            nothing_of = not_taken_in(daemon.ledger, policies or (), named) if run.is_done else ()
            left, alarms = tuple(daemon.workers.inboxes.barred()), daemon.stages.alarms.standing
        except BaseException:
            daemon.close()
            raise
        taken_in = daemon.stages.admission.taken_in
        daemon.stop(config.shutdown_grace)
    return OnceResult(
        done=run.is_done,
        stopped=signals.asked is Asked.STOP and not run.is_done,
        last_event_before=before,
        taken_in=taken_in,
        unfinished=unfinished,
        left=left,
        not_taken_in=nothing_of,
        alarms=alarms,
    )


def _after(held: LedgerHeld, config: Config, wake: Wake, signals: Signals, *, at_most: timedelta) -> Writer:
    """Wait for as long as whoever is in the way has to be seen silent; raises ``held`` where one of them lives."""
    lease = max((each.lease for each in held.silent), default=at_most)
    if lease >= at_most:
        raise held
    for each in held.silent:
        structlog.get_logger().warning("daemon.stands_by", worker=each.id)
    ends_at = read_clocks().mono + lease.total_seconds()
    while (left := ends_at - read_clocks().mono) > 0:
        if signals.asked is Asked.STOP:
            raise held
        wake.wait(left)
    return Writer(spool_of(config).host, lease=config.lease, ends=held.silent)


def _let_go(daemon: Daemon, deadline: float) -> None:
    """Remove what may go before the end; the server is looked at for it no longer than until then (``Now.mono``)."""
    stages = daemon.stages

    rollbacks = [server.server_rollback for server in stages.servers.values()]

    def is_looked_at() -> bool:
        busy = [rollback for rollback in rollbacks if not rollback.is_idle]
        for rollback in busy:
            rollback.hurry()
        return not busy

    for rollback in rollbacks:
        rollback.hurry()
    daemon.loop.run_until(is_looked_at, deadline=deadline)
    stages.retention.hurry()
    stages.reports.hurry()
    stages.source_removal.hurry_to_the_end()
    daemon.loop.run_until(lambda: stages.retention.is_tidy and stages.source_removal.is_tidy, deadline=deadline)
