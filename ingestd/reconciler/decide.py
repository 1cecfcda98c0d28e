"""From what the server showed to a move: pure functions, one for each kind of evidence (DESIGN.md 6).

Each gives the Outcome that the evidence amounts to, or says what is still needed; what they go by stands in ``rules``.
An Outcome whose state is the row's own settles nothing yet: it records that the row was asked about and when to ask
next. ``plan`` settles what is known already and makes questions of the rest, ``judge`` takes what was found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ingestd.lifecycle import Outcome, Reason, Sameness, State, Unproven
from ingestd.reconciler.absence import deleted, judge_absence, not_told, wait_for_feed
from ingestd.reconciler.questions import Finding, StudyQuestion
from ingestd.reconciler.rules import (
    NextStep,
    Rules,
    is_deleted_since,
    is_from_before,
    is_refused,
    needs_comparison,
    outcome_of,
    spoken,
)

# What one question may bring into scratch at most, save a single larger file.
FETCH_ROWS = 50
FETCH_BYTES = 256_000_000
PRESENCE_ROWS = 1000
_FOUND = {
    Sameness.OTHER: "the server has an object with the same UIDs and other content",
    Sameness.OTHER_ENCODING: "the server's object with the same UIDs is encoded in another transfer syntax, which "
    "cannot be compared",
    Sameness.NOT_WHOLE: "the server gives back a copy that is no whole object",
}
_COMPARING_HAS_STOPPED = (
    "the server answered that it stored it; nothing of this server has ever matched what it was sent, so that "
    "comparing has stopped: see `ingestd status`"
)
_HISTORY = {
    State.STORED: "the server had answered that it stored it",
    State.UNCERTAIN: "nobody knew whether the server had stored it",
    State.CONFIRMED: "it was confirmed before",
    State.DELETED: "it had been deleted on the server",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is settled without asking, what has to be asked, and whom the questions are about."""

    outcomes: tuple[Outcome, ...]
    questions: tuple[StudyQuestion, ...]
    asked: frozenset[int]


def plan(rows: Sequence[Unproven], *, rules: Rules, now: datetime) -> Plan:
    """Settle the rows that are due by what is known of them, and put the others into questions, study by study."""
    outcomes: list[Outcome] = []
    ask: dict[int, Unproven] = {}
    for row in rows:
        verdict = judge_sighting(row, rules=rules) if rules.profile.has_feed else NextStep.ASK
        if isinstance(verdict, Outcome):
            outcomes.append(verdict)
        elif rules.stopped and row.state is State.STORED and needs_comparison(row, rules):
            outcome = outcome_of(row, row.reason or Reason.STORED_ANSWER, _COMPARING_HAS_STOPPED, wait=rules.grace)
            outcomes.append(replace(outcome, noted=True))
        elif verdict is not NextStep.WAIT:
            ask[row.delivery_id] = row
        elif row.state is State.STORED:
            outcomes.append(wait_for_feed(row, rules=rules, now=now))
        else:
            assert row.state is State.DELETED, f"{row.state} is not left alone"
            outcomes.append(outcome_of(row, Reason.FEED, "the server's change feed has it as deleted still"))
    questions = tuple(_questions(ask.values(), rules))
    return Plan(outcomes=tuple(outcomes), questions=questions, asked=frozenset(ask))


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
    if finding.copies:
        return NextStep.COMPARE
    verdict = judge_presence(row, present=finding.present, rules=rules, now=at, give_up=give_up)
    return NextStep.ASK if verdict is NextStep.COMPARE else verdict


def judge_sighting(row: Unproven, *, rules: Rules) -> Outcome | NextStep:
    """Judge a row by the newest change feed entry of its identity, and the state that entry had when it was read."""
    if row.state is State.DELETED:
        return NextStep.WAIT if row.seen_state in {None, "deleted"} else NextStep.ASK
    if row.state is State.CONFIRMED:
        return _deleted_by_feed(row, rules) if is_deleted_since(row, rules) else NextStep.ASK
    if row.state is State.UNCERTAIN:
        return _uncertain_by_feed(row, rules)
    assert row.state is State.STORED, f"{row.state} has nothing to prove"
    if is_deleted_since(row, rules):
        return _deleted_by_feed(row, rules)
    if needs_comparison(row, rules):
        # Its entry says "replaced" where a newer one exists that we have not read: the copy tells all the same.
        return NextStep.ASK
    if row.seen_sequence is None or is_from_before(row, rules):
        return NextStep.WAIT
    if row.seen_state == "current":
        return _confirmed_by_feed(row, rules)
    # Deleted, at about the time of our post: before it or after it? Or a word that we do not know.
    return NextStep.ASK


def _uncertain_by_feed(row: Unproven, rules: Rules) -> Outcome | NextStep:
    if row.was_stored and is_deleted_since(row, rules):
        return _deleted_by_feed(row, rules)
    shown = row.seen_state == "current" and not is_from_before(row, rules)
    if shown and not needs_comparison(row, rules):
        return _confirmed_by_feed(row, rules)
    return NextStep.ASK


def judge_presence(
    row: Unproven, *, present: bool, rules: Rules, now: datetime, give_up: bool = False
) -> Outcome | NextStep:
    """Judge a row by whether the server has its identity: listed by a query, or a GET of the instance answered 404.

    ``now`` is when it was asked (our clock). ``give_up`` says that other files are being stored meanwhile, so that a
    row which met a server error as often as ``most_attempts`` allows is FAILED instead of sent once more.
    """
    if not present:
        return judge_absence(row, rules=rules, now=now, give_up=give_up)
    if needs_comparison(row, rules):
        if not (rules.stopped and row.state is State.UNCERTAIN):
            return NextStep.COMPARE
        note = "the server has it when asked; its content is to be compared"
        return outcome_of(row, Reason.QUERY, note, state=State.STORED, at=now)
    reason = Reason.ALREADY_THERE if row.reason is Reason.ALREADY_THERE else Reason.QUERY
    evidence = {"before_the_post": "absent"} if row.present_before is False else {}
    evidence["content"] = "not compared"
    return _confirmed(row, reason, "the server has it when asked", at=now, **evidence)


def judge_comparison(row: Unproven, sameness: Sameness, *, rules: Rules, now: datetime, differs: str = "") -> Outcome:
    """Judge a row by how the server's copy, retrieved whole at ``now``, compares with our file.

    ``differs`` says in words what is not the same. A copy that is no whole object counts when it came twice.
    """
    assert sameness is not Sameness.COMPARE, "the canonical digests have to be compared first"
    if sameness is Sameness.SAME:
        reason = Reason.ALREADY_THERE if row.reason is Reason.ALREADY_THERE else Reason.CONTENT_CHECK
        how = "the server's copy was retrieved and has the same content"
        confirmed = _confirmed(row, reason, how, at=now, content="same")
        return replace(confirmed, sameness=sameness)
    found = _FOUND[sameness] + (f" ({differs})" if differs else "")
    evidence = {"content": sameness.value}
    if row.state is State.DELETED:
        # It holds nothing, and what is there now is somebody else's: the row stays what it is.
        note = f"asked again after the deletion: {found}"
        return outcome_of(row, Reason.CONTENT_CHECK, note, at=now, evidence=evidence)
    if sameness is Sameness.NOT_WHOLE and (left := left_until_second_look(row, rules=rules, now=now)) > timedelta(0):
        return look_once_more(row, sameness, f"{found}; it is fetched once more in {spoken(left)}", wait=left)
    reason = Reason.OTHER_ENCODING if sameness is Sameness.OTHER_ENCODING else Reason.OTHER_CONTENT
    hint = " (if this server changes what it stores, on purpose, `reconcile.verify: presence` leaves contents alone)"
    if rules.profile.gives_original:
        hint = ""
    note = f"{found} ({_history_of(row)}); both are kept for a person to decide{hint}"
    conflict = outcome_of(row, reason, note, state=State.CONFLICT, at=now, evidence=evidence)
    return replace(conflict, sameness=sameness)


def left_until_second_look(row: Unproven, *, rules: Rules, now: datetime) -> timedelta:
    """Say how long until a copy that is not ours may be believed: until it was seen twice, apart."""
    return rules.between_looks - (now - rules.surely_since(row.differs_since or now, now))


def look_once_more(row: Unproven, sameness: Sameness, note: str, *, wait: timedelta) -> Outcome:
    """Leave a row whose copy on the server is not ours where it is, and say so; it is looked at again."""
    # No evidence of any instant: on a confirmed row that would end the look.
    outcome = outcome_of(row, Reason.CONTENT_CHECK, note, wait=wait, evidence={"content": sameness.value})
    return replace(outcome, sameness=sameness, noted=True)


def _confirmed(row: Unproven, reason: Reason, how: str, *, at: datetime | None, **evidence: str) -> Outcome:
    again = " again" if row.state in {State.CONFIRMED, State.DELETED} else ""
    note = f"confirmed{again}: {how} ({_history_of(row)})"
    return outcome_of(row, reason, note, state=State.CONFIRMED, at=at, evidence=evidence)


def _confirmed_by_feed(row: Unproven, rules: Rules) -> Outcome:
    assert row.seen_at is not None, "a sighting has a time"
    return _confirmed(
        row,
        Reason.FEED,
        "the server's change feed shows it",
        at=row.seen_at - rules.clock_offset,
        sequence=str(row.seen_sequence),
        server_time=row.seen_at.isoformat(),
        content="not compared",
    )


def _deleted_by_feed(row: Unproven, rules: Rules) -> Outcome:
    at = None if row.seen_at is None else row.seen_at - rules.clock_offset
    return deleted(row, "the server's change feed says that it was deleted", at=at, sequence=str(row.seen_sequence))


def _history_of(row: Unproven) -> str:
    return "the server had refused it" if is_refused(row) else _HISTORY[row.state]


def _questions(rows: Iterable[Unproven], rules: Rules) -> Iterator[StudyQuestion]:
    """Ask study by study, and cut a study's rows so that the copies of one question fit into scratch."""
    by_study: defaultdict[tuple[str, bool], list[Unproven]] = defaultdict(list)
    for row in rows:
        fetch = needs_comparison(row, rules) and not (rules.stopped and row.state is State.UNCERTAIN)
        by_study[row.identity.study_uid, fetch].append(row)
    original = rules.profile.gives_original
    for (study_uid, fetch), of_study in by_study.items():
        for some in _portions(of_study, fetch=fetch):
            yield StudyQuestion(study_uid=study_uid, rows=some, fetch=fetch, original=original)


def _portions(rows: Sequence[Unproven], *, fetch: bool) -> Iterator[tuple[Unproven, ...]]:
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
