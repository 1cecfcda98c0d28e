"""Who works: the one thing that every command asks before it says that files are on their way, or wait.

With an SQLite ledger that is who holds a spool's lock, on this machine. With one in PostgreSQL nobody locks anything:
the ledger's own list of workers tells, of all machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ingestd.locks import who_runs

from .common import host_of, ledger_for_reading, missing_spool
from .output import ago, plain

if TYPE_CHECKING:
    from ingestd.config import Config
    from ingestd.ledger import Ledger, Worker


@dataclass(frozen=True, kw_only=True, slots=True)
class Working:
    """A process that works on a spool."""

    process: int
    machine: str = ""  # "": this one
    worker: int = 0  # its number in the ledger; 0: in an SQLite ledger none has one

    def __str__(self) -> str:
        if not self.worker:
            return f"process {self.process}"
        return f"process {self.process} on {plain(self.machine)} (worker {self.worker})"


@dataclass(frozen=True, kw_only=True, slots=True)
class AtWork:
    """Who works at one moment: the daemon, and ``ingestd send``."""

    daemon: Working | None
    send: Working | None
    unseen: str  # why nobody can see whether the daemon runs; "": it is seen
    # The host of the rows of ``send``; "" while one runs, or where none ever did. Nothing but the next ``send`` moves
    # them, but for those of which the daemon has a file with the same content.
    stopped_send: str
    workers: Sequence[Worker] | None = None  # the daemon's, of the last day; None: nobody could stand by

    def as_plain(self) -> dict[str, object]:
        """Give the daemon by the names of ``--json``: without a machine it is this one's."""
        if self.daemon is None:
            return {"running": None if self.unseen else False, "pid": None}
        where = {"machine": self.daemon.machine, "worker": self.daemon.worker} if self.daemon.worker else {}
        return {"running": True, "pid": self.daemon.process, **where}

    @property
    def is_nobody(self) -> bool:
        """Whether neither a daemon nor an ``ingestd send`` runs, as far as that is seen."""
        return not self.unseen and self.daemon is None and self.send is None

    @property
    def standing_by(self) -> list[Worker]:
        return [worker for worker in self.workers or () if worker.stands_by]

    @property
    def others(self) -> list[Worker]:
        """Those that would go on in the daemon's place, whether they work beside it or stand by."""
        first = self.daemon.worker if self.daemon is not None else 0
        return [worker for worker in self.workers or () if worker.is_well and worker.id != first]

    @property
    def barred(self) -> list[Worker]:
        """Those that live and would take nothing over."""
        return [worker for worker in self.workers or () if worker.is_alive and worker.bars]

    @property
    def cut_off(self) -> list[Worker]:
        """Those that live and get no answer of a destination."""
        return [worker for worker in self.workers or () if worker.is_alive and worker.unreached]

    @property
    def silent(self) -> Worker | None:
        """Who worked last, has not ended, and writes no more."""
        holders = (worker for worker in self.workers or () if worker.holds and worker.ended_at is None)
        return next((worker for worker in holders if not worker.is_alive), None)

    @property
    def late(self) -> timedelta | None:
        """For how long the daemon has written nothing, where that is longer than it should be."""
        first = self.daemon.worker if self.daemon is not None else 0
        return next((worker.silent for worker in self.workers or () if worker.id == first and worker.is_late), None)

    @property
    def missed(self) -> Worker | None:
        """Who was there within a day on a machine on which nobody is now."""
        alive = {worker.machine for worker in self.workers or () if worker.is_alive}
        return next((worker for worker in self.workers or () if worker.machine not in alive), None)


def at_work(config: Config, ledger: Ledger | None = None) -> AtWork:
    """Look who works; ``ledger``: where it is open already.

    Raises LedgerError where it is the ledger that has to be asked, and does not answer.
    """
    if config.ledger_file is not None:
        daemon, send = (_locks(spool) for spool in (config.spool.path, config.spool.for_send))
        sender = "" if send is not None else host_of(config.spool.for_send)
        return AtWork(daemon=daemon, send=send, unseen=missing_spool(config), stopped_send=sender)
    if ledger is not None:
        return _told_by(ledger, config)
    from ingestd.ledger import LedgerMissing

    try:
        with ledger_for_reading(config) as opened:
            return _told_by(opened, config)
    except LedgerMissing:
        return AtWork(daemon=None, send=None, unseen="", stopped_send="", workers=())


def described(worker: Worker) -> str:
    return f"worker {worker.id}, process {worker.process} on {plain(worker.machine)}"


def unreached_by(worker: Worker) -> str:
    return f"no answer of {', '.join(worker.unreached)}"


def silence_of(worker: Worker) -> str:
    """Say which worker works no more without having ended, and how that is known."""
    how = "is gone" if worker.is_gone else f"has been silent for {ago(worker.silent.total_seconds())}"
    return f"{described(worker)}, {how}"


def does(worker: Worker) -> str:
    """Say what a worker does, by the names of ``--json``."""
    if worker.ended_at is not None:
        return "ended"
    if not worker.is_alive:
        return "gone" if worker.is_gone else "silent"
    if worker.bars:
        return "barred"
    return "works" if worker.holds else "stands_by"


def worker_as_plain(worker: Worker) -> dict[str, object]:
    return {
        "worker": worker.id,
        "machine": worker.machine,
        "pid": worker.process,
        "does": does(worker),
        "claims": list(worker.claims),
        "bars": worker.bars or None,
        "unreached": list(worker.unreached),
        "began_at": worker.began_at,
        "wrote_seconds_ago": worker.silent.total_seconds(),
        "lease_seconds": worker.lease.total_seconds(),
        "ended_at": worker.ended_at,
        "why_ended": worker.why_ended or None,
    }


def _locks(spool: Path) -> Working | None:
    pid = who_runs(spool)
    return None if pid is None else Working(process=pid)


def _told_by(ledger: Ledger, config: Config) -> AtWork:
    from ingestd.ledger import queries

    workers, spools = ledger.workers() or (), queries.spools(ledger)
    ours, of_send = (_of(spool, spools, workers) for spool in (config.spool.path, config.spool.for_send))
    send = _holder(of_send)
    sender = "" if send is not None else host_of(config.spool.for_send)
    return AtWork(daemon=_holder(ours), send=send, unseen="", stopped_send=sender, workers=ours)


def _of(spool: Path, spools: Mapping[str, Path], workers: Sequence[Worker]) -> list[Worker]:
    """Choose a spool's; where it is not mounted, or closed to us, it is known by where the workers have it."""
    there = {host for host, path in spools.items() if path == spool.absolute()}
    hosts = {host_of(spool)} - {""} or there
    return [worker for worker in workers if worker.host in hosts]


def _holder(workers: Sequence[Worker]) -> Working | None:
    from ingestd.ledger import UPKEEP

    # Of several the one that proves what all have sent.
    there = (worker for worker in workers if worker.holds and worker.is_alive)
    found = max(there, key=lambda worker: UPKEEP in worker.claims, default=None)
    if found is None:
        return None
    return Working(process=found.process, machine=found.machine, worker=found.id)
