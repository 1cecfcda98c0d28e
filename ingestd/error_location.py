"""What may be said of an exception whose text may hold patient data: its class, and where in the code it came from."""

from __future__ import annotations

import traceback
from pathlib import PurePath


def location_of(error: BaseException) -> str:
    """Name an exception by its class and the line it came from: ``ValueError at walk.py:214``."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {where}"


def code_locations(error: BaseException) -> list[str]:
    """Say by which lines it came, innermost last: ``ingestd.ledger.moves:214``; no values, no source lines."""
    found = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__")
        if module in (None, "__main__"):
            module = PurePath(frame.f_code.co_filename).name.removesuffix(".py")
        found.append(f"{module}:{line}")
    return found
