"""A copy of the ledger and its key that can be put back: taken while others write, and never a damaged one."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

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

    put(place, fill)


def put(place: Path, fill: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: for nobody else to read, and durable before it takes the place."""
    scratch = place.with_name(f"{place.name}.part")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fill(scratch)
        os.fsync(descriptor)
        scratch.replace(place)
    except OSError as error:
        # Of a write that found no room the kernel does not say where.
        error.filename = error.filename or str(place)
        raise
    finally:
        os.close(descriptor)
        scratch.unlink(missing_ok=True)
    folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
