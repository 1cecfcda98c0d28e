"""What keeps the house in order: confirmed files go after ``retain``, copied sources go, disk space, inbox reports.

Nothing unsent is ever deleted to make room: when the disk runs low intake stops, and only files whose CONFIRMED (or
DISCARDED) is committed go early (G3).
"""

from __future__ import annotations

from datetime import timedelta

import structlog

from ingestd.daemon.alarms import Alarms
from ingestd.daemon.hand import Hand
from ingestd.daemon.looking import is_gone
from ingestd.daemon.mover import Mover
from ingestd.daemon.now import Now
from ingestd.inbox import Inboxes, InboxPolicy, InboxReport, Removal, Spool, SpoolError, Take
from ingestd.ledger import InboxSummary, Ledger, Moves, Removable

_TIDY_EVERY_SECONDS = 5.0
_SPACE_EVERY_SECONDS = 1.0
_REMOVE_AT_ONCE = 500
_COUNTED = (
    "files_seen",
    "waiting_settle",
    "waiting_incomplete",
    "waiting_writer",
    "in_hand",
    "ignored",
    "not_regular",
    "unreadable",
    "dicomdir",
    "vanished",
    "directories",
    "found_by_scan",
    "overflows",
    "scans",
)


class Housekeeping:
    """Tidies up between ticks. Main thread only."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        spool: Spool,
        inboxes: Inboxes,
        mover: Mover[Hand],
        policies: tuple[InboxPolicy, ...],
        retain: timedelta,
        low_water: int,
        alarms: Alarms,
    ) -> None:
        """Join the rooms."""
        self._ledger = ledger
        self._spool = spool
        self._inboxes = inboxes
        self._mover = mover
        self._alarms = alarms
        self._removing: set[int] = set()
        self._roots = {policy.name: policy.path for policy in policies}
        self._moving = {policy.name for policy in policies if policy.take is Take.MOVE}
        self.retain = retain
        self.low_water = low_water
        self._log = structlog.get_logger()
        self._tidy_at = 0.0
        self._space_at = 0.0
        self._reported: dict[str, InboxReport] = {}
        self._removable: list[Removable] = []
        self._sources_gone: list[int] = []
        self._reports: list[InboxReport] = []
        self.disk_low = False

    @property
    def next_at(self) -> float:
        """When to tidy again (``Now.mono``)."""
        return min(self._tidy_at, self._space_at)

    @property
    def has_work(self) -> bool:
        """Whether a transaction is wanted."""
        return bool(self._removable or self._sources_gone or self._reports)

    @property
    def is_idle(self) -> bool:
        """Whether no source is being removed."""
        return not (self._removing or self._sources_gone)

    def hurry(self) -> None:
        """Tidy up at the next tick: a source waits for its removal, or ``run --once`` is about to end."""
        self._tidy_at = 0.0

    def gather(self, now: Now) -> None:
        """Look at the disk, remove what may go, collect reports; writes nothing to the ledger."""
        if now.mono >= self._space_at:
            self._space_at = now.mono + _SPACE_EVERY_SECONDS
            self._look_at_disk()
        self._collect_removals()
        if now.mono < self._tidy_at or self.has_work:
            return
        self._tidy_at = now.mono + _TIDY_EVERY_SECONDS
        self._remove_sources()
        self._remove_confirmed(now)
        for report in self._inboxes.reports():
            self._alarms.set(
                "inbox",
                report.inbox,
                note=report.alarm,
                next_step="mend the folder or its share; `ingestd check` looks at it; intake goes on by itself",
            )
            if self._reported.get(report.inbox) != report:
                self._reports.append(report)

    def record(self, moves: Moves, now: Now) -> None:
        """Write that files are gone, and how the inboxes are."""
        if self._removable:
            moves.mark_removed([row.entry_id for row in self._removable], now=now.utc)
        if self._sources_gone:
            moves.mark_source_removed(self._sources_gone)
        for report in self._reports:
            moves.inbox_report(self._summary(report, now), now=now.utc)

    def committed(self) -> None:
        """The transaction is durable."""
        if len(self._removable) >= _REMOVE_AT_ONCE:
            self._tidy_at = 0.0
        for report in self._reports:
            self._reported[report.inbox] = report
        self._removable, self._sources_gone, self._reports = [], [], []

    def _look_at_disk(self) -> None:
        try:
            low = self._spool.free_bytes() < self.low_water
        except OSError:
            # Nobody can say how full it is: nothing more is put on it.
            low = True
        if low and not self.disk_low:
            self._tidy_at = 0.0
        self.disk_low = low
        self._alarms.set(
            "disk_low",
            note="the spool's disk has less free space than low_water, so that nothing is taken in" if low else "",
            next_step="make room on the spool's disk, or lower spool.low_water; intake goes on by itself",
        )

    def _remove_confirmed(self, now: Now) -> None:
        retain = timedelta(0) if self.disk_low else self.retain
        removable = self._ledger.removable(before=now.utc - retain, limit=_REMOVE_AT_ONCE)
        paths = [path for row in removable for path in row.paths]
        if not paths:
            return
        try:
            self._spool.discard(*paths)
        except SpoolError as error:
            # The rest is gone all the same; these rows keep their file and are tried again.
            removable = [row for row in removable if all(is_gone(self._spool.path / path) for path in row.paths)]
            self._log.error("spool.not_removed", note=str(error))
        self._removable = removable
        if removable:
            self._log.info("spool.removed", files=sum(len(row.paths) for row in removable))

    def _collect_removals(self) -> None:
        for entry_id, removal in self._mover.collect_removals():
            self._removing.discard(entry_id)
            if removal is not Removal.WAITS:
                self._sources_gone.append(entry_id)

    def _remove_sources(self) -> None:
        gone = set(self._sources_gone)
        for source in self._ledger.unremoved_sources():
            root = self._roots.get(source.inbox)
            if root is None or source.inbox not in self._moving or source.entry_id in self._removing | gone:
                continue
            self._removing.add(source.entry_id)
            self._mover.remove_source(source.entry_id, root, source.relative_path, source.source)

    def _summary(self, report: InboxReport, now: Now) -> InboxSummary:
        return InboxSummary(
            inbox=report.inbox,
            path=str(self._roots[report.inbox]),
            alarm=report.alarm,
            watching=report.watching,
            counts={name: getattr(report, name) for name in _COUNTED},
            at=now.utc,
        )
