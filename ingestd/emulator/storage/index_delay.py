"""Studies that searches do not see yet: the ``index_lag`` fault."""

from __future__ import annotations

import threading
import time


class Lag:
    """Which studies are hidden from searches, and until when."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._lock = threading.Lock()

    def hide(self, study_uid: str, seconds: float) -> None:
        """Hide a study for some time from now."""
        with self._lock:
            self._until[study_uid] = max(self._until.get(study_uid, 0.0), time.monotonic() + seconds)

    def hidden(self) -> list[str]:
        """The studies hidden now."""
        if not self._until:
            return []
        now = time.monotonic()
        with self._lock:
            self._until = {uid: until for uid, until in self._until.items() if until > now}
            return list(self._until)
