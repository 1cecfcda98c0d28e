"""The ledger itself: opened, migrated, guarded; one connection, one thread."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError

from ingestd.clocks import utc_now
from ingestd.fs.durable import write_whole
from ingestd.lifecycle import UNCONFIRMED, BatchLimits, LongestWaits, study_due_at

from . import backup, dialect, search_key, sqlite_file, trouble
from .counters import queue_of
from .migrations import MIGRATIONS
from .schema import alarm, meta, state_count, study
from .schema import destination as destination_table
from .schema import host as host_table
from .session import Session
from .values import (
    KEY_MADE_ANEW,
    OTHER_ADDRESS_STEP,
    LedgerError,
    LedgerMissing,
    LedgerOlder,
    OtherDestination,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from .transaction import Transaction

_PUT_HOST = dialect.upsert(host_table)
_PUT_META = dialect.upsert(meta)
_DESTINATION = select(destination_table.c.url)
_SEARCH_KEY = "search_key"  # in meta
_MICROSECOND = timedelta(microseconds=1)
_SET_DUE = (
    update(study)
    .where(study.c.host == bindparam("b_host"), study.c.study_uid == bindparam("b_study"))
    .values(due_at=bindparam("b_due"))
)
_STUDIES_AT_ONCE = 1000
_WORDS_MOST = 1000


class _RehearsedError(Exception):
    """Takes back what a rehearsal did."""


class Ledger(Session):
    """An open ledger: ``queries`` read it, ``moves`` write it in a ``transaction``."""

    def __init__(self, engine: Engine, file: Path, *, host: str, spool: Path | None, read_only: bool) -> None:
        super().__init__(engine, file, host=host, spool=spool)
        self._read_only = read_only
        self._key: bytes | None = None
        self._key_file = file.with_name(file.name + ".key")
        # Whether the key of a filled ledger was gone when this one was opened to take files in.
        self.key_was_missing = False
        self._words: dict[tuple[str, str], str] = {}  # search words by kind and value; files of a study share theirs
        # How long the last commit took: what a transaction costs, however little is in it.
        self.commit_seconds = 0.0

    @classmethod
    def open(
        cls,
        url: str,
        *,
        host: str = "",
        destination: str | None = None,
        spool: Path | None = None,
        limits: BatchLimits | None = None,
        longest: LongestWaits | None = None,
        create: bool = True,
        read_only: bool = False,
    ) -> Ledger:
        """Open the ledger of this URL, making or migrating it where that is needed.

        ``host``, ``spool`` and ``limits`` are given by whoever takes files in and sends them, and by nobody else.
        ``longest`` is how far ahead waits can lie.
        Raises LedgerError with what to do about it: another destination, a newer or damaged ledger, a network file
        system, no permission, not there.
        """
        file = sqlite_file.ledger_file(url)
        engine = sqlite_file.open_engine(file, create=create, read_only=read_only)
        try:
            ledger = cls._opened(engine, file, host, destination, spool, limits, read_only=read_only)
        except DBAPIError as error:
            engine.dispose()
            raise trouble.failure(error.orig, file) from None
        if longest is not None:
            ledger.longest = replace(longest, quiet=ledger.longest.quiet)
        return ledger

    @classmethod
    def rehearse(cls, url: str, *, host: str, destination: str, spool: Path) -> bool:
        """Raise the LedgerError that ``open`` would raise for whoever takes files in; what is done is rolled back.

        No file is made. LedgerMissing: there is none yet, and it can be made. Say whether the key of the search words
        is missing, so that ``open`` would make another.
        """
        file = sqlite_file.ledger_file(url)
        engine = sqlite_file.open_engine(file, create=False, read_only=False, rehearsal=True)
        try:
            with cls(engine, file, host=host, spool=spool, read_only=False) as ledger:
                ledger._prepare(destination, None, rehearsal=True)
                return ledger.key_was_missing
        except DBAPIError as error:
            raise trouble.failure(error.orig, file) from None
        finally:
            engine.dispose()

    @classmethod
    def _opened(
        cls,
        engine: Engine,
        file: Path,
        host: str,
        destination: str | None,
        spool: Path | None,
        limits: BatchLimits | None,
        *,
        read_only: bool,
    ) -> Ledger:
        ledger = cls(engine, file, host=host, spool=spool, read_only=read_only)
        try:
            if read_only:
                ledger._expect_schema()
                ledger.expect_destination(destination)
            else:
                ledger._prepare(destination, limits)
        except BaseException:
            ledger.close()
            raise
        return ledger

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
        self.wrote = False
        with ExitStack() as begun:
            tx = Transaction(self, lambda: begun.enter_context(self.begin()))
            try:
                yield tx
                tx.flush_all()
                began = time.perf_counter()
                begun.close()
            except DBAPIError as error:
                self.labels_known.clear()
                raise trouble.failure(error.orig, self.file) from None
            except BaseException:
                self.labels_known.clear()
                raise
            tx.wrote = self.wrote
            if tx.has_begun:
                self.commit_seconds = time.perf_counter() - began
            self.first_candidate_id = tx.first_candidate_id
        tx.committed()

    def set_limits(self, limits: BatchLimits) -> None:
        """Cut this host's batches by these limits from now on, and have its waiting studies due accordingly."""
        with self.begin():
            self._put_host(limits)

    def search_hash(self, kind: Literal["patient", "accession"], value: str) -> str:
        """Say under which word a PatientID or AccessionNumber is kept: a keyed hash, "" for an empty value.

        The key is in a file of its own beside the ledger: a copy of the ledger alone tells nobody who was examined.
        """
        word = self._words.get((kind, value))
        if word is None:
            if len(self._words) >= _WORDS_MOST:
                self._words.clear()
            word = self._words[kind, value] = self._search_word(kind, value.strip(" \0"))
        return word

    def place_in_sample(self, sop_uid: str) -> float:
        """Say where in [0, 1) an instance stands among all: by a keyed hash, so that no server can tell which are few.

        The same for one instance each time that it is asked.
        """
        if self._key is None:
            self._key = self._search_key()
        drawn = hmac.digest(self._key, b"sample\0" + sop_uid.encode("utf-8", "replace"), "sha256")
        return int.from_bytes(drawn[:7]) / (1 << 56)

    def _search_word(self, kind: str, trimmed: str) -> str:
        if not trimmed:
            return ""
        if self._key is None:
            self._key = self._search_key()
        return hmac.new(self._key, f"{kind}\0{trimmed}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:32]

    @property
    def key_is_another(self) -> bool:
        """Whether what was taken in before is kept by another key of the search words than this one."""
        return self._key is not None and self._mark_of_key() != search_key.mark_of(self._key)

    def accept_key(self) -> None:
        """A person: go on with the key that is there now, whatever was taken in before. Raises LedgerError."""
        with self.begin():
            self._put_mark(search_key.mark_of(self._search_key()))
            self.connection.execute(delete(alarm).where(alarm.c.kind == KEY_MADE_ANEW))

    def _mark_of_key(self) -> str | None:
        rows = self.fetch_all(select(meta.c.value).where(meta.c.key == _SEARCH_KEY))
        return rows[0].value if rows else None

    def _put_mark(self, mark: str) -> None:
        self.connection.execute(_PUT_META, {"key": _SEARCH_KEY, "value": mark})

    def _expect_key(self, *, rehearsal: bool) -> None:
        there = os.path.lexists(self._key_file)
        self.key_was_missing = not there and self._is_filled()
        if there or not rehearsal:
            self._key = self._search_key()
            if self._mark_of_key() is None:
                # Of a ledger older than the mark: a key that is lost is known again by nobody.
                self._put_mark("" if self.key_was_missing else search_key.mark_of(self._key))

    def _search_key(self) -> bytes:
        key_file = self._key_file
        try:
            if not self._read_only and not key_file.exists():
                if self._is_filled():
                    import structlog  # noqa: PLC0415 - 0.03 s of `ingestd status`, for a line that few see

                    # Taking files in goes on; but what was taken in is no longer found by patient or accession.
                    structlog.get_logger().error("ledger.key_made_anew", why="key_was_missing")
                search_key.make(key_file)
            return search_key.read(key_file)
        except FileNotFoundError:
            if not self._is_filled():
                raise LedgerMissing(f"the key of the search words, {key_file}, is not there yet") from None
            raise LedgerError(
                f"the key of the search words, {key_file}, is missing, so that nobody can be searched for; put it back"
                " from a backup of the ledger's folder"
            ) from None
        except OSError as error:
            raise LedgerError(f"the key of the search words, {key_file}, cannot be used: {error.strerror}") from None
        except search_key.CutShortError:
            raise LedgerError(
                f"the key of the search words, {key_file}, is cut short; put it back from the backup of the"
                " ledger's folder (where there is none: move it away, start ingestd, and `ingestd resolve --new-key`)"
            ) from None

    def _is_filled(self) -> bool:
        return bool(sum(row.entries for row in self.fetch_all(select(state_count.c.entries))))

    def back_up(self, folder: Path) -> bool:
        """Copy this ledger into the folder, and its key beside it; say whether the key that is there now is its own.

        Another one, or none, does not take the place of a former copy. Raises LedgerError and OSError.
        """
        try:
            key: bytes | None = search_key.read(self._key_file)
        except (OSError, search_key.CutShortError):
            key = None
        ours = key is not None and self._mark_of_key() in (None, search_key.mark_of(key))
        if key is not None and ours:
            words = key
            write_whole(folder / self._key_file.name, lambda scratch: scratch.write_bytes(words))
        driver = sqlite_file.driver_of(self.connection)
        backup.copy_ledger(driver, self.file, folder / self.file.name)
        self.connection.rollback()
        return ours

    def _prepare(self, destination: str | None, limits: BatchLimits | None, *, rehearsal: bool = False) -> None:
        if self.host and sqlite_file.has_tables(self.connection, self.file):
            sqlite_file.check_quickly(self.connection, self.file)
        self.connection.rollback()
        with suppress(_RehearsedError), self.begin():
            self._migrate()
            sqlite_file.install_guards(self.connection)
            self._adopt_destination(destination)
            if self.host:
                self._put_host(limits or BatchLimits())
                self._expect_key(rehearsal=rehearsal)
            if rehearsal:
                raise _RehearsedError

    def _schema(self) -> int:
        value = self.connection.execute(select(meta.c.value).where(meta.c.key == "schema")).scalar_one()
        return int(value)

    def _refuse_newer(self, schema: int) -> None:
        if schema > len(MIGRATIONS):
            raise LedgerError(
                f"the ledger {self.file} was written by a newer ingestd (schema {schema}, this one knows"
                f" {len(MIGRATIONS)}); run that version, or a newer one"
            )

    def _migrate(self) -> None:
        schema = 0
        if sqlite_file.has_tables(self.connection, self.file):
            schema = self._schema()
            self._refuse_newer(schema)
        else:
            sqlite_file.mark_as_ours(self.connection)
            strict = dialect.MIGRATION_WORDS["strict"]
            self.connection.exec_driver_sql(f"CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT) {strict}")
            made_at = utc_now().isoformat(timespec="seconds")
            self.connection.execute(insert(meta), {"key": "made_at", "value": made_at})
        for migration in MIGRATIONS[schema:]:
            for statement in migration:
                self.connection.exec_driver_sql(statement.format(**dialect.MIGRATION_WORDS))
        if schema < len(MIGRATIONS):
            self.connection.execute(_PUT_META, {"key": "schema", "value": str(len(MIGRATIONS))})

    def _expect_schema(self) -> None:
        try:
            if not sqlite_file.has_tables(self.connection, self.file):
                raise LedgerMissing(f"the ledger {self.file} is empty; `ingestd run` fills it")
            schema = self._schema()
            self._refuse_newer(schema)
            if schema < len(MIGRATIONS):
                raise LedgerOlder(
                    f"the ledger {self.file} is of an older ingestd (schema {schema}); start `ingestd run` once to"
                    " bring it up to date"
                )
        finally:
            self.connection.rollback()

    def expect_destination(self, url: str | None) -> None:
        """Raise OtherDestination where the ledger belongs to another address, or has come to by now."""
        found = self.fetch_cached(_DESTINATION)
        if url is not None and found and found[0].url != url.rstrip("/"):
            raise self._other_destination(found[0].url, url)

    def _other_destination(self, found: str, url: str) -> OtherDestination:
        return OtherDestination(
            f"the ledger {self.file} belongs to {found}, and what it knows of files there says nothing about {url};"
            f" {OTHER_ADDRESS_STEP}"
        )

    def _adopt_destination(self, url: str | None) -> None:
        if url is None:
            return
        url = url.rstrip("/")
        found = self.connection.execute(_DESTINATION).scalar_one_or_none()
        if found is None:
            self.connection.execute(insert(destination_table), {"url": url})
        elif found != url:
            raise self._other_destination(found, url)

    def _refuse_stranding(self) -> None:
        """Refuse a spool that has another id than the one at this path whose files are still waiting.

        An empty mount point looks like a new spool: going on would strand every file of the real one.
        """
        waiting = self.connection.execute(
            select(func.sum(state_count.c.entries))
            .join(host_table, host_table.c.host == state_count.c.host)
            .where(
                host_table.c.spool == str(self.spool or ""),
                host_table.c.host != self.host,
                state_count.c.state.in_(sorted(UNCONFIRMED)),
            )
        ).scalar_one()
        if self.spool is not None and waiting:
            raise LedgerError(
                f"the spool {self.spool} is not the one in which {waiting} files of the ledger {self.file} wait: it"
                " has another id (spool.id). If its disk is not mounted, mount it; if it is lost, give ingestd a spool"
                " at another path, and these files stay in sight as unconfirmed"
            )

    def _put_host(self, limits: BatchLimits) -> None:
        self._refuse_stranding()
        former = self.limits_of(self.host)
        self.connection.execute(
            _PUT_HOST,
            {
                "host": self.host,
                "spool": str(self.spool or ""),
                "quiet_period_us": limits.quiet_period // _MICROSECOND,
                "max_wait_us": limits.max_wait // _MICROSECOND,
                "max_bytes": limits.max_bytes,
                "max_instances": limits.max_instances,
            },
        )
        self._limits[self.host] = limits
        self.longest = replace(self.longest, quiet=limits.quiet_period)
        if former != limits:
            self._set_due_again(limits)

    def _set_due_again(self, limits: BatchLimits) -> None:
        after = ""
        while True:
            rows = self.connection.execute(
                select(study)
                .where(study.c.host == self.host, study.c.study_uid > after, study.c.waiting > 0)
                .order_by(study.c.study_uid)
                .limit(_STUDIES_AT_ONCE)
            ).all()
            if not rows:
                return
            after = rows[-1].study_uid
            self.connection.execute(
                _SET_DUE,
                [
                    {
                        "b_host": self.host,
                        "b_study": row.study_uid,
                        "b_due": study_due_at(queue_of(dict(row._mapping)), limits),  # noqa: SLF001
                    }
                    for row in rows
                ],
            )
