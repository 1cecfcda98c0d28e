"""Small steps that files which are to last are made of; see ``ingestd.fs`` for what is durable when."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_RENAME_NOREPLACE = 1
_RENAMEAT2 = getattr(_LIBC, "renameat2", None)
if _RENAMEAT2 is not None:
    _RENAMEAT2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_SYNC_FILE_RANGE_WRITE = 2
_SYNC_FILE_RANGE = getattr(_LIBC, "sync_file_range", None)
if _SYNC_FILE_RANGE is not None:
    _SYNC_FILE_RANGE.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def new_file(path: str | os.PathLike[str], *, folder: int | None = None) -> int:
    """Make a file where there is none, for nobody else to read, and open it; raises FileExistsError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600, dir_fd=folder)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of it, however many writes that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def start_writing(descriptor: int) -> None:
    """Send a file's pages on their way to the disk without waiting (sync_file_range(2)), where the libc has it.

    An error is of no interest here: the fsync that follows will meet it, too.
    """
    if _SYNC_FILE_RANGE is not None:
        _SYNC_FILE_RANGE(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)


def sync_open_folder(descriptor: int) -> None:
    """Make a folder's entries durable. A filesystem that cannot sync folders (EINVAL) has said all it can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Do so for a folder of our own, or one that an administrator named: it may be a link."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_open_folder(descriptor)
    finally:
        os.close(descriptor)


def write_whole(file: Path, fill: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: for nobody else to read, and durable before it takes the place of another."""
    scratch = file.with_name(f"{file.name}.part")
    scratch.unlink(missing_ok=True)
    descriptor = new_file(scratch)
    try:
        fill(scratch)
        os.fsync(descriptor)
        scratch.replace(file)
    except OSError as error:
        # Of a write that found no room the kernel does not say where.
        error.filename = error.filename or str(file)
        raise
    finally:
        os.close(descriptor)
        scratch.unlink(missing_ok=True)
    sync_folder(file.parent)


def write_once(file: Path, content: bytes) -> None:
    """Make a file whole and durable, unless another process has just made it: then that one stands."""
    scratch = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = new_file(scratch)
    try:
        try:
            write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(scratch, file)
    finally:
        scratch.unlink()
    sync_folder(file.parent)


def put_back(name: str, folder: int, wanted: str, wanted_folder: int) -> str:
    """Give a file its name back without replacing what may bear it now; return the name it got.

    Raises OSError when neither the old name nor a fresh one can be had; the file is then where it was.
    """
    for attempt in range(3):
        new = wanted if attempt == 0 else f"{wanted[:48]}-{secrets.token_hex(8)}"
        try:
            if not _renamed_at_once(name, folder, new, wanted_folder):
                _linked(name, folder, new, wanted_folder)
        except FileExistsError:
            continue
        return new
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _renamed_at_once(name: str, folder: int, new: str, new_folder: int) -> bool:
    """Rename a file where nothing bears the new name (renameat2(2)); False where libc, kernel or filesystem cannot."""
    if _RENAMEAT2 is None:
        return False
    if not _RENAMEAT2(folder, os.fsencode(name), new_folder, os.fsencode(new), _RENAME_NOREPLACE):
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM}:
        return False
    raise OSError(code, os.strerror(code))


def _linked(name: str, folder: int, new: str, new_folder: int) -> None:
    """Give a file its new name, then take the old one away: never both for longer than that takes."""
    try:
        os.link(name, new, src_dir_fd=folder, dst_dir_fd=new_folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}:
            raise
        # No hard links here: the moment between the look and the rename is all we can do without.
        with contextlib.suppress(FileNotFoundError):
            os.stat(new, dir_fd=new_folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=new_folder)
        return
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        os.unlink(new, dir_fd=new_folder)
        raise
