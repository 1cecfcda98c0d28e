"""Small steps on open folders that the spool's moves are made of."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
from pathlib import Path

from ingestd.places import open_folder

_RENAME_NOREPLACE = 1
_RENAMEAT2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
if _RENAMEAT2 is not None:
    _RENAMEAT2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def look(name: str, folder: int) -> os.stat_result:
    """Look at a name in an open folder, not at what a link leads to."""
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def sync(descriptor: int) -> None:
    """Make an open file or folder durable. A filesystem that cannot sync folders (EINVAL) has said all it can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = open_folder(str(folder))
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


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
            look(new, new_folder)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=new_folder)
        return
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        os.unlink(new, dir_fd=new_folder)
        raise
