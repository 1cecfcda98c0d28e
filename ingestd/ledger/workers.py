"""Workers: who writes a PostgreSQL ledger for a spool, and how one that is silent is ended.

**Together or alone.** Each start of whoever takes files in is a row of ``worker``, which is never revived. Those at
work on a spool have ``holds``: any number of daemons, which divide the work (``membership``), or one that has the spool
for itself (``run --once``, ``send``: ``alone``), while daemons stand by. Each transaction of a worker counts its
``writes`` up (the fence of ``postgres``), at the least every ``beat``: the count is its heartbeat.

**Silence.** The others look at the count by their own CLOCK_BOOTTIME; no clock of two machines is ever compared. Where
it has not moved for the lease that its worker gave itself, that one may be ended, on the condition that the count is
still the one that was seen: a transaction under way holds the row, and has moved it when its COMMIT lets go. So what
was ended has written for the last time, and what is taken over is what it left. A process of this very boot that is
gone, is ended without waiting.

**The worker itself** trusts its lease for three quarters of it, from the start of its last transaction that was
committed (``ingestd.lease``): when another may end it, it has stopped to act.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingestd.clocks import utc_now

from .column_types import MICROSECOND, Instant
from .database import Writer
from .errors import LedgerHeld

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


TABLE = """CREATE TABLE worker (
    id BIGINT PRIMARY KEY,
    spool_id BIGINT REFERENCES spool (id),
    machine TEXT NOT NULL,
    process TEXT NOT NULL,
    began_at BIGINT NOT NULL,
    lease_us BIGINT NOT NULL,
    holds BIGINT NOT NULL DEFAULT 0,
    alone BIGINT NOT NULL DEFAULT 0,
    writes BIGINT NOT NULL DEFAULT 0,
    wrote_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    bars TEXT NOT NULL DEFAULT '',
    sight TEXT NOT NULL DEFAULT '{}',
    reach TEXT NOT NULL DEFAULT '{}',
    wants BIGINT NOT NULL DEFAULT 0,
    ended_at BIGINT,
    why_ended TEXT NOT NULL DEFAULT ''
) WITH (fillfactor = 50)"""
ONE_ALONE = "CREATE UNIQUE INDEX worker_alone ON worker (spool_id) WHERE alone = 1 AND holds = 1 AND ended_at IS NULL"
ALIVE = "CREATE INDEX worker_alive ON worker (id) WHERE ended_at IS NULL"
# All who have no row of their own: the fence counts what people write, too.
PEOPLE = "INSERT INTO worker (id, machine, process, began_at, lease_us) VALUES (0, '', '', 0, 0)"
COUNT = "UPDATE worker SET writes = writes + 1, wrote_at = clock_timestamp() WHERE id = {} AND ended_at IS NULL"
FENCE = f"{COUNT} RETURNING writes, wrote_at"
AT_WORK = "worker.spool_id = %s AND holds = 1 AND ended_at IS NULL"
_BEATS_AT_WORK = f"SELECT id, machine, process, writes, lease_us, alone FROM worker WHERE {AT_WORK} ORDER BY id"  # noqa: S608
# By the database's clock, which may have been set, or stood still with the server: no proof that one does not work.
_SEEM_SILENT = f"""SELECT id FROM worker WHERE {AT_WORK}
    AND wrote_at < clock_timestamp() - lease_us * interval '1 microsecond'"""  # noqa: S608 - as above
_NEW = (
    "INSERT INTO worker (id, spool_id, machine, process, began_at, lease_us, holds, alone, bars)"
    " VALUES (nextval('worker_number'), %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id"
)
_END = "UPDATE worker SET ended_at = %s, why_ended = %s WHERE id = %s AND writes = %s AND ended_at IS NULL"
_LIST = (
    "SELECT worker.id, spool.host, machine, process, worker.began_at, holds, lease_us, bars, reach, ended_at,"
    " why_ended, ARRAY(SELECT name FROM claim WHERE worker_id = worker.id ORDER BY name) AS claims,"
    " extract(epoch FROM clock_timestamp() - wrote_at)::BIGINT AS silent"
    " FROM worker JOIN spool ON spool.id = worker.spool_id"
    " WHERE wrote_at > clock_timestamp() - interval '1 day' OR (holds = 1 AND ended_at IS NULL) ORDER BY worker.id DESC"
)
# A worker that cannot start is started again every few seconds.
_FORGET = "DELETE FROM worker WHERE ended_at < %s AND NOT EXISTS (SELECT FROM claim WHERE worker_id = worker.id)"
_REMEMBERED = timedelta(days=30)
_SILENT, _GONE, _STOPPED = "silent", "its process is gone", "stopped"
_BEAT_SECONDS = 10.0
# Beats in a lease: one that is late, or lost, is no silence.
_BEATS = 6
_TRUSTED = 0.75


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """A worker as it was seen: to be ended only where it has written nothing since."""

    id: int
    machine: str
    process: str
    writes: int
    lease: timedelta
    alone: bool  # it has the spool for itself

    @property
    def pid(self) -> int:
        return _pid_of(self.process)

    @property
    def is_gone(self) -> bool:
        """Whether its process was of this machine, as it runs now, and is no more."""
        return is_gone(self.process)


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A line of ``ingestd workers``."""

    id: int
    host: str  # the id of the spool that it is for
    machine: str
    process: int
    began_at: datetime
    holds: bool
    claims: tuple[str, ...]  # what of the spool's work is its own, where several are at work
    lease: timedelta
    silent: timedelta  # since its last transaction, by the database's clock
    bars: str  # what keeps it from taking anything over; "": nothing does
    unreached: tuple[str, ...]  # the destinations of which it gets no answer
    ended_at: datetime | None
    why_ended: str
    is_gone: bool  # its process was of this boot of this machine, and is no more

    @property
    def is_alive(self) -> bool:
        """Whether it has written within its lease, by the database's clock, and is not known to be gone."""
        return self.ended_at is None and not self.is_gone and self.silent < self.lease

    @property
    def is_late(self) -> bool:
        """Whether it lives, and has missed two of the six times that whoever lives writes in its lease."""
        return self.is_alive and self.silent > self.lease / 2

    @property
    def is_well(self) -> bool:
        """Whether it would take over what another has."""
        return self.is_alive and not self.bars

    @property
    def stands_by(self) -> bool:
        """Whether it waits until it may work."""
        return self.is_well and not self.holds


def expect_none(connection: Connection) -> None:
    """Raise LedgerHeld where somebody works, by the database's clock: to be asked before the tables change."""
    asked = (
        "SELECT machine, process FROM worker WHERE holds = 1 AND ended_at IS NULL"
        " AND wrote_at > clock_timestamp() - lease_us * interval '1 microsecond' ORDER BY id LIMIT 1"
    )
    for row in connection.exec_driver_sql(asked).all():
        if not is_gone(row.process):
            raise LedgerHeld(row.machine, _pid_of(row.process))


def beat_of(lease: timedelta) -> float:
    """Say how often a worker writes at the least, in seconds."""
    return min(_BEAT_SECONDS, lease.total_seconds() / _BEATS)


def trusted_until(began: float, lease: timedelta) -> float:
    """Say how long a worker may act after a transaction that it began then, and that was committed."""
    return began + _TRUSTED * lease.total_seconds()


def take(connection: Connection, writer: Writer, spool_id: int) -> Writer:
    """Be at work on a spool from now on, within a transaction that holds the lock of all writers.

    Raises LedgerHeld where another is with whom it cannot be shared, and which may not be ended: it is not a silent
    one that ``writer`` saw, nor a process of this boot that is gone.
    """
    connection.exec_driver_sql(_FORGET, (Instant.keep(utc_now() - _REMEMBERED),))
    others = [each for each in at_work(connection, spool_id) if each.alone or not writer.shares]
    for other in others:
        if not (other.is_gone or other in writer.ends) or not end_silent(connection, other):
            seem_silent = set(connection.exec_driver_sql(_SEEM_SILENT, (spool_id,)).scalars())
            is_silent = all(each.is_gone or each.id in seem_silent for each in others)
            raise LedgerHeld(other.machine, other.pid, silent=others if is_silent else ())
    after_silence = not all(each.is_gone for each in others)
    if writer.worker:
        became = "UPDATE worker SET holds = 1, alone = %s, bars = '' WHERE id = %s AND ended_at IS NULL"
        if connection.exec_driver_sql(became, (int(not writer.shares), writer.worker)).rowcount:
            return replace(writer, after_silence=after_silence)
    number = add(connection, spool_id, writer.lease, holds=True, alone=not writer.shares)
    return replace(writer, worker=number, after_silence=after_silence)


def end(connection: Connection, writer: Writer) -> None:
    """End a worker by its own will: who stands by need not wait."""
    ended = "UPDATE worker SET ended_at = %s, why_ended = %s WHERE id = %s AND ended_at IS NULL"
    connection.exec_driver_sql(ended, (Instant.keep(utc_now()), _STOPPED, writer.worker))


def listed(connection: Connection) -> list[Worker]:
    """List those that wrote within a day, and who holds a spool without having ended; the newest first."""
    return [
        Worker(
            id=row.id,
            host=row.host,
            machine=row.machine,
            process=_pid_of(row.process),
            began_at=Instant.give(row.began_at),
            holds=bool(row.holds),
            claims=tuple(row.claims),
            lease=row.lease_us * MICROSECOND,
            silent=timedelta(seconds=max(0, row.silent)),
            bars=row.bars,
            unreached=tuple(name for name, answers in json.loads(row.reach).items() if not answers),
            ended_at=None if row.ended_at is None else Instant.give(row.ended_at),
            why_ended=row.why_ended,
            is_gone=is_gone(row.process),
        )
        for row in connection.exec_driver_sql(_LIST)
    ]


def living(connection: Connection) -> list[Worker]:
    """List who lives, and end whoever else did not end, within a transaction that holds the lock of all writers.

    One that was only stopped would go on by what it knew before, and with its lease begun anew.
    """
    found = [each for each in listed(connection) if each.is_alive]
    ended = "UPDATE worker SET ended_at = %s, why_ended = %s WHERE id > 0 AND ended_at IS NULL AND id <> ALL (%s)"
    connection.exec_driver_sql(ended, (Instant.keep(utc_now()), _SILENT, [each.id for each in found]))
    return found


def at_work(connection: Connection, spool_id: int) -> list[Beat]:
    """Say who is at work on a spool, as each is now, the first to come first."""
    return [beat_from(row) for row in connection.exec_driver_sql(_BEATS_AT_WORK, (spool_id,))]


def beat_from(row: Any) -> Beat:
    """Make a Beat of a worker's row."""
    return Beat(
        id=row.id,
        machine=row.machine,
        process=row.process,
        writes=row.writes,
        lease=row.lease_us * MICROSECOND,
        alone=bool(row.alone),
    )


def holder_of(connection: Connection, spool_id: int) -> Beat | None:
    """Say who has a spool for itself, as it is now."""
    return next((each for each in at_work(connection, spool_id) if each.alone), None)


def add(
    connection: Connection, spool_id: int, lease: timedelta, *, holds: bool, alone: bool = False, bars: str = ""
) -> int:
    """Add the row of this process, and say its number."""
    now, process = Instant.keep(utc_now()), _process(os.getpid())
    values = (spool_id, os.uname().nodename, process, now, lease // MICROSECOND, int(holds), int(alone), bars)
    number: int = connection.exec_driver_sql(_NEW, values).scalar_one()
    return number


def end_silent(connection: Connection, seen: Beat) -> bool:
    """End a worker that has written nothing since it was seen so; say whether it has not."""
    why = _GONE if seen.is_gone else _SILENT
    return connection.exec_driver_sql(_END, (Instant.keep(utc_now()), why, seen.id, seen.writes)).rowcount == 1


@cache
def _here() -> str:
    """Name this boot of this kernel, and what numbers its processes."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"


def _process(pid: int) -> str:
    """Name a process of this machine so that no other one ever has its name: by its start, too (proc_pid_stat(5))."""
    started = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    return f"{_here()}:{pid}:{started}"


def _pid_of(process: str) -> int:
    return int(process.split(":")[2])


def is_gone(process: str) -> bool:
    """Whether a process is of this machine, as it runs now, and is no more; False where nobody can say."""
    if not process.startswith(f"{_here()}:"):
        return False
    pid = _pid_of(process)
    try:
        os.kill(pid, 0)  # sees it whatever of /proc is hidden (hidepid)
        return _process(pid) != process
    except ProcessLookupError:
        return True
    except OSError:
        return False
