"""The table of moves and the pure rules: what is due, where a batch is cut, how long to wait."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingestd import lifecycle
from ingestd.lifecycle import (
    FILE_ENDS,
    FILE_MOVES,
    HOLDING,
    MOVES,
    NEEDS_PERSON,
    RETRY_AFTER_LEAST,
    RETRY_AFTER_MOST,
    UNCONFIRMED,
    Backoff,
    Batch,
    BatchLimits,
    Content,
    Identity,
    IllegalMove,
    Part,
    Sameness,
    State,
    StudyQueue,
    Turns,
    Waiting,
    check_move,
    clamp_retry_after,
    compare_content,
    cut_batch,
    study_due_at,
)

Moves: TypeAlias = Mapping[tuple[State | None, State], str]

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ENDS = {State.CONFIRMED, State.DISCARDED, State.DUPLICATE}

rows = st.lists(
    st.builds(
        Waiting,
        delivery_id=st.integers(1, 1000),
        sop_uid=st.sampled_from([f"1.{number}" for number in range(12)]),
        size_bytes=st.integers(0, 2000),
        charged=st.integers(0, 12),
        alone=st.booleans(),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda row: row.delivery_id,
)
limits = st.builds(BatchLimits, max_bytes=st.integers(1, 5000), max_instances=st.integers(1, 20))


# Written out a second time, from what DESIGN.md 4 means, so that a slip in the table is seen.
LEGAL = {
    None: "PENDING DUPLICATE CONFLICT",
    "PENDING": "SENDING PENDING UNCERTAIN FAILED DUPLICATE DISCARDED",
    "SENDING": "STORED PENDING UNCERTAIN FAILED DUPLICATE DISCARDED",
    "UNCERTAIN": "STORED CONFIRMED PENDING DUPLICATE CONFLICT FAILED DELETED DISCARDED",
    "STORED": "CONFIRMED UNCERTAIN DELETED DUPLICATE CONFLICT DISCARDED",
    "CONFIRMED": "DELETED CONFLICT DISCARDED",
    "DELETED": "CONFIRMED PENDING DISCARDED",
    "FAILED": "PENDING DISCARDED",
    "CONFLICT": "PENDING DISCARDED",
    "DUPLICATE": "PENDING DUPLICATE CONFLICT FAILED DISCARDED",
    "DISCARDED": "PENDING DUPLICATE CONFLICT",
}
# The same of files that have no delivery.
LEGAL_OF_FILES = {
    None: "REJECTED UNROUTED DISCARDED",
    "REJECTED": "DISCARDED",
    "UNROUTED": "DISCARDED",
    "DISCARDED": "",
}
TABLES = pytest.mark.parametrize("table, legal", [(MOVES, LEGAL), (FILE_MOVES, LEGAL_OF_FILES)])


@TABLES
@pytest.mark.parametrize("before", [None, *State])
@pytest.mark.parametrize("after", list(State))
def test_table_has_these_moves_and_no_others(
    before: State | None, after: State, table: Moves, legal: dict[str | None, str]
):
    is_legal = after.value in legal.get(before, "").split()
    assert ((before, after) in table) is is_legal
    if is_legal:
        check_move(before, after, table)
    else:
        with pytest.raises(IllegalMove, match=f"no move from {before or 'no row'} to {after}"):
            check_move(before, after, table)


@TABLES
def test_every_state_can_be_reached_and_left_for_a_good_end(table: Moves, legal: dict[str | None, str]):
    states = {State(state) for state in legal if state is not None}
    reached = {after for before, after in table if before is None}
    while more := {after for before, after in table if before in reached} - reached:
        reached |= more
    assert reached == states
    good = ENDS & states
    while more := {before for before, after in table if after in good and before is not None} - good:
        good |= more
    assert good == states


@TABLES
def test_every_move_says_when(table: Moves, legal: dict[str | None, str]):
    assert all(table.values())
    assert {str(before) for before, _ in table if before} | {"DISCARDED"} == {str(state) for state in legal if state}


def test_groups_of_states_are_what_they_say():
    assert HOLDING - {State.CONFIRMED} == UNCONFIRMED
    assert not NEEDS_PERSON & HOLDING
    assert HOLDING | NEEDS_PERSON | {State.DUPLICATE, State.DISCARDED} == set(State)
    assert {after for _, after in FILE_MOVES} == FILE_ENDS


# The states that are not in each group, so that a new one has to be placed everywhere.
OUTSIDE = {
    "HOLDING": "FAILED REJECTED UNROUTED DUPLICATE CONFLICT DELETED DISCARDED",
    "UNCONFIRMED": "CONFIRMED FAILED REJECTED UNROUTED DUPLICATE CONFLICT DELETED DISCARDED",
    "ENDED": "PENDING SENDING UNCERTAIN STORED",
    "NEEDS_PERSON": "PENDING SENDING UNCERTAIN STORED CONFIRMED DUPLICATE DISCARDED",
    "PROVABLE": "PENDING SENDING FAILED REJECTED UNROUTED DUPLICATE CONFLICT DISCARDED",
    "SETTLED": "PENDING SENDING UNCERTAIN STORED FAILED REJECTED UNROUTED DUPLICATE CONFLICT DELETED",
    "GIVES_IDENTITY_UP": "PENDING SENDING UNCERTAIN STORED CONFIRMED REJECTED UNROUTED DUPLICATE CONFLICT",
    "FILE_ENDS": "PENDING SENDING UNCERTAIN STORED CONFIRMED FAILED DUPLICATE CONFLICT DELETED",
}


def misplaced(states: Iterable[str]) -> set[tuple[str, str]]:
    """Which of these states are both in a group and outside it, or neither."""
    return {
        (name, str(state))
        for name, outside in OUTSIDE.items()
        for state in states
        if (state in getattr(lifecycle, name)) is (state in outside.split())
    }


def test_every_state_is_placed_in_or_outside_every_group():
    groups = {
        name
        for name, value in vars(lifecycle).items()
        if isinstance(value, frozenset) and all(isinstance(one, State) for one in value)
    }

    assert OUTSIDE.keys() == groups
    assert misplaced(State) == set()
    assert misplaced([*State, "MADE_UP"]) == {(name, "MADE_UP") for name in groups}


@given(rows=rows, limits=limits, charged=st.integers(0, 40))
def test_cut_batch_keeps_its_promises(rows: list[Waiting], limits: BatchLimits, charged: int):
    batch = cut_batch(rows, limits, charged=charged)

    assert batch
    assert set(batch) <= set(rows)
    assert [row for row in rows if row in batch] == list(batch)  # oldest first
    uids = [row.sop_uid for row in batch]
    assert len(set(uids)) == len(uids)
    assert len(batch) == 1 or not any(row.alone for row in batch)
    halvings = max([charged, *(row.charged for row in batch)])
    assert len(batch) <= max(1, limits.max_instances >> halvings)
    assert len(batch) == 1 or sum(row.size_bytes for row in batch) <= limits.max_bytes >> halvings


@given(rows=rows, limits=limits)
def test_batches_one_after_the_other_take_every_row(rows: list[Waiting], limits: BatchLimits):
    left = list(rows)
    for _ in range(len(rows)):
        if not left:
            break
        taken = cut_batch(left, limits)
        left = [row for row in left if row not in taken]
    assert left == []


def test_nothing_waiting_is_an_empty_batch():
    assert cut_batch([], BatchLimits()) == ()


def waiting(number: int, **more: int | bool) -> Waiting:
    return Waiting(delivery_id=number, sop_uid=f"1.{number}", **{"size_bytes": 1, **more})  # type: ignore[arg-type]


def test_file_larger_than_the_limit_is_a_batch_of_its_own():
    large, small = waiting(1, size_bytes=100), waiting(2)
    limits = BatchLimits(max_bytes=10)
    assert cut_batch([large, small], limits) == (large,)
    assert cut_batch([small, large], limits) == (small,)


def test_row_that_travels_alone_waits_for_its_turn():
    first, alone, last = waiting(1), waiting(2, alone=True), waiting(3)
    assert cut_batch([first, alone, last], BatchLimits()) == (first, last)
    assert cut_batch([alone, last], BatchLimits()) == (alone,)


@pytest.mark.parametrize("charged, taken", [(0, 4), (1, 2), (2, 1), (9, 1)])
def test_each_charged_attempt_halves_the_bytes_of_the_next_batch(charged: int, taken: int):
    limits = BatchLimits(max_bytes=40)
    of_study = [waiting(number, size_bytes=10) for number in range(6)]
    of_rows = [waiting(number, size_bytes=10, charged=charged) for number in range(6)]

    assert len(cut_batch(of_study, limits, charged=charged)) == taken
    assert len(cut_batch(of_rows, limits)) == taken


def test_one_sop_instance_uid_is_never_twice_in_a_batch():
    first, again, other = waiting(1), replace(waiting(2), sop_uid="1.1"), waiting(3)

    assert cut_batch([first, again, other], BatchLimits()) == (first, other)
    assert cut_batch([again], BatchLimits()) == (again,)


@pytest.mark.parametrize("poison", [0, 77, 199])
def test_poison_isolates_itself_in_log2_steps_while_others_go_through(poison: int):
    """A success clears the study's count; the rows' own counts keep the suspects in small batches."""
    limits = BatchLimits(max_instances=200)
    rows = [waiting(number) for number in range(200)]
    study_charged, failures = 0, 0
    while True:
        batch = cut_batch(rows, limits, charged=study_charged)
        taken = {row.delivery_id for row in batch}
        if poison in taken:
            failures += 1
            if len(batch) == 1:
                break
            study_charged += 1
            rows = [replace(row, charged=row.charged + 1) if row.delivery_id in taken else row for row in rows]
        else:
            study_charged = 0
            rows = [row for row in rows if row.delivery_id not in taken]
    assert failures <= 9


def study(**more: object) -> StudyQueue:
    values: dict[str, object] = {
        "study_uid": "1",
        "waiting": 1,
        "waiting_bytes": 10,
        "oldest_at": NOW,
        "newest_at": NOW,
        **more,
    }
    return StudyQueue(**values)  # type: ignore[arg-type]


LIMITS = BatchLimits(quiet_period=timedelta(seconds=5), max_wait=timedelta(seconds=60), max_bytes=100, max_instances=4)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    "queue, due_at",
    [
        (study(), NOW + 5 * SECOND),
        (study(newest_at=NOW + 40 * SECOND), NOW + 45 * SECOND),
        (study(newest_at=NOW + 59 * SECOND), NOW + 60 * SECOND),
        (study(waiting=4), NOW),
        (study(waiting_bytes=100), NOW),
        (study(next_attempt_at=NOW + 90 * SECOND), NOW + 90 * SECOND),
        (study(waiting=4, next_attempt_at=NOW + 90 * SECOND), NOW + 90 * SECOND),
        (study(next_attempt_at=NOW), NOW + 5 * SECOND),
    ],
)
def test_study_is_due_when_quiet_waiting_long_or_full_but_not_before_its_backoff(queue: StudyQueue, due_at: datetime):
    assert study_due_at(queue, LIMITS) == due_at


def test_flush_waits_for_no_quiet_but_for_the_backoff():
    assert study_due_at(study(), LIMITS, flush=True) == NOW
    backing_off = study(next_attempt_at=NOW + SECOND)
    assert study_due_at(backing_off, LIMITS, flush=True) == NOW + SECOND


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 9), st.integers(0, 10**6))
def test_study_is_never_due_later_than_max_wait_without_a_backoff(oldest: int, gap: int, count: int, size: int):
    queue = study(
        oldest_at=NOW + oldest * SECOND,
        newest_at=NOW + (oldest + gap) * SECOND,
        waiting=count + 1,
        waiting_bytes=size,
    )
    due = study_due_at(queue, LIMITS)
    assert queue.oldest_at <= due <= queue.oldest_at + LIMITS.max_wait
    assert study_due_at(queue, LIMITS, flush=True) <= due


def served(*studies: StudyQueue, turns: int) -> list[str]:
    """Who is served in so many turns, where all have more waiting than that."""
    given, served = Turns(), []
    for _ in range(turns):
        study = given.order(studies, now=NOW)[0]
        given.give(study)
        served.append(study.study_uid)
    return served


def test_priority_goes_first_however_long_others_have_waited_and_every_fourth_turn_is_theirs():
    """After an outage of a night what waited since would have gone before any urgent study."""
    old = study(study_uid="old", oldest_at=NOW - timedelta(days=1), inbox_id=1)
    urgent = study(study_uid="urgent", priority=10, inbox_id=2)

    assert served(old, urgent, turns=8) == ["urgent", "urgent", "urgent", "old"] * 2


def test_inboxes_take_turns_whatever_each_has_waiting():
    many = [study(study_uid=f"{number}", oldest_at=NOW - number * SECOND, inbox_id=1) for number in range(1, 50)]
    few = study(study_uid="few", inbox_id=2)

    assert Turns().order([*many, few], now=NOW)[1] == few
    assert served(many[0], few, turns=7) == ["1", "few", "1", "1", "few", "1", "few"]


def test_study_of_thousands_of_files_lets_small_ones_by_and_those_alike_are_sent_one_after_another():
    giant = study(study_uid="giant", oldest_at=NOW - SECOND, waiting=3_000)
    older, younger = study(study_uid="older"), study(study_uid="younger", oldest_at=NOW + SECOND, waiting=200)

    assert served(giant, younger, older, turns=8) == ["older", "older", "older", "giant"] * 2
    large = [study(study_uid=uid, waiting_bytes=1_000_000_000) for uid in ("one", "other")]
    assert served(*large, turns=3) == ["one", "one", "one"]


@given(
    st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 3), st.integers(1, 9_999), st.integers(0, 99)), min_size=1),
    st.integers(0, 3),
)
def test_whoever_has_waited_longest_is_served_within_four_turns(
    found: list[tuple[int, int, int, int]], before: int
) -> None:
    studies = [
        study(study_uid=f"{number}", priority=priority, inbox_id=inbox, waiting=waiting, oldest_at=NOW - age * SECOND)
        for number, (priority, inbox, waiting, age) in enumerate(found)
    ]
    eldest = min(each.oldest_at for each in studies)
    turns = Turns()
    for _ in range(before):
        turns.give(studies[0])

    assert sorted(each.study_uid for each in turns.order(studies, now=NOW)) == sorted(map(str, range(len(studies))))
    served = []
    for _ in range(4):
        served.append(turns.order(studies, now=NOW)[0])
        turns.give(served[-1])
    assert eldest in {each.oldest_at for each in served}


@given(st.integers(-3, 10_000), st.floats(0, 1, exclude_max=True))
@example(0, 0.9999999999999998)
def test_backoff_stays_between_half_of_its_base_and_its_cap(attempt: int, jitter: float):
    backoff = Backoff()
    wait = backoff.wait(attempt, jitter=jitter)
    assert backoff.base / 2 <= wait <= backoff.cap  # timedelta rounds to a microsecond


@pytest.mark.parametrize("jitter", [0.0, 0.999])
def test_ten_charges_of_one_file_span_hours_and_the_first_comes_soon(jitter: float):
    """Seen: a server that failed for three seconds turned 25 of 60 good files into FAILED."""
    waits = [Backoff().charged_wait(charged, jitter=jitter) for charged in range(1, 10)]

    assert waits[0] <= 5 * SECOND
    assert sum(waits, timedelta(0)) >= timedelta(hours=2)
    assert max(waits) <= Backoff().longest


def test_backoff_doubles_up_to_its_cap():
    backoff = Backoff(base=5 * SECOND, cap=60 * SECOND)
    waits = [backoff.wait(attempt, jitter=0.0) / SECOND for attempt in range(1, 7)]
    assert waits == [5, 10, 20, 40, 60, 60]


@pytest.mark.parametrize(
    "asked, honoured",
    [
        (timedelta(seconds=-5), RETRY_AFTER_LEAST),
        (timedelta(seconds=0), RETRY_AFTER_LEAST),
        (timedelta(seconds=30), timedelta(seconds=30)),
        (timedelta(days=3650), RETRY_AFTER_MOST),
    ],
)
def test_retry_after_is_honoured_within_reason(asked: timedelta, honoured: timedelta):
    assert clamp_retry_after(asked) == honoured


def content(digest: str, transfer_syntax: str = "1.2.840.10008.1.2.1", meta: str = "m") -> Content:
    return Content(
        transfer_syntax=transfer_syntax, digest=digest, meta_digest=meta, dataset_offset=1, size_bytes=len(digest)
    )


@pytest.mark.parametrize(
    "theirs, sameness",
    [
        (content("a"), Sameness.SAME),
        (content("a", meta="other preamble"), Sameness.SAME),
        (content("b"), Sameness.COMPARE),
        (content("a", "1.2.840.10008.1.2.4.70"), Sameness.OTHER_ENCODING),
    ],
)
def test_contents_are_compared_by_data_set(theirs: Content, sameness: Sameness):
    assert compare_content(content("a"), theirs) is sameness


def test_size_of_a_batch_is_that_of_its_parts(tmp_path):
    parts = tuple(
        Part(
            delivery_id=number,
            identity=Identity(study_uid="1", series_uid="2", sop_uid=str(number)),
            path=str(tmp_path),
            content=content("x" * number),
        )
        for number in (3, 4)
    )
    batch = Batch(attempt_id=1, claim_token="t", study_uid="1", parts=parts, started_at=NOW)
    assert batch.size_bytes == 7
