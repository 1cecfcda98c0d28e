"""How a reader opens, watches and syncs files: one open, and from then on the descriptor only."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from pathlib import Path

_SYNC_FILE_RANGE_WRITE = 2
_PIECES_MOST = 4096


class Waits(Exception):
    """Nothing can be said of the file now; the text says why, without its name."""


def refuse_open_for_writing(fd: int) -> None:
    """Raise Waits while any process has the file open for writing, where the kernel tells.

    A read lease is asked for and given back at once. Only for files of our own user or with CAP_LEASE, and on
    filesystems that know leases; elsewhere nothing is said.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        raise Waits("still open for writing") from None
    except OSError:
        return
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def hole_bytes(fd: int, size: int) -> int:
    """Count the bytes that were never written, by SEEK_HOLE; 0 where the filesystem does not tell.

    Blocks tell nothing: a filesystem that compresses has few of them. A file of very many pieces is judged by the
    first of them. Leaves the descriptor at its beginning.
    """
    at = holes = 0
    try:
        for _ in range(_PIECES_MOST):
            if at >= size:
                break
            try:
                begin = min(os.lseek(fd, at, os.SEEK_DATA), size)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    return 0
                begin = size  # nothing but hole from here on
            holes += begin - at
            at = os.lseek(fd, begin, os.SEEK_HOLE) if begin < size else size
        return holes
    finally:
        os.lseek(fd, 0, os.SEEK_SET)


class Writeback:
    """Sends a file's pages on their way to the disk without waiting (sync_file_range(2)), where the libc has it.

    This makes nothing durable; it lets the fsync that follows find little left to do.
    """

    def __init__(self) -> None:
        self._call = getattr(ctypes.CDLL(None), "sync_file_range", None)
        if self._call is not None:
            self._call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def start(self, fd: int) -> None:
        """Begin; an error is of no interest here, as the fsync will meet it too."""
        if self._call is not None:
            self._call(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def sync(fd: int) -> None:
    """Make the file durable, or raise Waits."""
    try:
        os.fsync(fd)
    except OSError as error:
        # The kernel has marked the pages clean: a second fsync would lie. The file has to be read and judged anew.
        raise Waits(f"fsync failed: {errno_text(error)}") from None


def sync_folder(path: Path) -> None:
    """Make a folder's entries durable, or raise Waits."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)


def errno_text(error: OSError) -> str:
    """Say what the kernel said, without the file's name."""
    return os.strerror(error.errno) if error.errno else type(error).__name__
