"""The next steps of the files in hand, made in one transaction: what a reader or the mover came to.

One ``NextSteps`` lives as long as its transaction. It is given every step that has its answer, and writes what goes
with the next one; ``Admission`` begins these once the transaction is durable, and makes them anew where it was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

import structlog

from ingestd.clocks import Now
from ingestd.daemon.in_place import doubts, recognised
from ingestd.daemon.judgement import ADMISSIBLE, KILLS_MOST, Whole, died, judge, refused_as
from ingestd.daemon.steps import (
    Arrived,
    Misplaced,
    Moving,
    Noted,
    Origin,
    Reading,
    Recorded,
    Rejection,
    Returned,
    Routing,
    Seen,
    Step,
    arrival_of,
    refusal_of,
    target_of,
    where_it_lies,
)
from ingestd.inbox import Brought, Leave, Stranded, Taken, WhyNot
from ingestd.ledger import Admitted, KnownSource, Ledger, NewCandidate, Transaction, moves
from ingestd.lifecycle import Refusal, State
from ingestd.reader import Inspection, Read, Verdict

# What a step was waiting for; None: it is not where it was looked for.
Answer: TypeAlias = Read | Brought | None


class NextSteps:
    """``steps`` are the next ones by the files' keys, to be begun once the transaction is durable.

    ``killed`` are the rows whose file has killed a reader once more; ``learnt`` says of files in place that were read
    again for their inode which row each is, or that it is none.
    """

    def __init__(
        self,
        tx: Transaction,
        now: Now,
        *,
        ledger: Ledger,
        routing: Routing,
        kills: Mapping[int, int],
        is_lost: Callable[[str], bool],
    ) -> None:
        self._tx = tx
        self._now = now
        self._ledger = ledger
        self._routing = routing
        self._kills = kills
        self._is_lost = is_lost
        self._log = structlog.get_logger()
        self.steps: dict[int, Step] = {}
        self.killed: list[int] = []
        self.learnt: list[tuple[Seen, KnownSource | None]] = []
        self._arrived: list[tuple[int, Arrived]] = []
        self._refused: list[tuple[int, Noted, Refusal]] = []
        self._dropped: list[int] = []

    def put_down(self, files: Mapping[int, Seen]) -> None:
        """Put down which files are about to be read, before they are; a row's file has its row."""
        fresh: list[tuple[int, Seen]] = []
        stay = [seen.candidate for seen in files.values() if seen.candidate.in_place and not seen.origin.adopted]
        may_be = doubts(self._tx, stay) if stay else {}
        for key, seen in files.items():
            if seen.origin.row is not None:
                self.steps[key] = Reading(seen=seen, candidate_id=None, target="")
            elif seen.candidate.in_place:
                fresh.append((key, replace(seen, doubts=may_be.get(seen.candidate, ()))))
            else:
                fresh.append((key, seen))
        candidates = [
            NewCandidate(
                inbox=seen.candidate.inbox,
                relative_path=seen.relative_path,
                source=seen.candidate.source,
                target=target_of(seen),
            )
            for _, seen in fresh
        ]
        ids = moves.add_candidates(self._tx, candidates, now=self._now.utc) if candidates else []
        self.steps |= {
            key: Reading(seen=seen, candidate_id=candidate_id, target=candidate.target)
            for (key, seen), candidate, candidate_id in zip(fresh, candidates, ids, strict=True)
        }

    def advance(self, key: int, step: Step, answer: Answer) -> None:
        """Make the next step of a step and its answer."""
        if isinstance(step, Reading):
            assert isinstance(answer, Read)
            self._was_read(key, step, answer)
        elif isinstance(step, Moving):
            assert isinstance(answer, Brought)
            self._was_moved(key, step, answer)
        else:
            assert isinstance(step, Misplaced)
            self._return(key, step, Leave.DONE)  # it is gone

    def _was_read(self, key: int, step: Reading, read: Read) -> None:
        seen, found = step.seen, read.inspection
        verdict: Whole | Rejection | Leave
        if read.died:
            if self._count_kill(step) < KILLS_MOST:
                self.steps[key] = step
                return
            verdict, found = died(seen.origin), None
        elif seen.doubts and found is not None and self._is_what_it_was(step, found):
            verdict = Leave.DONE
        else:
            verdict = judge(seen, read)
        if isinstance(verdict, Leave):
            self._return(key, step, verdict)
            if (row := seen.origin.row) is not None and self._is_lost(seen.candidate.place):
                # Whoever sends it finds that there is nothing to read any more too, and has the server asked.
                moves.read_no_more(self._tx, row.delivery_id, now=self._now.utc)
            return
        is_whole = isinstance(verdict, Whole)
        found = verdict.found if isinstance(verdict, Whole) else found
        # In place, or a row's own: it lies where it is to stay. One that a person asked about, and that is not taken,
        # lies in rejected/ already, and its row is told.
        stays = seen.candidate.in_place or seen.origin.row is not None or (seen.origin.requested and not is_whole)
        if not stays:
            refused = None if isinstance(verdict, Whole) else verdict
            self.steps[key] = Moving(
                seen=seen,
                candidate_id=step.candidate_id,
                target=step.target,
                found=found,
                refused=refused,
                since=self._now.mono,
            )
        elif isinstance(verdict, Whole):
            self._arrive(key, step, verdict.found, where_it_lies(seen, verdict.found))
        else:
            self._refused.append((key, step, refusal_of(step, found, verdict, where_it_lies(seen, found))))

    def _arrive(self, key: int, step: Noted, found: Inspection, taken: Taken) -> None:
        arrival = arrival_of(step, found, self._ledger, taken, self._routing)
        arrived = Arrived(seen=step.seen, candidate_id=step.candidate_id, arrival=arrival)
        self._arrived.append((key, arrived))

    def _count_kill(self, step: Reading) -> int:
        if step.candidate_id is not None:
            return moves.candidate_died(self._tx, step.candidate_id)
        row = step.seen.origin.row
        assert row is not None, "a file without a candidate row has a row"
        self.killed.append(row.delivery_id)
        return self._kills.get(row.delivery_id, 0) + 1

    def _is_what_it_was(self, step: Reading, found: Inspection) -> bool:
        """Whether a row knows this file in place, which was only read again for its new inode or ctime."""
        if found.verdict in (Verdict.CHANGED, Verdict.UNREADABLE):
            return False
        seen = step.seen
        # A file that may be taken is not the one that was refused, however much it looks like it from outside.
        refused = None if found.verdict in ADMISSIBLE else refused_as(seen, found.verdict)
        row = recognised(seen, found, refused)
        self.learnt.append((seen, row))
        if row is not None:
            ctime_ns = where_it_lies(seen, found).ctime_ns
            moves.refresh_source(self._tx, row.file_id, source=seen.candidate.source, ctime_ns=ctime_ns)
        return row is not None

    def _was_moved(self, key: int, step: Moving, brought: Brought) -> None:
        inbox = step.seen.candidate.inbox
        if isinstance(brought, Taken):
            if step.refused is not None:
                self._refused.append((key, step, refusal_of(step, step.found, step.refused, brought)))
            else:
                assert step.found is not None, "what is taken was read"
                self._arrive(key, step, step.found, brought)
            return
        if isinstance(brought, Stranded):
            self._log.error("inbox.stranded", inbox=inbox, note=brought.note)
            self.steps[key] = Misplaced(seen=step.seen, candidate_id=step.candidate_id, path=brought.path)
            return
        if brought.why not in (WhyNot.GONE, WhyNot.CHANGED):
            self._log.error("inbox.not_taken", inbox=inbox, why=brought.why.value, note=brought.note)
        # One file that cannot be moved (a folder that may not be written) is counted as such and tried again with
        # growing waits; it holds up no other.
        leave = {WhyNot.GONE: Leave.DONE, WhyNot.ERROR: Leave.UNREADABLE, WhyNot.NO_ROOM: Leave.UNREADABLE}
        self._return(key, step, leave.get(brought.why, Leave.AGAIN), is_full=brought.why is WhyNot.NO_SPACE)

    def _return(self, key: int, noted: Noted, leave: Leave, *, is_full: bool = False) -> None:
        """Let go of a file of which there is no verdict."""
        seen = noted.seen
        # What lies in the spool and belongs to no row has the name it was dropped under nowhere else.
        keeps_name = seen.candidate.in_spool and seen.origin.former is None and leave is not Leave.DONE
        if noted.candidate_id is not None and not keeps_name:
            self._dropped.append(noted.candidate_id)
        # A row's file, a person's request, and what changed in rejected/ are simply taken up again.
        is_silent = seen.origin.former is not None or seen.origin.row is not None
        self.steps[key] = Returned(seen=seen, told=None if is_silent else leave, is_full=is_full)

    def write(self) -> None:
        """Have the ledger make rows of what arrived and of what is refused, and forget what came to nothing."""
        self._admit()
        self._refuse()
        moves.drop_candidates(self._tx, self._dropped)

    def _admit(self) -> None:
        """Have the ledger say, as it stands now, what becomes of the files that arrived."""
        fresh = [(key, step) for key, step in self._arrived if step.seen.origin.row is None]
        formers = _formers(step.seen.origin for _, step in fresh)
        arrivals = [step.arrival for _, step in fresh]
        # With none it would still take a number of no file: a commit for nothing.
        rows = moves.admit(self._tx, arrivals, formers=formers, now=self._now.utc) if arrivals else []
        for (key, step), admitted in zip(fresh, rows, strict=True):
            self._was_admitted(key, step, admitted)
        for key, step in self._arrived:
            if (row := step.seen.origin.row) is not None:
                admitted = moves.reread(self._tx, row.delivery_id, step.arrival, now=self._now.utc)
                self._was_admitted(key, step, admitted)

    def _was_admitted(self, key: int, step: Arrived, admitted: Admitted) -> None:
        seen = step.seen
        if admitted.number is None or admitted.state is None:
            # The row that it was read again for is elsewhere by now.
            self.steps[key] = Returned(seen=seen, told=None)
        else:
            copied = not step.arrival.source_removed
            self.steps[key] = Recorded(seen=seen, number=admitted.number, state=admitted.state, copied=copied)

    def _refuse(self) -> None:
        fresh: list[tuple[int, Noted, Refusal]] = []
        for key, noted, refusal in self._refused:
            origin = noted.seen.origin
            if origin.row is not None:
                number = moves.reread_refused(self._tx, origin.row.delivery_id, refusal, now=self._now.utc)
                self._record_refused(key, noted, refusal, number)
            elif origin.requested and origin.former is not None:
                moves.request_failed(self._tx, origin.former, note=refusal.note, now=self._now.utc)
                self._return(key, noted, Leave.DONE)
            else:
                fresh.append((key, noted, refusal))
        if not fresh:
            return
        formers = _formers(noted.seen.origin for _, noted, _ in fresh)
        ids = moves.refuse(self._tx, [refusal for _, _, refusal in fresh], formers=formers, now=self._now.utc)
        for (key, noted, refusal), number in zip(fresh, ids, strict=True):
            self._record_refused(key, noted, refusal, number)

    def _record_refused(self, key: int, noted: Noted, refusal: Refusal, number: int | None) -> None:
        if number is None:
            self.steps[key] = Returned(seen=noted.seen, told=None)
            return
        self.steps[key] = Recorded(
            seen=noted.seen,
            number=number,
            state=State.REJECTED,
            reason=refusal.reason.value,
            copied=not refusal.source_removed,
        )


def _formers(origins: Iterable[Origin]) -> dict[int, int]:
    """Give, by position, the rows whose files these were."""
    return {place: origin.former for place, origin in enumerate(origins) if origin.former is not None}
