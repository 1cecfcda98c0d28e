"""Small steps on open folders that the spool's moves are made of."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

from ingestd.places import open_folder


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
            os.link(name, new, src_dir_fd=folder, dst_dir_fd=wanted_folder, follow_symlinks=False)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}:
                raise
            # No hard links here: the moment between the look and the rename is all we can do without.
            with contextlib.suppress(FileNotFoundError):
                look(new, wanted_folder)
                continue
            os.rename(name, new, src_dir_fd=folder, dst_dir_fd=wanted_folder)
            return new
        os.unlink(name, dir_fd=folder)
        return new
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
