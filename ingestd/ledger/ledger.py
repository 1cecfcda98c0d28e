"""The ledger itself: opened, migrated, guarded; one connection, one thread."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from math import inf
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from ingestd.clocks import utc_now
from ingestd.lifecycle import BatchLimits, LongestWaits

from . import baseline
from .database import POSTGRES_URL, Database, Tell, Writer
from .errors import LedgerError, LedgerMissing, LedgerOlder
from .migrations import MIGRATIONS
from .registry import SEND_FOLDER, Registry
from .schema import destination as destination_table
from .schema import meta
from .search_key import SearchKey
from .session import PUT_META, AtDestination
from .sqlite import Sqlite
from .study_locks import MOST_STUDIES
from .workers import beat_of

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from .membership import Member
    from .standing import StandingBy
    from .transaction import Transaction
    from .workers import Worker

# What ``meta`` says of a ledger that was moved away, and of one that is being made so: a token, and whence or whither.
MOVED, MOVING = "moved", "moving"


def database_of(url: str) -> Database:
    """Say which database this URL names; LedgerError if it is no URL of a ledger that we can keep."""
    if url.startswith(POSTGRES_URL):
        from .postgres import Postgres  # noqa: PLC0415 - of an extra, which most do without

        return Postgres(url)
    return Sqlite(url)


def stand_by(url: str, *, host: str, lease: timedelta, agreement: Mapping[str, str]) -> StandingBy:
    """Wait for the spool with this id, which another worker may hold; raises LedgerError."""
    from .standing import StandingBy  # noqa: PLC0415 - as `Postgres`

    return StandingBy(database_of(url), host=host, lease=lease, agreement=agreement)


def make_tables(database: Database, connection: Connection) -> None:
    """Make all of a ledger but its rows."""
    for statement in (*baseline.STATEMENTS, *chain.from_iterable(MIGRATIONS[baseline.SCHEMA :])):
        connection.exec_driver_sql(statement.format(**database.words))
    database.make_own(connection)


def expect_usable(name: str, marks: Mapping[str, str]) -> None:
    """Raise LedgerError for a ledger that was moved away, or is not moved to its end yet, by what its ``meta`` says."""
    if MOVED in marks:
        raise LedgerError(
            f"the ledger {name} was moved to {marks[MOVED].partition(' ')[2]}, and is no longer used; name that one in"
            " the configuration"
        )
    if MOVING in marks:
        raise LedgerError(
            f"the ledger {name} is not to be used yet: it was to be moved there from"
            f" {marks[MOVING].partition(' ')[2]}, and that was cut short; call `ingestd ledger move` again"
        )


class _RehearsedError(Exception):
    """Takes back what a rehearsal did."""


class Ledger(Registry):
    """An open ledger: ``queries`` read it, ``moves`` write it in a ``transaction``."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        *,
        writer: Writer,
        spool: Path | None,
        key: Path | None,
        read_only: bool,
    ) -> None:
        super().__init__(database, engine, writer=writer, spool=spool)
        self._read_only = read_only
        self.search_key = SearchKey(self, database.key_file() or key, may_make=not read_only)
        # How long the last commit took: what a transaction costs, however little is in it.
        self.commit_seconds = 0.0
        # A transaction whose COMMIT failed so that nobody knows what became of it, and its mark.
        self._doubt: tuple[Transaction, str] | None = None

    @classmethod
    def open(
        cls,
        url: str,
        *,
        host: str = "",
        destinations: Mapping[str, str] | None = None,
        spool: Path | None = None,
        limits: BatchLimits | None = None,
        longest: LongestWaits | None = None,
        create: bool = True,
        read_only: bool = False,
        tell: Tell | None = None,
        key: Path | None = None,
        beside: bool = False,
        writer: Writer | None = None,
        agreement: Mapping[str, str] | None = None,
    ) -> Ledger:
        """Open the ledger of this URL, making it or bringing it up to date where that is needed.

        ``host``, ``spool`` and ``limits`` are given by whoever takes files in and sends them, and by nobody else.
        ``longest`` is how far ahead waits can lie. ``tell`` hears, in words, how bringing up to date goes on. ``key``
        is where the key of the search words lies of a ledger that is no file. ``beside``: whoever runs as this host
        goes on writing, with its own limits. ``writer`` is who stood by as this host, and takes over (``StandingBy``).
        ``agreement`` is what a configuration says that all have to say alike.
        Raises LedgerError with what to do about it: another destination, a newer or damaged ledger, a network file
        system, no permission, not there.
        """
        database = database_of(url)
        engine = database.open_engine(create=create, read_only=read_only)
        writer = writer or Writer(host)
        ledger = cls(database, engine, writer=writer, spool=spool, key=key, read_only=read_only)
        try:
            if read_only:
                ledger._expect_schema()
                ledger.expect_destinations(destinations)
            else:
                ledger._bring_up_to_date(tell)
                ledger._prepare(destinations, limits, create=create, beside=beside, agreement=agreement)
        except DBAPIError as error:
            ledger.close()
            raise database.failure(error.orig) from None
        except BaseException:
            ledger.close()
            raise
        if longest is not None:
            ledger.longest = replace(longest, quiet=ledger.longest.quiet)
        return ledger

    @classmethod
    def rehearse(
        cls, url: str, *, host: str, destinations: Mapping[str, str], spool: Path, key: Path | None = None
    ) -> bool:
        """Raise the LedgerError that ``open`` would raise for whoever takes files in; what is done is rolled back.

        No file is made. LedgerMissing: there is none yet, and it can be made. LedgerOlder: there is one that ``open``
        would bring up to date, which takes too long to be tried; it says how long, and what room that needs. Say
        whether the key of the search words is missing, so that ``open`` would make another.
        """
        database = database_of(url)
        engine = database.open_engine(create=False, read_only=False, rehearsal=True)
        try:
            with cls(database, engine, writer=Writer(host), spool=spool, key=key, read_only=False) as ledger:
                ledger._expect_current(destinations)
                ledger._prepare(destinations, None, rehearsal=True)
                return ledger.search_key.was_missing
        except DBAPIError as error:
            raise database.failure(error.orig) from None
        finally:
            engine.dispose()

    def at(self, name: str) -> Ledger:
        """Give this very ledger as one destination has it: what is asked of a server is asked of that one.

        Raises KeyError for a destination that it does not know.
        """
        return _LedgerAt.of(self, self.destinations[name])

    def close(self) -> None:
        """Let go of it: whoever stands by may take over."""
        if self.writer.worker and not self.connection.closed:
            self.lease.renew(0.0)
            # Where it fails we are silent from now on.
            with suppress(DBAPIError, LedgerError):
                self.database.end(self.connection, self.writer)
        self.roll_back()
        self.connection.close()
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def transaction(self, studies: Collection[str] | None = None) -> Iterator[Transaction]:
        """Write: everything done with the transaction is committed together at the end, or not at all.

        It begins with the first statement through it; then what waits for the commit is done, also where none was.
        With ``studies`` (UIDs) only files of these change in it, those that ``Transaction.may_change`` adds, and files
        that are not in a study yet: then others who change those of other studies need not wait. Raises LedgerBusy or
        LedgerFull where trying again later may help.
        """
        # Who only reads the ledger, as `ingestd status` does, need not wait for all that writes it.
        from .transaction import Transaction  # noqa: PLC0415

        if self._read_only:
            raise LedgerError(f"the ledger {self.name} was opened for reading only")
        self.resolve()
        begun = ExitStack()
        if not self.in_turns or (studies is not None and len(studies) > MOST_STUDIES):
            studies = None
        tx = Transaction(self, lambda: begun.enter_context(self.begin(studies=studies)), studies)
        is_at_commit = False
        try:
            with begun:
                yield tx
                tx.end()
                is_at_commit, began = tx.has_begun, time.perf_counter()
        except BaseException:
            if is_at_commit:
                self._doubt = (tx, self.last_mark)
            self.forget_names()
            raise
        if tx.has_begun:
            tx.wrote = bool(self.last_mark)
            self.commit_seconds = time.perf_counter() - began
        tx.committed()

    def resolve(self) -> None:
        """Find out what became of a transaction whose COMMIT failed: done after all, what waited for it is done now.

        SQLite may say that a COMMIT failed which is durable (the fsync of its folder, once the journal is gone). To be
        called before anything goes by what was collected for that transaction; ``transaction`` does so too.
        Raises LedgerError while the ledger cannot be read: then nobody knows still.
        """
        if self._doubt is None:
            return
        tx, mark = self._doubt
        is_durable = bool(mark) and self.is_last(mark)
        self._doubt = None
        if is_durable:
            import structlog  # noqa: PLC0415 - as in `SearchKey`: a line that few see

            structlog.get_logger().warning("ledger.committed_after_all")
            tx.committed()

    def forget_doubt(self) -> None:
        """Drop what waits for a COMMIT that failed: whoever was to do it is gone, and start-up finds it to be done.

        To be called by a daemon that has handed the ledger over to another, or settles what it leaves as it ends.
        """
        self._doubt = None

    def workers(self) -> Sequence[Worker] | None:
        """List who writes, and who stands by; None where whoever has the spool's lock is the only one."""
        with self.asking():
            return self.database.workers(self.connection)

    def machines(self, workers: Collection[int]) -> Mapping[int, str]:
        """Name the machines of these workers, as far as they are remembered."""
        with self.asking():
            return self.database.machines(self.connection, workers)

    def members(self) -> Sequence[Member]:
        """List who is at work on our spool, with the claims of each; nobody where it is not shared."""
        with self.asking():
            return self.database.members(self.connection, self.spool_id)

    @property
    def is_shared(self) -> bool:
        """Whether others may be at work on our spool, so that each has claims of its own."""
        return self.writer.shares

    @property
    def beat_seconds(self) -> float:
        """How often something has to be written, so that nobody takes over: inf where nobody could."""
        return beat_of(self.writer.lease) if self.writer.worker else inf

    @property
    def after_silence(self) -> bool:
        """Whether whoever worked here before may be doing so still: it was silent, and is not known to be gone."""
        return self.writer.after_silence

    @property
    def lost_record(self) -> bool:
        """Whether commits may be lost that were made here: the server is another than the last time (a failover)."""
        return self.writer.lost_record

    def trust_record(self, tx: Transaction) -> None:
        """What may have been lost has been seen to."""
        self.database.trust(tx.connection, self.writer)

    def set_limits(self, limits: BatchLimits) -> None:
        """Cut this host's batches by these limits from now on, and have its waiting studies due accordingly.

        Raises LedgerError: nothing was changed then.
        """
        self.resolve()  # this transaction's mark takes the place of the one that is looked for
        with self.begin():
            self._put_host(limits)

    def adopt_destinations(self, wanted: Mapping[str, str]) -> None:
        """Have these destinations, URLs by name, from now on, and refuse what ``expect_destinations`` does."""
        self.resolve()
        self.expect_destinations(wanted)
        if wanted.keys() - self.destinations.keys():
            with self.begin():
                self._adopt_destinations(wanted)

    def back_up(self, folder: Path) -> bool:
        """Copy this ledger into the folder, and its key beside it; say whether the key that is there now is its own.

        Raises LedgerError and OSError.
        """
        ours = self.search_key.back_up(folder)
        self.database.back_up(self.connection, folder)
        self.roll_back()
        return ours

    def _bring_up_to_date(self, tell: Tell | None) -> None:
        if not self.database.has_tables(self.connection):
            return
        schema = self._schema()
        if self.host or schema < len(MIGRATIONS):
            # What is damaged is not migrated, whoever asks.
            self.database.check_quickly(self.connection)
        self.roll_back()
        if schema < len(MIGRATIONS):
            self.database.bring_up_to_date(self.connection, tell)

    def _expect_current(self, wanted: Mapping[str, str]) -> None:
        if not self.database.has_tables(self.connection):
            return
        self.database.check_quickly(self.connection)
        schema = self._schema()
        if schema < len(MIGRATIONS):
            belongs_to = self.connection.execute(select(destination_table.c.url)).scalar()
            if belongs_to not in {url.rstrip("/") for url in wanted.values()}:
                self._refuse_other("the server", belongs_to or "", next(iter(wanted.values())))
            raise LedgerOlder(self.database.foretell(schema))

    def _prepare(
        self,
        destinations: Mapping[str, str] | None,
        limits: BatchLimits | None,
        *,
        create: bool = True,
        beside: bool = False,
        agreement: Mapping[str, str] | None = None,
        rehearsal: bool = False,
    ) -> None:
        self.roll_back()
        with suppress(_RehearsedError), self.begin(anew=True):
            self._make_tables(create=create)
            self.database.install_guards(self.connection)
            self._adopt_destinations(destinations)
            if self.host:
                if not self.served:
                    raise LedgerError(f"the ledger {self.name} knows no destination, and none was given")
                if agreement is not None:
                    is_of_send = self.spool is not None and self.spool.name == SEND_FOLDER
                    self.expect_agreement(agreement, is_whole=not (beside or is_of_send))
                if beside:
                    self._join_host()
                else:
                    self._put_host(limits or BatchLimits())
                self.search_key.expect(rehearsal=rehearsal)
            if rehearsal:
                raise _RehearsedError

    def _schema(self) -> int:
        asked = select(meta.c.key, meta.c.value).where(meta.c.key.in_(("schema", MOVED, MOVING)))
        said = dict(tuple(row) for row in self.connection.execute(asked))
        expect_usable(self.name, said)
        schema = int(said["schema"])
        if schema > len(MIGRATIONS):
            raise LedgerError(
                f"the ledger {self.name} was written by a newer ingestd (schema {schema}, this one knows"
                f" {len(MIGRATIONS)}); run that version, or a newer one"
            )
        return schema

    def _make_tables(self, *, create: bool) -> None:
        if self.database.has_tables(self.connection):
            self._schema()
            return
        if not create:
            raise LedgerMissing(f"the ledger {self.name} is empty; `ingestd run` fills it")
        make_tables(self.database, self.connection)
        made_at = utc_now().isoformat(timespec="seconds")
        self.connection.execute(PUT_META, {"key": "made_at", "value": made_at})
        self.connection.execute(PUT_META, {"key": "schema", "value": str(len(MIGRATIONS))})

    def _expect_schema(self) -> None:
        try:
            if not self.database.has_tables(self.connection):
                raise LedgerMissing(f"the ledger {self.name} is empty; `ingestd run` fills it")
            schema = self._schema()
            if schema < len(MIGRATIONS):
                raise LedgerOlder(
                    f"the ledger {self.name} is of an older ingestd (schema {schema}); start `ingestd run` once to"
                    " bring it up to date"
                )
        finally:
            self.roll_back()


class _LedgerAt(AtDestination, Ledger):
    pass
