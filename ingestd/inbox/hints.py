"""What events named and nobody has looked at yet."""

from __future__ import annotations

from collections.abc import Collection

from .scan import Names
from .watch import Watcher

MOST = 16_384


class HintedPaths:
    """Files and folders of one inbox to look at soon, by relative path; bounded."""

    def __init__(self, names: Names, apart: Collection[str]) -> None:
        self.paths: dict[str, None] = {}
        self.folders: dict[str, bool] = {}  # True: with everything below
        self._names = names
        self._apart = apart

    def take_from(self, watcher: Watcher) -> bool:
        """Take over what the observer named; True when some was lost, so that only a scan will do."""
        paths, folders, lost = watcher.hints.take()
        for path in paths:
            if path not in self.paths and not self._is_outside(path):
                self.paths[path] = None
        for folder, deep in folders.items():
            self.name_folder(folder, deep=deep)
        if len(self.paths) > MOST or len(self.folders) > MOST:
            self.paths.clear()
            self.folders.clear()
            return True
        return lost

    def name_folder(self, folder: str, *, deep: bool) -> None:
        """Have a folder walked soon, unless it is none of ours; ``deep``: with everything below."""
        if not self._is_outside(folder):
            self.folders[folder] = deep or self.folders.get(folder, False)

    def _is_outside(self, path: str) -> bool:
        """Whether this path is none of ours: ignored, another inbox, or the spool."""
        if any(path == other or path.startswith(other + "/") for other in self._apart):
            return True
        return self._names.ignores_path(path)
