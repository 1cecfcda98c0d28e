"""Rows and files that have to be read again: changed bytes, Explicit VR copies, rejected files, a person's wishes."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from ingestd.clocks import Now
from ingestd.daemon.hand import KILLS_MOST, Hand, content_of, identity_of, reason_of, source_of
from ingestd.daemon.intake import Intake
from ingestd.daemon.posting import Posting
from ingestd.daemon.reader_client import Owner, ReaderClient
from ingestd.daemon.stage import Gate, Stage
from ingestd.fs.places import MISSING, below_of, is_gone, look, path_of
from ingestd.inbox import Candidate, Spool
from ingestd.ledger import (
    Holder,
    Judged,
    Ledger,
    OperatorRequest,
    PendingRead,
    RequestedRow,
    RowToRead,
    Transaction,
    moves,
    queries,
)
from ingestd.lifecycle import Arrival, Reason, Refusal, Sameness, SourceStat
from ingestd.reader import CompareJob, Inspection, InspectJob, Read, ReencodeJob, Verdict

_LOOK_EVERY_SECONDS = 2.0
_REJECTED_EVERY_SECONDS = 30.0
_AT_ONCE = 64
_ROTTEN = (
    "it holds other bytes than were taken in, and nobody has written to it since: its disk has altered them, so that it"
    " is not sent; drop it again from its source, and have the disk looked at"
)
_ADMISSIBLE = frozenset({Verdict.WHOLE, Verdict.ZEROS})


class _Work:
    """One row in work; ``destination`` is where its Explicit VR copy is written, relative to the spool."""

    __slots__ = ("arrival", "destination", "holder_id", "need")

    def __init__(self, need: RowToRead) -> None:
        self.need = need
        self.destination = ""
        self.arrival: Arrival | None = None
        self.holder_id: int | None = None


class Rework(Stage):
    """Carries out what rows ask of the readers."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        desk: ReaderClient,
        spool: Spool,
        intake: Intake,
        gate: Gate,
        posting: Posting,
        tells_gone: Callable[[str], bool],
    ) -> None:
        """Join the rooms; ``tells_gone`` as for Posting."""
        self._tells_gone = tells_gone
        self._ledger = ledger
        self._desk = desk
        self._spool = spool
        self._intake = intake
        self._gate = gate
        self._posting = posting
        self._results_known = posting.results_written
        self._log = structlog.get_logger()
        self._in_work: set[int] = set()
        self._reads: list[tuple[_Work, Read]] = []
        self._acts: list[Callable[[], object]] = []
        self._failed_wishes: list[int] = []
        self._kills: dict[int, int] = {}  # readers ended by reading a row's file again
        self._after_id = 0  # so far the rows have been taken up; those that cannot be read now let the others by
        self._look_at = 0.0
        self._rejected_at = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no row is being read again."""
        return not (self._in_work or self._reads)

    @property
    def in_work(self) -> frozenset[int]:
        """The rows whose files are being read again."""
        return frozenset(self._in_work)

    @property
    def has_work(self) -> bool:
        """Whether a transaction is wanted."""
        return bool(self._reads or self._failed_wishes)

    def next_at(self, now: Now) -> float:  # noqa: ARG002
        return self._look_at

    def collect(self, now: Now) -> None:
        """Collect what was read, and take up new wants."""
        # What is being re-encoded must not be taken for an orphan.
        if not self._gate.is_open:
            return
        if self._posting.results_written != self._results_known:
            # A post may just have asked for one.
            self._results_known = self._posting.results_written
            self._look_at = 0.0
        for context, read in self._desk.take(Owner.REWORK):
            assert isinstance(context, _Work)
            self._reads.append((context, read))
        if now.mono < self._look_at:
            return
        self._look_at = now.mono + _LOOK_EVERY_SECONDS
        self._take_up_rows()
        self._take_up_wishes()
        if now.mono >= self._rejected_at:
            self._rejected_at = now.mono + _REJECTED_EVERY_SECONDS
            self._look_at_rejected()

    def write(self, tx: Transaction, now: Now) -> None:
        """Write what reading again has shown."""
        if not self.has_work:
            return
        tx.on_commit(self._committed)
        self._acts = []
        for work, read in self._reads:
            if work.need.pending_read is PendingRead.REENCODE:
                self._settle_reencoded(work, read, tx, now)
            elif work.holder_id is not None:
                self._settle_compared(work, work.holder_id, read, tx, now)
            else:
                self._settle_reread(work, read, tx, now)
        for entry_id in self._failed_wishes:
            moves.request_failed(tx, entry_id, note="its file is no longer there", now=now.utc)

    def _committed(self) -> None:
        """The transaction is durable."""
        self._reads, self._failed_wishes = [], []
        acts, self._acts = self._acts, []
        for act in acts:
            act()

    def _take_up_rows(self) -> None:
        needs = queries.rows_to_read(self._ledger, limit=_AT_ONCE, after_id=self._after_id)
        self._after_id = needs[-1].entry_id if len(needs) == _AT_ONCE else 0
        for need in needs:
            if need.entry_id in self._in_work:
                continue
            work = _Work(need)
            if need.pending_read is PendingRead.REREAD:
                self._in_work.add(need.entry_id)
                self._ask_inspect(work)
                continue
            try:
                destination = self._spool.new_explicit(need.inbox)
            except OSError as error:
                self._log.error("spool.not_written", error=type(error).__name__)
                continue
            self._in_work.add(need.entry_id)
            work.destination = str(destination.relative_to(self._spool.path))
            self._ask_reencode(work, need.path, str(destination))

    def _ask_reencode(self, work: _Work, path: str, destination: str) -> None:
        self._desk.ask(Owner.REWORK, work, lambda key: ReencodeJob(key=key, path=path, destination=destination))

    def _ask_inspect(self, work: _Work) -> None:
        path = work.need.path
        durable = not work.need.in_place
        self._desk.ask(Owner.REWORK, work, lambda key: InspectJob(key=key, path=path, durable=durable))

    def _take_up_wishes(self) -> None:
        for wished in queries.requested_rows(self._ledger, limit=_AT_ONCE):
            if self._intake.holds(wished.entry_id):
                continue
            try:
                if wished.in_place:
                    candidate = _in_place_candidate(wished)
                else:
                    candidate = self._spool.candidate_at(wished.inbox, wished.path)
            except OSError:
                continue  # nothing can be said of it now
            if candidate is None:
                self._failed_wishes.append(wished.entry_id)
                continue
            self._intake.adopt(
                Hand(
                    candidate=candidate,
                    former=wished.entry_id,
                    wished=True,
                    admit_anyway=wished.request is OperatorRequest.ADMIT_ANYWAY,
                )
            )

    def _look_at_rejected(self) -> None:
        """Take what grew or was mended in ``rejected/`` as new (a writer may hold the file open across our rename)."""
        after = 0
        while files := queries.rejected_files(self._ledger, after_id=after):
            for file in files:
                after = file.entry_id
                if file.in_place or self._intake.holds(file.entry_id):
                    continue
                try:
                    candidate = self._spool.candidate_at(file.inbox, file.path)
                except OSError:
                    continue
                if candidate is not None and not candidate.source.looks_like(file.source):
                    candidate = replace(candidate, was_admitted=file.reason is Reason.CHANGED)
                    self._intake.adopt(Hand(candidate=candidate, former=file.entry_id))

    def _settle_reread(self, work: _Work, read: Read, tx: Transaction, now: Now) -> None:
        need = work.need
        found = read.inspection
        self._acts.append(partial(self._count_kills, need.entry_id, killed=read.died))
        if read.died and self._kills.get(need.entry_id, 0) + 1 >= KILLS_MOST:
            note = f"it changed after it was admitted, and reading it ended {KILLS_MOST} reader processes"
            self._reject(need, need.source, Reason.KILLED_READER, note, tx, now)
            return
        if found is None or found.verdict in (Verdict.CHANGED, Verdict.UNREADABLE):
            if self._is_lost(need):
                moves.read_no_more(tx, need.entry_id, now=now.utc)
            self._acts.append(partial(self._in_work.discard, need.entry_id))
            return
        identity = identity_of(found)
        if not need.in_place and found.ctime_ns == need.ctime_ns and not _holds_the_same(found, need):
            self._reject(need, source_of(found), Reason.CHANGED, _ROTTEN, tx, now)
            return
        if found.verdict not in _ADMISSIBLE or identity is None:
            reason = Reason.NO_UIDS if found.verdict in _ADMISSIBLE else reason_of(found.verdict, was_admitted=True)
            note = f"it changed after it was admitted: {found.reason_text}"
            self._reject(need, source_of(found), reason, note, tx, now)
            return
        work.arrival = Arrival(
            candidate_id=None,
            inbox=need.inbox,
            relative_path=need.relative_path,
            source=source_of(found),
            path=self._row_path(need),
            in_place=need.in_place,
            source_removed=True,
            identity=identity,
            sop_class_uid=found.sop_class_uid,
            content=content_of(found),
            priority=need.priority,
            modality=found.modality,
            station=found.station,
            patient_hash=self._ledger.search_hash("patient", found.patient_id),
            accession_hash=self._ledger.search_hash("accession", found.accession_number),
            notes=found.notes,
            ctime_ns=found.ctime_ns,
        )
        admitted = moves.reread(tx, need.entry_id, work.arrival, now=now.utc)
        if admitted.needs_compare and admitted.holder is not None and admitted.holder.path is not None:
            self._acts.append(partial(self._ask_compare, work, admitted.holder))
        elif admitted.needs_compare and admitted.holder is not None:
            judged = Judged(holder_id=admitted.holder.entry_id, sameness=Sameness.OTHER)
            moves.reread(tx, need.entry_id, work.arrival, judged=judged, now=now.utc)
            self._acts.append(partial(self._in_work.discard, need.entry_id))
        else:
            self._acts.append(partial(self._in_work.discard, need.entry_id))

    def _reject(
        self, need: RowToRead, source: SourceStat, reason: Reason, note: str, tx: Transaction, now: Now
    ) -> None:
        refusal = Refusal(
            candidate_id=None,
            inbox=need.inbox,
            relative_path=need.relative_path,
            source=source,
            path=self._row_path(need),
            in_place=need.in_place,
            reason=reason,
            note=note,
            priority=need.priority,
        )
        if moves.reread_refused(tx, need.entry_id, refusal, now=now.utc):
            self._log.warning("inbox.rejected", entry_id=need.entry_id, inbox=need.inbox, reason=reason.value)
        self._acts.append(partial(self._in_work.discard, need.entry_id))

    def _count_kills(self, entry_id: int, *, killed: bool) -> None:
        if killed:
            self._kills[entry_id] = self._kills.get(entry_id, 0) + 1
        else:
            self._kills.pop(entry_id, None)

    def _ask_compare(self, work: _Work, holder: Holder) -> None:
        # Only now: a transaction that failed must find the work as it was, or the reading passes for a comparison.
        work.holder_id = holder.entry_id
        assert work.arrival is not None
        assert holder.path is not None, "it is compared with only where it has a file"
        ours, theirs = work.need.path, holder.path
        our_digest, their_digest = work.arrival.content.digest, holder.content.digest
        self._desk.ask(
            Owner.REWORK,
            work,
            lambda key: CompareJob(key=key, ours=ours, theirs=theirs, our_digest=our_digest, their_digest=their_digest),
        )

    def _settle_compared(self, work: _Work, holder_id: int, read: Read, tx: Transaction, now: Now) -> None:
        assert work.arrival is not None
        if read.lost == "ours":
            # Written to once more: the row still asks to be read.
            self._acts.append(partial(self._in_work.discard, work.need.entry_id))
            return
        judged = Judged(holder_id=holder_id, sameness=Sameness(read.sameness) if read.sameness else Sameness.OTHER)
        moves.reread(tx, work.need.entry_id, work.arrival, judged=judged, now=now.utc)
        self._acts.append(partial(self._in_work.discard, work.need.entry_id))

    def _settle_reencoded(self, work: _Work, read: Read, tx: Transaction, now: Now) -> None:
        need = work.need
        found = read.inspection
        if found is not None and found.verdict in _ADMISSIBLE and self._is_of_another_file(need, found):
            # The file in place is not the one that was admitted: it is read again before anything of it is sent.
            self._acts.append(partial(self._spool.discard, work.destination))
            self._acts.append(partial(self._ask_inspect, _Work(replace(need, pending_read=PendingRead.REREAD))))
            return
        if found is not None and found.verdict in _ADMISSIBLE:
            content, ctime_ns = content_of(found), found.ctime_ns
            moves.attach_reencoded(
                tx, need.entry_id, path=work.destination, content=content, ctime_ns=ctime_ns, now=now.utc
            )
        elif self._is_lost(need):
            moves.read_no_more(tx, need.entry_id, now=now.utc)
            self._acts.append(partial(self._spool.discard, work.destination))
        elif read.waits or is_gone(need.path):
            # Nothing is known: the row still asks, and is taken up again.
            self._acts.append(partial(self._spool.discard, work.destination))
        else:
            why = read.refused or (found.reason_text if found else "the reader ended while re-encoding it")
            note = f"the server refused its encoding, and it cannot be re-encoded to Explicit VR Little Endian: {why}"
            moves.reencode_failed(tx, need.entry_id, note=note, now=now.utc)
            self._acts.append(partial(self._spool.discard, work.destination))
        self._acts.append(partial(self._in_work.discard, need.entry_id))

    def _is_of_another_file(self, need: RowToRead, found: Inspection) -> bool:
        if identity_of(found) != need.identity:
            return True
        if not need.in_place:
            return False
        try:
            now = SourceStat.of(look(need.path))
        except OSError:
            return True
        return not now.looks_like(need.source)

    def _is_lost(self, need: RowToRead) -> bool:
        """Whether there is nothing to read any more: whoever sends it finds that too, and has the server asked."""
        return is_gone(need.path) and self._tells_gone(need.path)

    def _row_path(self, need: RowToRead) -> str:
        return path_of(need.path) if need.in_place else need.path.removeprefix(f"{self._spool.path}/")


def _holds_the_same(found: Inspection, need: RowToRead) -> bool:
    return (found.meta_digest, found.digest) == (need.content.meta_digest, need.content.digest)


def _in_place_candidate(wished: RequestedRow) -> Candidate | None:
    """Look at a rejected file that stays in its inbox; None when it is gone or no regular file any more."""
    try:
        found = look(below_of(wished.path, wished.relative_path))
    except MISSING:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return Candidate(
        inbox=wished.inbox,
        relative_path=wished.relative_path,
        path=Path(wished.path),
        source=SourceStat.of(found),
        final=True,
        priority=wished.priority,
        in_place=True,
    )
