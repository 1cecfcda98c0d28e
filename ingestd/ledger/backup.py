"""A copy of the ledger and its key that can be put back: taken while others write, and never a damaged one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from ingestd.fs.durable import write_whole

from . import trouble
from .values import LedgerError


def copy_ledger(ledger: sqlite3.Connection, file: Path, place: Path) -> None:
    """Copy the ledger to this place, in place of a former copy, as soon as the new one is whole and durable.

    Whoever writes the ledger waits as long as the copying takes. Raises LedgerError where the copy would be damaged.
    """

    def fill(scratch: Path) -> None:
        with closing(sqlite3.connect(scratch, isolation_level=None)) as target:
            try:
                ledger.backup(target)
                (found,) = target.execute("PRAGMA quick_check(1)").fetchone()
            except sqlite3.DatabaseError as error:
                full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
                raise trouble.failure(error, place if full else file) from None
        if found != "ok":
            raise LedgerError(f"the ledger {file} is damaged ({found}); what lay at {place} was left as it was")

    write_whole(place, fill)
