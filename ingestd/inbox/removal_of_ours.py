"""How a file of the spool goes, where it still is what it was when its bytes were known."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ingestd.fs.durable import unlink_ours
from ingestd.fs.open_files import hold_off_writers
from ingestd.fs.places import MISSING, open_file

from .types import LetGo, WasRead


def let_go(place: Path, then: WasRead) -> LetGo:
    """Remove it unless somebody may have written to it since; see ``Spool.let_go``."""
    try:
        descriptor = open_file(str(place))
    except MISSING:
        return LetGo.MISSING
    except OSError:
        return LetGo.STUCK
    try:
        if hold_off_writers(descriptor):
            return LetGo.WRITER
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return LetGo.STUCK
        if not then.is_of(found):
            return LetGo.CHANGED
        unlink_ours(str(place))
    except OSError:
        return LetGo.STUCK
    finally:
        os.close(descriptor)
    return LetGo.GONE
