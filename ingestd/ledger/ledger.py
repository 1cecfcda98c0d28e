"""The ledger itself: opened, migrated, guarded; one connection, one thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import DBAPIError

from ingestd.clocks import utc_now
from ingestd.lifecycle import BatchLimits, LongestWaits

from . import counters, dialect, errors, sqlite_file, upgrade
from .column_types import MICROSECOND
from .counters import COUNTS_WAITING
from .errors import LedgerError, LedgerMissing, LedgerOlder, OtherDestination
from .migrations import MIGRATIONS
from .schema import destination as destination_table
from .schema import meta, state_count, verification
from .schema import spool as spool_table
from .search_key import SearchKey
from .session import PUT_META, AtDestination, Session
from .values import OTHER_ADDRESS_STEP

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from .transaction import Transaction

_DESTINATIONS = select(destination_table.c.id, destination_table.c.name, destination_table.c.url).order_by(
    destination_table.c.id
)
_WAITING = (
    select(state_count.c.destination_id, func.sum(state_count.c.entries).label("entries"))
    .where(COUNTS_WAITING)
    .group_by(state_count.c.destination_id)
)


class _RehearsedError(Exception):
    """Takes back what a rehearsal did."""


class Ledger(Session):
    """An open ledger: ``queries`` read it, ``moves`` write it in a ``transaction``."""

    def __init__(self, engine: Engine, file: Path, *, host: str, spool: Path | None, read_only: bool) -> None:
        super().__init__(engine, file, host=host, spool=spool)
        self._read_only = read_only
        self.search_key = SearchKey(self, may_make=not read_only)
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
        tell: upgrade.Tell | None = None,
    ) -> Ledger:
        """Open the ledger of this URL, making it or bringing it up to date (``upgrade``) where that is needed.

        ``host``, ``spool`` and ``limits`` are given by whoever takes files in and sends them, and by nobody else.
        ``longest`` is how far ahead waits can lie. ``tell`` hears, in words, how bringing up to date goes on.
        Raises LedgerError with what to do about it: another destination, a newer or damaged ledger, a network file
        system, no permission, not there.
        """
        file = sqlite_file.ledger_file(url)
        engine = sqlite_file.open_engine(file, create=create, read_only=read_only)
        ledger = cls(engine, file, host=host, spool=spool, read_only=read_only)
        try:
            if read_only:
                ledger._expect_schema()
                ledger.expect_destinations(destinations)
            else:
                ledger._bring_up_to_date(tell)
                ledger._prepare(destinations, limits)
        except DBAPIError as error:
            ledger.close()
            raise errors.failure(error.orig, file) from None
        except BaseException:
            ledger.close()
            raise
        if longest is not None:
            ledger.longest = replace(longest, quiet=ledger.longest.quiet)
        return ledger

    @classmethod
    def rehearse(cls, url: str, *, host: str, destinations: Mapping[str, str], spool: Path) -> bool:
        """Raise the LedgerError that ``open`` would raise for whoever takes files in; what is done is rolled back.

        No file is made. LedgerMissing: there is none yet, and it can be made. LedgerOlder: there is one that ``open``
        would bring up to date, which takes too long to be tried; it says how long, and what room that needs. Say
        whether the key of the search words is missing, so that ``open`` would make another.
        """
        file = sqlite_file.ledger_file(url)
        engine = sqlite_file.open_engine(file, create=False, read_only=False, rehearsal=True)
        try:
            with cls(engine, file, host=host, spool=spool, read_only=False) as ledger:
                ledger._expect_current(destinations)
                ledger._prepare(destinations, None, rehearsal=True)
                return ledger.search_key.was_missing
        except DBAPIError as error:
            raise errors.failure(error.orig, file) from None
        finally:
            engine.dispose()

    def at(self, name: str) -> Ledger:
        """Give this very ledger as one destination has it: what is asked of a server is asked of that one.

        Raises KeyError for a destination that it does not know.
        """
        return _LedgerAt.of(self, self.destinations[name])

    def close(self) -> None:
        """Let go of the file."""
        self.connection.close()
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Write: everything done with the transaction is committed together at the end, or not at all.

        It begins with the first statement through it; then what waits for the commit is done, also where none was.
        Raises LedgerBusy or LedgerFull where trying again later may help.
        """
        # Who only reads the ledger, as `ingestd status` does, need not wait for all that writes it.
        from .transaction import Transaction  # noqa: PLC0415

        if self._read_only:
            raise LedgerError(f"the ledger {self.file} was opened for reading only")
        self.resolve()
        begun = ExitStack()
        tx = Transaction(self, lambda: begun.enter_context(self.begin()))
        is_at_commit = False
        try:
            with begun:
                yield tx
                tx.flush_all()
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

        To be called by a daemon that has handed the ledger over to another.
        """
        self._doubt = None

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
        sqlite_file.copy(sqlite_file.driver_of(self.connection), self.file, folder / self.file.name)
        self.connection.rollback()
        return ours

    def _bring_up_to_date(self, tell: upgrade.Tell | None) -> None:
        if not sqlite_file.has_tables(self.connection, self.file):
            return
        schema = self._schema()
        if self.host or schema < len(MIGRATIONS):
            # What is damaged is not migrated, whoever asks.
            sqlite_file.check_quickly(self.connection, self.file)
        self.connection.rollback()
        if schema < len(MIGRATIONS):
            try:
                upgrade.bring_up_to_date(sqlite_file.driver_of(self.connection), self.file, tell)
            except sqlite3.Error as error:
                raise errors.failure(error, self.file) from None

    def _expect_current(self, wanted: Mapping[str, str]) -> None:
        if not sqlite_file.has_tables(self.connection, self.file):
            return
        sqlite_file.check_quickly(self.connection, self.file)
        schema = self._schema()
        if schema < len(MIGRATIONS):
            belongs_to = self.connection.execute(select(destination_table.c.url)).scalar()
            if belongs_to not in {url.rstrip("/") for url in wanted.values()}:
                self._refuse_other("the server", belongs_to or "", next(iter(wanted.values())))
            raise LedgerOlder(upgrade.foretell(self.file, schema))

    def _prepare(
        self, destinations: Mapping[str, str] | None, limits: BatchLimits | None, *, rehearsal: bool = False
    ) -> None:
        self.connection.rollback()
        with suppress(_RehearsedError), self.begin():
            self._migrate()
            sqlite_file.install_guards(self.connection)
            self._adopt_destinations(destinations)
            if self.host:
                if not self.served:
                    raise LedgerError(f"the ledger {self.file} knows no destination, and none was given")
                self._put_host(limits or BatchLimits())
                self.search_key.expect(rehearsal=rehearsal)
            if rehearsal:
                raise _RehearsedError

    def _schema(self) -> int:
        schema = int(self.connection.execute(select(meta.c.value).where(meta.c.key == "schema")).scalar_one())
        if schema > len(MIGRATIONS):
            raise LedgerError(
                f"the ledger {self.file} was written by a newer ingestd (schema {schema}, this one knows"
                f" {len(MIGRATIONS)}); run that version, or a newer one"
            )
        return schema

    def _migrate(self) -> None:
        """Make the tables where there are none."""
        if sqlite_file.has_tables(self.connection, self.file):
            self._schema()
            return
        sqlite_file.mark_as_ours(self.connection)
        upgrade.add_functions(sqlite_file.driver_of(self.connection))
        strict = dialect.MIGRATION_WORDS["strict"]
        self.connection.exec_driver_sql(f"CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT) {strict}")
        made_at = utc_now().isoformat(timespec="seconds")
        self.connection.execute(insert(meta), {"key": "made_at", "value": made_at})
        for statement in chain.from_iterable(MIGRATIONS):
            self.connection.exec_driver_sql(statement.format(**dialect.MIGRATION_WORDS))
        self.connection.execute(PUT_META, {"key": "schema", "value": str(len(MIGRATIONS))})

    def _expect_schema(self) -> None:
        try:
            if not sqlite_file.has_tables(self.connection, self.file):
                raise LedgerMissing(f"the ledger {self.file} is empty; `ingestd run` fills it")
            schema = self._schema()
            if schema < len(MIGRATIONS):
                raise LedgerOlder(
                    f"the ledger {self.file} is of an older ingestd (schema {schema}); start `ingestd run` once to"
                    " bring it up to date"
                )
        finally:
            self.connection.rollback()

    def expect_destinations(self, wanted: Mapping[str, str] | None) -> None:
        """Raise OtherDestination where one of these, URLs by name, has another address here, or has come to by now.

        Raises LedgerError where files wait for a destination that is not wanted any more.
        """
        found = self.fetch_cached(_DESTINATIONS)
        self.destinations.clear()
        self.destinations.update((row.name, row.id) for row in found)
        if wanted is not None:
            for row in found:
                if row.name in wanted:
                    self._refuse_other(row.name, row.url, wanted[row.name])
            self._refuse_missing([row for row in found if row.name not in wanted], wanted)
        # Only now: whoever is refused leaves those that are served as they were.
        self.served = tuple(self.destinations if wanted is None else wanted)
        self.destination_id = next((row.id for row in found if row.name in self.served), 0)

    def _refuse_other(self, name: str, known: str, url: str) -> None:
        if known not in ("", url.rstrip("/")):
            raise OtherDestination(
                f"{name} is {known} in the ledger {self.file}, and what it knows of files there says nothing"
                f" about {url}; {OTHER_ADDRESS_STEP}"
            )

    def _refuse_missing(self, gone: Sequence[Any], wanted: Mapping[str, str]) -> None:
        waiting = self.fetch_all(_WAITING) if gone else []
        counts = {row.destination_id: row.entries for row in waiting}
        new = {url.rstrip("/") for name, url in wanted.items() if name not in self.destinations}
        for row in gone:
            if row.url in new:
                continue  # the same server under another name: it takes that one when the ledger is opened to write
            if count := counts.get(row.id):
                raise LedgerError(
                    f"{count} {'file waits' if count == 1 else 'files wait'} for {row.name} ({row.url}), which the"
                    " configuration does not name any more; put it back, or let go of what waits with"
                    f" `ingestd destination remove {row.name}`"
                )

    def _adopt_destinations(self, wanted: Mapping[str, str] | None) -> None:
        """Put down the destinations that are new; one whose server has another name in the configuration takes that."""
        known = {row.name: row for row in self.fetch_all(_DESTINATIONS)}
        for name, url in (wanted or {}).items():
            address = url.rstrip("/")
            if name in known:
                if not known[name].url:
                    # It sent before it was ever told where to (``migrations._TENTH``).
                    self._set_destination(known[name].id, url=address)
                continue
            former = next(
                (row for row in known.values() if row.url == address and row.name not in (wanted or {})), None
            )
            if former is not None:
                self._set_destination(former.id, name=name)
                continue
            number = dialect.take_numbers(self.connection, "destination", 1)
            self.connection.execute(insert(destination_table), {"id": number, "name": name, "url": address})
            self.connection.execute(insert(verification), {"destination_id": number})
        self.expect_destinations(wanted)

    def _set_destination(self, number: int, **values: str) -> None:
        self.connection.execute(update(destination_table).where(destination_table.c.id == number).values(**values))

    def _refuse_stranding(self) -> None:
        """Refuse a spool that has another id than the one at this path whose files are still waiting.

        An empty mount point looks like a new spool: going on would strand every file of the real one.
        """
        waiting = self.connection.execute(
            select(func.sum(state_count.c.entries))
            .join(spool_table, spool_table.c.id == state_count.c.spool_id)
            .where(
                spool_table.c.path == str(self.spool or ""),
                spool_table.c.host != self.host,
                COUNTS_WAITING,
            )
        ).scalar_one()
        if self.spool is not None and waiting:
            raise LedgerError(
                f"the spool {self.spool} is not the one in which files of the ledger {self.file} wait ({waiting}): it"
                " has another id (spool.id). If its disk is not mounted, mount it; if it is lost, give ingestd a spool"
                " at another path, and these files stay in sight as unconfirmed"
            )

    def _put_host(self, limits: BatchLimits) -> None:
        self._refuse_stranding()
        known = self.connection.execute(select(spool_table.c.id).where(spool_table.c.host == self.host)).scalar()
        former = self.limits_of(known or 0)
        values = {
            "path": str(self.spool or ""),
            "quiet_period_us": limits.quiet_period // MICROSECOND,
            "max_wait_us": limits.max_wait // MICROSECOND,
            "max_bytes": limits.max_bytes,
            "max_instances": limits.max_instances,
        }
        if known is None:
            known = dialect.take_numbers(self.connection, "spool", 1)
            self.connection.execute(insert(spool_table), {"id": known, "host": self.host, **values})
        else:
            self.connection.execute(update(spool_table).where(spool_table.c.id == known).values(**values))
        self.spool_id = known
        self._limits[known] = limits
        self.longest = replace(self.longest, quiet=limits.quiet_period)
        if former != limits:
            counters.set_due_again(self.connection, known, limits)


class _LedgerAt(AtDestination, Ledger):
    pass
