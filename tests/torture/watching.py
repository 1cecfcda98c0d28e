"""What can be seen of a daemon from outside: its ledger, its spool, its lock, and the server's own request log.

Nothing here may change what is watched. A ledger with a hot journal (its writer was killed in a commit) is therefore
never opened where it lies: SQLite would roll it back, which is the next daemon's own work.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.invariants import ROOMS, Findings, Invariants, Server, World
from tests.recounting import ENTRIES, known_paths, rows_of
from tests.running import Site
from tests.torture.feeding import Written

BETWEEN = ("SENDING", "UNCERTAIN", "STORED", "PENDING")
_AT_REST = """SELECT (SELECT count(*) FROM candidate) = 0
    AND (SELECT count(*) FROM delivery WHERE state IN (?, ?, ?, ?)) = 0"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """How a killed daemon left things."""

    states: dict[str, int]
    candidates: int
    orphans: int  # files in the spool without a row
    sending: frozenset[tuple[str, str]]  # destination and SOP Instance UID of rows in SENDING


class Watch:
    """Looks at one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._uri = f"file:{site.ledger_file}?mode=ro"

    def has_candidates(self) -> bool:
        """Whether a file is being read right now, or was when the daemon was killed."""
        return bool(self._peek("SELECT 1 FROM candidate LIMIT 1"))

    def has_rows_in(self, *states: str) -> bool:
        """Whether some row is in one of these states."""
        marks = ",".join("?" * len(states))
        return bool(self._peek(f"SELECT 1 FROM {ENTRIES} WHERE state IN ({marks}) LIMIT 1", states))

    def is_locked_by(self, pid: int) -> bool:
        """Whether this process holds the spool's lock (proc(5), /proc/locks)."""
        try:
            inode = (self._site.spool / "lock").stat().st_ino
        except FileNotFoundError:
            return False
        lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
        return any(
            fields[1] == "FLOCK" and fields[4] == str(pid) and fields[5].endswith(f":{inode}") for fields in lines
        )

    def is_at_rest(self) -> bool:
        """Whether nothing is under way any more: no file waits, no row is between two states."""
        return all(path.name.startswith(".") for path in self._site.drop.iterdir()) and self.has_nothing_under_way()

    def has_nothing_under_way(self) -> bool:
        """Whether no file is being read, and no row is between two states."""
        # One number: a look that could not be had is None, and no sign of rest.
        return bool(self._peek(_AT_REST, BETWEEN))

    def scene(self) -> Scene:
        """Look closely, at a daemon that does not run."""
        with ledger_copy(self._site) as ledger:
            if ledger is None:
                return Scene(states={}, candidates=0, orphans=len(self.spool_files()), sending=frozenset())
            states = dict(ledger.execute(f"SELECT state, count(*) FROM {ENTRIES} GROUP BY state").fetchall())
            candidates = int(ledger.execute("SELECT count(*) FROM candidate").fetchone()[0])
            sending = {
                (row["destination"], row["sop_uid"]) for row in rows_of(ledger).values() if row["state"] == "SENDING"
            }
            known = known_paths(ledger)
        orphans = sum(path not in known for path in self.spool_files())
        return Scene(states=states, candidates=candidates, orphans=orphans, sending=frozenset(sending))

    def spool_files(self) -> set[str]:
        """Every file in the daemon's care, relative to the spool."""
        folders = [self._site.spool / name for name in ROOMS]
        return {
            str(path.relative_to(self._site.spool))
            for folder in folders
            for path in folder.rglob("*")
            if path.is_file()
        }

    def _peek(self, sql: str, parameters: tuple[str, ...] = ()) -> Any:
        """The first column of the first row; None for none, and where the ledger cannot be read at this moment."""
        try:
            ledger = sqlite3.connect(self._uri, uri=True, timeout=0, isolation_level=None)
        except sqlite3.OperationalError:
            return None
        try:
            row = ledger.execute(sql, parameters).fetchone()
        except sqlite3.OperationalError:
            return None
        finally:
            ledger.close()
        return row[0] if row else None


def invariants_of(
    site: Site, server: Server, written: Sequence[Written], findings: Findings | None = None
) -> Invariants:
    """What must be true of a site that has delivered these files to this server, and removed none yet."""
    return Invariants(World(spool=site.spool, drop=site.drop, servers={"default": server}, written=written), findings)


@contextmanager
def ledger_copy(site: Site) -> Iterator[sqlite3.Connection | None]:
    """A copy of a ledger that nobody writes, rolled back as the next opening would find it; None if there is none."""
    if not site.ledger_file.exists():
        yield None
        return
    copy = site.folder / "copy" / site.ledger_file.name
    copy.parent.mkdir(exist_ok=True)
    for suffix in ("", "-journal", "-wal"):
        copy.with_name(copy.name + suffix).unlink(missing_ok=True)
        original = site.ledger_file.with_name(site.ledger_file.name + suffix)
        if original.exists():
            shutil.copyfile(original, copy.with_name(copy.name + suffix))
    ledger = sqlite3.connect(copy, isolation_level=None)
    try:
        has_tables = ledger.execute("SELECT count(*) FROM sqlite_master WHERE name = 'history'").fetchone()[0]
        yield ledger if has_tables else None
    finally:
        ledger.close()


class RequestTail:
    """Reads a destination's request log as it grows."""

    def __init__(self, destination: str, path: Path) -> None:
        self._destination = destination
        self._path = path
        self._at = 0
        self._rest = b""
        self.stored: set[tuple[str, str]] = set()  # it, and the SOP Instance UIDs that it has stored so far

    def new_lines(self) -> list[dict[str, Any]]:
        """What was written since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                more = file.read()
        except FileNotFoundError:
            return []
        self._at += len(more)
        *whole, self._rest = (self._rest + more).split(b"\n")
        lines = [json.loads(line) for line in whole]
        self.stored |= {
            (self._destination, line["sop"])
            for line in lines
            if line["kind"] == "instance" and line["result"] == "stored"
        }
        return lines
