"""What a daemon is made of: the workers beside the loop, and the stages that it turns.

``workers_of`` starts what works beside the loop, ``Stages`` joins the stages in the order in which they write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain

from ingestd.config import Config, agreement_of, where_to
from ingestd.daemon.admission import Admission
from ingestd.daemon.alarms import Alarms, KeyAlarm
from ingestd.daemon.assignment import Assignment
from ingestd.daemon.heartbeat import Heartbeat
from ingestd.daemon.inbox_reports import InboxReports
from ingestd.daemon.making_room import MakingRoom
from ingestd.daemon.membership import Membership
from ingestd.daemon.mover import Mover
from ingestd.daemon.orphans import Orphans
from ingestd.daemon.reader_client import ReaderClient
from ingestd.daemon.rereads import Rereads
from ingestd.daemon.retention import Looks, Retention
from ingestd.daemon.server_stages import ServerStages, ServerWorkers, Shared, server_workers_of
from ingestd.daemon.settings import reader_limits_of
from ingestd.daemon.source_removal import SourceRemoval
from ingestd.daemon.spool_disk import SpoolDisk, who_waits
from ingestd.daemon.stage import Gates, RunProgress, Stage, WhileOurs
from ingestd.daemon.steps import Origin, Routing
from ingestd.daemon.takeover import Takeover
from ingestd.daemon.wallclock import WallClock
from ingestd.fs.places import is_gone
from ingestd.inbox import Inboxes, InboxPolicy, Spool, Take
from ingestd.ledger import Ledger, queries
from ingestd.reader import ReaderPool, Readers


@dataclass(frozen=True, kw_only=True, slots=True)
class DaemonWorkers:
    """What works beside the loop: processes and threads that only wake it."""

    inboxes: Inboxes
    readers: Readers
    mover: Mover[int]
    servers: Mapping[str, ServerWorkers]  # by the name of the destination

    def are_healthy(self) -> bool:
        rooms = (self.readers, self.inboxes, self.mover)
        return all(room.is_healthy() for room in rooms) and all(each.is_healthy() for each in self.servers.values())

    def close(self) -> None:
        """Let go of everything; safe at any moment, since every durable step came before the act it guards."""
        self.inboxes.close()
        self.mover.close(5.0)
        for server in self.servers.values():
            server.close()
        self.readers.close()


def workers_of(
    config: Config, *, policies: tuple[InboxPolicy, ...], spool: Spool, ledger: Ledger, wake: Callable[[], None]
) -> DaemonWorkers:
    """Start the workers. Raises ValueError for inboxes that cannot be used together, and NoThread; none runs then."""
    with ExitStack() as undo:
        inboxes = Inboxes(policies, spool=spool.path, wake=wake, is_too_long=ledger.database.is_too_long)
        undo.callback(inboxes.close)
        readers = ReaderPool(processes=config.reader.processes, limits=reader_limits_of(config), wake=wake)
        undo.callback(readers.close)
        servers: dict[str, ServerWorkers] = {}
        for name, destination in config.destinations.items():
            servers[name] = server_workers_of(
                destination, batch_bytes=config.batch.max_bytes, scratch=spool.scratch(), clock=ledger.clock, wake=wake
            )
            servers[name].client.transport.may_send = ledger.lease.holds
            undo.callback(servers[name].close)
        mover: Mover[int] = Mover(spool, wake=wake)
        undo.pop_all()
    return DaemonWorkers(inboxes=inboxes, readers=readers, mover=mover, servers=servers)


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
        assignment: Assignment,
        gates: Gates,
        progress: RunProgress,
        routing: Routing,
    ) -> None:
        self._assignment = assignment
        self._config = config
        self._policies = policies
        self._spool = spool
        self._ledger = ledger
        self._workers = workers
        self._gates = gates
        self._progress = progress
        self._routing = routing

    @cached_property
    def servers(self) -> Mapping[str, ServerStages]:
        """What serves each destination, by its name; the higher priority before the lower."""
        several = len(self._config.destinations) > 1
        shared = Shared(
            gates=self._gates,
            progress=self._progress,
            alarms=self.alarms,
            wall=self.wall,
            reader_client=self.reader_client,
            disk=self.disk,
            assignment=self._assignment,
            tells_gone=self._tells_gone,
            is_lost=self._is_lost,
        )
        return {
            name: ServerStages(
                self._config,
                destination,
                ledger=self._ledger.at(name),
                workers=self._workers.servers[name],
                shared=shared,
                gives_way=partial(self._is_higher_busy, destination.priority),
                reach=self._assignment.reach[name],
                whose=name if several else "",
            )
            for name, destination in sorted(self._config.destinations.items(), key=lambda each: -each[1].priority)
        }

    def _is_higher_busy(self, priority: int) -> bool:
        return any(
            self.servers[name].posting.is_busy
            for name, destination in self._config.destinations.items()
            if destination.priority > priority
        )

    @cached_property
    def all(self) -> tuple[Stage, ...]:
        """The list for the loop, in the order in which they write."""
        servers = self.servers.values()
        return (
            self.heartbeat,
            self.wall,
            self.membership,
            self.reader_client,
            self.key,
            self.disk,
            self.orphans,
            self.admission,
            self.rereads,
            *self.asking,
            *self._upkeep(*(server.server_rollback for server in servers)),
            *self._upkeep(self.making_room, self.retention),
            self.source_removal,
            self.reports,
            *self.taking_over,
            *(server.posting for server in servers),  # a claim sees everything that this tick has settled
            self.alarms,
        )

    @cached_property
    def asking(self) -> tuple[Stage, ...]:
        """Those that ask the servers, as they stand in the list."""
        return self._upkeep(*chain.from_iterable(server.asking for server in self.servers.values()))

    @cached_property
    def taking_over(self) -> tuple[Stage, ...]:
        """Those that take up what another process left, as they stand in the list."""
        return self._upkeep(self.takeover)

    def _upkeep(self, *stages: Stage) -> tuple[Stage, ...]:
        """Have these turn where the upkeep is ours; where the work is not divided it always is."""
        if self._assignment.is_whole:
            return stages
        return tuple(WhileOurs(stage, lambda: self._assignment.upkeep) for stage in stages)

    @property
    def no_post_is_out(self) -> bool:
        return all(server.posting.is_idle for server in self.servers.values())

    def _looks(self) -> Looks:
        """Say which servers vouch for what they have.

        One that the configuration has no more is not asked, nor, while there is no room, one that is not required.
        """
        numbers = {
            self._ledger.destinations[name]: server
            for name, server in self.servers.items()
            if self._config.destinations[name].required or not self.disk.missing_bytes
        }
        each = [server.server_rollback.up_to for server in numbers.values() if server.removals.is_open]
        return Looks(
            up_to=min((at for at in each if at is not None), default=None),
            away=frozenset(number for number, server in numbers.items() if not server.removals.is_open),
            unasked=frozenset(self._ledger.destinations.values()) - numbers.keys(),
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
    def heartbeat(self) -> Heartbeat:
        return Heartbeat(self._ledger)

    @cached_property
    def membership(self) -> Membership:
        return Membership(
            ledger=self._ledger,
            assignment=self._assignment,
            disk=self.disk,
            inboxes=self._workers.inboxes,
            alarms=self.alarms,
            gates=self._gates,
            in_place=[policy.name for policy in self._policies if policy.take is Take.IN_PLACE],
            lease=self._config.lease,
            is_in_hand=self._is_in_hand,
        )

    def _is_in_hand(self, inbox: str) -> bool:
        """Whether anything of an inbox is under way here."""
        hands = (self.admission, self.rereads, self.source_removal)
        return not self.orphans.are_adopted or any(each.has_in_hand(inbox) for each in hands)

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
        return SpoolDisk(
            spool=self._spool,
            gates=self._gates,
            alarms=self.alarms,
            low_water=low_water,
            waiting=lambda: who_waits(queries.destinations(self._ledger)),
            wanted_elsewhere=lambda: self._assignment.wanted_elsewhere,
        )

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
            assignment=self._assignment,
        )

    @cached_property
    def admission(self) -> Admission:
        return Admission(
            inboxes=self._workers.inboxes,
            spool=self._spool,
            mover=self._workers.mover,
            reader_client=self.reader_client,
            ledger=self._ledger,
            routing=self._routing,
            sha256=self._config.reader.sha256,
            agreement=where_to(agreement_of(self._config)),
            gate=self._gates.intake,
            assignment=self._assignment,
            on_copied=self.source_removal.hurry,
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
            results_written=lambda: sum(server.posting.results_written for server in self.servers.values()),
            is_lost=self._is_lost,
            alarms=self.alarms,
            assignment=self._assignment,
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
            looks=self._looks,
        )

    @cached_property
    def making_room(self) -> MakingRoom:
        not_required = [name for name, each in self._config.destinations.items() if not each.required]
        return MakingRoom(
            ledger=self._ledger,
            alarms={name: self.servers[name].alarms for name in not_required},
            gate=self._gates.removals,
            disk=self.disk,
            retention=self.retention,
            looks=self._looks,
        )

    @cached_property
    def source_removal(self) -> SourceRemoval:
        return SourceRemoval(
            ledger=self._ledger,
            inboxes=self._workers.inboxes,
            mover=self._workers.mover,
            policies=self._policies,
            alarms=self.alarms,
            assignment=self._assignment,
        )

    @cached_property
    def reports(self) -> InboxReports:
        return InboxReports(inboxes=self._workers.inboxes, policies=self._policies, alarms=self.alarms)

    @cached_property
    def takeover(self) -> Takeover:
        return Takeover(self._ledger)
