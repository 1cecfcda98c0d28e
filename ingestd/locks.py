"""Who runs on a spool, seen from outside: without touching its lock, which somebody may be about to take."""

from __future__ import annotations

import os
from pathlib import Path


def who_runs(spool: Path, *, locks: Path = Path("/proc/locks")) -> int | None:
    """Return the process that holds the spool's lock, without touching the lock: proc_locks(5) tells."""
    try:
        lock = (spool / "lock").stat()
        written = (spool / "lock").read_text(encoding="utf-8", errors="replace").partition("\n")[0]
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
