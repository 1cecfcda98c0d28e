"""The instances on disk: one file per stored version, named by its watermark, put in place by rename.

A file's way: ``incoming/<number>`` while its request is read, then ``files/<folder>/<watermark>.dcm`` in the
transaction that makes its row. Watermarks that follow each other share a folder, so that a group has but one to flush.
Nothing that came over the network ever becomes part of a path. Small files have none: the index keeps them
(``StoredFile`` opens either).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .index import Index

_FOLDER_BITS = 10
_LONG_TO_WRITE = 4 << 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One stored version's file, wherever it is kept."""

    index: Index
    path: Path
    watermark: int

    def open(self) -> IO[bytes]:
        """The file at its start; raises FileNotFoundError where it is gone."""
        with self.index.read() as tx:
            row = tx.execute("SELECT file FROM content WHERE watermark = ?", (self.watermark,)).fetchone()
        if row is None:
            return self.path.open("rb")
        file = os.fdopen(os.memfd_create("instance"), "w+b")
        file.write(row["file"])
        file.seek(0)
        return file


class Files:
    """The folders of one server."""

    def __init__(self, data: Path, *, fsync: bool) -> None:
        self.incoming = data / "incoming"
        self._root = data / "files"
        self._fsync = fsync
        self.incoming.mkdir(parents=True, exist_ok=True)
        self._root.mkdir(exist_ok=True)
        for part in self.incoming.iterdir():  # what a crash left
            part.unlink()
        self._numbers = itertools.count(1)
        self._flushers = ThreadPoolExecutor(max_workers=8, thread_name_prefix="emulator-flush")
        self._move_from_older_folders()
        self._folders = set(self._root.iterdir())

    def _move_from_older_folders(self) -> None:
        # Earlier ones were named by a watermark's last byte, in two digits.
        for older in self._root.glob("[0-9a-f][0-9a-f]"):
            for path in older.iterdir():
                if not path.stem.isdigit():  # none of ours, as for ``sweep``
                    path.unlink()
                    continue
                target = self.path(int(path.stem))
                target.parent.mkdir(exist_ok=True)
                path.rename(target)
            older.rmdir()

    def close(self) -> None:
        self._flushers.shutdown()

    def new_part(self) -> tuple[int, Path]:
        """An empty file in ``incoming``: its descriptor and its path."""
        path = self.incoming / str(next(self._numbers))
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path

    def path(self, watermark: int) -> Path:
        return self._root / f"{watermark >> _FOLDER_BITS:06x}" / f"{watermark}.dcm"

    def write_early(self, part: Path) -> None:
        """Have a part's bytes written, where the server was asked for that, so that ``put`` need not wait long.

        What takes longer to write than the groups take that could go on meanwhile is waited for.
        """
        if not self._fsync:
            return
        with part.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _LONG_TO_WRITE:
                os.fsync(file.fileno())
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # begins to write, and returns

    def put(self, placed: Iterable[tuple[Path, int]]) -> None:
        """Move parts to their places; files and folders are durable when this returns."""
        folders: set[Path] = set()
        targets: list[Path] = []
        for part, watermark in placed:
            target = self.path(watermark)
            if target.parent not in self._folders:
                target.parent.mkdir(exist_ok=True)
                folders.add(self._root)
                self._folders.add(target.parent)
            part.rename(target)
            targets.append(target)
            folders.add(target.parent)
        if self._fsync:
            # After the renames, so that the first flush commits the names, too; together, so that they share its wait.
            if len(targets) == 1:
                _sync(targets[0])
            else:
                list(self._flushers.map(_sync, targets))
            for folder in folders:
                _sync(folder)

    def take_back(self, placed: Iterable[tuple[Path, int]]) -> None:
        """Undo ``put``, as far as it came."""
        for part, watermark in placed:
            if not part.exists():
                self.path(watermark).replace(part)

    def remove(self, watermarks: Iterable[int]) -> None:
        """Remove stored versions; one that is gone already is no error."""
        for watermark in watermarks:
            self.path(watermark).unlink(missing_ok=True)

    def sweep(self, known: set[int]) -> None:
        """Remove what a crash left, files that no row knows."""
        for path in list(self._root.glob("*/*")):
            if not path.stem.isdigit() or int(path.stem) not in known:
                path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
