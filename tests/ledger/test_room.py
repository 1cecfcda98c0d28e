"""What is given up where the disk is full: only what waits for destinations that need not have it, the oldest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.ledger import Ledger, RefusedMove, moves, queries
from ingestd.lifecycle import Reason, Route, State
from tests.ledger.test_plans import plans_of, unserved
from tests.ledger_builders import (
    LATER,
    LIMITS,
    NOW,
    URL,
    admit,
    arrival,
    assert_ledger_holds,
    confirm,
    finish,
    remove,
    result_of,
    state_of,
)
from tests.ledgers import url_of

BOTH = ("archive", "research")
ARCHIVE, RESEARCH = 1, 2
EVERYTHING = 10**12


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(
        url_of(tmp_path),
        host="host-a",
        destinations={"archive": URL, "research": "http://research.example/v2"},
        spool=tmp_path / "spool-host-a",
        key=tmp_path / "search.key",
        limits=LIMITS,
    ) as opened:
        assert opened.destinations == {"archive": ARCHIVE, "research": RESEARCH}
        yield opened


def take(ledger: Ledger, number: int, *to: str, minutes: int = 0, in_place: bool = False) -> int:
    """Admit a file of 1,000 bytes, a study of its own, that goes to these; give its number."""
    came = arrival(number, study=number, in_place=in_place)
    route = Route(rule=1, text="rule 1", destinations=to)
    first, *_ = admit(ledger, replace(came, route=route), now=NOW + timedelta(minutes=minutes))
    return first


def send_at(ledger: Ledger, name: str, study: int, state: State, reason: Reason) -> None:
    with ledger.at(name).transaction() as tx:
        batch = moves.claim(tx, f"1.2.{study}", now=LATER + timedelta(hours=1))
        assert batch is not None
        finish(tx, result_of(batch, state, reason))


def first(ledger: Ledger, size_bytes: int = EVERYTHING, **held: set[int]) -> list[int]:
    return queries.given_up_first(ledger, at={RESEARCH}, size_bytes=size_bytes, **held)


def give_up(ledger: Ledger, *files: int) -> int:
    with ledger.transaction() as tx:
        return moves.give_up_for_room(tx, files, at={RESEARCH}, now=LATER)


def test_what_waits_to_be_compared_is_given_up_as_well(ledger: Ledger):
    holder = take(ledger, 1, "research")
    send_at(ledger, "research", 1, State.STORED, Reason.STORED_ANSWER)
    confirm(ledger.at("research"), holder)
    other = replace(arrival(1, seed="other"), route=Route(rule=1, text="rule 1", destinations=("research",)))
    (delivery_id,) = admit(ledger, other, now=LATER)
    second = take(ledger, 2, "research", minutes=600)
    assert first(ledger, 1) == [delivery_id]
    assert first(ledger) == sorted([delivery_id, second])
    assert give_up(ledger, delivery_id) == 1
    entry = queries.entry(ledger, delivery_id)
    assert entry is not None
    assert (entry.state, entry.reason) == (State.FAILED, Reason.NO_ROOM)
    assert_ledger_holds(ledger)


def test_oldest_are_given_up_and_no_more_than_makes_the_room(ledger: Ledger):
    third, first_, second = (take(ledger, number, "research", minutes=at) for number, at in ((1, 3), (2, 1), (3, 2)))

    assert first(ledger, 1) == [first_]
    assert first(ledger, 1000) == [first_]
    assert first(ledger, 1001) == sorted([first_, second])
    assert first(ledger) == sorted([first_, second, third])
    assert first(ledger, 0) == []


def test_oldest_are_given_up_whichever_of_several_they_wait_for(ledger: Ledger):
    second, first_, third = (
        take(ledger, 1, "research", minutes=2),
        take(ledger, 2, "archive", minutes=1),
        take(ledger, 3, *BOTH, minutes=3),
    )

    def of_both(size_bytes: int, limit: int = 1000) -> list[int]:
        return queries.given_up_first(ledger, at={ARCHIVE, RESEARCH}, size_bytes=size_bytes, limit=limit)

    assert of_both(1000) == [first_]
    assert of_both(2000) == of_both(EVERYTHING, limit=2) == sorted([first_, second])
    assert of_both(EVERYTHING) == sorted([first_, second, third])


def test_what_somebody_else_wants_or_the_server_may_have_is_not_given_up(ledger: Ledger):
    wanted = {
        "by another": take(ledger, 1, *BOTH),
        "only there": take(ledger, 2, "archive"),
        "stored": take(ledger, 3, "research"),
        "unknown": take(ledger, 4, "research"),
        "for a person": take(ledger, 5, "research"),
        "in place": take(ledger, 6, "research", in_place=True),
    }
    send_at(ledger, "research", 3, State.STORED, Reason.STORED_ANSWER)
    send_at(ledger, "research", 4, State.UNCERTAIN, Reason.NO_VERDICT)
    send_at(ledger, "research", 5, State.FAILED, Reason.REFUSED)
    unwanted = take(ledger, 7, "research")

    assert first(ledger) == [unwanted]
    assert give_up(ledger, *(file for what, file in wanted.items() if what != "in place"), unwanted) == 1

    assert queries.given_up_for_room(ledger.at("research")) == 1
    assert_ledger_holds(ledger)


def test_what_was_given_up_goes_as_all_that_nobody_needs_and_is_not_tried_again(ledger: Ledger):
    file = take(ledger, 1, "research")
    assert give_up(ledger, file) == 1
    assert state_of(ledger, file) is State.FAILED
    (row,) = queries.removable(ledger, before=LATER)
    assert row.file_id == file

    with ledger.transaction() as tx:
        assert remove(tx, file) == 1
    with pytest.raises(RefusedMove, match="its file was removed"), ledger.transaction() as tx:
        moves.retry(tx, file, now=LATER)

    again = take(ledger, 1, "research", minutes=9)
    assert state_of(ledger, again) is State.PENDING
    with ledger.transaction() as tx:
        moves.discard(tx, file, now=LATER)
    assert queries.given_up_for_room(ledger.at("research")) == 0
    assert_ledger_holds(ledger)


def test_what_a_person_wants_before_its_file_went_is_needed_again(ledger: Ledger):
    file = take(ledger, 1, "research")
    give_up(ledger, file)

    with ledger.transaction() as tx:
        moves.retry(tx, file, now=LATER)

    assert state_of(ledger, file) is State.PENDING
    assert queries.removable(ledger, before=LATER) == []
    assert_ledger_holds(ledger)


def test_what_rests_on_one_that_is_away_would_make_no_room(ledger: Ledger):
    file = take(ledger, 1, *BOTH)
    send_at(ledger, "archive", 1, State.STORED, Reason.STORED_ANSWER)
    assert first(ledger) == []
    confirm(ledger, file)

    assert first(ledger, away={ARCHIVE}) == []
    assert first(ledger) == [file]


def test_the_duplicate_of_what_was_given_up_takes_its_place(ledger: Ledger):
    file, duplicate = take(ledger, 1, "research"), take(ledger, 1, "research", minutes=1)
    assert state_of(ledger, duplicate) is State.DUPLICATE

    give_up(ledger, file)

    assert state_of(ledger, duplicate) is State.PENDING
    assert first(ledger) == [duplicate]
    assert_ledger_holds(ledger)


def test_question_is_served_by_the_order_of_age(ledger: Ledger):
    take(ledger, 1, "research")
    for statement, plan in plans_of(ledger, lambda: first(ledger)):
        assert unserved(statement, plan) == []
        index = "delivery_not_compared" if "not_compared" in statement else "delivery_unconfirmed"
        assert any(index in step for step in plan)
