"""Rows and files that have to be read again: changed bytes, Explicit VR copies, rejected files, a person's requests.

It finds them and hands their files to ``Admission``, which judges them as any other; re-encoding is done here.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import structlog

from ingestd.clocks import Now
from ingestd.daemon.admission import Admission
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.assignment import Assignment
from ingestd.daemon.judgement import ADMISSIBLE
from ingestd.daemon.reader_client import Owner, ReaderClient
from ingestd.daemon.stage import Gate, Stage
from ingestd.daemon.steps import Origin, content_of, identity_of
from ingestd.fs.places import MISSING, below_of, is_gone, look, path_of
from ingestd.inbox import Candidate, Spool
from ingestd.ledger import (
    Ledger,
    OperatorRequest,
    PendingRead,
    RejectedFile,
    RowToRead,
    Transaction,
    moves,
    queries,
)
from ingestd.lifecycle import Reason, SourceStat
from ingestd.reader import Inspection, Read, ReencodeJob

_LOOK_EVERY_SECONDS = 2.0
_REJECTED_EVERY_SECONDS = 30.0
_AT_ONCE = 64
# A row whose file was not read for so long, although it was taken up, is told.
_UNREAD_SECONDS = 60.0
_UNREAD = "files that wait to be read again cannot be read, or nobody can say whether they are gone"
_UNREAD_STEP = (
    "let ingestd's user read them and in the folders that they lie in, and look at the disk or the share; an empty "
    "drop folder may be one that is not mounted: where it is the right one, put any file there. They are read again by "
    "themselves"
)


@dataclass(frozen=True, slots=True)
class _Reencoding:
    """A row whose Explicit VR copy is being written to ``destination``, relative to the spool."""

    row: RowToRead
    destination: str


class _Round:
    """A walk through all that asks to be read, a page at a time, so that what cannot be read lets the others by."""

    def __init__(self) -> None:
        self.after = 0  # so far it has come
        # Since when each asks in vain (``Now.mono``; inf: not yet): in the round before, and in this one.
        self._before: dict[int, float] = {}
        self._so_far: dict[int, float] = {}

    @property
    def in_vain_since(self) -> float:
        return min(self._before.values(), default=inf)

    @property
    def is_walking(self) -> bool:
        """Whether anything asked to be read when that was last looked at."""
        return bool(self._before or self._so_far)

    def walked(self, page: Sequence[int], in_work: Container[int], now: Now) -> None:
        """Go by what asks still: what was taken up before, and is in nobody's hands, was not read."""
        for number in page:
            since = self._before.get(number, inf)
            is_in_vain = number in self._before and number not in in_work
            self._so_far[number] = min(since, now.mono) if is_in_vain else since
        self.after = page[-1] if len(page) == _AT_ONCE else 0
        if not self.after:
            self._before, self._so_far = self._so_far, {}


class Rereads(Stage):
    """Carries out what rows ask of the readers."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        reader_client: ReaderClient,
        spool: Spool,
        admission: Admission,
        gate: Gate,
        results_written: Callable[[], int],
        is_lost: Callable[[str], bool],
        alarms: Alarms,
        assignment: Assignment,
    ) -> None:
        """Join the rooms; ``is_lost`` as for Admission."""
        self._assignment = assignment
        self._is_lost = is_lost
        self._ledger = ledger
        self._reader_client = reader_client
        self._spool = spool
        self._admission = admission
        self._gate = gate
        self._results_written = results_written
        self._alarms = alarms
        self._results_known = results_written()
        self._log = structlog.get_logger()
        self._reencoding: dict[int, str] = {}  # rows, and the inbox of each
        self._reads: list[tuple[_Reencoding, Read]] = []
        self._lost: list[RowToRead] = []  # there is nothing to read any more
        self._failed: list[int] = []  # requests for files that are gone
        self._rows = _Round()
        self._requests = _Round()
        self._look_at = 0.0
        self._put_off = False  # whether the loop turned before it was time to look
        self._rejected_at = 0.0

    @property
    def is_idle(self) -> bool:
        return not (self._reencoding or self._reads)

    def has_in_hand(self, inbox: str) -> bool:
        """Whether a copy of a file of this inbox is being made."""
        return inbox in self._reencoding.values()

    def next_at(self, now: Now) -> float:
        if not self._gate.is_open:
            # What nobody serves must not count as due: the loop would turn without a rest.
            return inf
        if self._results_written() != self._results_known:
            return now.mono
        return self._look_at if self._put_off or self._rows.is_walking or self._requests.is_walking else inf

    def collect(self, now: Now) -> None:
        """Collect what was read, and take up new wants."""
        # What is being re-encoded must not be taken for an orphan.
        if not self._gate.is_open:
            return
        if self._results_written() != self._results_known:
            # A post may just have asked for one.
            self._results_known = self._results_written()
            self._look_at = 0.0
        for context, read in self._reader_client.take(Owner.REENCODING):
            assert isinstance(context, _Reencoding)
            self._reads.append((context, read))
        self._put_off = now.mono < self._look_at
        if self._put_off:
            return
        self._look_at = now.mono + _LOOK_EVERY_SECONDS
        self._take_up_rows(now)
        self._take_up_requests(now)
        since = min(self._rows.in_vain_since, self._requests.in_vain_since)
        is_long = now.mono - since >= _UNREAD_SECONDS
        self._alarms.set("not_read_again", note=_UNREAD if is_long else "", next_step=_UNREAD_STEP)
        if now.mono >= self._rejected_at:
            self._rejected_at = now.mono + _REJECTED_EVERY_SECONDS
            self._look_at_rejected()

    def write(self, tx: Transaction, now: Now) -> None:
        """Write what re-encoding came to, and what cannot be read again."""
        needless: list[str] = []
        others: list[RowToRead] = []
        for work, read in self._reads:
            if not self._write_copy(work, read, tx, now, others):
                needless.append(work.destination)
        for row in self._lost:
            moves.read_no_more(tx, row.delivery_id, now=now.utc)
        for delivery_id in self._failed:
            moves.request_failed(tx, delivery_id, note="its file is no longer there", now=now.utc)
        if self._reads or self._lost or self._failed:
            tx.on_commit(partial(self._committed, tuple(needless), tuple(others)))

    def _committed(self, needless: tuple[str, ...], others: tuple[RowToRead, ...]) -> None:
        with suppress(OSError):  # a start removes what belongs to no row
            self._spool.discard(*needless)
        for work, _ in self._reads:
            self._reencoding.pop(work.row.delivery_id, None)
        self._reads, self._lost, self._failed = [], [], []
        for row in others:
            self._read_again(row)

    def _take_up_rows(self, now: Now) -> None:
        rows = queries.rows_to_read(self._ledger, limit=_AT_ONCE, after_id=self._rows.after)
        in_work = self._reencoding.keys() | self._admission.rows_in_hand
        in_work |= {row.delivery_id for row in rows if not self._assignment.has(row.inbox)}
        self._rows.walked([row.delivery_id for row in rows], in_work, now)
        for row in rows:
            if row.delivery_id in in_work:
                continue
            if row.pending_read is PendingRead.REREAD:
                self._read_again(row)
            else:
                self._reencode(row)

    def _read_again(self, row: RowToRead) -> None:
        """Hand the row's file in, as it lies there now."""
        path = path_of(row.path) if row.in_place else row.path.removeprefix(f"{self._spool.path}/")
        candidate = None
        with suppress(OSError):  # nothing can be said of it now
            candidate = self._candidate_at(row, path)
        if candidate is not None:
            candidate = replace(candidate, final=True, priority=row.priority)
            self._admission.adopt(candidate, Origin(adopted=True, row=row))
        elif self._is_lost(row.path):
            self._lost.append(row)

    def _candidate_at(self, row: RowToRead | RejectedFile, path: str) -> Candidate | None:
        """Look at a row's file; None when it is gone or no regular file any more. Raises OSError: nobody can say."""
        if not row.in_place:
            found_here = self._spool.candidate_at(row.inbox, path)
            return replace(found_here, dropped_as=row.relative_path) if found_here is not None else None
        try:
            found = look(below_of(path, row.relative_path))
        except MISSING:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return Candidate(
            inbox=row.inbox,
            relative_path=row.relative_path,
            path=path,
            source=SourceStat.of(found),
            final=True,
            priority=row.priority,
            in_place=True,
        )

    def _reencode(self, row: RowToRead) -> None:
        try:
            destination = self._spool.new_explicit(row.inbox)
        except OSError as error:
            self._log.error("spool.not_written", error=type(error).__name__)
            return
        self._reencoding[row.delivery_id] = row.inbox
        work = _Reencoding(row, str(destination.relative_to(self._spool.path)))
        self._reader_client.ask(
            Owner.REENCODING, work, lambda key: ReencodeJob(key=key, path=row.path, destination=str(destination))
        )

    def _take_up_requests(self, now: Now) -> None:
        rows = queries.requested_rows(self._ledger, limit=_AT_ONCE, after_id=self._requests.after)
        in_hand = self._admission.rows_in_hand | {row.file_id for row in rows if not self._assignment.has(row.inbox)}
        self._requests.walked([row.file_id for row in rows], in_hand, now)
        for row in rows:
            if row.file_id in in_hand:
                continue
            try:
                candidate = self._candidate_at(row, row.path)
            except OSError:
                continue  # nothing can be said of it now
            if candidate is None:
                self._failed.append(row.file_id)
                continue
            admit_anyway = row.request is OperatorRequest.ADMIT_ANYWAY
            origin = Origin(adopted=True, former=row.file_id, requested=True, admit_anyway=admit_anyway)
            self._admission.adopt(candidate, origin)

    def _look_at_rejected(self) -> None:
        """Take what grew or was mended in ``rejected/`` as new (a writer may hold the file open across our rename)."""
        after, in_hand = 0, self._admission.rows_in_hand
        while files := queries.rejected_files(self._ledger, after_id=after):
            for file in files:
                after = file.file_id
                if file.in_place or file.file_id in in_hand or not self._assignment.has(file.inbox):
                    continue
                try:
                    candidate = self._candidate_at(file, file.path)
                except OSError:
                    continue
                if candidate is not None and not candidate.source.looks_like(file.source):
                    candidate = replace(candidate, was_admitted=file.reason is Reason.CHANGED)
                    self._admission.adopt(candidate, Origin(adopted=True, former=file.file_id))

    def _write_copy(self, work: _Reencoding, read: Read, tx: Transaction, now: Now, others: list[RowToRead]) -> bool:
        """Write what re-encoding a row's file came to; say whether its copy is needed."""
        row, found = work.row, read.inspection
        if found is not None and found.verdict in ADMISSIBLE:
            if self._is_of_another_file(row, found):
                # The file in place is not the one that was admitted: it is read again before anything of it is sent.
                others.append(row)
                return False
            return moves.attach_reencoded(
                tx,
                row.delivery_id,
                path=work.destination,
                content=content_of(found),
                ctime_ns=found.ctime_ns,
                now=now.utc,
            )
        if self._is_lost(row.path):
            moves.read_no_more(tx, row.delivery_id, now=now.utc)
        elif not read.waits and not is_gone(row.path):
            # Where nothing is known the row still asks, and is taken up again.
            why = read.refused or (found.reason_text if found else "the reader ended while re-encoding it")
            note = f"the server refused its encoding, and it cannot be re-encoded to Explicit VR Little Endian: {why}"
            moves.reencode_failed(tx, row.delivery_id, note=note, now=now.utc)
        return False

    def _is_of_another_file(self, row: RowToRead, found: Inspection) -> bool:
        if identity_of(found) != row.identity:
            return True
        if not row.in_place:
            return False
        try:
            now = SourceStat.of(look(row.path))
        except OSError:
            return True
        return not now.looks_like(row.source)
