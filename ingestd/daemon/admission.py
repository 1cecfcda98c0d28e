"""Drop folder to row: what the inbox saw, what a reader found and where the file now lies, put together step by step.

Files come from the folders (``Inboxes.look``), or are handed in (``adopt``): what lies in the spool without a row, and
the files of rows that are to be read again. Whoever brings one, it goes the same way (``steps``), is judged by the same
table (``judgement``), and is made a row by the ledger as the ledger stands in that transaction.

``write`` makes of every step and its answer the next step; ``_enter`` begins these once they are durable, so that a
file is read, moved or compared only after the transaction that says so (G2). A transaction that fails leaves all steps
and answers as they were, and the next tick writes them again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TypeAlias

import structlog
from structlog.typing import FilteringBoundLogger

from ingestd.clocks import Now
from ingestd.daemon.in_place import Asked, InPlace, recognised
from ingestd.daemon.judgement import KILLS_MOST, Whole, died, judge, refused_as
from ingestd.daemon.mover import Mover
from ingestd.daemon.reader_client import Owner, ReaderClient
from ingestd.daemon.stage import Gate, Stage
from ingestd.daemon.steps import (
    Arrived,
    Comparing,
    Leave,
    Misplaced,
    Moving,
    Origin,
    Reading,
    Recorded,
    Rejection,
    Returned,
    Seen,
    Step,
    arrival_of,
    expect_of,
    refusal_of,
    seen_of,
    spool_path_of,
    where_it_lies,
)
from ingestd.fs.places import below_of, is_gone
from ingestd.inbox import Brought, Candidate, Expect, Inboxes, Spool, Stranded, Taken, WhyNot
from ingestd.ledger import Admitted, Judged, KnownSource, Ledger, NewCandidate, Transaction, moves, queries
from ingestd.lifecycle import Refusal, Sameness, State
from ingestd.reader import CompareJob, Inspection, InspectJob, Read, Verdict

# Files between "ready" and their row: bounds memory, and how much a crash leaves half-way.
_IN_HAND_MOST = 1024
# Between 'the spool is full' and the next try.
_FULL_WAIT_SECONDS = 5.0
# Between two times that the ledger is asked about files of which nobody can say yet whether it knows them.
_ASK_AGAIN_SECONDS = 0.25
# Between two tries to compare a file with the one that holds its identity.
_COMPARE_AGAIN_SECONDS = 5.0
# Between two looks at a file that left its folder for the spool, on a disk that fails.
_MISPLACED_AGAIN_SECONDS = 5.0
# A comparison that came to nothing so often (a file admitted although it is cut, say) is left to a person.
_COMPARISONS_MOST = 12

# What a step was waiting for; None: the time, or the place, to be admitted once more.
Answer: TypeAlias = Read | Brought | None
# The server's copy of a row (its path; see ``Verification.fetch``) for whoever compares with it.
Fetch: TypeAlias = Callable[[int, Callable[[Path | Sameness | None], object]], None]


@dataclass(slots=True)
class _Written:
    """What one transaction makes of the steps: the next ones by the files' keys, and what it is to write for them."""

    steps: dict[int, Step] = field(default_factory=dict)
    arrived: list[tuple[int, Arrived]] = field(default_factory=list)
    refused: list[tuple[int, Reading, Refusal]] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)  # rows whose file has killed a reader once more
    learnt: list[tuple[Seen, KnownSource | None]] = field(default_factory=list)  # in place, read again: which row it is


class Admission(Stage):
    """Everything between a file that looks finished and its row."""

    def __init__(
        self,
        *,
        inboxes: Inboxes,
        spool: Spool,
        mover: Mover[int],
        reader_client: ReaderClient,
        ledger: Ledger,
        gate: Gate,
        on_copied: Callable[[], object],
        fetch: Fetch,
        tells_gone: Callable[[str], bool],
    ) -> None:
        """While ``gate`` is shut nothing is taken from the folders. ``on_copied``: a copied source is to be removed."""
        self._inboxes = inboxes
        self._spool = spool
        self._mover = mover
        self._reader_client = reader_client
        self._ledger = ledger
        self._gate = gate
        self._on_copied = on_copied
        self._fetch = fetch
        self._tells_gone = tells_gone
        self._log = structlog.get_logger()
        self._keys = itertools.count(1)
        self._steps: dict[int, Step] = {}
        self._new: list[int] = []  # keys of files that were seen, and have no candidate row yet
        self._answers: list[tuple[int, Answer]] = []
        self._later: list[tuple[float, int]] = []  # when (``Now.mono``) to go on with which file
        self._kills: dict[int, int] = {}  # readers ended by reading a row's file again
        self._in_place = InPlace()
        self._asked: list[Candidate] = []  # the ledger has not said yet whether it knows them
        self._look_at = inf
        self._full_until = 0.0
        self._mono = 0.0
        self.taken_in = 0

    @property
    def is_idle(self) -> bool:
        return not self._steps

    @property
    def in_hand(self) -> int:  # type: ignore[override]
        return len(self._steps)

    def adopt(self, candidate: Candidate, origin: Origin) -> None:
        """Take a file that did not come from the folders; one that is in hand already stays what it is."""
        if not (candidate.in_spool and self.holds_path(candidate.relative_path)):
            self._hold(Seen(candidate=candidate, origin=origin))

    def _hold(self, seen: Seen) -> None:
        key = next(self._keys)
        self._steps[key] = seen
        self._new.append(key)

    def holds_path(self, path: str) -> bool:
        """Whether the file at this path in the spool is in hand."""
        return any(spool_path_of(step) == path for step in self._steps.values())

    def holds_row(self, entry_id: int) -> bool:
        """Whether the file of this row is being read again now."""
        return entry_id in self.rows_in_hand

    @property
    def rows_in_hand(self) -> set[int]:
        """The rows whose files are being read again now."""
        origins = [seen_of(step).origin for step in self._steps.values()]
        rows = {origin.row.entry_id for origin in origins if origin.row is not None}
        return rows | {origin.former for origin in origins if origin.former is not None}

    def moving_since(self) -> float:
        """Say since when (``Now.mono``) the file is on its way into the spool that is so for longest; inf: none is."""
        return min((step.since for step in self._steps.values() if isinstance(step, Moving)), default=inf)

    def collect(self, now: Now) -> None:
        """Take what the readers and the mover have, and what the folders have ready."""
        self._mono = now.mono
        for key, read in self._reader_client.take(Owner.ADMISSION):
            assert isinstance(key, int)
            self._answers.append((key, read))
        self._answers += self._mover.collect()
        due = [key for at, key in self._later if at <= now.mono]
        self._later = [(at, key) for at, key in self._later if at > now.mono]
        for key in due:
            step = self._steps[key]
            if isinstance(step, Misplaced):
                self._look_for(key, step)
            else:
                self._answers.append((key, None))
        self._look(now)

    def _look(self, now: Now) -> None:
        room = _IN_HAND_MOST - len(self._steps)
        if not self._gate.is_open or now.mono < self._full_until:
            room = 0
        look = self._inboxes.look(now=now.mono, room=max(0, room))
        for candidate in look.ready:
            self._hold(Seen(candidate=candidate, doubts=self._in_place.doubts_of(candidate)))
        self._asked += look.asked
        if self._asked:
            self._asked = self._ask_ledger(self._asked)
        self._look_at = inf if look.next_at is None else look.next_at
        if room <= 0 and (look.next_at is None or look.next_at <= now.mono):
            # Full hands: the readers and the mover wake us; a full disk is looked at again by the clock.
            self._look_at = self._full_until if now.mono < self._full_until else inf

    def next_at(self, now: Now) -> float:
        if self._new or self._answers:
            return now.mono
        ask_at = self._mono + _ASK_AGAIN_SECONDS if self._asked else inf
        return min(self._look_at, ask_at, *(at for at, _ in self._later))

    def _ask_ledger(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Tell the inboxes which files some row knows; gives back those that nobody can say it of yet."""
        by_inbox: dict[str, list[Candidate]] = {}
        for candidate in candidates:
            by_inbox.setdefault(candidate.inbox, []).append(candidate)
        answer = Asked()
        for inbox, here in by_inbox.items():
            rows = queries.known_sources(self._ledger, inbox, [candidate.relative_path for candidate in here])
            for candidate in here:
                known = rows.get(candidate.relative_path, ())
                if candidate.in_place:
                    self._in_place.judge(candidate, known, answer, mono=self._mono)
                elif any(row.source == candidate.source and not row.source_removed for row in known):
                    answer.known.append(candidate)
        put_off = frozenset(answer.put_off)
        self._inboxes.answer_known([each for each in candidates if each not in put_off], answer.known)
        return answer.put_off

    def write(self, tx: Transaction, now: Now) -> None:
        """Make the next step of every file that was seen or has its answer, and write what goes with it."""
        if not (self._new or self._answers):
            return
        out = _Written()
        self._put_down(tx, out, now)
        for key, answer in self._answers:
            self._advance(key, answer, tx, out, now)
        self._admit(tx, out, now)
        self._refuse(tx, out, now)
        moves.drop_candidates(tx, out.dropped)
        tx.on_commit(partial(self._enter, out, now))

    def _put_down(self, tx: Transaction, out: _Written, now: Now) -> None:
        """Put down which files are about to be read, before they are; a row's file has its row."""
        fresh: list[tuple[int, Seen]] = []
        for key in self._new:
            seen = seen_of(self._steps[key])
            if seen.origin.row is None:
                fresh.append((key, seen))
            else:
                out.steps[key] = Reading(seen=seen, candidate_id=None)
        candidates = [
            NewCandidate(inbox=seen.candidate.inbox, relative_path=seen.relative_path, source=seen.candidate.source)
            for _, seen in fresh
        ]
        ids = moves.add_candidates(tx, candidates, now=now.utc) if candidates else []
        out.steps |= {
            key: Reading(seen=seen, candidate_id=candidate_id)
            for (key, seen), candidate_id in zip(fresh, ids, strict=True)
        }

    def _advance(self, key: int, answer: Answer, tx: Transaction, out: _Written, now: Now) -> None:
        """Make the next step of a step and its answer."""
        step = self._steps[key]
        if isinstance(step, Reading):
            assert isinstance(answer, Read)
            self._was_read(key, step, answer, tx, out, now)
        elif isinstance(step, Moving):
            assert isinstance(answer, Brought)
            self._was_moved(key, step, answer, out)
        elif isinstance(step, Comparing):
            assert isinstance(answer, Read)
            self._was_compared(key, step, answer, out)
        else:
            assert isinstance(step, Arrived)
            out.arrived.append((key, step))

    def _was_read(self, key: int, step: Reading, read: Read, tx: Transaction, out: _Written, now: Now) -> None:
        seen, found = step.seen, read.inspection
        verdict: Whole | Rejection | Leave
        if read.died:
            if self._count_kill(step, tx, out) < KILLS_MOST:
                out.steps[key] = step
                return
            verdict, found = died(seen.origin), None
        elif seen.doubts and found is not None and self._is_what_it_was(step, found, tx, out):
            verdict = Leave.DONE
        else:
            verdict = judge(seen, read)
        if isinstance(verdict, Leave):
            self._return(key, step, verdict, out)
            if (row := seen.origin.row) is not None and self._is_lost(seen):
                moves.read_no_more(tx, row.entry_id, now=now.utc)
            return
        is_whole = isinstance(verdict, Whole)
        found = verdict.found if isinstance(verdict, Whole) else found
        # In place, or a row's own: it lies where it is to stay. One that a person asked about, and that is not taken,
        # lies in rejected/ already, and its row is told.
        stays = seen.candidate.in_place or seen.origin.row is not None or (seen.origin.requested and not is_whole)
        if not stays:
            refused = None if isinstance(verdict, Whole) else verdict
            out.steps[key] = Moving(reading=step, found=found, refused=refused, since=now.mono)
        elif isinstance(verdict, Whole):
            taken = where_it_lies(seen, verdict.found)
            arrival = arrival_of(step, verdict.found, self._ledger, taken)
            out.arrived.append((key, Arrived(reading=step, found=verdict.found, arrival=arrival)))
        else:
            out.refused.append((key, step, refusal_of(step, found, verdict, where_it_lies(seen, found))))

    def _count_kill(self, step: Reading, tx: Transaction, out: _Written) -> int:
        if step.candidate_id is not None:
            return moves.candidate_died(tx, step.candidate_id)
        row = step.seen.origin.row
        assert row is not None, "a file without a candidate row has a row"
        out.killed.append(row.entry_id)
        return self._kills.get(row.entry_id, 0) + 1

    def _is_what_it_was(self, step: Reading, found: Inspection, tx: Transaction, out: _Written) -> bool:
        """Whether a row knows this file in place, which was only read again for its new inode or ctime."""
        if found.verdict in (Verdict.CHANGED, Verdict.UNREADABLE):
            return False
        seen = step.seen
        row = recognised(seen, found, refused_as(seen, found.verdict))
        out.learnt.append((seen, row))
        if row is not None:
            ctime_ns = where_it_lies(seen, found).ctime_ns
            moves.refresh_source(tx, row.entry_id, source=seen.candidate.source, ctime_ns=ctime_ns)
        return row is not None

    def _was_moved(self, key: int, step: Moving, brought: Brought, out: _Written) -> None:
        reading, inbox = step.reading, step.reading.seen.candidate.inbox
        if isinstance(brought, Taken):
            if step.refused is not None:
                out.refused.append((key, reading, refusal_of(reading, step.found, step.refused, brought)))
            else:
                assert step.found is not None, "what is taken was read"
                arrival = arrival_of(reading, step.found, self._ledger, brought)
                out.arrived.append((key, Arrived(reading=reading, found=step.found, arrival=arrival)))
            return
        if isinstance(brought, Stranded):
            self._log.error("inbox.stranded", inbox=inbox, note=brought.note)
            self._mislay(key, reading, brought.path, out)
            return
        if brought.why not in (WhyNot.GONE, WhyNot.CHANGED):
            self._log.error("inbox.not_taken", inbox=inbox, why=brought.why.value, note=brought.note)
        # One file that cannot be moved (a folder that may not be written) is counted as such and tried again with
        # growing waits; it holds up no other.
        leave = {WhyNot.GONE: Leave.DONE, WhyNot.ERROR: Leave.UNREADABLE, WhyNot.NO_ROOM: Leave.UNREADABLE}
        self._return(key, reading, leave.get(brought.why, Leave.AGAIN), out, is_full=brought.why is WhyNot.NO_SPACE)

    def _was_compared(self, key: int, step: Comparing, read: Read, out: _Written) -> None:
        arrived, holder_id = step.arrived, step.holder.entry_id
        if read.lost == "ours":
            # Written to after it was read: begun anew.
            seen, reading = arrived.reading.seen, arrived.reading
            if seen.candidate.in_place or seen.origin.row is not None:
                self._return(key, reading, Leave.AGAIN, out)
            else:
                self._mislay(key, reading, arrived.arrival.path, out)
        elif read.lost or (read.waits and arrived.comparisons < _COMPARISONS_MOST):
            # Nothing was learnt. From their file it goes on to the server's copy, from that to their file.
            distrusts = 0 if step.copy else holder_id
            out.steps[key] = replace(arrived, comparisons=arrived.comparisons + 1, distrusts=distrusts)
        else:
            # Files that cannot be compared are kept both, for a person: never thrown together on a guess.
            sameness = Sameness(read.sameness) if read.sameness else Sameness.OTHER
            judged = Judged(holder_id=holder_id, sameness=sameness)
            out.arrived.append((key, replace(arrived, judged=judged)))

    def _return(self, key: int, reading: Reading, leave: Leave, out: _Written, *, is_full: bool = False) -> None:
        """Let go of a file of which there is no verdict."""
        seen = reading.seen
        if reading.candidate_id is not None:
            out.dropped.append(reading.candidate_id)
        # A row's file, a person's request, and what changed in rejected/ are simply taken up again.
        is_silent = seen.origin.former is not None or seen.origin.row is not None
        out.steps[key] = Returned(seen=seen, told=None if is_silent else leave, is_full=is_full)

    def _mislay(self, key: int, reading: Reading, path: str, out: _Written) -> None:
        if reading.candidate_id is not None:
            out.dropped.append(reading.candidate_id)
        out.steps[key] = Misplaced(seen=reading.seen, path=path)

    def _admit(self, tx: Transaction, out: _Written, now: Now) -> None:
        """Have the ledger say, as it stands now, what becomes of the files that arrived."""
        fresh = [(key, step) for key, step in out.arrived if step.reading.seen.origin.row is None]
        judged = {place: step.judged for place, (_, step) in enumerate(fresh) if step.judged is not None}
        rows = moves.admit(tx, [step.arrival for _, step in fresh], judged=judged, now=now.utc) if fresh else []
        for (key, step), admitted in zip(fresh, rows, strict=True):
            self._was_admitted(key, step, admitted, tx, out, now)
        for key, step in out.arrived:
            if (row := step.reading.seen.origin.row) is not None:
                admitted = moves.reread(tx, row.entry_id, step.arrival, judged=step.judged, now=now.utc)
                self._was_admitted(key, step, admitted, tx, out, now)

    def _was_admitted(
        self, key: int, step: Arrived, admitted: Admitted, tx: Transaction, out: _Written, now: Now
    ) -> None:
        seen = step.reading.seen
        if admitted.needs_compare and admitted.holder is not None:
            out.steps[key] = Comparing(arrived=step, holder=admitted.holder)
        elif admitted.entry_id is None or admitted.state is None:
            # The row that it was read again for is elsewhere by now.
            out.steps[key] = Returned(seen=seen, told=None)
        else:
            if seen.origin.former is not None:
                moves.readmitted(tx, seen.origin.former, admitted.entry_id, now=now.utc)
            copied = not step.arrival.source_removed
            out.steps[key] = Recorded(seen=seen, entry_id=admitted.entry_id, state=admitted.state, copied=copied)

    def _refuse(self, tx: Transaction, out: _Written, now: Now) -> None:
        fresh: list[tuple[int, Reading, Refusal]] = []
        for key, reading, refusal in out.refused:
            origin = reading.seen.origin
            if origin.row is not None:
                is_moved = moves.reread_refused(tx, origin.row.entry_id, refusal, now=now.utc)
                self._record_refused(key, reading, refusal, origin.row.entry_id if is_moved else None, out)
            elif origin.requested and origin.former is not None:
                moves.request_failed(tx, origin.former, note=refusal.note, now=now.utc)
                self._return(key, reading, Leave.DONE, out)
            else:
                fresh.append((key, reading, refusal))
        ids = moves.refuse(tx, [refusal for _, _, refusal in fresh], now=now.utc) if fresh else []
        for (key, reading, refusal), entry_id in zip(fresh, ids, strict=True):
            if (former := reading.seen.origin.former) is not None:
                moves.readmitted(tx, former, entry_id, now=now.utc)
            self._record_refused(key, reading, refusal, entry_id, out)

    def _record_refused(
        self, key: int, reading: Reading, refusal: Refusal, entry_id: int | None, out: _Written
    ) -> None:
        if entry_id is None:
            out.steps[key] = Returned(seen=reading.seen, told=None)
            return
        out.steps[key] = Recorded(
            seen=reading.seen,
            entry_id=entry_id,
            state=State.REJECTED,
            reason=refusal.reason.value,
            copied=not refusal.source_removed,
        )

    def _enter(self, out: _Written, now: Now) -> None:
        """The steps are durable: forget the answers, and begin what each step waits for."""
        self._mono = now.mono
        self._new, self._answers = [], []
        for entry_id in out.killed:
            self._kills[entry_id] = self._kills.get(entry_id, 0) + 1
        for seen, known in out.learnt:
            self._learn(seen.candidate, known)
        former = {key: self._steps[key] for key in out.steps}
        self._steps |= out.steps
        # Bound once for all: structlog's own proxy looks the configuration up anew for every event.
        log = self._log.bind()
        reading: list[int] = []
        moving: dict[int, Moving] = {}
        for key, step in out.steps.items():
            _let_copy_go(former[key])
            if isinstance(step, (Returned, Recorded)) and (row := step.seen.origin.row) is not None:
                self._kills.pop(row.entry_id, None)
            if isinstance(step, Reading):
                reading.append(key)
            elif isinstance(step, Moving):
                moving[key] = step
            elif isinstance(step, Comparing):
                self._compare(key, step)
            elif isinstance(step, Arrived):
                self._wait(key, step)
            elif isinstance(step, Misplaced):
                self._look_for(key, step)
            elif isinstance(step, Returned):
                self._give_back(key, step)
            elif isinstance(step, Recorded):
                self._finish(key, step, log)
        self._reader_client.ask_all(Owner.ADMISSION, reading, self._inspect_job)
        self._move(moving)

    def _learn(self, candidate: Candidate, row: KnownSource | None) -> None:
        self._in_place.learn(candidate, row)
        self._inboxes.ignore_inodes(candidate.inbox, ignored=self._in_place.ignores_inodes(candidate.source.device))

    def _inspect_job(self, job_key: int, key: int) -> InspectJob:
        candidate = seen_of(self._steps[key]).candidate
        # A copy from another filesystem is fsynced where it lands; what stays in place is not ours to sync.
        durable = not candidate.in_place and self._spool.is_here(candidate.source)
        patient = not candidate.final
        return InspectJob(key=job_key, path=candidate.place, expect=candidate.source, durable=durable, patient=patient)

    def _move(self, moving: Mapping[int, Moving]) -> None:
        def items(steps: Iterable[tuple[int, Moving]]) -> list[tuple[int, Candidate, Expect]]:
            return [(key, step.reading.seen.candidate, expect_of(step)) for key, step in steps]

        self._mover.take_in(items((key, step) for key, step in moving.items() if step.refused is None))
        self._mover.set_aside(items((key, step) for key, step in moving.items() if step.refused is not None))

    def _compare(self, key: int, step: Comparing) -> None:
        arrived, holder = step.arrived, step.holder
        # A file in place that was altered lies where its former row says that its own lies.
        if holder.path is not None and holder.path != self._reach(arrived) and arrived.distrusts != holder.entry_id:
            self._ask_comparison(key, arrived, holder.path, holder.content.digest)
        elif holder.state is State.CONFIRMED:
            # Its file was removed since, or is another one by now: the server's copy stands for it.
            self._fetch(holder.entry_id, partial(self._compare_with_copy, key))
        else:
            # It is read again before it is sent, or asked about: then it can be compared with, or its place is free.
            self._wait(key, replace(arrived, distrusts=0))

    def _compare_with_copy(self, key: int, copy: Path | Sameness | None) -> None:
        step = self._steps[key]
        assert isinstance(step, Comparing), "a copy was wanted to compare it with"
        if isinstance(copy, Path):
            self._steps[key] = replace(step, copy=copy)
            self._ask_comparison(key, step.arrived, str(copy))
            return
        judged = Judged(holder_id=step.holder.entry_id, sameness=copy) if copy is not None else step.arrived.judged
        self._steps[key] = replace(step.arrived, judged=judged)
        self._answers.append((key, None))

    def _ask_comparison(self, key: int, arrived: Arrived, theirs: str, digest: str = "") -> None:
        ours, our_digest = self._reach(arrived), arrived.arrival.content.digest

        def job(job_key: int, _: int) -> CompareJob:
            return CompareJob(key=job_key, ours=ours, theirs=theirs, our_digest=our_digest, their_digest=digest)

        self._reader_client.ask_all(Owner.ADMISSION, [key], job)

    def _wait(self, key: int, step: Step, seconds: float = _COMPARE_AGAIN_SECONDS) -> None:
        self._steps[key] = step
        self._later.append((self._mono + seconds, key))

    def _look_for(self, key: int, step: Misplaced) -> None:
        """Go on with a file that left its folder and lies in the spool, as soon as it can be looked at."""
        seen, was = step.seen, step.seen.candidate
        try:
            candidate = self._spool.candidate_at(was.inbox, step.path)
        except OSError:
            self._wait(key, step, _MISPLACED_AGAIN_SECONDS)
            return
        del self._steps[key]
        if not seen.origin.adopted:
            self._inboxes.done(was)
        if candidate is not None:
            candidate = replace(
                candidate, dropped_as=seen.relative_path, final=was.final, was_admitted=was.was_admitted
            )
            self.adopt(candidate, replace(seen.origin, adopted=True))

    def _give_back(self, key: int, step: Returned) -> None:
        del self._steps[key]
        if step.is_full:
            self._full_until = self._mono + _FULL_WAIT_SECONDS
        candidate, told = step.seen.candidate, step.told
        if told is not None and step.seen.origin.adopted:
            # It lies in the spool and was never the inboxes' to follow.
            self._inboxes.observe(candidate)
        elif told is not None:
            tell = {
                Leave.AGAIN: self._inboxes.again,
                Leave.INCOMPLETE: self._inboxes.incomplete,
                Leave.UNREADABLE: self._inboxes.unreadable,
                Leave.DONE: self._inboxes.done,
            }
            tell[told](candidate)

    def _finish(self, key: int, step: Recorded, log: FilteringBoundLogger) -> None:
        del self._steps[key]
        seen, origin = step.seen, step.seen.origin
        inbox = seen.candidate.inbox
        if step.copied:
            self._on_copied()
        if origin.row is None:
            self.taken_in += 1
            if not origin.adopted:
                self._inboxes.done(seen.candidate)
        if step.state is State.REJECTED:
            log.warning("inbox.rejected", entry_id=step.entry_id, inbox=inbox, reason=step.reason)
        elif step.state is State.CONFLICT and origin.row is None:
            log.warning("inbox.conflict_found", entry_id=step.entry_id, inbox=inbox)
        elif origin.row is None:
            log.debug("inbox.admitted", entry_id=step.entry_id, inbox=inbox, state=step.state)

    def _reach(self, arrived: Arrived) -> str:
        """Say how the file of an arrival is reached (a place)."""
        arrival = arrived.arrival
        if arrival.in_place:
            return below_of(arrival.path, arrival.relative_path)
        return f"{self._spool.path}/{arrival.path}"

    def _is_lost(self, seen: Seen) -> bool:
        """Whether there is nothing to read any more: whoever sends it finds that too, and has the server asked."""
        place = seen.candidate.place
        return is_gone(place) and self._tells_gone(place)


def _let_copy_go(step: Step) -> None:
    if isinstance(step, Comparing) and step.copy is not None:
        step.copy.unlink(missing_ok=True)
