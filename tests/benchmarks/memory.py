"""Peak memory of a daemon with all its children: the sum of their proportional set sizes, sampled.

PSS counts each shared page once over the processes that share it, so the sum is what the machine really gives.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.running import descendants

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


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process (proc(5), smaps_rollup); 0 when it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)
