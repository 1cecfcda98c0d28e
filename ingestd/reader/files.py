"""What a reader says of the files it has open: one open, and from then on the descriptor only."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from ingestd.fs.durable import sync_folder
from ingestd.fs.open_files import extents, has_writer

_EXTENTS_MOST = 8192


class Waits(Exception):
    """Nothing can be said of the file now; the text says why, without its name."""


def refuse_open_for_writing(fd: int) -> None:
    """Raise Waits while any process has the file open for writing, where the kernel tells."""
    if has_writer(fd):
        raise Waits("still open for writing")


def hole_bytes(fd: int, size: int) -> int:
    """Count the bytes that were never written; 0 where the filesystem does not tell.

    A file of very many pieces is judged by the first of them. Leaves the descriptor at its beginning.
    """
    try:
        pieces = islice(extents(fd, size), _EXTENTS_MOST)
        return sum(end - start for start, end, is_data in pieces if not is_data)
    finally:
        os.lseek(fd, 0, os.SEEK_SET)


def sync(what: int | Path) -> None:
    """Make an open file durable, or the entries of a folder; raises Waits."""
    try:
        if isinstance(what, Path):
            sync_folder(what)
        else:
            os.fsync(what)
    except OSError as error:
        # The kernel has marked the pages clean: a second fsync would lie. The file has to be read and judged anew.
        raise Waits(f"fsync failed: {errno_text(error)}") from None


def errno_text(error: OSError) -> str:
    """Say what the kernel said, without the file's name."""
    return os.strerror(error.errno) if error.errno else type(error).__name__
