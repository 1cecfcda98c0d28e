"""What a person decides and sees: retry, discard, replace, admit anyway; status, listings and the story of a file."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.ledger import Choice, InboxSummary, Ledger, OperatorRequest, RefusedMove, moves, queries
from ingestd.lifecycle import BatchLimits, Pause, PauseCause, Reason, Sameness, State
from tests.ledger_builders import (
    LATER,
    NOW,
    admit,
    apply,
    arrival,
    assert_ledger_holds,
    compare,
    confirm,
    entry_in,
    identity,
    open_ledger,
    outcome,
    refusal,
    remove,
    send,
    state_of,
)
from tests.ledgers import key_of, url_of


@pytest.fixture
def ledger(tmp_path: Path):
    with open_ledger(tmp_path) as opened:
        yield opened
        assert_ledger_holds(opened)


def conflict_with(ledger: Ledger, holder_state: State) -> tuple[int, int]:
    holder = entry_in(ledger, holder_state)
    (other,) = admit(ledger, arrival(1, transfer_syntax="1.2.840.10008.1.2.4.70"))
    assert state_of(ledger, other) is State.CONFLICT
    return holder, other


@pytest.mark.parametrize("state", [State.FAILED, State.DELETED, State.UNCERTAIN])
def test_retry_makes_a_row_pending_again(ledger: Ledger, state: State):
    delivery_id = entry_in(ledger, state)
    with ledger.transaction() as tx:
        assert moves.retry(tx, delivery_id, now=LATER) is State.PENDING
    assert [study.study_uid for study in queries.studies_due(ledger, now=LATER)] == ["1.2.1"]
    assert send(ledger).parts[0].delivery_id == delivery_id


def test_retry_ends_the_backoff_of_the_study(ledger: Ledger):
    (delivery_id,) = admit(ledger, arrival(1))
    send(ledger, state=State.PENDING, reason=Reason.SERVER_ERROR, charge=True, charge_study=True, answered=True)
    assert queries.studies_due(ledger, now=LATER) == []
    with ledger.transaction() as tx:
        moves.retry(tx, delivery_id, now=LATER)
    assert len(queries.studies_due(ledger, now=LATER)) == 1


def test_retry_lets_a_deferred_row_go(ledger: Ledger):
    (deferred,) = admit(ledger, arrival(1))
    send(ledger, 1, state=State.PENDING, reason=Reason.BEING_CREATED, wait=timedelta(hours=1), answered=True)
    with ledger.transaction() as tx:
        assert moves.retry(tx, deferred, now=LATER) is State.PENDING
    assert len(queries.studies_due(ledger, now=LATER)) == 1


def test_retry_of_a_conflict_is_refused_while_its_identity_is_held(ledger: Ledger):
    holder, other = conflict_with(ledger, State.PENDING)
    sentence = rf"row {holder} \(PENDING\) holds the same UIDs"
    with pytest.raises(RefusedMove, match=sentence) as refused, ledger.transaction() as tx:
        moves.retry(tx, other, now=LATER)
    assert (refused.value.number, refused.value.other_id) == (other, holder)
    assert state_of(ledger, other) is State.CONFLICT


def test_retry_of_a_conflict_whose_holder_is_gone_is_granted(ledger: Ledger):
    holder, other = conflict_with(ledger, State.UNCERTAIN)
    with ledger.transaction() as tx:
        moves.fail_gone(tx, [holder], note="vanished", now=LATER)
        assert moves.retry(tx, other, now=LATER) is State.PENDING


@pytest.mark.parametrize(
    "state, sentence",
    [
        (State.SENDING, "is being sent right now"),
        (State.STORED, "there is nothing to retry"),
        (State.CONFIRMED, "is confirmed on the server"),
        (State.DUPLICATE, "has the same content as row 1"),
        (State.DISCARDED, "was discarded"),
    ],
)
def test_retry_is_refused_with_a_sentence(ledger: Ledger, state: State, sentence: str):
    delivery_id = entry_in(ledger, state)
    with pytest.raises(RefusedMove, match=sentence), ledger.transaction() as tx:
        moves.retry(tx, delivery_id, now=LATER)
    assert state_of(ledger, delivery_id) is state


def test_unknown_row_is_refused(ledger: Ledger):
    with pytest.raises(RefusedMove, match="there is no row 4711"), ledger.transaction() as tx:
        moves.retry(tx, 4711, now=LATER)


def test_retry_of_a_rejected_file_is_a_request_that_the_daemon_finds(ledger: Ledger):
    delivery_id = entry_in(ledger, State.REJECTED)
    with ledger.transaction() as tx:
        assert moves.retry(tx, delivery_id, now=LATER) is State.REJECTED
    (requested,) = queries.requested_rows(ledger)
    assert (requested.file_id, requested.request, requested.reason) == (
        delivery_id,
        OperatorRequest.RETRY,
        Reason.TRUNCATED,
    )

    with ledger.transaction() as tx:
        (admitted,) = moves.admit(tx, [arrival(5)], formers={0: delivery_id}, now=LATER)
    entry = queries.entry(ledger, delivery_id)
    assert entry is not None
    assert (entry.state, entry.reason, entry.removed_at) == (State.DISCARDED, Reason.RETRIED, LATER)
    assert f"row {admitted.number}" in entry.note
    assert queries.requested_rows(ledger) == []
    assert queries.removable(ledger, before=LATER) == []  # its file is the other row's now


def test_request_that_cannot_be_carried_out_is_answered(ledger: Ledger):
    delivery_id = entry_in(ledger, State.REJECTED)
    with ledger.transaction() as tx:
        moves.admit_anyway(tx, delivery_id, now=LATER)
    assert [requested.request for requested in queries.requested_rows(ledger)] == [OperatorRequest.ADMIT_ANYWAY]
    with ledger.transaction() as tx:
        moves.request_failed(tx, delivery_id, note="its file is gone", now=LATER)
        moves.request_failed(tx, delivery_id, note="again", now=LATER)
    assert queries.requested_rows(ledger) == []
    entry = queries.entry(ledger, delivery_id)
    assert entry is not None
    assert (entry.state, entry.note) == (State.REJECTED, "its file is gone")


@pytest.mark.parametrize("reason", [Reason.NOT_DICOM, Reason.NO_UIDS, Reason.UNREADABLE])
def test_file_with_nothing_to_send_is_not_admitted_anyway(ledger: Ledger, reason: Reason):
    with ledger.transaction() as tx:
        (delivery_id,) = moves.refuse(tx, [refusal(1, reason=reason)], now=NOW)
    with pytest.raises(RefusedMove, match="nothing in it to send"), ledger.transaction() as tx:
        moves.admit_anyway(tx, delivery_id, now=LATER)


def test_only_rejected_files_are_admitted_anyway(ledger: Ledger):
    delivery_id = entry_in(ledger, State.FAILED)
    with pytest.raises(RefusedMove, match="only a REJECTED file"), ledger.transaction() as tx:
        moves.admit_anyway(tx, delivery_id, now=LATER)


@pytest.mark.parametrize("state", [State.FAILED, State.CONFLICT, State.REJECTED, State.DELETED])
def test_discard_gives_a_row_up_and_lets_its_file_go_after_retain(ledger: Ledger, state: State):
    delivery_id = entry_in(ledger, state)
    with ledger.transaction() as tx:
        moves.discard(tx, delivery_id, now=LATER)
    assert state_of(ledger, delivery_id) is State.DISCARDED
    assert delivery_id in {row.file_id for row in queries.removable(ledger, before=LATER)}
    assert delivery_id not in {row.file_id for row in queries.removable(ledger, before=NOW)}


@pytest.mark.parametrize(
    "state",
    [State.PENDING, State.SENDING, State.UNCERTAIN, State.STORED, State.CONFIRMED, State.DUPLICATE, State.DISCARDED],
)
def test_discard_of_a_row_that_is_wanted_is_refused(ledger: Ledger, state: State):
    delivery_id = entry_in(ledger, state)
    with pytest.raises(RefusedMove, match="can be discarded"), ledger.transaction() as tx:
        moves.discard(tx, delivery_id, now=LATER)
    assert state_of(ledger, delivery_id) is state


def test_discard_of_a_conflict_found_on_the_server_passes_on_to_its_duplicates(ledger: Ledger):
    holder, duplicate = admit(ledger, arrival(1), arrival(1))
    send(ledger, state=State.UNCERTAIN, reason=Reason.ALREADY_THERE, answered=True)
    apply(ledger, outcome(holder, State.CONFLICT, Reason.OTHER_CONTENT))
    assert state_of(ledger, duplicate) is State.DUPLICATE
    with ledger.transaction() as tx:
        moves.discard(tx, holder, now=LATER)
    assert state_of(ledger, duplicate) is State.PENDING


def test_duplicates_of_a_discarded_conflict_meet_whoever_holds_the_identity_now(ledger: Ledger):
    holder, same, other = admit(ledger, arrival(1), arrival(1), arrival(1))
    send(ledger, state=State.UNCERTAIN, reason=Reason.ALREADY_THERE, answered=True)
    apply(ledger, outcome(holder, State.CONFLICT, Reason.OTHER_CONTENT))
    (new_holder,) = admit(ledger, arrival(1, seed="new"))
    with ledger.transaction() as tx:
        moves.discard(tx, holder, now=LATER)

    for each in (same, other):
        assert compare(ledger, each, Sameness.OTHER) is State.CONFLICT
    assert [state_of(ledger, each) for each in (same, other, new_holder)] == [
        State.CONFLICT,
        State.CONFLICT,
        State.PENDING,
    ]


@pytest.mark.parametrize("holder_state", [State.PENDING, State.UNCERTAIN, State.STORED, State.CONFIRMED])
def test_replace_swaps_a_conflict_and_its_holder_in_one_transaction(ledger: Ledger, holder_state: State):
    holder, other = conflict_with(ledger, holder_state)
    (third,) = admit(ledger, arrival(1, transfer_syntax="1.2.840.10008.1.2.5"))
    (duplicate,) = admit(ledger, arrival(1))
    with ledger.transaction() as tx:
        assert moves.replace(tx, other, now=LATER) == holder

    replaced = queries.entry(ledger, holder)
    assert replaced is not None
    assert (replaced.state, replaced.reason) == (State.DISCARDED, Reason.REPLACED)
    batch = send(ledger)
    assert [(part.delivery_id, part.replaces) for part in batch.parts] == [(other, True)]
    assert queries.entry(ledger, third).holder_id == other
    # What had the replaced content goes the way it goes.
    assert state_of(ledger, duplicate) is State.DUPLICATE
    assert duplicate in {row.file_id for row in queries.removable(ledger, before=LATER)}


def test_replace_waits_while_the_holder_is_being_sent(ledger: Ledger):
    holder, other = conflict_with(ledger, State.SENDING)
    sentence = f"row {holder}, which holds the same UIDs, is being sent"
    with pytest.raises(RefusedMove, match=sentence) as refused, ledger.transaction() as tx:
        moves.replace(tx, other, now=LATER)
    assert refused.value.other_id == holder


def test_replace_of_what_only_the_server_has(ledger: Ledger):
    (delivery_id,) = admit(ledger, arrival(1))
    send(ledger, state=State.UNCERTAIN, reason=Reason.ALREADY_THERE, answered=True)
    apply(ledger, outcome(delivery_id, State.CONFLICT, Reason.OTHER_CONTENT))
    with ledger.transaction() as tx:
        assert moves.replace(tx, delivery_id, now=LATER) == 0
    assert send(ledger).parts[0].replaces


def test_retry_of_what_was_deleted_replaces_nothing(ledger: Ledger):
    """A person had it replace what was there then; what may be there by now nobody has looked at."""
    (delivery_id,) = admit(ledger, arrival(1))
    send(ledger, state=State.UNCERTAIN, reason=Reason.ALREADY_THERE, answered=True)
    apply(ledger, outcome(delivery_id, State.CONFLICT, Reason.OTHER_CONTENT))
    with ledger.transaction() as tx:
        moves.replace(tx, delivery_id, now=LATER)
    send(ledger)
    confirm(ledger, delivery_id)
    apply(ledger, outcome(delivery_id, State.DELETED, Reason.FEED))
    with ledger.transaction() as tx:
        moves.retry(tx, delivery_id, now=LATER)
    assert not send(ledger).parts[0].replaces


def test_only_a_conflict_replaces(ledger: Ledger):
    delivery_id = entry_in(ledger, State.FAILED)
    with pytest.raises(RefusedMove, match="only a CONFLICT can replace"), ledger.transaction() as tx:
        moves.replace(tx, delivery_id, now=LATER)


def test_row_whose_file_was_removed_is_not_sent_again(ledger: Ledger):
    delivery_id = entry_in(ledger, State.CONFIRMED)
    with ledger.transaction() as tx:
        remove(tx, delivery_id)
    apply(ledger, outcome(delivery_id, State.DELETED, Reason.FEED))
    with pytest.raises(RefusedMove, match="its file was removed on 2026-03-01"), ledger.transaction() as tx:
        moves.retry(tx, delivery_id, now=LATER)


@pytest.mark.parametrize("state", [State.DELETED, State.CONFLICT])
def test_retry_of_a_row_whose_file_was_removed_sends_what_has_the_same_content(ledger: Ledger, state: State):
    """It was kept for that, and neither row could be retried: each named the other."""
    holder = entry_in(ledger, State.CONFIRMED)
    first, second = admit(ledger, arrival(1), arrival(1), now=LATER)
    confirm(ledger, holder, now=LATER)
    with ledger.transaction() as tx:
        remove(tx, holder)
    apply(ledger, outcome(holder, state))

    with ledger.transaction() as tx:
        assert moves.retry(tx, holder, now=LATER) is State.PENDING

    assert [state_of(ledger, each) for each in (holder, first, second)] == [state, State.PENDING, State.DUPLICATE]
    send(ledger)
    confirm(ledger, first)
    assert {row.file_id for row in queries.removable(ledger, before=LATER)} == {first, second}


def test_retry_all_moves_what_it_can_and_says_why_not_the_rest(ledger: Ledger):
    failed = entry_in(ledger, State.FAILED, 1)
    again = entry_in(ledger, State.FAILED, 1)  # the same identity, failed a second time
    rejected = entry_in(ledger, State.REJECTED, 2)
    other_study = entry_in(ledger, State.FAILED, 3, study=2)

    with ledger.transaction() as tx:
        retried = moves.retry_all(tx, Choice(state=State.FAILED), now=LATER)
    assert (retried.moved, retried.requested) == ((failed, other_study), ())
    assert [refused.number for refused in retried.refused] == [again]

    with ledger.transaction() as tx:
        retried = moves.retry_all(tx, Choice(reason=Reason.TRUNCATED), now=LATER)
    assert (retried.moved, retried.requested, retried.refused) == ((), (rejected,), ())


def test_retry_all_by_study_leaves_other_studies_alone(ledger: Ledger):
    mine, other = entry_in(ledger, State.FAILED, 1), entry_in(ledger, State.FAILED, 2, study=2)
    with ledger.transaction() as tx:
        moves.retry_all(tx, Choice(study_uid="1.2.1", since=NOW), now=LATER)
    assert (state_of(ledger, mine), state_of(ledger, other)) == (State.PENDING, State.FAILED)


def test_retry_all_of_everything_is_refused(ledger: Ledger):
    with pytest.raises(RefusedMove, match="say which rows"), ledger.transaction() as tx:
        moves.retry_all(tx, Choice(), now=LATER)


def test_decision_in_another_process_keeps_the_daemons_sums(tmp_path: Path, ledger: Ledger):
    """The daemon's ledger stays open; `ingestd retry` has its own, without host, spool or limits."""
    delivery_id = entry_in(ledger, State.FAILED)
    with Ledger.open(url_of(tmp_path), create=False) as person, person.transaction() as tx:
        moves.retry(tx, delivery_id, now=LATER)
    assert [study.waiting for study in queries.studies_due(ledger, now=LATER)] == [1]


def test_decision_after_a_reload_goes_by_the_limits_of_now(tmp_path: Path, ledger: Ledger):
    """Who had written once kept the daemon's limits for good: it made a study due by those from before a SIGHUP."""
    first, second = (entry_in(ledger, State.FAILED, number, study=number) for number in (1, 2))
    with Ledger.open(url_of(tmp_path), create=False) as person:
        with person.transaction() as tx:
            moves.retry(tx, first, now=LATER)
        ledger.set_limits(BatchLimits(quiet_period=timedelta(seconds=20)))
        with person.transaction() as tx:
            moves.retry(tx, second, now=LATER)
    assert_ledger_holds(ledger)


def test_status_counts_what_needs_a_person_but_not_clutter(ledger: Ledger):
    for number, state in enumerate(State, start=1):
        if state not in (State.DUPLICATE, State.CONFLICT, State.UNROUTED):
            entry_in(ledger, state, number, study=number)
    entry_in(ledger, State.CONFLICT, 50, study=50)
    with ledger.transaction() as tx:
        moves.refuse(tx, [refusal(60, reason=Reason.NOT_DICOM), refusal(61, reason=Reason.DICOMDIR)], now=NOW)
        summary = InboxSummary(inbox="in", path="/drop", alarm="", watching="poll", counts={})
        moves.put_inbox_reports(tx, [summary], now=NOW)

    status = queries.status(ledger)

    assert status.states == queries.counts(ledger)
    assert (status.needs_person, status.clutter) == (4, 2)
    assert status.oldest_unconfirmed_at == NOW
    assert status.destination is not None
    assert sum(count.rows for count in status.counts) == sum(status.states.values())
    assert status.studies_waiting == 2


def test_nothing_unconfirmed_has_no_age(ledger: Ledger):
    entry_in(ledger, State.CONFIRMED)
    assert queries.oldest_unconfirmed_at(ledger, at=1) is None
    assert queries.unfinished(ledger) == 0


def test_unfinished_counts_what_is_on_its_way(ledger: Ledger):
    admit(ledger, arrival(1), arrival(2), arrival(3))
    assert (queries.unfinished(ledger), queries.last_id(ledger)) == (3, 3)


def hashes(ledger: Ledger) -> dict[str, str]:
    return {
        "patient_hash": ledger.search_key.hash("patient", "4711"),
        "accession_hash": ledger.search_key.hash("accession", "A-1"),
    }


def test_studies_are_found_by_all_that_an_administrator_may_know(ledger: Ledger):
    admit(ledger, arrival(1, study=1, modality="CT", **hashes(ledger)), arrival(2, study=1, modality="SR"))
    admit(ledger, arrival(1, study=2, modality="MR"), now=LATER)
    send(ledger, 2, now=LATER)

    def found(**choice: object) -> list[str]:
        return [study.study_uid for study in queries.studies(ledger, Choice(**choice))]  # type: ignore[arg-type]

    assert found() == ["1.2.2", "1.2.1"]
    assert found(study_uid="1.2.1") == ["1.2.1"]
    assert found(patient_hash=ledger.search_key.hash("patient", "4711 ")) == ["1.2.1"]
    assert found(accession_hash=ledger.search_key.hash("accession", "A-1")) == ["1.2.1"]
    assert found(patient_hash=ledger.search_key.hash("accession", "4711")) == []
    assert found(modality="MR") == ["1.2.2"]
    assert found(state=State.STORED) == ["1.2.2"]
    assert found(since=LATER) == ["1.2.2"]
    (study,) = queries.studies(ledger, Choice(study_uid="1.2.1"))
    assert study.modalities == ("CT", "SR")
    assert (study.states[State.PENDING], study.size_bytes, study.host) == (2, 2000, "host-a")


def test_listings_are_paged_without_gaps_or_repeats(ledger: Ledger):
    for number in range(7):
        admit(ledger, arrival(number, study=number), now=NOW + timedelta(seconds=number // 2))
    entry_in(ledger, State.CONFIRMED, 99, study=99)

    studies, after = [], None
    while page := queries.studies(ledger, limit=3, after=after):
        studies += [study.study_uid for study in page]
        after = page[-1]
    assert len(studies) == len(set(studies)) == 8

    entries, last = [], None
    while rows := queries.entries(ledger, limit=3, after=last):
        entries += [entry.delivery_id for entry in rows]
        last = rows[-1]
    assert sorted(entries) == list(range(1, 9))
    assert entries[0] == 8


@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize("state", [None, State.PENDING])
def test_study_of_two_hosts_is_listed_once_however_it_is_paged(
    ledger: Ledger, tmp_path: Path, limit: int, state: State | None
):
    for number in range(6):
        admit(ledger, arrival(number, study=number), now=NOW + timedelta(seconds=number // 2))
    with open_ledger(tmp_path, host="host-b") as other:
        admit(other, *(arrival(number + 50, study=number) for number in range(4)), now=NOW + timedelta(seconds=1))

    found, after = [], None
    while page := queries.studies(ledger, Choice(state=state), limit=limit, after=after):
        found += page
        after = page[-1]

    assert sorted(study.study_uid for study in found) == [f"1.2.{number}" for number in range(6)]
    assert [study.changed_at for study in found] == sorted((study.changed_at for study in found), reverse=True)
    waiting = {study.study_uid: study.states[State.PENDING] for study in found}
    assert waiting == {f"1.2.{number}": 2 if number < 4 else 1 for number in range(6)}


def test_entries_are_found_by_state_reason_and_label(ledger: Ledger):
    first, second = admit(ledger, arrival(1, **hashes(ledger)), arrival(2, study=2, modality="MR"))
    send(ledger, 2, state=State.FAILED, reason=Reason.REFUSED, answered=True)

    def found(**choice: object) -> list[int]:
        return [entry.delivery_id for entry in queries.entries(ledger, Choice(**choice))]  # type: ignore[arg-type]

    assert found(state=State.FAILED) == found(reason=Reason.REFUSED) == found(modality="MR") == [second]
    assert found(study_uid="1.2.2") == found(since=LATER) == [second]
    assert found(patient_hash=hashes(ledger)["patient_hash"]) == [first]
    assert found(accession_hash=hashes(ledger)["accession_hash"]) == [first]
    assert found(modality="US") == []


def test_search_words_say_nothing_without_their_key(tmp_path: Path, ledger: Ledger):
    word = ledger.search_key.hash("patient", "4711")
    assert word == ledger.search_key.hash("patient", "4711")
    assert ledger.search_key.hash("patient", " ") == ""
    assert "4711" not in word
    key = key_of(tmp_path)
    assert key.stat().st_mode & 0o777 == 0o600
    with Ledger.open(url_of(tmp_path), read_only=True, key=key) as reader:
        assert reader.search_key.hash("patient", "4711") == word


def test_file_is_found_by_id_uid_and_path(ledger: Ledger, tmp_path: Path):
    (delivery_id,) = admit(ledger, arrival(1, relative_path="sub/IM1"))
    with ledger.transaction() as tx:
        summary = InboxSummary(inbox="in", path="/drop", alarm="", watching="poll", counts={})
        moves.put_inbox_reports(tx, [summary], now=NOW)
    entry = queries.entry(ledger, delivery_id)
    assert entry is not None
    uids = identity(1)
    known = [
        str(delivery_id),
        uids.sop_uid,
        uids.series_uid,
        uids.study_uid,
        "sub/IM1",
        "/drop/sub/IM1",
        str(entry.file),
        str(entry.path),
    ]
    assert entry.file == tmp_path / "spool-host-a" / str(entry.path)
    for text in known:
        assert [found.delivery_id for found in queries.find(ledger, text)] == [delivery_id], text
    assert (
        queries.find(ledger, "1.2.3.4.5") == queries.find(ledger, "/drop/other") == queries.find(ledger, "9" * 30) == []
    )


def test_story_tells_every_move_with_its_attempts_holder_and_duplicates(ledger: Ledger):
    holder, duplicate = admit(ledger, arrival(1), arrival(1))
    send(
        ledger,
        state=State.UNCERTAIN,
        reason=Reason.NO_VERDICT,
        evidence={"phase": "answer"},
        body_bytes_left=1000,
        error="the connection was reset",
        seconds=1.5,
    )
    confirm(ledger, holder)

    story = queries.story(ledger, holder)
    assert story is not None
    assert [event.after for event in story.history] == [
        State.PENDING,
        State.SENDING,
        State.UNCERTAIN,
        State.CONFIRMED,
    ]
    assert story.history[2].evidence == {"phase": "answer"}
    (attempt,) = story.attempts
    assert (attempt.error, attempt.seconds, attempt.body_bytes_left) == ("the connection was reset", 1.5, 1000)
    assert [each.delivery_id for each in story.duplicates] == [duplicate]
    other = queries.story(ledger, duplicate)
    assert other is not None
    assert other.holder is not None
    assert other.holder.delivery_id == holder
    assert [each.delivery_id for each in other.same_identity] == [holder]
    assert queries.story(ledger, 99) is None


def test_trying_now_ends_every_wait_and_moves_nothing(ledger: Ledger):
    deferred, backing_off = admit(ledger, arrival(1), arrival(1, study=2))
    send(ledger, state=State.PENDING, reason=Reason.SERVER_ERROR, charge=True, answered=True)
    send(ledger, 2, state=State.PENDING, reason=Reason.REFUSED, charge=True, charge_study=True, answered=True)
    with ledger.transaction() as tx:
        moves.pause_destination(
            tx, Pause(cause=PauseCause.UNREACHABLE, note="away"), until=LATER + timedelta(minutes=5), now=LATER
        )
    assert queries.studies_due(ledger, now=LATER) == []

    with ledger.transaction() as tx:
        assert moves.try_now(tx, now=LATER) == 1

    assert {study.study_uid for study in queries.studies_due(ledger, now=LATER, flush=True)} == {"1.2.1", "1.2.2"}
    assert [state_of(ledger, each) for each in (deferred, backing_off)] == [State.PENDING, State.PENDING]
    destination = queries.destination(ledger)
    assert destination is not None
    assert (destination.paused_until, destination.pause_note) == (LATER, "away")
    assert_ledger_holds(ledger)
