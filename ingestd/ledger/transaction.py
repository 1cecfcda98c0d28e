"""One write transaction: how rows are read, moved, put down in history, and kept in sum.

Every change of a row's state goes through ``Transaction.move`` (and every new row through ``Transaction.add``), which
check the table of moves, write the history and keep the sums. Rows are read inside the transaction, behind BEGIN
IMMEDIATE (or FOR UPDATE), and updated only WHERE id AND expected state AND claim token (G4).

Moves are gathered and written together by ``flush``, which also looks after the duplicates of rows that gave their
identity up; each public move ends with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Select, Update, bindparam, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.sql import Executable

from ingestd.lifecycle import (
    HOLDING,
    Identity,
    IllegalMove,
    Jump,
    Reason,
    State,
    check_move,
    surely_since,
)

from . import dialect
from .counters import Counters
from .row import HOLDS, ROW, Row, alike, as_json, jump_of, make_row, pieces, same_bytes
from .schema import clock, history, instance
from .session import Session

# What decides the statement of an update: its turn, expected state and claim token, and the columns set.
_Shape = tuple[int, State, str | None, tuple[str, ...]]
_RANKS = {0: 0, None: 1, 1: 2}


_CHECKED = frozenset({State.UNCERTAIN, State.STORED, State.CONFIRMED, State.DELETED})
_SETTLED = frozenset({State.CONFIRMED, State.DISCARDED})
_LEARNT = (("mismatch", 0), ("differs_since", None), ("untold_since", None))
# A row that comes here has given up its identity for good: the oldest of its duplicates takes its place.
_GIVES_UP = frozenset({State.DELETED, State.FAILED, State.DISCARDED, State.REJECTED})


@lru_cache(maxsize=256)
def _update(columns: tuple[str, ...], *, token: bool, many: bool) -> Update:
    which = dialect.among(instance.c.id, "b_id") if many else instance.c.id == bindparam("b_id")
    # By id alone: the index over the states would go through all rows that are in this one.
    statement = update(instance).where(which, dialect.unindexed(instance.c.state) == bindparam("b_state"))
    if token:
        statement = statement.where(instance.c.claim_token == bindparam("b_token"))
    return statement.values({name: bindparam(name) for name in columns})


_PUT_DOWN_COLUMNS = ("at", "before", "after", "reason", "note", "attempt_id", "evidence")
# The same line for many rows in one statement.
_PUT_DOWN_FOR_MANY = dialect.insert_for_each(history, "entry_id", _PUT_DOWN_COLUMNS)
_SELECT_BY_ID = select(*ROW).where(dialect.among(instance.c.id, "ids")).with_for_update()
_FEW = 4


_JUMPS = select(clock).where(clock.c.host == bindparam("host"), clock.c.by_us != 0)
_LAST_JUMP = _JUMPS.order_by(clock.c.id.desc()).limit(1)


class Transaction:
    """What is done between BEGIN and COMMIT: it begins with the first statement, and none is needed.

    ``on_commit`` takes what is allowed only once that is durable: to read, move, post or forget. It is called in the
    order in which it was registered, after COMMIT succeeded; after a rollback, or a COMMIT whose outcome nobody knows,
    it is dropped, and whoever registered it does so again in the next transaction, from what the ledger says then.
    """

    def __init__(self, session: Session, begin: Callable[[], Connection]) -> None:
        self._begin = begin
        self._connection: Connection | None = None
        self._on_commit: list[Callable[[], object]] = []
        self.wrote = False  # whether it changed any row; known once it is committed
        self.first_candidate_id = session.first_candidate_id
        self.host = session.host
        self.spool = session.spool
        self.longest = session.longest
        self.limits_of = session.limits_of
        self.spool_of = session.spool_of
        self.counters = Counters(session.limits_of, session.labels_known)
        # Lines of history by what they say: most of a batch say the same.
        self._history: dict[tuple[Any, ...], list[int]] = {}
        self._told: set[int] = set()
        self._added: list[dict[str, Any]] = []
        self._updates: dict[_Shape, dict[tuple[Any, ...], list[int]]] = {}
        self._touched: set[int] = set()
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
        """Whether any statement was made."""
        return self._connection is not None

    def fetch_all(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """Give all rows of a SELECT, behind everything gathered so far."""
        self.flush_all()
        return self.connection.execute(statement, values).all()

    def fetch_one(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Any:
        rows = self.fetch_all(statement, values)
        return rows[0] if rows else None

    def fetch_cached(self, statement: Executable, **values: Any) -> Sequence[Any]:
        return self.fetch_all(statement, values)

    def on_commit(self, act: Callable[[], object]) -> None:
        """Have this done once the transaction is durable."""
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
            found.update((row.id, row) for row in self.rows(_SELECT_BY_ID, ids=piece))
        return found

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
        self._added.append(values)
        self.put_down((values["id"],), None, state, at=at, reason=reason, note=note)
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
            self.put_down(
                [each.id for each in same],
                row.state,
                to,
                at=at,
                reason=reason or "",
                note=note,
                evidence=evidence,
                attempt_id=by_attempt,
            )
        if gives_up and to in _GIVES_UP:
            self._given_up += [(row, at) for row in rows]

    def change(self, *rows: Row, to: dict[str, Any], at: datetime) -> None:
        """Set the same columns of rows that are alike; what changes their state goes through ``move``."""
        ids = [row.id for row in rows]
        if not self._touched.isdisjoint(ids):
            raise IllegalMove(f"one of the rows {ids} was read before its last change")
        self._touched.update(ids)
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
        self.counters.rows_changed(rows, to, after, queued, at)
        # An identity is given up before another row takes it.
        rank = _RANKS[to.get("holds")]
        shape = (rank, row.state, row.claim_token, tuple(to))
        # Most rows of a batch are set to the same: they are written by one statement.
        self._updates.setdefault(shape, {}).setdefault(tuple(to.values()), []).extend(ids)

    def put_down(
        self,
        entry_ids: Sequence[int],
        before: State | None,
        after: State,
        *,
        at: datetime,
        reason: str,
        note: str = "",
        evidence: Mapping[str, str] | None = None,
        attempt_id: int | None = None,
    ) -> None:
        """Add the same line to the history of rows."""
        if not self._told.isdisjoint(entry_ids):
            # Two lines of one row stand in the order in which they were said.
            self._write_history()
        self._told.update(entry_ids)
        line = (at, before, after, reason, note, attempt_id, as_json(evidence) if evidence else "")
        self._history.setdefault(line, []).extend(entry_ids)

    def flush(self) -> None:
        """Write what was gathered; rows that gave their identity up leave it to the oldest of their duplicates.

        History and sums stay gathered until ``flush_all``: a transaction has many moves, and few studies.
        """
        self.write_rows()
        while self._given_up:
            given_up, self._given_up = self._given_up, []
            self._pass_on(given_up)
            self.write_rows()

    def see_study(self, study_uid: str) -> None:
        """Have the sums of this study as they are after everything gathered so far: they are about to be read."""
        if self.counters.has_changed(self.host, study_uid):
            self.flush_all()

    def flush_all(self) -> None:
        """Write everything: the transaction is about to be committed."""
        if not self.has_begun:
            return
        self.flush()
        self._write_history()
        self.counters.flush(self.connection)

    def write_rows(self) -> None:
        """Write the rows that were gathered, so that what is read next is as it will be."""
        if self._added:
            added, self._added = self._added, []
            kinds: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
            for values in added:
                kinds[tuple(values)].append(values)
            for rows in kinds.values():
                dialect.insert_rows(self.connection, instance, rows)
        if self._updates:
            updates, self._updates = self._updates, {}
            self._touched.clear()
            for shape in sorted(updates, key=itemgetter(0)):
                self._write_updates(shape, updates[shape])

    def _write_updates(self, shape: _Shape, wanted: Mapping[tuple[Any, ...], list[int]]) -> None:
        _rank, state, token, columns = shape
        expected: dict[str, Any] = {"b_state": state} if token is None else {"b_state": state, "b_token": token}
        single: list[dict[str, Any]] = []
        written = 0
        for values, entry_ids in wanted.items():
            columns_set = dict(zip(columns, values, strict=True))
            if len(entry_ids) < _FEW:
                single += [{**columns_set, **expected, "b_id": entry_id} for entry_id in entry_ids]
                continue
            statement = _update(columns, token=token is not None, many=True)
            written += self.connection.execute(statement, {**columns_set, **expected, "b_id": entry_ids}).rowcount
        if single:
            done = self.connection.execute(_update(columns, token=token is not None, many=False), single)
            written += done.rowcount
        if written != sum(map(len, wanted.values())):
            raise IllegalMove("a row was moved by somebody else within our own transaction")

    def _write_history(self) -> None:
        if not self._history:
            return
        self.write_rows()
        lines, self._history = self._history, {}
        self._told.clear()
        single: list[dict[str, Any]] = []
        for line, entry_ids in lines.items():
            said = dict(zip(_PUT_DOWN_COLUMNS, line, strict=True))
            if len(entry_ids) < _FEW:
                single += [{"entry_id": entry_id, **said} for entry_id in entry_ids]
                continue
            many = {f"b_{name}": value for name, value in said.items()}
            self.connection.execute(_PUT_DOWN_FOR_MANY, {**many, "b_each": entry_ids})
        if single:
            dialect.insert_rows(self.connection, history, single)

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
    if before in _CHECKED:
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
    if after in _SETTLED:
        settings.setdefault("settled_at", at)
    elif row.settled_at is not None:
        settings.setdefault("settled_at", None)
    return settings
