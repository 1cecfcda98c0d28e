"""Files become rows, rows go out and come back, and the server's evidence settles them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.ledger import InboxSummary, Ledger, NewCandidate, PendingRead, moves, queries
from ingestd.lifecycle import (
    BatchLimits,
    FeedCursor,
    FeedEnd,
    IllegalMove,
    Outcome,
    Pause,
    PauseCause,
    Reason,
    Sameness,
    Sighting,
    SourceStat,
    State,
)
from tests.ledger_builders import (
    BACKOFF,
    LATER,
    NOW,
    admit,
    apply,
    arrival,
    assert_ledger_holds,
    compare,
    confirm,
    content,
    entry_in,
    finish,
    holder_of,
    identity,
    open_ledger,
    outcome,
    refusal,
    remove,
    result_of,
    send,
    source,
    state_of,
)


@pytest.fixture
def ledger(tmp_path: Path):
    with open_ledger(tmp_path) as opened:
        yield opened
        assert_ledger_holds(opened)


def test_whole_file_is_pending_and_its_candidate_leaves_in_the_same_transaction(ledger: Ledger):
    with ledger.transaction() as tx:
        (candidate_id,) = moves.add_candidates(
            tx, [NewCandidate(inbox="in", relative_path="IM00001", source=source(1))], now=NOW
        )
    assert [left.candidate_id for left in queries.left_candidates(ledger)] == [candidate_id]

    (delivery_id,) = admit(ledger, arrival(1, candidate_id=candidate_id))

    assert queries.left_candidates(ledger) == []
    entry = queries.entry(ledger, delivery_id)
    assert entry is not None
    assert (entry.state, entry.identity, entry.content) == (State.PENDING, identity(1), content(1))


def test_same_candidate_keeps_its_tries_and_a_changed_file_starts_over(ledger: Ledger):
    same = NewCandidate(inbox="in", relative_path="IM1", source=source(1))
    with ledger.transaction() as tx:
        (first,) = moves.add_candidates(tx, [same], now=NOW)
        assert moves.candidate_died(tx, first) == 1
    with ledger.transaction() as tx:
        (again,) = moves.add_candidates(tx, [same], now=LATER)
        assert moves.candidate_died(tx, again) == 2

    with ledger.transaction() as tx:
        (other,) = moves.add_candidates(
            tx, [NewCandidate(inbox="in", relative_path="IM1", source=source(1, size=2000))], now=LATER
        )
    assert [(left.candidate_id, left.tries) for left in queries.left_candidates(ledger)] == [(other, 0)]


def test_copy_in_the_spool_keeps_the_tries_of_what_it_was_copied_from(ledger: Ledger):
    """It has an inode of its own: what was copied counted as another file than its source."""
    with ledger.transaction() as tx:
        dropped = NewCandidate(inbox="in", relative_path="IM1", source=source(1), target="a")
        moves.candidate_died(tx, *moves.add_candidates(tx, [dropped], now=NOW))
    with ledger.transaction() as tx:
        copy = replace(dropped, source=replace(source(1), inode=77))
        moves.add_candidates(tx, [copy], now=LATER)
    assert [(left.target, left.tries) for left in queries.left_candidates(ledger)] == [("a", 1)]

    with ledger.transaction() as tx:
        other = replace(copy, source=replace(source(1), inode=78), target="b")
        moves.add_candidates(tx, [other], now=LATER)
    assert [(left.target, left.tries) for left in queries.left_candidates(ledger)] == [("a", 1), ("b", 0)]


def test_file_dropped_under_the_name_of_one_on_its_way_has_a_candidate_row_beside_it(ledger: Ledger):
    """The former one's was dropped, and with it the name of a file that lay in the spool by then."""
    first, second = (
        NewCandidate(inbox="in", relative_path="IM1", source=source(number), target=str(number)) for number in (1, 2)
    )
    with ledger.transaction() as tx:
        moves.add_candidates(tx, [first], now=NOW)
    with ledger.transaction() as tx:
        moves.add_candidates(tx, [second], now=LATER)
    assert [left.target for left in queries.left_candidates(ledger)] == ["1", "2"]


def test_candidates_that_stay_where_they_lie_are_kept_for_their_tries_alone(ledger: Ledger):
    with ledger.transaction() as tx:
        files = [
            NewCandidate(inbox="in", relative_path=f"IM{number}", source=source(number), target=str(number))
            for number in (1, 2, 3)
        ]
        ids = moves.add_candidates(tx, files, now=NOW)
        moves.candidate_died(tx, ids[1])
    with ledger.transaction() as tx:
        moves.stay_candidates(tx, ids[:2])
    assert [(left.target, left.tries) for left in queries.left_candidates(ledger)] == [("", 1), ("3", 0)]

    with ledger.transaction() as tx:
        moves.add_candidates(tx, [replace(files[1], target="4")], now=LATER)
    assert [(left.target, left.tries) for left in queries.left_candidates(ledger)] == [("3", 0), ("4", 1)]


def test_candidate_ids_are_not_given_out_twice(ledger: Ledger):
    seen = set()
    for number in range(3):
        with ledger.transaction() as tx:
            (candidate_id,) = moves.add_candidates(
                tx, [NewCandidate(inbox="in", relative_path=f"IM{number}", source=source(number))], now=NOW
            )
            moves.drop_candidates(tx, [candidate_id])
        seen.add(candidate_id)
    assert len(seen) == 3


def test_died_candidate_that_is_gone_has_no_tries(ledger: Ledger):
    with ledger.transaction() as tx:
        assert moves.candidate_died(tx, 99) == 0


def test_same_content_is_a_duplicate_of_its_holder(ledger: Ledger):
    (holder,) = admit(ledger, arrival(1))
    with ledger.transaction() as tx:
        (answer,) = moves.admit(tx, [arrival(1)], now=NOW)

    assert answer.state is State.DUPLICATE
    assert answer.number is not None
    assert holder_of(ledger, answer.number) == holder
    assert queries.counts(ledger)[State.DUPLICATE] == 1


def test_two_arrivals_of_one_identity_in_one_call_are_a_pending_and_a_duplicate(ledger: Ledger):
    with ledger.transaction() as tx:
        answers = moves.admit(tx, [arrival(1), arrival(1), arrival(2)], now=NOW)

    assert [answer.state for answer in answers] == [State.PENDING, State.DUPLICATE, State.PENDING]
    assert answers[1].number is not None
    assert holder_of(ledger, answers[1].number) == answers[0].number


def test_other_encoding_is_a_conflict_that_points_to_its_holder(ledger: Ledger):
    (holder,) = admit(ledger, arrival(1))
    (other,) = admit(ledger, arrival(1, transfer_syntax="1.2.840.10008.1.2.4.70"))

    entry = queries.entry(ledger, other)
    assert entry is not None
    assert (entry.state, entry.reason, entry.holder_id) == (State.CONFLICT, Reason.OTHER_ENCODING, holder)


@pytest.mark.parametrize("state", [State.FAILED, State.DELETED, State.DISCARDED])
def test_row_that_holds_nothing_does_not_stop_a_new_drop(ledger: Ledger, state: State):
    entry_in(ledger, state)
    (again,) = admit(ledger, arrival(1))
    assert state_of(ledger, again) is State.PENDING


def test_identity_is_held_over_all_hosts(tmp_path: Path, ledger: Ledger):
    (holder,) = admit(ledger, arrival(1))
    with open_ledger(tmp_path, host="host-b") as other:
        with other.transaction() as tx:
            (answer,) = moves.admit(tx, [arrival(1)], now=NOW)
        assert answer.state is State.DUPLICATE
        assert answer.number is not None
        assert holder_of(ledger, answer.number) == holder
        (differs,) = admit(other, arrival(1, seed="other"))
        (row,) = queries.rows_to_compare(other, limit=9)
        held = f"{tmp_path}/spool-host-a/{queries.entry(ledger, holder).path}"
        assert (row.delivery_id, row.holder.delivery_id, row.holder.path) == (differs, holder, held)
        assert queries.rows_to_compare(ledger, limit=9) == []
        assert queries.studies_due(other, now=LATER) == []
        with other.transaction() as tx:
            assert moves.claim(tx, "1.2.1", now=LATER) is None


def test_drop_whose_holder_is_confirmed_has_the_server_asked_again(ledger: Ledger):
    holder = entry_in(ledger, State.CONFIRMED)
    assert queries.unproven(ledger, now=LATER) == []

    (duplicate,) = admit(ledger, arrival(1), now=LATER)

    assert [row.delivery_id for row in queries.unproven(ledger, now=LATER)] == [holder]
    assert queries.removable(ledger, before=LATER + timedelta(days=1)) == [], "it may be the only copy"

    confirm(ledger, holder, now=LATER + timedelta(seconds=1))
    assert {row.file_id for row in queries.removable(ledger, before=LATER + timedelta(days=1))} == {
        holder,
        duplicate,
    }
    assert queries.next_check_at(ledger, now=LATER) is None


def test_drop_whose_confirmed_holder_was_deleted_on_the_server_is_sent(ledger: Ledger):
    holder = entry_in(ledger, State.CONFIRMED)
    first, second = admit(ledger, arrival(1), arrival(1), now=LATER)

    apply(ledger, outcome(holder, State.DELETED, Reason.ABSENT, expected=State.CONFIRMED))

    assert state_of(ledger, first) is State.PENDING
    entry = queries.entry(ledger, second)
    assert entry is not None
    assert (entry.state, entry.holder_id) == (State.DUPLICATE, first)
    with ledger.transaction() as tx:
        batch = moves.claim(tx, "1.2.1", now=LATER)
    assert batch is not None
    assert [part.delivery_id for part in batch.parts] == [first]


def test_settled_duplicate_is_not_sent_when_its_holder_is_deleted_on_the_server_later(ledger: Ledger):
    """Somebody deleted the study on purpose; an old second drop of it must not bring it back."""
    (holder,) = admit(ledger, arrival(1))
    (duplicate,) = admit(ledger, arrival(1))
    send(ledger)
    confirm(ledger, holder)

    apply(ledger, outcome(holder, State.DELETED, Reason.FEED))

    assert state_of(ledger, duplicate) is State.DUPLICATE


@pytest.mark.parametrize("state", [State.DELETED, State.CONFLICT])
def test_duplicate_of_what_the_server_lost_keeps_its_file(ledger: Ledger, state: State):
    """Its holder's own file may be gone for long: a person needs it to send it again."""
    holder = entry_in(ledger, State.CONFIRMED)
    (duplicate,) = admit(ledger, arrival(1), now=LATER)
    confirm(ledger, holder, now=LATER + timedelta(seconds=1))
    with ledger.transaction() as tx:
        remove(tx, holder)
    assert [row.file_id for row in queries.removable(ledger, before=LATER + timedelta(days=1))] == [duplicate]

    apply(ledger, outcome(holder, state))

    assert queries.removable(ledger, before=LATER + timedelta(days=1)) == []


def test_evidence_older_than_the_drop_does_not_settle_a_duplicate(ledger: Ledger):
    (holder,) = admit(ledger, arrival(1))
    send(ledger)
    (duplicate,) = admit(ledger, arrival(1), now=LATER)

    confirm(ledger, holder, evidence_at=LATER - timedelta(seconds=1))
    assert queries.removable(ledger, before=LATER + timedelta(days=1)) == [], "it is asked for again"
    assert [row.delivery_id for row in queries.unproven(ledger, now=LATER)] == [holder]

    confirm(ledger, holder, evidence_at=LATER)
    assert {row.file_id for row in queries.removable(ledger, before=LATER + timedelta(days=1))} == {
        holder,
        duplicate,
    }


@pytest.mark.parametrize("reason", [Reason.REFUSED, Reason.SERVER_ERROR])
def test_oldest_duplicate_takes_the_place_of_a_failed_holder(ledger: Ledger, reason: Reason):
    holder, first, second = admit(ledger, arrival(1), arrival(1), arrival(1))
    send(ledger, state=State.FAILED, reason=reason, answered=True)

    assert [state_of(ledger, each) for each in (holder, first, second)] == [
        State.FAILED,
        State.PENDING,
        State.DUPLICATE,
    ]


def test_claim_writes_the_attempt_and_hands_out_absolute_paths(ledger: Ledger, tmp_path: Path):
    moved, kept = admit(ledger, arrival(1), arrival(2, in_place=True))
    with ledger.transaction() as tx:
        batch = moves.claim(tx, "1.2.1", now=LATER)

    assert batch is not None
    assert [part.delivery_id for part in batch.parts] == [moved, kept]
    assert Path(batch.parts[0].path).is_relative_to(tmp_path / "spool-host-a")
    assert Path(batch.parts[1].path).is_relative_to("/archive")
    story = queries.story(ledger, moved)
    assert story is not None
    assert [(attempt.attempt_id, attempt.instances) for attempt in story.attempts] == [(batch.attempt_id, 2)]
    with ledger.transaction() as tx:
        assert moves.claim(tx, "1.2.1", now=LATER) is None


def test_several_batches_of_one_study_are_out_at_once_until_it_is_in_trouble(tmp_path: Path):
    limits = BatchLimits(max_instances=2)
    with open_ledger(tmp_path, limits=limits) as ledger:
        admit(ledger, *(arrival(number) for number in range(6)))
        with ledger.transaction() as tx:
            first, second = moves.claim(tx, "1.2.1", now=LATER), moves.claim(tx, "1.2.1", now=LATER)
        assert first is not None
        assert second is not None
        assert {part.delivery_id for part in first.parts}.isdisjoint({part.delivery_id for part in second.parts})

        trouble = result_of(first, State.PENDING, Reason.SERVER_ERROR, charge=True, charge_study=True, answered=True)
        with ledger.transaction() as tx:
            finished = moves.finish(tx, trouble, now=LATER, backoff=BACKOFF, jitter=0.0)
        assert (finished.charged, finished.next_attempt_at) == (1, LATER + BACKOFF.base)
        after = LATER + timedelta(minutes=1)
        with ledger.transaction() as tx:
            assert moves.claim(tx, "1.2.1", now=LATER) is None
            assert moves.claim(tx, "1.2.1", now=after) is None  # the second batch is still out
        assert queries.studies_due(ledger, now=after) == []

        with ledger.transaction() as tx:
            moves.finish(
                tx, result_of(second, State.UNCERTAIN, Reason.NO_VERDICT), now=after, backoff=BACKOFF, jitter=0.0
            )
            third = moves.claim(tx, "1.2.1", now=after)
            assert moves.claim(tx, "1.2.1", now=after) is None
        assert third is not None
        assert len(third.parts) == 1  # halved
        assert_ledger_holds(ledger)


def test_a_charged_file_waits_by_the_backoff_and_keeps_no_other_of_its_study_waiting(ledger: Ledger):
    """Seen: 372 posts of one file in 22 seconds, while the server answered 272."""
    failing, other = admit(ledger, arrival(1), arrival(2))
    with ledger.transaction() as tx:
        batch = moves.claim(tx, "1.2.1", now=LATER)
        assert batch is not None
        answer = result_of(batch, State.PENDING, Reason.SERVER_ERROR, charge=True, answered=True)
        stored = outcome(other, State.STORED, Reason.STORED_ANSWER)
        finish(tx, replace(answer, outcomes=(answer.outcomes[0], stored)))

    for charged in range(1, 10):
        entry = queries.entry(ledger, failing)
        assert entry is not None
        assert (entry.charged, entry.next_attempt_at) == (
            charged,
            entry.changed_at + BACKOFF.charged_wait(charged, jitter=0.0),
        )
        assert_ledger_holds(ledger)
        admit(ledger, arrival(100 + charged), now=entry.changed_at)
        send(ledger, now=entry.changed_at)  # the others are sent; it is not
        with ledger.transaction() as tx:
            moves.wake(tx, now=entry.changed_at)
            assert moves.claim(tx, "1.2.1", now=entry.changed_at) is None
            moves.wake(tx, now=entry.next_attempt_at)
        send(
            ledger,
            state=State.PENDING,
            reason=Reason.SERVER_ERROR,
            charge=True,
            answered=True,
            now=entry.next_attempt_at,
        )


def test_answer_without_a_charge_ends_the_studys_backoff(ledger: Ledger):
    admit(ledger, arrival(1))
    send(ledger, state=State.PENDING, reason=Reason.SERVER_ERROR, charge=True, charge_study=True, answered=True)
    at = queries.next_study_at(ledger, now=LATER)
    assert at == LATER + BACKOFF.base
    assert queries.studies_due(ledger, now=LATER) == []

    send(ledger, now=at)

    entry = queries.entry(ledger, 1)
    assert entry is not None
    assert (entry.state, entry.charged) == (State.STORED, 0)
    admit(ledger, arrival(2), now=at)
    assert [study.charged for study in queries.studies_due(ledger, now=at + timedelta(minutes=1))] == [0]


def test_pauses_that_meet_a_study_in_flight_are_counted_until_it_is_charged(ledger: Ledger):
    admit(ledger, arrival(1))
    pause = Pause(cause=PauseCause.UNAVAILABLE, note="503")
    for count in (1, 2, 3):
        with ledger.transaction() as tx:
            batch = moves.claim(tx, "1.2.1", now=LATER)
            assert batch is not None
            finished = moves.finish(
                tx,
                result_of(batch, State.PENDING, Reason.NOT_SENT, pause=pause),
                now=LATER,
                backoff=BACKOFF,
                jitter=0.0,
            )
        assert (finished.pauses, finished.charged) == (count, 0)
    with ledger.transaction() as tx:
        until = moves.charge_study(tx, "1.2.1", now=LATER, backoff=BACKOFF, jitter=0.0)
        assert moves.claim(tx, "1.2.1", now=LATER) is None
    assert until == queries.next_study_at(ledger, now=LATER)


def test_late_result_of_a_recovered_batch_moves_nothing(ledger: Ledger):
    admit(ledger, arrival(1), arrival(2))
    with ledger.transaction() as tx:
        batch = moves.claim(tx, "1.2.1", now=LATER)
    assert batch is not None
    with ledger.transaction() as tx:
        recovered = moves.recover(tx, now=LATER)
    assert (recovered.uncertain, recovered.attempts) == (2, 1)

    with ledger.transaction() as tx:
        finished = moves.finish(tx, result_of(batch, State.STORED), now=LATER, backoff=BACKOFF, jitter=0.0)

    assert (finished.moved, finished.lost) == (0, 2)
    assert queries.counts(ledger)[State.UNCERTAIN] == 2
    story = queries.story(ledger, 1)
    assert story is not None
    assert story.attempts[0].interrupted
    assert story.entry.reason is Reason.PROCESS_DIED


def test_recovery_leaves_other_hosts_alone(tmp_path: Path, ledger: Ledger):
    entry_in(ledger, State.SENDING)
    with open_ledger(tmp_path, host="host-b") as other, other.transaction() as tx:
        assert moves.recover(tx, now=LATER).uncertain == 0
    assert queries.counts(ledger)[State.SENDING] == 1


def test_part_without_an_outcome_becomes_uncertain(ledger: Ledger):
    first, second = admit(ledger, arrival(1), arrival(2))
    with ledger.transaction() as tx:
        batch = moves.claim(tx, "1.2.1", now=LATER)
        assert batch is not None
        result = result_of(batch, State.STORED)
        moves.finish(
            tx,
            type(result)(batch=batch, outcomes=result.outcomes[:1], finished_at=LATER, answered=True),
            now=LATER,
            backoff=BACKOFF,
            jitter=0.0,
        )
    assert (state_of(ledger, first), state_of(ledger, second)) == (State.STORED, State.UNCERTAIN)


def test_deferred_row_waits_for_its_own_time_while_others_go(ledger: Ledger):
    admit(ledger, arrival(1))
    send(ledger, state=State.PENDING, reason=Reason.BEING_CREATED, wait=timedelta(minutes=2), alone=True, answered=True)
    admit(ledger, arrival(2), now=LATER)

    with ledger.transaction() as tx:
        assert moves.wake(tx, now=LATER) == 0
        batch = moves.claim(tx, "1.2.1", now=LATER)
    assert batch is not None
    assert [part.delivery_id for part in batch.parts] == [2]
    assert queries.next_wake_at(ledger, now=LATER) == LATER + timedelta(minutes=2)

    with ledger.transaction() as tx:
        assert moves.wake(tx, now=LATER + timedelta(minutes=2)) == 1
        batch = moves.claim(tx, "1.2.1", now=LATER + timedelta(minutes=2))
    assert batch is not None
    assert [(part.delivery_id, part.being_created_since) for part in batch.parts] == [(1, LATER)]


def test_study_is_due_when_quiet_or_waiting_long_or_full(tmp_path: Path):
    limits = BatchLimits(max_instances=3)
    with open_ledger(tmp_path, limits=limits) as ledger:
        admit(ledger, arrival(1, study=1))
        assert queries.studies_due(ledger, now=NOW) == []
        assert [study.study_uid for study in queries.studies_due(ledger, now=NOW, flush=True)] == ["1.2.1"]
        assert queries.next_study_at(ledger, now=LATER) == NOW + limits.quiet_period
        assert len(queries.studies_due(ledger, now=NOW + limits.quiet_period)) == 1

        admit(ledger, *(arrival(number, study=2) for number in range(3)))
        assert [study.study_uid for study in queries.studies_due(ledger, now=NOW)] == ["1.2.2"]
        assert_ledger_holds(ledger)


def test_some_of_every_inbox_and_priority_are_told_however_many_are_due(ledger: Ledger):
    """Whose turn it is can only be said of those that are known."""
    admit(ledger, *(arrival(1, study=number, inbox="many") for number in range(2, 200)), now=NOW)
    admit(ledger, arrival(1, study=1, inbox="few"), now=NOW + timedelta(seconds=1))
    admit(ledger, arrival(1, study=200, inbox="many", priority=2), now=NOW + timedelta(seconds=2))

    due = queries.studies_due(ledger, now=LATER, limit=8)

    assert {"1.2.1", "1.2.200"} < {study.study_uid for study in due}
    assert len(due) == 6
    assert {(study.priority, study.inbox_id) for study in due} == {(0, 1), (0, 2), (2, 1)}


def test_other_limits_at_the_next_start_count_for_what_waits_already(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        admit(ledger, arrival(1))
    patient = BatchLimits(quiet_period=timedelta(hours=1), max_wait=timedelta(hours=2))
    with open_ledger(tmp_path, limits=patient) as ledger:
        assert queries.next_study_at(ledger, now=LATER) == NOW + timedelta(hours=1)
        ledger.set_limits(BatchLimits())
        assert queries.next_study_at(ledger, now=LATER) == NOW + timedelta(seconds=5)
        assert_ledger_holds(ledger)


def test_rows_are_asked_about_when_their_time_comes_and_less_and_less_often(ledger: Ledger):
    (delivery_id,) = admit(ledger, arrival(1))
    send(ledger, wait=timedelta(seconds=30))
    assert queries.unproven(ledger, now=LATER) == []
    at = queries.next_check_at(ledger, now=LATER)
    assert at == LATER + timedelta(seconds=30)

    waits = []
    for _ in range(3):
        assert [row.delivery_id for row in queries.unproven(ledger, now=at)] == [delivery_id]
        apply(ledger, outcome(delivery_id, State.STORED, Reason.NOT_SHOWN, expected=State.STORED), now=at)
        next_at = queries.next_check_at(ledger, now=LATER)
        waits.append(next_at - at)
        at = next_at
    assert waits == [BACKOFF.base, BACKOFF.base * 2, BACKOFF.base * 4]
    assert queries.unproven(ledger, now=at)[0].checks == 3


def test_check_that_could_not_be_made_is_put_off_without_being_counted(ledger: Ledger):
    delivery_id = entry_in(ledger, State.UNCERTAIN)
    with ledger.transaction() as tx:
        assert moves.check_again(tx, [delivery_id], at=LATER + timedelta(minutes=1)) == 1
    assert queries.unproven(ledger, now=LATER) == []
    assert queries.unproven(ledger, now=LATER + timedelta(minutes=1))[0].checks == 0


@pytest.mark.parametrize(
    "state, reason, is_kept",
    [
        (State.UNCERTAIN, Reason.NO_VERDICT, False),
        (State.STORED, Reason.STORED_ANSWER, False),
        (State.UNCERTAIN, Reason.REFUSED, True),
        (State.CONFIRMED, Reason.FEED, True),
    ],
)
def test_why_a_check_could_not_be_made_is_noted_over_nothing_that_is_needed(
    ledger: Ledger, state: State, reason: Reason, is_kept: bool
):
    """What the server refused a file with is all that is known of it, and what confirmed one is its proof."""
    if state is State.CONFIRMED:
        delivery_id = entry_in(ledger, state)
    else:
        (delivery_id,) = admit(ledger, arrival(1))
        send(ledger, 1, state=state, reason=reason)
    before = queries.unproven_rows(ledger, [delivery_id])[0].note
    with ledger.transaction() as tx:
        moves.check_again(tx, [delivery_id], at=LATER, note="the server answered 403")
    assert queries.unproven_rows(ledger, [delivery_id])[0].note == (before if is_kept else "the server answered 403")


def test_two_absences_are_on_record_before_a_row_is_sent_again(ledger: Ledger):
    delivery_id = entry_in(ledger, State.UNCERTAIN)
    apply(ledger, outcome(delivery_id, State.UNCERTAIN, Reason.ABSENT, wait=timedelta(seconds=10)))
    (row,) = queries.unproven(ledger, now=LATER + timedelta(seconds=10))
    assert row.absences == 1

    apply(ledger, outcome(delivery_id, State.PENDING, Reason.ABSENT, expected=State.UNCERTAIN))

    (row,) = queries.unproven_rows(ledger, [delivery_id])
    assert (row.state, row.resends, row.absences) == (State.PENDING, 1, 0)
    story = queries.story(ledger, delivery_id)
    assert story is not None
    assert [event.reason for event in story.history][-2:] == [Reason.ABSENT, Reason.ABSENT]


def test_seeing_it_after_all_ends_a_row_of_absences(ledger: Ledger):
    delivery_id = entry_in(ledger, State.STORED)
    apply(ledger, outcome(delivery_id, State.STORED, Reason.ABSENT))
    apply(ledger, outcome(delivery_id, State.STORED, Reason.QUERY))
    assert queries.unproven_rows(ledger, [delivery_id])[0].absences == 0


def _admit_and_move_back(ledger: Ledger, delivery_id: int) -> None:
    with ledger.transaction() as tx:
        moves.admit(tx, [arrival(7)], now=NOW)
        impossible = outcome(delivery_id, State.PENDING, Reason.ABSENT, expected=State.CONFIRMED)
        moves.apply(tx, [impossible], now=LATER, backoff=BACKOFF, jitter=0.0)


def test_stale_outcome_is_lost_and_an_impossible_one_raises(ledger: Ledger):
    delivery_id = entry_in(ledger, State.CONFIRMED)
    with ledger.transaction() as tx:
        stale = moves.apply(
            tx,
            [outcome(delivery_id, State.PENDING, Reason.ABSENT, expected=State.UNCERTAIN)],
            now=LATER,
            backoff=BACKOFF,
            jitter=0.0,
        )
        unsaid = moves.apply(
            tx, [outcome(delivery_id, State.PENDING, Reason.ABSENT)], now=LATER, backoff=BACKOFF, jitter=0.0
        )
        unknown = moves.apply(tx, [outcome(99, State.CONFIRMED)], now=LATER, backoff=BACKOFF, jitter=0.0)
    assert (stale.lost, unsaid.lost, unknown.lost) == (1, 1, 1)
    with pytest.raises(IllegalMove):
        _admit_and_move_back(ledger, delivery_id)
    assert queries.counts(ledger)[State.PENDING] == 0
    assert state_of(ledger, delivery_id) is State.CONFIRMED


def test_deleted_row_is_not_confirmed_again_while_a_new_drop_holds_its_identity(ledger: Ledger):
    deleted = entry_in(ledger, State.DELETED)
    admit(ledger, arrival(1))
    with ledger.transaction() as tx:
        applied = moves.apply(tx, [outcome(deleted, State.CONFIRMED)], now=LATER, backoff=BACKOFF, jitter=0.0)
    assert (applied.moved, applied.lost) == (0, 1)


@pytest.mark.parametrize("state", [State.DELETED, State.FAILED])
def test_row_whose_file_was_dropped_again_and_confirmed_needs_no_person(ledger: Ledger, state: State):
    former, other = entry_in(ledger, state), entry_in(ledger, state, 2)
    again, changed = admit(ledger, arrival(1), arrival(2, seed="other"), now=LATER)
    send(ledger)
    assert state_of(ledger, former) is state
    confirm(ledger, again, changed)

    story = queries.story(ledger, former)
    assert story is not None
    assert (story.entry.state, story.entry.reason) == (state, Reason.DROPPED_AGAIN)
    assert f"dropped again as row {again}" in story.history[-1].note
    # What was confirmed under the other's UIDs is another content.
    status = queries.status(ledger)
    assert (status.needs_person, status.states[state]) == (1, 2)
    held = queries.entry(ledger, other)
    assert held is not None
    assert status.oldest_needs_person_at == held.changed_at

    apply(ledger, outcome(again, State.DELETED, Reason.FEED), now=LATER + timedelta(hours=1))
    assert queries.status(ledger).needs_person == 2
    assert_ledger_holds(ledger)


def test_deleted_row_that_is_there_again_is_confirmed(ledger: Ledger):
    deleted = entry_in(ledger, State.DELETED)
    confirm(ledger, deleted)
    assert state_of(ledger, deleted) is State.CONFIRMED


def sighting(number: int, sequence: int, *, action: str = "create", state: str = "current", **more: bool) -> Sighting:
    return Sighting(identity=identity(number), sequence=sequence, action=action, state=state, at=LATER, **more)


def test_sighting_is_kept_while_a_row_is_out_and_consulted_when_it_comes_back(ledger: Ledger):
    delivery_id = entry_in(ledger, State.SENDING)
    with ledger.transaction() as tx:
        cursor = FeedCursor(version=2, since=LATER)
        assert moves.record_sightings(tx, [sighting(1, 7)], now=LATER, cursor=cursor) == 1
    assert queries.cursor(ledger) == cursor
    assert queries.next_check_at(ledger, now=LATER) is None

    with ledger.transaction() as tx:
        story = queries.story(ledger, delivery_id)
        assert story is not None
        moves.recover(tx, now=LATER)
    (row,) = queries.unproven(ledger, now=LATER)
    assert (row.seen_sequence, row.seen_action, row.seen_state, row.seen_at) == (7, "create", "current", LATER)
    assert not row.needs_content_check


def test_server_that_went_back_has_all_asked_about_that_it_may_have_lost(ledger: Ledger):
    before, after, never, gone = (entry_in(ledger, State.CONFIRMED, number) for number in (1, 2, 3, 4))
    with ledger.transaction() as tx:
        moves.record_sightings(tx, [sighting(1, 7), sighting(2, 8), sighting(4, 5)], now=LATER)
        moves.seen_end(tx, FeedEnd(sequence=8, at=LATER))
        moves.seen_end(tx, FeedEnd(sequence=6, at=NOW))
        seen = [outcome(each, State.CONFIRMED, evidence_at=LATER) for each in (before, after, gone)]
        moves.apply(tx, seen, now=LATER, backoff=BACKOFF, jitter=0.0)
        remove(tx, after, never, gone)
    assert queries.feed_end(ledger) == FeedEnd(sequence=8, at=LATER)
    assert not queries.has_looks(ledger)
    assert before in {row.file_id for row in queries.removable(ledger, before=LATER)}

    with ledger.transaction() as tx:
        moves.went_back(tx, to=7, end=FeedEnd(sequence=7, at=NOW), now=LATER)

    asked = {row.delivery_id: row.seen_sequence for row in queries.unproven(ledger, now=LATER)}
    assert asked == {before: 7, after: None, never: None}
    assert (queries.went_back_at(ledger), queries.feed_end(ledger)) == (LATER, FeedEnd(sequence=7, at=NOW))
    assert queries.has_looks(ledger)
    assert queries.removable(ledger, before=LATER) == []
    with ledger.transaction() as tx:
        moves.went_back_settled(tx)
        # The sequence is given out again.
        moves.record_sightings(tx, [sighting(2, 8, state="deleted")], now=LATER)
    assert queries.went_back_at(ledger) is None
    (row,) = queries.unproven_rows(ledger, [after])
    assert (row.seen_sequence, row.seen_state) == (8, "deleted")


def test_stored_row_that_the_feed_has_shown_is_judged_at_once(ledger: Ledger):
    admit(ledger, arrival(1))
    with ledger.transaction() as tx:
        batch = moves.claim(tx, "1.2.1", now=LATER)
        moves.record_sightings(tx, [sighting(1, 7)], now=LATER)
        assert batch is not None
        moves.finish(
            tx, result_of(batch, State.STORED, wait=timedelta(minutes=10)), now=LATER, backoff=BACKOFF, jitter=0.0
        )
    assert len(queries.unproven(ledger, now=LATER)) == 1


def test_sighting_wakes_stored_confirmed_and_deleted_rows_but_only_once(ledger: Ledger):
    delivery_id = entry_in(ledger, State.CONFIRMED)
    with ledger.transaction() as tx:
        assert moves.record_sightings(tx, [sighting(1, 9, action="delete", state="deleted")], now=LATER) == 1
    assert [row.delivery_id for row in queries.unproven(ledger, now=LATER)] == [delivery_id]
    apply(ledger, outcome(delivery_id, State.DELETED, Reason.FEED))
    with ledger.transaction() as tx:
        assert moves.record_sightings(tx, [sighting(1, 9, action="delete", state="deleted")], now=LATER) == 0
        assert moves.record_sightings(tx, [sighting(1, 12)], now=LATER) == 1
    (row,) = queries.unproven(ledger, now=LATER)
    assert (row.delivery_id, row.state, row.needs_content_check) == (delivery_id, State.DELETED, True)


def test_sighting_that_was_disturbed_asks_for_a_content_check(ledger: Ledger):
    entry_in(ledger, State.STORED)
    with ledger.transaction() as tx:
        moves.record_sightings(tx, [sighting(1, 7, disturbed=True)], now=LATER)
    assert queries.unproven(ledger, now=LATER)[0].needs_content_check


def test_sighting_goes_to_the_row_that_holds_the_identity(ledger: Ledger):
    entry_in(ledger, State.DELETED)
    (again,) = admit(ledger, arrival(1))
    send(ledger)
    with ledger.transaction() as tx:
        assert moves.record_sightings(tx, [sighting(1, 20), sighting(2, 21)], now=LATER) == 1
    assert [row.delivery_id for row in queries.unproven(ledger, now=LATER)] == [again]


def test_already_there_needs_a_content_check(ledger: Ledger):
    admit(ledger, arrival(1))
    send(ledger, state=State.UNCERTAIN, reason=Reason.ALREADY_THERE, answered=True)
    assert queries.unproven(ledger, now=LATER)[0].needs_content_check


def test_present_before_is_taken_from_the_evidence_of_the_last_attempt(ledger: Ledger):
    (delivery_id,) = admit(ledger, arrival(1))
    send(ledger, state=State.UNCERTAIN, reason=Reason.NO_VERDICT, evidence={"present_before": "no"})
    assert queries.unproven(ledger, now=LATER)[0].present_before is False
    apply(ledger, outcome(delivery_id, State.PENDING, Reason.ABSENT))
    with ledger.transaction() as tx:
        moves.claim(tx, "1.2.1", now=LATER)
        moves.recover(tx, now=LATER)
    assert queries.unproven(ledger, now=LATER)[0].present_before is None


def test_changed_file_is_read_again_before_it_is_sent(ledger: Ledger):
    (delivery_id,) = admit(ledger, arrival(1))
    send(ledger, state=State.PENDING, reason=Reason.CHANGED, reread=True)
    (need,) = queries.rows_to_read(ledger)
    assert (need.delivery_id, need.pending_read) == (delivery_id, PendingRead.REREAD)
    assert queries.studies_due(ledger, now=LATER) == []

    with ledger.transaction() as tx:
        answer = moves.reread(tx, delivery_id, arrival(1, seed="new", size=3000), now=LATER)
    assert answer.state is State.PENDING
    assert queries.rows_to_read(ledger) == []
    batch = send(ledger)
    assert batch.parts[0].content == content("new", size=3000)


def test_changed_file_may_turn_out_to_be_another_object(ledger: Ledger):
    (delivery_id, duplicate) = admit(ledger, arrival(1), arrival(1))
    (other,) = admit(ledger, arrival(2, study=2))
    send(ledger, state=State.PENDING, reason=Reason.CHANGED, reread=True)
    with ledger.transaction() as tx:
        answer = moves.reread(tx, delivery_id, arrival(2, study=2), now=LATER)

    assert answer.state is State.DUPLICATE
    assert answer.number is not None
    assert holder_of(ledger, answer.number) == other
    assert state_of(ledger, duplicate) is State.PENDING  # what it was a duplicate of is gone


def test_duplicate_of_a_row_whose_bytes_changed_is_sent_and_the_other_bytes_are_in_conflict_with_it(ledger: Ledger):
    delivery_id, duplicate = admit(ledger, arrival(1), arrival(1))
    send(ledger, state=State.PENDING, reason=Reason.CHANGED, reread=True)
    new = arrival(1, seed="new")
    with ledger.transaction() as tx:
        told = moves.reread(tx, delivery_id, new, now=LATER)
    assert told.number is not None
    compare(ledger, told.number, Sameness.OTHER)
    states = [state_of(ledger, each) for each in (delivery_id, duplicate, told.number)]
    assert states == [State.DISCARDED, State.PENDING, State.CONFLICT]
    assert_ledger_holds(ledger)


def test_rendition_of_a_row_whose_bytes_changed_is_not_left_in_the_spool(ledger: Ledger):
    (delivery_id,) = admit(ledger, arrival(1, transfer_syntax="1.2.840.10008.1.2"))
    send(ledger, state=State.PENDING, reason=Reason.REENCODED, reencode=True, alone=True, answered=True)
    with ledger.transaction() as tx:
        assert moves.attach_reencoded(tx, delivery_id, path="explicit/1", content=content("explicit"), now=LATER)
    send(ledger, state=State.PENDING, reason=Reason.CHANGED, reread=True)
    with ledger.transaction() as tx:
        moves.reread(tx, delivery_id, arrival(1, seed="new"), now=LATER)
    assert_ledger_holds(ledger)


def test_unchanged_file_that_was_read_again_keeps_its_duplicates(ledger: Ledger):
    delivery_id, duplicate = admit(ledger, arrival(1), arrival(1))
    send(ledger, state=State.PENDING, reason=Reason.CHANGED, reread=True)
    with ledger.transaction() as tx:
        moves.reread(tx, delivery_id, arrival(1), now=LATER)
    assert state_of(ledger, duplicate) is State.DUPLICATE


def test_changed_file_that_is_no_longer_whole_is_rejected(ledger: Ledger):
    delivery_id, duplicate = admit(ledger, arrival(1), arrival(1))
    send(ledger, state=State.PENDING, reason=Reason.CHANGED, reread=True)
    with ledger.transaction() as tx:
        rejected = moves.reread_refused(tx, delivery_id, refusal(1), now=LATER)
        assert rejected is not None
        assert not moves.reread_refused(tx, delivery_id, refusal(1), now=LATER)
        assert moves.reread(tx, delivery_id, arrival(1), now=LATER).number is None
    states = [state_of(ledger, each) for each in (delivery_id, duplicate, rejected)]
    assert states == [State.DISCARDED, State.PENDING, State.REJECTED]


def test_explicit_copy_is_sent_and_proven_in_place_of_the_file(ledger: Ledger, tmp_path: Path):
    (delivery_id,) = admit(ledger, arrival(1, transfer_syntax="1.2.840.10008.1.2"))
    send(ledger, state=State.PENDING, reason=Reason.REENCODED, reencode=True, alone=True, answered=True)
    assert [need.pending_read for need in queries.rows_to_read(ledger)] == [PendingRead.REENCODE]
    copy = content("copy", size=1200)
    with ledger.transaction() as tx:
        assert moves.attach_reencoded(tx, delivery_id, path="explicit/abc", content=copy, now=LATER)
    assert queries.paths_known(ledger, ["explicit/abc", "explicit/other"]) == {"explicit/abc"}

    batch = send(ledger)

    (part,) = batch.parts
    assert (part.content, part.path, part.reencoded) == (copy, str(tmp_path / "spool-host-a/explicit/abc"), True)
    assert queries.unproven(ledger, now=LATER)[0].content == copy
    confirm(ledger, delivery_id)
    (row,) = queries.removable(ledger, before=LATER)
    assert len(row.files) == 2


def test_file_that_cannot_be_reencoded_is_asked_for_before_it_fails(ledger: Ledger):
    (delivery_id,) = admit(ledger, arrival(1))
    with ledger.transaction() as tx:
        assert not moves.reencode_failed(tx, delivery_id, note="x", now=LATER)
        assert not moves.attach_reencoded(tx, 99, path="explicit/x", content=content("x"), now=LATER)
    send(ledger, state=State.PENDING, reason=Reason.REENCODED, reencode=True, answered=True)
    with ledger.transaction() as tx:
        assert moves.reencode_failed(tx, delivery_id, note="it cannot be re-encoded", now=LATER)
    (row,) = queries.unproven(ledger, now=LATER)
    assert (row.state, row.reason, row.note) == (State.UNCERTAIN, Reason.REFUSED, "it cannot be re-encoded")
    assert queries.rows_to_read(ledger) == []


def test_only_a_row_that_the_server_is_asked_about_fails_because_its_file_vanished(ledger: Ledger):
    states = (State.PENDING, State.UNCERTAIN, State.STORED)
    rows = [entry_in(ledger, state, number, study=number) for number, state in enumerate(states, 1)]
    with ledger.transaction() as tx:
        assert moves.fail_gone(tx, rows, note="its file vanished", now=LATER) == 1
    assert [state_of(ledger, row) for row in rows] == [State.PENDING, State.FAILED, State.STORED]


@pytest.mark.parametrize("need", ["reread", "reencode"])
def test_row_that_waits_to_be_read_goes_on_to_be_sent_when_its_file_vanished(ledger: Ledger, need: str):
    (delivery_id,) = admit(ledger, arrival(1))
    with ledger.transaction() as tx:
        assert not moves.read_no_more(tx, delivery_id, now=LATER)
    send(ledger, state=State.PENDING, reason=Reason.CHANGED, answered=True, **{need: True})
    assert queries.studies_due(ledger, now=LATER, flush=True) == []

    with ledger.transaction() as tx:
        assert moves.read_no_more(tx, delivery_id, now=LATER)

    assert queries.rows_to_read(ledger) == []
    assert [study.waiting for study in queries.studies_due(ledger, now=LATER, flush=True)] == [1]


def test_only_settled_files_may_go_and_only_after_retain(ledger: Ledger):
    """G3: nothing else can be marked as removed, whoever asks."""
    rows = {
        state: entry_in(ledger, state, number, study=number)
        for number, state in enumerate(State, start=1)
        if state is not State.SENDING
    }
    with ledger.transaction() as tx:
        remove(tx, *rows.values())
    gone = {
        entry.state for entry in (queries.entry(ledger, row) for row in rows.values()) if entry and entry.removed_at
    }
    assert gone == {State.CONFIRMED, State.DISCARDED}
    assert queries.removable(ledger, before=LATER) == []


def test_file_is_removable_only_before_the_instant_given(ledger: Ledger):
    entry_in(ledger, State.CONFIRMED)
    assert queries.removable(ledger, before=LATER - timedelta(seconds=1)) == []
    assert len(queries.removable(ledger, before=LATER)) == 1


def test_file_in_place_is_never_removable_but_its_copy_is(ledger: Ledger):
    plain, reencoded = admit(ledger, arrival(1, in_place=True), arrival(2, in_place=True))
    with ledger.transaction() as tx:
        moves.attach_reencoded(tx, reencoded, path="explicit/2", content=content("copy"), now=NOW)
    send(ledger)
    confirm(ledger, plain, reencoded)

    assert [[file.path for file in row.files] for row in queries.removable(ledger, before=LATER)] == [["explicit/2"]]
    with ledger.transaction() as tx:
        remove(tx, plain, reencoded)
    assert queries.removable(ledger, before=LATER) == []
    assert queries.paths_known(ledger, ["explicit/2"]) == set()
    assert queries.unproven_rows(ledger, [reencoded])[0].content == content("copy")


def test_file_in_place_whose_copy_goes_is_sent_itself_when_it_is_sent_again(ledger: Ledger):
    """As soon as that is written: before the copy is unlinked, or where a crash came in between."""
    came = arrival(1, in_place=True, size=3000)
    (delivery_id,) = admit(ledger, came)
    with ledger.transaction() as tx:
        moves.attach_reencoded(tx, delivery_id, path="explicit/1", content=content("copy"), now=NOW)
    send(ledger)
    confirm(ledger, delivery_id)
    with ledger.transaction() as tx:
        assert moves.mark_removing(tx, [delivery_id], now=LATER) == {delivery_id}
    assert queries.paths_known(ledger, ["explicit/1"]) == set(), "an orphan, where it lies there still"
    assert queries.unproven_rows(ledger, [delivery_id])[0].content == content("copy"), "it is what the server has"
    apply(ledger, outcome(delivery_id, State.DELETED, Reason.FEED))
    with ledger.transaction() as tx:
        moves.retry(tx, delivery_id, now=LATER)

    (part,) = send(ledger, now=LATER + timedelta(hours=1)).parts
    assert (part.path, part.content, part.reencoded) == (came.path, came.content, False)
    assert queries.unproven_rows(ledger, [delivery_id])[0].content == came.content
    assert_ledger_holds(ledger)


def test_copied_source_is_remembered_until_it_is_removed(ledger: Ledger):
    copied = arrival(1, source_removed=False)
    (delivery_id,) = admit(ledger, copied)
    (left,) = queries.unremoved_sources(ledger)
    assert (left.file_id, left.source, left.relative_path) == (delivery_id, source(1), "IM00001")
    assert left.path == copied.path
    assert queries.unremoved_sources(ledger, after_id=delivery_id) == []
    send(ledger)
    confirm(ledger, delivery_id)
    with ledger.transaction() as tx:
        remove(tx, delivery_id)
    assert queries.unremoved_sources(ledger)[0].path == "", "its copy was let go of by rule"
    with ledger.transaction() as tx:
        moves.mark_source_removed(tx, [delivery_id])
    assert queries.unremoved_sources(ledger) == []


def test_known_sources_are_those_of_the_inbox_and_path(ledger: Ledger):
    admit(ledger, arrival(1, in_place=True, relative_path="a/1"), arrival(2, inbox="other", relative_path="a/1"))
    known = queries.known_sources(ledger, "in", ["a/1", "a/2"])
    assert list(known) == ["a/1"]
    assert [(each.source, each.in_place) for each in known["a/1"]] == [(source(1), True)]


def test_folders_are_emptied_by_us_where_files_were_taken_out_of_them(ledger: Ledger):
    admit(
        ledger,
        arrival(1, relative_path="a/b/x"),
        arrival(2, relative_path="kept/x", in_place=True),
        arrival(3, relative_path="copied/x", source_removed=False),
        arrival(4, relative_path="other/x", inbox="out"),
        arrival(5, relative_path="caf\udce9/x"),
    )
    asked = ["a/b", "a", "a/b/x", "a/bb", "kept", "copied", "other", "caf\udce9", "caf"]

    assert queries.emptied_by_us(ledger, "in", asked) == ["a/b", "a", "caf\udce9"]


def test_paths_known_forgets_removed_files(ledger: Ledger):
    delivery_id = entry_in(ledger, State.CONFIRMED)
    entry = queries.entry(ledger, delivery_id)
    assert entry is not None
    assert entry.path is not None
    assert queries.paths_known(ledger, [entry.path, "files/in/none"]) == {entry.path}
    with ledger.transaction() as tx:
        remove(tx, delivery_id)
    assert queries.paths_known(ledger, [entry.path]) == set()


@pytest.mark.parametrize("name", ["IM\udce9", "line\nfeed", "\udcff/\udcfe", "\N{REPLACEMENT CHARACTER}--", "bücher"])
def test_any_file_name_is_kept_and_given_back(ledger: Ledger, name: str):
    admit(ledger, arrival(1, relative_path=name, in_place=True))
    assert list(queries.known_sources(ledger, "in", [name])) == [name]


def test_stat_beyond_a_databases_integers_is_kept(ledger: Ledger):
    odd = SourceStat(device=2**64 - 1, inode=2**64 - 1, size_bytes=1, mtime_ns=20_000_000_000_000_000_000)
    admit(ledger, arrival(1, source_stat=odd, relative_path="x"))
    assert queries.known_sources(ledger, "in", ["x"])["x"][0].source == odd


def test_words_from_elsewhere_may_hold_anything(ledger: Ledger):
    with ledger.transaction() as tx:
        moves.admit(tx, [arrival(1, modality="C\0T")], now=NOW)
        batch = moves.claim(tx, "1.2.1", now=LATER)
        assert batch is not None
        moves.finish(
            tx,
            result_of(batch, State.FAILED, Reason.REFUSED, note="half a \ud800 pair", error="\0"),
            now=LATER,
            backoff=BACKOFF,
            jitter=0.0,
        )
    entry = queries.entry(ledger, 1)
    assert entry is not None
    assert (entry.note, entry.modality) == ("half a ? pair", "C?T")


def test_pause_is_on_record_with_its_beginning_until_it_ends(ledger: Ledger):
    pause = Pause(cause=PauseCause.UNREACHABLE, note="no route")
    with ledger.transaction() as tx:
        moves.set_destination_kind(tx, "azure")
        moves.pause_destination(tx, pause, until=NOW + timedelta(seconds=5), now=NOW)
        moves.pause_destination(tx, pause, until=LATER, now=NOW + timedelta(seconds=5))
    destination = queries.destination(ledger)
    assert destination is not None
    assert (destination.kind, destination.pause_cause) == ("azure", "unreachable")
    assert (destination.paused_since, destination.paused_until) == (NOW, LATER)
    with ledger.transaction() as tx:
        moves.resume_destination(tx, now=LATER)
        moves.destination_answered(tx, now=LATER + timedelta(seconds=1))
    destination = queries.destination(ledger)
    assert destination is not None
    assert (destination.paused_until, destination.last_ok_at) == (None, LATER + timedelta(seconds=1))


def test_inbox_report_is_kept_for_status(ledger: Ledger):
    summary = InboxSummary(inbox="in", path="/drop", alarm="", watching="events", counts={"ignored": 3})
    with ledger.transaction() as tx:
        moves.put_inbox_reports(tx, [summary], now=NOW)
        moves.put_inbox_reports(tx, [summary], now=LATER)
    (kept,) = queries.status(ledger).inboxes
    assert (kept.inbox, kept.counts, kept.at) == ("in", {"ignored": 3}, LATER)


def test_server_that_could_not_tell_settles_nothing(ledger: Ledger):
    holder = entry_in(ledger, State.CONFIRMED)
    (duplicate,) = admit(ledger, arrival(1), now=LATER)
    apply(ledger, outcome(holder, State.CONFIRMED, Reason.FEED, wait=timedelta(seconds=30)))
    assert duplicate not in {row.file_id for row in queries.removable(ledger, before=LATER + timedelta(days=1))}
    assert queries.next_check_at(ledger, now=LATER) == LATER + timedelta(seconds=30)


def test_audit_that_misses_a_row_asks_twice(ledger: Ledger):
    delivery_id = entry_in(ledger, State.CONFIRMED)
    apply(ledger, outcome(delivery_id, State.CONFIRMED, Reason.ABSENT, wait=timedelta(seconds=10)))
    (row,) = queries.unproven(ledger, now=LATER + timedelta(seconds=10))
    assert row.absences == 1


def _admit_claim_and_stumble(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        moves.admit(tx, [arrival(1, patient_hash="ab" * 16)], now=NOW)
        moves.claim(tx, "1.2.1", now=LATER)
        raise ZeroDivisionError


def test_transaction_that_fails_leaves_nothing_behind(ledger: Ledger):
    with pytest.raises(ZeroDivisionError):
        _admit_claim_and_stumble(ledger)
    assert queries.counts(ledger) == dict.fromkeys(State, 0)
    assert queries.studies_due(ledger, now=LATER) == []
    admit(ledger, arrival(1, patient_hash="ab" * 16))


def test_outcome_in_a_state_that_is_not_legal_changes_nothing(ledger: Ledger):
    (delivery_id,) = admit(ledger, arrival(1))
    with ledger.transaction() as tx:
        batch = moves.claim(tx, "1.2.1", now=LATER)
    assert batch is not None
    wrong = Outcome(delivery_id=delivery_id, state=State.CONFIRMED, reason=Reason.QUERY)
    with pytest.raises(IllegalMove), ledger.transaction() as tx:
        moves.finish(
            tx,
            type(result_of(batch, State.STORED))(batch=batch, outcomes=(wrong,), finished_at=LATER),
            now=LATER,
            backoff=BACKOFF,
            jitter=0.0,
        )
    assert state_of(ledger, delivery_id) is State.SENDING


def test_server_without_a_feed_that_went_back_is_asked_about_what_duplicates_rest_on(ledger: Ledger):
    """A duplicate that outlived its holder's file is the only copy; nobody asked for it, and it went."""
    holder, gone = (entry_in(ledger, State.CONFIRMED, number) for number in (1, 2))
    (duplicate,) = admit(ledger, arrival(1), now=LATER)
    confirm(ledger, holder, now=LATER)
    with ledger.transaction() as tx:
        remove(tx, holder, gone)
    assert [row.file_id for row in queries.removable(ledger, before=LATER)] == [duplicate]

    with ledger.transaction() as tx:
        moves.went_back(tx, to=None, end=None, now=LATER)

    assert [row.delivery_id for row in queries.unproven(ledger, now=LATER)] == [holder]
    assert queries.removable(ledger, before=LATER) == []


def test_what_waits_for_proof_is_compared_at_a_new_address(ledger: Ledger):
    """That the server had not had it before our post was said by the former address."""
    (delivery_id,) = admit(ledger, arrival(1))
    send(ledger)

    with ledger.transaction() as tx:
        assert moves.new_address(tx, "http://archive.example/v2", now=LATER) == 1

    (row,) = queries.unproven(ledger, now=LATER)
    assert (row.delivery_id, row.state, row.needs_content_check) == (delivery_id, State.STORED, True)
