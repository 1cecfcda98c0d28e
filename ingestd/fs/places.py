"""Where a file lies, and how it is reached: never through a link that somebody else may have put on the way.

A *place* is a path as a string. In ``/srv/drop/./study/x.dcm`` what stands behind ``/./`` was found in the folder
before it, where others may write: it is reached from that folder's own descriptor, one component after the other, and
a link on the way ends the way. Of a place without ``/./``, which lies in a folder of our own, only the last component
is guarded. (openat2(2) would take the whole way in one call, but Python has no name for it.)

The kernel takes a place for the same path; ``pathlib.Path`` drops the dot and with it the guard, so a place stays a
string.

A *named* file is one that an administrator wrote down: links are followed, but it has to be a file, and to end.
"""
# ruff: noqa: PTH116 - descriptors; pathlib has none

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_MARK = "/./"
# To pass through a folder, or to look at what is in it, one need not be allowed to list it.
PASS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NAMED = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_NAMED_MOST, _BUNDLE_MOST = 1_000_000, 10_000_000  # bytes; a bundle holds all the authorities of the world
# What a person hands over: `-c /dev/stdin` behind a pipe or at a terminal, `-c <(...)`. Its end is in their hands.
_HANDED = re.compile(r"/proc/\d+/fd/pipe:\[|/dev/pts/")
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_NO_NAMES = frozenset({"", ".", ".."})
# What says that there is no such file; no permission or a fault of the disk do not.
MISSING = (FileNotFoundError, NotADirectoryError)


def below(root: str, relative: str) -> str:
    """Name the place of what was found as ``relative`` in the folder ``root``."""
    return f"{root.rstrip('/')}{_MARK}{relative}"


def below_of(path: str, relative: str) -> str:
    """Name the place of what was found as ``relative`` in a folder, of which only the whole path is at hand.

    A path that does not end so was not made of an inbox's folder; it is its own place.
    """
    return below(path[: -len(relative) - 1], relative) if path.endswith("/" + relative) else path


def path_of(place: str) -> str:
    """Give the plain path of a place: to keep, to show, never to open."""
    return place.replace(_MARK, "/", 1)


def open_folder(root: str, relative: str = "", flags: int = FOLDER) -> int:
    """Open the folder ``relative`` below ``root``, which itself may be a link: an administrator wrote it down."""
    parts = relative.split("/") if relative else []
    if not _NO_NAMES.isdisjoint(parts):
        raise NotADirectoryError("no way leads over '..'")
    descriptor = os.open(root or "/", (PASS if parts else flags) & ~os.O_NOFOLLOW)
    for place, part in enumerate(parts, start=1):
        try:
            under = os.open(part, flags if place == len(parts) else PASS, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = under
    return descriptor


def open_file(place: str, flags: int = FILE) -> int:
    """Open what lies at a place; it may be anything but a link. Can stand as the ``opener`` of others."""
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    root, _, relative = place.partition(_MARK)
    if not relative:
        return os.open(place, flags)
    folder, name = _folder_of(root, relative)
    try:
        return os.open(name, flags, dir_fd=folder)
    finally:
        os.close(folder)


def look(place: str) -> os.stat_result:
    """Look at what lies at a place, not at what a link leads to."""
    root, _, relative = place.partition(_MARK)
    if not relative:
        return os.stat(place, follow_symlinks=False)
    folder, name = _folder_of(root, relative)
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    finally:
        os.close(folder)


def look_in(name: str, folder: int) -> os.stat_result:
    """Look at a name in an open folder, not at what a link leads to."""
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def look_in_anew(name: str, folder: int) -> os.stat_result | None:
    """Look at a name in a folder that is opened and listed anew; None where it surely is not there.

    For a share, whose client believes for a while what it knew of names, of missing ones too. Raises OSError where
    nobody can say.
    """
    opened = os.open(".", FOLDER, dir_fd=folder)
    try:
        with os.scandir(opened) as entries:
            is_listed = any(entry.name == name for entry in entries)
        return look_in(name, opened) if is_listed else None
    except FileNotFoundError:
        return None
    finally:
        os.close(opened)


def look_anew(place: str) -> os.stat_result | None:
    """Look so at what lies at a place."""
    root, _, relative = place.partition(_MARK)
    try:
        folder, name = _folder_of(root, relative) if relative else _folder_of(*place.rsplit("/", 1))
    except MISSING:
        return None
    try:
        return look_in_anew(name, folder)
    finally:
        os.close(folder)


def is_gone(place: str) -> bool:
    """Whether there is surely no such file: "no permission" or "input/output error" do not say so."""
    try:
        return not stat.S_ISREG(look(place).st_mode)
    except MISSING:
        return True
    except OSError:
        return False


def remove_scratch(path: Path) -> None:
    """Remove a file that nobody needs any more; one that cannot be removed stays, until scratch is emptied."""
    with suppress(OSError):
        path.unlink()


def may_open(path: str | os.PathLike[str], mode: int = os.R_OK) -> bool:
    """Whether this user may; raises OSError where something else fails, which os.access calls a refusal as well.

    No descriptor of it is closed: that would take the locks of this process on it along (fcntl(2)).
    """
    if os.access(path, mode, effective_ids=True):
        return True
    try:
        # Only to hear why not. Should it work after all, because a fault is over, it stays open.
        os.open(path, (os.O_RDWR if mode & os.W_OK else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise
        return False
    return True


def read_named(path: str | os.PathLike[str], *, most: int = _NAMED_MOST) -> bytes:
    """Read a file that an administrator named; it may be a link.

    Raises OSError, also for what is larger, and for a pipe or a device, which would keep us waiting or never end.
    """
    with open(path, "rb", opener=lambda name, _: os.open(name, NAMED)) as file:
        _expect_an_end(path, os.fstat(file.fileno()), most)
        os.set_blocking(file.fileno(), True)
        content = file.read(most + 1)
    if len(content) > most:
        raise _too_large(path, most)
    return content


def expect_named(path: str | os.PathLike[str], *, most: int = _BUNDLE_MOST) -> os.stat_result:
    """Look at a file before other code, which takes but a path, reads it; raises OSError as ``read_named`` does."""
    found = os.stat(path)
    _expect_an_end(path, found, most)
    return found


def _expect_an_end(path: str | os.PathLike[str], found: os.stat_result, most: int) -> None:
    kind = _KINDS.get(stat.S_IFMT(found.st_mode))
    if kind is not None and not _HANDED.match(os.path.realpath(path)):
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    if kind is None and found.st_size > most:
        raise _too_large(path, most)


def _too_large(path: str | os.PathLike[str], most: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))


def _folder_of(root: str, relative: str) -> tuple[int, str]:
    parent, _, name = relative.rpartition("/")
    if name in _NO_NAMES:
        raise NotADirectoryError("no way leads over '..'")
    return open_folder(root, parent, PASS), name
