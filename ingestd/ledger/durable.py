"""Files beside the ledger that are there whole, and stay, or are not there at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ingestd.places import sync_folder


def put(place: Path, fill: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: for nobody else to read, and durable before it takes the place."""
    scratch = place.with_name(f"{place.name}.part")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fill(scratch)
        os.fsync(descriptor)
        scratch.replace(place)
    except OSError as error:
        # Of a write that found no room the kernel does not say where.
        error.filename = error.filename or str(place)
        raise
    finally:
        os.close(descriptor)
        scratch.unlink(missing_ok=True)
    sync_folder(place.parent)
