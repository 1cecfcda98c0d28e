"""Ledgers as 0.1 left them: its tables, and rows that its own code wrote."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from ingestd.ledger.migrations import MIGRATIONS
from ingestd.ledger.upgrade import WORDS

SCHEMA = 9
# The SQL text of a ledger with every state, two hosts (the second one an interrupted `send`), copies made and removed,
# files in place, rejected ones (discarded, admitted anew, once delivered), held ones and an attempt under way.
_ROWS = Path(__file__).parent / "ledger" / "ledger_of_0_1.sql"


def make_former_ledger(file: Path, *, rows: str | None = None, without: tuple[str, ...] = ()) -> Path:
    """Make a ledger of schema 9, with these rows (SQL), or all kinds of them but for those of some tables."""
    with closing(sqlite3.connect(file, isolation_level=None)) as ledger:
        strict = WORDS["strict"]
        ledger.execute("PRAGMA application_id=0x494E4744")
        ledger.execute("BEGIN")
        ledger.execute(f"CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT) {strict}")
        for statement in (statement for migration in MIGRATIONS[:SCHEMA] for statement in migration):
            ledger.execute(statement.format(**WORDS))
        ledger.execute("DELETE FROM verification")
        for line in (_ROWS.read_text() if rows is None else rows).splitlines():
            ledger.execute(line)
        ledger.execute("INSERT OR REPLACE INTO meta VALUES ('schema', ?)", (str(SCHEMA),))
        for table in without:
            ledger.execute(f"DELETE FROM {table}")
        ledger.execute("COMMIT")
    return file


def many_rows(file: Path, times: int) -> None:
    """Add so many confirmed files of a study each to a ledger of schema 9."""
    with closing(sqlite3.connect(file)) as ledger, ledger:
        columns = [row[1] for row in ledger.execute("PRAGMA table_info(instance)")]
        (model,) = ledger.execute("SELECT min(id) FROM instance WHERE state = 'CONFIRMED' AND in_place = 0").fetchone()
        (last,) = ledger.execute("SELECT max(id) FROM instance").fetchone()
        each = {"id": "n", "path": "'files/in/many' || n", "sop_uid": "'1.2.99.' || n"}
        chosen = ", ".join(each.get(name, name) for name in columns)
        ledger.execute(
            f"WITH RECURSIVE number (n) AS (SELECT {last + 1} UNION ALL SELECT n + 1 FROM number LIMIT {times})"
            f" INSERT INTO instance SELECT {chosen} FROM number JOIN instance ON instance.id = {model}"
        )
