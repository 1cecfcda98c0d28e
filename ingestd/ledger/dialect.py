"""What SQLite and PostgreSQL spell differently in a statement; the rest of this room is written once.

A construct is compiled for the database that it is sent to (``sqlalchemy.ext.compiler``), so that a statement is built
once, when its module is imported. Lists travel as one value: a JSON text to SQLite, an array to PostgreSQL, so that the
statement is the same whatever their length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Select,
    Table,
    TextClause,
    Update,
    bindparam,
    cast,
    func,
    select,
    text,
    true,
)
from sqlalchemy import column as sql_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import UserDefinedType

from ingestd.lifecycle import IllegalMove

from .column_types import kept_as

if TYPE_CHECKING:
    from sqlalchemy import Executable
    from sqlalchemy.engine import Connection, Dialect
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

T = TypeVar("T")

POSTGRESQL = "postgresql"
# What is marked by this execution option is not waited for (``write``).
WITHOUT_ANSWER = "rows_hit"

# Host parameters of one statement: 999 in the oldest libraries; an IN list beside a few others stays below.
CHUNK = 500

# Rows of one INSERT: what is inserted is cut into so many and the rest, so that few statements are prepared.
_ROWS_A_STATEMENT = 32
# So few rows that are alike are written like those that are not.
_FEW = 4


def take_numbers(connection: Connection, name: str, count: int) -> Sequence[int]:
    """Take so many numbers of a kind, the lowest first: none is given out twice, whatever becomes of its row."""
    if connection.dialect.name == POSTGRESQL:
        took = f"SELECT nextval('{name}_number') FROM generate_series(1, %s)"  # noqa: S608 - a name of ours
        return connection.exec_driver_sql(took, (count,)).scalars().all()
    took = "UPDATE sequence SET next = next + ? WHERE name = ? RETURNING next"
    after: int = connection.exec_driver_sql(took, (count, name)).scalar_one()
    return range(after - count, after)


def upsert(table: Table) -> TextClause:
    """Insert a whole row, or write over the row with the same key."""
    names = [column.name for column in table.columns]
    values = ", ".join(f":{name}" for name in names)
    return text(
        f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({values}){put_over(table)}"  # noqa: S608
    ).bindparams(*(bindparam(column.name, type_=column.type) for column in table.columns))


def put_over(table: Table) -> str:
    """Of an INSERT of whole rows: write over those with the same key."""
    keys = {column.name for column in table.primary_key}
    others = (column.name for column in table.columns if column.name not in keys)
    return _conflict(table, "UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in others))


def add_to(table: Table, columns: Iterable[str]) -> str:
    """Of an INSERT of whole rows: add these columns' numbers to those with the same key."""
    sums = (f"{name} = {table.name}.{name} + excluded.{name}" for name in columns)
    return _conflict(table, "UPDATE SET " + ", ".join(sums))


def leave(table: Table) -> str:
    """Of an INSERT of whole rows: leave those with the same key alone."""
    return _conflict(table, "NOTHING")


def _conflict(table: Table, what: str) -> str:
    """Both databases say it alike, where SQLAlchemy has a construct for each."""
    return f" ON CONFLICT ({', '.join(column.name for column in table.primary_key)}) DO {what}"


class _Each(UserDefinedType[Sequence[Any]]):
    """A list of values bound as one; each is kept as its column keeps it. JSON has no bytes: these travel as hex."""

    cache_ok = True

    def __init__(self, of: TypeEngine[Any]) -> None:
        self.of = of

    def bind_processor(self, dialect: Dialect) -> Callable[[Sequence[Any] | None], Any]:
        keep = self.of.bind_processor(dialect) or _as_it_is
        if dialect.name == POSTGRESQL:
            return lambda values: list(map(keep, values or ()))
        return lambda values: json.dumps(list(map(keep, values or ())), default=bytes.hex)


def _as_it_is(value: Any) -> Any:
    return value


class _Among(FunctionElement[bool]):
    # No Boolean: on SQLite, which has none, that is compared with 1, and no index is used.
    inherit_cache = True


@compiles(_Among)
def _among_on_sqlite(element: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, each = element.clauses
    value = "from_hex(value)" if kept_as(column.type) == "BYTEA" else "value"
    listed = compiler.process(each, **options)
    return f"{compiler.process(column, **options)} IN (SELECT {value} FROM json_each({listed}))"  # noqa: S608


@compiles(_Among, POSTGRESQL)
def _among_on_postgresql(element: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, each = element.clauses
    listed = compiler.process(each, **options)
    return f"{compiler.process(column, **options)} = ANY (CAST({listed} AS {kept_as(column.type)}[]))"


def among(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """Say that a column's value is one of a list, to be bound as ``name``."""
    return _Among(column, bindparam(name, type_=_Each(column.type)))


class _Unindexed(FunctionElement[Any]):
    inherit_cache = True


@compiles(_Unindexed)
def _unindexed_on_sqlite(element: _Unindexed, compiler: SQLCompiler, **options: Any) -> str:
    return f"+{compiler.process(element.clauses, **options)}"


@compiles(_Unindexed, POSTGRESQL)
def _unindexed_on_postgresql(element: _Unindexed, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.clauses, **options)


def unindexed(column: Column[T] | ColumnElement[T]) -> ColumnElement[T]:
    """Name a column so that no index over it is chosen (SQLite documentation: the unary "+" of a WHERE term).

    PostgreSQL knows how many rows each value has, and chooses by that.
    """
    element = _Unindexed(column)
    element.type = column.type
    return element


class _EndsWith(FunctionElement[bool]):
    inherit_cache = True


@compiles(_EndsWith)
def _ends_with_on_sqlite(element: _EndsWith, compiler: SQLCompiler, **options: Any) -> str:
    text, ending = (compiler.process(each, **options) for each in element.clauses)
    return f"substr({text}, -length({ending})) = {ending}"


@compiles(_EndsWith, POSTGRESQL)
def _ends_with_on_postgresql(element: _EndsWith, compiler: SQLCompiler, **options: Any) -> str:
    text, ending = (compiler.process(each, **options) for each in element.clauses)
    return f"right({text}, length(CAST({ending} AS TEXT))) = {ending}"


def ends_with(column: ColumnElement[str], ending: ColumnElement[str]) -> ColumnElement[bool]:
    """Say that a text ends with another, which is not empty."""
    return _EndsWith(column, ending)


def total(column: ColumnElement[int]) -> ColumnElement[int]:
    """Add up a column: an integer, where PostgreSQL's own sum of integers is none; NULL of no rows."""
    return cast(func.sum(column), BigInteger)


class ForEach:
    """An UPDATE of many rows, of which each is set to values of its own.

    PostgreSQL is sent arrays, one statement however many rows; SQLite goes through them by itself.
    """

    def __init__(self, of: Mapping[str, ColumnElement[Any]], build: Callable[[Any], Update]) -> None:
        """``build`` makes the statement of values, by name, that are called and kept as ``of`` says."""
        self._names = tuple(of)
        self._each = build({name: bindparam(name, type_=column.type) for name, column in of.items()})
        arrays = [_Array(bindparam(name, type_=_Each(column.type))) for name, column in of.items()]
        rows = func.unnest(*arrays).table_valued(*(sql_column(name, one.type) for name, one in of.items()), name="each")
        self._all = build(rows.render_derived().c)

    def run(self, connection: Connection, rows: Sequence[Mapping[str, Any]], same: Mapping[str, Any]) -> None:
        """Update these; ``same`` has the values that are the same for all. IllegalMove: as ``write`` raises it."""
        if connection.dialect.name == POSTGRESQL:
            arrays = {name: [row[name] for row in rows] for name in self._names}
            write(connection, self._all, {**same, **arrays}, rows=len(rows))
        else:
            write(connection, self._each, [{**same, **row} for row in rows], rows=len(rows))


def write(connection: Connection, statement: Executable, values: Any, *, rows: int | None = None) -> None:
    """Execute what nobody wants an answer of, save that it hits so many rows (None: any), else IllegalMove is raised.

    By PostgreSQL it is heard with the next answer that is waited for (``pipeline``).
    """
    if connection.dialect.name == POSTGRESQL:
        connection.execute(statement, values, execution_options={WITHOUT_ANSWER: rows})
    else:
        expect_hit(connection.execute(statement, values).rowcount, rows)


def expect_hit(hit: int, rows: int | None) -> None:
    """Raise IllegalMove where a statement has hit other than so many rows; None: any."""
    if rows not in (None, hit):
        raise IllegalMove("a row was moved by somebody else within our own transaction")


class LookUpEach:
    """A SELECT of those of its rows of which a column has one of many values, bound as ``name``.

    In PostgreSQL each value is looked up by itself: of what was nearly empty when it was analyzed it reads all, and
    with it all that was there since the oldest snapshot.
    """

    def __init__(self, rows: Select[Any], column: Column[Any], name: str) -> None:
        array = _Array(bindparam(name, type_=_Each(column.type)))
        each = func.unnest(array).table_valued(sql_column("value", column.type), name="each").render_derived()
        # OFFSET keeps it a statement of its own.
        found = rows.where(column == each.c.value).offset(0).lateral("found")
        self._among = rows.where(among(column, name))
        self._each = select(found).select_from(each.join(found, true()))

    def run(self, connection: Connection, values: Mapping[str, Any]) -> Iterable[Any]:
        """Give the rows."""
        return connection.execute(self._each if connection.dialect.name == POSTGRESQL else self._among, values)


class _Array(FunctionElement[Any]):
    inherit_cache = True


@compiles(_Array)
def _array(element: _Array, compiler: SQLCompiler, **options: Any) -> str:
    (each,) = element.clauses
    assert isinstance(each.type, _Each)
    return f"CAST({compiler.process(each, **options)} AS {kept_as(each.type.of)}[])"


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], conflict: str = "") -> None:
    """Insert rows that have the same columns, many in one statement: each statement costs a step of its own.

    ``conflict``: what becomes of those whose key is there (``put_over``, ``add_to``, ``leave``).
    """
    columns = tuple(rows[0])
    keeps = [(name, table.c[name].type.bind_processor(connection.dialect)) for name in columns]
    if connection.dialect.name == POSTGRESQL:
        arrays = tuple([_kept([row[name] for row in rows], keep) for name, keep in keeps])
        said = _insertion_of_arrays(table, columns) + conflict
        connection.exec_driver_sql(said, arrays, execution_options={WITHOUT_ANSWER: None})
        return
    for start in range(0, len(rows), _ROWS_A_STATEMENT):
        piece = rows[start : start + _ROWS_A_STATEMENT]
        values: list[Any] = []
        for row in piece:
            for name, keep in keeps:
                value = row[name]
                values.append(value if keep is None or value is None else keep(value))
        connection.exec_driver_sql(_insertion(table.name, columns, len(piece)) + conflict, tuple(values))


def _kept(values: list[Any], keep: Callable[[Any], Any] | None) -> list[Any]:
    return values if keep is None else [None if value is None else keep(value) for value in values]


@lru_cache(maxsize=128)
def _insertion(table: str, columns: tuple[str, ...], rows: int) -> str:
    one = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([one] * rows)}"  # noqa: S608


@lru_cache(maxsize=128)
def _insertion_of_arrays(table: Table, columns: tuple[str, ...]) -> str:
    arrays = ", ".join(f"%s::{kept_as(table.c[name].type)}[]" for name in columns)
    return f"INSERT INTO {table.name} ({', '.join(columns)}) SELECT * FROM unnest({arrays})"  # noqa: S608


def insert_alike(
    connection: Connection,
    table: Table,
    columns: tuple[str, ...],
    alike: Iterable[tuple[Mapping[str, Any], Sequence[tuple[int | None, ...]]]],
) -> None:
    """Insert, of each of these, a row for each of a list of numbers for ``columns``; what it says is in all of them."""
    single: list[dict[str, Any]] = []
    for same, each in alike:
        if connection.dialect.name == POSTGRESQL or len(each) < _FEW:
            single += [{**dict(zip(columns, one, strict=True)), **same} for one in each]
            continue
        keeps = ((table.c[name].type.bind_processor(connection.dialect), value) for name, value in same.items())
        values = [value if keep is None or value is None else keep(value) for keep, value in keeps]
        connection.exec_driver_sql(_insertion_for_each(table.name, columns, tuple(same)), (*values, json.dumps(each)))
    if single:
        insert_rows(connection, table, single)


@lru_cache(maxsize=16)
def _insertion_for_each(table: str, columns: tuple[str, ...], same: tuple[str, ...]) -> str:
    numbers = [f"json_extract(value, '$[{place}]')" for place in range(len(columns))]
    values = ", ".join([*"?" * len(same), *numbers])
    return f"INSERT INTO {table} ({', '.join((*same, *columns))}) SELECT {values} FROM json_each(?)"  # noqa: S608
