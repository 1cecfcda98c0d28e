"""A wall clock that can be set, for real processes: ``moving_clock.c`` preloaded, told by a file."""

from __future__ import annotations

import shutil
import struct
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.ledgers import ON_POSTGRESQL

SOURCE = Path(__file__).with_name("moving_clock.c")
requires_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def sets_clock(test: Any) -> Any:
    """Mark a test of one daemon whose machine's clock is set."""
    return requires_compiler(pytest.mark.skipif(ON_POSTGRESQL, reason="it goes by the clock of PostgreSQL")(test))


class MovingClock:
    """How far the wall clock of the processes started with ``env`` is from the real one (``by``)."""

    def __init__(self, folder: Path) -> None:
        self._library = folder / "moving_clock.so"
        self._file = folder / "moved"
        self.by = timedelta(0)
        self._file.write_bytes(struct.pack("=q", 0))
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(SOURCE)], check=True)

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "MOVING_CLOCK": str(self._file)}

    def set(self, by: timedelta) -> None:
        """Move the clock to so far from the real one."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", int(by.total_seconds())))
        self.by = by
