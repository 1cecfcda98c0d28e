"""Whose the spool's folder is, and who holds it: made where it is missing, known by its id, locked by one process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import uuid
from pathlib import Path

from ingestd.fs.durable import sync_folder, write_once
from ingestd.fs.places import look_anew

from .types import SpoolError, SpoolInUse

LEDGER = "spool.ledger"
ROOMS = ("files", "rejected", "explicit", "scratch")
_LOCK_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


def make_spool(path: Path) -> str:
    """Make what is missing of a spool, and return its id; raises SpoolError, or OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_foreign(path)
    found = path.stat()
    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
    host = read_id(path)
    if host is None:
        write_once(path / "spool.id", f"{uuid.uuid4()}\n".encode())
        sync_folder(path.parent)
        host = read_id(path)  # ours, or that of another process that was faster
        assert host is not None
    for room in ROOMS:
        (path / room).mkdir(mode=0o700, exist_ok=True)
    return host


def rehearse_spool(path: Path) -> str | None:
    """Raise the SpoolError of making or locking the spool at this path, and change nothing; return its id, if any.

    Whether another process has it is not asked: for that the lock would have to be touched.
    """
    path = path.absolute()
    try:
        nearest = next(above for above in (path, *path.parents) if os.path.lexists(above))
        _open_folder(nearest)
        if nearest != path:
            return None
        _refuse_foreign(path)
        host = read_id(path)
        for room in ROOMS:
            if os.path.lexists(path / room):
                _open_folder(path / room)
        if os.path.lexists(path / "lock"):
            os.close(os.open(path / "lock", _LOCK_FLAGS))
    except OSError as error:
        raise unusable(path, error) from error
    return host


def read_id(path: Path) -> str | None:
    """Read the id of a spool, None where there is none; raises SpoolError for what is no id, or OSError."""
    try:
        text = (path / "spool.id").read_text("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise SpoolError(f"{path / 'spool.id'} does not hold a UUID; restore it") from error


def ledger_of(path: Path) -> str:
    """Read to which ledger a spool belongs, and its name; "" where to none that is shared. Raises OSError."""
    try:
        return (path / LEDGER).read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        return ""


def keeps_files(path: Path) -> bool:
    """Whether any file was taken into a spool, and is there still."""
    return any(files for _, _, files in os.walk(path / "files"))


def unusable(spool: Path, error: OSError, file: Path | None = None) -> SpoolError:
    """Say what the system answered, and for which file of the spool; ``file`` where the error itself does not know."""
    why = (error.strerror or type(error).__name__).lower()
    return SpoolError(f"the spool {spool} cannot be used: {why} ({error.filename or file or spool})")


class SpoolLock:
    """The lock of a spool, flocked by the one process that takes and sends; what stands in it is read by ``locks``."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._descriptor: int | None = None

    def take(self) -> None:
        """Become the one; raises SpoolInUse, or SpoolError."""
        file = self._spool / "lock"
        try:
            descriptor = os.open(file, _LOCK_FLAGS | os.O_CREAT, 0o600)
        except OSError as error:
            raise unusable(self._spool, error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.read(descriptor, 32).partition(b"\n")[0]
                raise SpoolInUse(self._spool, int(holder) if holder.isdigit() else None) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise unusable(self._spool, error, file) from error
            raise
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another process have it."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # closing it is what lets go
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def tell(self, trouble: str) -> None:
        """Put down beside our process id what keeps us from our work; it stays within the block that the lock has."""
        if self._descriptor is not None:
            text = f"{os.getpid()}\n{trouble[:2000]}\n" if trouble else f"{os.getpid()}\n"
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, os.pwrite(self._descriptor, text.encode(), 0))


def _refuse_foreign(path: Path) -> None:
    # The rooms first: another process that is just making this spool makes its id before them. Anew, since that may be
    # on another host, and the client of a share remembers what was missing.
    theirs = [room for room in ROOMS if (path / room).exists()]
    if theirs and look_anew(str(path / "spool.id")) is None:
        raise SpoolError(f"{path} has a folder {theirs[0]!r} but no spool.id: not a spool of ours")


def _open_folder(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
