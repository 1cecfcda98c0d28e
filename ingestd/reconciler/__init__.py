"""The reconciler: asks the server what became of the rows, and judges what proves what (DESIGN.md 6).

It never sees the ledger. The daemon takes ``Unproven`` rows that are due, lets ``plan`` say what is known already and
what has to be asked, submits the questions, and hands each answer to the judges, which give Outcomes for
``ledger.apply``. Judges and plan are pure; only the Reconciler's threads talk to the server.

Rules(profile, verify=Verify.AUTO, grace=15 min, lag=60 s, absence_wait=None, clock_offset=0, feed_read_at=None,
      most_attempts=10)
    everything the judges need beside row and now; clock_offset = server's clock - ours, from the last answer that had
    one; feed_read_at = when the feed was last read to its end.

plan(rows: Sequence[Unproven], *, rules, now) -> Plan(outcomes, questions, asked: frozenset[entry ids in questions])
    for rows that are due: what their sightings settle, what grace or backoff say, and one StudyQuestion per study
    (split where many or large copies have to be fetched). Every row is in exactly one outcome or one question.

Reconciler(client, *, scratch: Path, wake, utc_now, workers=2)
.submit(question) ; .collect() -> list[Answer] ; .in_flight -> int ; .is_healthy() -> bool ; .close(grace) -> None

FeedQuestion(cursor: FeedCursor | None, version: int, lag, first_attempt_at: datetime | None)
    cursor None: the first one is found (v2: first attempt - 10 min; v1: the latest sequence before it), then read.
FeedAnswer(question, sightings: tuple[Sighting, ...], unreadable: int, cursor: FeedCursor | None, complete: bool,
           asked_at, clock_offset, pause, error)
    sightings: one per identity, its newest entry; hand them with the cursor to ledger.record_sightings, in the
    transaction that applies the outcomes of ``plan`` for the rows that come up. complete False: ask again at once.
StudyQuestion(study_uid, rows: tuple[Unproven, ...], fetch: bool)
StudyAnswer(question, findings: tuple[Finding, ...], clock_offset, pause, error)
Finding(row: Unproven, present: bool | None, asked_at, sameness: Sameness | None, copy: Path | None, more, note: str)
    present None: could not be told now (ask again later). sameness: SAME where the server gave back our very bytes, and
    no copy then. copy, and more where the server has several: files in scratch, the caller's to compare one after the
    other (``next_copy``) and to unlink.
    findings is empty where the server could not be asked at all: ledger.check_again(...), and the pause.

judge(finding, *, rules, give_up=False, lost=False) -> Outcome | NextStep       what it settles; NextStep.COMPARE: hand
    copy and the row's file to the readers (CompareJob), then judge_comparison. A row without a file of its own
    compares digests: NextStep.COMPARE too, with ``row.path`` None.
judge_sighting(row, *, rules) -> Outcome | NextStep                   from row.seen_*; NextStep.ASK, NextStep.WAIT
judge_presence(row, *, present: bool, rules, now, give_up=False) -> Outcome | NextStep
judge_comparison(row, sameness: Sameness, *, rules, now, differs="") -> Outcome
    differs: what is not the same, in words.
    now: when the server was asked (finding.asked_at), which is what the evidence is newer than. give_up: True while
    others succeed; see sender.give_up.

audit(client, studies: Iterable[StudyRows], *, scratch, share: float, budget: timedelta, ...) -> Iterator[StudyAudit]
    ``reconcile --full``: study by study, only here, only there, and copies to compare (a share of them, or all).
unknown_studies(client, ...) -> Iterator[str]                     studies of the server, for the caller to look up
"""

from ingestd.reconciler.audit import audit, unknown_studies
from ingestd.reconciler.decide import (
    judge_comparison,
    judge_presence,
    judge_sighting,
    left_until_second_look,
    look_once_more,
    not_told,
    wait_for_feed,
)
from ingestd.reconciler.questions import (
    Answer,
    FeedAnswer,
    FeedQuestion,
    Finding,
    Plan,
    Question,
    StudyAnswer,
    StudyAudit,
    StudyQuestion,
    StudyRows,
    judge,
    plan,
)
from ingestd.reconciler.reconciler import Reconciler
from ingestd.reconciler.rules import NextStep, Rules, Verify, may_be_foreign, needs_comparison

__all__ = [
    "Answer",
    "FeedAnswer",
    "FeedQuestion",
    "Finding",
    "NextStep",
    "Plan",
    "Question",
    "Reconciler",
    "Rules",
    "StudyAnswer",
    "StudyAudit",
    "StudyQuestion",
    "StudyRows",
    "Verify",
    "audit",
    "judge",
    "judge_comparison",
    "judge_presence",
    "judge_sighting",
    "left_until_second_look",
    "look_once_more",
    "may_be_foreign",
    "needs_comparison",
    "not_told",
    "plan",
    "unknown_studies",
    "wait_for_feed",
]
