"""What the kernel tells of an open file: whether somebody has it open for writing, and where it has holes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Iterator


def has_writer(descriptor: int) -> bool:
    """Ask the kernel whether anybody has the file open for writing (fcntl(2), "Leases"); "no" may mean that it cannot.

    It cannot tell of another owner's file without CAP_LEASE, and on a filesystem without leases.
    """
    if hold_off_writers(descriptor):
        return True
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def hold_off_writers(descriptor: int) -> bool:
    """Say as ``has_writer`` does; where nobody has it open, nobody can begin to until the descriptor is closed."""
    try:
        # Somebody who opens the file for writing while we hold the lease makes the kernel signal us; by default with
        # SIGIO, which would kill the process. SIGURG is ignored unless somebody asks for it.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False


def extents(descriptor: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """Cut a file into data and holes, as far as its filesystem tells: start, end, and whether it is data.

    By SEEK_HOLE, since blocks tell nothing: a filesystem that compresses has few of them. Moves the descriptor.
    """
    at = 0
    while at < size:
        try:
            data = os.lseek(descriptor, at, os.SEEK_DATA)
            hole = os.lseek(descriptor, data, os.SEEK_HOLE)
        except OSError as error:
            # ENXIO: a hole up to the end. Else it cannot say, and all is data.
            yield at, size, error.errno != errno.ENXIO
            return
        if data > at:
            yield at, min(data, size), False
        if data < size:
            yield data, min(hole, size), True
        at = hole
