"""A ledger that is made anew has the tables that one of before comes to, migration by migration."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

from ingestd.ledger import baseline, upgrade
from ingestd.ledger.migrations import MIGRATIONS


def told(driver: sqlite3.Connection) -> dict[str, str]:
    """Tell what was made, however it was laid out."""
    made = driver.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {name: re.sub(r"[\s\"]+", "", sql) for name, sql in made}


def test_baseline_is_what_the_migrations_before_it_come_to():
    with closing(sqlite3.connect(":memory:")) as anew, closing(sqlite3.connect(":memory:")) as migrated:
        for statement in baseline.STATEMENTS:
            anew.execute(statement.format(**upgrade.WORDS))
        upgrade.add_functions(migrated)
        migrated.execute("CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT) STRICT")
        for statement in (each for migration in MIGRATIONS[: baseline.SCHEMA] for each in migration):
            migrated.execute(statement.format(**upgrade.WORDS))
        numbered = {name for (name,) in migrated.execute("SELECT name FROM sequence")}
        migrated.execute("DROP TABLE sequence")

        assert told(anew) == told(migrated)
    assert numbered == set(baseline.NUMBERED)
