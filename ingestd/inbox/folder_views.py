"""How the folders of inboxes that are not watched here look: seen by threads, and never waited for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from ingestd.fs.mounts import Mount, mount_of
from ingestd.workers import Workers

from .walk import Root, root_of

LOOK_EVERY = 5.0
PATIENCE = 5.0  # seconds after which a folder that does not answer is not seen
UNSEEN = -1


def depth_of(mount: Mount | None) -> int:
    """Say how many characters the path has at which it is mounted."""
    return len(mount.mount_point) if mount is not None else 0


class _View:
    def __init__(self, name: str, path: Path, wake: Callable[[], object]) -> None:
        self._path = str(path.absolute())
        self._workers = Workers[int](f"view-{name}", wake=wake)
        self._asked_at = -LOOK_EVERY
        self.depth: int | None = None  # see ``FolderViews.seen``; None: no look has ended yet

    def look(self, now: float) -> None:
        """Take up what the last look saw, and begin another where it is time."""
        for depth in self._workers.collect():
            self.depth = depth
        if self._workers.in_flight:
            if now - self._asked_at >= PATIENCE:
                self.depth = UNSEEN
        elif now - self._asked_at >= LOOK_EVERY:
            self._asked_at = now
            self._workers.submit(self._look)

    def _look(self) -> int:
        return depth_of(mount_of(self._path)) if isinstance(root_of(self._path), Root) else UNSEEN

    def close(self) -> None:
        self._workers.close()


class FolderViews:
    """Views of some folders, by the names of their inboxes."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._views: dict[str, _View] = {}

    def seen(self, folders: Collection[tuple[str, Path]], now: float) -> dict[str, int]:
        """Say of these folders how deep that is mounted which they lie on; one of which nobody knows yet is left out.

        ``UNSEEN``: it is not there. One whose share is not mounted looks like any empty one, on something less deep.
        """
        names = {name for name, _ in folders}
        for name in self._views.keys() - names:
            self._views.pop(name).close()
        found = {}
        for name, path in folders:
            view = self._views.get(name)
            if view is None:
                view = self._views[name] = _View(name, path, self._wake)
            view.look(now)
            if view.depth is not None:
                found[name] = view.depth
        return found

    def close(self) -> None:
        for view in self._views.values():
            view.close()
