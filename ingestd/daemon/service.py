"""``ingestd run``: the loop under signals and systemd, until it is told to stop; and ``run --once``.

SIGTERM and SIGINT drain; SIGHUP rereads the configuration, which is refused whole if it is wrong, and starts the rooms
anew with it (posts in flight are finished first, however long they take). systemd hears READY after the first look into
every inbox, and WATCHDOG only while every worker makes progress.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from math import inf
from pathlib import Path
from types import FrameType

import structlog

import ingestd
from ingestd import logs
from ingestd.config import Config, ConfigError
from ingestd.daemon.loop import Daemon, Wake
from ingestd.daemon.notify import Notifier
from ingestd.daemon.now import read_clocks
from ingestd.daemon.outage import Outage
from ingestd.daemon.sending import not_taken_in
from ingestd.inbox import InboxPolicy
from ingestd.ledger import Alarm, Ledger, LedgerError, LedgerUnread, queries

_STATUS_EVERY_SECONDS = 10.0
# How long a thread that computes may keep the interpreter from one that has just read, hashed or sent a megabyte. With
# CPython's 5 ms the posting threads waited longer for their turn than for disk and network (measured: 1.6x the rate).
_SWITCH_SECONDS = 0.0003
# Objects made and not freed before the collector looks at the youngest. With CPython's 700 it looked at the values that
# travel between the rooms several times each, and ever again at all that was imported.
_YOUNG_OBJECTS = 10_000
# The watchdog's ping when systemd asked for none: never.
# At its end `run --once` looks at the server no longer than this, for the files that may go.
_LET_GO_SECONDS = 5.0
# A single run goes on for so long while no reader can be started; memory may come back.
_NO_READER_SECONDS = 20.0
_NEVER = float("inf")


class _Asked(Enum):
    STOP = "stop"
    RELOAD = "reload"


class _Signals:
    """What the signals asked for; rings the loop's bell."""

    def __init__(self, wake: Wake) -> None:
        self._wake = wake
        self.asked: _Asked | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch SIGTERM, SIGINT and SIGHUP; the former handlers come back at the end."""
        former = {
            number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        # What asked for a reload while we started was kept back until somebody hears it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.asked = self.asked or _Asked.RELOAD
        else:
            self.asked = _Asked.STOP
        self._wake()


def _set_up_interpreter() -> None:
    """Have threads and the collector disturb the main thread less; the settings are the whole process's."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


def run_forever(config: Config, *, reread: Callable[[], Config], adopt: Callable[[Config], object]) -> None:
    """Run the daemon until SIGTERM or SIGINT; ``reread`` loads the configuration again on SIGHUP.

    ``adopt`` is called with one that was not refused: what it says of the log holds from then on.

    Raises SpoolInUse, SpoolError and LedgerError at the start.
    """
    _set_up_interpreter()
    notifier = Notifier()
    wake = Wake()
    signals = _Signals(wake)
    log = structlog.get_logger()
    with signals.caught():
        daemon = _started(config, wake, signals)
        if daemon is None:
            return
        while True:
            try:
                log.info("daemon.started", version=ingestd.__version__, inboxes=len(daemon.config.inboxes))
                following = _serve(daemon, signals, notifier, reread, adopt)
            except BaseException:
                daemon.close()
                raise
            if following is None:
                notifier.stopping()
                log.info("daemon.stopping")
                daemon.stop(daemon.config.shutdown_grace)
                log.info("daemon.stopped")
                return
            daemon.stop(daemon.config.shutdown_grace, hand_over=True)
            daemon = following
            _start(daemon)


def _started(config: Config, wake: Wake, signals: _Signals) -> Daemon | None:
    """Build and start the daemon; where the disk of its ledger fails, wait for it as a running one does.

    None where it was told to stop meanwhile.
    """
    outage = Outage(structlog.get_logger(), config.ledger_file)
    while signals.asked is not _Asked.STOP:
        try:
            daemon = Daemon(config, wake=wake)
            _start(daemon)
        except LedgerUnread as error:
            now = read_clocks().mono
            wake.wait(outage.failed(error, now) - now)
        else:
            return daemon
    return None


def _start(daemon: Daemon) -> None:
    try:
        daemon.start()
    except BaseException:
        daemon.close()
        raise


def tell_crash() -> None:
    """Put the exception that is ending the daemon into the log: its class and its place in the code."""
    structlog.get_logger().exception("daemon.crashed")


def _serve(
    daemon: Daemon,
    signals: _Signals,
    notifier: Notifier,
    reread: Callable[[], Config],
    adopt: Callable[[Config], object],
) -> Daemon | None:
    """Turn the loop until it is to stop (None), or another stands that takes its place with a new configuration."""
    ready = False
    following: Daemon | None = None
    interval = notifier.watchdog_interval.total_seconds() if notifier.watchdog_interval else _NEVER
    alive_at = status_at = 0.0
    while True:
        due = daemon.tick()
        now = read_clocks().mono
        if not ready:
            ready = True
            notifier.ready("watching")
        if now >= alive_at and daemon.is_healthy():
            notifier.alive()
            alive_at = now + interval
        if now >= status_at:
            # A ledger that is busy has been told of by the loop.
            with suppress(LedgerError):
                notifier.status(_status_line(daemon.ledger))
            logs.catch_up()
            status_at = now + _STATUS_EVERY_SECONDS
        if signals.asked is _Asked.STOP:
            if following is not None:
                following.close(hand_over=True)
            return None
        if signals.asked is _Asked.RELOAD:
            notifier.reloading()
            signals.asked = None
            if following is not None:
                following.close(hand_over=True)
            following = _prepare(_reread(reread, adopt, daemon.config), daemon)
            if following is None:
                notifier.ready("watching; the changed configuration was refused, see the log")
            daemon.dispatch.stopping = following is not None
        # A post that went on in this process would be asked about meanwhile, found absent, and sent a second time.
        if following is not None and daemon.dispatch.is_idle:
            return following
        daemon.wait(min(due, alive_at if alive_at != _NEVER else due))


def _reread(reread: Callable[[], Config], adopt: Callable[[Config], object], current: Config) -> Config | None:
    log = structlog.get_logger()
    try:
        config = reread()
    except ConfigError as error:
        # No traceback: the problems are the file's, and `ingestd check` names each.
        log.error("config.refused", problems=len(error.problems))  # noqa: TRY400
        return None
    fixed = [
        name
        for name, before, after in (
            ("spool", current.spool.path, config.spool.path),
            ("ledger", current.ledger, config.ledger),
            ("destination", current.destination.url, config.destination.url),
        )
        if before != after
    ]
    if fixed:
        # Waiting files belong to this spool, this ledger, this destination: changing them takes a person and a restart.
        log.error("config.refused", notes=fixed)
        return None
    adopt(config)
    log.info("config.reread")
    return config


def _prepare(config: Config | None, before: Daemon) -> Daemon | None:
    """Build all rooms anew while the old ones still serve; None, and a line in the log, where that cannot be."""
    if config is None:
        return None
    try:
        return Daemon(config, wake=before.wake, before=before)
    except (ConfigError, ValueError, OSError) as error:
        structlog.get_logger().error("config.refused", error=type(error).__name__)
        return None


def _status_line(ledger: Ledger) -> str:
    counts = {state: count for state, count in queries.counts(ledger).items() if count}
    return ", ".join(f"{count} {state.value}" for state, count in counts.items()) or "nothing taken in yet"


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


def run_once(
    config: Config,
    *,
    timeout: timedelta,
    policies: tuple[InboxPolicy, ...] | None = None,
    named: Sequence[Path] = (),
    watch: Callable[[Daemon], None] | None = None,
) -> OnceResult:
    """Take in what lies in the inboxes, send it, see it proven, and end; at most ``timeout``.

    Waits for the rows that were waiting at the start and for what it takes in itself. The quiet period is ignored
    after the inboxes are drained. ``named`` are the paths that a person gave. ``watch`` is called after each tick,
    for a progress bar.
    Raises SpoolInUse, SpoolError and LedgerError at the start.
    """
    _set_up_interpreter()
    wake = Wake()
    signals = _Signals(wake)
    with signals.caught():
        daemon = Daemon(config, policies=policies, wake=wake)
        try:
            before = queries.last_event_id(daemon.ledger)
            daemon.start()
            since = read_clocks().mono
            deadline = since + timeout.total_seconds()
            read_by = inf
            done = False
            while True:
                due = daemon.tick()
                if watch is not None:
                    watch(daemon)
                drained = daemon.intake.is_idle and daemon.orphans_adopted and daemon.inboxes.is_drained(since)
                daemon.dispatch.flush = drained
                daemon.proof.hurried = drained and daemon.dispatch.is_idle
                done = drained and daemon.is_idle and queries.unfinished(daemon.ledger) == 0
                now = read_clocks().mono
                # Without readers nothing more is taken in, and a person waits.
                read_by = min(read_by, now + _NO_READER_SECONDS) if daemon.readers.trouble else inf
                ends_at = min(deadline, read_by)
                if done or signals.asked is _Asked.STOP or now >= ends_at:
                    break
                daemon.wait(min(due, ends_at))
            daemon.let_go(until=min(deadline, read_clocks().mono + _LET_GO_SECONDS))
            unfinished = queries.unfinished(daemon.ledger)
            nothing_of = not_taken_in(daemon.ledger, policies or (), named) if done else ()
            left, alarms = tuple(daemon.inboxes.barred()), daemon.alarms.standing
        except BaseException:
            daemon.close()
            raise
        taken_in = daemon.intake.taken_in
        daemon.stop(config.shutdown_grace)
    return OnceResult(
        done=done,
        stopped=signals.asked is _Asked.STOP and not done,
        last_event_before=before,
        taken_in=taken_in,
        unfinished=unfinished,
        left=left,
        not_taken_in=nothing_of,
        alarms=alarms,
    )
