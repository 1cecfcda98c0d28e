"""What went wrong with the ledger's file, in words that send a person the right way.

A disk that fails for a moment is no damage: whoever is told "damaged" may throw a good ledger away, and whoever is told
"run as root" leaves files behind that the daemon cannot use. So damage and a lack of permission are named only where
they were seen.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ingestd.fs.mounts import is_read_only
from ingestd.fs.places import may_open

if TYPE_CHECKING:
    from .workers import Beat


class LedgerError(Exception):
    """The ledger cannot be used as it is; the message says why and what to do."""


class LedgerMissing(LedgerError):
    """There is no ledger at that place yet, and none was to be made."""


class LedgerOlder(LedgerError):
    """The ledger is of an older version, which only a writer brings up to date."""


class OtherDestination(LedgerError):
    """The ledger belongs to another destination URL."""


class LedgerPermission(LedgerError):
    """This user may not use the ledger, which is at ``file``."""

    def __init__(self, message: str, *, file: Path) -> None:
        super().__init__(message)
        self.file = file


class LedgerBusy(LedgerError):
    """Another process held the ledger for too long; nothing was changed, try again."""


class LedgerHeld(LedgerBusy):
    """Another worker holds the spool, on this machine or another."""

    def __init__(self, machine: str, process: int, *, silent: Sequence[Beat] = ()) -> None:
        """``silent`` are all who are in the way, where none of them seems to live."""
        super().__init__(f"another ingestd works on this spool: process {process} on {machine}")
        self.machine = machine
        self.process = process
        self.silent = tuple(silent)


class LedgerAway(LedgerBusy):
    """The server of the ledger cannot be reached, or does not answer; what was not committed was not changed."""


class LedgerFull(LedgerError):
    """The disk under the ledger is full; nothing was changed, try again when there is room."""


class LedgerDiffers(LedgerError):
    """What this configuration says in ``sections`` is not what the ledger was last told, for all that share it."""

    def __init__(self, message: str, keys: Sequence[str]) -> None:
        super().__init__(message)
        self.sections = tuple(dict.fromkeys(key.partition(".")[0] for key in keys))


class LedgerFenced(LedgerError):
    """Whoever wrote was ended by another start, or is too old by now: nothing was changed, and it writes no more."""


class LedgerUnread(LedgerError):
    """The disk under the ledger failed just now; that is no damage, and may pass."""


class RefusedMove(Exception):
    """A person asked for a move that is not to be had; the message says why, naming the row in the way."""

    def __init__(self, number: int, sentence: str, *, other_id: int | None = None) -> None:
        super().__init__(sentence)
        self.number = number
        self.other_id = other_id


BUSY_MS = 10_000
# What a read-only connection gets that meets the journal of a writer that died.
_CRASHED = frozenset({"SQLITE_READONLY_ROLLBACK", "SQLITE_READONLY_RECOVERY"})
# What does not pass by itself: a path that leads nowhere, or to something else.
_LASTING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST})
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
# quick_check reports a page that could not be read like one that is wrong; only the code in its text tells.
_CODE = re.compile(r"error code[ =:]*(\d+)")
_OF_THE_SYSTEM = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN}


def permission(file: Path, what: str) -> LedgerError:
    """Say that this user may not; a disk that nobody may write is another thing."""
    is_barred = False
    with suppress(OSError):
        is_barred = is_read_only(file if os.path.lexists(file) else file.parent)
    if is_barred:
        return LedgerError(
            f"the ledger {file} lies on a filesystem that is mounted read-only; a disk that failed is mounted so by the"
            " kernel (dmesg)"
        )
    return LedgerPermission(f"no permission to {what} the ledger {file}", file=file)


def disk_failed(file: Path, what: str, error: OSError) -> LedgerError:
    """Say what the system answered when the file was to be opened, looked at or read."""
    why = (error.strerror or type(error).__name__).lower()
    if error.errno in _LASTING:
        return LedgerError(f"the ledger {file} cannot be {what}: {why}; nothing was changed, try again")
    return LedgerUnread(
        f"the ledger {file} cannot be {what}: {why}; that is no damage of the ledger: leave it where it is, look at the"
        " disk (dmesg), and try again"
    )


def damaged(file: Path, what: str) -> LedgerError:
    """Say that this ledger is damaged, and the way out."""
    return LedgerError(
        f"the ledger {file} is damaged ({what}); keep a copy of it, then either restore a backup, or try"
        " `sqlite3 ledger.db .recover`, or move it aside: with a new ledger the files in the spool are taken in again,"
        " and what the server already has is compared with it and not stored twice"
    )


def not_whole(file: Path, found: Sequence[str]) -> LedgerError:
    """Say what a check of the file came to: damage, or a disk that could not be read."""
    for line in found:
        code = _CODE.search(line)
        if code is not None and int(code[1]) & 0xFF in _OF_THE_SYSTEM:
            return _unread(file, f"error code {code[1]}")
    return damaged(file, found[0])


def failure(error: BaseException | None, file: Path) -> LedgerError:
    """Tell a person what SQLite's error means for the ledger."""
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return LedgerBusy(
            f"the ledger {file} is in use by another process for longer than {BUSY_MS // 1000} s; try again"
        )
    if name in _CRASHED:
        return LedgerBusy(f"the last writer of the ledger {file} died in the middle of a transaction; try again")
    if name == "SQLITE_FULL":
        return LedgerFull(f"no room is left on the disk of the ledger {file}; nothing was changed")
    if name.startswith(_DAMAGE):
        return _looked_at_again(file, name)
    if name.startswith("SQLITE_IOERR"):
        return _unread(file, name)
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")) and not os.path.lexists(file):
        return LedgerError(f"the ledger {file} is gone: somebody removed or moved it; stop ingestd, then put it back")
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN", "SQLITE_AUTH")):
        return _not_opened(file, name)
    return LedgerError(f"the ledger {file} cannot be used: {name}")


def is_crashed(error: sqlite3.Error) -> bool:
    """Whether a writer died in the middle of a transaction, which somebody who may write has to undo."""
    return getattr(error, "sqlite_errorname", "") in _CRASHED


def _looked_at_again(file: Path, name: str) -> LedgerError:
    """Tell damage from a page that could not be read at that moment, which SQLite calls damage, too.

    SQLite reads it: a descriptor of ours would, when it is closed, take the locks of this process along (fcntl(2)).
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(os.fsencode(file))}?mode=ro", uri=True)) as again:
            found = [str(row[0]) for row in again.execute("PRAGMA quick_check(20)")]
    except sqlite3.DatabaseError as error:
        second = getattr(error, "sqlite_errorname", name)
        return damaged(file, name) if second.startswith(_DAMAGE) else failure(error, file)
    return _unread(file, name) if found == ["ok"] else not_whole(file, found)


def _unread(file: Path, what: str) -> LedgerError:
    return LedgerUnread(
        f"the disk of the ledger {file} failed ({what}); that is no damage of the ledger: leave it where it is,"
        " look at the disk (dmesg), and try again"
    )


def may_write(file: Path) -> bool:
    """Whether this user may write the ledger and make files beside it; raises LedgerUnread where its disk fails."""
    try:
        if may_open(file, os.R_OK | os.W_OK) and os.access(file.parent, os.W_OK):
            return True
        file.parent.stat()
    except OSError as error:
        raise disk_failed(file, "opened", error) from None
    return False


def _not_opened(file: Path, name: str) -> LedgerError:
    """Find out why: SQLite calls a missing file, a lack of rights and a lack of descriptors the same."""
    try:
        file.stat()
        # Whether a descriptor can be had says the folder: to close one of the file would take its locks along.
        os.close(os.open(file.parent, os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        return permission(file, "use")
    except FileNotFoundError:
        return LedgerError(f"the ledger {file} is no longer there ({name}); put it back, or restore a backup")
    except OSError as error:
        return disk_failed(file, "opened", error)
    if may_write(file):
        return LedgerUnread(f"the ledger {file} could not be opened just now ({name}); nothing was changed, try again")
    return permission(file, "use")
