"""How the drop folders are, for the ledger and `status`, and an alarm for whatever keeps a file of theirs back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.stage import Stage
from ingestd.inbox import Inboxes, InboxPolicy, InboxReport
from ingestd.ledger import InboxSummary, Transaction, moves

_REPORT_EVERY_SECONDS = 5.0
# A scan that found everything as it was is told of this late, with those of all inboxes: each commit syncs the disk.
_SCANS_EVERY_SECONDS = 60.0
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


@dataclass(frozen=True, slots=True)
class _Told:
    """What the ledger is told of an inbox."""

    alarm: str
    watching: str
    oldest_since: float | None
    counts: Mapping[str, int]

    def is_like(self, other: _Told | None) -> bool:
        """Whether nothing has happened since but scans."""
        return other is not None and self == replace(other, counts={**other.counts, "scans": self.counts["scans"]})


class InboxReports(Stage):
    """Writes what has changed."""

    def __init__(self, *, inboxes: Inboxes, policies: tuple[InboxPolicy, ...], alarms: Alarms) -> None:
        self._inboxes = inboxes
        self._alarms = alarms
        self._roots: dict[str, Path] = {policy.name: policy.path for policy in policies}
        self._watched: set[str] = set()
        self._report_at = 0.0
        self._scans_at = 0.0
        self._written: dict[str, _Told] = {}
        self._changed: dict[str, _Told] = {}

    def hurry(self) -> None:
        self._report_at = 0.0

    def collect(self, now: Now) -> None:
        """Ask the inboxes every few seconds."""
        if now.mono < self._report_at:
            return
        self._report_at = now.mono + _REPORT_EVERY_SECONDS
        reports = self._inboxes.reports()
        for gone in self._watched - {report.inbox for report in reports}:
            self._alarms.clear_about(gone)
            self._written.pop(gone, None)
        self._watched = {report.inbox for report in reports}
        for report in reports:
            for kind, note, next_step in _troubles(report):
                self._alarms.set(kind, report.inbox, note=note, next_step=next_step)
        told = {report.inbox: _told(report) for report in reports}
        changed = {name: each for name, each in told.items() if self._written.get(name) != each}
        if now.mono < self._scans_at:
            changed = {name: each for name, each in changed.items() if not each.is_like(self._written.get(name))}
        self._changed = changed

    def write(self, tx: Transaction, now: Now) -> None:
        """Write the reports that have changed."""
        if self._changed:
            summaries = [self._summary(name, told, now) for name, told in self._changed.items()]
            moves.put_inbox_reports(tx, summaries, now=now.utc)
            tx.on_commit(partial(self._keep, self._changed, now.mono))

    def _keep(self, written: dict[str, _Told], mono: float) -> None:
        self._written |= written
        self._changed = {}
        if mono >= self._scans_at:
            self._scans_at = mono + _SCANS_EVERY_SECONDS

    def _summary(self, name: str, told: _Told, now: Now) -> InboxSummary:
        since = told.oldest_since
        return InboxSummary(
            inbox=name,
            path=str(self._roots[name]),
            alarm=told.alarm,
            watching=told.watching,
            counts=told.counts,
            oldest_at=None if since is None else now.utc - timedelta(seconds=now.mono - since),
            at=now.utc,
        )


def _told(report: InboxReport) -> _Told:
    counts = {name: getattr(report, name) for name in _COUNTED}
    return _Told(report.alarm, report.watching, report.oldest_since, counts)


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
        "files or folders in the drop folder lie too deep to be taken in" if report.too_deep else "",
        "move the files up, give their folders shorter names, or make the folder above them an inbox of its own",
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
