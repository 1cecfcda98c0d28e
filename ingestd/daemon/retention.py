"""Which kept files go, and when: ``retain`` after CONFIRMED (or DISCARDED) is committed, while nothing forbids.

Two things hold them. One gate for all (``Gates.removals``): a disk of which nothing can be said, orphans that may be
files of rows. And each server holds what rests on it, that is, what it has by our word, while it was not looked at, or
may have lost or altered files (``Looks``): our copies may be the only ones. It says nothing of another's.

Many files may be held for days, so that those that were looked through are not looked through again at each look: only
where a server lets go of what it held, or now and then.

That its bytes go is written before they do, and for good: whoever was to remove them and did not end it is followed by
the next look, or the next start.

Before a file goes, what lies there must still be what was confirmed: its writer may have kept it open, for a rename
keeps the inode. Its ctime tells at no cost that nobody wrote to it; otherwise it is read again, and other bytes get a
name of their own and are a new arrival.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Container
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from math import inf
from typing import NamedTuple

import structlog

from ingestd.clocks import Now
from ingestd.daemon.reader_client import Owner, ReaderClient
from ingestd.daemon.spool_disk import SpoolDisk
from ingestd.daemon.stage import Gate, Stage
from ingestd.daemon.wallclock import WallClock
from ingestd.inbox import Candidate, LetGo, Spool, WasRead, name_in_spool
from ingestd.ledger import KeptFile, Ledger, NewCandidate, Removable, Transaction, moves, queries
from ingestd.lifecycle import SourceStat
from ingestd.reader import InspectJob, Read, Verdict

_LOOK_EVERY_SECONDS = 5.0
# What was held when it was looked through may be held no more, though no server has said so: a copy was in doubt.
_ANEW_EVERY_SECONDS = 60.0
_REMOVE_AT_ONCE = 500
# Of those that are held, so many are looked through in one tick: with a server away for days there are millions.
_LOOK_THROUGH_AT_ONCE = 20_000
# Reading again comes beside the reading of what arrives.
_READ_AT_ONCE = 64
# Between two tries at a file that a writer has open, or that cannot be read or removed.
_STUCK_SECONDS = 30.0


class _Kept(NamedTuple):
    row: Removable
    file: KeptFile


class _Apart(NamedTuple):
    """Bytes that were never confirmed, and where they lie now."""

    row: Removable
    path: str
    source: SourceStat | None  # as they lay there then; None: nobody can say


@dataclass(frozen=True, kw_only=True, slots=True)
class Looks:
    """What is known of the servers that hold what rests on them; the numbers are the destinations'.

    Those that were looked at vouch for what has not been needed since ``up_to`` (None: there are none), those ``away``
    for nothing. Of those ``unasked`` nobody wants to know.
    """

    up_to: datetime | None
    away: frozenset[int]
    unasked: frozenset[int]


class Retention(Stage):
    """Removes kept files from the spool."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        spool: Spool,
        reader_client: ReaderClient,
        adopt: Callable[[Candidate], object],
        wall: WallClock,
        gate: Gate,
        disk: SpoolDisk,
        retain: timedelta,
        looks: Callable[[], Looks],
    ) -> None:
        """Join the rooms; ``adopt`` takes a new arrival that lies in the spool.

        Only what has not been needed for ``retain`` may go, and what no server holds.
        """
        self._ledger = ledger
        self._spool = spool
        self._reader_client = reader_client
        self._adopt = adopt
        self._wall = wall
        self._gate = gate
        self._disk = disk
        self._retain = retain
        self._looks = looks
        self._log = structlog.get_logger()
        self._look_at = self._anew_at = 0.0
        self._held_by: frozenset[int] = frozenset()
        self._looked_through: datetime | None = None  # what has not been needed since then is held by these
        self._makes_room = False
        self._reading: set[int] = set()  # rows with a file that is read again
        self._stuck: dict[int, float] = {}  # rows that are not looked at again before (monotonic)
        self._due: list[Removable] = []  # to be marked, and then removed
        self._removed: list[Removable] = []
        self._apart: list[_Apart] = []

    @property
    def is_idle(self) -> bool:
        return not (self._due or self._reading or self._removed or self._apart)

    def hurry(self) -> None:
        self._look_at = self._anew_at = 0.0

    def has_more(self, now: Now) -> bool:
        """Whether a file is going, or to go by itself as soon as its servers were looked at."""
        if not self.is_idle:
            return True
        before = self._disk.due_before(now, self._retain)
        rows = self._ask(self._looks(), before=before, since=self._looked_through, limit=1 + len(self._stuck))
        return any(row.file_id not in self._stuck for row in rows)

    @property
    def is_tidy(self) -> bool:
        """Whether it was looked since that was asked for, and no file is being read again."""
        return self._look_at > 0.0 and self.is_idle

    def collect(self, now: Now) -> None:
        """Go on with the files that were read again, and remove what may go."""
        for context, read in self._reader_client.take(Owner.RETENTION):
            assert isinstance(context, _Kept)
            self._judge(context, read, now)
        makes_room = self._disk.missing_bytes > 0
        if makes_room and not self._makes_room:
            self.hurry()
        self._makes_room = makes_room
        if now.mono < self._look_at or self._due or self._removed or self._apart:
            return
        self._look_at = now.mono + _LOOK_EVERY_SECONDS
        if self._gate.is_open:
            self._remove_due(now)

    def _remove_due(self, now: Now) -> None:
        before = self._disk.due_before(now, self._retain)
        jump = self._wall.jump
        if jump is not None and jump.at > before:
            # Nobody knows how long what lies here has lain: it begins anew.
            return
        self._stuck = {file_id: at for file_id, at in self._stuck.items() if at > now.mono}
        looks = self._looks()
        rows = self._removable(before if looks.up_to is None else min(before, looks.up_to), looks, now)
        if jump is not None and not rows and looks.up_to is None:
            rows = self._ask(looks, before=before, ahead_of=now.utc, limit=_REMOVE_AT_ONCE)
        self._let_go([row for row in rows if row.is_being_removed], now)
        self._due = [row for row in rows if not row.is_being_removed]

    def _removable(self, before: datetime, looks: Looks, now: Now) -> list[Removable]:
        """Give some of what may go; where that is all, the others are looked through for a while."""
        if self._held_by - looks.away or now.mono >= self._anew_at:
            self._looked_through, self._anew_at = None, inf
        self._held_by = looks.away
        aside = self._reading | self._stuck.keys()
        at_most = _REMOVE_AT_ONCE + len(aside)
        since = self._looked_through
        up_to = queries.unneeded_up_to(self._ledger, before=before, since=since, files=_LOOK_THROUGH_AT_ONCE)
        rows = self._ask(looks, before=up_to, since=since, limit=at_most)
        if len(rows) < at_most:
            self._looked_through = up_to
            if up_to < before:
                self._look_at = 0.0  # the others in the next ticks
            elif self._anew_at == inf:
                self._anew_at = now.mono + _ANEW_EVERY_SECONDS
        return [row for row in rows if row.file_id not in aside]

    def _ask(
        self,
        looks: Looks,
        *,
        before: datetime,
        since: datetime | None = None,
        ahead_of: datetime | None = None,
        limit: int,
    ) -> list[Removable]:
        away, unasked = looks.away, looks.unasked
        return queries.removable(
            self._ledger, before=before, since=since, ahead_of=ahead_of, away=away, unasked=unasked, limit=limit
        )

    is_of_studies = True

    @property
    def studies(self) -> Collection[str] | None:
        """Those of the files that are to go, or are gone; bytes that are another file's may be of any."""
        if self._apart:
            return None
        return {row.study_uid for row in (*self._due, *self._removed) if row.study_uid}

    def write(self, tx: Transaction, now: Now) -> None:
        """Write which files are to go, which are gone, and which held other bytes."""
        if self._removed:
            moves.mark_removed(tx, [row.file_id for row in self._removed], now=now.utc)
        if self._apart:
            moves.written_after(tx, [apart.row.file_id for apart in self._apart], now=now.utc)
            named = [_as_dropped(row, path, source) for row, path, source in self._apart if source is not None]
            moves.add_candidates(tx, named, now=now.utc)
        if self._removed or self._apart:
            tx.on_commit(self._committed)
        if self._due:
            due = [row.file_id for row in self._due]
            may_go = moves.mark_removing(tx, due, unasked=self._looks().unasked, now=now.utc)
            tx.on_commit(partial(self._marked, may_go, now))

    def next_at(self, now: Now) -> float:
        return now.mono if self._due or self._removed else self._look_at

    def _marked(self, may_go: Container[int], now: Now) -> None:
        """It is durable that these go: remove them."""
        due, self._due = self._due, []
        self._let_go([row for row in due if row.file_id in may_go], now)

    def _committed(self) -> None:
        """It is durable: take the new arrivals; more may go at once."""
        if len(self._removed) >= _REMOVE_AT_ONCE:
            self._look_at = 0.0
        if files := sum(len(row.files) for row in self._removed):
            self._log.info("spool.removed", files=files)
        apart, self._apart, self._removed = self._apart, [], []
        for row, path, _ in apart:
            self._log.warning("spool.written_after", file_id=row.file_id, inbox=row.inbox)
            try:
                candidate = self._spool.candidate_at(row.inbox, path)
            except OSError:
                continue  # a file without a row: it is found again
            if candidate is not None:
                # It may be in the middle of being written: not final.
                self._adopt(replace(candidate, final=False, dropped_as=row.relative_path, was_admitted=True))

    def _let_go(self, rows: list[Removable], now: Now, *, just_read: str = "") -> None:
        kept = [_Kept(row, file) for row in rows for file in row.files]
        answers = self._spool.let_go([(file.path, _was_read(file)) for _, file in kept])
        by_row: defaultdict[int, list[tuple[_Kept, LetGo]]] = defaultdict(list)
        for one, answer in zip(kept, answers, strict=True):
            by_row[one.row.file_id].append((one, answer))
        for row in rows:
            self._note_answers(row, by_row[row.file_id], just_read, now)

    def _note_answers(self, row: Removable, answers: list[tuple[_Kept, LetGo]], just_read: str, now: Now) -> None:
        """Mark the row when all its files are gone; the first that is in doubt is read again, then all once more."""
        doubtful = next((kept for kept, answer in answers if answer is LetGo.CHANGED), None)
        if doubtful is not None and doubtful.file.path != just_read:
            self._doubt(doubtful, now)
        elif any(answer is not LetGo.GONE for _, answer in answers):
            if any(answer is LetGo.STUCK for _, answer in answers):
                self._log.error("spool.not_removed", file_id=row.file_id)
            self._stuck[row.file_id] = now.mono + _STUCK_SECONDS
        else:
            self._removed.append(row)

    def _doubt(self, kept: _Kept, now: Now) -> None:
        if kept.file.digests is None:
            # Nobody ever knew what it held, so that nobody can say that it still does.
            self._set_apart(kept, now)
        elif len(self._reading) < _READ_AT_ONCE:
            self._reading.add(kept.row.file_id)
            path, (_, like) = str(self._spool.path / kept.file.path), kept.file.digests
            self._reader_client.ask(Owner.RETENTION, kept, lambda key: InspectJob(key=key, path=path, like=like))

    def _judge(self, kept: _Kept, read: Read, now: Now) -> None:
        row, file = kept
        self._reading.discard(row.file_id)
        found = read.inspection
        if not read.died and (found is None or found.verdict in (Verdict.CHANGED, Verdict.UNREADABLE)):
            self._stuck[row.file_id] = now.mono + _STUCK_SECONDS
        elif not self._gate.is_open:
            pass  # it is read once more when it may go
        elif found is not None and (found.meta_digest, found.digest) == file.digests:
            same = replace(file, size_bytes=found.size_bytes, mtime_ns=found.mtime_ns, ctime_ns=found.ctime_ns)
            files = tuple(same if each is file else each for each in row.files)
            self._let_go([replace(row, files=files)], now, just_read=file.path)
        else:
            self._set_apart(kept, now)

    def _set_apart(self, kept: _Kept, now: Now) -> None:
        row, file = kept
        source = None
        try:
            path = self._spool.set_apart(row.inbox, file.path)
        except OSError as error:
            self._log.error("spool.not_written", file_id=row.file_id, error=type(error).__name__)
            self._stuck[row.file_id] = now.mono + _STUCK_SECONDS
            return
        with suppress(OSError):
            candidate = self._spool.candidate_at(row.inbox, path)
            source = candidate.source if candidate is not None else None
        self._apart.append(_Apart(row, path, source))
        others = tuple(each for each in row.files if each is not file)
        self._let_go([replace(row, files=others)], now)


def _as_dropped(row: Removable, path: str, source: SourceStat) -> NewCandidate:
    """Say by which name it was dropped: whoever has the inbox finds it without a row."""
    return NewCandidate(inbox=row.inbox, relative_path=row.relative_path, source=source, target=name_in_spool(path))


def _was_read(file: KeptFile) -> WasRead:
    return WasRead(size_bytes=file.size_bytes, mtime_ns=file.mtime_ns, ctime_ns=file.ctime_ns)
