"""The daemon: all rooms of one spool joined; owns their order of starting and stopping."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import structlog

from ingestd.clocks import read_clocks
from ingestd.config import Config, agreement_of
from ingestd.daemon import build, settings
from ingestd.daemon.assignment import Assignment
from ingestd.daemon.loop import Loop, Wake
from ingestd.daemon.membership import AFTER_SILENCE
from ingestd.daemon.outage import Outage
from ingestd.daemon.reach import Reach
from ingestd.daemon.stage import Gates, RunProgress
from ingestd.daemon.steps import Routing
from ingestd.inbox import InboxPolicy, Spool, keeps_files
from ingestd.ledger import OTHER_LEDGER_STEP, Ledger, LedgerError, LedgerMissing, Writer, moves
from ingestd.logs import set_key


class Daemon:
    """Workers, stages and the loop that turns them, on one spool and one ledger."""

    def __init__(
        self,
        config: Config,
        *,
        policies: tuple[InboxPolicy, ...] | None = None,
        wake: Wake | None = None,
        before: Daemon | None = None,
        tell: Callable[[str], object] | None = None,
        routing: Routing | None = None,
        writer: Writer | None = None,
        is_single: bool = False,
    ) -> None:
        """Open spool and ledger and start the workers; ``policies`` stand in for the configured inboxes,
        ``routing`` for the rules, ``writer`` has stood by for the spool; ``is_single`` of ``run --once`` and ``send``.

        With ``before``, whose place it is to take, it has that one's spool and ledger; ``start`` only once that one
        was stopped. ``tell`` hears how bringing an older ledger up to date goes on. Raises SpoolInUse, SpoolError,
        LedgerError, and ValueError for inboxes that cannot be used together; nothing is left running then, and nothing
        of ``before`` was touched, save that its ledger may know a destination more.
        """
        self.config = config
        self.wake = wake or Wake()
        self._log = structlog.get_logger()
        policies = policies if policies is not None else settings.policies_of(config)
        self.spool: Spool
        self.ledger: Ledger
        self.spool, self.ledger = (before.spool, before.ledger) if before is not None else _opened(config, tell, writer)
        if before is not None:
            self.ledger.expect_agreement(agreement_of(config))
            self.ledger.adopt_destinations(config.addresses)
        try:
            self.workers: build.DaemonWorkers = build.workers_of(
                config, policies=policies, spool=self.spool, ledger=self.ledger, wake=self.wake
            )
        except BaseException:
            if before is None:
                self.ledger.close()
                self.spool.unlock()
            raise
        self._replaces = before
        self.assignment = Assignment(
            [policy.name for policy in policies],
            reach={name: Reach(name, config.lease) for name in config.destinations},
            is_whole=not self.ledger.is_shared,
        )
        self.gates = Gates()
        self.progress = RunProgress(is_single=is_single)
        self.stages = build.Stages(
            config,
            policies=policies,
            spool=self.spool,
            ledger=self.ledger,
            workers=self.workers,
            assignment=self.assignment,
            gates=self.gates,
            progress=self.progress,
            routing=routing or settings.routing_of(config),
        )
        try:
            self.loop = Loop(
                self.stages.all,
                ledger=self.ledger,
                outage=Outage(self._log, self.ledger.name, self.spool.tell, intake=self.gates.intake),
                wake=self.wake,
            )
        except BaseException:
            self.close(hand_over=before is not None)
            raise
        self.spool.low_water = config.spool.low_water

    def start(self) -> None:
        """Settle what the last run left, arm the observers; then the first scan belongs to the first ticks.

        Raises LedgerError; once the ledger works again it may be started anew.
        """
        now = self.ledger.clock.now()
        if self._replaces is not None:
            self.assignment.take_over(self._replaces.assignment)
            self.workers.inboxes.take_over(self._replaces.workers.inboxes)
            self.spool.empty_scratch()
            self.ledger.longest = settings.longest_waits_of(self.config)
            self.ledger.set_limits(settings.limits_of(self.config))
            self._replaces = None
        self.stages.wall.collect(now)
        wait = AFTER_SILENCE if self.ledger.after_silence else timedelta(0)
        with self.ledger.transaction() as tx:
            self.stages.wall.write(tx, now)
            recovered = moves.recover(tx, now=now.utc, wait=wait)
        if self.ledger.lost_record:
            self._ask_first()
        self.spool.tell("")  # what was told before of a ledger that failed; if it fails still, that is found anew
        if recovered.uncertain or recovered.attempts or recovered.candidates:
            self._log.warning(
                "ledger.recovered",
                uncertain=recovered.uncertain,
                attempts=recovered.attempts,
                candidates=recovered.candidates,
            )
        for stage in self.stages.all:
            stage.start()
        self.workers.inboxes.watch(self.assignment.watched)
        self.workers.inboxes.open()

    def _ask_first(self) -> None:
        """Have the destinations asked for what waits: some of it may have been sent, by a record that is lost."""
        rows = 0
        is_done = False
        while not is_done:
            now = self.ledger.clock.now()
            with self.ledger.transaction() as tx:
                asked = moves.ask_first(tx, now=now.utc)
                if is_done := not asked:
                    self.ledger.trust_record(tx)
            rows += asked
        self._log.warning("ledger.failed_over", rows=rows)

    def stop(self, grace: timedelta, *, hand_over: bool = False) -> None:
        """Stop claiming, finish the posts in flight within ``grace``, close; the next start finds the rest.

        With ``hand_over`` spool and ledger stay open, for the one that takes this one's place.
        """
        self.gates.intake.shut("stopping")
        self.gates.claims.shut("stopping")
        stages = self.stages
        # Nothing else is taken up while stopping, and what nobody serves must not count as due.
        taken_up = [stages.orphans, stages.rereads, *stages.taking_over, *stages.asking]
        if hand_over:
            taken_up.append(stages.membership)
        else:
            stages.membership.leave()
        self.loop.stages = [stage for stage in stages.all if stage not in taken_up]
        if not stages.no_post_is_out:
            self.loop.run_until(lambda: stages.no_post_is_out, deadline=read_clocks().mono + grace.total_seconds())
        given_up = sum(server.sender.close(timedelta(0)) for server in self.workers.servers.values())
        if given_up:
            self._log.warning("sender.given_up", posts=given_up)
        if self.ledger.is_shared and not hand_over:
            self._settle()
        self.close(hand_over=hand_over)
        if hand_over:
            self.ledger.forget_doubt()

    def _settle(self) -> None:
        """Settle what we had to let go of; where that fails, whoever misses us does: nobody may have seen us."""
        self.ledger.forget_doubt()
        with suppress(LedgerError), self.ledger.transaction() as tx:
            wait = AFTER_SILENCE if tx.others() else timedelta(0)
            moves.recover(tx, now=self.ledger.clock.now().utc, wait=wait)

    def close(self, *, hand_over: bool = False) -> None:
        """Let go of everything; safe at any moment, since every durable step came before the act it guards."""
        self.workers.close()
        if not hand_over:
            self.ledger.close()
            self.spool.unlock()


def spool_of(config: Config) -> Spool:
    """Give the spool; it is made where it is missing, unless a ledger that several machines share knows of one.

    Raises SpoolError, and LedgerError where it should have been there.
    """
    path = config.spool.path.absolute()
    # That of `send` lies in the other: where that one's disk is not mounted, it is no place for this one.
    places = [path.parent, path] if config.spool.is_for_send else [path]
    if config.ledger_file is None and (new := [each for each in places if not _is_there(each)]):
        with suppress(LedgerMissing), Ledger.open(config.ledger, read_only=True, key=config.spool.search_key) as ledger:
            for each in new:
                try:
                    ledger.expect_no_other(each)
                except LedgerError:
                    if not _is_there(each):  # else another worker has just made it, as the first of all
                        raise
    return Spool(path)


def _is_there(spool: Path) -> bool:
    return os.path.lexists(spool / "spool.id")


def _expect_its_ledger(config: Config, spool: Spool) -> None:
    """Refuse a spool with files that the ledger knows nothing of: they would be taken in, and sent, once more."""
    if config.ledger_file is not None or spool.ledger or not keeps_files(spool.path):
        return
    with suppress(LedgerMissing), Ledger.open(config.ledger, read_only=True, key=config.spool.search_key) as ledger:
        if ledger.knows_spool(spool.host):
            return
    raise LedgerError(
        f"the spool {spool.path} has files of which the ledger {config.ledger_name} knows nothing; {OTHER_LEDGER_STEP}"
    )


def _opened(config: Config, tell: Callable[[str], object] | None, writer: Writer | None) -> tuple[Spool, Ledger]:
    spool = spool_of(config)
    _expect_its_ledger(config, spool)
    if config.ledger_file is not None:
        spool.lock()  # else the ledger says who works
    said = spool.ledger
    try:
        ledger = Ledger.open(
            config.ledger,
            host=spool.host,
            destinations=config.addresses,
            spool=spool.path,
            limits=settings.limits_of(config),
            longest=settings.longest_waits_of(config),
            create=not said,
            tell=tell,
            key=config.spool.search_key,
            writer=writer or Writer(spool.host, lease=config.lease),
            agreement=agreement_of(config),
        )
    except LedgerMissing:
        spool.unlock()
        raise LedgerError(
            f"the spool {spool.path} belongs to a ledger that is not there: {config.ledger_name} is empty; put its"
            " backup back, or see where that URL, and its role's search_path, lead to; where the ledger is lost for"
            f" good, remove {spool.path / 'spool.ledger'}"
        ) from None
    except BaseException:
        spool.unlock()
        raise
    try:
        ledger.expect_spool_of_ours(spool.path, said=said)
        if ledger.id and not said:
            spool.belong_to(f"{ledger.id} {ledger.name}")
        set_key(spool.host.encode())  # that of a shared spool may not have been there when the log began
        spool.may_act = ledger.lease.holds
        spool.is_shared = config.ledger_file is None
        if spool.is_shared:
            spool.share_scratch(
                ledger.worker, lambda: [each.beat.id for each in ledger.members() if each.beat.id != ledger.worker]
            )
    except BaseException:
        # Who is at work without a part of the spool is taken for one who works on another.
        ledger.close()
        spool.unlock()
        raise
    return spool, ledger
