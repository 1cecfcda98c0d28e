"""How a file gets into the spool: renamed where it can be, copied and checked where it cannot.

Order of what is made durable, so that a crash at any point leaves the file here or there, whole:

1. the content (by the reader that read it; by us after a copy),
2. the file's new entry in the spool (fsync of the target folder),
3. the absence of its old one (fsync of the source folder).

Only then is it reported as taken, and only then may a row be written. Files are grouped: all renames, then each folder
is synced once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ingestd.fs import places
from ingestd.fs.durable import new_file, put_back, sync_open_folder
from ingestd.fs.places import look_in
from ingestd.lifecycle import SourceStat

from .copying import Differs, NoRoom, copy_checked
from .types import Brought, Candidate, Expect, NotTaken, Stranded, Taken, WhyNot, check_inbox_name

_FOLDERS_MOST = 200
_NAME_BYTES = 16
_NO_SPOOL = "a folder of the spool is not there"
_BARS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_NAMES_AT_ONCE = 64
# On a copy: where it came from, so that after a crash it is not taken for another file than its source.
ORIGIN = "user.ingestd.source"


class _Left(Exception):
    """The file stays where it is."""

    def __init__(self, why: WhyNot, note: str = "") -> None:
        self.why = why
        self.note = note
        super().__init__(note)


class _Stranded(Exception):
    """The file lies in the spool, under this name, and could be neither looked at nor given back."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__()


class _Item(NamedTuple):
    """One file that is to be brought, its path taken apart."""

    place: int  # among the items
    candidate: Candidate
    expect: Expect
    folder: tuple[str, str]  # the one that is opened as it is written, and the folders below it
    name: str

    @classmethod
    def of(cls, place: int, candidate: Candidate, expect: Expect) -> _Item:
        path, relative = str(candidate.path), candidate.relative_path
        assert path.endswith("/" + relative), "a candidate's path is its inbox's, and its relative path"
        parent, _, name = relative.rpartition("/")
        return cls(place, candidate, expect, (path[: -len(relative) - 1] or "/", parent), name)


class _Target(NamedTuple):
    """Where in the spool a file is to go: an open folder, its path with a slash, and the name in it."""

    folder: int
    prefix: str
    name: str


@dataclass(slots=True)
class _Moved:
    """A rename that is not durable yet."""

    item: _Item
    taken: Taken
    source_folder: int | None  # None: there is nothing to put back (a copy, or it lay there already)
    target_folder: int
    target_name: str


@dataclass(slots=True)
class _Folders:
    """Open folders of one call, each opened once."""

    opened: dict[tuple[str, str], int] = field(default_factory=dict)

    def get(self, root: str, relative: str) -> int:
        key = (root, relative)
        if key not in self.opened:
            self.opened[key] = places.open_folder(root, relative)
        return self.opened[key]

    def close(self) -> None:
        for descriptor in self.opened.values():
            os.close(descriptor)
        self.opened.clear()


def bring(
    spool: Path, device: int, items: Sequence[tuple[Candidate, Expect]], *, room: str, low_water: int
) -> list[Brought]:
    """Bring files into one of the spool's rooms; see ``Spool.take_in``."""
    results: dict[int, Brought] = {}
    for group in _groups([_Item.of(place, *item) for place, item in enumerate(items)]):
        results.update(_Group(str(spool), device, room, low_water).bring(group))
    return [results[place] for place in range(len(items))]


def _groups(items: list[_Item]) -> Iterator[list[_Item]]:
    """Cut by folders: two hundred are open at a time; a batch rarely has more than a handful."""
    folders: set[tuple[str, str]] = set()
    group: list[_Item] = []
    for item in sorted(items, key=lambda item: item.folder):
        if item.folder not in folders and len(folders) == _FOLDERS_MOST:
            yield group
            folders, group = set(), []
        folders.add(item.folder)
        group.append(item)
    if group:
        yield group


class _Group:
    """The files of one call that are synced together."""

    def __init__(self, spool: str, device: int, room: str, low_water: int) -> None:
        self._spool = spool
        self._device = device
        self._room = room
        self._low_water = low_water
        self._folders = _Folders()
        self._made: list[int] = []  # targets made for one file (rejected/<inbox>/<random>), opened here
        self._to_sync: dict[int, None] = {}  # targets first
        self._sources_to_sync: dict[int, None] = {}
        self._emptied: list[tuple[int, str]] = []
        self._homes: dict[str, int] = {}  # by inbox
        self._names: list[str] = []  # random ones, still to be given

    def bring(self, items: Sequence[_Item]) -> dict[int, Brought]:
        results: dict[int, Brought] = {}
        moved: list[_Moved] = []
        try:
            for item in items:
                try:
                    moved.append(self._bring_one(item))
                except _Left as left:
                    results[item.place] = _left(item.candidate, left.why, left.note)
                except _Stranded as stranded:
                    results[item.place] = _stranded(item.candidate, stranded.name)
                except OSError as error:
                    results[item.place] = _not_taken(item.candidate, error)
            try:
                for descriptor in (*self._to_sync, *self._sources_to_sync):
                    sync_open_folder(descriptor)
            except OSError as error:
                # After a failed fsync nothing may be said of what is on the disk, and asking again would lie.
                for one in moved:
                    results[one.item.place] = self._undo(one, error)
            else:
                results.update({one.item.place: one.taken for one in moved})
                for folder, name in self._emptied:
                    with contextlib.suppress(OSError):
                        os.rmdir(name, dir_fd=folder)
        finally:
            for descriptor in self._made:
                os.close(descriptor)
            self._folders.close()
        return results

    def _bring_one(self, item: _Item) -> _Moved:
        candidate, relative = item.candidate, item.candidate.relative_path
        source_folder = self._folders.get(*item.folder)
        found = look_in(item.name, source_folder)
        _check_same(found, item.expect, "the file changed after it was read")
        if candidate.in_spool and relative.startswith(f"{self._room}/{candidate.inbox}/"):
            self._to_sync[source_folder] = None
            taken = Taken(candidate=candidate, path=relative, ctime_ns=_if_same(found, item.expect, found))
            return _Moved(item, taken, None, source_folder, item.name)
        with _spool_to_be_there():
            target = self._target(candidate.inbox, item.name)
        self._to_sync[target.folder] = None
        try:
            return self._bring_to(item, found, target)
        except (_Left, OSError):
            if self._room == "rejected":
                with contextlib.suppress(OSError):
                    os.rmdir(target.prefix.split("/")[-2], dir_fd=self._home(candidate.inbox))
            raise

    def _bring_to(self, item: _Item, found: os.stat_result, target: _Target) -> _Moved:
        candidate, expect = item.candidate, item.expect
        source_folder = self._folders.get(*item.folder)
        renamed = None
        if found.st_dev == self._device:
            renamed = self._renamed(item.name, source_folder, target, expect.source)
        if renamed is not None:
            self._sources_to_sync[source_folder] = None
            if candidate.in_spool and candidate.relative_path.startswith("rejected/"):
                root, parent = item.folder
                above, _, own = parent.rpartition("/")
                self._emptied.append((self._folders.get(root, above), own))
            path, ctime_ns = target.prefix + target.name, _if_same(found, expect, renamed)
            taken = Taken(candidate=candidate, path=path, ctime_ns=ctime_ns)
            return _Moved(item, taken, source_folder, target.folder, target.name)
        taken = self._copy(item.name, source_folder, target, candidate, expect)
        return _Moved(item, taken, None, target.folder, target.name)

    def _target(self, inbox: str, name: str) -> _Target:
        """Open the folder that the file is to go to, and give it its name there."""
        home = self._home(inbox)
        prefix = f"{self._room}/{inbox}/"
        if self._room == "files":
            return _Target(home, prefix, self._random_name())
        # A folder of its own, so that the file can keep its name for the person who looks.
        own = self._random_name()
        os.mkdir(own, 0o700, dir_fd=home)
        descriptor = os.open(own, places.FOLDER, dir_fd=home)
        self._made.append(descriptor)
        self._to_sync[home] = None
        return _Target(descriptor, f"{prefix}{own}/", name)

    def _random_name(self) -> str:
        """Give 32 hex digits; the kernel is asked for many names at a time."""
        if not self._names:
            digits = secrets.token_hex(_NAME_BYTES * _NAMES_AT_ONCE)
            self._names = [digits[at : at + 2 * _NAME_BYTES] for at in range(0, len(digits), 2 * _NAME_BYTES)]
        return self._names.pop()

    def _home(self, inbox: str) -> int:
        """Open the room's folder for this inbox, which is made where it is missing."""
        if inbox not in self._homes:
            parent = self._folders.get(self._spool, self._room)
            self._homes[inbox] = self._folder_in(parent, check_inbox_name(inbox))
        return self._homes[inbox]

    def _folder_in(self, parent: int, inbox: str) -> int:
        try:
            return self._folders.get(self._spool, f"{self._room}/{inbox}")
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(inbox, 0o700, dir_fd=parent)
            sync_open_folder(parent)
            return self._folders.get(self._spool, f"{self._room}/{inbox}")

    def _renamed(self, name: str, source_folder: int, target: _Target, expect: SourceStat) -> os.stat_result | None:
        """Rename the file into the spool and look at it; None where that cannot be, though both lie on one filesystem.

        Two bind mounts of it are two mounts, and so are folders with quotas of their own: rename(2) says EXDEV.
        """
        try:
            os.rename(name, target.name, src_dir_fd=source_folder, dst_dir_fd=target.folder)
        except OSError as error:
            if error.errno == errno.ENOENT:
                look_in(name, source_folder)  # raises, if it is the source that is not there
                raise _Left(WhyNot.NO_SPOOL, _NO_SPOOL) from error
            if error.errno in _BARS and not os.access(".", os.W_OK | os.X_OK, dir_fd=target.folder):
                raise _spool_bars(error) from error
            if error.errno != errno.EXDEV:
                raise
            return None
        self._sources_to_sync[source_folder] = None
        try:
            found = look_in(target.name, target.folder)
            if stat.S_ISREG(found.st_mode) and expect.is_of(found):
                return found
            # Between our look and the rename somebody wrote to it, or put another file under its name.
            put_back(target.name, target.folder, name, source_folder)
        except OSError as error:
            raise _Stranded(target.prefix + target.name) from error
        raise _Left(WhyNot.CHANGED, "the file changed while it was taken")

    def _copy(self, name: str, source_folder: int, target: _Target, candidate: Candidate, expect: Expect) -> Taken:
        with _spool_to_be_there():
            scratch = self._folders.get(self._spool, "scratch")
        temporary = secrets.token_hex(_NAME_BYTES)
        lies_in, named = scratch, temporary
        source = os.open(name, places.FILE, dir_fd=source_folder)
        try:
            with _spool_to_be_there():
                copy = new_file(temporary, folder=scratch)
            try:
                before = os.fstat(source)
                _check_same(before, expect, "the file changed after it was read")
                _copied(source, copy, expect, self._low_water)
                after = os.fstat(source)
                _check_same(after, expect, "the file changed while it was copied")
                _check_same(look_in(name, source_folder), expect, "the file was replaced while it was copied")
                _remember_origin(copy, candidate.place, expect.source)
                os.utime(copy, ns=(expect.source.mtime_ns, expect.source.mtime_ns))
                os.fsync(copy)
                with _spool_to_be_there():
                    os.rename(temporary, target.name, src_dir_fd=scratch, dst_dir_fd=target.folder)
                lies_in, named = target.folder, target.name
                return Taken(
                    candidate=candidate,
                    path=target.prefix + target.name,
                    source_removed=False,
                    ctime_ns=os.fstat(copy).st_ctime_ns,
                    source_ctime_ns=after.st_ctime_ns if before.st_ctime_ns == after.st_ctime_ns else 0,
                )
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(named, dir_fd=lies_in)
                raise
            finally:
                os.close(copy)
        finally:
            os.close(source)

    def _undo(self, moved: _Moved, error: OSError) -> Brought:
        """Give the file back, on a disk that just failed us, and say where it is now."""
        try:
            if moved.source_folder is not None:
                put_back(moved.target_name, moved.target_folder, moved.item.name, moved.source_folder)
            elif not moved.taken.source_removed:
                os.unlink(moved.target_name, dir_fd=moved.target_folder)
        except OSError:
            if moved.source_folder is not None:
                return _stranded(moved.item.candidate, moved.taken.path)
        return _not_taken(moved.item.candidate, error)


def _spool_bars(error: OSError) -> _Left:
    why = os.strerror(error.errno or errno.EIO).lower()
    return _Left(WhyNot.NO_SPOOL, f"a folder of the spool may not be written: {why}")


@contextlib.contextmanager
def _spool_to_be_there() -> Iterator[None]:
    """Tell a folder of the spool that is not there, or not for us, from such a file."""
    try:
        yield
    except OSError as error:
        if error.errno in _BARS:
            raise _spool_bars(error) from error
        if not isinstance(error, places.MISSING):
            raise
        raise _Left(WhyNot.NO_SPOOL, _NO_SPOOL) from error


def _check_same(found: os.stat_result, expect: Expect, otherwise: str) -> None:
    if not stat.S_ISREG(found.st_mode) or not expect.source.is_of(found):
        raise _Left(WhyNot.CHANGED, otherwise)


def _if_same(found: os.stat_result, expect: Expect, now: os.stat_result) -> int:
    """Give the ctime of what lies in the spool now, if ``found``, before the move, had the ctime of what was read.

    Who writes to a file can set its mtime back, but not its ctime. A rename sets it, so that only we can compare the
    one before with the one that the reader saw.
    """
    return now.st_ctime_ns if found.st_ctime_ns == expect.ctime_ns else 0


def _copied(source: int, copy: int, expect: Expect, low_water: int) -> None:
    try:
        copy_checked(source, copy, expect, low_water=low_water)
    except Differs as why:
        raise _Left(WhyNot.CHANGED, str(why)) from why
    except NoRoom as why:
        note = "it does not fit on the spool's disk, of which low_water stays free"
        raise _Left(WhyNot.NO_ROOM, note) from why


def _remember_origin(copy: int, path: str, source: SourceStat) -> None:
    stamp = f"{source.device}:{source.inode}:{source.size_bytes}:{source.mtime_ns}:".encode()
    # Without extended attributes, or with a path too long for them, a crash leaves a DUPLICATE and no harm.
    with contextlib.suppress(OSError):
        os.setxattr(copy, ORIGIN, stamp + os.fsencode(path))


def source_is_unchanged(copy: Path) -> bool:
    """Whether this is a copy whose source still lies where it lay, as it was."""
    try:
        stamp = os.getxattr(copy, ORIGIN, follow_symlinks=False)
        device, inode, size_bytes, mtime_ns, path = stamp.split(b":", 4)
        now = SourceStat.of(places.look(os.fsdecode(path)))
        then = SourceStat(device=int(device), inode=int(inode), size_bytes=int(size_bytes), mtime_ns=int(mtime_ns))
    except (OSError, ValueError):
        return False
    return now == then


def _left(candidate: Candidate, why: WhyNot, note: str) -> NotTaken:
    return NotTaken(candidate=candidate, why=why, note=note)


def _stranded(candidate: Candidate, path: str) -> Stranded:
    return Stranded(candidate=candidate, path=path, note="it lies in the spool, but the disk failed; it is adopted")


def _not_taken(candidate: Candidate, error: OSError) -> NotTaken:
    if isinstance(error, places.MISSING):
        return _left(candidate, WhyNot.GONE, "the file is gone")
    if error.errno == errno.ELOOP:
        return _left(candidate, WhyNot.CHANGED, "a link is where the file was")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return _left(candidate, WhyNot.NO_SPACE, "the spool's disk is full")
    return _left(candidate, WhyNot.ERROR, os.strerror(error.errno or errno.EIO).lower())
