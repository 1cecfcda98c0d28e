"""What an answer to a post makes of each instance: the tables of DESIGN.md 5, row by row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ingestd.dicomweb import (
    Failed,
    FileChanged,
    MisconfiguredServer,
    NotAuthorized,
    NotFound,
    Refused,
    Stored,
    StoreResult,
    Throttled,
    TokenError,
    TooLarge,
    Unavailable,
    Unintelligible,
)
from ingestd.lifecycle import (
    MOVES,
    Batch,
    BatchResult,
    Content,
    Identity,
    Outcome,
    Part,
    PauseCause,
    Reason,
    ServerKind,
    State,
)
from ingestd.sender import Terms, give_up, judge_answer, judge_failure, profile_of

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
EXPLICIT = "1.2.840.10008.1.2.1"
AZURE = profile_of(ServerKind.AZURE, feed_version=2)
ORTHANC = profile_of(ServerKind.ORTHANC)
OTHER = profile_of(ServerKind.OTHER)


def terms(profile=AZURE, *, reencode=True, present_before=None) -> Terms:
    return Terms(profile=profile, reencode_refused=reencode, now=NOW, present_before=present_before)


def part(number: int = 1, *, syntax: str = EXPLICIT, **more) -> Part:
    return Part(
        delivery_id=number,
        identity=Identity(study_uid="1.1", series_uid="1.1.1", sop_uid=f"1.1.1.{number}"),
        path=f"/nowhere/{number}",
        content=Content(
            transfer_syntax=syntax, digest="d", meta_digest="m", dataset_offset=144, size_bytes=1000 + number
        ),
        **more,
    )


def batch(*parts: Part) -> Batch:
    return Batch(
        attempt_id=1,
        claim_token="t",
        study_uid="1.1",
        parts=parts or (part(1), part(2)),
        started_at=NOW - timedelta(seconds=3),
    )


def only(result: BatchResult) -> Outcome:
    (outcome,) = result.outcomes
    return outcome


def failed_alone(reason: int, *, syntax: str = EXPLICIT, profile=AZURE, reencode=True, **more) -> Outcome:
    lone = part(1, syntax=syntax, **more)
    answer = StoreResult(status=409, failed={"1.1.1.1": Failed(reason=reason, failed_attributes=("said so",))})
    return only(judge_answer(batch(lone), answer, terms=terms(profile, reencode=reencode)))


def failed_among_others(reason: int, *, syntax: str = EXPLICIT, profile=AZURE, **more) -> Outcome:
    answer = StoreResult(status=202, stored={"1.1.1.2": Stored()}, failed={"1.1.1.1": Failed(reason=reason)})
    result = judge_answer(batch(part(1, syntax=syntax, **more), part(2)), answer, terms=terms(profile))
    assert result.outcomes[1].state is State.STORED
    return result.outcomes[0]


def assert_legal(result: BatchResult) -> None:
    assert [one.delivery_id for one in result.outcomes] == [one.delivery_id for one in result.batch.parts]
    for outcome in result.outcomes:
        assert (State.SENDING, outcome.state) in MOVES
        assert outcome.note or outcome.state is State.STORED


def test_listed_as_stored_is_stored_and_its_warnings_are_kept():
    answer = StoreResult(
        status=202,
        stored={"1.1.1.1": Stored(), "1.1.1.2": Stored(warning_reason=45063, failed_attributes=("odd",))},
    )

    result = judge_answer(batch(), answer, terms=terms())

    plain, warned = result.outcomes
    assert (plain.state, plain.reason, plain.warning_reason) == (State.STORED, Reason.STORED_ANSWER, None)
    assert (warned.state, warned.warning_reason, warned.failed_attributes) == (State.STORED, 45063, ("odd",))
    assert (result.answered, result.charge_study, result.pause, result.http_status) == (True, False, None, 202)
    assert_legal(result)


def test_what_was_there_before_the_post_travels_with_every_outcome():
    said = {1: True, 2: False, 3: False, 4: True}
    answer = StoreResult(
        status=202,
        stored={"1.1.1.1": Stored(), "1.1.1.2": Stored()},
        failed={"1.1.1.3": Failed(reason=0x0111)},
        unnamed=("1.1.1.4",),
    )

    result = judge_answer(batch(*(part(number) for number in said)), answer, terms=terms(ORTHANC, present_before=said))

    assert [one.evidence["present_before"] for one in result.outcomes] == ["yes", "no", "no", "yes"]


def test_named_in_neither_sequence_is_uncertain_whatever_the_status():
    for status in (200, 202, 409):
        result = judge_answer(batch(), StoreResult(status=status, stored={"1.1.1.1": Stored()}), terms=terms())

        assert [one.state for one in result.outcomes] == [State.STORED, State.UNCERTAIN]
        assert (result.outcomes[1].reason, result.charge_study) == (Reason.NO_VERDICT, True)
        assert_legal(result)


def test_silent_answer_counts_against_an_instance_only_when_it_travelled_alone():
    """Orthanc answers 200 with both sequences empty to what it cannot parse."""
    among = judge_answer(batch(), StoreResult(status=200), terms=terms())
    alone = judge_answer(batch(part(1)), StoreResult(status=200), terms=terms())

    assert [(one.state, one.alone, one.unnamed) for one in among.outcomes] == [(State.UNCERTAIN, True, False)] * 2
    assert [(one.state, one.alone, one.unnamed) for one in alone.outcomes] == [(State.UNCERTAIN, False, True)]


def test_named_as_stored_and_as_failed_is_no_verdict():
    answer = StoreResult(status=202, contradicted=("1.1.1.1",), stored={"1.1.1.2": Stored()})

    assert State.UNCERTAIN is judge_answer(batch(), answer, terms=terms()).outcomes[0].state


def test_failure_without_a_uid_belongs_to_the_one_instance_nothing_names():
    """The service answers so for a part that it cannot parse: FailureReason and nothing else."""
    among = StoreResult(status=202, stored={"1.1.1.2": Stored()}, anonymous_failures=(43264,))
    alone = StoreResult(status=409, anonymous_failures=(43264,))

    in_batch = judge_answer(batch(), among, terms=terms())
    lone = judge_answer(batch(part(1)), alone, terms=terms())

    assert (
        in_batch.outcomes[0].state,
        in_batch.outcomes[0].alone,
        in_batch.charge_study,
    ) == (State.PENDING, True, False)
    assert (only(lone).state, only(lone).failure_reason) == (State.FAILED, 43264)


@pytest.mark.parametrize("reasons", [(43264, 43264), (45070,), (45071,)])
def test_failures_without_a_uid_prove_nothing_where_they_leave_a_doubt(reasons):
    answer = StoreResult(status=202, stored={"1.1.1.2": Stored()}, anonymous_failures=reasons)

    assert State.UNCERTAIN is judge_answer(batch(), answer, terms=terms()).outcomes[0].state


@pytest.mark.parametrize("profile", [AZURE, ORTHANC, OTHER])
@pytest.mark.parametrize("judged", [failed_alone, failed_among_others])
def test_already_there_is_uncertain_until_the_content_was_compared(profile, judged):
    outcome = judged(45070, profile=profile)

    assert (
        outcome.state,
        outcome.reason,
        outcome.needs_content_check,
    ) == (State.UNCERTAIN, Reason.ALREADY_THERE, True)
    assert (timedelta(0), False) == (outcome.wait, outcome.charge)


def test_duplicate_sop_instance_means_already_there_except_on_azure():
    assert Reason.ALREADY_THERE is failed_alone(273, profile=OTHER).reason
    assert Reason.ALREADY_THERE is failed_among_others(273, profile=ORTHANC).reason
    assert (failed_alone(273).state, failed_alone(273).reason) == (State.FAILED, Reason.REFUSED)


@pytest.mark.parametrize(
    "stuck_for, wait_minutes", [(None, 2), (0, 2), (1, 2), (2, 2), (4, 4), (9, 9), (60, 60), (600, 60), (1439, 60)]
)
def test_being_created_is_posted_again_alone_after_two_minutes_doubling_to_an_hour(stuck_for, wait_minutes):
    since = None if stuck_for is None else NOW - timedelta(minutes=stuck_for)
    for judged in (failed_alone, failed_among_others):
        outcome = judged(45071, being_created_since=since)

        assert (outcome.state, outcome.reason) == (State.PENDING, Reason.BEING_CREATED)
        assert (True, timedelta(minutes=wait_minutes), False) == (outcome.alone, outcome.wait, outcome.charge)


def test_being_created_for_a_day_fails_with_the_delete_to_run_once_it_was_asked_alone():
    since = NOW - timedelta(days=1)

    alone, among = failed_alone(45071, being_created_since=since), failed_among_others(45071, being_created_since=since)

    assert (alone.state, alone.reason) == (State.FAILED, Reason.STUCK_ON_SERVER)
    assert "ingestd dicomweb delete" in alone.note
    assert "1.1.1.1" not in alone.note
    assert (among.state, among.reason) == (State.PENDING, Reason.BEING_CREATED)


@pytest.mark.parametrize("reason", [272, 0xA700, 0xA7FF])
def test_temporary_failure_is_tried_again_and_charged(reason):
    for judged in (failed_alone, failed_among_others):
        outcome = judged(reason)

        assert (outcome.state, outcome.charge, outcome.alone) == (State.PENDING, True, False)
        assert judged(reason, charged=1).alone, "a second time it travels alone"


@pytest.mark.parametrize("reason", [43264, 43265, 0xA9FF, 0xC000, 0xC409, 0xCFFF, 290, 311, 0x0120, 0x0117, 1, 65535])
def test_verdict_in_a_batch_is_heard_again_alone_and_is_final_then(reason):
    among, alone = failed_among_others(reason), failed_alone(reason)

    assert (among.state, among.alone, among.charge) == (State.PENDING, True, False)
    assert (State.FAILED, Reason.REFUSED, reason) == (alone.state, alone.reason, alone.failure_reason)
    assert alone.failed_attributes == ("said so",)


@pytest.mark.parametrize("reason", [43264, 43265, 272, 0xA9FF, 0xC000, 0xCFFF, 290, 311])
@pytest.mark.parametrize("syntax", [IMPLICIT, BIG_ENDIAN])
def test_lone_implicit_or_big_endian_file_is_encoded_anew_before_it_fails(reason, syntax):
    outcome = failed_alone(reason, syntax=syntax)

    assert (outcome.state, outcome.reencode, outcome.alone, outcome.charge) == (State.PENDING, True, True, False)
    assert not failed_alone(reason, syntax=syntax, reencoded=True).reencode, "once only"
    assert not failed_alone(reason, syntax=syntax, reencode=False).reencode, "implicit_vr: never"
    assert not failed_alone(reason).reencode, "explicit little endian has nothing to gain"
    among = failed_among_others(reason, syntax=syntax)
    assert (among.reencode, among.alone) == (False, True)


@pytest.mark.parametrize("reason", [0xA700, 0x0120, 1, 45070, 45071])
def test_other_reasons_say_nothing_about_the_encoding(reason):
    assert not failed_alone(reason, syntax=IMPLICIT).reencode


def failure(error, *parts: Part, **more) -> BatchResult:
    result = judge_failure(batch(*parts), error, terms=terms(**more))
    assert_legal(result)
    return result


@pytest.mark.parametrize(
    "error, cause",
    [
        (Unavailable("refused"), PauseCause.UNREACHABLE),
        (Unavailable("too slow", timed_out=True), PauseCause.UNREACHABLE),
        (MisconfiguredServer("certificate"), PauseCause.MISCONFIGURED),
        (Unintelligible("odd"), PauseCause.UNREACHABLE),
        (TokenError("none"), PauseCause.NO_TOKEN),
        (NotAuthorized("401", status=401, body_bytes_left=9), PauseCause.NOT_AUTHORIZED),
        (NotAuthorized("403", status=403, body_bytes_left=9), PauseCause.NOT_AUTHORIZED),
        (Throttled("429", status=429, body_bytes_left=9), PauseCause.THROTTLED),
        (Unavailable("503", status=503), PauseCause.UNAVAILABLE),
    ],
)
def test_proven_not_stored_goes_back_uncharged_and_pauses_the_destination(error, cause):
    result = failure(error)

    assert {(State.PENDING, Reason.NOT_SENT, False)} == {(one.state, one.reason, one.charge) for one in result.outcomes}
    assert result.pause is not None
    assert (cause, False, False) == (result.pause.cause, result.charge_study, result.whole_batch_refused)


def test_retry_after_is_honoured_within_reason():
    for asked, clamped in ((7, 7), (0, 1), (10**9, 900), (-3, 1)):
        pause = failure(Throttled(status=429, retry_after=timedelta(seconds=asked))).pause

        assert pause is not None
        assert timedelta(seconds=clamped) == pause.retry_after


def test_unavailable_after_body_bytes_is_uncertain_and_pauses_without_a_charge():
    for error in (
        Unavailable(status=503, body_bytes_left=1, retry_after=timedelta(seconds=20)),
        Unavailable(status=502, body_bytes_left=1),
    ):
        result = failure(error)

        assert {(State.UNCERTAIN, False)} == {(one.state, one.charge) for one in result.outcomes}
        assert result.pause is not None
        assert (result.pause.cause, result.charge_study) == (PauseCause.UNAVAILABLE, False)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("reset", body_bytes_left=1),
        Unavailable("late", body_bytes_left=1, timed_out=True),
        Unavailable(status=500, body_bytes_left=1),
        Unavailable(status=504, body_bytes_left=1),
        Unavailable(status=424, body_bytes_left=1),
        Unavailable(status=408, body_bytes_left=1),
        Unintelligible("half", status=200, body_bytes_left=1),
        Unintelligible("204", status=204, body_bytes_left=1),
    ],
)
def test_no_verdict_after_body_bytes_is_uncertain_and_charges_the_study(error):
    result = failure(error)

    assert {(State.UNCERTAIN, Reason.NO_VERDICT, True)} == {
        (one.state, one.reason, one.charge) for one in result.outcomes
    }
    assert (result.pause, result.charge_study, result.answered) == (None, True, False)


def test_login_page_after_the_body_is_uncertain_and_a_configuration_fault():
    result = failure(MisconfiguredServer("a web page", status=200, body_bytes_left=5))

    assert {State.UNCERTAIN} == {one.state for one in result.outcomes}
    assert result.pause is not None
    assert PauseCause.MISCONFIGURED is result.pause.cause


def test_method_not_implemented_is_no_verdict_on_the_instances():
    result = failure(Refused(status=501, body_bytes_left=5))

    assert {State.UNCERTAIN} == {one.state for one in result.outcomes}
    assert (result.charge_study, result.whole_batch_refused) == (True, True)


@pytest.mark.parametrize("error", [Refused(status=400), NotFound(status=404), Refused(status=406), Refused(status=415)])
def test_whole_post_refused_is_split_until_one_stands_alone(error):
    error.body_bytes_left = 5
    several, alone = failure(error), failure(error, part(1))

    for result in (several, alone):
        assert (
            result.whole_batch_refused,
            result.charge_study,
            result.pause,
            result.answered,
        ) == (True, True, None, True)
        assert {(State.PENDING, Reason.REFUSED)} == {(one.state, one.reason) for one in result.outcomes}
    assert only(alone).alone


def test_whole_refusal_of_one_is_final_only_while_others_succeed_and_after_it_was_looked_for():
    first = failure(Refused(status=400, body_bytes_left=5), part(1))
    assert first == give_up(first), "what refuses may have stored it: before the next post it is looked for"
    alone = failure(Refused(status=400, body_bytes_left=5), part(1, attempts=1))

    assert State.PENDING is only(alone).state
    assert (only(give_up(alone)).state, only(give_up(alone)).reason) == (State.FAILED, Reason.REFUSED)
    several = failure(Refused(status=400, body_bytes_left=5))
    assert several == give_up(several)


def refused_alone(*, status=400, present_before=False, **more):
    told = None if present_before is None else {1: present_before}
    return failure(Refused(status=status, body_bytes_left=5), part(1, **more), profile=ORTHANC, present_before=told)


def test_what_a_server_that_answers_searches_refuses_three_times_is_the_files_fault():
    """Nothing else has to be there: a lone bad file was posted for ever, and its study waited with it."""
    third = refused_alone(attempts=2, charged=2)
    assert third.content_refused
    failed = only(give_up(third, others_succeed=False))
    assert (failed.state, failed.reason) == (State.FAILED, Reason.REFUSED)

    for result in (
        refused_alone(attempts=1, charged=1),
        refused_alone(attempts=2, charged=2, present_before=None),
        refused_alone(attempts=2, charged=2, present_before=True),
        *(refused_alone(attempts=2, charged=2, status=status) for status in (404, 406, 415)),
    ):
        assert result == give_up(result, others_succeed=False)


def test_unsupported_media_type_has_a_lone_implicit_file_encoded_anew():
    error = Refused(status=415, body_bytes_left=5)

    assert only(failure(error, part(1, syntax=IMPLICIT))).reencode
    assert not only(failure(error, part(1))).reencode
    assert not any(one.reencode for one in failure(error, part(1, syntax=IMPLICIT), part(2)).outcomes)
    again = failure(error, part(1, syntax=IMPLICIT))
    assert again == give_up(again), "it is not given up before the copy was tried"


def test_too_large_is_halved_and_alone_it_fails():
    error = TooLarge(status=413, body_bytes_left=5)
    several, alone = failure(error), failure(error, part(1))

    assert {(State.PENDING, True)} == {(one.state, one.charge) for one in several.outcomes}
    assert (several.charge_study, several.pause) == (True, None)
    assert (only(alone).state, only(alone).reason) == (State.FAILED, Reason.TOO_LARGE)


def test_changed_file_is_read_again_and_the_others_are_asked_about():
    result = failure(FileChanged("content", part_index=1, body_bytes_left=70_000), part(1), part(2), part(3))

    first, changed, last = result.outcomes
    assert (changed.state, changed.reason, changed.reread) == (State.PENDING, Reason.CHANGED, True)
    assert {(State.UNCERTAIN, False)} == {(one.state, one.charge) for one in (first, last)}
    assert (result.charge_study, result.pause) == (False, None)


def test_changed_file_before_any_byte_left_leaves_the_others_pending():
    result = failure(FileChanged("size", part_index=0), part(1), part(2))

    assert [(one.state, one.reread) for one in result.outcomes] == [(State.PENDING, True), (State.PENDING, False)]


def test_vanished_file_fails_as_gone_and_an_unreadable_one_waits():
    gone = failure(FileChanged("gone", part_index=0), part(1), part(2)).outcomes[0]
    unreadable = failure(FileChanged("unreadable", part_index=0), part(1), part(2)).outcomes[0]

    assert (gone.state, gone.reason) == (State.FAILED, Reason.GONE)
    assert (unreadable.state, unreadable.reread) == (State.PENDING, True)


def test_tenth_charged_failure_alone_is_final_only_while_others_succeed():
    answer = StoreResult(status=409, failed={"1.1.1.1": Failed(reason=272)})
    for charged, state in ((0, State.PENDING), (8, State.PENDING), (9, State.FAILED)):
        result = judge_answer(batch(part(1, charged=charged)), answer, terms=terms())

        assert State.PENDING is only(result).state
        assert state is only(give_up(result, most_attempts=10)).state
    in_batch = judge_answer(batch(part(1, charged=20), part(2)), answer, terms=terms())
    assert in_batch == give_up(in_batch)


def test_nothing_else_is_ever_given_up():
    stored = judge_answer(batch(part(1)), StoreResult(status=200, stored={"1.1.1.1": Stored()}), terms=terms())
    uncertain = failure(Unavailable(status=500, body_bytes_left=1), part(1, charged=30))
    paused = failure(Unavailable("refused"), part(1, charged=30))

    for result in (stored, uncertain, paused):
        assert result == give_up(result)


def test_no_uid_ends_up_in_a_note():
    """Notes are shown and logged by id; UIDs are for those who ask for them."""
    errors = [
        Unavailable(status=500, body_bytes_left=1),
        Refused(status=400, body_bytes_left=1),
        TooLarge(status=413, body_bytes_left=1),
        FileChanged("content", part_index=0, sop_uid="1.1.1.1", body_bytes_left=1),
    ]
    outcomes = [one for error in errors for one in failure(error).outcomes]
    outcomes += [failed_alone(reason) for reason in (272, 43264, 45070, 45071, 273)]

    assert not [one.note for one in outcomes if "1.1.1" in one.note]
