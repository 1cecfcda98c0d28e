"""What proves what (DESIGN.md 6): every combination of server, row and evidence, held to a few plain rules."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingestd.lifecycle import (
    MOVES,
    REFUSALS,
    Content,
    Identity,
    Jump,
    Outcome,
    Reason,
    Sameness,
    ServerKind,
    State,
    Unproven,
)
from ingestd.reconciler import (
    Finding,
    NextStep,
    Rules,
    Verify,
    judge,
    judge_comparison,
    judge_presence,
    judge_sighting,
    needs_comparison,
    not_told,
    plan,
    wait_for_feed,
)
from ingestd.sender import profile_of

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
STARTED = NOW - timedelta(minutes=5)
STORED_AT = STARTED + timedelta(seconds=2)
AZURE = profile_of(ServerKind.AZURE, feed_version=2)
ORTHANC = profile_of(ServerKind.ORTHANC)
OTHER = profile_of(ServerKind.OTHER)
OTHER_WITH_FEED = replace(OTHER, has_feed=True, feed_version=2)
PROVABLE = (State.STORED, State.UNCERTAIN, State.CONFIRMED, State.DELETED)


def row_of(state: State = State.STORED, **more) -> Unproven:
    was_stored = state is not State.UNCERTAIN
    facts = {
        "delivery_id": 1,
        "identity": Identity(study_uid="1.1", series_uid="1.2", sop_uid="1.3"),
        "state": state,
        "content": Content(
            transfer_syntax="1.2.840.10008.1.2.1", digest="d", meta_digest="m", dataset_offset=144, size_bytes=1000
        ),
        "path": Path("/nowhere"),
        "first_attempt_at": STARTED,
        "last_attempt_at": STARTED,
        "stored_at": STORED_AT if was_stored else None,
        "was_stored": was_stored,
    }
    return Unproven(**(facts | more))


def seen(action: str = "create", state: str = "current", at: datetime = STORED_AT, sequence: int = 7) -> dict:
    return {"seen_sequence": sequence, "seen_action": action, "seen_state": state, "seen_at": at}


def rules_of(profile=AZURE, **more) -> Rules:
    return Rules(profile=profile, **more)


def assert_sound(row: Unproven, outcome: Outcome) -> None:
    """What holds of every outcome, whatever it rests on."""
    assert row.delivery_id == outcome.delivery_id
    assert row.state is outcome.expected
    assert row.state is outcome.state or (row.state, outcome.state) in MOVES
    assert outcome.note or row.state in {State.UNCERTAIN, State.CONFIRMED, State.DELETED}
    assert "1.3" not in outcome.note
    if outcome.wait is not None:
        assert outcome.wait >= timedelta(0)


SIGHTINGS = [
    {},
    *(
        seen(action, state, at)
        for action in ("create", "update", "delete", "purge")
        for state in ("current", "replaced", "deleted", "frozen")
        for at in (
            STARTED - timedelta(hours=1),
            STARTED - timedelta(seconds=30),
            STORED_AT,
            STORED_AT + timedelta(minutes=4),
        )
    ),
]
ROWS = [
    row_of(state, reason=reason, present_before=before, needs_content_check=flagged)
    for state in PROVABLE
    for reason in (None, Reason.ALREADY_THERE, Reason.NO_VERDICT)
    for before in (None, True, False)
    for flagged in (False, True)
]


@pytest.mark.parametrize("profile", [AZURE, ORTHANC, OTHER, OTHER_WITH_FEED], ids=lambda one: one.kind.value)
def test_presence_confirms_only_what_nobody_else_can_have_put_there(profile):
    """The rule of all rules, spelt out anew: each line is a way in which it could be somebody else's object."""
    rules = rules_of(profile)
    for plain, sighting in itertools.product(ROWS, SIGHTINGS):
        row = replace(plain, **sighting)
        verdicts = [judge_sighting(row, rules=rules), judge_presence(row, present=True, rules=rules, now=NOW)]
        for verdict in verdicts:
            if not isinstance(verdict, Outcome):
                continue
            assert_sound(row, verdict)
            if verdict.state is not State.CONFIRMED:
                assert verdict.state is State.DELETED
                assert row.seen_state == "deleted"
                continue
            assert not row.needs_content_check
            assert row.reason is not Reason.ALREADY_THERE
            assert row.state is not State.DELETED
            assert profile is not ORTHANC
            if profile is AZURE:
                assert row.state in {State.STORED, State.CONFIRMED}
                assert row.seen_action in {None, "create", "delete", "purge", "update"}
                if row.seen_state not in {None, "deleted"}:
                    assert (row.seen_action, row.seen_state) == ("create", "current")
                    assert row.seen_at <= STORED_AT + timedelta(minutes=1)
            else:
                assert row.present_before is False


def test_every_row_that_is_due_is_settled_or_asked_about_exactly_once():
    rows = [
        replace(row, delivery_id=number, **sighting)
        for number, (row, sighting) in enumerate(itertools.product(ROWS, SIGHTINGS), start=1)
    ]
    for profile in (AZURE, ORTHANC, OTHER, OTHER_WITH_FEED):
        for verify in Verify:
            rules = rules_of(profile, verify=verify)

            planned = plan(rows, rules=rules, now=NOW)

            settled = [outcome.delivery_id for outcome in planned.outcomes]
            asked = [row.delivery_id for question in planned.questions for row in question.rows]
            assert sorted(settled + asked) == [row.delivery_id for row in rows]
            assert planned.asked == set(asked)
            for outcome in planned.outcomes:
                assert_sound(rows[outcome.delivery_id - 1], outcome)
            for question in planned.questions:
                assert all(needs_comparison(row, rules) == question.fetch for row in question.rows)
                assert question.original == (profile is AZURE)


@pytest.mark.parametrize(
    "sighting, state, flagged, verdict",
    [
        ({}, State.STORED, False, NextStep.WAIT),
        (seen(), State.STORED, False, State.CONFIRMED),
        (seen(), State.STORED, True, NextStep.ASK),
        (seen(at=STARTED - timedelta(hours=1)), State.STORED, False, NextStep.WAIT),
        (seen(at=STORED_AT + timedelta(minutes=4)), State.STORED, False, NextStep.ASK),
        (seen(state="replaced"), State.STORED, False, NextStep.ASK),
        (seen("update"), State.STORED, False, NextStep.ASK),
        (seen("delete", "deleted", STORED_AT + timedelta(minutes=4)), State.STORED, False, State.DELETED),
        (seen("create", "deleted", STORED_AT), State.STORED, False, NextStep.ASK),
        (seen("delete", "deleted", STARTED - timedelta(hours=1)), State.STORED, False, NextStep.WAIT),
        (seen(), State.UNCERTAIN, False, NextStep.ASK),
        (seen("delete", "deleted", STARTED + timedelta(minutes=4)), State.UNCERTAIN, False, NextStep.ASK),
        ({}, State.UNCERTAIN, False, NextStep.ASK),
        (seen(), State.CONFIRMED, False, NextStep.ASK),
        (seen("delete", "deleted", STORED_AT + timedelta(minutes=4)), State.CONFIRMED, True, State.DELETED),
        (seen("delete", "deleted", STARTED - timedelta(hours=1)), State.CONFIRMED, False, NextStep.ASK),
        (seen(at=STORED_AT + timedelta(minutes=4)), State.DELETED, False, NextStep.ASK),
        (seen("delete", "deleted"), State.DELETED, False, NextStep.WAIT),
        ({}, State.DELETED, False, NextStep.WAIT),
    ],
)
def test_change_feed_on_a_server_that_refuses_duplicates(sighting, state, flagged, verdict):
    row = row_of(state, needs_content_check=flagged, **sighting)

    judged = judge_sighting(row, rules=rules_of())

    assert verdict is (judged.state if isinstance(judged, Outcome) else judged)


def test_deletion_of_a_row_that_was_stored_once_ends_it_even_where_it_is_uncertain_now():
    row = row_of(State.UNCERTAIN, was_stored=True, **seen("delete", "deleted", STARTED + timedelta(minutes=4)))

    judged = judge_sighting(row, rules=rules_of())

    assert isinstance(judged, Outcome)
    assert (judged.state, judged.reason) == (State.DELETED, Reason.FEED)


def test_times_are_compared_on_the_server_s_clock():
    an_hour_behind = rules_of(clock_offset=timedelta(hours=-1))
    there = seen(at=STORED_AT - timedelta(hours=1))

    assert judge_sighting(row_of(**there), rules=rules_of()) is NextStep.WAIT
    judged = judge_sighting(row_of(**there), rules=an_hour_behind)
    assert isinstance(judged, Outcome)
    assert (judged.state, judged.evidence_at) == (State.CONFIRMED, STORED_AT)


@pytest.mark.parametrize("state", PROVABLE)
@pytest.mark.parametrize("reason", [None, Reason.ALREADY_THERE])
def test_comparison_decides_whatever_else_is_known(state, reason):
    for profile in (AZURE, ORTHANC, OTHER):
        for sameness in (Sameness.SAME, Sameness.OTHER, Sameness.OTHER_ENCODING):
            row = row_of(state, reason=reason, **seen())

            outcome = judge_comparison(row, sameness, rules=rules_of(profile), now=NOW)

            assert_sound(row, outcome)
            assert outcome.evidence_at == NOW
            if sameness is Sameness.SAME:
                assert State.CONFIRMED is outcome.state
                assert (reason or Reason.CONTENT_CHECK) is outcome.reason
            elif state is State.DELETED:
                assert State.DELETED is outcome.state, "what is there now is somebody else's"
            else:
                expected = Reason.OTHER_CONTENT if sameness is Sameness.OTHER else Reason.OTHER_ENCODING
                assert (State.CONFLICT, expected) == (outcome.state, outcome.reason)


def absent(row: Unproven, *, now: datetime = NOW, give_up: bool = False, rules: Rules | None = None) -> Outcome:
    outcome = judge_presence(row, present=False, rules=rules or rules_of(), now=now, give_up=give_up)
    assert isinstance(outcome, Outcome)
    assert_sound(row, outcome)
    return outcome


@pytest.mark.parametrize(
    "profile, resends, apart", [(AZURE, 0, 10), (ORTHANC, 0, 10), (AZURE, 2, 40), (OTHER, 0, 300), (OTHER, 1, 600)]
)
def test_uncertain_row_is_sent_again_when_absent_twice_far_enough_apart(profile, resends, apart):
    rules = rules_of(profile)
    never = row_of(State.UNCERTAIN, resends=resends)
    wait = timedelta(seconds=apart)

    first = absent(never, rules=rules)
    too_soon = absent(replace(never, absences=1, absent_for=wait / 2), rules=rules)
    second = absent(replace(never, absences=1, absent_for=wait), rules=rules)

    assert (State.UNCERTAIN, Reason.ABSENT, wait) == (first.state, first.reason, first.wait)
    assert (State.UNCERTAIN, Reason.ABSENT, wait / 2) == (too_soon.state, too_soon.reason, too_soon.wait)
    assert (second.state, second.reason) == (State.PENDING, Reason.ABSENT)


def test_configured_absence_wait_goes_before_the_profile_s():
    assert (
        timedelta(seconds=1)
        == absent(row_of(State.UNCERTAIN), rules=rules_of(OTHER, absence_wait=timedelta(seconds=1))).wait
    )


def test_wait_between_absences_doubles_no_further_than_an_hour():
    assert timedelta(hours=1) == absent(row_of(State.UNCERTAIN, resends=60)).wait
    assert timedelta(hours=2) == absent(row_of(State.UNCERTAIN), rules=rules_of(absence_wait=timedelta(hours=2))).wait


def twice(state: State = State.UNCERTAIN, **more) -> Unproven:
    return row_of(state, absences=1, absent_for=timedelta(hours=2), **more)


def test_row_once_stored_is_sent_again_once_and_then_only_alarms():
    assert State.PENDING is absent(twice(was_stored=True, stored_at=STORED_AT)).state

    again = absent(twice(was_stored=True, stored_at=STORED_AT, resends=1))

    assert (State.UNCERTAIN, Reason.NOT_SHOWN, timedelta(hours=1)) == (again.state, again.reason, again.wait)
    assert State.PENDING is absent(twice(resends=9)).state, "never stored: no limit"


def test_row_once_stored_that_the_feed_has_as_deleted_is_deleted_not_sent_again():
    row = twice(was_stored=True, stored_at=STORED_AT, **seen("delete", "deleted", STORED_AT))

    assert State.DELETED is absent(row).state
    earlier = twice(was_stored=True, **seen("delete", "deleted", STARTED - timedelta(hours=1)))
    assert State.PENDING is absent(earlier).state, "that deletion was before our post"


def test_row_never_stored_that_the_feed_has_as_deleted_is_sent_again():
    """A server that takes back a store which failed half-way leaves a Create and a Delete (AZURE.md 1.8)."""
    assert State.PENDING is absent(twice(**seen("delete", "deleted", STARTED + timedelta(minutes=2)))).state


def test_absent_row_that_met_ten_server_errors_is_given_up_only_while_others_succeed():
    row = twice(charged=10)

    assert State.PENDING is absent(row).state
    assert State.PENDING is absent(twice(charged=9), give_up=True).state
    given_up = absent(row, give_up=True)
    assert (given_up.state, given_up.reason) == (State.FAILED, Reason.SERVER_ERROR)
    assert State.UNCERTAIN is absent(row_of(State.UNCERTAIN, charged=10), give_up=True).state, "absent once"


def test_stored_row_that_is_not_shown_keeps_its_grace_and_becomes_uncertain_then():
    for profile in (AZURE, ORTHANC, OTHER):
        rules = rules_of(profile, grace=timedelta(minutes=15))
        within = absent(row_of(State.STORED), now=STORED_AT + timedelta(minutes=14), rules=rules)
        after = absent(row_of(State.STORED), now=STORED_AT + timedelta(minutes=15), rules=rules)

        assert (within.state, within.reason) == (State.STORED, Reason.ABSENT)
        assert within.wait is not None
        assert within.wait <= timedelta(minutes=1)
        assert (after.state, after.reason) == (State.UNCERTAIN, Reason.NOT_SHOWN)


def test_confirmed_row_is_deleted_only_when_absent_twice():
    first = absent(row_of(State.CONFIRMED))
    second = absent(twice(State.CONFIRMED))

    assert (first.state, first.reason) == (State.CONFIRMED, Reason.ABSENT)
    assert (second.state, second.reason) == (State.DELETED, Reason.ABSENT)
    assert State.DELETED is absent(row_of(State.DELETED)).state


def test_stored_row_waits_for_the_feed_until_the_grace_time_ends():
    row = row_of(State.STORED)
    early = wait_for_feed(row, rules=rules_of(), now=STORED_AT + timedelta(minutes=10))
    late = wait_for_feed(row, rules=rules_of(), now=STORED_AT + timedelta(minutes=15))

    assert (State.STORED, timedelta(minutes=5)) == (early.state, early.wait)
    assert (late.state, late.reason) == (State.UNCERTAIN, Reason.NOT_SHOWN)
    for outcome in (early, late):
        assert_sound(row, outcome)


def test_feed_that_cannot_be_read_gets_more_time_but_not_for_ever():
    row = row_of(State.STORED)
    rules = rules_of(feed_read_at=STORED_AT + timedelta(minutes=3))
    later = wait_for_feed(row, rules=rules, now=STORED_AT + timedelta(minutes=59))
    at_last = wait_for_feed(row, rules=rules, now=STORED_AT + timedelta(minutes=61))

    assert State.STORED is later.state, "a feed that could not be read shows nothing, and that proves nothing"
    assert (at_last.state, at_last.reason) == (State.UNCERTAIN, Reason.NOT_SHOWN)
    assert "could not be read" in at_last.note
    for outcome in (later, at_last):
        assert_sound(row, outcome)


def test_verify_content_compares_everything_and_presence_nothing():
    for profile, row in itertools.product((AZURE, ORTHANC, OTHER, OTHER_WITH_FEED), ROWS):
        assert needs_comparison(row, rules_of(profile, verify=Verify.CONTENT))
        assert not needs_comparison(row, rules_of(profile, verify=Verify.PRESENCE))
        verdict = judge_presence(row, present=True, rules=rules_of(profile, verify=Verify.PRESENCE), now=NOW)
        assert isinstance(verdict, Outcome)
        assert (verdict.state, verdict.evidence["content"]) == (State.CONFIRMED, "not compared")


def test_finding_says_by_itself_what_it_settles():
    row = row_of(State.UNCERTAIN)
    rules = rules_of()

    def verdict(**more):
        return judge(Finding(row=row, asked_at=NOW, **more), rules=rules)

    same = verdict(present=True, sameness=Sameness.SAME)
    assert (same.state, same.evidence_at) == (State.CONFIRMED, NOW)
    assert verdict(present=True, copies=(Path("/scratch/copy"),)) is NextStep.COMPARE
    assert verdict(present=True) is NextStep.ASK, "the rules have become stricter since it was asked"
    assert (verdict(present=False).state, verdict(present=False).reason) == (State.UNCERTAIN, Reason.ABSENT)
    unclear = verdict(present=None, note="it could not be told")
    assert (unclear.state, unclear.note) == (State.UNCERTAIN, "it could not be told")
    assert unclear.reason is not Reason.ABSENT
    assert unclear.wait is not None


def test_question_brings_no_more_into_scratch_than_fits():
    small = [replace(row_of(State.UNCERTAIN), delivery_id=number) for number in range(120)]
    large = [
        replace(row, delivery_id=200 + number, content=replace(row.content, size_bytes=200_000_000))
        for number, row in enumerate(small[:3])
    ]

    questions = plan([*small, *large], rules=rules_of(), now=NOW).questions

    assert [len(question.rows) for question in questions] == [50, 50, 21, 1, 1]
    assert all(question.fetch for question in questions)


def test_rows_of_two_studies_are_asked_about_apart():
    rows = [
        replace(
            row_of(State.STORED, delivery_id=number), identity=Identity(study_uid=study, series_uid="1", sop_uid="2")
        )
        for number, study in enumerate(("1.1", "1.2", "1.1"))
    ]

    questions = plan([replace(row, present_before=False) for row in rows], rules=rules_of(OTHER), now=NOW).questions

    assert [(question.study_uid, len(question.rows), question.fetch) for question in questions] == [
        ("1.1", 2, False),
        ("1.2", 1, False),
    ]


def test_deleted_row_is_left_alone_until_the_feed_shows_it_again():
    row = row_of(State.DELETED, **seen("delete", "deleted"))

    (outcome,) = plan([row], rules=rules_of(), now=NOW).outcomes

    assert (outcome.state, outcome.wait) == (State.DELETED, None)


def test_file_that_three_answers_said_nothing_of_and_that_is_absent_is_given_up():
    implicit = replace(row_of().content, transfer_syntax="1.2.840.10008.1.2")

    def settled(**more) -> tuple:
        outcome = absent(twice(State.UNCERTAIN, **more))
        assert_sound(row_of(State.UNCERTAIN), outcome)
        return outcome.state, outcome.reason, outcome.reencode

    assert settled(unnamed=2) == (State.PENDING, Reason.ABSENT, False)
    assert settled(unnamed=3) == (State.FAILED, Reason.REFUSED, False)
    assert settled(unnamed=1, content=implicit) == (State.PENDING, Reason.ABSENT, True)
    assert settled(unnamed=3, content=implicit) == (State.PENDING, Reason.ABSENT, True), "its copy was not tried yet"
    assert settled(unnamed=0, content=implicit) == (State.PENDING, Reason.ABSENT, False)


def test_copy_that_is_not_whole_is_a_conflict_only_when_it_was_seen_twice():
    rules = rules_of(absence_wait=timedelta(seconds=10))
    for state in (State.STORED, State.UNCERTAIN, State.CONFIRMED):
        row = row_of(state)
        first = judge_comparison(row, Sameness.NOT_WHOLE, rules=rules, now=NOW, differs="it ends in PixelData")
        early = replace(row, differs_since=NOW - timedelta(seconds=9))
        late = replace(row, differs_since=NOW - timedelta(seconds=10))

        assert (first.state, first.wait, first.evidence_at) == (state, timedelta(seconds=10), None)
        assert "it ends in PixelData" in first.note
        assert judge_comparison(early, Sameness.NOT_WHOLE, rules=rules, now=NOW).state is state
        second = judge_comparison(late, Sameness.NOT_WHOLE, rules=rules, now=NOW)
        assert (second.state, second.reason) == (State.CONFLICT, Reason.OTHER_CONTENT)


def test_only_the_grace_time_ends_what_the_server_cannot_tell_where_nothing_but_its_answer_is_waited_for():
    rules = rules_of()

    def told(since: timedelta | None, *, lost: bool = False, **more) -> Outcome:
        row = row_of(State.UNCERTAIN, untold_since=None if since is None else NOW - since, **more)
        outcome = not_told(row, "its copy could not be had", rules=rules, now=NOW, lost=lost)
        assert_sound(row, outcome)
        return outcome

    early, late = rules.grace - timedelta(seconds=1), rules.grace
    for since in (None, early):
        waits = told(since, lost=True)
        assert (waits.state, waits.note, waits.untold) == (State.UNCERTAIN, "its copy could not be had", True)
        waits = told(since, reason=Reason.TOO_LARGE, note="too large (413)")
        assert (waits.state, waits.reason, waits.noted) == (State.UNCERTAIN, Reason.TOO_LARGE, False)
    gone = told(late, lost=True)
    assert (gone.state, gone.reason) == (State.FAILED, Reason.GONE)
    assert "its copy could not be had" in gone.note
    for reason in REFUSALS:
        refused = told(late, reason=reason, note="too large (413)")
        assert (refused.state, refused.reason) == (State.FAILED, reason)
        assert "too large (413)" in refused.note
        assert "its copy could not be had" in refused.note
    assert told(late).state is State.UNCERTAIN, "its file is there, and it is asked about for ever"
    jump = Jump(at=NOW - early, by=timedelta(hours=1))
    row = row_of(State.UNCERTAIN, untold_since=NOW - timedelta(hours=1))
    assert not_told(row, "x", rules=replace(rules, jump=jump), now=NOW, lost=True).state is State.UNCERTAIN


def test_refused_file_fails_for_what_it_was_refused_for_once_the_server_does_not_have_it():
    row = row_of(State.UNCERTAIN, reason=Reason.TOO_LARGE, note="too large (413)")

    absent_once = judge_presence(row, present=False, rules=rules_of(OTHER), now=NOW)

    assert (absent_once.state, absent_once.reason) == (State.FAILED, Reason.TOO_LARGE)
    assert absent_once.note == "too large (413) (asked for it, the server does not have it)"
    assert_sound(row, absent_once)
    assert judge_presence(row, present=True, rules=rules_of(), now=NOW) is NextStep.COMPARE
    confirmed = judge_comparison(row, Sameness.SAME, rules=rules_of(), now=NOW)
    assert "the server had refused it" in confirmed.note


@pytest.mark.parametrize("by", [timedelta(hours=3), -timedelta(hours=3)], ids=["forward", "back"])
def test_two_looks_at_a_copy_are_as_far_apart_whatever_the_clock_was_set_to(by):
    """Set forward, the second look was believed at once; set back, it was put off by three hours."""
    first_at = NOW - by
    rules = rules_of(absence_wait=timedelta(seconds=10), jump=Jump(at=NOW, by=by))
    row = row_of(State.UNCERTAIN, differs_since=first_at)

    assert judge_comparison(row, Sameness.NOT_WHOLE, rules=rules, now=NOW).wait == timedelta(seconds=10)
    later = NOW + timedelta(seconds=10)
    assert judge_comparison(row, Sameness.NOT_WHOLE, rules=rules, now=later).state is State.CONFLICT


def test_answer_that_was_not_read_is_never_proven_by_presence():
    """A server may have kept what came of a post that broke off."""
    for profile in (AZURE, ORTHANC, OTHER, OTHER_WITH_FEED):
        for before in (None, False, True):
            row = row_of(State.UNCERTAIN, present_before=before)
            assert judge_presence(row, present=True, rules=rules_of(profile), now=NOW) is NextStep.COMPARE


def test_nothing_becomes_a_conflict_while_comparing_has_stopped():
    rules = rules_of(OTHER, stopped=True)
    stored, uncertain = row_of(State.STORED, sampled=True), row_of(State.UNCERTAIN, delivery_id=2)

    planned = plan([stored, uncertain], rules=rules, now=NOW)

    assert [(one.delivery_id, one.state) for one in planned.outcomes] == [(1, State.STORED)]
    assert [(question.fetch, [row.delivery_id for row in question.rows]) for question in planned.questions] == [
        (False, [2])
    ]
    there = judge_presence(uncertain, present=True, rules=rules, now=NOW)
    assert (there.state, there.expected) == (State.STORED, State.UNCERTAIN)
