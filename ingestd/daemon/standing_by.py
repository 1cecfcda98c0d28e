"""Waits for a spool on which another worker works, and goes on in its place where that one ended, or fell silent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

import structlog

from ingestd.clocks import read_clocks
from ingestd.config import Config, agreement_of
from ingestd.daemon.daemon import spool_of
from ingestd.daemon.loop import Wake
from ingestd.daemon.notify import Notifier
from ingestd.daemon.outage import Outage
from ingestd.daemon.signals import Signals
from ingestd.daemon.spool_view import SpoolView
from ingestd.ledger import LedgerBusy, LedgerDiffers, LedgerFull, LedgerUnread, Writer, stand_by

if TYPE_CHECKING:
    from ingestd.ledger import StandingBy

_LOOK_EVERY_SECONDS = 1.0
_REREAD_EVERY_SECONDS = 5.0


def wait_for_turn(
    config: Config, wake: Wake, signals: Signals, notifier: Notifier, has_changed: Callable[[], bool]
) -> Writer | None:
    """Stand by until nobody works on the spool; None: a signal came before. Raises LedgerError, SpoolError.

    A ledger that is away is waited for: who cannot see it can neither work nor take over. So is the spool. Where our
    configuration is not what the others agreed upon, it is read anew (as by a signal) once the file says otherwise.
    """
    outage = Outage(structlog.get_logger(), config.ledger_name)
    spool, agreement = spool_of(config), agreement_of(config)
    with closing(SpoolView(spool, wake)) as view:
        while signals.asked is None:
            try:
                with stand_by(config.ledger, host=spool.host, lease=config.lease, agreement=agreement) as standing:
                    return _Watch(standing, view, config, outage, notifier, has_changed).wait(wake, signals)
            except (LedgerBusy, LedgerFull, LedgerUnread) as error:
                now = read_clocks().mono
                notifier.waiting()
                wake.wait(outage.failed(error, now) - now)
    return None


class _Watch:
    def __init__(
        self,
        standing: StandingBy,
        view: SpoolView,
        config: Config,
        outage: Outage,
        notifier: Notifier,
        has_changed: Callable[[], bool],
    ) -> None:
        self._standing = standing
        self._view = view
        self._outage = outage
        self._notifier = notifier
        self._every = min(_LOOK_EVERY_SECONDS, config.lease.total_seconds() / 10)
        self._has_changed = has_changed
        self._look_at_file_at = 0.0
        self._differs = False
        self._told: object = None

    def wait(self, wake: Wake, signals: Signals) -> Writer | None:
        while signals.asked is None:
            now = read_clocks().mono
            self._view.others = self._standing.at_work()
            self._view.look(now)
            if self._is_our_turn(now):
                return self._standing.writer()
            if self._differs and now >= self._look_at_file_at:
                self._look_at_file_at = now + _REREAD_EVERY_SECONDS
                if self._has_changed():
                    signals.reload()
                    return None
            self._outage.passed(now, wrote=True)
            self._notifier.alive()
            wake.wait(self._every)
        return None

    def _is_our_turn(self, now: float) -> bool:
        try:
            holder = self._standing.look(now, bars=self._view.bars)
        except LedgerDiffers as error:
            self._differs = True
            self._tell(error.sections, f"standing by, and not taking over: {error}")
            return False
        self._differs = False
        if holder is not None:
            who = f"worker {holder.id} works, process {holder.pid} on {holder.machine}"
            self._tell(holder.id, f"standing by: {who}")
            return False
        if trouble := self._view.trouble:
            self._tell(trouble, f"standing by, and not taking over: {trouble}")
        return trouble == ""

    def _tell(self, what: int | str | tuple[str, ...], status: str) -> None:
        if what == self._told:
            return
        self._told = what
        log = structlog.get_logger()
        if isinstance(what, int):
            log.info("daemon.stands_by", worker=what)
        elif isinstance(what, tuple):
            log.error("config.differs", notes=list(what))
        else:
            log.error("daemon.does_not_take_over", note=what)
        self._notifier.ready(status)
