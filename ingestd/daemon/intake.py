"""Drop folder to PENDING row: marries what the inbox saw, what a reader found and where the file now lies.

One file's way: *ready* (settled) -> candidate row committed -> *inspected* in a reader process -> moved into the spool
or aside -> row committed -> forgotten by the inbox. Each arrow is one tick or more; the acts (read, move) happen only
after the transaction that says so (``record`` writes, ``committed`` acts). A transaction that fails leaves everything
collected where it was, and the next tick records it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path

import structlog

from ingestd.clocks import Now
from ingestd.daemon.hand import (
    KILLS_MOST,
    Hand,
    arrival_of,
    expect_of,
    identity_of,
    reason_of,
    refusal_of,
    stop_comparing,
)
from ingestd.daemon.in_place import Asked, InPlace, recognised
from ingestd.daemon.mover import Mover
from ingestd.daemon.reader_client import Owner, ReaderClient
from ingestd.daemon.stage import Gate, Stage
from ingestd.fs.places import below_of
from ingestd.inbox import Brought, Candidate, Inboxes, Spool, Stranded, Taken, WhyNot
from ingestd.ledger import Holder, Judged, KnownSource, Ledger, NewCandidate, Transaction, moves, queries
from ingestd.lifecycle import Arrival, Reason, Refusal, Sameness, State
from ingestd.reader import CompareJob, Inspection, InspectJob, Read, Verdict

# Files in our hands between "ready" and their row: bounds memory, and how much a crash leaves half-way.
_IN_HAND_MOST = 1024
# Between 'the spool is full' and the next try.
_FULL_WAIT_SECONDS = 5.0
# Between two times that the ledger is asked about files of which nobody can say yet whether it knows them.
_ASK_AGAIN_SECONDS = 0.25
# Between two tries to compare a file with the one that holds its identity.
_COMPARE_AGAIN_SECONDS = 5.0
# Between two looks at a file that left its folder for the spool, on a disk that fails.
_STRANDED_AGAIN_SECONDS = 5.0
# A comparison that came to nothing so often (a file admitted although it is cut, say) is left to a person.
_COMPARISONS_MOST = 12

_INCOMPLETE = frozenset({Verdict.SHORT, Verdict.EMPTY, Verdict.ZEROS})


@dataclass(slots=True)
class _Due:
    """What is to be done once the transaction at hand is durable; a group of files at a time, not file by file."""

    inspect: list[Hand] = field(default_factory=list)
    take_in: list[Hand] = field(default_factory=list)
    set_aside: list[Hand] = field(default_factory=list)
    others: list[Callable[[], object]] = field(default_factory=list)
    finish: list[tuple[Hand, int, State]] = field(default_factory=list)


class Intake(Stage):
    """Everything between a settled file and its row."""

    def __init__(
        self,
        *,
        inboxes: Inboxes,
        spool: Spool,
        mover: Mover[Hand],
        desk: ReaderClient,
        ledger: Ledger,
        gate: Gate,
        on_copied: Callable[[], object],
        fetch: Callable[[int, Callable[[Path | Sameness | None], object]], None],
    ) -> None:
        """Join the rooms. ``on_copied``: a copied source waits for its removal; ``fetch``: see Verification.fetch."""
        self._gate = gate
        self._on_copied = on_copied
        self._fetch = fetch
        self._inboxes = inboxes
        self._spool = spool
        self._mover = mover
        self._desk = desk
        self._ledger = ledger
        self._log = structlog.get_logger()
        self._in_hand: set[Hand] = set()
        self._ready: list[Hand] = []
        self._read: list[tuple[Hand, Read]] = []
        self._moved: list[tuple[Hand, Brought]] = []
        self._again: list[Hand] = []  # to be admitted: what was in their way may be gone
        self._later: list[tuple[float, Hand]] = []  # the same, when (``Now.mono``) it is time
        self._stranded: list[tuple[float, Hand]] = []  # to be adopted, when (``Now.mono``) it is time to look again
        self._due = _Due()
        self._in_place = InPlace()
        self._asked: list[Candidate] = []  # the ledger has not said yet whether it knows them
        self._look_at: float | None = None
        self._full_until = 0.0
        self._mono = 0.0
        self.taken_in = 0
        self.full = False

    @property
    def is_idle(self) -> bool:
        """Whether no file is in our hands."""
        return not self._in_hand

    @property
    def in_hand(self) -> int:  # type: ignore[override]
        """How many files are between settled and their row."""
        return len(self._in_hand)

    def adopt(self, hand: Hand) -> None:
        """Take a file that lies in the spool already: an orphan, or a rejected one that is to be read again."""
        if hand.candidate.in_spool and self.holds_path(hand.candidate.relative_path):
            return
        hand.adopted = True
        self._hold(hand)

    def _hold(self, hand: Hand) -> None:
        self._in_hand.add(hand)
        self._ready.append(hand)

    def holds_path(self, path: str) -> bool:
        """Whether the file at this path in the spool is in our hands."""
        return any(hand.spool_path == path for hand in self._in_hand)

    def moving_since(self) -> float:
        """Say since when (``Now.mono``) the file is on its way into the spool that is so for longest; inf: none is."""
        return min((hand.moving_since for hand in self._in_hand), default=inf)

    def holds(self, former: int) -> bool:
        """Whether the file of this REJECTED row is being read again now."""
        return any(hand.former == former for hand in self._in_hand)

    def collect(self, now: Now) -> None:
        """Collect what the inboxes, the readers and the mover have."""
        self._mono = now.mono
        for context, read in self._desk.take(Owner.INTAKE):
            assert isinstance(context, Hand)
            self._read.append((context, read))
        self._moved += self._mover.collect()
        self._again += [hand for at, hand in self._later if at <= now.mono]
        self._later = [(at, hand) for at, hand in self._later if at > now.mono]
        stranded, self._stranded = self._stranded, []
        for at, hand in stranded:
            if at <= now.mono:
                self._adopt_stranded(hand, hand.stranded_at)
            else:
                self._stranded.append((at, hand))
        room = _IN_HAND_MOST - len(self._in_hand)
        if not self._gate.is_open or now.mono < self._full_until:
            room = 0
        look = self._inboxes.look(now=now.mono, room=max(0, room))
        for candidate in look.ready:
            self._hold(Hand(candidate=candidate, doubts=self._in_place.doubts_of(candidate)))
        self._look_at = look.next_at
        self._asked += look.asked
        if self._asked:
            self._asked = self._answer(self._asked)
        if room <= 0 and (look.next_at is None or look.next_at <= now.mono):
            # Full hands: the readers and the mover wake us; a full disk is looked at again by the clock.
            self._look_at = self._full_until if now.mono < self._full_until else None

    @property
    def has_work(self) -> bool:
        """Whether a transaction is wanted."""
        return bool(self._ready or self._read or self._moved or self._again)

    def next_at(self, now: Now) -> float:
        """Say when to look into the inboxes again, or to try once more to compare (``Now.mono``)."""
        if self.has_work:
            return now.mono
        times = [at for at, _ in (*self._later, *self._stranded)]
        if self._asked:
            times.append(self._mono + _ASK_AGAIN_SECONDS)
        if self._look_at is not None:
            times.append(self._look_at)
        return min(times, default=inf)

    def write(self, tx: Transaction, now: Now) -> None:
        """Write everything collected into the transaction; what it makes due is done by ``_committed``."""
        if not self.has_work:
            return
        tx.on_commit(partial(self._committed, now))
        self._due = _Due()
        arrivals = list(self._again)
        refusals: list[tuple[Hand, Refusal]] = []
        dropped: list[Hand] = []
        self._begin(tx, now)
        for hand, read in self._read:
            self._judge(hand, read, tx, arrivals, refusals, dropped)
        for hand, outcome in self._moved:
            self._settle_move(hand, outcome, arrivals, refusals, dropped)
        self._admit(arrivals, tx, now)
        self._refuse(refusals, tx, now)
        moves.drop_candidates(tx, [hand.candidate_id for hand in dropped])

    def _committed(self, now: Now) -> None:
        """The transaction is durable: forget what was collected and do what it made due."""
        self._mono = now.mono
        self._ready, self._read, self._moved, self._again = [], [], [], []
        due, self._due = self._due, _Due()
        self._desk.ask_all(Owner.INTAKE, due.inspect, self._inspect_job)
        for hand in (*due.take_in, *due.set_aside):
            hand.moving_since = now.mono
        self._mover.take_in([(hand, hand.candidate, expect_of(hand)) for hand in due.take_in])
        self._mover.set_aside([(hand, hand.candidate, expect_of(hand)) for hand in due.set_aside])
        for act in due.others:
            act()
        self._finish(due.finish)

    def _answer(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Tell the inboxes which files some row knows; gives back those that nobody can say it of yet."""
        asked = self._known(candidates)
        put_off = frozenset(asked.put_off)
        self._inboxes.answer_known([each for each in candidates if each not in put_off], asked.known)
        return asked.put_off

    def _known(self, asked: Sequence[Candidate]) -> Asked:
        by_inbox: dict[str, list[Candidate]] = {}
        for candidate in asked:
            by_inbox.setdefault(candidate.inbox, []).append(candidate)
        answer = Asked()
        for inbox, candidates in by_inbox.items():
            rows = queries.known_sources(self._ledger, inbox, [candidate.relative_path for candidate in candidates])
            for candidate in candidates:
                here = rows.get(candidate.relative_path, ())
                if candidate.in_place:
                    self._in_place.judge(candidate, here, answer, mono=self._mono)
                elif any(row.source == candidate.source and not row.source_removed for row in here):
                    answer.known.append(candidate)
        return answer

    def _begin(self, tx: Transaction, now: Now) -> None:
        if not self._ready:
            return
        ids = moves.add_candidates(
            tx,
            [
                NewCandidate(
                    inbox=hand.candidate.inbox,
                    relative_path=hand.relative_path,
                    source=hand.candidate.source,
                )
                for hand in self._ready
            ],
            now=now.utc,
        )
        for hand, candidate_id in zip(self._ready, ids, strict=True):
            hand.candidate_id = candidate_id
        self._due.inspect += self._ready

    def _inspect_job(self, key: int, hand: Hand) -> InspectJob:
        candidate = hand.candidate
        # A copy from another filesystem is fsynced where it lands; what stays in place is not ours to sync.
        durable = not candidate.in_place and self._spool.is_here(candidate.source)
        return InspectJob(
            key=key, path=candidate.place, expect=candidate.source, durable=durable, patient=not candidate.final
        )

    def _judge(
        self,
        hand: Hand,
        read: Read,
        tx: Transaction,
        arrivals: list[Hand],
        refusals: list[tuple[Hand, Refusal]],
        dropped: list[Hand],
    ) -> None:
        if hand.comparing is not None:
            self._judge_comparison(hand, hand.comparing, read, arrivals, dropped)
            return
        if read.died:
            if moves.candidate_died(tx, hand.candidate_id) >= KILLS_MOST:
                note = f"reading it ended {KILLS_MOST} reader processes; it is damaged or hostile"
                self._set_aside(hand, Reason.KILLED_READER, note, refusals)
            else:
                self._due.inspect.append(hand)
            return
        found = read.inspection
        if found is None or found.verdict is Verdict.CHANGED:
            self._let_go(hand, self._inboxes.again, dropped)
            return
        hand.inspection = found
        if hand.doubts and found.verdict is not Verdict.UNREADABLE and self._is_what_it_was(hand, found, tx):
            self._let_go(hand, self._inboxes.done, dropped)
        elif found.verdict is Verdict.UNREADABLE and hand.wished:
            # A person waits for an answer.
            self._set_aside(hand, Reason.UNREADABLE, found.reason_text, refusals)
        elif found.verdict is Verdict.UNREADABLE:
            self._let_go(hand, self._inboxes.unreadable, dropped)
        elif found.verdict is Verdict.WHOLE or (found.verdict is Verdict.ZEROS and hand.candidate.final):
            self._take(hand, arrivals)
        elif hand.admit_anyway and identity_of(found) is not None:
            hand.inspection = replace(found, notes=(*found.notes, f"admitted_anyway_{found.verdict}"))
            self._take(hand, arrivals)
        elif found.verdict in _INCOMPLETE and not hand.candidate.final and not hand.wished:
            self._let_go(hand, self._inboxes.incomplete, dropped)
        else:
            reason = reason_of(found.verdict, was_admitted=hand.candidate.was_admitted)
            self._set_aside(hand, reason, found.reason_text, refusals)

    def _is_what_it_was(self, hand: Hand, found: Inspection, tx: Transaction) -> bool:
        """Whether a row knows this file in place, which was only read again for its new inode or ctime."""
        row = recognised(hand, found, reason_of(found.verdict, was_admitted=hand.candidate.was_admitted))
        self._due.others.append(partial(self._learn, hand, row))
        if row is not None:
            moves.refresh_source(tx, row.entry_id, source=hand.candidate.source, ctime_ns=_ctime_of(hand))
        return row is not None

    def _learn(self, hand: Hand, row: KnownSource | None) -> None:
        self._in_place.learn(hand, row)
        candidate = hand.candidate
        self._inboxes.ignore_inodes(candidate.inbox, ignored=self._in_place.ignores_inodes(candidate.source.device))

    def _let_go(self, hand: Hand, tell: Callable[[Candidate], None], dropped: list[Hand]) -> None:
        dropped.append(hand)
        if hand.adopted:
            # It lies in the spool and was never the inboxes' to follow.
            tell = self._inboxes.observe
        # A person's wish, and a file that changed in rejected/, are simply taken up again.
        if hand.former is None:
            self._due.others.append(partial(tell, hand.candidate))
        self._due.others.append(partial(self._in_hand.discard, hand))

    def _take(self, hand: Hand, arrivals: list[Hand]) -> None:
        assert hand.inspection is not None
        if hand.candidate.in_place:
            hand.arrival = arrival_of(hand, self._ledger, _where_it_lies(hand))
            arrivals.append(hand)
        else:
            self._due.take_in.append(hand)

    def _set_aside(self, hand: Hand, reason: Reason, note: str, refusals: list[tuple[Hand, Refusal]]) -> None:
        hand.refused = (reason, note)
        # A file that a person asked about lies in rejected/ already, and its row is told.
        if hand.candidate.in_place or hand.wished:
            refusals.append((hand, refusal_of(hand, _where_it_lies(hand))))
        else:
            self._due.set_aside.append(hand)

    def _settle_move(
        self,
        hand: Hand,
        outcome: Brought,
        arrivals: list[Hand],
        refusals: list[tuple[Hand, Refusal]],
        dropped: list[Hand],
    ) -> None:
        if isinstance(outcome, Taken):
            if hand.refused is not None:
                refusals.append((hand, refusal_of(hand, outcome)))
            else:
                hand.arrival = arrival_of(hand, self._ledger, outcome)
                arrivals.append(hand)
            return
        if isinstance(outcome, Stranded):
            self._log.error("inbox.stranded", inbox=hand.candidate.inbox, note=outcome.note)
            dropped.append(hand)
            self._due.others.append(partial(self._adopt_stranded, hand, outcome.path))
            return
        if outcome.why is WhyNot.GONE:
            self._let_go(hand, self._inboxes.done, dropped)
            return
        if outcome.why is not WhyNot.CHANGED:
            self._log.error("inbox.not_taken", inbox=hand.candidate.inbox, why=outcome.why.value, note=outcome.note)
        if outcome.why is WhyNot.NO_SPACE:
            self._due.others.append(self._wait_for_space)
        # One file that cannot be moved (a folder that may not be written) is counted as such and tried again with
        # growing waits; it holds up no other.
        tell = self._inboxes.unreadable if outcome.why in (WhyNot.ERROR, WhyNot.NO_ROOM) else self._inboxes.again
        self._let_go(hand, tell, dropped)

    def _adopt_stranded(self, hand: Hand, path: str) -> None:
        """Go on with a file that left its folder and lies in the spool, as soon as it can be looked at."""
        was = hand.candidate
        hand.stranded_at = path
        try:
            candidate = self._spool.candidate_at(was.inbox, path)
        except OSError:
            self._stranded.append((self._mono + _STRANDED_AGAIN_SECONDS, hand))
            return
        self._in_hand.discard(hand)
        if not hand.adopted:
            self._inboxes.done(was)
        if candidate is not None:
            candidate = replace(
                candidate, dropped_as=hand.relative_path, final=was.final, was_admitted=was.was_admitted
            )
            self.adopt(
                Hand(candidate=candidate, former=hand.former, wished=hand.wished, admit_anyway=hand.admit_anyway)
            )

    def _wait_for_space(self) -> None:
        self._full_until = self._mono + _FULL_WAIT_SECONDS
        self.full = True

    def _admit(self, arrivals: list[Hand], tx: Transaction, now: Now) -> None:
        if not arrivals:
            return
        judged = {place: hand.judged for place, hand in enumerate(arrivals) if hand.judged is not None}
        wanted = [hand.arrival for hand in arrivals if hand.arrival is not None]
        admitted = moves.admit(tx, wanted, judged=judged, now=now.utc)
        for hand, row in zip(arrivals, admitted, strict=True):
            if row.needs_compare and row.holder is not None:
                self._due.others.append(partial(self._compare, hand, row.holder))
                continue
            assert row.entry_id is not None
            assert row.state is not None
            if hand.former is not None:
                moves.readmitted(tx, hand.former, row.entry_id, now=now.utc)
            self._due.finish.append((hand, row.entry_id, row.state))

    def _compare(self, hand: Hand, holder: Holder) -> None:
        assert hand.arrival is not None
        hand.comparing = holder
        # A file in place that was altered lies where its former row says that its own lies.
        if holder.path is not None and holder.path != self._reach(hand.arrival) and hand.distrusts != holder.entry_id:
            self._ask_comparison(hand, holder.path, digest=holder.content.digest)
        elif holder.state is State.CONFIRMED:
            # Its file was removed since, or is another one by now: the server's copy stands for it.
            self._fetch(holder.entry_id, partial(self._compare_with_copy, hand))
        else:
            # It is read again before it is sent, or asked about: then it can be compared with, or its place is free.
            hand.distrusts = 0
            self._compare_later(hand)

    def _compare_with_copy(self, hand: Hand, copy: Path | Sameness | None) -> None:
        if isinstance(copy, Sameness):
            assert hand.comparing is not None, "a copy was wanted to compare it with"
            hand.judged = Judged(holder_id=hand.comparing.entry_id, sameness=copy)
        if not isinstance(copy, Path):
            hand.comparing = None
            self._again.append(hand)
            return
        hand.copy = copy
        self._ask_comparison(hand, str(copy))

    def _compare_later(self, hand: Hand) -> None:
        hand.comparing = None
        self._later.append((self._mono + _COMPARE_AGAIN_SECONDS, hand))

    def _ask_comparison(self, hand: Hand, theirs: str, *, digest: str = "") -> None:
        assert hand.arrival is not None
        ours, our_digest = self._reach(hand.arrival), hand.arrival.content.digest
        self._desk.ask(
            Owner.INTAKE,
            hand,
            lambda key: CompareJob(key=key, ours=ours, theirs=theirs, our_digest=our_digest, their_digest=digest),
        )

    def _judge_comparison(
        self, hand: Hand, holder: Holder, read: Read, arrivals: list[Hand], dropped: list[Hand]
    ) -> None:
        self._due.others.append(partial(stop_comparing, hand))
        if read.lost == "ours":
            self._read_again(hand, dropped)
        elif read.lost or (read.waits and hand.comparisons < _COMPARISONS_MOST):
            # Nothing was learnt. From their file it goes on to the server's copy, from that to their file.
            self._due.others.append(partial(self._distrust, hand, 0 if hand.copy else holder.entry_id))
        else:
            # Files that cannot be compared are kept both, for a person: never thrown together on a guess.
            sameness = Sameness(read.sameness) if read.sameness else Sameness.OTHER
            hand.judged = Judged(holder_id=holder.entry_id, sameness=sameness)
            arrivals.append(hand)

    def _distrust(self, hand: Hand, holder_id: int) -> None:
        hand.comparisons += 1
        hand.distrusts = holder_id
        self._compare_later(hand)

    def _read_again(self, hand: Hand, dropped: list[Hand]) -> None:
        """Begin anew with a file that was written to after it was read."""
        assert hand.arrival is not None
        if hand.candidate.in_place:
            self._let_go(hand, self._inboxes.again, dropped)
            return
        dropped.append(hand)
        self._due.others.append(partial(self._in_hand.discard, hand))
        self._due.others.append(partial(self._adopt_stranded, hand, hand.arrival.path))

    def _reach(self, arrival: Arrival) -> str:
        """Say how the file of an arrival is reached (a place)."""
        if arrival.in_place:
            return below_of(arrival.path, arrival.relative_path)
        return f"{self._spool.path}/{arrival.path}"

    def _refuse(self, refusals: list[tuple[Hand, Refusal]], tx: Transaction, now: Now) -> None:
        for hand, _ in refusals:
            if hand.wished and hand.former is not None and hand.refused is not None:
                moves.request_failed(tx, hand.former, note=hand.refused[1], now=now.utc)
                moves.drop_candidates(tx, [hand.candidate_id])
                self._due.others.append(partial(self._in_hand.discard, hand))
        plain = [(hand, refusal) for hand, refusal in refusals if not hand.wished]
        self._due.others += [self._on_copied for _, refusal in plain if not refusal.source_removed]
        ids = moves.refuse(tx, [refusal for _, refusal in plain], now=now.utc) if plain else []
        for (hand, _), entry_id in zip(plain, ids, strict=True):
            if hand.former is not None:
                moves.readmitted(tx, hand.former, entry_id, now=now.utc)
            self._due.finish.append((hand, entry_id, State.REJECTED))

    def _finish(self, finished: Sequence[tuple[Hand, int, State]]) -> None:
        if not finished:
            return
        self.full = False
        # Bound once for all: structlog's own proxy looks the configuration up anew for every event.
        log = self._log.bind()
        for hand, entry_id, state in finished:
            self._in_hand.discard(hand)
            self.taken_in += 1
            if hand.arrival is not None and not hand.arrival.source_removed:
                self._on_copied()
            if not hand.adopted:
                self._inboxes.done(hand.candidate)
            inbox = hand.candidate.inbox
            if state is State.REJECTED:
                reason = hand.refused[0].value if hand.refused else ""
                log.warning("inbox.rejected", entry_id=entry_id, inbox=inbox, reason=reason)
            elif state is State.CONFLICT:
                log.warning("inbox.conflict_found", entry_id=entry_id, inbox=inbox)
            else:
                log.debug("inbox.admitted", entry_id=entry_id, inbox=inbox, state=state)


def _where_it_lies(hand: Hand) -> Taken:
    return Taken(candidate=hand.candidate, path=str(hand.candidate.path), ctime_ns=_ctime_of(hand))


def _ctime_of(hand: Hand) -> int:
    """Say which ctime a file in place surely had while it was read as it was seen; 0 where none stands still."""
    found, seen = hand.inspection, hand.candidate.ctime_ns
    return found.ctime_ns if found is not None and seen in (0, found.ctime_ns) else 0
