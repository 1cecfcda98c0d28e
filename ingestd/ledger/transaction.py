"""One write transaction: rows are read, moved and told of in memory, and written together before COMMIT.

A row that moves is a delivery, read with its file. A file that has none (REJECTED, say) has a state of its own, and
``move_file`` for it.

**Beginning and end.** ``with ledger.transaction() as tx:`` does nothing yet. The first statement through ``tx``, a
query or a move, sends BEGIN IMMEDIATE, which keeps every other writer out, in every process, until COMMIT. So what is
read through ``tx`` still holds when it is written upon; what was read through the ledger is a hint. An exception in the
block rolls all of it back. A block that makes no statement costs nothing, not even an fsync.

**Beside others** who write a PostgreSQL ledger ``ledger.transaction(studies)`` keeps only those out who change files of
these studies (``study_locks``). What was said above then holds of these; what is read of others, and of what is of no
study, is a hint. A move of a file of another study raises IllegalMove. The rows that all of them write, of whatever
study (what is kept of a destination, and a slot's counts), are written at the end alone, and in one order: of two who
wait for each other's rows the server would end one.

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
lost. Claims, removals and recovery keep to the own spool's rows; those of others are moved where an identity, held once
at each destination, binds them: by who takes a place, by a copy that is gone from the server, by ``takeover``, by a
person.

**When what is written.** ``rows...`` first writes the rows gathered so far, so a move may build on the one before.
``flush``, the end of every function in ``moves``, writes rows and lets the oldest duplicate take the place of a row
that gave its identity up. Lines of history and counters stay in memory until ``flush_all``: a transaction has many
moves and few studies. A query through ``tx`` calls it, and so does the end of the block.

**The counters** (``counters``: rows by inbox, state and reason; each study's states and queue) are kept by ``add`` and
``change`` alone, as differences between what a row was and what it becomes, and written within the same transaction.
So they are right after any crash, and nobody has to count rows. So is what is kept of a file's bytes: how many
deliveries need them still, and since when none does. A statement that sets one of ``state``, ``reason``,
``size_bytes``, ``settled_at``, ``need`` or ``next_attempt_at`` (from or to NULL) of a delivery by itself would make
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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Select, Update, bindparam, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.sql import Executable

from ingestd.lifecycle import (
    FILE_MOVES,
    GIVES_IDENTITY_UP,
    HOLDING,
    PROVABLE,
    SETTLED,
    IllegalMove,
    Jump,
    Reason,
    State,
    check_move,
    surely_since,
)

from . import dialect
from .agreement import Agreement
from .counters import Counters
from .held_studies import HeldStudies
from .row import (
    HOLDS,
    SELECT_FILES,
    SELECT_ROWS,
    FileRow,
    Row,
    alike,
    is_not_compared,
    is_same_identity,
    jump_of,
    kept_evidence,
    make_file_row,
    make_row,
    pieces,
)
from .sameness import judge
from .schema import clock, delivery, file, inbox, study
from .session import AtDestination, KnownStudy, Session
from .unit_of_work import UnitOfWork
from .workers import Worker

_LEARNT = (("mismatch", 0), ("differs_since", None), ("untold_since", None))

# In the order of their numbers: two who want the same rows wait for each other, and never both.
_SELECT_BY_ID = (
    SELECT_ROWS.where(dialect.among(delivery.c.id, "ids")).order_by(delivery.c.id).with_for_update(of=delivery)
)
_SELECT_FILE = SELECT_FILES.where(file.c.id == bindparam("id"), file.c.state.is_not(None)).with_for_update()
_SELECT_HOLDER = (
    SELECT_ROWS.where(
        HOLDS,
        delivery.c.destination_id == bindparam("destination_id"),
        delivery.c.identity == bindparam("identity"),
    )
).with_for_update(of=delivery)
_SELECT_STUDIES = select(study).where(dialect.among(study.c.uid, "uids"))
_STUDIES_REMEMBERED = 2_000
# Those who write side by side add to counters of their own.
_SLOTS = 16
_JUMPS = select(clock).where(clock.c.spool_id == bindparam("spool_id"), clock.c.by_us != 0)
_LAST_JUMP = _JUMPS.order_by(clock.c.id.desc()).limit(1)


class Transaction:
    """What is done between BEGIN and COMMIT; ``Ledger.transaction`` makes it."""

    def __init__(
        self, session: Session, begin: Callable[[], Connection], studies: Collection[str] | None = None
    ) -> None:
        """``begin`` begins it, with the locks of these studies (None: with that of all)."""
        self._begin = begin
        self._held = HeldStudies(session, studies)
        self._connection: Connection | None = None
        self._on_commit: list[Callable[[], object]] = []
        self.wrote = False  # whether it changed any row, and left its mark; known once it is committed
        self.host = session.host
        self.worker = session.worker
        self.spool_id = session.spool_id
        self.destination_id = session.destination_id
        self.destinations = session.destinations
        self.served = session.served
        self.spool = session.spool
        self.longest = session.longest
        self.limits_of = session.limits_of
        self.spool_of = session.spool_of
        self.inbox_of = session.inbox_of
        self.study_id = session.study_id
        self._session = session
        self.counters = Counters(session.limits_of, session.labels_known, slot=session.worker % _SLOTS)
        self._work = UnitOfWork()
        self._given_up: list[tuple[Row, datetime]] = []
        self._of_destinations: list[tuple[int, Update]] = []

    def at(self, destination_id: int) -> Transaction:
        """Give this very transaction as one destination has it: what is asked and moved of a server is of that one."""
        return _TransactionAt.of(self, destination_id)

    @property
    def connection(self) -> Connection:
        """The connection, behind BEGIN IMMEDIATE."""
        if self._connection is None:
            self._connection = self._begin()
        return self._connection

    def may_change(self, studies: Iterable[str]) -> set[str]:
        """Say of which of these studies files may be changed here; others may be changing those of the rest.

        Where there is no room for all of them, those that come first are tried.
        What was read of one before is to be read again, unless the transaction began with it.
        """
        return self._held.take(self.connection, studies)

    @property
    def room(self) -> int:
        """How many more studies may be tried."""
        return self._held.room

    @property
    def is_of_studies(self) -> bool:
        """Whether others may be writing at the same time."""
        return not self._held.is_whole

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

    def new_ids(self, count: int) -> Sequence[int]:
        """Give out numbers of files; the first delivery of a file has its number."""
        return dialect.take_numbers(self.connection, "file", count)

    def next_number(self, name: str) -> int:
        """Give out a number of this kind (``baseline.NUMBERED``)."""
        (number,) = dialect.take_numbers(self.connection, name, 1)
        return number

    def inbox_id(self, name: str) -> int:
        """Say by which number rows name an inbox of the own spool; one that is new is put down."""
        found = self._session.inbox_id(name)
        if found is None:
            found = self.next_number("inbox")
            new = {"id": found, "spool_id": self.spool_id, "name": name, "alarm": "", "watching": "", "counts": ""}
            self.connection.execute(insert(inbox), new)
        return found

    def studies(self, labels: Mapping[str, tuple[str | None, str | None]]) -> Mapping[str, KnownStudy]:
        """Say what is known of these studies; new ones are put down with these hashes (patient, accession)."""
        known = self._session.studies_known
        if len(known) > _STUDIES_REMEMBERED:
            known.clear()
        wanted = sorted(uid for uid in labels if uid not in known)
        for piece in pieces(wanted):
            there = self.connection.execute(_SELECT_STUDIES, {"uids": piece})
            found = {row.uid: KnownStudy(row.id, row.patient_hash, row.accession_hash) for row in there}
            new = [uid for uid in piece if uid not in found]
            if new:
                self._held.expect_new(new)
                numbers = dialect.take_numbers(self.connection, "study", len(new))
                made = {uid: KnownStudy(each, *labels[uid]) for each, uid in zip(numbers, new, strict=True)}
                rows = [
                    {
                        "id": each.id,
                        "uid": uid,
                        "patient_hash": each.patient_hash,
                        "accession_hash": each.accession_hash,
                    }
                    for uid, each in made.items()
                ]
                dialect.insert_rows(self.connection, study, rows)
                found |= made
            known.update(found)
        return known

    def others(self) -> Sequence[int]:
        """Number those at work on our spool beside us who were not ended."""
        return self._session.database.others(self.connection, self._session.writer, self.spool_id)

    def is_agreed(self, said: Mapping[str, str]) -> bool:
        """Whether all who share the ledger agreed upon this, or upon nothing; until the end they agree on no other."""
        agreed = self._agreed()
        return agreed is None or not agreed.differing(said)

    def expect_agreed(self, said: Mapping[str, str]) -> None:
        """Raise LedgerDiffers unless it is so."""
        agreed = self._agreed()
        if agreed is not None:
            agreed.expect(said, ledger=self._session.name)

    @property
    def named(self) -> Collection[str]:
        """The destinations that files are to go to, as all have agreed, or as whoever opened the ledger says."""
        agreed = self._agreed()
        return self.served if agreed is None else agreed.destinations

    def _agreed(self) -> Agreement | None:
        kept = self._session.database.agreed(self.connection)
        return None if kept is None else Agreement.read(kept)

    def living(self) -> Sequence[Worker]:
        """List who works or stands by; whoever was silent for its lease is ended: it would go on by what it knew."""
        return self._session.database.living(self.connection)

    @property
    def jump(self) -> Jump | None:
        """The last time that this host's wall clock was set."""
        row = self.connection.execute(_LAST_JUMP, {"spool_id": self.spool_id}).one_or_none()
        return jump_of(row) if row is not None else None

    def surely_since(self, since: datetime, now: datetime) -> datetime:
        """Say from when a time counts that must have passed for certain."""
        return surely_since(since, now=now, jump=self.jump)

    def select_rows(self, *where: ColumnElement[bool]) -> Select[Any]:
        """Begin the statement that reads rows to be moved."""
        return SELECT_ROWS.where(*where).with_for_update(of=delivery)

    def rows(self, statement: Select[Any], **values: Any) -> list[Row]:
        """Read rows to be moved, as they are after everything gathered so far."""
        self.write_rows()
        return [make_row(row) for row in self.connection.execute(statement, values).all()]

    def rows_on(self, holder_id: int, *where: ColumnElement[bool]) -> list[Row]:
        """Read the rows that name this one as their holder, the oldest first."""
        on = (delivery.c.holder_id.is_not(None), delivery.c.holder_id == holder_id)
        return self.rows(self.select_rows(*on, *where).order_by(delivery.c.admitted_at, delivery.c.id))

    def rows_by_id(self, delivery_ids: Iterable[int]) -> dict[int, Row]:
        """Read these rows; one that does not exist is absent."""
        found: dict[int, Row] = {}
        for piece in pieces(list(dict.fromkeys(delivery_ids))):
            for row in self.rows(_SELECT_BY_ID, ids=piece):
                found[row.id] = row
        return found

    def rows_of_file(self, file_id: int) -> list[Row]:
        """Read all deliveries of a file, the first of them first."""
        return self.rows(self.select_rows(delivery.c.file_id == file_id).order_by(delivery.c.id))

    def row(self, delivery_id: int) -> Row | None:
        return self.rows_by_id([delivery_id]).get(delivery_id)

    def file_row(self, file_id: int) -> FileRow | None:
        """Read a file that has no delivery."""
        rows = self.fetch_files(_SELECT_FILE, id=file_id)
        return rows[0] if rows else None

    def fetch_files(self, statement: Select[Any], **values: Any) -> list[FileRow]:
        """Read files without a delivery that are to be moved, as they are after everything gathered so far."""
        self.write_rows()
        return [make_file_row(row) for row in self.connection.execute(statement, values).all()]

    def holder_of(self, row: Row) -> Row | None:
        """Read the delivery that holds the identity of this one, at its destination."""
        return self.holder_at(row.destination_id, row.identity, row)

    def holder_at(self, destination_id: int, identity: str, of: Any) -> Row | None:
        """Read the delivery that holds at a destination the identity of ``of``, a file or a delivery."""
        rows = self.rows(_SELECT_HOLDER, destination_id=destination_id, identity=identity)
        return next((each for each in rows if is_same_identity(each, of)), None)

    def add_file(self, values: dict[str, Any], *, at: datetime) -> None:
        """Add a file; ``values`` are its columns. One that has a state of its own gets no delivery."""
        self._held.expect(self.connection, values["study_id"])
        self._work.add(file, values)
        state: State | None = values["state"]
        if state is not None:
            check_move(None, state, FILE_MOVES)
            self._work.put_down(
                [(values["id"], None)], (at, None, state, values["reason"] or "", values["note"], None, "")
            )
            self.counters.file_added(values, at)

    def add(self, values: dict[str, Any], *, inbox_id: int, priority: int, at: datetime, note: str = "") -> None:
        """Add a delivery; ``values`` are its columns. Its file counts it as one that needs its bytes already."""
        state: State = values["state"]
        check_move(None, state)
        self._held.expect(self.connection, values["study_id"])
        self._work.add(delivery, values)
        line = (at, None, state, values["reason"] or "", note, None, "")
        self._work.put_down([(values["file_id"], values["id"])], line)
        self.counters.delivery_added(values, inbox_id, priority, at)

    def need(self, file_id: int, *, at: datetime) -> None:
        """Count one more delivery that needs the bytes of a file: one that was added to it later."""
        self._work.need(file_id, 1, at)

    def move_file(
        self, row: FileRow, *, to: State, at: datetime, reason: Reason | None, note: str, **values: Any
    ) -> None:
        """Move a file that has no delivery; raises IllegalMove for a move that ``FILE_MOVES`` lacks."""
        self._held.expect(self.connection, row.study_id)
        check_move(row.state, to, FILE_MOVES)
        if to in SETTLED:
            values.setdefault("unneeded_at", at)
        self._set_file(row, state=to, reason=reason, note=note, changed_at=at, **values)
        self._work.put_down([(row.id, None)], (at, row.state, to, reason or "", note, None, ""))
        self.counters.file_changed(row, to, reason, at)

    def _set_file(self, row: FileRow, **values: Any) -> None:
        where = (file.c.id == row.id, dialect.unindexed(file.c.state) == row.state)
        if self.connection.execute(update(file).where(*where).values(**values)).rowcount != 1:
            raise IllegalMove("a file was moved by somebody else within our own transaction")

    def set_file(self, file_id: int, **values: Any) -> None:
        """Set columns of a file that nothing counts."""
        self.write_rows()
        self.connection.execute(update(file).where(file.c.id == file_id).values(**values))

    def note_file(self, file_id: int, state: State, *, at: datetime, reason: str, note: str = "") -> None:
        """Put down in the history of a file what is no move, and concerns none of its deliveries."""
        self._work.put_down([(file_id, None)], (at, state, state, reason, note, None, ""))

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
            line = (at, row.state, to, reason or "", note, by_attempt, kept_evidence(evidence or {}))
            self._work.put_down([(each.file_id, each.id) for each in same], line)
        if gives_up and to in GIVES_IDENTITY_UP:
            self._given_up += [(row, at) for row in rows]

    def change(self, *rows: Row, to: dict[str, Any], at: datetime) -> None:
        """Set the same columns of rows that are alike; what changes their state goes through ``move``."""
        row = rows[0]
        self._held.expect(self.connection, row.study_id)
        after = to.get("state", row.state)
        queued = int(
            after is State.PENDING
            and to.get("need", row.need) is None
            and to.get("next_attempt_at", row.next_attempt_at) is None
        )
        if queued != row.queued:
            to["queued"] = queued
        self._work.change(rows, to)
        if "settled_at" in to and (to["settled_at"] is None) != (row.settled_at is None):
            by = 1 if to["settled_at"] is None else -1
            for each in rows:
                self._work.need(each.file_id, by, at)
        self.counters.rows_changed(rows, to, after, queued, at)

    def note(
        self, row: Row, *, at: datetime, reason: str, note: str = "", evidence: Mapping[str, str] | None = None
    ) -> None:
        """Put down in the history of a row what is no move."""
        line = (at, row.state, row.state, reason, note, None, kept_evidence(evidence or {}))
        self._work.put_down([(row.file_id, row.id)], line)

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
        if not self.is_of_studies:
            self._write_what_is_of_all()

    def end(self) -> None:
        """Write everything, behind which nothing comes but COMMIT."""
        self.flush_all()
        if self.has_begun:
            self._write_what_is_of_all()

    def set_destination(self, statement: Update) -> None:
        """Write the row of our destination, which others write who are beside us; what it says is not read here."""
        connection = self.connection
        if self.is_of_studies:
            self._of_destinations.append((self.destination_id, statement))
        else:
            connection.execute(statement)

    def _write_what_is_of_all(self) -> None:
        of_destinations, self._of_destinations = self._of_destinations, []
        for _, statement in sorted(of_destinations, key=itemgetter(0)):
            self.connection.execute(statement)
        self.counters.flush_counts(self.connection)

    def write_rows(self) -> None:
        """Write the rows that were gathered, so that what is read next is as it will be."""
        if self._connection is not None:
            self._work.write_rows(self._connection)

    def _pass_on(self, given_up: Sequence[tuple[Row, datetime]]) -> None:
        when = {row.id: at for row, at in given_up}
        waiting: dict[int, list[Row]] = defaultdict(list)
        for duplicate in self.duplicates_of(when):
            assert duplicate.holder_id is not None, "the statement asked for it"
            waiting[duplicate.holder_id].append(duplicate)
        for holder_id, duplicates in waiting.items():
            self.promote(holder_id, duplicates, when[holder_id])

    def duplicates_of(self, holder_ids: Iterable[int]) -> list[Row]:
        """Read the duplicates of these that wait for them and have their file, the oldest first."""
        found: list[Row] = []
        for piece in pieces(list(holder_ids)):
            found += self.rows(
                self.select_rows(
                    delivery.c.holder_id.is_not(None),
                    delivery.c.holder_id.in_(piece),
                    dialect.unindexed(delivery.c.state) == State.DUPLICATE,
                    # A settled one was as good as delivered: what is deleted on the server later stays deleted.
                    dialect.unindexed(delivery.c.settled_at).is_(None),
                    file.c.removing_at.is_(None),
                ).order_by(delivery.c.admitted_at, delivery.c.id)
            )
        return found

    def promote(self, former_id: int, duplicates: Sequence[Row], at: datetime) -> None:
        """Have the first of these sent in place of the row that they belong to; the others belong to it then."""
        first, *others = duplicates
        holder = self.holder_of(first)
        if holder is None:
            note = f"row {former_id}, which held its identity, is gone"
            self.move(first, to=State.PENDING, at=at, reason=Reason.HOLDER_GONE, note=note, holder_id=None)
            self.follow(first, others, at=at)
            return
        for duplicate in duplicates:
            self.point_to(duplicate, holder, at=at)

    def follow(self, first: Row, others: Iterable[Row], *, at: datetime) -> None:
        """Let what belonged to the same row as ``first`` belong to that one, which took the row's place."""
        for other in others:
            if is_not_compared(first) and other.state is State.DUPLICATE:
                self.point_to(other, first, at=at)
            else:  # it is to the first what it was to the former
                self.change(other, to={"holder_id": first.id}, at=at)

    def point_to(self, duplicate: Row, holder: Row, *, at: datetime) -> None:
        """Let a duplicate belong to another holder, with which it may have to be compared, or be in conflict."""
        state, reason, note = judge(duplicate, holder)
        if (state, reason) == (duplicate.state, duplicate.reason):
            self.change(duplicate, to={"holder_id": holder.id}, at=at)
        else:
            self.move(duplicate, to=state, at=at, reason=reason, note=note, holder_id=holder.id)


class _TransactionAt(AtDestination, Transaction):
    pass


def _settings_of_move(row: Row, after: State, at: datetime, values: Mapping[str, Any]) -> dict[str, Any]:
    """Add to what a move is to set what it has to set by the way."""
    settings = dict(values)
    before = row.state
    if before in PROVABLE:
        settings.setdefault("next_check_at", None)
    if before is State.SENDING:
        settings["claim_token"] = None
    if after is not State.PENDING:
        for column in ("need", "next_attempt_at"):
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
