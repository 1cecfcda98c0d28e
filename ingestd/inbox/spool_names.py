"""What a file is called in the spool, and which folder it goes to there."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from ingestd.clocks import utc_now
from ingestd.fs.durable import sync_folder, was_done

from .types import check_inbox_name

NAMES_A_FOLDER = 2_048


def new_name() -> str:
    """Make a name for a file in the spool; it is given out once, also by a ledger that was put back.

    It begins with the time (ms), so that the ledger's index of paths is filled at its end: random names, each on a page
    of its own that is journaled and written, were a quarter of what a commit wrote with 100,000 files.
    """
    return f"{int(utc_now().timestamp() * 1000):012x}{secrets.token_hex(10)}"


def name_in_spool(path: str) -> str:
    """Say which name a path in ``files/`` or ``rejected/`` was made of."""
    parts = path.split("/")
    return parts[2] if parts[0] == "rejected" else parts[-1]


@dataclass(slots=True)
class _Filled:
    name: str
    former: str  # another thread may still have this one at hand
    names: int = 0


class FoldersToFill:
    """The folder of each room and inbox that new files go to: ``<room>/<inbox>/<8 hex>``, at most 2,048 names in one.

    Of a large folder a block is written for each name that comes or goes: on ext4 3.2 kB a file with a million names,
    0.4 with 2,048. A new one is begun at each start, named after the second or the next that is free; one that is not
    filled any more goes once it is empty (``Spool.listed``). Any thread may call.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._lock = Lock()
        self._filled: dict[str, _Filled] = {}

    def next(self, room: str, inbox: str) -> str:
        """Say which folder one more file is to go to, as a path in the spool; a new one is durable. Raises OSError."""
        above = f"{room}/{check_inbox_name(inbox)}"
        with self._lock:
            filled = self._filled.get(above)
            if filled is None or filled.names == NAMES_A_FOLDER:
                former = filled.name if filled else ""
                number = max(int(utc_now().timestamp()), int(former or "0", 16) + 1)
                while os.path.lexists(self._spool / above / f"{number:08x}"):
                    number += 1
                filled = _Filled(f"{number:08x}", former)
                # Within the lock: nobody else may find a folder that is not durable yet.
                make_folder(self._spool, f"{above}/{filled.name}")
                self._filled[above] = filled
            filled.names += 1
            return f"{above}/{filled.name}"

    def in_use(self) -> set[str]:
        """Name those that may be filled just now."""
        with self._lock:
            found = [(above, name) for above, each in self._filled.items() for name in (each.name, each.former)]
        return {f"{above}/{name}" for above, name in found if name}


def make_folder(spool: Path, relative: str) -> Path:
    """Make a folder of one of the spool's rooms, and what is missing on the way to it; what was made is durable.

    Raises OSError, FileNotFoundError where the room itself is not there.
    """
    room, *parts = relative.split("/")
    folder = spool / room
    for part in parts:
        above, folder = folder, folder / part
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            # A share that lost its answer says one or the other of what it has just made.
            if not isinstance(error, FileExistsError) and was_done(str(folder)) is None:
                raise
        sync_folder(above)
    return folder
