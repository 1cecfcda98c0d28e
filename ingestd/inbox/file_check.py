"""One look at a file as it is now: what it is, and whether somebody writes to it. Nothing is changed or followed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from enum import IntEnum
from typing import TypeAlias

from ingestd.fs import places
from ingestd.fs.open_files import hold_off_writers

from .walk import FileStat, file_stat


class FileCheck(IntEnum):
    """What one look at a file came to."""

    FILE = 0
    BEING_WRITTEN = 1  # a file, and the kernel says that a writer has it open
    GONE = 2
    NOT_REGULAR = 3
    NO_ACCESS = 4


Checked: TypeAlias = tuple[FileCheck, FileStat | None]


def check_files(
    root: str, paths: Iterable[str], *, ask_kernel: bool = False, device: int | None = None
) -> list[Checked]:
    """Check files of one inbox, by their paths relative to it, and files in the spool, which is ours, by whole paths.

    Each folder is reached through no link (see ``places``), once for neighbours. ``ask_kernel`` also opens each file
    and asks whether a writer has it open: only on local disks, where opening a file disturbs nobody. ``device``: a
    folder that lies on another one than the inbox has nothing of ours (a file's own device does not tell: overlayfs
    gives files of a lower layer that layer's).
    """
    checked: list[Checked] = []
    opened: str | None = None
    descriptor, refused = -1, FileCheck.GONE
    try:
        for path in paths:
            folder, _, name = path.rpartition("/")
            if folder != opened:
                if descriptor >= 0:
                    os.close(descriptor)
                    descriptor = -1
                opened = folder
                descriptor, refused = _enter(root, folder, device)
            checked.append(_check(name, descriptor, ask_kernel=ask_kernel) if descriptor >= 0 else (refused, None))
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return checked


def _enter(root: str, folder: str, device: int | None) -> tuple[int, FileCheck]:
    try:
        descriptor = places.open_folder(folder) if folder[:1] == "/" else places.open_folder(root, folder, places.PASS)
    except OSError as error:
        return -1, _refusal(error)
    try:
        if device is None or os.fstat(descriptor).st_dev == device:
            return descriptor, FileCheck.FILE
        refused = FileCheck.NOT_REGULAR
    except OSError as error:
        refused = _refusal(error)
    os.close(descriptor)
    return -1, refused


def _check(name: str, folder: int, *, ask_kernel: bool) -> Checked:
    try:
        if not ask_kernel:
            seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
            return (FileCheck.FILE, file_stat(seen)) if stat.S_ISREG(seen.st_mode) else (FileCheck.NOT_REGULAR, None)
        descriptor = os.open(name, places.FILE, dir_fd=folder)
    except OSError as error:
        return _refusal(error), None
    try:
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode):
            return FileCheck.NOT_REGULAR, None
        return (FileCheck.BEING_WRITTEN if hold_off_writers(descriptor) else FileCheck.FILE), file_stat(seen)
    except OSError:
        return FileCheck.NO_ACCESS, None
    finally:
        os.close(descriptor)


def _refusal(error: OSError) -> FileCheck:
    if isinstance(error, places.MISSING):
        return FileCheck.GONE
    # A link (ELOOP, by O_NOFOLLOW) or a socket (ENXIO); ENODEV is a device without a driver.
    if error.errno in {errno.ELOOP, errno.ENXIO, errno.ENODEV}:
        return FileCheck.NOT_REGULAR
    return FileCheck.NO_ACCESS
