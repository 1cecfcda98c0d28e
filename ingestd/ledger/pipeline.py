"""A connection to PostgreSQL that sends on what needs no answer, and waits for all of it with the next that does.

Each statement that is waited for takes a round trip, and a transaction of a worker has some forty, of which half say
nothing but how many rows they have hit; that is known before. So these are sent behind one another (PostgreSQL
documentation: libpq, Pipeline Mode), and what came of them is heard with the next answer that is wanted, at the latest
before COMMIT: whoever has hit other rows than was expected is told then, and nothing of it is durable. An error of one
of them is raised there, too; the server does none of those behind it.

``dialect.write`` marks these statements, by SQLAlchemy's execution option ``WITHOUT_ANSWER``: how many rows have to be
hit, or None for any.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any, Self

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Engine

from .dialect import WITHOUT_ANSWER, expect_hit


class _Cursor(psycopg.Cursor[Any]):
    """What is executed by it is answered when that returns."""

    connection: PipelinedConnection  # which gives cursors of this kind

    def execute(self, *said: Any, **how: Any) -> Self:
        super().execute(*said, **how)
        self.connection.hear()
        return self

    def executemany(self, *said: Any, **how: Any) -> None:
        super().executemany(*said, **how)
        self.connection.hear()


class PipelinedConnection(psycopg.Connection[Any]):
    """A connection of psycopg's, within one thread."""

    def __init__(self, *made: Any, **how: Any) -> None:
        super().__init__(*made, **how)
        self.cursor_factory = _Cursor
        self._open = ExitStack()
        self._sent: list[tuple[psycopg.Cursor[Any], int | None]] = []

    def send(self, statement: str, values: Any, rows: int | None) -> None:
        """Have the server execute a statement which is to hit so many rows, or any; nobody waits for it."""
        if not self._sent:
            self._open.enter_context(self.pipeline())
        cursor = psycopg.Cursor(self)
        self._sent.append((cursor, rows))
        cursor.execute(statement, values)

    def hear(self) -> None:
        """Wait for what was sent; raises its errors, and IllegalMove."""
        if self._sent:
            self._open.close()
            sent, self._sent = self._sent, []
            for cursor, rows in sent:
                expect_hit(cursor.rowcount, rows)

    def commit(self) -> None:
        self.hear()
        super().commit()

    def rollback(self) -> None:
        self._sent.clear()
        with suppress(psycopg.Error):  # what it raised was told where it was waited for
            self._open.close()
        super().rollback()


def install(engine: Engine) -> None:
    """Have what is marked sent so by this engine's connections."""

    @event.listens_for(engine, "do_execute")
    def send(_cursor: Any, statement: str, values: Any, context: Any) -> bool:
        if WITHOUT_ANSWER not in context.execution_options:
            return False
        connection = context.root_connection.connection.driver_connection
        connection.send(statement, values, context.execution_options[WITHOUT_ANSWER])
        return True
