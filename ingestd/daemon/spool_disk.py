"""The disk that the spool lies on: whether it is there, may be written and has room; shuts the gates where it is not.

When the disk runs low intake stops, and files that no delivery needs go early (G3); what was not sent is given up for
room only where no destination that wants it is required (``daemon.making_room``). When nobody can say how full it is,
nothing comes and nothing goes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from math import inf

from ingestd.clocks import Now, boottime
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.stage import Gates, Stage
from ingestd.inbox import Spool
from ingestd.ledger import DestinationStatus, lost_spool_step

_SPACE_EVERY_SECONDS = 1.0
# What can go makes room before it is low, by this part of it: a copy that would leave less than low_water is not made.
_SPARE = 8
# What an alarm tells of who waits is brought up to date no more often.
_TELL_EVERY_SECONDS = 60.0
_BARRED_STEP = (
    "look at its disk (dmesg) and mount it for writing, give ingestd's user the right to write in it, or move away "
    "what stands in the place of its folder; intake goes on by itself, and what lies in the spool is sent meanwhile"
)


class SpoolDisk(Stage):
    """Looks at the spool's disk."""

    def __init__(
        self,
        *,
        spool: Spool,
        gates: Gates,
        alarms: Alarms,
        low_water: int,
        waiting: Callable[[], str] = str,
        wanted_elsewhere: Callable[[], int] = int,
    ) -> None:
        """Look at once: what comes first goes by it. ``low_water`` in bytes; ``waiting`` says what fills the disk,
        ``wanted_elsewhere`` how much is to be free for what did not fit for others who have it.
        """
        self._spool = spool
        self._mounted_again = (
            "mount its disk again, or put the folder back; intake goes on by itself; "
            + lost_spool_step(spool.path, spool.host)
        )
        self._gates = gates
        self._alarms = alarms
        self._waiting = waiting
        self._wanted_elsewhere = wanted_elsewhere
        self._waits, self._tell_at = "", 0.0
        self.low_water = low_water
        self._look_at = 0.0
        self.stands = True
        self._is_well = False  # it stands, may be written, and its space is known
        self.unwell_since: float | None = None  # (boot clock)
        self.trouble = ""  # why nothing can be taken in here, though there may be room
        self._free: int | None = None  # bytes on the spool's disk, as last seen; None: nobody can say
        self.wanted_bytes = 0  # by files that did not fit, though it is not low
        self._look()

    @property
    def is_low(self) -> bool:
        return self._free is not None and self._free < self.low_water

    @property
    def missing_bytes(self) -> int:
        """How much has to go so that there is a little to spare, and what did not fit fits."""
        spare = max(self.wanted_bytes, self._wanted_elsewhere(), self.low_water // _SPARE)
        return 0 if self._free is None else max(0, self.low_water + spare - self._free)

    def due_before(self, now: Now, retain: timedelta) -> datetime:
        """Say since when a kept file must not have been needed to go now: for ``retain``, or at once to make room."""
        return now.utc - (timedelta(0) if self.missing_bytes else retain)

    def collect(self, now: Now) -> None:
        """Look again, once a second at most."""
        if now.mono >= self._look_at:
            self._look_at = now.mono + _SPACE_EVERY_SECONDS
            self._look()
            if not self._full:
                self._waits, self._tell_at = "", 0.0
            elif now.mono >= self._tell_at:
                self._tell_at = now.mono + _TELL_EVERY_SECONDS
                self._waits = self._waiting()
                self._tell_full()

    def next_at(self, now: Now) -> float:  # noqa: ARG002
        """Wake the loop for a disk that something is wrong with; a good one is looked at whenever the loop turns."""
        return inf if self._is_well and not self.missing_bytes else self._look_at

    @property
    def _full(self) -> str:
        if self.is_low:
            return "the spool's disk has less free space than low_water, so that nothing is taken in"
        if self.wanted_bytes:
            return "files do not fit on the spool's disk (space, a quota, inodes), of which low_water stays free"
        return ""

    def _tell_full(self) -> None:
        self._alarms.set(
            "disk_low",
            note=f"{self._full}{self._waits}" if self._full else "",
            next_step="make room on the spool's disk, or lower spool.low_water; intake goes on by itself. What waits "
            "there goes as soon as it is sent and proven",
        )

    def _look(self) -> None:
        trouble = self._spool.trouble()
        barred = "" if trouble else self._spool.barred()
        self.stands, self._free = not trouble, None
        if self.stands:
            with contextlib.suppress(OSError):
                self._free = self._spool.free_bytes()
                self.wanted_bytes = self._spool.wanted_bytes()
        self._is_well = self._free is not None and not barred
        self.trouble = trouble or barred or ("" if self._is_well else "nobody can say how full its disk is")
        if self._is_well:
            self.unwell_since = None
        elif self.unwell_since is None:
            self.unwell_since = boottime()
        # What is barred for writing can be read, and sent.
        self._gates.intake.set("disk", is_open=self._is_well and not self.is_low)
        self._gates.removals.set("disk", is_open=self._free is not None)
        self._gates.claims.set("disk", is_open=self.stands)
        self._tell(trouble, barred)

    def _tell(self, trouble: str, barred: str) -> None:
        self._alarms.set("spool", note=trouble or barred, next_step=self._mounted_again if trouble else _BARRED_STEP)
        self._tell_full()
        unknown = "nobody can say how full the spool's disk is, so that nothing is taken in and nothing removed"
        self._alarms.set(
            "disk_unknown",
            note=unknown if self._free is None and self.stands else "",
            next_step="look after the disk or share that the spool lies on; both go on by themselves",
        )


def who_waits(destinations: Sequence[DestinationStatus]) -> str:
    """Say for whom how much lies in the spool, as the end of a sentence; "" where nothing waits."""
    waiting = sorted((each for each in destinations if each.unconfirmed), key=lambda each: -each.unconfirmed_bytes)
    return "".join(
        f"; {_in_bytes(each.unconfirmed_bytes)} in {each.unconfirmed:,} file{'s' * (each.unconfirmed > 1)}"
        f" wait{'s' * (each.unconfirmed == 1)} for "
        + (each.name if len(destinations) > 1 else "the server")
        + (f", away since {each.paused_since:%Y-%m-%d %H:%M} UTC" if each.paused_since else "")
        for each in waiting
    )


def _in_bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 10**9 else f"{size / 1e6:.1f} MB"
