"""What keeps the house in order: disk space, kept files (``removals``), copied sources, inbox reports.

Nothing unsent is ever deleted to make room: when the disk runs low intake stops, and only files whose CONFIRMED (or
DISCARDED) is committed go early (G3). When nobody can say how full it is, nothing comes and nothing goes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta

from ingestd.daemon.alarms import Alarms
from ingestd.daemon.desk import ReaderDesk
from ingestd.daemon.hand import Hand
from ingestd.daemon.mover import Mover
from ingestd.daemon.now import Now
from ingestd.daemon.removals import Removals
from ingestd.daemon.wallclock import WallClock
from ingestd.inbox import Candidate, Expect, Inboxes, InboxPolicy, InboxReport, Removal, Spool, Take
from ingestd.ledger import InboxSummary, Ledger, Transaction, UnremovedSource, moves, queries

_TIDY_EVERY_SECONDS = 5.0
_SPOOL_STEP = (
    "mount its disk again, or put the folder back; intake goes on by itself. If it is lost for good, restart ingestd: "
    "what was in it then shows as failed, and is to be dropped again"
)
_BARRED_STEP = (
    "look at its disk (dmesg) and mount it for writing, or give ingestd's user the right to write in it; intake goes "
    "on by itself, and what lies in the spool is sent meanwhile"
)
_SPACE_EVERY_SECONDS = 1.0
_SQUATTED = "somebody else has the name of our own folder in a drop folder; sources are removed by way of another name"
_SQUATTED_STEP = "remove or rename what lies there as .ingestd-removing, and see who may write to the drop folder"
# A source that a writer has open, or whose share hiccups, is removed within this time.
_STAYS_SECONDS = 60.0
_SOURCES_AT_ONCE = 1000
_STAYS = "files that were copied and recorded cannot be removed from the drop folder"
_STAYS_STEP = (
    "let ingestd's user write in the drop folder and the folders in it, see that nobody keeps the files open, and look "
    "at the share; they are removed by themselves, and nothing is sent twice. One whose copy was taken out of the "
    "spool is kept: rename it to have it taken in anew"
)
_COUNTED = (
    "files_seen",
    "waiting_settle",
    "waiting_incomplete",
    "waiting_writer",
    "in_hand",
    "ignored",
    "not_regular",
    "unreadable",
    "stale_ignored",
    "too_deep",
    "other_device",
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
        desk: ReaderDesk,
        adopt: Callable[[Candidate], object],
        policies: tuple[InboxPolicy, ...],
        wall: WallClock,
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
        self._staying: dict[int, float] = {}  # rows whose source could not be removed: since when, the oldest first
        self._stays_most = _STAYS_SECONDS
        self._removed_up_to = 0  # so far the rows of copied sources have been gone through, this time round
        self._roots = {policy.name: policy.path for policy in policies}
        self._moving = {policy.name for policy in policies if policy.take is Take.MOVE}
        self.removals = Removals(ledger=ledger, spool=spool, desk=desk, adopt=adopt, wall=wall, retain=retain)
        self.low_water = low_water
        self._tidy_at = 0.0
        self._space_at = 0.0
        self._reported: dict[str, InboxReport] = {}
        self._sources_gone: list[int] = []
        self._reports: list[InboxReport] = []
        self.spool_stands = True
        self._is_barred = False  # nothing may be written in the spool; what lies there can be read, and sent
        self._free: int | None = None  # bytes on the spool's disk, as last seen; None: nobody can say
        self._look_at_disk()

    @property
    def next_at(self) -> float:
        """When to tidy again (``Now.mono``)."""
        return min(self._tidy_at, self._space_at)

    @property
    def has_work(self) -> bool:
        """Whether a transaction is wanted."""
        return bool(self.removals.has_work or self._sources_gone or self._reports)

    @property
    def disk_low(self) -> bool:
        """Whether the spool's disk is known to have less free space than ``low_water``."""
        return self._free is not None and self._free < self.low_water

    @property
    def may_take_in(self) -> bool:
        """Whether the spool's disk is known to have room, and may be written."""
        return self._free is not None and not (self.disk_low or self._is_barred)

    @property
    def is_idle(self) -> bool:
        """Whether no source is being removed, and no kept file looked at before it goes."""
        return self.removals.is_idle and not (self._removing or self._sources_gone)

    def hurry(self) -> None:
        """Tidy up at the next tick: a source waits for its removal."""
        self._tidy_at = 0.0

    def hurry_to_the_end(self) -> None:
        """Tidy up at the next tick, the last time; what cannot be removed then is told."""
        self._tidy_at = self._stays_most = 0.0

    @property
    def is_tidy(self) -> bool:
        """Whether it was tidied up since that was asked for, and nothing is left of it under way."""
        return self._tidy_at > 0.0 and self.is_idle

    def gather(self, now: Now) -> None:
        """Look at the disk, remove what may go, collect reports; writes nothing to the ledger."""
        if now.mono >= self._space_at:
            self._space_at = now.mono + _SPACE_EVERY_SECONDS
            self._look_at_disk()
        self._collect_removals(now)
        self.removals.collect(now)
        if now.mono < self._tidy_at or self.has_work:
            return
        self._tidy_at = now.mono + _TIDY_EVERY_SECONDS
        self._remove_sources()
        self._look_for_squatters()
        self._remove_emptied()
        self.removals.gather(now, make_room=self.disk_low)
        for report in self._inboxes.reports():
            for kind, note, next_step in _troubles(report):
                self._alarms.set(kind, report.inbox, note=note, next_step=next_step)
            if self._reported.get(report.inbox) != report:
                self._reports.append(report)

    def record(self, tx: Transaction, now: Now) -> None:
        """Write that files are gone, and how the inboxes are."""
        self.removals.record(tx, now)
        if self._sources_gone:
            moves.mark_source_removed(tx, self._sources_gone)
        for report in self._reports:
            moves.put_inbox_report(tx, self._summary(report, now), now=now.utc)

    def committed(self) -> None:
        """The transaction is durable."""
        if self.removals.committed():
            self._tidy_at = 0.0
        for report in self._reports:
            self._reported[report.inbox] = report
        self._sources_gone, self._reports = [], []

    def _look_at_disk(self) -> None:
        was_low = self.disk_low
        trouble = self._spool.trouble()
        self.spool_stands = not trouble
        barred = "" if trouble else self._spool.barred()
        self._alarms.set("spool", note=trouble or barred, next_step=_SPOOL_STEP if trouble else _BARRED_STEP)
        self._free = None
        self._is_barred = bool(barred)
        if self.spool_stands:
            with contextlib.suppress(OSError):
                self._free = self._spool.free_bytes()
        if self._free is None:
            self.removals.stop("disk_unknown")
        else:
            self.removals.allow("disk_unknown")
        if self.disk_low and not was_low:
            self._tidy_at = 0.0
        low = "the spool's disk has less free space than low_water, so that nothing is taken in"
        self._alarms.set(
            "disk_low",
            note=low if self.disk_low else "",
            next_step="make room on the spool's disk, or lower spool.low_water; intake goes on by itself",
        )
        unknown = "nobody can say how full the spool's disk is, so that nothing is taken in and nothing removed"
        self._alarms.set(
            "disk_unknown",
            note=unknown if self._free is None and self.spool_stands else "",
            next_step="look after the disk or share that the spool lies on; both go on by themselves",
        )

    def _collect_removals(self, now: Now) -> None:
        for entry_id, removal in self._mover.collect_removals():
            self._removing.discard(entry_id)
            if removal is Removal.WAITS:
                self._staying.setdefault(entry_id, now.mono)
            else:
                self._staying.pop(entry_id, None)
                self._sources_gone.append(entry_id)
        oldest = next(iter(self._staying.values()), None)
        stays = oldest is not None and now.mono - oldest >= self._stays_most
        self._alarms.set("not_removed", note=_STAYS if stays else "", next_step=_STAYS_STEP)

    def _remove_sources(self) -> None:
        gone = set(self._sources_gone)
        # However many stay, the others get their turn.
        unremoved = queries.unremoved_sources(self._ledger, after_id=self._removed_up_to, limit=_SOURCES_AT_ONCE)
        self._removed_up_to = unremoved[-1].entry_id if len(unremoved) == _SOURCES_AT_ONCE else 0
        for source in unremoved:
            root = self._roots.get(source.inbox)
            if root is None or source.inbox not in self._moving or source.entry_id in self._removing | gone:
                continue
            self._removing.add(source.entry_id)
            self._mover.remove_source(source.entry_id, root, source.relative_path, what_was_read(source), source.path)

    def _remove_emptied(self) -> None:
        for inbox, folders in self._inboxes.take_emptied():
            ours = queries.emptied_by_us(self._ledger, inbox, folders)
            if ours:
                self._inboxes.folders_leave(inbox, len(ours))
                self._mover.remove_folders(inbox, self._roots[inbox], ours)

    def _look_for_squatters(self) -> None:
        for inbox in self._moving:
            is_squatted = self._spool.is_squatted(self._roots[inbox])
            self._alarms.set("name_squatted", inbox, note=_SQUATTED if is_squatted else "", next_step=_SQUATTED_STEP)
            if is_squatted and not self._removing:
                self._mover.look_aside(self._roots[inbox])

    def _summary(self, report: InboxReport, now: Now) -> InboxSummary:
        return InboxSummary(
            inbox=report.inbox,
            path=str(self._roots[report.inbox]),
            alarm=report.alarm,
            watching=report.watching,
            counts={name: getattr(report, name) for name in _COUNTED},
            oldest_at=None
            if report.oldest_since is None
            else now.utc - timedelta(seconds=now.mono - report.oldest_since),
            at=now.utc,
        )


def what_was_read(source: UnremovedSource) -> Expect:
    """Say what a source held when it was copied, as its row remembers it."""
    content = source.content
    if content is None:
        return Expect(source=source.source, ctime_ns=source.ctime_ns)
    return Expect(
        source=source.source,
        ctime_ns=source.ctime_ns,
        digest=content.digest,
        meta_digest=content.meta_digest,
        dataset_offset=content.dataset_offset,
    )


def _troubles(report: InboxReport) -> Iterator[tuple[str, str, str]]:
    """Say of each trouble that a folder may have what it is ("" where it has not) and what to do: kind, note, step."""
    yield (
        "inbox",
        report.alarm,
        "mend the folder or its share; `ingestd check` looks at it; intake goes on by itself",
    )
    yield (
        "barred",
        "files or folders in the drop folder cannot be read, or files not be moved out of it" if report.barred else "",
        "give ingestd's user the right to read the files and to write in their folders; `ingestd check` names folders",
    )
    yield (
        "too_deep",
        "folders in the drop folder lie too deep to be looked into" if report.too_deep else "",
        "move their files up, or make the folder above them an inbox of its own",
    )
    yield (
        "mounted",
        "another filesystem is mounted inside the drop folder, which is not looked into" if report.other_device else "",
        "make that place an inbox of its own",
    )
    yield (
        "unfinished",
        "files with a hidden or temporary name lie unchanged in the drop folder" if report.stale_ignored else "",
        "rename them if they are complete, remove them if not; names that should be left alone go into `ignore`",
    )
    yield (
        "not_regular",
        "links, pipes or devices lie in the drop folder, which are never taken in" if report.stale_not_regular else "",
        "links are not followed: drop the file itself, and remove the link; names to be left alone go into `ignore`",
    )
