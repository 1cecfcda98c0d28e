"""One look at a file as it is now: what it is, and whether somebody writes to it. Nothing is changed or followed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from enum import IntEnum

from ingestd.fs import places
from ingestd.fs.open_files import has_writer

from .scan import FileStat, file_stat


class FileCheck(IntEnum):
    """What one look at a file came to."""

    FILE = 0
    BEING_WRITTEN = 1  # a file, and the kernel says that a writer has it open
    GONE = 2
    NOT_REGULAR = 3
    NO_ACCESS = 4


class FileChecks:
    """Looks at many files of one inbox in a row; each folder is reached once, through no link (see ``places``).

    ``ask_kernel`` also opens each file and asks whether a writer has it open: only on local disks, where opening a
    file disturbs nobody. ``device``: a folder that lies on another one than the inbox has nothing of ours (a file's own
    device does not tell: overlayfs gives files of a lower layer that layer's).
    """

    def __init__(self, root: str, *, ask_kernel: bool = False, device: int | None = None) -> None:
        self._root = root
        self._ask_kernel = ask_kernel
        self._device = device

    def inside(self, paths: Iterable[str]) -> list[tuple[FileCheck, FileStat | None]]:
        """Look at files by their paths relative to the inbox."""
        return list(self._inside(paths))

    def in_spool(self, path: str) -> tuple[FileCheck, FileStat | None]:
        """Look at a file that lies in the spool, which is ours alone."""
        folder, _, name = path.rpartition("/")
        try:
            descriptor = places.open_folder(folder)
        except OSError as error:
            return _verdict(error), None
        try:
            return self._check(name, descriptor)
        finally:
            os.close(descriptor)

    def _inside(self, paths: Iterable[str]) -> Iterator[tuple[FileCheck, FileStat | None]]:
        opened: str | None = None
        descriptor, refused = -1, FileCheck.GONE
        try:
            for path in paths:
                folder, _, name = path.rpartition("/")
                if folder != opened:
                    if descriptor >= 0:
                        os.close(descriptor)
                    opened = folder
                    descriptor, refused = self._enter(folder)
                yield self._check(name, descriptor) if descriptor >= 0 else (refused, None)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _enter(self, folder: str) -> tuple[int, FileCheck]:
        try:
            descriptor = places.open_folder(self._root, folder, places.PASS)
        except OSError as error:
            return -1, _verdict(error)
        try:
            is_apart = self._device is not None and os.fstat(descriptor).st_dev != self._device
        except OSError as error:
            os.close(descriptor)
            return -1, _verdict(error)
        if is_apart:
            os.close(descriptor)
            return -1, FileCheck.NOT_REGULAR
        return descriptor, FileCheck.FILE

    def _check(self, name: str, folder: int) -> tuple[FileCheck, FileStat | None]:
        try:
            if not self._ask_kernel:
                seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
                return (
                    (FileCheck.FILE, file_stat(seen)) if stat.S_ISREG(seen.st_mode) else (FileCheck.NOT_REGULAR, None)
                )
            descriptor = os.open(name, places.FILE, dir_fd=folder)
        except OSError as error:
            return _verdict(error), None
        try:
            seen = os.fstat(descriptor)
            if not stat.S_ISREG(seen.st_mode):
                return FileCheck.NOT_REGULAR, None
            return (FileCheck.BEING_WRITTEN if has_writer(descriptor) else FileCheck.FILE), file_stat(seen)
        except OSError:
            return FileCheck.NO_ACCESS, None
        finally:
            os.close(descriptor)


def _verdict(error: OSError) -> FileCheck:
    if isinstance(error, places.MISSING):
        return FileCheck.GONE
    # A link (ELOOP, by O_NOFOLLOW) or a socket (ENXIO); ENODEV is a device without a driver.
    if error.errno in {errno.ELOOP, errno.ENXIO, errno.ENODEV}:
        return FileCheck.NOT_REGULAR
    return FileCheck.NO_ACCESS
