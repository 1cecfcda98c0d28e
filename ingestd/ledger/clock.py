"""The wall clock as this ledger has seen it: a line for each boot, and for each time that somebody set it.

Facts keep the time that they were written with. Backoffs and checks are moved along with the clock, so that they last
as long as they would have; what has to have passed for certain, and what came before what, goes by these lines.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, bindparam, insert, type_coerce, update

from .column_types import MICROSECOND
from .counters import set_due_again
from .schema import clock, instance, study
from .transaction import Transaction
from .values import ClockLine

_BY = bindparam("b_by", type_=BigInteger())
# A study's quiet period is short, and read by its own longest: it stays, and when the study is due is said anew.
_MOVE = tuple(
    update(at.table)
    .where(at.table.c.host == bindparam("b_host"), at.is_not(None))
    .values({at.name: type_coerce(at, BigInteger) + _BY})
    for at in (instance.c.next_attempt_at, instance.c.next_check_at, study.c.next_attempt_at)
)


def put_clock(tx: Transaction, line: ClockLine) -> None:
    """Put down what the wall clock was set to, and move the waits that pace along with it."""
    # Behind the counters that were gathered, which may know of waits themselves.
    tx.flush_all()
    jump = line.jump
    tx.connection.execute(
        insert(clock),
        {
            "host": tx.host,
            "at": jump.at,
            "boot": line.boot,
            "offset_us": line.offset // MICROSECOND,
            "by_us": jump.by // MICROSECOND,
            "last_entry_id": jump.last_entry_id,
            "last_attempt_id": jump.last_attempt_id,
        },
    )
    if jump.by:
        for statement in _MOVE:
            tx.connection.execute(statement, {"b_host": tx.host, "b_by": jump.by // MICROSECOND})
        set_due_again(tx.connection, tx.host, tx.limits_of(tx.host))
