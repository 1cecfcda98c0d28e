"""How a file gets into the spool: renamed where it can be, copied and checked where it cannot (see ``copying``).

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
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from ingestd.fs import places
from ingestd.fs.durable import put_back, rename_to_ours, sync_open_folder, was_done
from ingestd.fs.places import look_in
from ingestd.lifecycle import SourceStat

from .copying import BARS, Left, Target, check_same, copy_in, expect_to_act, no_spool, spool_to_be_there
from .spool_names import make_folder, new_name
from .types import Brought, Candidate, Expect, NotTaken, Stranded, Taken, Wanted, WhyNot, check_inbox_name

_FOLDERS_MOST = 200


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
    target: str  # in the spool


@dataclass(slots=True)
class _Moved:
    """A rename that is not durable yet."""

    item: _Item
    taken: Taken
    source_folder: int | None  # None: there is nothing to put back (a copy, or it lay there already)
    target_folder: int
    target_name: str


def bring(
    spool: Path,
    device: int,
    items: Sequence[Wanted],
    *,
    room: str,
    folder_for: Callable[[str], str],
    scratch: str,
    low_water: int,
    may_act: Callable[[], bool],
) -> list[Brought]:
    """Bring files into one of the spool's rooms, there into the folder for their inbox; see ``Spool.take_in``."""
    apart: list[_Item] = []
    for place, (candidate, expect, target) in enumerate(items):
        path, relative = candidate.path, candidate.relative_path
        assert path.endswith("/" + relative), "a candidate's path is its inbox's, and its relative path"
        parent, _, name = relative.rpartition("/")
        apart.append(_Item(place, candidate, expect, (path[: -len(relative) - 1] or "/", parent), name, target))
    results: dict[int, Brought] = {}
    for group in _groups(apart):
        _Group(spool, device, room, folder_for, scratch, low_water, may_act, results).bring(group)
    return [results[place] for place in range(len(items))]


def _groups(items: list[_Item]) -> Iterator[list[_Item]]:
    """Cut by folders: two hundred are open at a time; a batch rarely has more than a handful."""
    folders: set[tuple[str, str]] = set()
    group: list[_Item] = []
    for item in sorted(items, key=attrgetter("folder")):
        if item.folder not in folders and len(folders) == _FOLDERS_MOST:
            yield group
            folders, group = set(), []
        folders.add(item.folder)
        group.append(item)
    if group:
        yield group


class _Group:
    """The files of one call that are synced together; what became of each goes into ``results``."""

    def __init__(
        self,
        spool: Path,
        device: int,
        room: str,
        folder_for: Callable[[str], str],
        scratch: str,
        low_water: int,
        may_act: Callable[[], bool],
        results: dict[int, Brought],
    ) -> None:
        self._spool = str(spool)
        self._device = device
        self._room = room
        self._folder_for = folder_for
        self._scratch = scratch
        self._low_water = low_water
        self._may_act = may_act
        self._results = results
        self._opened: dict[tuple[str, str], int] = {}  # each folder once
        self._to_sync: dict[int, None] = {}  # targets first
        self._sources_to_sync: dict[int, None] = {}
        self._emptied: list[tuple[int, str]] = []

    def bring(self, items: Sequence[_Item]) -> None:
        moved: list[_Moved] = []
        results = self._results
        try:
            for item in items:
                try:
                    moved.append(self._bring_one(item))
                except Left as left:
                    results[item.place] = NotTaken(candidate=item.candidate, why=left.why, note=left.note)
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
                    results[one.item.place] = _undo(one, error)
                return
            for one in moved:
                results[one.item.place] = one.taken
            for folder, name in self._emptied:
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=folder)
        finally:
            for descriptor in self._opened.values():
                os.close(descriptor)

    def _bring_one(self, item: _Item) -> _Moved:
        candidate, relative = item.candidate, item.candidate.relative_path
        source_folder = self._folder(*item.folder)
        found = look_in(item.name, source_folder)
        check_same(found, item.expect, "the file changed after it was read")
        if candidate.in_spool and relative.startswith(f"{self._room}/{candidate.inbox}/"):
            self._to_sync[source_folder] = None
            is_as_read = found.st_ctime_ns == item.expect.ctime_ns
            taken = Taken(candidate=candidate, path=relative, ctime_ns=found.st_ctime_ns if is_as_read else 0)
            return _Moved(item, taken, None, source_folder, item.name)
        with spool_to_be_there():
            target = self._target(item, check_inbox_name(candidate.inbox))
        self._to_sync[target.folder] = None
        try:
            return self._bring_to(item, source_folder, found, target)
        except (Left, OSError):
            if self._room == "rejected":
                above, own = os.path.split(target.prefix[:-1])
                with contextlib.suppress(OSError):
                    os.rmdir(own, dir_fd=self._folder(self._spool, above))
            raise

    def _bring_to(self, item: _Item, source_folder: int, found: os.stat_result, target: Target) -> _Moved:
        candidate, expect, path = item.candidate, item.expect, target.prefix + target.name
        expect_to_act(self._may_act)
        renamed = None
        if found.st_dev == self._device:
            renamed = self._renamed(item.name, source_folder, target, expect.source)
        if renamed is None:
            with spool_to_be_there():
                scratch = self._folder(self._spool, self._scratch)
            taken = copy_in(
                item.name,
                source_folder,
                target,
                candidate,
                expect,
                scratch=scratch,
                low_water=self._low_water,
                may_act=self._may_act,
            )
            return _Moved(item, taken, None, target.folder, target.name)
        if candidate.in_spool and candidate.relative_path.startswith("rejected/"):
            root, parent = item.folder
            above, _, own = parent.rpartition("/")
            self._emptied.append((self._folder(root, above), own))
        # Who writes to a file can set its mtime back, but not its ctime. A rename sets it, so that only we can compare
        # the one before with the one that the reader saw.
        ctime_ns = renamed.st_ctime_ns if found.st_ctime_ns == expect.ctime_ns else 0
        taken = Taken(candidate=candidate, path=path, ctime_ns=ctime_ns)
        return _Moved(item, taken, source_folder, target.folder, target.name)

    def _target(self, item: _Item, inbox: str) -> Target:
        """Open the folder that the file is to go to, which is made where it is missing, and name the file in it."""
        path = self._folder_for(inbox)
        try:
            folder = self._folder(self._spool, path)
        except FileNotFoundError:
            make_folder(Path(self._spool), path)
            folder = self._folder(self._spool, path)
        own = item.target
        if self._room == "files":
            return Target(folder, f"{path}/", own)
        # A folder of its own, so that the file can keep its name for the person who looks.
        try:
            os.mkdir(own, 0o700, dir_fd=folder)
        except OSError:
            # Of this try, whose answer was lost, or of one that a crash cut short; or somebody put files there, over
            # which nothing is written.
            if was_done(own, folder) is None:
                raise
            if os.listdir(self._folder(self._spool, f"{path}/{own}")):  # noqa: PTH208 - a folder that is open
                own = new_name()
                os.mkdir(own, 0o700, dir_fd=folder)
        self._to_sync[folder] = None
        name = (item.candidate.dropped_as or item.name).rpartition("/")[2]
        return Target(self._folder(self._spool, f"{path}/{own}"), f"{path}/{own}/", name)

    def _folder(self, root: str, relative: str) -> int:
        """Open a folder, until the end of this group."""
        descriptor = self._opened.get((root, relative))
        if descriptor is None:
            descriptor = self._opened[root, relative] = places.open_folder(root, relative)
        return descriptor

    def _renamed(self, name: str, source_folder: int, target: Target, expect: SourceStat) -> os.stat_result | None:
        """Rename the file into the spool and look at it; None where that cannot be, though both lie on one filesystem.

        Two bind mounts of it are two mounts, and so are folders with quotas of their own: rename(2) says EXDEV.
        """
        try:
            found = rename_to_ours(name, source_folder, target.name, target.folder)
        except OSError as error:
            if error.errno == errno.ENOENT:
                look_in(name, source_folder)  # raises, if it is the source that is not there
                raise no_spool(error) from error
            if error.errno in BARS and not os.access(".", os.W_OK | os.X_OK, dir_fd=target.folder):
                raise no_spool(error) from error
            if error.errno != errno.EXDEV:
                raise
            return None
        self._sources_to_sync[source_folder] = None
        try:
            found = found or look_in(target.name, target.folder)
            if stat.S_ISREG(found.st_mode) and expect.is_of(found):
                return found
            # Between our look and the rename somebody wrote to it, or put another file under its name.
            put_back(target.name, target.folder, name, source_folder)
        except OSError as error:
            raise _Stranded(target.prefix + target.name) from error
        raise Left(WhyNot.CHANGED, "the file changed while it was taken")


def _undo(moved: _Moved, error: OSError) -> Brought:
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


def _stranded(candidate: Candidate, path: str) -> Stranded:
    return Stranded(candidate=candidate, path=path, note="it lies in the spool, but the disk failed; it is adopted")


def _not_taken(candidate: Candidate, error: OSError) -> NotTaken:
    if isinstance(error, places.MISSING):
        why, note = WhyNot.GONE, "the file is gone"
    elif error.errno == errno.ELOOP:
        why, note = WhyNot.CHANGED, "a link is where the file was"
    elif error.errno in {errno.ENOSPC, errno.EDQUOT}:
        why, note = WhyNot.NO_SPACE, "the spool's disk is full"
    else:
        why, note = WhyNot.ERROR, os.strerror(error.errno or errno.EIO).lower()
    return NotTaken(candidate=candidate, why=why, note=note)
