"""Who runs on a spool, and what it tells beside the ledger: seen from outside, without touching the spool's lock.

The lock's first line is the process id of its holder, its second what keeps that from writing the ledger, if anything.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path


def who_runs(spool: Path, *, locks: Path = Path("/proc/locks")) -> int | None:
    """Return the process that holds the spool's lock; proc_locks(5) tells."""
    try:
        lock, written, _ = _read(spool)
        lines = locks.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    device = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}"
    for line in lines:
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK":
            continue
        where, _, inode = fields[5].rpartition(":")
        # Files of other disks have the same numbers; and some filesystems (btrfs, overlays) tell another device here.
        if inode == str(lock.st_ino) and (where == device or fields[4] == written):
            return int(fields[4])
    return None


def ledger_trouble(spool: Path) -> tuple[str, datetime] | None:
    """Return what keeps the daemon that runs on this spool from writing its ledger, and since when."""
    try:
        lock, _, trouble = _read(spool)
    except OSError:
        return None
    return (trouble, datetime.fromtimestamp(lock.st_mtime, UTC)) if trouble else None


def _read(spool: Path) -> tuple[os.stat_result, str, str]:
    with (spool / "lock").open(encoding="utf-8", errors="replace") as lock:
        holder, _, trouble = lock.read(4096).partition("\n")
        return os.fstat(lock.fileno()), holder, trouble.strip()
