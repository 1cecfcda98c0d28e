"""One write transaction: rows are read, moved and told of in memory, and written together before COMMIT.

**Beginning and end.** ``with ledger.transaction() as tx:`` does nothing yet. The first statement through ``tx``, a
query or a move, sends BEGIN IMMEDIATE, which keeps every other writer out, in every process, until COMMIT. So what is
read through ``tx`` still holds when it is written upon; what was read through the ledger is a hint. An exception in the
block rolls all of it back. A block that makes no statement costs nothing, not even an fsync.

**A move** is made in four steps. ``rows...`` reads a ``Row``, only the columns that a move needs. ``move`` checks it
against ``lifecycle.MOVES``, works out what goes with leaving the one state and coming into the other
(``_settings_of_move``: the claim's token, the identity, what was learnt, when it settled), and puts a line down for the
history. ``change`` keeps ``queued`` and the counters. ``UnitOfWork`` gathers what is to be set by what it says, since
most rows of a batch become the same and are then one statement. New rows come in by ``add``. Nothing else writes
``state``, and triggers in the database itself refuse a move that the table lacks.

**Who may move what (G4).** An UPDATE names the row's id, the state and the claim's token that it was read with, and
must hit as many rows as it names, or IllegalMove takes the transaction back. A ``Row`` is good for one change: read it
again for the next. Moves made elsewhere cannot slip in between, but a caller's plan may be older than the
transaction: every function in ``moves`` that carries out what was found earlier looks whether the row is still in the
state, and a batch's row still under the token, that it was found with. If not, it leaves the row alone and counts it as
lost. Claims, removals and recovery keep to the own host's rows; those of others are moved where an identity, held once
over all hosts, binds them: by who takes a place, by a copy that is gone from the server, by ``takeover``, by a person.

**When what is written.** ``rows...`` first writes the rows gathered so far, so a move may build on the one before.
``flush``, the end of every function in ``moves``, writes rows and lets the oldest duplicate take the place of a row
that gave its identity up. Lines of history and counters stay in memory until ``flush_all``: a transaction has many
moves and few studies. A query through ``tx`` calls it, and so does the end of the block.

**The counters** (``counters``: rows by inbox, state and reason; each study's states and queue) are kept by ``add`` and
``change`` alone, as differences between what a row was and what it becomes, and written within the same transaction.
So they are right after any crash, and nobody has to count rows. A statement that sets one of ``state``, ``reason``,
``size_bytes``, ``study_uid``, ``hold_reason``, ``need`` or ``next_attempt_at`` (from or to NULL) by itself would make
them wrong: statements of their own are for columns that nothing counts.

**After it.** ``on_commit`` takes what is allowed only once all is durable: to post, to move or forget a file. It is
called after COMMIT succeeded, in the order in which it was registered, and one that raises keeps no other from being
called. After a rollback it is dropped. Three ends are to be told apart:

- LedgerBusy and LedgerFull, before COMMIT or by it: nothing was changed; a later try may succeed.
- COMMIT failed otherwise (LedgerUnread: the disk), and nobody knows. ``sqlite_file.undo`` rolls back what SQLite keeps
  open; a power cut is undone from the journal by whoever opens the file next. But the failure may have come after the
  journal was gone, and all of it stands. So each transaction leaves a mark (``Session.last_mark``), and before anything
  else is done ``Ledger.resolve`` looks whether it is there: then the callbacks are called late, else dropped.
- The process dies after COMMIT and before the callbacks: it is as if they had been called and had failed. So each must
  be something that start-up, or a later look at the ledger, finds to be done still (an attempt that is on record but
  was never posted is UNCERTAIN, and the server is asked).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, select
from sqlalchemy.engine import Connection
from sqlalchemy.sql import Executable

from ingestd.lifecycle import (
    GIVES_IDENTITY_UP,
    HOLDING,
    PROVABLE,
    SETTLED,
    Identity,
    Jump,
    Reason,
    State,
    check_move,
    surely_since,
)

from . import dialect
from .counters import Counters
from .row import HOLDS, ID, ROW, Row, alike, as_json, jump_of, make_row, pieces, same_bytes
from .schema import clock, instance
from .session import Session
from .unit_of_work import UnitOfWork

_LEARNT = (("mismatch", 0), ("differs_since", None), ("untold_since", None))

_SELECT_BY_ID = select(*ROW).where(dialect.among(instance.c.id, "ids")).with_for_update()
_JUMPS = select(clock).where(clock.c.host == bindparam("host"), clock.c.by_us != 0)
_LAST_JUMP = _JUMPS.order_by(clock.c.id.desc()).limit(1)


class Transaction:
    """What is done between BEGIN and COMMIT; ``Ledger.transaction`` makes it."""

    def __init__(self, session: Session, begin: Callable[[], Connection]) -> None:
        self._begin = begin
        self._connection: Connection | None = None
        self._on_commit: list[Callable[[], object]] = []
        self.wrote = False  # whether it changed any row, and left its mark; known once it is committed
        self.first_candidate_id = session.first_candidate_id
        self.host = session.host
        self.spool = session.spool
        self.longest = session.longest
        self.limits_of = session.limits_of
        self.spool_of = session.spool_of
        self.counters = Counters(session.limits_of, session.labels_known)
        self._work = UnitOfWork()
        self._given_up: list[tuple[Row, datetime]] = []
        self._next_id: int | None = None

    @property
    def connection(self) -> Connection:
        """The connection, behind BEGIN IMMEDIATE."""
        if self._connection is None:
            self._connection = self._begin()
        return self._connection

    def begin(self) -> None:
        """Begin although nothing is to be said: where even that fails, the ledger does not work."""
        _ = self.connection

    @property
    def has_begun(self) -> bool:
        return self._connection is not None

    def fetch_all(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """Give all rows of a SELECT, behind everything gathered so far."""
        self.flush_all()
        return self.connection.execute(statement, values).all()

    def fetch_one(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Any:
        rows = self.fetch_all(statement, values)
        return rows[0] if rows else None

    fetch_cached = fetch_all

    def on_commit(self, act: Callable[[], object]) -> None:
        """Have this done once the transaction is durable; dropped after a rollback."""
        self._on_commit.append(act)

    def committed(self) -> None:
        """Do what waited for the commit; one that raises keeps no other from being done, and is raised at the end."""
        errors: list[Exception] = []
        for act in self._on_commit:
            try:
                act()
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)
        if errors:
            raise errors[0]

    def new_id(self) -> int:
        """Give out the id of a row to be added."""
        if self._next_id is None:
            self._next_id = dialect.next_id(self.connection, instance)
        self._next_id += 1
        return self._next_id - 1

    @property
    def jump(self) -> Jump | None:
        """The last time that this host's wall clock was set."""
        row = self.connection.execute(_LAST_JUMP, {"host": self.host}).one_or_none()
        return jump_of(row) if row is not None else None

    def surely_since(self, since: datetime, now: datetime) -> datetime:
        """Say from when a time counts that must have passed for certain."""
        return surely_since(since, now=now, jump=self.jump)

    def select_rows(self, *where: ColumnElement[bool]) -> Select[Any]:
        """Begin the statement that reads rows to be moved."""
        return select(*ROW).where(*where).with_for_update()

    def rows(self, statement: Select[Any], **values: Any) -> list[Row]:
        """Read rows to be moved, as they are after everything gathered so far."""
        self.write_rows()
        return [make_row(row) for row in self.connection.execute(statement, values).all()]

    def rows_on(self, holder_id: int, *where: ColumnElement[bool]) -> list[Row]:
        """Read the rows that name this one as their holder, the oldest first."""
        on = (instance.c.holder_id.is_not(None), instance.c.holder_id == holder_id)
        return self.rows(self.select_rows(*on, *where).order_by(instance.c.admitted_at, instance.c.id))

    def rows_by_id(self, entry_ids: Iterable[int]) -> dict[int, Row]:
        """Read these rows; one that does not exist is absent."""
        found: dict[int, Row] = {}
        for piece in pieces(list(dict.fromkeys(entry_ids))):
            for row in self.rows(_SELECT_BY_ID, ids=piece):
                found[row.id] = row
        return found

    def row(self, entry_id: int) -> Row | None:
        return self.rows_by_id([entry_id]).get(entry_id)

    def holder_of(self, identity: Identity) -> Row | None:
        """Read the row that holds this identity."""
        rows = self.rows(
            self.select_rows(
                HOLDS,
                instance.c.sop_uid == identity.sop_uid,
                instance.c.series_uid == identity.series_uid,
                instance.c.study_uid == identity.study_uid,
            )
        )
        return rows[0] if rows else None

    def add(self, values: dict[str, Any], *, at: datetime, note: str = "") -> None:
        """Add a row; ``values`` are its columns, the same ones for every row of a kind."""
        state: State = values["state"]
        check_move(None, state)
        reason = values["reason"] or ""
        self._work.add(values)
        self._work.put_down((values["id"],), (at, None, state, reason, note, None, ""))
        self.counters.row_added(values, at)

    def move(
        self,
        *rows: Row,
        to: State,
        at: datetime,
        reason: Reason | None,
        note: str = "",
        evidence: Mapping[str, str] | None = None,
        by_attempt: int | None = None,
        gives_up: bool = True,
        **values: Any,
    ) -> None:
        """Move rows to another state, and set what goes with it; raises IllegalMove for a move the table lacks."""
        for same in alike(rows):
            row = same[0]
            check_move(row.state, to)
            settings = _settings_of_move(row, to, at, values)
            settings.update(state=to, reason=reason, note=note, changed_at=at)
            self.change(*same, to=settings, at=at)
            line = (at, row.state, to, reason or "", note, by_attempt, as_json(evidence or ()))
            self._work.put_down(list(map(ID, same)), line)
        if gives_up and to in GIVES_IDENTITY_UP:
            self._given_up += [(row, at) for row in rows]

    def change(self, *rows: Row, to: dict[str, Any], at: datetime) -> None:
        """Set the same columns of rows that are alike; what changes their state goes through ``move``."""
        row = rows[0]
        after = to.get("state", row.state)
        queued = int(
            after is State.PENDING
            and to.get("hold_reason", row.hold_reason) is None
            and to.get("need", row.need) is None
            and to.get("next_attempt_at", row.next_attempt_at) is None
        )
        if queued != row.queued:
            to["queued"] = queued
        self._work.change(rows, to)
        self.counters.rows_changed(rows, to, after, queued, at)

    def note(
        self, row: Row, *, at: datetime, reason: str, note: str = "", evidence: Mapping[str, str] | None = None
    ) -> None:
        """Put down in the history of a row what is no move."""
        self._work.put_down((row.id,), (at, row.state, row.state, reason, note, None, as_json(evidence or ())))

    def flush(self) -> None:
        """Write what was gathered; rows that gave their identity up leave it to the oldest of their duplicates.

        History and counters stay gathered until ``flush_all``: a transaction has many moves, and few studies.
        """
        self.write_rows()
        while self._given_up:
            given_up, self._given_up = self._given_up, []
            self._pass_on(given_up)
            self.write_rows()

    def flush_all(self) -> None:
        """Write everything: the transaction is about to be committed."""
        if not self.has_begun:
            return
        self.flush()
        self._work.write_history(self.connection)
        self.counters.flush(self.connection)

    def write_rows(self) -> None:
        """Write the rows that were gathered, so that what is read next is as it will be."""
        if self._connection is not None:
            self._work.write_rows(self._connection)

    def pass_on(self, row: Row, *, at: datetime) -> None:
        """Let the oldest duplicate take the place of this row, which has no use for its identity any more."""
        self._given_up.append((row, at))

    def _pass_on(self, given_up: Sequence[tuple[Row, datetime]]) -> None:
        when = {row.id: at for row, at in given_up}
        waiting: dict[int, list[Row]] = defaultdict(list)
        for piece in pieces(list(when)):
            for duplicate in self.rows(
                self.select_rows(
                    instance.c.holder_id.is_not(None),
                    instance.c.holder_id.in_(piece),
                    dialect.unindexed(instance.c.state) == State.DUPLICATE,
                    # A settled one was as good as delivered: what is deleted on the server later stays deleted.
                    instance.c.settled_at.is_(None),
                    instance.c.removed_at.is_(None),
                ).order_by(instance.c.admitted_at, instance.c.id)
            ):
                assert duplicate.holder_id is not None, "the statement asked for it"
                waiting[duplicate.holder_id].append(duplicate)
        for holder_id, duplicates in waiting.items():
            self.promote(holder_id, duplicates, when[holder_id])

    def promote(self, former_id: int, duplicates: Sequence[Row], at: datetime) -> None:
        """Have the first of these sent in place of the row that they duplicate; the others belong to it then."""
        first, *others = duplicates
        identity = first.identity
        assert identity is not None, "a duplicate has its identity"
        holder = self.holder_of(identity)
        if holder is None:
            note = f"row {former_id}, which had the same content, is gone"
            self.move(first, to=State.PENDING, at=at, reason=Reason.HOLDER_GONE, note=note, holder_id=None)
            for other in others:
                self.change(other, to={"holder_id": first.id}, at=at)
            return
        for duplicate in duplicates:
            self.point_to(duplicate, holder.id, same=same_bytes(duplicate, holder), at=at)

    def point_to(self, duplicate: Row, holder_id: int, *, same: bool, at: datetime) -> None:
        """Let a duplicate belong to another holder, or be in conflict with it."""
        if same:
            self.change(duplicate, to={"holder_id": holder_id}, at=at)
        else:
            note = f"row {holder_id} holds the same UIDs now, with other content"
            self.move(duplicate, to=State.CONFLICT, at=at, reason=Reason.OTHER_CONTENT, note=note, holder_id=holder_id)


def _settings_of_move(row: Row, after: State, at: datetime, values: Mapping[str, Any]) -> dict[str, Any]:
    """Add to what a move is to set what it has to set by the way."""
    settings = dict(values)
    before = row.state
    if before in PROVABLE:
        settings.setdefault("next_check_at", None)
    if before is State.SENDING:
        settings["claim_token"] = None
    if before is State.PENDING and after is not State.PENDING:
        for column in ("hold_reason", "need", "next_attempt_at"):
            if getattr(row, column) is not None:
                settings[column] = None
    for column, nothing in _LEARNT:
        # What was found of the server's copy belongs to the state in which it was asked for.
        if getattr(row, column) != nothing:
            settings.setdefault(column, nothing)
    if (before in HOLDING) != (after in HOLDING):
        settings["holds"] = int(after in HOLDING)
    if after in SETTLED:
        settings.setdefault("settled_at", at)
    elif row.settled_at is not None:
        settings.setdefault("settled_at", None)
    return settings
