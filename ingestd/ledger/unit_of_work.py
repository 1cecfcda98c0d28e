"""What a transaction is to write of rows and of their history, put together so that few statements write it.

Most rows of a batch are set to the same, and the same is said of them: they are one statement. Nothing here decides
anything; the order is that of ``write_rows``: new rows, then changes, and of these first what gives an identity up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Update, bindparam, update
from sqlalchemy.engine import Connection

from ingestd.lifecycle import IllegalMove, State

from . import dialect
from .row import ID, Row
from .schema import history, instance

# What decides the statement of an update: its turn, expected state and claim token, and the columns set.
_Shape = tuple[int, State, str | None, tuple[str, ...]]
# By what ``holds`` is set to: an identity is given up before another row takes it.
_TURNS = {0: 0, None: 1, 1: 2}
LINE = ("at", "before", "after", "reason", "note", "attempt_id", "evidence")
# The same line for many rows in one statement.
_PUT_DOWN_FOR_MANY = dialect.insert_for_each(history, "entry_id", LINE)
_FEW = 4


@lru_cache(maxsize=256)
def _update(columns: tuple[str, ...], *, token: bool, many: bool) -> Update:
    which = dialect.among(instance.c.id, "b_id") if many else instance.c.id == bindparam("b_id")
    # By id alone: the index over the states would go through all rows that are in this one.
    statement = update(instance).where(which, dialect.unindexed(instance.c.state) == bindparam("b_state"))
    if token:
        statement = statement.where(instance.c.claim_token == bindparam("b_token"))
    return statement.values(dict(zip(columns, map(bindparam, columns), strict=True)))


class UnitOfWork:
    """The rows and lines of history that were gathered and are not written yet."""

    def __init__(self) -> None:
        self._added: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
        self._updates: dict[_Shape, dict[tuple[Any, ...], list[int]]] = {}
        self._touched: set[int] = set()
        # Lines by what they say. Two lines of one row stand in the order in which they were said: in two of these.
        self._history: list[dict[tuple[Any, ...], list[int]]] = [{}]
        self._in_history: set[int] = set()

    def add(self, values: Mapping[str, Any]) -> None:
        self._added[tuple(values)].append(values)

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

    def put_down(self, entry_ids: Sequence[int], line: tuple[Any, ...]) -> None:
        """Add the same line, with the columns of ``LINE``, to the history of rows."""
        if not self._in_history.isdisjoint(entry_ids):
            self._history.append({})
            self._in_history.clear()
        self._in_history.update(entry_ids)
        self._history[-1].setdefault(line, []).extend(entry_ids)

    def write_rows(self, connection: Connection) -> None:
        """Write the rows; raises IllegalMove where one is not as it was read."""
        if self._added:
            added, self._added = self._added, defaultdict(list)
            for rows in added.values():
                dialect.insert_rows(connection, instance, rows)
        if self._updates:
            updates, self._updates = self._updates, {}
            self._touched.clear()
            for shape in sorted(updates, key=itemgetter(0)):
                _write_updates(connection, shape, updates[shape])

    def write_history(self, connection: Connection) -> None:
        """Write the lines; their rows must have been written before."""
        single: list[dict[str, Any]] = []
        for lines in self._history:
            for line, entry_ids in lines.items():
                said = dict(zip(LINE, line, strict=True))
                if len(entry_ids) < _FEW:
                    single += [{"entry_id": entry_id, **said} for entry_id in entry_ids]
                    continue
                many = {f"b_{name}": value for name, value in said.items()}
                connection.execute(_PUT_DOWN_FOR_MANY, {**many, "b_each": entry_ids})
            if single:
                dialect.insert_rows(connection, history, single)
                single = []
        self._history = [{}]
        self._in_history.clear()


def _write_updates(connection: Connection, shape: _Shape, wanted: Mapping[tuple[Any, ...], list[int]]) -> None:
    _turn, state, token, columns = shape
    expected: dict[str, Any] = {"b_state": state} if token is None else {"b_state": state, "b_token": token}
    single: list[dict[str, Any]] = []
    written = rows = 0
    for values, entry_ids in wanted.items():
        rows += len(entry_ids)
        columns_set = dict(zip(columns, values, strict=True))
        if len(entry_ids) < _FEW:
            single += [{**columns_set, **expected, "b_id": entry_id} for entry_id in entry_ids]
            continue
        statement = _update(columns, token=token is not None, many=True)
        written += connection.execute(statement, {**columns_set, **expected, "b_id": entry_ids}).rowcount
    if single:
        written += connection.execute(_update(columns, token=token is not None, many=False), single).rowcount
    if written != rows:
        raise IllegalMove("a row was moved by somebody else within our own transaction")
