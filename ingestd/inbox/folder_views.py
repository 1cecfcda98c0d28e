"""Whether the folders of inboxes that are not watched here could be: looked at in threads, and never waited for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from ingestd.workers import Workers

from .walk import Root, root_of

LOOK_EVERY = 5.0
PATIENCE = 5.0  # seconds after which a folder that does not answer is not seen


class _View:
    def __init__(self, name: str, path: Path, wake: Callable[[], object]) -> None:
        self._path = str(path.absolute())
        self._workers = Workers[bool](f"view-{name}", wake=wake)
        self._asked_at = -LOOK_EVERY
        self.is_seen: bool | None = None  # None: no look has ended yet

    def look(self, now: float) -> None:
        """Take up what the last look saw, and begin another where it is time."""
        for seen in self._workers.collect():
            self.is_seen = seen
        if self._workers.in_flight:
            if now - self._asked_at >= PATIENCE:
                self.is_seen = False
        elif now - self._asked_at >= LOOK_EVERY:
            self._asked_at = now
            self._workers.submit(lambda: isinstance(root_of(self._path), Root))

    def close(self) -> None:
        self._workers.close()


class FolderViews:
    """Views of some folders, by the names of their inboxes."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._views: dict[str, _View] = {}

    def seen(self, folders: Collection[tuple[str, Path]], now: float) -> dict[str, bool]:
        """Say of these folders whether they are there; those of which nobody knows yet are left out."""
        names = {name for name, _ in folders}
        for name in self._views.keys() - names:
            self._views.pop(name).close()
        found = {}
        for name, path in folders:
            view = self._views.get(name)
            if view is None:
                view = self._views[name] = _View(name, path, self._wake)
            view.look(now)
            if view.is_seen is not None:
                found[name] = view.is_seen
        return found

    def close(self) -> None:
        for view in self._views.values():
            view.close()
