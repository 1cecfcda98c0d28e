"""How a source on another filesystem is removed after its copy is in the spool and its row committed.

Renamed aside first, looked at once more, then unlinked: whoever writes a new file under the old name meanwhile writes
to a name of its own, and whoever wrote to the file itself is seen by the last look. What lies aside after a crash
either holds what a row remembers (removed) or does not (given back to the inbox as new): its content decides, since our
own rename gave it another ctime.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from ingestd.fs.durable import put_back, sync_open_folder
from ingestd.fs.open_files import has_writer
from ingestd.fs.places import FILE, MISSING, look_in, open_folder
from ingestd.lifecycle import SourceStat

from .aside import Aside
from .copying import holds_what_was_read
from .types import Expect, Removal


def remove(
    root: Path,
    relative_path: str,
    source: SourceStat,
    aside: Aside,
    *,
    read: Expect | None,
    copy: Path | None,
    is_last: bool,
) -> Removal:
    """Remove a source if it still is what was copied, and not the last there is; see ``Spool.remove_source``."""
    parent, _, name = relative_path.rpartition("/")
    _give_back(root, aside)
    try:
        folder = open_folder(str(root), parent)
    except MISSING:
        # A folder that is missing may be a share that is not mounted; only a root that is there can say "gone".
        with contextlib.suppress(OSError):
            return Removal.GONE if root.is_dir() else Removal.WAITS
        return Removal.WAITS
    except OSError:
        return Removal.WAITS
    try:
        found = _found(name, folder)
        if found is None:
            return _remove_left(root, source, aside, read, copy, give_back=(name, folder), is_last=is_last)
        if not _is(found, source) or (read is not None and not _is_untouched(found, name, folder, read, copy)):
            return Removal.CHANGED
        if is_last:
            return Removal.WAITS
        with aside.opened(str(root)) as own_folder:
            own = secrets.token_hex(16)
            try:
                return _remove_from(folder, name, own, own_folder, source)
            except OSError:
                aside.owed.setdefault(str(root), {})[own] = relative_path
                raise
    except OSError:
        return Removal.WAITS
    finally:
        os.close(folder)


def _is_untouched(found: os.stat_result, name: str, folder: int, read: Expect, copy: Path | None) -> bool:
    """Whether it holds what was read: its writer can set the mtime back, but not the ctime; else its content decides.

    Raises OSError while it is being written.
    """
    return 0 < read.ctime_ns == found.st_ctime_ns or _holds(found, name, folder, read, copy)


def _holds(found: os.stat_result, name: str, folder: int, read: Expect, copy: Path | None) -> bool:
    """Whether its content is what was read, by the digests or else by the copy; raises OSError while it is written."""
    with open(name, "rb", opener=lambda path, _: os.open(path, FILE, dir_fd=folder)) as file:
        same = holds_what_was_read(file.fileno(), read) if read.digest else _is_copied(file, copy)
        if os.fstat(file.fileno()).st_ctime_ns != found.st_ctime_ns:
            raise BlockingIOError
    return same


def _is_copied(file: BinaryIO, copy: Path | None) -> bool:
    if copy is None:
        return False
    try:
        with copy.open("rb") as other:
            return all(ours == theirs for ours, theirs in zip_longest(_pieces(file), _pieces(other)))
    except FileNotFoundError:
        return False


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(1 << 20), b"")


def _remove_from(folder: int, name: str, own: str, aside: int, source: SourceStat) -> Removal:
    try:
        os.rename(name, own, src_dir_fd=folder, dst_dir_fd=aside)
    except FileNotFoundError:
        return Removal.GONE
    is_same = _is(look_in(own, aside), source)
    if is_same and not _is_being_written(own, aside):
        os.unlink(own, dir_fd=aside)
        sync_open_folder(folder)
        sync_open_folder(aside)
        return Removal.REMOVED
    put_back(own, aside, name, folder)
    return Removal.WAITS if is_same else Removal.CHANGED


def _give_back(root: Path, aside: Aside) -> None:
    """Give back what the last tries left aside: there it would be in no visible state until the next start."""
    owed = aside.owed.get(str(root), {})
    for own, relative_path in list(owed.items()):
        parent, _, name = relative_path.rpartition("/")
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            own_folder = opened.enter_context(aside.opened(str(root)))
            try:
                folder = open_folder(str(root), parent)
            except FileNotFoundError:
                folder, name = open_folder(str(root)), f"recovered-{own}"
            opened.callback(os.close, folder)
            with contextlib.suppress(FileNotFoundError):  # it was removed after all
                put_back(own, own_folder, name, folder)
            del owed[own]


def _remove_left(
    root: Path,
    source: SourceStat,
    aside: Aside,
    read: Expect | None,
    copy: Path | None,
    *,
    give_back: tuple[str, int],
    is_last: bool,
) -> Removal:
    """Finish a removal that failed when the file lay aside already: else it would come back at the next start."""
    done = Removal.GONE
    for folder in aside.left(str(root)):
        for name in os.listdir(folder):  # noqa: PTH208 - a descriptor
            found = look_in(name, folder)
            if not _is(found, source):
                continue
            if is_last:
                put_back(name, folder, *give_back)
                return Removal.WAITS
            if _is_being_written(name, folder):
                return Removal.WAITS
            if read is not None and not _holds(found, name, folder, read, copy):
                put_back(name, folder, *give_back)
                return Removal.CHANGED
            os.unlink(name, dir_fd=folder)
            sync_open_folder(folder)
            done = Removal.REMOVED
    return done


def remove_folders(root: Path, folders: Sequence[str]) -> int:
    """Remove folders that are empty still; see ``Spool.remove_folders``."""
    removed = 0
    for path in folders:
        above, _, name = path.rpartition("/")
        with contextlib.suppress(OSError):
            parent = open_folder(str(root), above)
            try:
                os.rmdir(name, dir_fd=parent)
            finally:
                os.close(parent)
            removed += 1
    return removed


def recover(root: Path, unremoved: Sequence[tuple[Expect, Path]], aside: Aside) -> int:
    """Finish what a crash cut short; see ``Spool.recover_removals``."""
    # Devices are numbered anew when a share is mounted again.
    ours = {(read.source.inode, read.source.size_bytes, read.source.mtime_ns): (read, copy) for read, copy in unremoved}
    count = 0
    try:
        for folder in aside.left(str(root)):
            count += _recover_from(folder, root, ours)
    except OSError:
        pass  # what is left lies where it lay, until the next start
    return count


def _recover_from(aside: int, root: Path, ours: Mapping[tuple[int, int, int], tuple[Expect, Path]]) -> int:
    count = 0
    top = open_folder(str(root))
    try:
        for name in os.listdir(aside):
            with contextlib.suppress(OSError):
                found = look_in(name, aside)
                if stat.S_ISDIR(found.st_mode):
                    continue
                known = ours.get((found.st_ino, found.st_size, found.st_mtime_ns))
                if known is not None and not _is_being_written(name, aside) and _holds(found, name, aside, *known):
                    os.unlink(name, dir_fd=aside)
                else:
                    put_back(name, aside, f"recovered-{name}", top)
                count += 1
        sync_open_folder(aside)
        sync_open_folder(top)
    finally:
        os.close(top)
    return count


def _found(name: str, folder: int) -> os.stat_result | None:
    try:
        return look_in(name, folder)
    except FileNotFoundError:
        return None


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
