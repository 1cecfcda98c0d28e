"""Whether somebody set the wall clock: both clocks are compared at every tick, and with what the last run left.

A jump is one line of the ledger, logged and shown by ``status``; what is on record keeps its times. What paces moves
along with the clock; what has to have passed for certain (``retain``, grace) begins anew; and what was learnt before it
is newer than nothing.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from ingestd.clocks import Now
from ingestd.daemon.stage import Stage
from ingestd.ledger import ClockLine, Ledger, Transaction, moves, queries
from ingestd.lifecycle import Jump

# More than a leap second, and than what NTP corrects without setting the clock.
_NOTICED = timedelta(seconds=2)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class WallClock(Stage):
    """Notices jumps. ``jump`` is the last one, ``set_by`` their sum in this run, from when it is noticed."""

    def __init__(self, ledger: Ledger) -> None:
        """Read what the ledger knows of this clock; ``collect`` compares."""
        self._ledger = ledger
        self._log = structlog.get_logger()
        self._known = queries.clock(ledger)
        self.jump: Jump | None = next(iter(queries.jumps(ledger, limit=1)), None)
        self.set_by = timedelta(0)
        self._boot = _boot_id()
        self._line: ClockLine | None = None

    def collect(self, now: Now) -> None:
        """Compare the clocks, before anything goes by them; where it raises, nothing has been noticed yet."""
        offset = now.utc - _EPOCH - timedelta(seconds=now.mono)
        known = self._known
        if known is not None and known.boot == self._boot:
            by = offset - known.offset
            if abs(by) <= _NOTICED:
                return
        else:
            # Over a restart of the machine only this is certain: what is on record was written before.
            by = now.utc - (queries.newest_at(self._ledger) or now.utc)
            by = by if by < -_NOTICED else timedelta(0)
        line = ClockLine(
            boot=self._boot,
            offset=offset,
            jump=Jump(
                at=now.utc,
                by=by,
                last_file_id=queries.last_id(self._ledger),
                last_attempt_id=queries.last_attempt_id(self._ledger),
            ),
        )
        # Two jumps before either could be written are one.
        before = self._line.jump.by if self._line is not None else timedelta(0)
        self._line = replace(line, jump=replace(line.jump, by=by + before))
        self._known = line
        if by:
            self.jump = line.jump
            self.set_by += by
            self._log.warning("clock.set", seconds=by)

    def write(self, tx: Transaction, now: Now) -> None:  # noqa: ARG002 - the line has its own time
        """Write what was noticed, before anything goes by the waits that it moves."""
        if self._line is not None:
            moves.put_clock(tx, self._line)
            tx.on_commit(self._forget)

    def _forget(self) -> None:
        self._line = None


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
