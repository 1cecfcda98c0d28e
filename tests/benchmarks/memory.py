"""What a daemon takes with all its children: processor time, and peak memory: the sum of proportional set sizes.

PSS counts each shared page once over the processes that share it, so the sum is what the machine really gives.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.running import Daemon, descendants

EVERY_SECONDS = 0.1


class PeakMemory:
    """Watches one process and its descendants for the length of a ``with`` block; ``peak_bytes`` afterwards."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak_bytes = 0
        self.most_processes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            family = [self._pid, *descendants(self._pid)]
            self.peak_bytes = max(self.peak_bytes, sum(map(pss_bytes, family)))
            self.most_processes = max(self.most_processes, len(family))
            if self._ended.wait(EVERY_SECONDS):
                return


def cpu_seconds(daemon: Daemon) -> float:
    """User and system time of a daemon and its children so far, who live as long as it does (proc(5), stat)."""
    ticks = 0
    for pid in (daemon.pid, *daemon.children()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process (proc(5), smaps_rollup); 0 when it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)
