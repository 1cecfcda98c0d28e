"""The words that only SQLite understands, and other databases spell otherwise; the rest of this room is portable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Column, ColumnElement, Table, Text, bindparam, func, literal_column, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.types import UserDefinedType

from .column_types import Digest, SpoolPath

if TYPE_CHECKING:
    from sqlalchemy import Insert as GenericInsert
    from sqlalchemy.dialects.sqlite import Insert
    from sqlalchemy.engine import Connection, Dialect
    from sqlalchemy.types import TypeEngine

T = TypeVar("T")

MIGRATION_WORDS = {"int": "INTEGER", "key": "INTEGER PRIMARY KEY", "bytes": "BLOB", "strict": "STRICT"}

# Host parameters of one statement: 999 in the oldest libraries; an IN list beside a few others stays below.
CHUNK = 500

# Rows of one INSERT: what is inserted is cut into so many and the rest, so that few statements are prepared.
_ROWS_A_STATEMENT = 32


def take_numbers(connection: Connection, name: str, count: int) -> int:
    """Take so many numbers of a sequence, and say the first: none is given out twice, whatever becomes of its row."""
    took = "UPDATE sequence SET next = next + ? WHERE name = ? RETURNING next"
    after: int = connection.exec_driver_sql(took, (count, name)).scalar_one()
    return after - count


def upsert(table: Table) -> Insert:
    """Insert whole rows, or write over the row with the same key."""
    statement = insert(table)
    keys = [column.name for column in table.primary_key]
    return statement.on_conflict_do_update(
        index_elements=keys,
        set_={column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys},
    )


def add_to(table: Table, columns: Iterable[str]) -> Insert:
    """Insert rows, or add these columns' numbers to the row with the same key."""
    statement = insert(table)
    sums: dict[str, Any] = {name: table.c[name] + statement.excluded[name] for name in columns}
    return statement.on_conflict_do_update(index_elements=[column.name for column in table.primary_key], set_=sums)


def insert_missing(table: Table) -> Insert:
    """Insert rows, leaving alone those that are there."""
    return insert(table).on_conflict_do_nothing()


class _Each(UserDefinedType[Sequence[Any]]):
    """A list of values bound as one JSON text; each is kept as its column keeps it, bytes as hex."""

    cache_ok = True

    def __init__(self, of: TypeEngine[Any]) -> None:
        self.of = of

    def bind_processor(self, dialect: Dialect) -> Callable[[Sequence[Any] | None], str]:
        keep = self.of.bind_processor(dialect)
        if keep is None:
            return json.dumps
        return lambda values: json.dumps(list(map(keep, values or ())), default=bytes.hex)


def among(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """Say that a column's value is one of a list, to be bound as ``name``.

    The statement is the same whatever the length of the list. JSON has no bytes: these travel as hex.
    """
    is_digest = isinstance(column.type, Digest)
    each = func.json_each(bindparam(name, type_=_Each(Text() if is_digest else column.type))).table_valued("value")
    are_bytes = is_digest or isinstance(column.type, SpoolPath)
    return column.in_(select(func.from_hex(each.c.value) if are_bytes else each.c.value))


def unindexed(column: Column[T]) -> ColumnElement[T]:
    """Name a column so that no index over it is chosen (SQLite documentation: the unary "+" of a WHERE term)."""
    return literal_column(f"+{column.table.name}.{column.name}", type_=column.type)


def insert_for_each(table: Table, columns: Sequence[str], others: Sequence[str]) -> GenericInsert:
    """Insert a row for each of a list of numbers for ``columns``, bound as "b_each"; the others ("b_...") are the same.

    In the order of the list.
    """
    each = func.json_each(bindparam("b_each", type_=_Each(Text()))).table_valued("value")
    numbers = (func.json_extract(each.c.value, f"$[{place}]") for place in range(len(columns)))
    same = (bindparam(f"b_{name}", type_=table.c[name].type) for name in others)
    return table.insert().from_select([*columns, *others], select(*numbers, *same))


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that have the same columns, many in one statement: each statement costs a step of its own."""
    columns = tuple(rows[0])
    keeps = [(name, table.c[name].type.bind_processor(connection.dialect)) for name in columns]
    for start in range(0, len(rows), _ROWS_A_STATEMENT):
        piece = rows[start : start + _ROWS_A_STATEMENT]
        values: list[Any] = []
        for row in piece:
            for name, keep in keeps:
                value = row[name]
                values.append(value if keep is None or value is None else keep(value))
        connection.exec_driver_sql(_insertion(table.name, columns, len(piece)), tuple(values))


@lru_cache(maxsize=128)
def _insertion(table: str, columns: tuple[str, ...], rows: int) -> str:
    one = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([one] * rows)}"  # noqa: S608
