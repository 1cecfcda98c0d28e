"""Who stands by for a spool: it beats, and watches the beat of whoever has it for itself (``workers``)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sqlalchemy.exc import DBAPIError

from .agreement import AGREEMENT, Agreement
from .database import Writer
from .workers import COUNT, Beat, add, beat_of, end, holder_of

if TYPE_CHECKING:
    from .database import Database


class StandingBy:
    """A worker of a spool that another may have for itself: it beats, and watches that one's beat."""

    def __init__(self, database: Database, *, host: str, lease: timedelta, agreement: Mapping[str, str]) -> None:
        """Open the ledger; raises LedgerError."""
        self._database = database
        self._host = host
        self._lease = lease
        self._agreement = agreement
        self._engine = database.open_engine(create=True, read_only=False)
        try:
            self._connection = self._engine.connect()
        except DBAPIError as error:
            raise database.failure(error.orig) from None
        self._spool_id = 0
        self._worker = 0
        self._beat_at = 0.0
        self._bars = ""
        self._seen: Beat | None = None
        self._seen_at = 0.0
        self._is_handed_over = False

    def look(self, now: float, *, bars: str = "") -> Beat | None:
        """Beat, and look (``now``: CLOCK_BOOTTIME); None: we may be at work on it, as ``writer``.

        ``bars`` is what keeps us from taking over, for others to see. Raises LedgerError; LedgerDiffers: not with this
        configuration.
        """
        try:
            return self._look(now, bars)
        except DBAPIError as error:
            # What was not seen for a while says nothing of whether it beats.
            self._seen = None
            raise self._database.failure(error.orig) from None
        finally:
            self._connection.rollback()

    def at_work(self) -> frozenset[int]:
        """Number those who work on the spool now and see it, as far as it was looked at. Raises LedgerError."""
        try:
            listed = self._database.workers(self._connection) if self._spool_id else None
        except DBAPIError as error:
            raise self._database.failure(error.orig) from None
        finally:
            self._connection.rollback()
        return frozenset(each.id for each in listed or () if each.host == self._host and each.holds and each.is_well)

    def _look(self, now: float, bars: str) -> Beat | None:
        if not self._spool_id and not self._database.has_tables(self._connection):
            return None
        told = self._connection.execute(AGREEMENT).scalar()
        agreed = Agreement.read(told) if told is not None else None
        keys = agreed.differing(self._agreement) if agreed is not None else []
        if not self._spool_id:
            found = self._connection.exec_driver_sql("SELECT id FROM spool WHERE host = %s", (self._host,)).scalar()
            self._spool_id = found or 0
        if self._spool_id:
            self._beat(now, f"its configuration differs in {', '.join(keys)}" if keys else bars)
        if agreed is not None:
            agreed.expect(self._agreement, ledger=self._database.name)
        if not self._spool_id:
            return None
        holder = holder_of(self._connection, self._spool_id)
        if holder != self._seen:
            self._seen, self._seen_at = holder, now
        if holder is None or holder.is_gone or now - self._seen_at >= holder.lease.total_seconds():
            return None
        return holder

    def _beat(self, now: float, bars: str) -> None:
        if now < self._beat_at and bars == self._bars:
            return
        counted = self._connection.exec_driver_sql(COUNT.format(self._worker)).rowcount if self._worker else 0
        if not counted:
            self._worker = add(self._connection, self._spool_id, self._lease, holds=False, bars=bars)
        elif bars != self._bars:
            self._connection.exec_driver_sql("UPDATE worker SET bars = %s WHERE id = %s", (bars, self._worker))
        self._beat_at, self._bars = now + beat_of(self._lease), bars

    def writer(self) -> Writer:
        """Say as whom the ledger is to be opened, which ends whoever was silent; the row is that one's from now on."""
        self._is_handed_over = True
        return Writer(
            self._host, self._worker, self._lease, shares=True, ends=() if self._seen is None else (self._seen,)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._worker and not self._is_handed_over:
                end(self._connection, Writer(self._host, self._worker))
        except DBAPIError:
            pass  # it is silent, then
        finally:
            self._connection.close()
            self._engine.dispose()
