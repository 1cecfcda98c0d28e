"""STORED and UNCERTAIN rows to CONFIRMED, DELETED, or back: asks the server, lets the judges say what proves what.

The questions and judges are the reconciler's; here they are married to the ledger (which rows are due, what was
seen) and to the readers (is the server's copy the same object?). What is asked is not asked again until the answer
was written, and everything is judged in the transaction that writes it, by the row as it is there: `send`, a person
and the feed write on the same rows, and what they wrote since the row was read is neither overlooked nor slept over.
What a transaction has found is in its ``Round``, which is carried out once that is durable. A copy that was fetched
is removed when its comparison was written; a crash leaves it in scratch, which start-up empties.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from math import inf
from random import SystemRandom

from structlog.typing import FilteringBoundLogger

from ingestd.clocks import Now
from ingestd.daemon.copy_comparison import Compared, CopyComparison
from ingestd.daemon.posting import Posting
from ingestd.daemon.reader_client import ReaderClient
from ingestd.daemon.server_questions import ASK_AGAIN, Asker, ServerQuestions
from ingestd.daemon.stage import Stage
from ingestd.daemon.trust import Comparisons, Trust
from ingestd.daemon.verification_round import Round
from ingestd.fs.places import remove_scratch
from ingestd.ledger import Ledger, Transaction, moves, queries
from ingestd.lifecycle import Backoff, Outcome, Reason, State, Unproven
from ingestd.reconciler import Finding, NextStep, StudyAnswer, Verify, judge, not_told, plan

# Rows taken up for one round of questions; the rest follows when these are answered.
_ROWS_MOST = 1000
# To look for more reads those again that are under way, which stay due. Beyond a few of these it waits until half of
# them are answered, or so long.
_ROWS_FEW = 100
_LOOK_EVERY_SECONDS = 1.0
# Where rows are looked for that are due: what was due before is passed over, of which an open snapshot (of a backup)
# keeps all there was in the index. Somebody whose clock is slower may have woken one: from the beginning now and then.
_BEFORE_THE_FIRST = timedelta(seconds=10)
_ANEW_EVERY_SECONDS = 10.0
_GONE_NOTE = (
    "its file is no longer where it was taken in, and the server does not have it; put it back and `ingestd retry`, or "
    "drop the file again"
)
# What ends a row of absences, as in the ledger.
_SEEN = frozenset({Reason.FEED, Reason.QUERY, Reason.CONTENT_CHECK})


class Verification(Stage):
    """Settles what is not proven yet."""

    def __init__(
        self,
        *,
        questions: ServerQuestions,
        reader_client: ReaderClient,
        ledger: Ledger,
        posting: Posting,
        trust: Trust,
        others_wait: Callable[[], bool],
        is_lost: Callable[[str], bool],
        interval: timedelta,
        backoff: Backoff,
        log: FilteringBoundLogger,
    ) -> None:
        """``others_wait`` for answers of the server, too; ``is_lost`` as for Admission."""
        self._questions = questions
        self._comparison = CopyComparison(reader_client, self._is_lost)
        self._ledger = ledger
        self._posting = posting
        self._trust = trust
        self._others_wait = others_wait
        self._is_lost_at = is_lost
        self._interval = interval
        self._backoff = backoff
        self._log = log
        self._jitter = SystemRandom().random
        self._answers: list[StudyAnswer] = []
        self._compared: list[Compared] = []
        # The rows that are asked about or compared, with ``clock_sets`` as they were asked: an answer from before the
        # wall clock was set is newer than nothing.
        self._asked: dict[int, int] = {}
        self._answers_known = 0
        self._is_due = False  # rows are, or the answers that came may have made some so
        # Rows are due that wait for what is being compared: no use in planning before some of it has come.
        self._waits_for_trust = False
        self.more_rows = False  # more were due than one round takes up
        self._held_up = ""  # the study that is waited for in the next turn
        self._due_since, self._anew_at = queries.BEGINNING, 0.0
        self._plan_below, self._plan_at = 0, 0.0  # so few under way, or that time (``Now.mono``): look for more
        # When this process first saw a row absent (``clocks.boottime``), until something else is seen of it.
        self._absent: dict[int, float] = {}

    def start(self) -> None:
        self._trust.start()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being asked or compared."""
        return not (self._asked or self._answers or self._compared)

    def collect(self, now: Now) -> None:
        """Collect answers and comparisons, and see whether anything is due to be asked."""
        for answer, _ in self._questions.take(Asker.VERIFICATION):
            assert isinstance(answer, StudyAnswer)
            self._answers.append(answer)
        self._compared += self._comparison.take()
        rules = self._questions.rules
        if rules is None:
            return
        self._trust.gather(now, rules, is_busy=bool(self._asked))
        answered = self._questions.answered != self._answers_known
        self._answers_known = self._questions.answered
        self._is_due = self._is_due or answered
        if self._compared or answered or not self._asked:
            self._waits_for_trust = False
        may_ask = self._may_plan(now) and not self._waits_for_trust
        check = self._next_check_at(now) if may_ask else None
        self._is_due = self._is_due or (check is not None and check <= now.utc)
        if may_ask and check is None and self.is_idle and not self._others_wait():
            self._questions.nothing_waits()

    is_of_studies = True

    @property
    def studies(self) -> Collection[str] | None:
        """Those of the rows that were asked about, and one that others had when all that was due was theirs.

        What a comparison says of a server may concern all rows there.
        """
        findings = (finding for answer in self._answers for finding in answer.findings)
        if self._compared or self._trust.has_work or any(each.sameness is not None for each in findings):
            return None
        held_up = [self._held_up] if self._held_up and self._is_due else []
        return {*held_up, *(row.identity.study_uid for answer in self._answers for row in answer.question.rows)}

    def write(self, tx: Transaction, now: Now) -> None:
        """Write what answers and comparisons came to, and plan for the rows that are due then."""
        tx = tx.at(self._ledger.destination_id)
        rules = self._questions.rules
        if rules is None or not (self._answers or self._compared or self._is_due or self._trust.has_work):
            return
        comparisons = Comparisons(queries.standing(tx))
        rules = replace(
            rules, stopped=comparisons.standing.stopped_at is not None and rules.verify is not Verify.PRESENCE
        )
        ids = {row.delivery_id for answer in self._answers for row in answer.question.rows}
        ids.update(compared.finding.row.delivery_id for compared in self._compared)
        rows = {row.delivery_id: row for row in queries.unproven_rows(tx, ids)}
        this = Round(now=now, rules=rules, rows=rows, comparisons=comparisons)
        for answer in self._answers:
            self._write_answer(answer, tx, this)
        for compared in self._compared:
            self._write_comparison(compared, tx, this)
        self._apply(this.outcomes, tx, this)
        self._trust.record(tx, now, rules, comparisons)
        if self._is_due and self._may_plan(now):
            self._plan(tx, this)
        tx.on_commit(partial(self._committed, this))

    def next_at(self, now: Now) -> float:
        if self._questions.rules is None or len(self._asked) >= _ROWS_MOST:
            return inf
        if not self._may_plan(now):
            return self._plan_at
        check = self._next_check_at(now)
        if check is None:
            return inf
        left = (check - now.utc).total_seconds()
        if self.more_rows and left <= 0:
            return now.mono
        # Rows that are being asked about stay due until the answer is written; the answer wakes us.
        return now.mono + max(0.0, left) if left > 0 or not self._asked else inf

    def _next_check_at(self, now: Now) -> datetime | None:
        is_anew = now.mono >= self._anew_at or now.utc < self._due_since
        since = queries.BEGINNING if is_anew else self._due_since
        check = queries.next_check_at(self._ledger, now=now.utc, since=since)
        if is_anew:
            self._due_since = min(now.utc, check or now.utc) - _BEFORE_THE_FIRST
            self._anew_at = now.mono + _ANEW_EVERY_SECONDS
        return check

    def _may_plan(self, now: Now) -> bool:
        under_way = len(self._asked)
        is_worth_it = under_way <= max(_ROWS_FEW, self._plan_below) or now.mono >= self._plan_at
        return under_way < _ROWS_MOST and is_worth_it

    def _plan(self, tx: Transaction, this: Round) -> None:
        due = queries.unproven(tx, now=this.now.utc, since=self._due_since, limit=_ROWS_MOST)
        free = [row for row in due if row.delivery_id not in self._asked]
        ours = moves.take_unproven(tx, free)
        chosen = self._trust.choose(tx, ours, this.rules, this.comparisons)
        probes = self._trust.probe(tx, this.now, this.comparisons, asked=self._asked) if this.rules.stopped else []
        probed = {row.delivery_id for row in probes}
        rest = [row for row in chosen if row.delivery_id not in probed]
        this.waits = len(chosen) < len(ours)
        # Those whose answers are written now, and which somebody has woken meanwhile, are taken up in the next round.
        is_left = len(due) >= _ROWS_MOST or len(ours) < len(free) or any(row.delivery_id in this.rows for row in due)
        this.more = not this.waits and is_left
        this.held_up = free[0].identity.study_uid if free and not ours else ""
        for some, under in ((rest, this.rules), (probes, replace(this.rules, stopped=False))):
            planned = plan(some, rules=under, now=this.now.utc)
            self._apply(planned.outcomes, tx, this)
            this.questions += planned.questions
            this.asked += [row for row in some if row.delivery_id in planned.asked]

    def _apply(self, outcomes: Sequence[Outcome], tx: Transaction, this: Round) -> None:
        if outcomes:
            applied = moves.apply(tx, outcomes, now=this.now.utc, backoff=self._backoff, jitter=self._jitter())
            this.told += outcomes
            this.moved += applied.lost

    def _write_answer(self, answer: StudyAnswer, tx: Transaction, this: Round) -> None:
        found = {finding.row.delivery_id for finding in answer.findings}
        unasked = [row for row in answer.question.rows if row.delivery_id not in found]
        if unasked:
            wait = self._questions.wait_after(answer, this.now)
            self._ask_later(unasked, tx, this, note=answer.failure, wait=wait)
            this.closed += [row.delivery_id for row in unasked]
            this.not_asked.append(answer)
        for finding in answer.findings:
            judged = self._judge(finding, tx, this)
            if judged is NextStep.COMPARE and finding.copies:
                this.compare.append(finding)
                continue
            if isinstance(judged, Outcome) and judged.state is State.PENDING and self._is_lost(finding.row.path):
                moves.fail_gone(tx, [judged.delivery_id], note=_GONE_NOTE, now=this.now.utc)
            elif isinstance(judged, Outcome):
                this.take(judged, finding)
            elif judged is not None:
                self._ask_later([finding.row], tx, this)
            this.close(finding)

    def _judge(self, finding: Finding, tx: Transaction, this: Round) -> Outcome | NextStep | None:
        """Judge by the row as it is now; None where it moved meanwhile."""
        row = this.as_it_is(finding.row)
        if row is None:
            return None
        if self._was_asked_before_jump(row):
            return NextStep.ASK
        if finding.present is False:
            # How long ago this process saw it absent first, if that is in a row with now.
            first = self._absent.get(row.delivery_id, finding.asked_boot) if row.absences else finding.asked_boot
            this.absent[row.delivery_id] = first
            row = replace(row, absent_for=timedelta(seconds=finding.asked_boot - first))
        if finding.sameness is not None:
            return self._trust.judge(tx, row, finding.sameness, this.comparisons, rules=this.rules, at=finding.asked_at)
        give_up = self._posting.post_results.takes_others(row, this.now)
        return judge(replace(finding, row=row), rules=this.rules, give_up=give_up, lost=self._is_lost(row.path))

    def _write_comparison(self, compared: Compared, tx: Transaction, this: Round) -> None:
        finding = compared.finding
        row = this.as_it_is(finding.row)
        if row is not None and self._was_asked_before_jump(row):
            self._ask_later([finding.row], tx, this)
        elif row is not None and compared.sameness is not None:
            judged = self._trust.judge(
                tx,
                row,
                compared.sameness,
                this.comparisons,
                rules=this.rules,
                at=finding.asked_at,
                differs=compared.differs,
            )
            this.take(judged, finding)
        elif row is not None:
            # Nothing was learnt (a reader died of it, or one of the two could not be read): ask again, ever later.
            why = f": {compared.waits}" if compared.waits else ""
            note = f"the server's copy could not be compared with the file this time{why}"
            told = not_told(row, note, rules=this.rules, now=finding.asked_at, lost=self._is_lost(row.path))
            this.take(told, finding)
        this.close(finding)

    def _ask_later(
        self,
        asked: Sequence[Unproven],
        tx: Transaction,
        this: Round,
        *,
        note: str = "",
        wait: timedelta = timedelta(0),
    ) -> None:
        sleeping = [row.delivery_id for row in asked if not this.was_woken(row)]
        moves.check_again(tx, sleeping, at=this.now.utc + max(ASK_AGAIN, self._interval, wait), note=note)

    def _was_asked_before_jump(self, row: Unproven) -> bool:
        return self._asked.get(row.delivery_id, self._questions.clock_sets) != self._questions.clock_sets

    def _is_lost(self, path: str | None) -> bool:
        return path is not None and self._is_lost_at(path)

    def _committed(self, this: Round) -> None:
        self._answers, self._compared, self._is_due = [], [], False
        self._trust.committed(this.comparisons)
        for delivery_id in this.closed:
            self._asked.pop(delivery_id, None)
            self._trust.end(delivery_id)
        for finding in this.compare:
            self._comparison.start(finding)
        self._trust.begin(this.asked)
        self._asked.update((row.delivery_id, self._questions.clock_sets) for row in this.asked)
        for question in this.questions:
            self._questions.ask(Asker.VERIFICATION, question)
        if this.waits is not None:
            self._waits_for_trust, self.more_rows, self._held_up = this.waits, this.more, this.held_up
            self._plan_below, self._plan_at = len(self._asked) // 2, this.now.mono + _LOOK_EVERY_SECONDS
        for row in this.found:
            self._posting.found(row, this.now)
        self._absent |= this.absent
        for outcome in this.told:
            if outcome.reason in _SEEN or outcome.state is not outcome.expected:
                self._absent.pop(outcome.delivery_id, None)
        this.log(self._log)
        for copy in this.needless:
            remove_scratch(copy)
