"""The instances on disk: one file per stored version, named by its watermark, put in place by rename.

A file's way: ``incoming/<random>`` while its request is read, then ``files/<hh>/<watermark>.dcm`` in the transaction
that makes its row. Nothing that came over the network ever becomes part of a path. Small files have none: the index
keeps them (``Kept`` opens either).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from .index import Index

_FANOUT = 256


@dataclass(frozen=True, slots=True)
class Kept:
    """One stored version's file, wherever it is kept."""

    index: Index
    path: Path
    watermark: int

    def open(self, mode: Literal["rb"] = "rb", /) -> IO[bytes]:
        """The file at its start; raises FileNotFoundError where it is gone."""
        with self.index.read() as tx:
            row = tx.execute("SELECT file FROM content WHERE watermark = ?", (self.watermark,)).fetchone()
        if row is None:
            return self.path.open(mode)
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
        self._folders = set(self._root.iterdir())

    def new_part(self) -> tuple[int, Path]:
        """An empty file in ``incoming``: its descriptor and its path."""
        descriptor, name = tempfile.mkstemp(dir=self.incoming)
        return descriptor, Path(name)

    def path(self, watermark: int) -> Path:
        """Where the file of a stored version is."""
        return self._root / f"{watermark % _FANOUT:02x}" / f"{watermark}.dcm"

    def settle(self, part: Path) -> None:
        """Make a spooled part's bytes durable, where the server was asked for that."""
        if self._fsync:
            _sync(part)

    def put(self, placed: Iterable[tuple[Path, int]]) -> None:
        """Move settled parts to their places; the folders are durable when this returns."""
        folders: set[Path] = set()
        for part, watermark in placed:
            target = self.path(watermark)
            if target.parent not in self._folders:
                target.parent.mkdir(exist_ok=True)
                folders.add(self._root)
                self._folders.add(target.parent)
            part.rename(target)
            folders.add(target.parent)
        if self._fsync:
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

    def sweep(self, known: set[int]) -> int:
        """Remove what a crash left: unfinished parts, and files that no row knows. The number of those."""
        for part in self.incoming.iterdir():
            part.unlink(missing_ok=True)
        removed = 0
        for path in self._stored():
            if not path.stem.isdigit() or int(path.stem) not in known:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def _stored(self) -> Iterator[Path]:
        for folder in sorted(self._root.iterdir()):
            yield from folder.iterdir()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
