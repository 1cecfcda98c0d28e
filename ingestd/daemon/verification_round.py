"""What one transaction of the verification has found, and what is to be done once that is durable."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ingestd.clocks import Now
from ingestd.daemon.trust import Comparisons
from ingestd.lifecycle import Outcome, Reason, State, Unproven
from ingestd.reconciler import Finding, Rules, StudyAnswer, StudyQuestion


@dataclass(slots=True)
class Round:
    """What one transaction goes by, what it has found, and what is to be done once that is durable."""

    now: Now
    rules: Rules
    rows: dict[int, Unproven]  # those of the answers and comparisons at hand, as they are in this transaction
    comparisons: Comparisons
    outcomes: list[Outcome] = field(default_factory=list)  # to be written
    told: list[Outcome] = field(default_factory=list)  # written
    moved: int = 0  # rows that moved meanwhile
    not_asked: list[StudyAnswer] = field(default_factory=list)  # for some of their rows
    found: list[Unproven] = field(default_factory=list)  # the server has them
    absent: dict[int, float] = field(default_factory=dict)  # when first seen so
    compare: list[Finding] = field(default_factory=list)  # their copies, with our files
    closed: list[int] = field(default_factory=list)  # rows of which nothing is asked any more
    needless: list[Path] = field(default_factory=list)  # copies
    questions: list[StudyQuestion] = field(default_factory=list)
    asked: list[Unproven] = field(default_factory=list)  # by these questions
    waits: bool | None = None  # whether rows wait for the comparisons under way; None: none were looked at
    more: bool = False
    held_up: str = ""  # the first of the studies that others have, where these have all that is due

    def as_it_is(self, asked: Unproven) -> Unproven | None:
        """Give the row of an answer as it is by now; None if it moved meanwhile, and the answer says nothing of it."""
        row = self.rows.get(asked.delivery_id)
        if row is not None and (row.state, row.content, row.last_attempt_at) == (
            asked.state,
            asked.content,
            asked.last_attempt_at,
        ):
            return row
        self.moved += 1
        return None

    def was_woken(self, asked: Unproven) -> bool:
        """Whether somebody wants to have the row looked at since it was asked about: that stands."""
        row = self.rows.get(asked.delivery_id)
        return row is not None and row.next_check_at != asked.next_check_at

    def take(self, outcome: Outcome, finding: Finding) -> None:
        """Have an outcome written, unless it would only put to sleep what somebody has woken meanwhile."""
        if outcome.state is State.CONFIRMED:
            self.found.append(finding.row)
        if outcome.state is not finding.row.state or not self.was_woken(finding.row):
            self.outcomes.append(outcome)

    def close(self, finding: Finding) -> None:
        self.closed.append(finding.row.delivery_id)
        self.needless += finding.copies

    def log(self, log: structlog.typing.FilteringBoundLogger) -> None:
        for answer in self.not_asked:
            rows = len(answer.question.rows) - len(answer.findings)
            log.warning("study.not_asked", rows=rows, error=answer.failure)
        for outcome in self.told:
            if outcome.state is State.DELETED:
                log.error("instance.deleted", delivery_id=outcome.delivery_id, note=outcome.note)
            elif outcome.state in (State.CONFLICT, State.FAILED):
                log.error(
                    "instance.needs_person",
                    delivery_id=outcome.delivery_id,
                    state=outcome.state.value,
                    reason=outcome.reason.value,
                )
            elif outcome.reason is Reason.NOT_SHOWN:
                log.warning("instance.not_shown", delivery_id=outcome.delivery_id, note=outcome.note)
        confirmed = sum(outcome.state is State.CONFIRMED for outcome in self.told)
        if confirmed:
            log.info("instance.confirmed", instances=confirmed)
        if self.moved:
            log.warning("reconciler.rows_moved_meanwhile", rows=self.moved)
