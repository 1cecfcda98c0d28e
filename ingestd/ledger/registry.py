"""Who a ledger is of: the destinations that its files go to, and the hosts whose files they are; others are refused."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update

from ingestd.lifecycle import BatchLimits

from . import counters, dialect
from .agreement import AGREED, AGREEMENT, Agreement
from .column_types import MICROSECOND
from .counters import COUNTS_WAITING
from .errors import LedgerError, LedgerMissing, OtherDestination
from .schema import destination as destination_table
from .schema import meta, state_count, verification
from .schema import spool as spool_table
from .session import PUT_META, Session
from .values import OTHER_ADDRESS_STEP, lost_spool_step

_DESTINATIONS = select(destination_table.c.id, destination_table.c.name, destination_table.c.url).order_by(
    destination_table.c.id
)
SEND_FOLDER = "send"
_WAITING = (
    select(state_count.c.destination_id, dialect.total(state_count.c.entries).label("entries"))
    .where(COUNTS_WAITING)
    .group_by(state_count.c.destination_id)
)


_ID_KEY = "id"
_ID = select(meta.c.value).where(meta.c.key == _ID_KEY)


class Registry(Session):
    """A session that knows its destinations, and as which host it takes files in."""

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

    def serve(self, wanted: Mapping[str, str]) -> None:
        """Have files go to these destinations, URLs by name, and to no others that are known, by a person's word."""
        urls = {url.rstrip("/") for url in wanted.values()}
        known = self.fetch_cached(_DESTINATIONS)
        self.served = tuple(row.name for row in known if row.name in wanted or row.url in urls)

    def _refuse_other(self, name: str, known: str, url: str) -> None:
        if known not in ("", url.rstrip("/")):
            raise OtherDestination(
                f"{name} is {known} in the ledger {self.name}, and what it knows of files there says nothing"
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
            (number,) = dialect.take_numbers(self.connection, "destination", 1)
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
            select(spool_table.c.host, dialect.total(state_count.c.entries).label("entries"))
            .join(spool_table, spool_table.c.id == state_count.c.spool_id)
            .where(
                spool_table.c.path == str(self.spool or ""),
                spool_table.c.host != self.host,
                COUNTS_WAITING,
            )
            .group_by(spool_table.c.host)
            .having(dialect.total(state_count.c.entries) > 0)
        ).first()
        if self.spool is not None and waiting:
            raise LedgerError(
                f"the spool {self.spool} is not the one in which files of the ledger {self.name} wait"
                f" ({waiting.entries}): it has another id (spool.id), or none. If its disk is not mounted, mount it;"
                f" {lost_spool_step(self.spool, waiting.host)}"
            )

    def _join_host(self) -> None:
        known = self.connection.execute(select(spool_table.c.id).where(spool_table.c.host == self.host)).scalar()
        if known is None:
            raise LedgerMissing(f"the ledger {self.name} knows nothing of this spool yet; `ingestd run` fills it")
        self.spool_id = known
        self.longest = replace(self.longest, quiet=self.limits_of(known).quiet_period)

    def expect_no_other(self, spool: Path) -> None:
        """Refuse a spool that is new to a ledger which several machines share, and which has one; raises LedgerError.

        Where a share is not mounted, its folder looks like a new spool.
        """
        # That of `send` lies in the other, under its name.
        for row in self.fetch_all(select(spool_table.c.path, spool_table.c.host)):
            if (Path(row.path).name == SEND_FOLDER) == (spool.name == SEND_FOLDER):
                known, at = f"the ledger {self.name}", f"at {row.path} when it was last opened"
                what = (
                    f"the spool {spool} of {known} is not there, or has another id"
                    if row.path == str(spool)
                    else f"the spool {spool} is not that of {known}, which was {at}"
                )
                raise LedgerError(f"{what}: mount that one here, on each machine; {lost_spool_step(spool, row.host)}")

    @property
    def id(self) -> str:
        """Say which ledger this is, of all that several machines share; "" of one that is no such."""
        known = self.fetch_one(_ID) if self.database.is_shared else None
        return str(known.value) if known is not None else ""

    def knows_spool(self, host: str) -> bool:
        """Whether files of the spool with this id were taken in by it."""
        return self.fetch_one(select(spool_table.c.id).where(spool_table.c.host == host)) is not None

    def expect_spool_of_ours(self, spool: Path, *, said: str) -> None:
        """Refuse a spool whose folder names (``said``) another ledger: both would take its files in, and send them."""
        belongs_to, _, name = said.partition(" ")
        if belongs_to and belongs_to != self.id:
            raise LedgerError(
                f"the spool {spool} belongs to the ledger {name}, and not to {self.name}; name that one in the"
                f" configuration, or, where it is lost for good, remove {spool / 'spool.ledger'}"
            )

    def expect_agreement(self, said: Mapping[str, str], *, is_whole: bool = False) -> None:
        """Raise LedgerDiffers where a shared ledger was told otherwise; nobody told it anything yet: this holds, if it
        ``is_whole``.
        """
        if not self.database.is_shared:
            return
        known = self.fetch_one(AGREEMENT)
        if known is not None:
            Agreement.read(known.value).expect(said, ledger=self.name)
        elif is_whole:
            self._put_agreement(said)

    def agreement(self) -> Agreement | None:
        """Give what a shared ledger was told that all have to say alike; None: nothing. Raises LedgerError."""
        rows = self.fetch_cached(AGREEMENT) if self.database.is_shared else ()
        return Agreement.read(rows[0].value) if rows else None

    def agree(self, said: Mapping[str, str], wanted: Mapping[str, str]) -> Agreement | None:
        """Have this hold for all machines that share the ledger; give what held before.

        Raises as ``expect_destinations``: with others than these no machine would start. What is taken in just now is
        there by then, or is not taken in by what held before.
        """
        with self.begin():
            self.expect_destinations(wanted)
            known = self.fetch_one(AGREEMENT)
            self._put_agreement(said)
        return Agreement.read(known.value) if known is not None else None

    def _put_agreement(self, said: Mapping[str, str]) -> None:
        self.connection.execute(PUT_META, {"key": AGREED, "value": Agreement.now(said).kept})

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
        if self.database.is_shared and not self.id:
            self.connection.execute(PUT_META, {"key": _ID_KEY, "value": uuid.uuid4().hex})
        if known is None:
            if self.database.is_shared and self.spool is not None:
                self.expect_no_other(self.spool)
            (known,) = dialect.take_numbers(self.connection, "spool", 1)
            self.connection.execute(insert(spool_table), {"id": known, "host": self.host, **values})
        else:
            self.connection.execute(update(spool_table).where(spool_table.c.id == known).values(**values))
        if known != self.spool_id:
            self.writer = self.database.take(self.connection, self.writer, known)
        self.spool_id = known
        self._limits[known] = limits
        self.longest = replace(self.longest, quiet=limits.quiet_period)
        if former != limits:
            counters.set_due_again(self.connection, known, limits)
