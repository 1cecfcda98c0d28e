"""Workers: who writes a PostgreSQL ledger for a spool, and who stands by to go on where that one is silent.

**One holds, the others stand by.** Each start of whoever takes files in is a row of ``worker``, which is never revived;
at most one of a spool's has ``holds`` (a unique index). Each of its transactions counts ``writes`` up (the fence of
``postgres``), at the least every ``beat``: the count is its heartbeat.

**Silence.** Whoever stands by looks at the count by its own CLOCK_BOOTTIME; no clock of two machines is ever compared.
Where it has not moved for the lease that its holder gave itself, that worker may be ended, on the condition that the
count is still the one that was seen: a transaction under way holds the row, and has moved it when its COMMIT lets go.
So what was ended has written for the last time, and what is taken over is what it left. A process of this very boot
that is gone, is ended without waiting.

**The holder** trusts its lease for three quarters of it, from the start of its last transaction that was committed
(``ingestd.lease``): when another may end it, it has stopped to act.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
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
    writes BIGINT NOT NULL DEFAULT 0,
    wrote_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    bars TEXT NOT NULL DEFAULT '',
    ended_at BIGINT,
    why_ended TEXT NOT NULL DEFAULT ''
) WITH (fillfactor = 50)"""
ONE_HOLDS = "CREATE UNIQUE INDEX worker_holds ON worker (spool_id) WHERE holds = 1 AND ended_at IS NULL"
ALIVE = "CREATE INDEX worker_alive ON worker (id) WHERE ended_at IS NULL"
# All who have no row of their own: the fence counts what people write, too.
PEOPLE = "INSERT INTO worker (id, machine, process, began_at, lease_us) VALUES (0, '', '', 0, 0)"
COUNT = "UPDATE worker SET writes = writes + 1, wrote_at = clock_timestamp() WHERE id = {} AND ended_at IS NULL"
FENCE = f"{COUNT} RETURNING writes"
_HOLDER = (
    "SELECT id, machine, process, writes, lease_us FROM worker WHERE spool_id = %s AND holds = 1 AND ended_at IS NULL"
)
_NEW = (
    "INSERT INTO worker (id, spool_id, machine, process, began_at, lease_us, holds, bars)"
    " VALUES (nextval('worker_number'), %s, %s, %s, %s, %s, %s, %s) RETURNING id"
)
_END = "UPDATE worker SET ended_at = %s, why_ended = %s WHERE id = %s AND writes = %s AND ended_at IS NULL"
_LIST = (
    "SELECT worker.id, spool.host, machine, process, worker.began_at, holds, lease_us, bars, ended_at, why_ended,"
    " extract(epoch FROM clock_timestamp() - wrote_at)::BIGINT AS silent"
    " FROM worker JOIN spool ON spool.id = worker.spool_id"
    " WHERE wrote_at > clock_timestamp() - interval '1 day' OR (holds = 1 AND ended_at IS NULL) ORDER BY worker.id DESC"
)
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

    @property
    def pid(self) -> int:
        return _pid_of(self.process)


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A line of ``ingestd workers``."""

    id: int
    host: str  # the id of the spool that it is for
    machine: str
    process: int
    began_at: datetime
    holds: bool
    lease: timedelta
    silent: timedelta  # since its last transaction, by the database's clock
    bars: str  # what keeps it from taking over; "": nothing does
    ended_at: datetime | None
    why_ended: str
    is_gone: bool  # its process was of this boot of this machine, and is no more

    @property
    def is_alive(self) -> bool:
        """Whether it has written within its lease, by the database's clock, and is not known to be gone."""
        return self.ended_at is None and not self.is_gone and self.silent < self.lease

    @property
    def stands_by(self) -> bool:
        """Whether it would take over."""
        return self.is_alive and not self.holds and not self.bars


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
    """Hold a spool from now on, within a transaction that holds the lock of all writers.

    Raises LedgerHeld where another worker does that may not be ended: it is not the silent one that ``writer`` saw,
    nor a process of this boot that is gone.
    """
    holder = holder_of(connection, spool_id)
    has_gone = holder is not None and is_gone(holder.process)
    if holder is not None:
        may_end = has_gone or holder == writer.ends
        if not may_end or not end_silent(connection, holder, _GONE if has_gone else _SILENT):
            raise LedgerHeld(holder.machine, _pid_of(holder.process))
    after_silence = holder is not None and not has_gone
    if writer.worker:
        became = "UPDATE worker SET holds = 1, bars = '' WHERE id = %s AND ended_at IS NULL"
        if connection.exec_driver_sql(became, (writer.worker,)).rowcount:
            return replace(writer, after_silence=after_silence)
    number = add(connection, spool_id, writer.lease, holds=1)
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
            lease=row.lease_us * MICROSECOND,
            silent=timedelta(seconds=max(0, row.silent)),
            bars=row.bars,
            ended_at=None if row.ended_at is None else Instant.give(row.ended_at),
            why_ended=row.why_ended,
            is_gone=is_gone(row.process),
        )
        for row in connection.exec_driver_sql(_LIST)
    ]


def holder_of(connection: Connection, spool_id: int) -> Beat | None:
    """Say who holds a spool, as it is now."""
    rows: Sequence[Any] = connection.exec_driver_sql(_HOLDER, (spool_id,)).all()
    if not rows:
        return None
    (row,) = rows
    lease = row.lease_us * MICROSECOND
    return Beat(id=row.id, machine=row.machine, process=row.process, writes=row.writes, lease=lease)


def add(connection: Connection, spool_id: int, lease: timedelta, *, holds: int, bars: str = "") -> int:
    """Add the row of this process, and say its number."""
    now = Instant.keep(utc_now())
    values = (spool_id, os.uname().nodename, _process(os.getpid()), now, lease // MICROSECOND, holds, bars)
    number: int = connection.exec_driver_sql(_NEW, values).scalar_one()
    return number


def end_silent(connection: Connection, seen: Beat, why: str) -> bool:
    """End a worker that has written nothing since it was seen so; say whether it has not."""
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
