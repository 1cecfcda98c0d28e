"""How a source on another filesystem is removed after its copy is in the spool and its row committed.

Renamed aside first, looked at once more, then unlinked: whoever writes a new file under the old name meanwhile writes
to a name of its own, and whoever wrote to the file itself is seen by the last look. What lies aside after a crash
either is what a row remembers (removed) or is not (given back to the inbox as new).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Collection
from pathlib import Path

from ingestd.lifecycle import SourceStat
from ingestd.places import FILE, FOLDER, open_folder

from .durable import look, put_back, sync
from .glance import has_writer
from .scan import REMOVING
from .types import Removal


def remove(root: Path, relative_path: str, source: SourceStat) -> Removal:
    """Remove a source if it still is what was copied; see ``Spool.remove_source``."""
    parent, _, name = relative_path.rpartition("/")
    try:
        folder = open_folder(str(root), parent)
    except (FileNotFoundError, NotADirectoryError):
        # A folder that is missing may be a share that is not mounted; only a root that is there can say "gone".
        return Removal.GONE if root.is_dir() else Removal.WAITS
    except OSError:
        return Removal.WAITS
    try:
        return _remove_from(str(root), folder, name, source)
    except OSError:
        return Removal.WAITS
    finally:
        os.close(folder)


def _remove_from(root: str, folder: int, name: str, source: SourceStat) -> Removal:
    try:
        if not _is(look(name, folder), source):
            return Removal.CHANGED
    except FileNotFoundError:
        return Removal.GONE
    aside = _open_aside(root, make=True)
    try:
        own = secrets.token_hex(16)
        try:
            os.rename(name, own, src_dir_fd=folder, dst_dir_fd=aside)
        except FileNotFoundError:
            return Removal.GONE
        is_same = _is(look(own, aside), source)
        if is_same and not _is_being_written(own, aside):
            os.unlink(own, dir_fd=aside)
            sync(folder)
            sync(aside)
            return Removal.REMOVED
        put_back(own, aside, name, folder)
        return Removal.WAITS if is_same else Removal.CHANGED
    finally:
        os.close(aside)


def recover(root: Path, unremoved: Collection[SourceStat]) -> int:
    """Finish what a crash cut short; see ``Spool.recover_removals``."""
    try:
        aside = _open_aside(str(root), make=False)
    except OSError:
        return 0
    # Devices are numbered anew when a share is mounted again.
    ours = {(source.inode, source.size_bytes, source.mtime_ns) for source in unremoved}
    count = 0
    try:
        top = open_folder(str(root), "")
        try:
            for name in os.listdir(aside):  # noqa: PTH208 - a descriptor
                with contextlib.suppress(OSError):
                    found = look(name, aside)
                    if stat.S_ISDIR(found.st_mode):
                        continue
                    if (found.st_ino, found.st_size, found.st_mtime_ns) in ours:
                        os.unlink(name, dir_fd=aside)
                    else:
                        put_back(name, aside, f"recovered-{name}", top)
                    count += 1
            sync(aside)
            sync(top)
        finally:
            os.close(top)
    finally:
        os.close(aside)
    return count


def _open_aside(root: str, *, make: bool) -> int:
    top = open_folder(root, "")
    try:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(REMOVING, 0o700, dir_fd=top)
        return os.open(REMOVING, FOLDER, dir_fd=top)
    finally:
        os.close(top)


def _is(found: os.stat_result, source: SourceStat) -> bool:
    # The device may have another number since the row was written; everything else tells.
    now = SourceStat.of(found)
    return stat.S_ISREG(found.st_mode) and (now.inode, now.size_bytes, now.mtime_ns) == (
        source.inode,
        source.size_bytes,
        source.mtime_ns,
    )


def _is_being_written(name: str, folder: int) -> bool:
    try:
        descriptor = os.open(name, FILE, dir_fd=folder)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            return False
        raise
    try:
        return has_writer(descriptor)
    finally:
        os.close(descriptor)
