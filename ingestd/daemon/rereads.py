"""Rows and files that have to be read again: changed bytes, Explicit VR copies, rejected files, a person's requests.

It finds them and hands their files to ``Admission``, which judges them as any other; re-encoding is done here.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path

import structlog

from ingestd.clocks import Now
from ingestd.daemon.admission import Admission
from ingestd.daemon.alarms import Alarms
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
    RequestedRow,
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
# A row of whose file nobody can say so long whether it is there is told.
_UNSEEN_SECONDS = 60.0
_UNSEEN = "files that wait to be read again cannot be looked at, and nobody can say whether they are gone"
_UNSEEN_STEP = (
    "let ingestd's user read in the folders that they lie in, and look at the disk or the share; an empty drop folder "
    "may be one that is not mounted: where it is the right one, put any file there. They are read again by themselves"
)


@dataclass(frozen=True, slots=True)
class _Reencoding:
    """A row whose Explicit VR copy is being written to ``destination``, relative to the spool."""

    row: RowToRead
    destination: str


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
    ) -> None:
        """Join the rooms; ``is_lost`` as for Admission."""
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
        self._reencoding: set[int] = set()
        self._reads: list[tuple[_Reencoding, Read]] = []
        self._lost: list[RowToRead] = []  # there is nothing to read any more
        self._failed: list[int] = []  # requests for files that are gone
        self._after_id = 0  # so far the rows have been taken up; those that cannot be read now let the others by
        # Rows of whose file nobody can say whether it is there, and since when: before this round of all, and in it.
        self._unseen_before: dict[int, float] = {}
        self._unseen: dict[int, float] = {}
        self._look_at = 0.0
        self._rejected_at = 0.0

    @property
    def is_idle(self) -> bool:
        return not (self._reencoding or self._reads)

    def next_at(self, now: Now) -> float:
        if not self._gate.is_open:
            # What nobody serves must not count as due: the loop would turn without a rest.
            return inf
        return now.mono if self._results_written() != self._results_known else self._look_at

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
        if now.mono < self._look_at:
            return
        self._look_at = now.mono + _LOOK_EVERY_SECONDS
        self._take_up_rows(now)
        self._take_up_requests()
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
            tx.on_commit(partial(self._committed, tuple(needless), tuple(others), now))

    def _committed(self, needless: tuple[str, ...], others: tuple[RowToRead, ...], now: Now) -> None:
        with suppress(OSError):  # a start removes what belongs to no row
            self._spool.discard(*needless)
        self._reencoding -= {work.row.delivery_id for work, _ in self._reads}
        self._reads, self._lost, self._failed = [], [], []
        for row in others:
            self._read_again(row, now)

    def _take_up_rows(self, now: Now) -> None:
        rows = queries.rows_to_read(self._ledger, limit=_AT_ONCE, after_id=self._after_id)
        self._after_id = rows[-1].delivery_id if len(rows) == _AT_ONCE else 0
        in_work = self._reencoding | self._admission.rows_in_hand
        for row in rows:
            if row.delivery_id in in_work:
                continue
            if row.pending_read is PendingRead.REREAD:
                self._read_again(row, now)
            else:
                self._reencode(row)
        if not self._after_id:
            self._tell_unseen(now)

    def _tell_unseen(self, now: Now) -> None:
        """Go by what this round has come to: a row that is gone or was let go of since the last is in it no more."""
        since = min(self._unseen.values(), default=inf)
        is_long = now.mono - since >= _UNSEEN_SECONDS
        self._alarms.set("not_read_again", note=_UNSEEN if is_long else "", next_step=_UNSEEN_STEP)
        self._unseen_before, self._unseen = self._unseen, {}

    def _read_again(self, row: RowToRead, now: Now) -> None:
        """Hand the row's file in, as it lies there now."""
        path = path_of(row.path) if row.in_place else row.path.removeprefix(f"{self._spool.path}/")
        candidate = None
        with suppress(OSError):  # nothing can be said of it now
            candidate = self._candidate_at(row, path)
        if candidate is not None:
            candidate = replace(candidate, final=True, priority=row.priority, dropped_as=row.relative_path)
            self._admission.adopt(candidate, Origin(adopted=True, row=row))
        elif self._is_lost(row.path):
            self._lost.append(row)
        else:
            self._unseen[row.delivery_id] = self._unseen_before.get(row.delivery_id, now.mono)

    def _candidate_at(self, row: RowToRead | RequestedRow, path: str) -> Candidate | None:
        """Look at a row's file; None when it is gone or no regular file any more. Raises OSError: nobody can say."""
        if not row.in_place:
            return self._spool.candidate_at(row.inbox, path)
        try:
            found = look(below_of(path, row.relative_path))
        except MISSING:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return Candidate(
            inbox=row.inbox,
            relative_path=row.relative_path,
            path=Path(path),
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
        self._reencoding.add(row.delivery_id)
        work = _Reencoding(row, str(destination.relative_to(self._spool.path)))
        self._reader_client.ask(
            Owner.REENCODING, work, lambda key: ReencodeJob(key=key, path=row.path, destination=str(destination))
        )

    def _take_up_requests(self) -> None:
        in_hand = self._admission.rows_in_hand
        for row in queries.requested_rows(self._ledger, limit=_AT_ONCE):
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
                if file.in_place or file.file_id in in_hand:
                    continue
                try:
                    candidate = self._spool.candidate_at(file.inbox, file.path)
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
