"""The disk that the spool lies on: whether it is there, may be written and has room; shuts the gates where it is not.

Nothing unsent is ever deleted to make room: when the disk runs low intake stops, and only files whose CONFIRMED (or
DISCARDED) is committed go early (G3). When nobody can say how full it is, nothing comes and nothing goes.
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.stage import Gates, Stage
from ingestd.inbox import Spool

_SPACE_EVERY_SECONDS = 1.0
_SPOOL_STEP = (
    "mount its disk again, or put the folder back; intake goes on by itself. If it is lost for good, restart ingestd: "
    "what was in it then shows as failed, and is to be dropped again"
)
_BARRED_STEP = (
    "look at its disk (dmesg) and mount it for writing, or give ingestd's user the right to write in it; intake goes "
    "on by itself, and what lies in the spool is sent meanwhile"
)


class SpoolDisk(Stage):
    """Looks at the spool's disk."""

    def __init__(self, *, spool: Spool, gates: Gates, alarms: Alarms, low_water: int) -> None:
        """Look at once: what comes first goes by it. ``low_water`` in bytes."""
        self._spool = spool
        self._gates = gates
        self._alarms = alarms
        self.low_water = low_water
        self._look_at = 0.0
        self.stands = True
        self._free: int | None = None  # bytes on the spool's disk, as last seen; None: nobody can say
        self._look()

    @property
    def is_low(self) -> bool:
        return self._free is not None and self._free < self.low_water

    def due_before(self, now: Now, retain: timedelta) -> datetime:
        """Say since when a kept file must not have been needed to go now: for ``retain``, or at once to make room."""
        return now.utc - (timedelta(0) if self.is_low else retain)

    def collect(self, now: Now) -> None:
        """Look again once a second."""
        if now.mono >= self._look_at:
            self._look_at = now.mono + _SPACE_EVERY_SECONDS
            self._look()

    def next_at(self, now: Now) -> float:  # noqa: ARG002
        return self._look_at

    def _look(self) -> None:
        trouble = self._spool.trouble()
        barred = "" if trouble else self._spool.barred()
        self.stands, self._free = not trouble, None
        if self.stands:
            with contextlib.suppress(OSError):
                self._free = self._spool.free_bytes()
        # What is barred for writing can be read, and sent.
        self._gates.intake.set("disk", is_open=self._free is not None and not (self.is_low or barred))
        self._gates.removals.set("disk", is_open=self._free is not None)
        self._gates.claims.set("disk", is_open=self.stands)
        self._tell(trouble, barred)

    def _tell(self, trouble: str, barred: str) -> None:
        self._alarms.set("spool", note=trouble or barred, next_step=_SPOOL_STEP if trouble else _BARRED_STEP)
        low = "the spool's disk has less free space than low_water, so that nothing is taken in"
        self._alarms.set(
            "disk_low",
            note=low if self.is_low else "",
            next_step="make room on the spool's disk, or lower spool.low_water; intake goes on by itself",
        )
        unknown = "nobody can say how full the spool's disk is, so that nothing is taken in and nothing removed"
        self._alarms.set(
            "disk_unknown",
            note=unknown if self._free is None and self.stands else "",
            next_step="look after the disk or share that the spool lies on; both go on by themselves",
        )
