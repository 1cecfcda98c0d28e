"""Drop folder to row: what the inbox saw, what a reader found and where the file now lies, put together step by step.

Files come from the folders (``Inboxes.look``), or are handed in (``adopt``): what lies in the spool without a row, and
the files of rows that are to be read again. Whoever brings one, it goes the same way (``steps``), is judged by the same
table (``judgement``), and is made a row by the ledger as the ledger stands in that transaction.

``write`` makes of every step and its answer the next step; ``_enter`` begins these once they are durable, so that a
file is read or moved only after the transaction that says so (G2). A transaction that fails leaves all steps
and answers as they were, and the next tick writes them again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from math import inf

import structlog
from structlog.typing import FilteringBoundLogger

from ingestd.clocks import Now
from ingestd.daemon.assignment import Assignment
from ingestd.daemon.in_place import InPlace
from ingestd.daemon.mover import Mover
from ingestd.daemon.next_steps import Answer, NextSteps
from ingestd.daemon.reader_client import Owner, ReaderClient
from ingestd.daemon.stage import Gate, Stage
from ingestd.daemon.steps import (
    Misplaced,
    Moving,
    Origin,
    Reading,
    Recorded,
    Returned,
    Routing,
    Seen,
    Step,
    expect_of,
    spool_path_of,
)
from ingestd.inbox import Candidate, Expect, Inboxes, Leave, Spool
from ingestd.ledger import KnownSource, Ledger, Transaction
from ingestd.lifecycle import State
from ingestd.reader import InspectJob, Read

# Files between "ready" and their row: bounds memory, and how much a crash leaves half-way.
_IN_HAND_MOST = 1024
# Between 'the spool is full' and the next try.
_FULL_WAIT_SECONDS = 5.0
# Between two times that the ledger is asked about files of which nobody can say yet whether it knows them.
_ASK_AGAIN_SECONDS = 0.25
# Between two looks at a file that left its folder for the spool, on a disk that fails.
_MISPLACED_AGAIN_SECONDS = 5.0


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
        routing: Routing,
        sha256: bool,
        agreement: Mapping[str, str],
        gate: Gate,
        assignment: Assignment,
        on_copied: Callable[[], object],
        is_lost: Callable[[str], bool],
    ) -> None:
        """While ``gate`` is shut nothing is taken from the folders, and ever only from our own. ``on_copied``: a copied
        source is to be removed. With ``sha256`` that of each whole file is taken. Where all have agreed to send files
        elsewhere than ``agreement`` says, those in hand wait.

        ``is_lost`` says whether there is no file at a place any more, for certain.
        """
        self._inboxes = inboxes
        self._spool = spool
        self._mover = mover
        self._reader_client = reader_client
        self._ledger = ledger
        self._routing = routing
        self._gate = gate
        self._assignment = assignment
        self._sha256 = sha256
        self._agreement = agreement
        self.is_held = False
        self._on_copied = on_copied
        self._is_lost = is_lost
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
    def in_hand(self) -> int:
        return len(self._steps)

    def has_in_hand(self, inbox: str) -> bool:
        """Whether a file of this inbox is on its way."""
        return any(step.seen.candidate.inbox == inbox for step in self._steps.values())

    def adopt(self, candidate: Candidate, origin: Origin) -> None:
        """Take a file that did not come from the folders; one that is in hand already stays what it is.

        One of another worker's inbox is left to that one, which finds it without a row.
        """
        if not self._assignment.has(candidate.inbox):
            return
        if not (candidate.in_spool and self.holds_path(candidate.relative_path)):
            self._hold(Seen(candidate=candidate, origin=origin))

    def _hold(self, seen: Seen) -> None:
        key = next(self._keys)
        self._steps[key] = seen
        self._new.append(key)

    def holds_path(self, path: str) -> bool:
        return any(spool_path_of(step) == path for step in self._steps.values())

    @property
    def rows_in_hand(self) -> set[int]:
        """The rows whose files are being read again now."""
        rows = set()
        for step in self._steps.values():
            origin = step.seen.origin
            if origin.row is not None:
                rows.add(origin.row.delivery_id)
            elif origin.former is not None:
                rows.add(origin.former)
        return rows

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
            assert isinstance(step, Misplaced), "nothing else waits"
            self._look_for(key, step)
        self._look(now)

    def _look(self, now: Now) -> None:
        if self._inboxes.watched != self._assignment.watched:
            self._inboxes.watch(self._assignment.watched)
        room = _IN_HAND_MOST - len(self._steps)
        if not self._gate.is_open or now.mono < self._full_until:
            room = 0
        look = self._inboxes.look(now=now.mono, room=max(0, room))
        for candidate in look.ready:
            self._hold(Seen(candidate=candidate))
        self._asked += look.asked
        if self._asked:
            answer = self._in_place.known(self._ledger, self._asked, mono=now.mono)
            put_off = frozenset(answer.put_off)
            self._inboxes.answer_known([each for each in self._asked if each not in put_off], answer.known)
            self._asked = answer.put_off
        self._look_at = inf if look.next_at is None else look.next_at
        if room <= 0 and (look.next_at is None or look.next_at <= now.mono):
            # Full hands: the readers and the mover wake us; a full disk is looked at again by the clock.
            self._look_at = self._full_until if now.mono < self._full_until else inf

    def next_at(self, now: Now) -> float:
        if (self._new or self._answers) and not self.is_held:
            return now.mono
        ask_at = self._mono + _ASK_AGAIN_SECONDS if self._asked else inf
        return min(self._look_at, ask_at, *(at for at, _ in self._later))

    is_of_studies = True

    @property
    def studies(self) -> Collection[str] | None:
        """Those of the files that are made rows now; a file that has a row already may be of any."""
        found: set[str] = set()
        for key in self._new:
            if self._steps[key].seen.origin.has_row:
                return None
        for key, answer in self._answers:
            step = self._steps[key]
            if step.seen.origin.has_row or (isinstance(step, Reading) and step.seen.doubts):
                return None
            read = answer.inspection if isinstance(answer, Read) and step.seen.candidate.in_place else None
            if (inspection := step.found if isinstance(step, Moving) else read) is not None:
                found.add(inspection.study_uid)
        return found

    @property
    def _makes_rows(self) -> bool:
        """Whether any of the files may become a row now; that one is to be moved first takes no transaction."""
        steps = (self._steps[key] for key, _ in self._answers)
        return any(
            not isinstance(step, Reading) or step.seen.candidate.in_place or step.seen.origin.has_row for step in steps
        )

    def write(self, tx: Transaction, now: Now) -> None:
        """Make the next step of every file that was seen or has its answer, and write what goes with it."""
        if not (self._new or self._answers):
            return
        self.is_held = self._makes_rows and not tx.is_agreed(self._agreement)
        if self.is_held:
            return  # by the other one it may go elsewhere: no destination that is there no more is to get files
        following = NextSteps(
            tx,
            now,
            ledger=self._ledger,
            routing=self._routing,
            kills=self._kills,
            is_lost=self._is_lost,
        )
        following.put_down({key: self._steps[key].seen for key in self._new})
        for key, answer in self._answers:
            following.advance(key, self._steps[key], answer)
        following.write()
        tx.on_commit(partial(self._enter, following.steps, following.killed, following.learnt, now))

    def _enter(
        self, steps: dict[int, Step], killed: list[int], learnt: list[tuple[Seen, KnownSource | None]], now: Now
    ) -> None:
        """The steps are durable: forget the answers, and begin what each step waits for."""
        self._mono = now.mono
        self._new = [key for key in self._new if key not in steps]
        self._answers = [(key, answer) for key, answer in self._answers if key not in steps]
        for delivery_id in killed:
            self._kills[delivery_id] = self._kills.get(delivery_id, 0) + 1
        for seen, known in learnt:
            self._learn(seen.candidate, known)
        self._steps |= steps
        # Bound once for all: structlog's own proxy looks the configuration up anew for every event.
        log = self._log.bind()
        reading: list[int] = []
        moving: dict[int, Moving] = {}
        for key, step in steps.items():
            if isinstance(step, (Returned, Recorded)) and (row := step.seen.origin.row) is not None:
                self._kills.pop(row.delivery_id, None)
            if isinstance(step, Reading):
                reading.append(key)
            elif isinstance(step, Moving):
                moving[key] = step
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
        seen = self._steps[key].seen
        candidate = seen.candidate
        # What will be renamed into the spool is synced by its reader. A copy from another filesystem is synced where it
        # lands; what stays in place is not ours to sync.
        durable = not candidate.in_place and candidate.source.device == self._spool.device
        patient = not candidate.final
        return InspectJob(
            key=job_key,
            path=candidate.place,
            expect=candidate.source,
            durable=durable,
            patient=patient,
            priority=candidate.priority,
            like=seen.like,
            sha256=self._sha256,
        )

    def _move(self, moving: Mapping[int, Moving]) -> None:
        def items(steps: Iterable[tuple[int, Moving]]) -> list[tuple[int, Candidate, Expect, str]]:
            return [(key, step.seen.candidate, expect_of(step), step.target) for key, step in steps]

        self._mover.take_in(items((key, step) for key, step in moving.items() if step.refused is None))
        self._mover.set_aside(items((key, step) for key, step in moving.items() if step.refused is not None))

    def _look_for(self, key: int, step: Misplaced) -> None:
        """Go on with a file that left its folder and lies in the spool, as soon as it can be looked at."""
        seen, was = step.seen, step.seen.candidate
        try:
            candidate = self._spool.candidate_at(was.inbox, step.path)
        except OSError:
            self._later.append((self._mono + _MISPLACED_AGAIN_SECONDS, key))
            return
        if candidate is None:
            self._answers.append((key, None))
            return
        del self._steps[key]
        if not seen.origin.adopted:
            self._inboxes.take_back(was, Leave.DONE)
        candidate = replace(candidate, dropped_as=seen.relative_path, final=was.final, was_admitted=was.was_admitted)
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
            self._inboxes.take_back(candidate, told)

    def _finish(self, key: int, step: Recorded, log: FilteringBoundLogger) -> None:
        del self._steps[key]
        seen, origin = step.seen, step.seen.origin
        inbox = seen.candidate.inbox
        if step.copied:
            self._on_copied()
        if origin.row is None:
            self.taken_in += 1
            if not origin.adopted:
                self._inboxes.take_back(seen.candidate, Leave.DONE)
        if step.state is State.REJECTED:
            log.warning("inbox.rejected", file_id=step.number, inbox=inbox, reason=step.reason)
        elif step.state is State.UNROUTED:
            log.warning("inbox.unrouted", file_id=step.number, inbox=inbox)
        elif step.state is State.CONFLICT and origin.row is None:
            log.warning("inbox.conflict_found", file_id=step.number, inbox=inbox)
        elif origin.row is None:
            log.debug("inbox.admitted", file_id=step.number, inbox=inbox, state=step.state)
