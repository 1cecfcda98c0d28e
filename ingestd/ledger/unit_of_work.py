"""What a transaction is to write of rows and of their history, put together so that few statements write it.

Most rows of a batch are set to the same, and the same is said of them: they are one statement. Nothing here decides
anything; the order is that of ``write_rows``: what changes, and first of all what gives an identity up; new rows stand
between that and what takes one; then how many deliveries need each file still.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Table, Update, bindparam, case, update
from sqlalchemy.engine import Connection

from ingestd.lifecycle import IllegalMove, State

from . import dialect
from .row import ID, Row
from .schema import delivery, file, history

# What decides the statement of an update: its turn, expected state and claim token, and the columns set.
_Shape = tuple[int, State, str | None, tuple[str, ...]]
# By what ``holds`` is set to: an identity is given up before another row takes it.
_TURNS = {0: 0, None: 1, 1: 2}
LINE = ("at", "before", "after", "reason", "note", "attempt_id", "evidence")
_OF = ("file_id", "delivery_id")
_FEW = 4
_NEEDED_BY = dialect.ForEach(
    {"b_id": file.c.id, "b_by": file.c.needed_by, "b_at": file.c.unneeded_at},
    lambda of: (
        update(file)
        .where(file.c.id == of["b_id"])
        .values(
            needed_by=file.c.needed_by + of["b_by"],
            unneeded_at=case((file.c.needed_by + of["b_by"] == 0, of["b_at"]), else_=None),
        )
    ),
)


def _set(columns: tuple[str, ...], which: ColumnElement[bool], values: Any, *, token: bool) -> Update:
    # By id alone: the index over the states would go through all rows that are in this one, and that of what is being
    # sent through all that was since the oldest snapshot (of a backup, for hours).
    statement = update(delivery).where(which, dialect.unindexed(delivery.c.state) == bindparam("b_state"))
    if token:
        statement = statement.where(delivery.c.claim_token.is_not_distinct_from(bindparam("b_token")))
    return statement.values({name: values[name] for name in columns})


@lru_cache(maxsize=256)
def _update_alike(columns: tuple[str, ...], *, token: bool) -> Update:
    values: dict[str, BindParameter[Any]] = {name: bindparam(name) for name in columns}
    return _set(columns, dialect.among(delivery.c.id, "b_id"), values, token=token)


@lru_cache(maxsize=256)
def _update_each(columns: tuple[str, ...], *, token: bool) -> dialect.ForEach:
    of = {"b_id": delivery.c.id, **{name: delivery.c[name] for name in columns}}
    return dialect.ForEach(of, lambda each: _set(columns, delivery.c.id == each["b_id"], each, token=token))


class UnitOfWork:
    """The rows and lines of history that were gathered and are not written yet."""

    def __init__(self) -> None:
        self._added: dict[tuple[str, tuple[str, ...]], list[Mapping[str, Any]]] = defaultdict(list)
        self._updates: dict[_Shape, dict[tuple[Any, ...], list[int]]] = {}
        self._touched: set[int] = set()
        # By how many more, or fewer, deliveries a file is needed, and when that was.
        self._needed_by: dict[int, tuple[int, datetime]] = {}
        # Lines by what they say. Two lines of one row stand in the order in which they were said: in two of these.
        self._history: list[dict[tuple[Any, ...], list[tuple[int, int | None]]]] = [{}]
        self._in_history: set[tuple[int, int | None]] = set()

    def add(self, table: Table, values: Mapping[str, Any]) -> None:
        self._added[table.name, tuple(values)].append(values)

    def change(self, rows: Sequence[Row], to: Mapping[str, Any]) -> None:
        """Set the same columns of rows that are alike, where they still are as they were read (G4).

        Raises IllegalMove where one was changed since it was read.
        """
        row = rows[0]
        ids = list(map(ID, rows))
        if not self._touched.isdisjoint(ids):
            raise IllegalMove(f"one of the rows {ids} was read before its last change")
        self._touched.update(ids)
        shape = (_TURNS[to.get("holds")], row.state, row.claim_token, tuple(to))
        self._updates.setdefault(shape, {}).setdefault(tuple(to.values()), []).extend(ids)

    def need(self, file_id: int, by: int, at: datetime) -> None:
        """Count so many more deliveries that need the bytes of a file, or fewer."""
        known, when = self._needed_by.get(file_id, (0, at))
        self._needed_by[file_id] = (known + by, max(at, when))

    def put_down(self, rows: Sequence[tuple[int, int | None]], line: tuple[Any, ...]) -> None:
        """Add the same line, with the columns of ``LINE``, to the history of these: each a file and its delivery."""
        if not self._in_history.isdisjoint(rows):
            self._history.append({})
            self._in_history.clear()
        self._in_history.update(rows)
        self._history[-1].setdefault(line, []).extend(rows)

    def write_rows(self, connection: Connection) -> None:
        """Write the rows; raises IllegalMove where one is not as it was read."""
        updates, self._updates = self._updates, {}
        shapes = sorted(updates, key=itemgetter(0))
        self._touched.clear()
        for shape in shapes:
            if shape[0] == 0:
                _write_updates(connection, shape, updates[shape])
        if self._added:
            added, self._added = self._added, defaultdict(list)
            for table in (file, delivery):
                for (name, _), rows in added.items():
                    if name == table.name:
                        dialect.insert_rows(connection, table, rows)
        for shape in shapes:
            if shape[0] > 0:
                _write_updates(connection, shape, updates[shape])
        if self._needed_by:
            changes = [
                {"b_id": each, "b_by": by, "b_at": at} for each, (by, at) in sorted(self._needed_by.items()) if by
            ]
            self._needed_by.clear()
            if changes:
                _NEEDED_BY.run(connection, changes, {})

    def write_history(self, connection: Connection) -> None:
        """Write the lines; their rows must have been written before."""
        for lines in self._history:
            alike = ((dict(zip(LINE, line, strict=True)), rows) for line, rows in lines.items())
            dialect.insert_alike(connection, history, _OF, alike)
        self._history = [{}]
        self._in_history.clear()


def _write_updates(connection: Connection, shape: _Shape, wanted: Mapping[tuple[Any, ...], list[int]]) -> None:
    _turn, state, token, columns = shape
    expected: dict[str, Any] = {"b_state": state} if token is None else {"b_state": state, "b_token": token}
    single: list[dict[str, Any]] = []
    for values, delivery_ids in wanted.items():
        columns_set = dict(zip(columns, values, strict=True))
        if len(delivery_ids) < _FEW:
            single += [{**columns_set, "b_id": delivery_id} for delivery_id in delivery_ids]
            continue
        statement = _update_alike(columns, token=token is not None)
        dialect.write(connection, statement, {**columns_set, **expected, "b_id": delivery_ids}, rows=len(delivery_ids))
    if single:
        _update_each(columns, token=token is not None).run(connection, single, expected)
