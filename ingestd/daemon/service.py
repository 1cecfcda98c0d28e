"""``ingestd run``: the loop under signals and systemd, until it is told to stop.

SIGTERM and SIGINT drain; SIGHUP rereads the configuration, which is refused whole if it is wrong, and starts the rooms
anew with it (posts in flight are finished first, however long they take). systemd hears READY after the first look into
every inbox, and WATCHDOG only while every worker makes progress.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf

import structlog

import ingestd
from ingestd import logs
from ingestd.clocks import read_clocks
from ingestd.config import Config, ConfigError, agreement_of
from ingestd.daemon.daemon import Daemon
from ingestd.daemon.loop import IDLE_SECONDS, Wake
from ingestd.daemon.notify import Notifier
from ingestd.daemon.outage import AWAY, Outage
from ingestd.daemon.signals import Asked, Signals, set_up_interpreter
from ingestd.daemon.spool_view import GivesBack
from ingestd.daemon.standing_by import wait_for_turn
from ingestd.inbox import SpoolError
from ingestd.ledger import (
    Agreement,
    Ledger,
    LedgerBusy,
    LedgerDiffers,
    LedgerError,
    LedgerHeld,
    LedgerUnread,
    queries,
)

_STATUS_EVERY_SECONDS = 10.0
# Posts that take longer than this to end are told of where all else waits for them.
_POSTS_LONG_SECONDS = 60.0
_AWAITED = (
    "what is being sent has to end before the configuration that was read anew, or the part of the work that another"
    " worker has now, is gone on with; until then nothing else is sent from here"
)
_AWAITED_STEP = "none is needed: it goes on by itself; a restart cuts what is being sent off, which is sent again later"


def run_forever(config: Config, *, reread: Callable[[], Config], adopt: Callable[[Config], object]) -> None:
    """Run the daemon until SIGTERM or SIGINT; ``reread`` loads the configuration again on SIGHUP.

    ``adopt`` is called with one that was not refused: what it says of the log holds from then on.

    Raises SpoolInUse, SpoolError and LedgerError at the start, and SpoolError where it ends for another one to go on.
    """
    set_up_interpreter()
    notifier = Notifier()
    wake = Wake()
    signals = Signals(wake)
    log = structlog.get_logger()
    with signals.caught():
        daemon = _started(config, wake, signals, notifier, reread, adopt)
        if daemon is None:
            return
        while True:
            try:
                log.info("daemon.started", version=ingestd.__version__, inboxes=len(daemon.config.inboxes))
                service = _Service(daemon, signals, notifier, reread=reread, adopt=adopt)
                daemon.loop.run_until(service.is_over)
            except BaseException:
                daemon.close()
                raise
            following = service.following
            if service.differs:
                daemon.stop(daemon.config.shutdown_grace)
                signals.reload()  # what could not be followed while it worked may be, where nothing is served yet
                if (again := _started(daemon.config, wake, signals, notifier, reread, adopt)) is None:
                    return
                daemon = again
                continue
            if following is None:
                notifier.stopping()
                log.info("daemon.stopping")
                daemon.stop(daemon.config.shutdown_grace)
                log.info("daemon.stopped")
                if service.has_given_back:
                    raise SpoolError(
                        "something has been wrong with the spool here for a lease, and another worker sees it well:"
                        " that one goes on; started again, this one stands by until it does"
                    )
                return
            daemon.stop(daemon.config.shutdown_grace, hand_over=True)
            daemon = following
            if not _has_taken_over(daemon, signals, notifier):
                log.info("daemon.stopped")
                return


def _started(
    config: Config,
    wake: Wake,
    signals: Signals,
    notifier: Notifier,
    reread: Callable[[], Config],
    adopt: Callable[[Config], object],
) -> Daemon | None:
    """Build and start the daemon; where its ledger is away for a while, wait for it as a running one does.

    Where another works on the spool, stand by until it is over with that. None where it was told to stop meanwhile.
    """
    outage = Outage(structlog.get_logger(), config.ledger_name)
    seen = agreement_of(config)

    def has_changed() -> bool:
        nonlocal seen
        before = seen
        with suppress(ConfigError):  # half written; `ingestd check` names each problem
            seen = agreement_of(reread())
        return seen != before

    while signals.asked is not Asked.STOP:
        if signals.asked is Asked.RELOAD and config.ledger_file is None:
            signals.asked = None
            try:
                config = _reread(reread, adopt, config, serves=False)
            except _RefusedError as refused:
                refused.log()
        writer = None
        try:
            if config.ledger_file is None:
                writer = wait_for_turn(config, wake, signals, notifier, has_changed)
                if writer is None:
                    continue
            daemon = Daemon(config, wake=wake, tell=notifier.starting, writer=writer)
            _start(daemon)
        except (LedgerHeld, LedgerDiffers):
            continue  # another one that stood by was faster, or said just now what has to be alike
        except (LedgerUnread, LedgerBusy) as error:
            if config.ledger_file is not None and not isinstance(error, LedgerUnread):
                raise  # another process has the file, and a person is to see to it
            now = read_clocks().mono
            notifier.waiting()
            wake.wait(outage.failed(error, now) - now)
        else:
            return daemon
    return None


def _has_taken_over(daemon: Daemon, signals: Signals, notifier: Notifier) -> bool:
    """Start a daemon in the place of another; while the ledger fails, wait for it as a running one does.

    False where it was told to stop meanwhile, and is closed.
    """
    outage = Outage(structlog.get_logger(), daemon.ledger.name, daemon.spool.tell)
    try:
        while signals.asked is not Asked.STOP:
            try:
                daemon.start()
            except LedgerError as error:
                now = read_clocks().mono
                daemon.wake.wait(outage.failed(error, now) - now)
                notifier.alive()
            else:
                return True
    except BaseException:
        daemon.close()
        raise
    daemon.close()
    return False


def _start(daemon: Daemon) -> None:
    try:
        daemon.start()
    except BaseException:
        daemon.close()
        raise


def tell_crash() -> None:
    """Put the exception that is ending the daemon into the log: its class and its place in the code."""
    structlog.get_logger().exception("daemon.crashed")


class _Service:
    """A daemon under signals and the service manager."""

    def __init__(
        self,
        daemon: Daemon,
        signals: Signals,
        notifier: Notifier,
        *,
        reread: Callable[[], Config],
        adopt: Callable[[Config], object],
    ) -> None:
        self._daemon = daemon
        self._signals = signals
        self._notifier = notifier
        self._reread = reread
        self._adopt = adopt
        self._gives_back = GivesBack(daemon.ledger, daemon.stages.disk, lease=daemon.config.lease)
        self.has_given_back = False
        self._agreement = agreement_of(daemon.config)
        self._reread_for: Agreement | None = None  # what all agreed upon when our configuration was read again for it
        self.differs = False  # it is another still: we stand by
        self._is_ready = False
        self._none_follows_at = read_clocks().mono
        self._alive_at = self._status_at = 0.0
        self._interval = notifier.watchdog_interval.total_seconds() if notifier.watchdog_interval else inf
        daemon.loop.idle_seconds = min(IDLE_SECONDS, self._interval)
        self.following: Daemon | None = None  # takes this one's place, with a new configuration or without the upkeep
        self._build_anew_at = 0.0  # one without the upkeep, where that is to be given (``Now.mono``)

    def is_over(self) -> bool:
        """After each tick: say how we are, hear the signals; whether it is to stop, or another stands ready."""
        self._say_how_we_are()
        self.has_given_back = self._gives_back.is_due(read_clocks().mono)
        self.differs = self.following is None and self._does_differ()
        if self._signals.asked is Asked.STOP or self.has_given_back or self.differs:
            self._drop_following()
            return True
        if self._signals.asked is Asked.RELOAD and not self._daemon.gates.intake.is_shut_by(AWAY):
            self._notifier.reloading()
            self._signals.asked = None
            self._drop_following()
            self.following = self._prepared(lambda: _reread(self._reread, self._adopt, self._daemon.config))
            self._daemon.gates.claims.set("reload", is_open=self.following is None)
        elif self._daemon.assignment.gives_upkeep and self.following is None:
            self._build_anew()
            self._daemon.gates.claims.set("reload", is_open=self.following is None)
        self._tell_of_posts()
        # A post that went on in this process would be asked about meanwhile, found absent, and sent a second time.
        return self.following is not None and self._daemon.stages.no_post_is_out and self._may_hand_over()

    def _tell_of_posts(self) -> None:
        """Say so where the posts that were under way take long: nothing else is sent until they have ended."""
        now = read_clocks().mono
        if self.following is None:
            self._none_follows_at = now
        is_long = now - self._none_follows_at > _POSTS_LONG_SECONDS
        self._daemon.stages.alarms.set("posts_awaited", note=_AWAITED if is_long else "", next_step=_AWAITED_STEP)

    def _does_differ(self) -> bool:
        """Whether others have agreed upon another configuration (`config adopt`), and ours is not that one, read anew.

        Nobody works by another beside them.
        """
        try:
            agreed = self._daemon.ledger.agreement()
        except LedgerError:
            return False  # the loop meets it, too
        if agreed is None or not agreed.differing(self._agreement):
            return False
        if self._reread_for == agreed:
            return self._signals.asked is not Asked.RELOAD  # where the ledger was away just then, that is still to come
        self._reread_for = agreed
        self._signals.reload()
        return False

    def _may_hand_over(self) -> bool:
        """Whether nothing was taken in meanwhile for a destination that the new configuration does not name."""
        assert self.following is not None, "somebody stands ready"
        try:
            self._daemon.ledger.expect_destinations(self.following.config.addresses)
        except (LedgerBusy, LedgerUnread):
            return False  # that passes
        except LedgerError as error:
            self._drop_following()
            self._tell(_refused_by(error))
            self._daemon.gates.claims.open("reload")
        return self.following is not None

    def _prepared(self, config: Callable[[], Config]) -> Daemon | None:
        """Build all rooms anew while the old ones still serve; None, and told, where that cannot be."""
        try:
            return _built(config(), self._daemon)
        except _RefusedError as refused:
            if refused.passes:
                self._notifier.ready("the ledger is away: the configuration is read again once it works")
                self._signals.reload()
            elif not self._does_differ():  # else we stand by, and that is told
                self._tell(refused)
            return None

    def _build_anew(self) -> None:
        """Build rooms that have nothing of the upkeep in hand; once a lease where that cannot be."""
        if (now := read_clocks().mono) < self._build_anew_at:
            return
        self._build_anew_at = now + self._daemon.config.lease.total_seconds()
        try:
            self.following = _built(self._daemon.config, self._daemon)
        except _RefusedError as refused:
            refused.log()

    def _tell(self, refused: _RefusedError) -> None:
        refused.log()
        of = f" of {os.uname().nodename}" if self._daemon.ledger.is_shared else ""
        self._daemon.stages.alarms.raise_(
            "config_refused",
            note=f"the changed configuration{of} was refused, and the former one holds: {refused.why}",
            next_step="mend it (`ingestd check` looks through all of it), or put the former one back; then reload"
            " ingestd",
        )
        self._notifier.ready("watching; the changed configuration was refused, see `ingestd status`")

    def _drop_following(self) -> None:
        if self.following is not None:
            self.following.close(hand_over=True)
            self.following, self._build_anew_at = None, 0.0

    def _say_how_we_are(self) -> None:
        now = read_clocks().mono
        if not self._is_ready:
            self._is_ready = True
            self._notifier.ready("watching")
        if now >= self._alive_at and self._daemon.workers.are_healthy():
            self._notifier.alive()
            self._alive_at = now + self._interval
        if now >= self._status_at:
            # A ledger that is busy has been told of by the loop.
            with suppress(LedgerError):
                self._notifier.status(_status_line(self._daemon.ledger))
            logs.catch_up()
            self._status_at = now + _STATUS_EVERY_SECONDS


class _RefusedError(Exception):
    """A changed configuration cannot hold; ``why`` quotes nothing of the file, ``sections`` are in the way.

    ``error`` is the class of what was raised; ``passes``: it may hold once the ledger works again.
    """

    def __init__(self, why: str, *, error: str, sections: Sequence[str] = (), passes: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.passes = passes
        self._error = error
        self._sections = sections

    def log(self) -> None:
        structlog.get_logger().error("config.refused", error=self._error, note=self.why, notes=list(self._sections))


def _reread(
    reread: Callable[[], Config], adopt: Callable[[Config], object], current: Config, *, serves: bool = True
) -> Config:
    """Read the configuration again; raises _RefusedError. Who stands by ``serves`` no destination yet."""
    try:
        config = reread()
    except ConfigError as error:
        problems = len(error.problems)
        why = f"it has {problems} {'problem' if problems == 1 else 'problems'}, which `ingestd check` names"
        raise _RefusedError(why, error=type(error).__name__) from None
    fixed = [
        name
        for name, before, after in (
            ("spool", current.spool.path, config.spool.path),
            ("ledger", current.ledger, config.ledger),
            ("destination", {}, _moved(current.addresses, config.addresses) if serves else {}),
        )
        if before != after
    ]
    if fixed:
        # Waiting files belong to this spool, this ledger, this destination: changing them takes a person and a restart.
        raise _RefusedError(f"another {' and '.join(fixed)} takes a restart", error="ConfigError", sections=fixed)
    adopt(config)
    structlog.get_logger().info("config.reread")
    return config


def _moved(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Say which names have another address than before, or which addresses another name; new ones may come."""
    known = {*before, *before.values()}
    return {name: url for name, url in now.items() if known & {name, url} and before.get(name) != url}


def _built(config: Config, before: Daemon) -> Daemon:
    """Build all rooms anew; raises _RefusedError where that cannot be."""
    try:
        return Daemon(config, wake=before.wake, before=before)
    except (ConfigError, ValueError, OSError, LedgerError) as error:
        raise _refused_by(error) from None


def _refused_by(error: Exception) -> _RefusedError:
    # The ledger's own sentence says what waits; what others say may quote the file.
    name = type(error).__name__
    why = str(error) if isinstance(error, LedgerError) else f"it cannot be followed ({name})"
    sections = error.sections if isinstance(error, LedgerDiffers) else ()
    return _RefusedError(why, error=name, sections=sections, passes=isinstance(error, (LedgerBusy, LedgerUnread)))


def _status_line(ledger: Ledger) -> str:
    counts = {state: count for state, count in queries.counts(ledger).items() if count}
    return ", ".join(f"{count} {state.value}" for state, count in counts.items()) or "nothing taken in yet"
