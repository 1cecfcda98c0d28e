"""What an inbox counts: over its scans, and over what it handed out."""

from __future__ import annotations

import structlog

from .folder_health import FolderHealth
from .tracker import Phase, Tracker
from .types import InboxReport, Take
from .walk import Counts, Walk

_log = structlog.get_logger()


class ScanStatistics:
    """The figures of one inbox since the start, and what the last complete scan found."""

    def __init__(self, health: FolderHealth) -> None:
        self.files_seen = 0
        self.found_by_scan = 0
        self.ignores_inodes = False  # files in place are told apart without them
        self.complete_began_at: float | None = None  # when the last scan began that was complete and without a fault
        self._health = health
        self._inbox = health.policy.name
        self._counts = Counts()
        self._counts_told = (0, 0, 0, 0)
        self._found_told = 0
        self._scans = 0
        # What left by our own hand since the last scan began, and before, since the one before that.
        self.files_taken = self.folders_taken = 0
        self._files_taken_before = self._folders_taken_before = 0

    @property
    def folders_are_barred(self) -> bool:
        """Whether the last complete scan met folders that it could not look into."""
        return bool(self._counts.unreadable or self._counts.faults)

    def begin_scan(self) -> None:
        self._files_taken_before, self.files_taken = self.files_taken, 0
        self._folders_taken_before, self.folders_taken = self.folders_taken, 0

    def end_scan(self, walk: Walk, now: float) -> None:
        """Take stock of a complete scan."""
        before, counts = self._counts, walk.counts
        self._scans += 1
        self._check_emptiness(before, counts, now)
        self._counts = counts
        told = (counts.not_regular, counts.unreadable, counts.too_deep, counts.other_device)
        if told != self._counts_told:
            _log.info(
                "inbox.left_alone",
                inbox=self._inbox,
                not_regular=counts.not_regular,
                unreadable_folders=counts.unreadable,
                too_deep=counts.too_deep,
                other_filesystem=counts.other_device,
            )
            self._counts_told = told
        if self.found_by_scan != self._found_told:
            _log.info("inbox.lost_event_found", inbox=self._inbox, files=self.found_by_scan - self._found_told)
            self._found_told = self.found_by_scan

    def report(self, tracker: Tracker, *, scanning: bool) -> InboxReport:
        """Say how the inbox is doing."""
        counts, health = self._counts, self._health
        degraded = [health.degraded] if health.degraded else []
        if counts.faults:
            degraded.append("the last scan met read errors")
        return InboxReport(
            inbox=self._inbox,
            files_seen=self.files_seen,
            waiting_settle=tracker.count(Phase.SETTLING, Phase.ASKED),
            waiting_incomplete=tracker.count(Phase.INCOMPLETE),
            waiting_writer=tracker.count(Phase.BEING_WRITTEN),
            in_hand=tracker.count(Phase.HANDED_OUT),
            ignored=counts.ignored,
            not_regular=counts.not_regular,
            stale_not_regular=counts.stale_not_regular,
            unreadable=counts.unreadable + tracker.count(Phase.UNREADABLE),
            barred=counts.unreadable + len(tracker.barred()),
            stale_ignored=counts.stale_ignored,
            too_deep=counts.too_deep,
            other_device=counts.other_device,
            oldest_since=tracker.oldest_since(),
            dicomdir=counts.dicomdir,
            vanished=tracker.vanished,
            directories=counts.directories,
            found_by_scan=self.found_by_scan,
            overflows=health.overflows,
            scans=self._scans,
            scanning=scanning,
            watching=("events" if health.is_watching else "poll")
            + (", inode numbers ignored" if self.ignores_inodes else ""),
            mount_type=health.mount.kind if health.mount is not None else "",
            alarm=health.alarm,
            degraded="; ".join(degraded),
        )

    def _check_emptiness(self, before: Counts, counts: Counts, now: float) -> None:
        """Tell an emptied folder from one whose files we took: somebody else's removal of everything is an alarm."""
        if counts.files + counts.directories + counts.ignored + counts.not_regular:
            self._health.not_empty()
            return
        taken = self.files_taken + self._files_taken_before if self._health.policy.take is Take.MOVE else 0
        lost = max(0, before.files - taken)
        folders = max(0, before.directories - self.folders_taken - self._folders_taken_before)
        if folders or lost > 1:
            what = [f"{lost} file{'s' * (lost > 1)}"] if lost else []
            what += [f"{folders} folder{'s' * (folders > 1)}"] if folders else []
            self._health.emptied(" and ".join(what), now)
