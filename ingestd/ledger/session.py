"""One connection to the ledger: how statements are run, remembered and committed, and what is known of the hosts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import Executable

from ingestd.clocks import boottime
from ingestd.lease import Lease
from ingestd.lifecycle import BatchLimits, LongestWaits

from . import dialect, errors
from .database import Database, Writer
from .schema import inbox, meta, study
from .schema import spool as spool_table
from .workers import trusted_until

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine


PUT_META = dialect.upsert(meta)
# So many answers are remembered of a ledger that does not change: what is asked from some instant on is always new.
_ANSWERS = 500


class Queryable(Protocol):
    """Whatever ``queries`` are asked of.

    The ledger: each SELECT is a transaction of its own, a hint of how things stand. Or a transaction, which it begins:
    what is read so is what is written upon, since nobody else writes until the end of it.
    """

    host: str
    spool_id: int
    destination_id: int
    destinations: dict[str, int]
    spool: Path | None
    longest: LongestWaits

    def spool_of(self, spool_id: int) -> Path | None:
        """Say where a spool is, as it was last opened."""

    def inbox_of(self, inbox_id: int) -> str:
        """Say the name of an inbox."""

    def inbox_id(self, name: str) -> int | None:
        """Say by which number rows name an inbox of the own spool; None: none of its files was ever seen."""

    def study_id(self, uid: str) -> int | None:
        """Say by which number rows name a study; None: no file of it was ever seen."""

    def fetch_all(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """Give all rows of a SELECT."""

    def fetch_one(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Any:
        """Give the first row of a SELECT, None where there is none."""

    def fetch_cached(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """Give all rows; asked again only when the ledger has changed, for statements built once, with few values."""


class AtDestination:
    """Everything but ``destination_id`` is the other's: the same attributes, not a copy of them."""

    __slots__ = ("destination_id",)
    destination_id: int

    @classmethod
    def of(cls, whole: object, destination_id: int) -> Self:
        view = cls.__new__(cls)
        view.__dict__ = whole.__dict__  # type: ignore[misc]  # that of whoever it is mixed into
        view.destination_id = destination_id
        return view


class KnownStudy(NamedTuple):
    """A study's number, and what the file said that made it known: keyed hashes, "" or None where it said nothing."""

    id: int
    patient_hash: str | None
    accession_hash: str | None


class Session:
    """A connection and what is remembered beside it. It belongs to the thread that opened it."""

    # Waits that pace are read by it: what lies further ahead than its kind can reach is due.
    longest = LongestWaits()

    def __init__(self, database: Database, engine: Engine, *, writer: Writer, spool: Path | None) -> None:
        self.database = database
        self.name = database.name
        self.clock = database.clock
        self.engine = engine
        self.connection = self._connected()
        self.host = writer.host
        self.writer = writer
        # Until when what was read here may be acted upon, where another could take over (CLOCK_BOOTTIME).
        self.lease = Lease()
        # Whether others write, too, who wait for the end of each of our transactions.
        self.in_turns = False
        self.spool_id = 0  # known once the spool is in the ledger
        # The one destination that it is asked about (``at``), and all by name; known once it has any.
        self.destination_id = 0
        self.destinations: dict[str, int] = {}
        # Those that files go to now; the ledger may know others, of before.
        self.served: tuple[str, ...] = ()
        self.spool = spool
        self._writes = False
        self._limits: dict[int, BatchLimits] = {}
        self._spools: dict[int, Path] = {}
        # Names and numbers that never change.
        self._inboxes: dict[int, tuple[int, str]] = {}
        self._inbox_ids: dict[tuple[int, str], int] = {}
        self.studies_known: dict[str, KnownStudy] = {}
        # Answers that hold until the ledger changes, and the version that they are of; our own writes forget them.
        self._answers: dict[tuple[Executable, tuple[Any, ...]], Sequence[Any]] = {}
        self._version = 0
        self._looks = True  # whether the next question first looks for what others have written
        self._looks_once = False
        self.labels_known: set[tuple[str, str, int]] = set()
        self.written_at = 0.0  # when we were last heard of (CLOCK_BOOTTIME)
        # By what the last transaction is known where its COMMIT failed; "": it changed nothing.
        self.last_mark = ""

    def _connected(self) -> Connection:
        with self._telling():
            return self.engine.connect()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Raise LedgerError for what the driver raises, to SQLAlchemy or to us."""
        try:
            yield
        except DBAPIError as error:
            raise self.database.failure(error.orig) from None
        except self.database.driver_error as error:
            raise self.database.failure(error) from None

    def roll_back(self) -> None:
        """End what was begun; a connection that cannot is given up, and the next statement makes another."""
        try:
            self.connection.rollback()
        except DBAPIError:
            self.connection.invalidate()

    def fetch_all(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        try:
            with self._telling():
                return self.connection.execute(statement, values).all()
        finally:
            if not self._writes:
                self.roll_back()

    def fetch_one(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Any:
        rows = self.fetch_all(statement, values)
        return rows[0] if rows else None

    def fetch_cached(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        if self._writes:
            return self.fetch_all(statement, values)
        if self._looks:
            version = self._version_now()
            if version != self._version:
                self._version = version
                self._answers.clear()
            self._looks = not self._looks_once
        asked = (statement, tuple(values.values()) if values else ())
        if asked not in self._answers:
            if len(self._answers) >= _ANSWERS:
                self._answers.clear()
            # Read behind the version: what is written in between is read once more.
            self._answers[asked] = self.fetch_all(statement, values)
        return self._answers[asked]

    @contextmanager
    def one_look(self) -> Iterator[None]:
        """Within it, only the first question that is answered from memory looks for what others have written."""
        self._looks_once = True
        try:
            yield
        finally:
            self._looks, self._looks_once = True, False

    def has_news(self) -> bool:
        """Whether another connection has committed since that was last looked for; False where nobody can say."""
        try:
            return self._version_now() != self._version
        except errors.LedgerError:
            return False

    def _version_now(self) -> int:
        with self.asking():
            return self.database.version(self.connection, self.writer)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask the database something of its own, in a transaction that ends with it; raises LedgerError."""
        try:
            with self._telling():
                yield
        finally:
            self.roll_back()

    @contextmanager
    def begin(self, *, anew: bool = False, studies: Collection[str] | None = None) -> Iterator[Connection]:
        """Begin to write, and COMMIT, or ROLLBACK after whatever was raised; raises LedgerError.

        ``anew``: there may be no ledger yet, or an older one. ``studies`` as for ``Ledger.transaction``.
        """
        assert not self._writes, "one transaction at a time"
        self._writes = True
        self._answers.clear()
        # Another host's daemon may have been given other ones since; our own are changed by nobody else.
        self._limits = {each: limits for each, limits in self._limits.items() if each == self.spool_id}
        self.last_mark = ""
        in_turns = self.in_turns and not anew
        began = boottime()
        try:
            with self._telling(), self._undoing():
                with self.connection.begin():
                    writer = None if anew else self.writer
                    self.database.begin(self.connection, writer, in_turns=in_turns, studies=studies)
                    yield self.connection
                    self.last_mark = "" if anew else self.database.mark(self.connection, self.writer)
                if in_turns:
                    with self.asking():
                        self.database.flush(self.connection, self.writer)
                self._renew(began)
        finally:
            self._writes = False

    @contextmanager
    def _undoing(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, self.database.driver_error):
            self.database.undo(self.connection)
            raise

    def beat(self) -> None:
        """Show that we live, although there is nothing to write; raises LedgerError."""
        began = boottime()
        with self.asking():
            self.database.beat(self.connection, self.writer)
        self._renew(began)

    @property
    def worker(self) -> int:
        """Our number among all who write; 0 where nobody has one."""
        return self.writer.worker

    def _renew(self, began: float) -> None:
        if self.writer.worker:
            self.written_at = began
            self.lease.renew(trusted_until(began, self.writer.lease))

    def is_last(self, mark: str) -> bool:
        """Say whether the transaction with this mark is durable, and our last one; raises LedgerError."""
        with self.asking():
            return self.database.is_last(self.connection, self.writer, mark)

    def spool_of(self, spool_id: int) -> Path | None:
        if spool_id == self.spool_id:
            return self.spool
        if spool_id not in self._spools:
            rows = self.fetch_all(select(spool_table.c.id, spool_table.c.path))
            self._spools.update((row.id, Path(row.path)) for row in rows if row.path)
        return self._spools.get(spool_id)

    def forget_names(self) -> None:
        """Forget what may have been taken back with a transaction."""
        self.labels_known.clear()
        self.studies_known.clear()
        self._inboxes.clear()
        self._inbox_ids.clear()

    def inbox_of(self, inbox_id: int) -> str:
        if inbox_id not in self._inboxes:
            self._read_inboxes()
        return self._inboxes[inbox_id][1]

    def inbox_id(self, name: str) -> int | None:
        wanted = (self.spool_id, name)
        if wanted not in self._inbox_ids:
            self._read_inboxes()
        return self._inbox_ids.get(wanted)

    def _read_inboxes(self) -> None:
        rows = self.fetch_all(select(inbox.c.id, inbox.c.spool_id, inbox.c.name))
        self._inboxes = {row.id: (row.spool_id, row.name) for row in rows}
        self._inbox_ids = {known: inbox_id for inbox_id, known in self._inboxes.items()}

    def study_id(self, uid: str) -> int | None:
        known = self.studies_known.get(uid) or self.fetch_one(select(study.c.id).where(study.c.uid == uid))
        return known.id if known else None

    def limits_of(self, spool_id: int) -> BatchLimits:
        """Say by which limits a spool's batches are cut, as it was last opened."""
        if spool_id not in self._limits:
            row = self.fetch_one(select(spool_table).where(spool_table.c.id == spool_id))
            self._limits[spool_id] = (
                BatchLimits()
                if row is None
                else BatchLimits(
                    quiet_period=timedelta(microseconds=row.quiet_period_us),
                    max_wait=timedelta(microseconds=row.max_wait_us),
                    max_bytes=row.max_bytes,
                    max_instances=row.max_instances,
                )
            )
        return self._limits[spool_id]
