"""Which names in a drop folder are left alone: unfinished copies, hidden files, clutter, and the inbox's own globs."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection

_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "autorun.inf", ".ds_store"})
_UNFINISHED = (".part", ".tmp", "~")


class Names:
    """The rules of one inbox; with ``only``, the files named there are all that there is to see, whatever they are."""

    def __init__(
        self,
        globs: Collection[str] = (),
        *,
        only: Collection[str] | None = None,
        is_too_long: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """``is_too_long`` says of a file's path that nobody can keep it."""
        self._only = only
        self.is_too_long = is_too_long
        self._globs = re.compile("|".join(f"(?:{fnmatch.translate(glob)})" for glob in globs)) if globs else None
        self._last_folder = ("", False)  # and whether it is left alone: the next path asked about is often in it too

    def ignores(self, name: str, relative_path: str) -> bool:
        """Whether this file or folder is left alone."""
        if self._only is not None:
            return relative_path not in self._only
        if name[0] in ".~" or name.endswith(_UNFINISHED):
            return True
        lowered = name.lower()
        if lowered.endswith(_UNFINISHED) or lowered in _CLUTTER:
            return True
        return self._globs is not None and self._is_in_globs(name, relative_path)

    def is_unfinished(self, name: str, relative_path: str) -> bool:
        """Whether an ignored name is one that a writer gives a file until it is complete: hidden, or with a suffix.

        Not so what nobody will rename: clutter, a forked copy of the Mac's ("._x"), and what the inbox's globs name.
        """
        if self._only is not None or name.startswith("._") or name.lower() in _CLUTTER:
            return False
        return not self._is_in_globs(name, relative_path)

    def _is_in_globs(self, name: str, relative_path: str) -> bool:
        globs = self._globs
        return globs is not None and bool(globs.match(name) or globs.match(relative_path))

    def is_out_of_sight(self, relative_path: str) -> bool:
        """Whether this path is none of those asked for, so that it does not even count as ignored."""
        return self._only is not None and relative_path not in self._only

    def ignores_path(self, relative_path: str) -> bool:
        """Whether this path, or a folder on its way, is left alone."""
        folder, _, name = relative_path.rpartition("/")
        if folder != self._last_folder[0]:
            self._last_folder = (folder, self._ignores_folder(folder))
        return self._last_folder[1] or (
            name != "" and (self.ignores(name, relative_path) or self.is_too_long(relative_path))
        )

    def _ignores_folder(self, relative_path: str) -> bool:
        parts = relative_path.split("/")
        return any(part and self.ignores(part, "/".join(parts[: place + 1])) for place, part in enumerate(parts))
