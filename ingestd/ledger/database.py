"""What a ledger asks of the database that it is kept in: how it is opened, begun, told apart, guarded and copied.

``Sqlite`` and ``Postgres`` answer; the statements themselves are the same (``dialect``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ingestd.clocks import Clock

from .errors import LedgerError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from .membership import Member
    from .workers import Beat, Worker

# Told what is being done, now and then while it goes on; it must not raise.
Tell = Callable[[str], object]

POSTGRES_URL = ("postgresql://", "postgres://")


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes: the host whose rows they are ("": a person), and the number of its row in ``worker``.

    0 is all who have none: people, and on SQLite everybody.
    """

    host: str = ""
    worker: int = 0
    lease: timedelta = timedelta(seconds=60)  # the silence after which another may end it
    shares: bool = False  # with others who do: each has claims of its own; else it has the spool for itself
    ends: tuple[Beat, ...] = ()  # whom it saw silent, each for that one's lease, and may end
    after_silence: bool = False  # whether it took over from one that may act still
    lost_record: bool = False  # whether commits may have been lost since this host wrote last


class Database(Protocol):
    """One database, which has a ledger or is to have one. All raise LedgerError."""

    name: str  # as messages call it: a file, or a URL that says nothing secret
    words: Mapping[str, str]  # what the schema is made of (``baseline``, ``migrations``)
    is_shared: bool  # by several machines, which have one spool
    driver_error: type[Exception]  # what its driver raises
    clock: Clock  # by which all who write it go

    def is_too_long(self, relative_path: str) -> bool:
        """Whether a file's path in its folder cannot be kept."""

    def open_engine(self, *, create: bool, read_only: bool, rehearsal: bool = False) -> Engine:
        """Make the engine; ``rehearsal``: make no file. LedgerMissing: there is no ledger, and none may be made."""

    def failure(self, error: BaseException | None) -> LedgerError:
        """Tell a person what the driver's error means for the ledger."""

    def begin(
        self,
        connection: Connection,
        writer: Writer | None,
        *,
        in_turns: bool = False,
        studies: Collection[str] | None = None,
    ) -> None:
        """Begin a transaction that writes: until its end nobody else does. None: before there is a ledger.

        ``in_turns``: others wait for that end, so that it is not to be durable yet by COMMIT (``flush``). With
        ``studies`` nobody else changes files of these, and others may change those of other studies.
        """

    def try_lock(self, connection: Connection, studies: Collection[str]) -> set[str]:
        """Have a transaction that began with ``studies`` change files of these, too; not of those that others have."""

    def flush(self, connection: Connection, writer: Writer) -> None:
        """Have the last transaction be durable, and all before it."""

    def mark(self, connection: Connection, writer: Writer) -> str:
        """Say before COMMIT by what a transaction is known once it is durable; "": by none, or it changed nothing."""

    def is_last(self, connection: Connection, writer: Writer, mark: str) -> bool:
        """Say whether the transaction with this mark is durable, and this writer's last."""

    def undo(self, connection: Connection) -> None:
        """Roll back what a transaction that failed left open."""

    def version(self, connection: Connection, writer: Writer) -> int:
        """Name the state that others have left the ledger in: another one as soon as somebody else has committed."""

    def take(self, connection: Connection, writer: Writer, spool_id: int) -> Writer:
        """Say as whom to write from now on for a spool; LedgerHeld where another does."""

    def others(self, connection: Connection, writer: Writer, spool_id: int) -> Sequence[int]:
        """Number those at work on a spool beside this one who were not ended: what they began is theirs."""

    def agreed(self, connection: Connection) -> str | None:
        """Give what all had agreed upon (``Agreement.kept``) as the transaction began; None: nothing."""

    def trust(self, connection: Connection, writer: Writer) -> None:
        """Put down that what this host may have lost has been seen to (``Writer.lost_record``)."""

    def beat(self, connection: Connection, writer: Writer) -> None:
        """Show that this one lives, whoever else writes just now; LedgerFenced where it was ended."""

    def end(self, connection: Connection, writer: Writer) -> None:
        """Say that this one writes no more."""

    def workers(self, connection: Connection) -> Sequence[Worker] | None:
        """List the workers of the last day, the newest first; None: there is only one, which has the spool's lock."""

    def living(self, connection: Connection) -> Sequence[Worker]:
        """List the workers that live, and end the others for good; nobody where there is only one."""

    def machines(self, connection: Connection, workers: Collection[int]) -> Mapping[int, str]:
        """Name the machines of these workers, as far as they are remembered."""

    def members(self, connection: Connection, spool_id: int) -> Sequence[Member]:
        """List who is at work on a spool, with the claims of each."""

    def key_file(self) -> Path | None:
        """Say where the key of the search words lies by itself; None: with whoever keeps the files."""

    def has_tables(self, connection: Connection) -> bool:
        """Whether it has the ledger's tables; LedgerError if it has somebody else's."""

    def make_own(self, connection: Connection) -> None:
        """Make what only this database needs, in a ledger that is made anew: what numbers are taken from."""

    def install_guards(self, connection: Connection) -> None:
        """Have the database itself refuse what ``guards`` name."""

    def check_quickly(self, connection: Connection) -> None:
        """Raise LedgerError where it is damaged, as far as a look of bounded cost can tell."""

    def bring_up_to_date(self, connection: Connection, tell: Tell | None) -> None:
        """Migrate a ledger that has tables to the newest schema, wholly or not at all."""

    def foretell(self, schema: int) -> str:
        """Say what ``bring_up_to_date`` would do with a ledger of this schema; LedgerFull: there is too little room."""

    def back_up(self, connection: Connection, folder: Path) -> None:
        """Copy the ledger into a folder; raises OSError, too."""
