"""How fast bodies leave: so many bytes a second, over all threads that share it, in pieces for a smooth line."""

from __future__ import annotations

import threading

from ingestd.clocks import boottime

# A piece is what the line takes in this time, so that it is never still for longer, nor full for longer.
_PIECE_SECONDS = 0.05
# So much of the time in which nobody sent may be made up for.
_BURST_SECONDS = 0.1


class Pace:
    """At most ``bytes_per_second``. Thread-safe: whoever asks first goes first, a piece at a time."""

    def __init__(self, bytes_per_second: int) -> None:
        if bytes_per_second < 1:
            raise ValueError("a rate is at least one byte a second")
        self.bytes_per_second = bytes_per_second
        self.piece = max(1, int(bytes_per_second * _PIECE_SECONDS))
        self.workers = 1  # processes that share it in equal parts
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, size_bytes: int) -> float:
        """Take the next place on the line for so many bytes, and say how many seconds it is until then."""
        with self._lock:
            now = boottime()
            begins_at = max(self._free_at, now - _BURST_SECONDS)
            self._free_at = begins_at + size_bytes * self.workers / self.bytes_per_second
            return max(0.0, begins_at - now)

    def seconds_for(self, size_bytes: int, *, shared_by: int) -> float:
        """Say how long a body may wait for its places where so many are sent at once."""
        return size_bytes * shared_by * self.workers / self.bytes_per_second
