"""What lies in a room of the spool, listed bit by bit, and which of its folders need not be."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeAlias

from ingestd.fs.places import MISSING

# Says of a folder, and when it changed lastly (its ctime, ns: one that was away and back has another), whether it need
# not be listed.
PassesBy: TypeAlias = Callable[[str, int], bool]

# Says whether the files of an inbox are wanted.
OfInbox: TypeAlias = Callable[[str], bool]


def of_all(_inbox: str) -> bool:
    """Want those of every inbox."""
    return True


def lists_all(_folder: str, _changed_ns: int) -> bool:
    """Pass no folder by."""
    return False


def list_room(
    spool: Path,
    room: str,
    *,
    of: OfInbox,
    in_use: Callable[[], Collection[str]],
    passes_by: PassesBy,
) -> Iterator[str]:
    """List the regular files ``<room>/<inbox>/<folder>/<file>``, by their paths in the spool; nothing else is ours.

    Only those ``of`` the inboxes that are wanted.
    Those in ``files/`` and ``explicit/`` are folders to fill (``spool_names``): the files of former versions lie beside
    them, ``passes_by`` is asked of each, and one that was emptied and is not in use goes.
    """
    is_filled = room != "rejected"

    def below(folder: str, depth: int) -> Iterator[str]:
        is_to_fill = is_filled and depth == 3
        try:
            if is_to_fill and passes_by(folder, (spool / folder).stat().st_ctime_ns):
                return
            entries = os.scandir(spool / folder)
        except MISSING:
            return
        is_empty = True
        with entries:
            for entry in entries:
                is_empty = False
                if depth < 3 and entry.is_dir(follow_symlinks=False):
                    if depth == 1 and not of(entry.name):
                        continue
                    yield from below(f"{folder}/{entry.name}", depth + 1)
                elif depth >= 3 - is_filled and entry.is_file(follow_symlinks=False):
                    yield f"{folder}/{entry.name}"
        if is_empty and is_to_fill and folder not in in_use():
            with contextlib.suppress(OSError):
                (spool / folder).rmdir()

    return below(room, 1)
