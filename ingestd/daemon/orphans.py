"""Files in the spool that no row knows: work not begun (G2), taken up at the start and looked for while running.

A crash leaves them, and so does a disk that fails between a rename and the look after it. While files are coming in,
one without a row may just be on its way to it: it counts only when it was seen so in two sweeps, and nothing that began
to move before the first is still moving.

A folder of the spool in which no name came or went since all in it had rows is passed by, so that a sweep costs what
changed, and not what is kept. That it was the same in the sweep before is wanted as well: what happens within one tick
of the filesystem's clock leaves no other time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from math import inf
from pathlib import Path
from typing import TypeAlias

import structlog

from ingestd.clocks import Now
from ingestd.daemon.admission import Admission
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.assignment import Assignment
from ingestd.daemon.spool_disk import SpoolDisk
from ingestd.daemon.stage import Gates, Stage
from ingestd.daemon.steps import Origin
from ingestd.inbox import Candidate, Inboxes, OfInbox, Spool, name_in_spool
from ingestd.ledger import Ledger, LedgerError, LeftCandidate, Transaction, moves, queries

_ADOPTED_AT_ONCE = 256
_LISTED_AT_ONCE = 500
SWEEP_EVERY_SECONDS = 60.0
# A sweep may take this share of the time.
_SWEEP_SHARE = 0.01
_FAILED_WAIT_SECONDS = 5.0

# Files that were on their way when the last run ended, by inbox and target.
_Left: TypeAlias = dict[tuple[str, str], LeftCandidate]


class Orphans(Stage):
    """Finds the spool's files without rows and has them taken in."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        spool: Spool,
        inboxes: Inboxes,
        admission: Admission,
        disk: SpoolDisk,
        gates: Gates,
        alarms: Alarms,
        assignment: Assignment,
    ) -> None:
        """Join the rooms."""
        self._assignment = assignment
        self._watched: frozenset[str] = frozenset()  # the inboxes that were ours in the last tick
        self._begun: OfInbox = assignment.has  # those whose files are looked through as at a start
        self._ledger = ledger
        self._spool = spool
        self._inboxes = inboxes
        self._admission = admission
        self._disk = disk
        self._gates = gates
        self._alarms = alarms
        self._log = structlog.get_logger()
        self._found: Iterator[Candidate | None] | None = None  # by the start's look, which is over when it is None
        self._look_at = 0.0
        self._left: _Left = {}
        self._staying: list[int] = []  # candidate rows of files that lie where they lay
        self.sweep_every = SWEEP_EVERY_SECONDS
        self._sweep_at = 0.0
        self._sweep: Iterator[str] | None = None
        self._seconds = 0.0
        self._first_seen: dict[str, float] = {}  # files without a row in the sweeps before this one
        self._seen: dict[str, float] = {}  # in this one
        # When folders had changed lastly: as this sweep sees it, as the last one did, and those of it to be passed by.
        self._changed: dict[str, int] = {}
        self._changed_before: dict[str, int] = {}
        self._passed_by: dict[str, int] = {}

    @property
    def are_adopted(self) -> bool:
        return self._found is None

    def start(self) -> None:
        """Begin to take up what the last run left."""
        self._watched = self._assignment.watched
        self._begin(self._assignment.has)

    def _begin(self, of: OfInbox) -> None:
        self._begun = of
        self._sweep, self._changed = None, {}
        self._left = self._left_candidates(of)
        self._found = self._orphans()
        self._gates.intake.shut("orphans")
        self._gates.rereads.shut("orphans")
        # A file that is set apart meanwhile would be found as one more of them.
        self._gates.removals.shut("orphans")

    def next_at(self, now: Now) -> float:
        if not self._disk.stands:
            # Nobody serves it: the disk is looked at by its own clock.
            return inf
        if self._found is not None:
            return max(now.mono, self._look_at) if self._admission.is_idle else now.mono + self.sweep_every
        return now.mono if self._sweep is not None else self._sweep_at

    def collect(self, now: Now) -> None:
        """Take up some; a spool that is away has none."""
        if not self._disk.stands:
            return
        self._follow_assignment()
        if self._found is not None:
            self._take_up(now)
        elif self._sweep is not None or now.mono >= self._sweep_at:
            try:
                self._go_on_sweeping(now)
            except OSError:
                self._sweep = None
                self._sweep_at = now.mono + self.sweep_every

    def _follow_assignment(self) -> None:
        """Begin to take up what whoever had an inbox before left of it, where one has become ours."""
        new, self._watched = self._assignment.watched - self._watched, self._assignment.watched
        if new:
            before = self._begun if self._found is not None else frozenset[str]().__contains__
            self._begin(lambda inbox: inbox in new or before(inbox))

    def write(self, tx: Transaction, now: Now) -> None:  # noqa: ARG002 - nothing of it has a time
        """Forget the candidates that lie where they lay, before admission puts the same files down anew."""
        if self._staying:
            moves.stay_candidates(tx, self._staying)
            tx.on_commit(self._forget)

    def _forget(self) -> None:
        self._staying = []

    def _take_up(self, now: Now) -> None:
        """Admit what the last run left, a few at a time and before anything new, under the names they had."""
        if not self._admission.is_idle or now.mono < self._look_at:
            return
        assert self._found is not None
        try:
            for count, found in enumerate(self._found, start=1):
                if found is not None:
                    self._seen[found.relative_path] = now.mono
                    self._adopt(found, self._left)
                if found is None or count >= _ADOPTED_AT_ONCE:
                    return
        except LedgerError:
            # It does not go on after an error: begin anew, when those at hand have their rows.
            self._found = self._orphans()
            raise
        except OSError:
            self._found = self._orphans()
            self._look_at = now.mono + _FAILED_WAIT_SECONDS
            self._alarms.raise_(
                "spool_unlisted",
                note="the spool's folders cannot be listed, or cleared of a needless file; so nothing new is taken in",
                next_step="look after the disk that the spool lies on; it goes on by itself",
            )
            return
        self._found = None
        self._changed_before = self._changed  # nothing was moved meanwhile: to have looked once is enough
        self._note_unchanged()
        self._alarms.clear("spool_unlisted")
        self._gates.intake.open("orphans")
        self._gates.rereads.open("orphans")
        self._gates.removals.open("orphans")
        # The others lie where they lay, and are seen again, or are gone.
        self._staying = [each.candidate_id for each in self._left.values()]
        self._left = {}
        self._sweep_at = now.mono + self.sweep_every

    def _go_on_sweeping(self, now: Now) -> None:
        began = time.perf_counter()
        if self._sweep is None:
            listed = self._spool.listed(self._passes_by, of=self._assignment.has)
            self._sweep, self._seen, self._seconds = listed, {}, 0.0
            self._changed = {}
        paths = list(islice(self._sweep, _LISTED_AT_ONCE))
        unknown = set(paths) - queries.paths_known(self._ledger, paths) if paths else set()
        for path in unknown:
            self._seen[path] = self._first_seen.get(path, now.mono)
        self._seconds += time.perf_counter() - began
        if len(paths) < _LISTED_AT_ONCE:
            self._sweep = None
            self._sweep_at = now.mono + max(self.sweep_every, self._seconds / _SWEEP_SHARE)
            self._note_unchanged()
            self._adopt_seen_twice()

    def _orphans(self) -> Iterator[Candidate | None]:
        return self._spool.orphans(partial(queries.paths_known, self._ledger), self._passes_by, of=self._begun)

    def _passes_by(self, folder: str, changed_ns: int) -> bool:
        self._changed[folder] = changed_ns
        return self._passed_by.get(folder) == changed_ns

    def _note_unchanged(self) -> None:
        unsure = {path.rpartition("/")[0] for path in self._seen}
        self._passed_by = {
            folder: changed_ns
            for folder, changed_ns in self._changed.items()
            if self._changed_before.get(folder) == changed_ns and folder not in unsure
        }
        self._changed_before = self._changed

    def _adopt_seen_twice(self) -> None:
        moving_since = self._admission.moving_since()
        left = self._left_candidates(self._assignment.has) if self._seen else {}
        for path, first in self._seen.items():
            inbox = path.split("/")[1]
            known = path not in self._first_seen or self._admission.holds_path(path)
            is_theirs = not self._assignment.has(inbox)
            if known or is_theirs or moving_since <= first or self._inboxes.is_observing(inbox, path):
                continue
            with contextlib.suppress(OSError):  # then it is looked at in the next sweep
                orphan = self._spool.candidate_at(inbox, path)
                if orphan is not None:
                    self._log.warning("spool.orphan_found", inbox=inbox)
                    self._adopt(orphan, left)
        self._first_seen = self._seen

    def _adopt(self, orphan: Candidate, left: _Left) -> None:
        """Take a file in as the one that has its name for a target; a copy whose source lies there goes instead."""
        path = orphan.relative_path
        row = left.get((orphan.inbox, name_in_spool(path)))
        if row is not None and path.startswith("rejected/") and Path(path).name != Path(row.relative_path).name:
            row = None  # somebody put it into the folder of that one
        if row is None:
            self._admission.adopt(orphan, Origin(adopted=True))
        elif row.source != orphan.source and self._inboxes.has(row.inbox, row.relative_path, row.source):
            self._spool.discard(path)
        else:
            del left[row.inbox, row.target]
            self._admission.adopt(replace(orphan, dropped_as=row.relative_path), Origin(adopted=True))

    def _left_candidates(self, of: OfInbox) -> _Left:
        left: _Left = {}
        after_id = 0
        while page := queries.left_candidates(self._ledger, after_id=after_id):
            left |= {(each.inbox, each.target): each for each in page if of(each.inbox)}
            after_id = page[-1].candidate_id
        return left
