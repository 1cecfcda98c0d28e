"""The walk over one drop folder: bounded, resumable, and never out of the folder.

A walk goes down by descriptor, one folder after another, so that a folder swapped for a link while it runs leads
nowhere. It follows no link, crosses no mount, goes at most 32 folders deep and holds at most that many folders open,
however many files lie there. It only lists: what a file is, is decided elsewhere.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ingestd.fs.places import FOLDER, MISSING, open_folder

from .names import Names

DEEPEST = 32
EMPTIED_MOST = 1_000  # emptied folders told by one walk; the next one tells the others

FileStat = tuple[int, int, int, int, int]  # device, inode, size in bytes, mtime and ctime in ns


def file_stat(found: os.stat_result) -> FileStat:
    """Keep of a stat what tells a file from another, or from itself after a change."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def is_same(one: FileStat, other: FileStat) -> bool:
    """Whether two looks saw the very file with the same length and mtime: nobody wrote to it, as far as those tell.

    A new ctime alone (an owner, a link) is no writing, and not every share has one that stands still.
    """
    return one[:4] == other[:4]


class Found(NamedTuple):
    """One regular file."""

    relative_path: str
    stat: FileStat


@dataclass(slots=True)
class Counts:
    """What a walk has met so far."""

    files: int = 0
    directories: int = 0
    ignored: int = 0
    stale_ignored: int = 0  # files under an unfinished name that have not changed for long
    not_regular: int = 0  # links (to whatever), pipes, sockets and devices
    stale_not_regular: int = 0
    dicomdir: int = 0
    unreadable: int = 0  # folders that may not be listed
    too_deep: int = 0  # folders below the deepest that is looked into, and files with a path that nobody can keep
    other_device: int = 0  # folders that another filesystem is mounted on
    faults: int = 0  # listings that broke off: nothing may be concluded from what is missing


class RootGone(Exception):
    """The inbox's folder cannot be listed; ``errno`` says why."""

    def __init__(self, error: OSError) -> None:
        self.errno = error.errno or errno.EIO
        super().__init__(os.strerror(self.errno))


class Root(NamedTuple):
    """The identity of the folder itself, to see that it was replaced or mounted over."""

    device: int
    inode: int


def root_of(path: str) -> Root | RootGone:
    """Look at the inbox's folder, or say why it cannot be listed."""
    try:
        found = os.stat(path)  # noqa: PTH116 - strings all the way here
    except OSError as error:
        return RootGone(error)
    if not stat.S_ISDIR(found.st_mode):
        return RootGone(NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    return Root(found.st_dev, found.st_ino)


@dataclass(slots=True)
class _Level:
    """One open folder on the way down."""

    prefix: str  # "" or "a/b/"
    descriptor: int
    entries: Iterator[os.DirEntry[str]]
    close: Callable[[], None]
    ctime: float  # when something was last taken out or put in
    is_bare: bool = True  # so far it holds only folders that lay empty long enough


@dataclass(slots=True)
class Walk:
    """A listing of one inbox (or of one folder in it) that goes on where it stopped.

    ``passes_over`` says of a path that it need not be looked at now (it is being watched already); it is still
    counted. ``emptied_before`` (Unix time): folders that hold nothing, and out of which nothing went since, are told in
    ``emptied``, the deepest first; 0: none is. ``forbidden`` holds the (device, inode) of folders that are never
    entered: the spool's.
    """

    root_path: str
    names: Names
    start: str = ""
    deep: bool = True
    passes_over: Callable[[str], bool] = field(default=lambda _path: False)
    forbidden: Collection[tuple[int, int]] = ()
    apart: Collection[str] = ()  # relative paths of other inboxes inside this one
    stale_before: float = -math.inf  # what is left alone though it may be meant for us is told if its ctime is older
    emptied_before: float = 0.0
    emptied: list[str] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    root: Root | None = None
    is_complete: bool = False
    seconds: float = 0.0
    _levels: list[_Level] = field(default_factory=list)

    def advance(self, *, most: int, seconds: float) -> list[Found]:
        """Look at up to ``most`` more entries, for about ``seconds``; raises RootGone.

        After RootGone or an end (``is_complete``) the walk is over and holds nothing open.
        """
        began = time.perf_counter()
        try:
            if self.root is None:
                self._enter_root()
            return self._go_on(most=most, until=began + seconds)
        except BaseException:
            self.close()
            raise
        finally:
            self.seconds += time.perf_counter() - began

    def close(self) -> None:
        """Let go of every open folder; the walk cannot go on."""
        while self._levels:
            self._leave()

    def _go_on(self, *, most: int, until: float) -> list[Found]:
        found: list[Found] = []
        looked = 0
        while self._levels:
            level = self._levels[-1]
            for entry in self._entries(level):
                looked += 1
                if self._is_entered(level, entry, found):
                    break
                level.is_bare = False
                if looked >= most or (not looked & 63 and time.perf_counter() >= until):
                    return found
            else:
                self._note_emptied(level)
                self._leave()
            if looked >= most or time.perf_counter() >= until:
                break
        self.is_complete = not self._levels
        return found

    def _entries(self, level: _Level) -> Iterator[os.DirEntry[str]]:
        while True:
            try:
                entry = next(level.entries)
            except StopIteration:
                return
            except OSError:
                # ESTALE or EIO in the middle: what was not listed is not gone.
                self.counts.faults += 1
                level.is_bare = False
                return
            yield entry

    def _note_emptied(self, level: _Level) -> None:
        """Say of a folder that was listed to its end whether it lay empty long enough; its parent may have, then."""
        is_bare = level.is_bare and level.ctime < self.emptied_before and len(self.emptied) < EMPTIED_MOST
        if len(self._levels) > 1:
            if is_bare:
                self.emptied.append(level.prefix[:-1])
            else:
                self._levels[-2].is_bare = False

    def _is_entered(self, level: _Level, entry: os.DirEntry[str], found: list[Found]) -> bool:
        """Take note of one entry; True when it is a folder that the walk has just gone down into."""
        name = entry.name
        path = level.prefix + name
        counts = self.counts
        if self.names.ignores(name, path):
            counts.ignored += not self.names.is_out_of_sight(path)
            if self.names.is_unfinished(name, path) and self._is_stale(entry):
                counts.stale_ignored += entry.is_file(follow_symlinks=False)
            return False
        try:
            if entry.is_file(follow_symlinks=False):
                counts.files += 1
                if self.names.is_too_long(path):
                    counts.too_deep += 1
                    return False
                # The index of a medium (PS3.10 §8.6), possibly with the dot that some exports add.
                counts.dicomdir += len(name) < 10 and name.upper() in {"DICOMDIR", "DICOMDIR."}
                if not self.passes_over(path):
                    seen = entry.stat(follow_symlinks=False)
                    # A name that was re-used between the listing and the stat.
                    if stat.S_ISREG(seen.st_mode):
                        found.append(Found(path, file_stat(seen)))
                return False
            if entry.is_dir(follow_symlinks=False):
                counts.directories += 1
                return self.deep and self._enter(level, name, path)
            counts.not_regular += 1
            counts.stale_not_regular += self._is_stale(entry)
        except FileNotFoundError:
            pass  # gone between the listing and the look
        except OSError:
            counts.faults += 1
        return False

    def _is_stale(self, entry: os.DirEntry[str]) -> bool:
        try:
            # By ctime: copiers set the mtime of what they write to that of the original.
            return entry.stat(follow_symlinks=False).st_ctime < self.stale_before
        except OSError:
            return False  # gone, or not to be looked at; nothing is known of it

    def _enter_root(self) -> None:
        try:
            descriptor = open_folder(self.root_path)
        except OSError as error:
            raise RootGone(error) from error
        try:
            seen = os.fstat(descriptor)
            self.root = Root(seen.st_dev, seen.st_ino)
            if (seen.st_dev, seen.st_ino) in self.forbidden:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            descriptor = self._go_to_start(descriptor, seen)
            if descriptor >= 0:
                self._push(self.start + "/" if self.start else "", descriptor, seen.st_ctime)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise RootGone(error) from error
        self.is_complete = not self._levels

    def _go_to_start(self, descriptor: int, seen: os.stat_result) -> int:
        """Step down to ``start``; -1 when it is not there any more, or not for us."""
        if not self.start:
            return descriptor
        parts = self.start.split("/")
        if len(parts) > DEEPEST or any("/".join(parts[: place + 1]) in self.apart for place in range(len(parts))):
            os.close(descriptor)
            return -1
        for part in parts:
            opened = self._opened(part, descriptor)
            os.close(descriptor)
            if opened is None:
                return -1
            descriptor, seen = opened
        if self._is_apart(seen):
            os.close(descriptor)
            return -1
        return descriptor

    def _opened(self, name: str, above: int) -> tuple[int, os.stat_result] | None:
        """Open a folder and look at it; None, which is noted, where nobody may or a fault of the disk's lets nobody."""
        descriptor = -1
        try:
            descriptor = os.open(name, FOLDER, dir_fd=above)
            return descriptor, os.fstat(descriptor)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            self._note_barred(error)
            return None

    def _is_apart(self, seen: os.stat_result) -> bool:
        """Whether a folder is another filesystem's, or the spool's."""
        return self.root is None or seen.st_dev != self.root.device or (seen.st_dev, seen.st_ino) in self.forbidden

    def _note_barred(self, error: OSError) -> None:
        """Count a folder that could not be gone into, unless it is gone or was turned into something else."""
        if isinstance(error, PermissionError):
            self.counts.unreadable += 1
        elif not isinstance(error, MISSING) and error.errno != errno.ELOOP:
            self.counts.faults += 1

    def _enter(self, level: _Level, name: str, path: str) -> bool:
        counts = self.counts
        if path in self.apart:
            return False
        if path.count("/") + 1 > DEEPEST:
            counts.too_deep += 1
            return False
        opened = self._opened(name, level.descriptor)
        if opened is None:
            return False
        descriptor, seen = opened
        if self._is_apart(seen):
            counts.other_device += self.root is not None and seen.st_dev != self.root.device
            os.close(descriptor)
            return False
        try:
            self._push(path + "/", descriptor, seen.st_ctime)
        except OSError:
            os.close(descriptor)
            counts.faults += 1
            return False
        return True

    def _push(self, prefix: str, descriptor: int, ctime: float) -> None:
        entries = os.scandir(descriptor)  # works on a duplicate of its own
        self._levels.append(_Level(prefix, descriptor, entries, entries.close, ctime))

    def _leave(self) -> None:
        level = self._levels.pop()
        level.close()
        os.close(level.descriptor)
