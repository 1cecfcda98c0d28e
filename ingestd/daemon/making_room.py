"""Room on the spool's disk where only destinations that are not required want the bytes (``required: false``).

A full disk stops the intake, and a destination that is away for long fills it. So that it does not where nobody has to
have these files: while the disk is low, or a file did not fit, and nothing is to go by itself any more, the oldest that
only such destinations wait for are given up there (FAILED ``no_room``), no more of them than the room that is missing.
From then on nobody needs them, and they go as all others do (``daemon.retention``): once the servers that they rest on
were looked at.

Only what waits to be sent is given up. What a server may have already (SENDING, UNCERTAIN, STORED) keeps its file:
asking ends that without a person, but may need the bytes, to compare or to send them once more. So does what waits for
a person, who was promised both copies, say. A file in place takes no room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import structlog

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.retention import Looks, Retention
from ingestd.daemon.spool_disk import SpoolDisk
from ingestd.daemon.stage import Gate, Stage
from ingestd.ledger import Ledger, Transaction, moves, queries

_LOOK_EVERY_SECONDS = 1.0
# What went shows in the next look at the disk, which comes once a second.
_SETTLED_AFTER_SECONDS = 2.0
_AT_ONCE = 1000
# Where there was nothing to give up, all that waits was walked through.
_NOTHING_FOR_SECONDS = 30.0
# Whether there is something to tell is looked for no more often.
_TELL_EVERY_SECONDS = 60.0
NO_ROOM = "no_room"


class MakingRoom(Stage):
    """Gives up what is not required where the disk is low."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        alarms: Mapping[str, Alarms],
        gate: Gate,
        disk: SpoolDisk,
        retention: Retention,
        looks: Callable[[], Looks],
    ) -> None:
        """Join the rooms; ``alarms`` are those of the destinations that are not required, by their names."""
        self._ledger = ledger
        self._alarms = alarms
        self._numbers = {name: ledger.destinations[name] for name in alarms}
        self._gate = gate
        self._disk = disk
        self._retention = retention
        self._looks = looks
        self._look_at = self._tell_at = self._going_at = 0.0
        self._chosen: list[int] = []  # files
        self._log = structlog.get_logger()

    @property
    def is_idle(self) -> bool:
        return not self._chosen

    def collect(self, now: Now) -> None:
        """Choose what is given up, where nothing else makes room."""
        if not self._numbers or now.mono < self._look_at or self._chosen:
            return
        self._look_at = now.mono + _LOOK_EVERY_SECONDS
        if now.mono >= self._tell_at:
            self._tell(now)
        if not (self._disk.missing_bytes and self._gate.is_open) or self._retention.has_more(now):
            self._going_at = now.mono
        elif now.mono - self._going_at >= _SETTLED_AFTER_SECONDS:
            looks = self._looks()
            self._look_at = now.mono + _NOTHING_FOR_SECONDS
            self._chosen = queries.given_up_first(
                self._ledger,
                at=self._numbers.values(),
                away=looks.away,
                unasked=looks.unasked,
                size_bytes=self._disk.missing_bytes,
                limit=_AT_ONCE,
            )

    def write(self, tx: Transaction, now: Now) -> None:
        """Give up what is still wanted nowhere else."""
        if self._chosen:
            given_up = moves.give_up_for_room(tx, self._chosen, at=self._numbers.values(), now=now.utc)
            tx.on_commit(partial(self._committed, given_up))

    def _committed(self, given_up: int) -> None:
        if given_up:
            self._log.error("spool.given_up", rows=given_up)
        self._chosen, self._look_at = [], 0.0
        if not any(alarms.stands(NO_ROOM) for alarms in self._alarms.values()):
            self._tell_at = 0.0
        self._retention.hurry()

    def _tell(self, now: Now) -> None:
        """Say what was given up, as long as no person has let go of it."""
        self._tell_at = now.mono + _TELL_EVERY_SECONDS
        for name, alarms in self._alarms.items():
            # How many, `status` counts anew each time: a number here would contradict it.
            some = queries.given_up_for_room(self._ledger.at(name))
            alarms.set(
                NO_ROOM,
                note=f"files that waited for {name} had to go, because the disk was full (no_room)" if some else "",
                next_step="drop them again once there is room and it can be sent to; `ingestd status --state FAILED "
                "--files` lists them, and `ingestd resolve ID --discard` lets go of each",
            )
