"""The wall clock as this ledger has seen it: a line for each boot, and for each time that somebody set it.

Facts keep the time that they were written with. Backoffs and checks are moved along with the clock, so that they last
as long as they would have; what has to have passed for certain, and what came before what, goes by these lines.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, bindparam, insert, select, type_coerce, update

from .column_types import MICROSECOND
from .counters import set_due_again
from .schema import clock, delivery, destination, study_sum
from .transaction import Transaction
from .values import ClockLine

_BY = bindparam("b_by", type_=BigInteger())
# A study's quiet period is short, and read by its own longest: it stays, and when the study is due is said anew.
_MOVE = tuple(
    update(at.table)
    .where(
        at.table.c.destination_id.in_(select(destination.c.id)),
        at.table.c.spool_id == bindparam("b_spool"),
        at.is_not(None),
    )
    .values({at.name: type_coerce(at, BigInteger) + _BY})
    for at in (delivery.c.next_attempt_at, delivery.c.next_check_at, study_sum.c.next_attempt_at)
)


def put_clock(tx: Transaction, line: ClockLine) -> None:
    """Put down what the wall clock was set to, and move the waits that pace along with it."""
    # Behind the counters that were gathered, which may know of waits themselves.
    tx.flush_all()
    jump = line.jump
    tx.connection.execute(
        insert(clock),
        {
            "spool_id": tx.spool_id,
            "at": jump.at,
            "boot": line.boot,
            "offset_us": line.offset // MICROSECOND,
            "by_us": jump.by // MICROSECOND,
            "last_file_id": jump.last_file_id,
            "last_attempt_id": jump.last_attempt_id,
        },
    )
    # Where several go by one clock, each puts down that it was set, and who came first moves what waits by it.
    if jump.by and all(tx.worker < other for other in tx.others()):
        for statement in _MOVE:
            tx.connection.execute(statement, {"b_spool": tx.spool_id, "b_by": jump.by // MICROSECOND})
        set_due_again(tx.connection, tx.spool_id, tx.limits_of(tx.spool_id))
        tx.counters.forget_studies()
