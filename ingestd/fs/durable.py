"""Small steps that files which are to last are made of; see ``ingestd.fs`` for what is durable when."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from .places import look_anew, look_in, look_in_anew

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


def new_file_of_ours(name: str, folder: int) -> int:
    """Do so under a name that was given out once: a file that bears it is this one, whatever the answer was."""
    try:
        return new_file(name, folder=folder)
    except OSError:
        if was_done(name, folder) is None:
            raise
        return os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)


def rename_to_ours(name: str, folder: int | None, new: str, new_folder: int | None) -> os.stat_result | None:
    """Rename a file to a name that was given out once; raises OSError unless that was done, whatever the answer was.

    Where the answer was lost, what bears the new name is returned, and was looked at.
    """
    try:
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=new_folder)
    except OSError as error:
        if error.errno == errno.EXDEV or (found := was_done(new, new_folder)) is None:
            raise
        return found
    return None


def unlink_ours(name: str, folder: int | None = None) -> None:
    """Unlink a file, if it is there; raises OSError where it is there still, or nobody can say."""
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        if (look_anew(name) if folder is None else look_in_anew(name, folder)) is not None:
            raise


def was_done(name: str, folder: int | None = None) -> os.stat_result | None:
    """Look for what a call has made, or named, that says it failed; None where it is not there, or nobody can say.

    A share says so (ENOENT, EEXIST, EIO) of what it has done, where the answer was lost and the question asked again.
    """
    with contextlib.suppress(OSError):
        return look_anew(name) if folder is None else look_in_anew(name, folder)
    return None


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
        try:
            os.link(scratch, file)
        except OSError:
            if was_done(str(file)) is None:
                raise
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
    sync_folder(file.parent)


def put_back(name: str, folder: int, wanted: str, wanted_folder: int) -> str:
    """Give a file its name back without replacing what may bear it now; return the name it got.

    Raises OSError when neither the old name nor a fresh one can be had; the file is then where it was.
    """
    inode = look_in(name, folder).st_ino
    for attempt in range(3):
        new = wanted if attempt == 0 else f"{wanted[:48]}-{secrets.token_hex(8)}"
        try:
            if not _renamed_at_once(name, folder, new, wanted_folder, inode):
                _linked(name, folder, new, wanted_folder, inode, is_fresh=attempt > 0)
        except FileExistsError:
            continue
        return new
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _renamed_at_once(name: str, folder: int, new: str, new_folder: int, inode: int) -> bool:
    """Rename a file where nothing bears the new name (renameat2(2)); False where libc, kernel or filesystem cannot."""
    if _RENAMEAT2 is None:
        return False
    if not _RENAMEAT2(folder, os.fsencode(name), new_folder, os.fsencode(new), _RENAME_NOREPLACE):
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM}:
        return False
    if _bears(new, new_folder, inode):
        return True
    raise OSError(code, os.strerror(code))


def _linked(name: str, folder: int, new: str, new_folder: int, inode: int, *, is_fresh: bool) -> None:
    """Give a file its new name, then take the old one away: never both for longer than that takes."""
    try:
        os.link(name, new, src_dir_fd=folder, dst_dir_fd=new_folder, follow_symlinks=False)
    except OSError as error:
        if not _bears(new, new_folder, inode):
            if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}:
                raise
            # No hard links here either: the name has to be one that nobody else gives a file.
            if not is_fresh:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            rename_to_ours(name, folder, new, new_folder)
            return
    try:
        unlink_ours(name, folder)
    except OSError:
        # Where nobody can say, both names stay: the other may be the last one.
        if look_in_anew(name, folder) is not None:
            os.unlink(new, dir_fd=new_folder)
        raise


def _bears(name: str, folder: int, inode: int) -> bool:
    found = was_done(name, folder)
    return found is not None and found.st_ino == inode
