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
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from ingestd.fs.durable import put_back, rename_to_ours, sync_open_folder, unlink_ours
from ingestd.fs.open_files import has_writer
from ingestd.fs.places import FILE, FOLDER, MISSING, look_in, open_folder
from ingestd.lifecycle import SourceStat

from .copying import holds_what_was_read
from .types import Expect, Removal

# Hidden, so that every ignore rule leaves it alone.
REMOVING = ".ingestd-removing"


class Aside:
    """The folder of our own inside an inbox, where a source lies between its rename and its removal: found, or made.

    Others may write where it lies, so that its name says nothing: it is ours if it is a folder and has our owner. Where
    somebody else has taken the name another one is used, and a person is told; whoever may drop files stops no removal.
    For one thread, save ``is_squatted``.
    """

    def __init__(self) -> None:
        self._others: dict[str, str] = {}  # by inbox: the name that is used where the first one is somebody else's
        self._squatted: frozenset[str] = frozenset()
        # By inbox: what a failing disk left in that folder, by its name there, and where it lay before.
        self.owed: dict[str, dict[str, str]] = {}

    def is_squatted(self, root: str) -> bool:
        """Whether somebody else had the name when it was last looked at."""
        return root in self._squatted

    def look(self, root: str) -> None:
        """Look once more whether somebody else has the name."""
        with contextlib.suppress(OSError), _closing(open_folder(root)) as top:
            descriptor = self._own(root, top, REMOVING)
            if descriptor is not None:
                os.close(descriptor)

    @contextlib.contextmanager
    def opened(self, root: str) -> Iterator[int]:
        """Open the folder, which is made where it is missing."""
        with _closing(open_folder(root)) as top:
            descriptor = self._made(root, top, REMOVING)
            if descriptor is None and root in self._others:
                descriptor = self._made(root, top, self._others[root])
            if descriptor is None:
                self._others[root] = f"{REMOVING}-{secrets.token_hex(8)}"
                descriptor = self._made(root, top, self._others[root])
        if descriptor is None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        with _closing(descriptor):
            yield descriptor

    def left(self, root: str) -> Iterator[int]:
        """Open each such folder that is there; what is empty then, and bears another name than the first, goes."""
        with _closing(open_folder(root)) as top:
            with os.scandir(top) as entries:
                names = [entry.name for entry in entries if entry.name.startswith(REMOVING)]
            for name in names:
                descriptor = self._own(root, top, name)
                if descriptor is not None:
                    with _closing(descriptor):
                        yield descriptor
                    if name != REMOVING:
                        with contextlib.suppress(OSError):
                            os.rmdir(name, dir_fd=top)

    def _made(self, root: str, top: int, name: str) -> int | None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=top)
        return self._own(root, top, name)

    def _own(self, root: str, top: int, name: str) -> int | None:
        """Open a folder of ours; None where it is not there, or is somebody else's, which is noted.

        Raises OSError where nobody can say whose it is.
        """
        descriptor, is_squatted = None, False
        try:
            descriptor = os.open(name, FOLDER, dir_fd=top)
        except FileNotFoundError:
            pass
        except OSError as error:
            # A file, a link, a socket; or a folder that we may not list, as we may any of our own.
            if error.errno not in {errno.ENOTDIR, errno.ELOOP, errno.EACCES}:
                raise
            is_squatted = True
        if descriptor is not None:
            with contextlib.ExitStack() as unless_ours:
                unless_ours.callback(os.close, descriptor)
                is_squatted = not _is_ours(os.fstat(descriptor).st_uid, top)
                if not is_squatted:
                    unless_ours.pop_all()
            descriptor = None if is_squatted else descriptor
        if name == REMOVING:
            self._squatted = self._squatted | {root} if is_squatted else self._squatted - {root}
        return descriptor


@dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """What is known of a source that was copied: as it was, what was read of it, and where its copy is to lie.

    ``is_last``: the copy is not there, so that nothing may be removed.
    """

    source: SourceStat
    read: Expect | None = None
    copy: Path | None = None
    is_last: bool = False

    def is_at(self, found: os.stat_result) -> bool:
        """Whether this is still the file; its device may have another number since, when a share was mounted again."""
        now, then = SourceStat.of(found), self.source
        return stat.S_ISREG(found.st_mode) and (now.inode, now.size_bytes, now.mtime_ns) == (
            then.inode,
            then.size_bytes,
            then.mtime_ns,
        )

    def is_held_by(self, found: os.stat_result, name: str, folder: int) -> bool:
        """Whether the content of a file is what was read, by the digests or else by the copy; True where nobody knows.

        Raises OSError while it is being written.
        """
        if self.read is None:
            return True
        with open(name, "rb", opener=lambda path, _: os.open(path, FILE, dir_fd=folder)) as file:
            same = holds_what_was_read(file.fileno(), self.read) if self.read.digest else _is_copied(file, self.copy)
            if os.fstat(file.fileno()).st_ctime_ns != found.st_ctime_ns:
                raise BlockingIOError
        return same

    def is_untouched(self, found: os.stat_result, name: str, folder: int) -> bool:
        """Say so of the file itself: its writer can set the mtime back, but not the ctime; else its content decides."""
        is_as_read = self.read is not None and 0 < self.read.ctime_ns == found.st_ctime_ns
        return is_as_read or self.is_held_by(found, name, folder)


def remove(root: Path, relative_path: str, copied: Copied, aside: Aside) -> Removal:
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
        try:
            found = look_in(name, folder)
        except FileNotFoundError:
            return _remove_left(root, copied, aside, name, folder)
        if not copied.is_at(found) or not copied.is_untouched(found, name, folder):
            return Removal.CHANGED
        if copied.is_last:
            return Removal.WAITS
        with aside.opened(str(root)) as own_folder:
            own = secrets.token_hex(16)
            try:
                return _remove_from(folder, name, own, own_folder, copied)
            except OSError:
                aside.owed.setdefault(str(root), {})[own] = relative_path
                raise
    except OSError:
        return Removal.WAITS
    finally:
        os.close(folder)


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


def _remove_from(folder: int, name: str, own: str, aside: int, copied: Copied) -> Removal:
    try:
        found = rename_to_ours(name, folder, own, aside)
    except FileNotFoundError:
        return Removal.GONE
    is_same = copied.is_at(found or look_in(own, aside))
    if is_same and not _is_being_written(own, aside):
        unlink_ours(own, aside)
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


def _remove_left(root: Path, copied: Copied, aside: Aside, old_name: str, old_folder: int) -> Removal:
    """Finish a removal that failed when the file lay aside already: else it would come back at the next start."""
    done = Removal.GONE
    for folder in aside.left(str(root)):
        for name in os.listdir(folder):  # noqa: PTH208 - a descriptor
            found = look_in(name, folder)
            if not copied.is_at(found):
                continue
            if copied.is_last:
                put_back(name, folder, old_name, old_folder)
                return Removal.WAITS
            if _is_being_written(name, folder):
                return Removal.WAITS
            if not copied.is_held_by(found, name, folder):
                put_back(name, folder, old_name, old_folder)
                return Removal.CHANGED
            unlink_ours(name, folder)
            sync_open_folder(folder)
            done = Removal.REMOVED
    return done


def remove_folders(root: Path, folders: Sequence[str]) -> int:
    """Remove folders of an inbox, in this order, that are empty still; say how many."""
    removed = 0
    for path in folders:
        above, _, name = path.rpartition("/")
        with contextlib.suppress(OSError):
            with _closing(open_folder(str(root), above)) as parent:
                os.rmdir(name, dir_fd=parent)
            removed += 1
    return removed


def recover(root: Path, unremoved: Sequence[Copied], aside: Aside) -> int:
    """Finish what a crash cut short; see ``Spool.recover_removals``."""
    ours = {(each.source.inode, each.source.size_bytes, each.source.mtime_ns): each for each in unremoved}
    count = 0
    try:
        for folder in aside.left(str(root)):
            count += _recover_from(folder, root, ours)
    except OSError:
        pass  # what is left lies where it lay, until the next start
    return count


def _recover_from(aside: int, root: Path, ours: Mapping[tuple[int, int, int], Copied]) -> int:
    count = 0
    with _closing(open_folder(str(root))) as top:
        for name in os.listdir(aside):
            with contextlib.suppress(OSError):
                found = look_in(name, aside)
                if stat.S_ISDIR(found.st_mode):
                    continue
                known = ours.get((found.st_ino, found.st_size, found.st_mtime_ns))
                if known is not None and not _is_being_written(name, aside) and known.is_held_by(found, name, aside):
                    unlink_ours(name, aside)
                else:
                    put_back(name, aside, f"recovered-{name}", top)
                count += 1
        sync_open_folder(aside)
        sync_open_folder(top)
    return count


def _is_being_written(name: str, folder: int) -> bool:
    try:
        descriptor = os.open(name, FILE, dir_fd=folder)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            return False
        raise
    with _closing(descriptor):
        return has_writer(descriptor)


def _is_ours(owner: int, top: int) -> bool:
    """Whether this is the owner of what we make there: we, or on some shares and media one for all files."""
    if owner == os.geteuid():
        return True
    probe = f"{REMOVING}-{secrets.token_hex(8)}"
    os.mkdir(probe, 0o700, dir_fd=top)
    try:
        return owner == os.stat(probe, dir_fd=top, follow_symlinks=False).st_uid
    finally:
        os.rmdir(probe, dir_fd=top)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
