"""What events named and nobody has looked at yet: bounded twice, and what does not fit is left to a scan."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from .names import Names

MOST_PATHS = 4_096  # hints for single files between two looks; beyond, folders are named
MOST_FOLDERS = 256  # beyond, the whole inbox is scanned
MOST_EVENTS = 16_384  # events between two looks; beyond, the whole inbox is scanned
MOST_WAITING = 16_384  # of an inbox that has no room for them


class Hints:
    """What to look at soon, as relative paths; bounded, filled by the observer's threads, emptied by a look."""

    def __init__(self, root: str, wake: Callable[[], object]) -> None:
        self.root = root
        self._prefix = root.rstrip("/") + "/"
        self._wake = wake
        self._lock = threading.Lock()
        self._paths: dict[str, None] = {}
        self._folders: dict[str, bool] = {}  # relative path: whether everything below it is meant
        self._mended: dict[str, bool] = {}  # relative path, "" for the inbox itself: whether it is a folder
        self._lost = False
        self._events = 0
        self.overflows = 0
        self.unwatched = 0  # folders that could not be watched
        self.is_drowned = False  # more came than will be looked at one by one
        self._has_rung = False

    def file(self, path: str) -> None:
        """Name a file (absolute path)."""
        with self._lock:
            self._events += 1
            if not path.startswith(self._prefix):
                return
            relative = path[len(self._prefix) :]
            if len(self._paths) < MOST_PATHS or relative in self._paths:
                self._paths[relative] = None
            else:
                self._name_folder(relative.rpartition("/")[0], deep=False)
            self._ring()

    def folder(self, path: str) -> None:
        """Name a folder that came (absolute path): everything in it is meant."""
        with self._lock:
            self._events += 1
            if path.startswith(self._prefix):
                self._name_folder(path[len(self._prefix) :], deep=True)
                self._ring()

    def mended(self, path: str, *, is_folder: bool) -> None:
        """Name a file or a folder (absolute path) whose rights are others now, or its owner or times."""
        with self._lock:
            self._events += 1
            if (path + "/").startswith(self._prefix):
                relative = path[len(self._prefix) :]
                if len(self._mended) < MOST_FOLDERS or relative in self._mended:
                    self._mended[relative] = is_folder
                else:
                    self._mended[""] = True
                self._ring()

    def lose(self, *, overflow: bool = False) -> None:
        """Note that events were lost: the whole inbox has to be looked at."""
        with self._lock:
            if overflow and not self._lost:
                self.overflows += 1
            self._lost = True
            self._ring()

    def count(self) -> bool:
        """Count a file's event; False when there were so many that it is left out, which is noted."""
        if self._events < MOST_EVENTS:
            return True
        if not self.is_drowned:
            self.is_drowned = True
            self.lose()
        return False

    @property
    def is_empty(self) -> bool:
        return not (self._lost or self._paths or self._folders or self._mended)

    def take(self) -> tuple[list[str], dict[str, bool], bool]:
        """Take all hints: files, folders (True: with all below), and whether events were lost."""
        with self._lock:
            paths, folders, lost = list(self._paths), self._folders, self._lost
            self._paths = {}
            self._folders = {}
            self._lost = self.is_drowned = self._has_rung = False
            self._events = 0
        return paths, folders, lost

    def take_mended(self) -> dict[str, bool]:
        """Take what was mended, as relative paths ("" for the inbox itself), and whether each is a folder."""
        with self._lock:
            mended, self._mended = self._mended, {}
        return mended

    def _name_folder(self, relative: str, *, deep: bool) -> None:
        if len(self._folders) < MOST_FOLDERS or relative in self._folders:
            self._folders[relative] = deep or self._folders.get(relative, False)
        else:
            self._lost = True

    def _ring(self) -> None:
        # Once between two looks. The lock is held; the caller's wake only puts a token into a queue.
        if self._has_rung:
            return
        self._has_rung = True
        try:
            self._wake()
        except Exception:  # noqa: BLE001 - an exception here would end watchdog's thread, and the timer's scan finds it
            self._lost = True


class HintedPaths:
    """Files and folders of one inbox that are to be looked at soon, by relative path; of those that are ours."""

    def __init__(self, names: Names, apart: Collection[str]) -> None:
        self.paths: dict[str, None] = {}
        self.folders: dict[str, bool] = {}  # True: with everything below
        self._names = names
        self._apart = apart

    def take_from(self, hints: Hints) -> bool:
        """Take over what the observer named; True when some was lost, so that only a scan will do."""
        paths, folders, lost = hints.take()
        for path in paths:
            if path not in self.paths and not self._is_outside(path):
                self.paths[path] = None
        for folder, deep in folders.items():
            self.name_folder(folder, deep=deep)
        if len(self.paths) > MOST_WAITING or len(self.folders) > MOST_WAITING:
            self.paths.clear()
            self.folders.clear()
            return True
        return lost

    def name_folder(self, folder: str, *, deep: bool) -> None:
        """Have a folder walked soon, unless it is none of ours; ``deep``: with everything below."""
        if not self._is_outside(folder):
            self.folders[folder] = deep or self.folders.get(folder, False)

    def take_paths(self, most: int, *, room: int, is_tracked: Callable[[str], bool]) -> list[str]:
        """Take of the ``most`` that wait longest those that are tracked already, and others while there is room."""
        taken = []
        for path in list(self.paths)[:most]:
            is_new = not is_tracked(path)
            if is_new and room <= 0:
                continue
            room -= is_new
            del self.paths[path]
            taken.append(path)
        return taken

    def _is_outside(self, path: str) -> bool:
        """Whether this path is none of ours: ignored, another inbox, or the spool."""
        if any(path == other or path.startswith(other + "/") for other in self._apart):
            return True
        return self._names.ignores_path(path)
