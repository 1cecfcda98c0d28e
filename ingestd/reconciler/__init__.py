"""The reconciler: asks the server what became of the rows, and judges what proves what (DESIGN.md 6).

It never sees the ledger: rows that are due go in, Outcomes for the ledger come out. ::

    reconciler = Reconciler(client, scratch=folder, wake=wake, utc_now=utc_now)
    todo = plan(rows, rules=rules, now=now)     # each row is in one of todo.outcomes, or in one of todo.questions
    for question in todo.questions: reconciler.submit(question)
    ...                                         # wake() is called, from another thread, when there is an answer
    for answer in reconciler.collect():         # a FeedAnswer, or a StudyAnswer with its findings
        judge(finding, rules=rules)             # an Outcome, or NextStep.COMPARE: compare the copy, judge_comparison

Only the Reconciler's workers talk to the server, and nothing raises because of it: an answer says why it is not whole
(``error``), and whether the server as a whole is to be left alone (``pause``). All else is pure. Copies that a finding
has lie in ``scratch`` and are the caller's to unlink. ``audit`` and ``unknown_studies`` are for ``reconcile --full``.
"""

from ingestd.reconciler.absence import not_told, wait_for_feed
from ingestd.reconciler.audit import StudyAudit, StudyRows, audit, unknown_studies
from ingestd.reconciler.decide import (
    Plan,
    judge,
    judge_comparison,
    judge_presence,
    judge_sighting,
    left_until_second_look,
    look_once_more,
    plan,
)
from ingestd.reconciler.questions import Answer, FeedAnswer, FeedQuestion, Finding, Question, StudyAnswer, StudyQuestion
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
