"""What the reconciler is asked and what it answers, as plain values; and which questions the rows that are due need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from ingestd.lifecycle import (
    FeedCursor,
    FeedEnd,
    Identity,
    Outcome,
    Pause,
    Sameness,
    ServerKind,
    Sighting,
    State,
    Unproven,
)
from ingestd.reconciler.decide import (
    judge_comparison,
    judge_presence,
    judge_sighting,
    not_told,
    stays_stored,
    still_deleted,
    wait_for_feed,
)
from ingestd.reconciler.rules import NextStep, Rules, needs_comparison

# What one question may bring into scratch at most, save a single larger file.
FETCH_ROWS = 50
FETCH_BYTES = 256_000_000
PRESENCE_ROWS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedQuestion:
    """What is new in the change feed; with ``cursor`` None the first one is found beforehand.

    That is ten minutes before ``first_attempt_at`` (our clock; v1: the latest sequence before then), or before now if
    nothing was ever posted, or not yet. ``end`` is how far the feed ever went, ``cursor_moved_at`` when the cursor was
    put where it is (our clock), ``elapsed`` what has passed since the last answer by a clock that nobody can set.
    """

    cursor: FeedCursor | None
    version: int
    lag: timedelta = timedelta(seconds=60)
    first_attempt_at: datetime | None = None
    end: FeedEnd | None = None
    cursor_moved_at: datetime | None = None
    elapsed: timedelta = timedelta(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedAnswer:
    """What the change feed showed: each identity's newest entry, and how far it counts as read.

    ``unreadable`` counts the entries that could not be read and were stepped over.

    ``end`` is how far the feed goes, None where that could not be told. ``went_back_to`` is the sequence from which on
    the feed is not what it was: the server was restored from an older backup.

    ``complete`` is False where there is more to be read now, or nothing could be read. ``pause`` and ``error`` say why
    it broke off; what was read until then counts.
    """

    question: FeedQuestion
    sightings: tuple[Sighting, ...] = ()
    unreadable: int = 0
    cursor: FeedCursor | None = None
    end: FeedEnd | None = None
    went_back_to: int | None = None
    complete: bool = False
    asked_at: datetime
    clock_offset: timedelta | None = None
    pause: Pause | None = None
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyQuestion:
    """Whether the server has these instances of one study, and with ``fetch`` what it has under these UIDs.

    ``original`` asks Azure for the version before any bulk update. ``keep`` wants the copy also where it is our very
    bytes.
    """

    study_uid: str
    rows: tuple[Unproven, ...]
    fetch: bool
    original: bool = False
    keep: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What the server showed of one row at ``asked_at`` (our clock; ``asked_boot`` on ``clocks.boottime``).

    ``present`` None: it could not be told now, ``note`` says why, and ``is_ours`` that this machine is to blame.
    ``sameness`` is SAME where the server gave back the very bytes of our file; else a fetched ``copy`` lies in
    scratch, for the caller to compare and to unlink, and beside it ``more``, where the server has several: the row is
    proven if one of them is ours.
    """

    row: Unproven
    present: bool | None
    asked_at: datetime
    asked_boot: float = 0.0
    is_ours: bool = False
    sameness: Sameness | None = None
    copy: Path | None = None
    more: tuple[Path, ...] = ()
    note: str = ""

    @property
    def copies(self) -> tuple[Path, ...]:
        """Everything that lies in scratch for it."""
        return () if self.copy is None else (self.copy, *self.more)

    def next_copy(self) -> Finding | None:
        """Give the finding that is left when the first copy is known not to be ours."""
        return replace(self, copy=self.more[0], more=self.more[1:]) if self.more else None


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyAnswer:
    """The findings about a study's rows; rows without one could not be asked about (``pause``, ``error``)."""

    question: StudyQuestion
    findings: tuple[Finding, ...]
    clock_offset: timedelta | None = None
    pause: Pause | None = None
    error: str = ""

    @property
    def failure(self) -> str:
        """Say why not all rows could be asked about; empty where nothing failed."""
        error = self.error or (self.pause.note if self.pause else "")
        what = "its copy could not be had" if self.question.fetch else "the server could not be asked for it"
        return f"{what}: {error}" if error else ""


Question = FeedQuestion | StudyQuestion
Answer = FeedAnswer | StudyAnswer


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is settled without asking, what has to be asked, and whom the questions are about."""

    outcomes: tuple[Outcome, ...]
    questions: tuple[StudyQuestion, ...]
    asked: frozenset[int]


def plan(rows: Sequence[Unproven], *, rules: Rules, now: datetime) -> Plan:
    """Settle the rows that are due by what is known of them, and put the others into questions, study by study."""
    outcomes: list[Outcome] = []
    ask: list[Unproven] = []
    for row in rows:
        verdict = judge_sighting(row, rules=rules) if rules.profile.has_feed else NextStep.ASK
        if isinstance(verdict, Outcome):
            outcomes.append(verdict)
        elif rules.stopped and row.state is State.STORED and needs_comparison(row, rules):
            outcomes.append(stays_stored(row, rules=rules))
        elif verdict is not NextStep.WAIT:
            ask.append(row)
        elif row.state is State.STORED:
            outcomes.append(wait_for_feed(row, rules=rules, now=now))
        else:
            outcomes.append(still_deleted(row))
    questions = tuple(_questions(ask, rules))
    asked = frozenset(row.entry_id for question in questions for row in question.rows)
    return Plan(outcomes=tuple(outcomes), questions=questions, asked=asked)


def judge(finding: Finding, *, rules: Rules, give_up: bool = False, lost: bool = False) -> Outcome | NextStep:
    """Say what one finding settles; the evidence is as old as the question, not as its judgement.

    NextStep.COMPARE: compare the copy with the row's file, then ``judge_comparison``. NextStep.ASK: the rules have
    become stricter since it was asked; ask again. ``give_up`` as for ``judge_presence``, ``lost`` as for ``not_told``.
    """
    row, at = finding.row, finding.asked_at
    if finding.present is None:
        return not_told(row, finding.note, rules=rules, now=at, lost=lost)
    if finding.sameness is not None:
        return judge_comparison(row, finding.sameness, rules=rules, now=at)
    if finding.copy is not None:
        return NextStep.COMPARE
    verdict = judge_presence(row, present=finding.present, rules=rules, now=at, give_up=give_up)
    return NextStep.ASK if verdict is NextStep.COMPARE else verdict


def _questions(rows: Iterable[Unproven], rules: Rules) -> Iterator[StudyQuestion]:
    by_study: defaultdict[tuple[str, bool], list[Unproven]] = defaultdict(list)
    for row in rows:
        fetch = needs_comparison(row, rules) and not (rules.stopped and row.state is State.UNCERTAIN)
        by_study[row.identity.study_uid, fetch].append(row)
    original = rules.profile.kind is ServerKind.AZURE
    for (study_uid, fetch), of_study in by_study.items():
        for some in _portions(of_study, fetch=fetch):
            yield StudyQuestion(study_uid=study_uid, rows=some, fetch=fetch, original=original)


def _portions(rows: Sequence[Unproven], *, fetch: bool) -> Iterator[tuple[Unproven, ...]]:
    """Cut a study's rows so that the copies of one question fit into scratch."""
    most, most_bytes = (FETCH_ROWS, FETCH_BYTES) if fetch else (PRESENCE_ROWS, None)
    some: list[Unproven] = []
    size = 0
    for row in rows:
        too_many = len(some) >= most or (most_bytes is not None and size + row.content.size_bytes > most_bytes)
        if some and too_many:
            yield tuple(some)
            some, size = [], 0
        some.append(row)
        size += row.content.size_bytes
    if some:
        yield tuple(some)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRows:
    """Everything that the ledger has of one study, for an audit."""

    study_uid: str
    rows: tuple[Unproven, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyAudit:
    """How ledger and server compare for one study.

    ``here_only``: rows that the server does not have (asked once: an absence counts when it was seen twice).
    ``there_only``: what the server has and the ledger does not know. ``findings``: everything that was found of the
    rows, copies to compare among them. ``error``: the study could not be audited, or not to its end.
    """

    study_uid: str
    findings: tuple[Finding, ...] = ()
    here_only: tuple[Unproven, ...] = ()
    there_only: tuple[Identity, ...] = ()
    error: str = ""
    pause: Pause | None = None
