"""The ledger: what became of every file, in one SQL database; every SQL statement of the program is in this room.

It knows nothing of folders, readers, servers or clocks: plain values in (``lifecycle`` and ``values``), plain values
out, ``now`` (aware UTC) an argument everywhere. The daemon writes from one thread; a person's moves in other processes
slip in between. An identity is held once at each destination; every row is of a spool, and claims, checks, removals and
recovery keep to the own one.

    with Ledger.open("sqlite:////abs/path", host=spool_id, spool=folder, destinations={name: url}) as ledger:
        for study in queries.studies_due(ledger, now=now):       # each read is its own: a hint
            with ledger.transaction() as tx:                     # BEGIN IMMEDIATE ... COMMIT, or nothing at all
                batch = moves.claim(tx, study.study_uid, now=now)
                waiting = queries.unproven(tx, now=now)          # of the rows as this transaction leaves them
                tx.on_commit(partial(post, batch))               # what is allowed only once that is durable

``queries`` and ``moves`` list what can be read and written; ``Ledger.open`` says who gives which argument.
LedgerError says what is wrong and what to do; LedgerBusy, LedgerFull and LedgerUnread are worth another try. A
``Ledger`` belongs to the thread that opened it.
"""

from typing import TYPE_CHECKING

from .agreement import Agreement
from .database import Writer
from .errors import (
    LedgerAway,
    LedgerBusy,
    LedgerDiffers,
    LedgerError,
    LedgerFenced,
    LedgerFull,
    LedgerHeld,
    LedgerMissing,
    LedgerOlder,
    LedgerPermission,
    LedgerUnread,
    OtherDestination,
    RefusedMove,
)
from .ledger import Ledger, stand_by
from .membership import UPKEEP, Member, inbox_claim, inbox_claimed
from .reports import Attempt, Choice, Count, Entry, Event, Status, Story, StudySummary
from .values import (
    KEY_MADE_ANEW,
    OTHER_ADDRESS_STEP,
    OTHER_LEDGER_STEP,
    Admitted,
    Alarm,
    Applied,
    ClockLine,
    DestinationStatus,
    Finished,
    Holder,
    InboxSummary,
    KeptFile,
    KnownSource,
    LeftCandidate,
    NewCandidate,
    OperatorRequest,
    PendingRead,
    Recovered,
    RejectedFile,
    Removable,
    RequestedRow,
    Rerouting,
    Resting,
    Retried,
    RoutableFile,
    RowToCompare,
    RowToRead,
    UnremovedSource,
    lost_spool_step,
)
from .workers import Beat, Worker

if TYPE_CHECKING:
    from .standing import StandingBy
    from .transaction import Transaction
else:

    def __getattr__(name: str) -> object:
        """Import what writes when somebody asks for it: a command that only reads starts sooner."""
        if name == "StandingBy":
            from .standing import StandingBy  # noqa: PLC0415

            return StandingBy
        if name != "Transaction":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .transaction import Transaction  # noqa: PLC0415

        return Transaction


__all__ = [
    "KEY_MADE_ANEW",
    "OTHER_ADDRESS_STEP",
    "OTHER_LEDGER_STEP",
    "UPKEEP",
    "Admitted",
    "Agreement",
    "Alarm",
    "Applied",
    "Attempt",
    "Beat",
    "Choice",
    "ClockLine",
    "Count",
    "DestinationStatus",
    "Entry",
    "Event",
    "Finished",
    "Holder",
    "InboxSummary",
    "KeptFile",
    "KnownSource",
    "Ledger",
    "LedgerAway",
    "LedgerBusy",
    "LedgerDiffers",
    "LedgerError",
    "LedgerFenced",
    "LedgerFull",
    "LedgerHeld",
    "LedgerMissing",
    "LedgerOlder",
    "LedgerPermission",
    "LedgerUnread",
    "LeftCandidate",
    "Member",
    "NewCandidate",
    "OperatorRequest",
    "OtherDestination",
    "PendingRead",
    "Recovered",
    "RefusedMove",
    "RejectedFile",
    "Removable",
    "RequestedRow",
    "Rerouting",
    "Resting",
    "Retried",
    "RoutableFile",
    "RowToCompare",
    "RowToRead",
    "StandingBy",
    "Status",
    "Story",
    "StudySummary",
    "Transaction",
    "UnremovedSource",
    "Worker",
    "Writer",
    "inbox_claim",
    "inbox_claimed",
    "lost_spool_step",
    "stand_by",
]
