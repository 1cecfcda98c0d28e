"""A duplicate takes the place of a row that waits for a host that nobody runs; what hung on that row hangs on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.ledger import Ledger, moves, queries
from ingestd.lifecycle import Reason, State
from tests.ledger_builders import (
    BACKOFF,
    LATER,
    admit,
    arrival,
    confirm,
    entry_in,
    open_ledger,
    result_of,
    send,
    state_of,
)


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path, host="daemon") as ledger:
        yield ledger


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path, host="send") as ledger:
        yield ledger


def take_over(ledger: Ledger, *, hosts: set[str]) -> int:
    waiting = [delivery_id for delivery_id, *_ in queries.waiting_elsewhere(ledger)]
    with ledger.transaction() as tx:
        return moves.take_over(tx, waiting, hosts=hosts, now=LATER)


@pytest.mark.parametrize("state", [State.PENDING, State.SENDING, State.UNCERTAIN, State.STORED])
def test_duplicate_takes_the_place_of_what_waits_elsewhere_and_is_sent(ours: Ledger, theirs: Ledger, state: State):
    holder = entry_in(theirs, state)
    first, second = admit(ours, arrival(1), arrival(1))
    (conflict,) = admit(ours, arrival(1, transfer_syntax="1.2.840.10008.1.2.4.70"))
    assert queries.waiting_elsewhere(ours) == [(first, "send", None), (second, "send", None)]

    assert take_over(ours, hosts=set()) == 0
    assert take_over(ours, hosts={"send"}) == 1

    assert [state_of(ours, each) for each in (holder, first, second)] == [
        State.DUPLICATE,
        State.PENDING,
        State.DUPLICATE,
    ]
    held_by = {each: queries.entry(ours, each) for each in (holder, second, conflict)}
    assert {each: entry and entry.holder_id for each, entry in held_by.items()} == dict.fromkeys(held_by, first)
    assert queries.waiting_elsewhere(ours) == []
    assert (queries.unfinished(ours), queries.unfinished(theirs)) == (1, 0)
    batch = send(ours)
    assert [part.delivery_id for part in batch.parts] == [first]
    confirm(ours, first)
    assert {entry and entry.state for entry in (queries.entry(ours, each) for each in (holder, second))} == {
        State.DUPLICATE
    }


def test_what_was_not_compared_takes_a_place_without_a_word_on_its_content(ours: Ledger, theirs: Ledger):
    holder = entry_in(theirs, State.PENDING)
    first, second = admit(ours, arrival(1, seed="b"), arrival(1, seed="b"))
    held = queries.entry(theirs, holder)
    assert held is not None
    place = f"{theirs.spool}/{held.path}"
    assert queries.waiting_elsewhere(ours) == [(each, "send", place) for each in (first, second)]
    assert take_over(ours, hosts={"send"}) == 1
    found = {entry.delivery_id: (entry.state, entry.reason) for entry in queries.entries(ours)}
    assert found[first] == (State.PENDING, Reason.HOLDER_GONE)
    assert found[second] == (State.DUPLICATE, Reason.SAME_CONTENT)
    assert found[holder] == (State.DUPLICATE, Reason.NOT_COMPARED)
    assert [row.delivery_id for row in queries.rows_to_compare(theirs, limit=9)] == [holder]


def test_what_returns_to_a_row_whose_place_was_taken_meanwhile_moves_nothing(ours: Ledger, theirs: Ledger):
    """Somebody ran after all, unseen."""
    (holder,) = admit(theirs, arrival(1))
    with theirs.transaction() as tx:
        batch = moves.claim(tx, "1.2.1", now=LATER)
    assert batch is not None
    (duplicate,) = admit(ours, arrival(1))
    assert take_over(ours, hosts={"send"}) == 1

    with theirs.transaction() as tx:
        moves.finish(tx, result_of(batch, State.STORED), now=LATER, backoff=BACKOFF, jitter=0.0)
        assert moves.claim(tx, "1.2.1", now=LATER) is None

    assert [state_of(ours, each) for each in (holder, duplicate)] == [State.DUPLICATE, State.PENDING]


@pytest.mark.parametrize("state", [State.CONFIRMED, State.PENDING])
def test_duplicate_of_what_is_confirmed_or_our_own_waits_nowhere_else(ours: Ledger, theirs: Ledger, state: State):
    entry_in(theirs if state is State.CONFIRMED else ours, state)
    admit(ours, arrival(1))

    assert queries.waiting_elsewhere(ours) == []


def test_what_was_sent_in_its_place_and_failed_leaves_it_its_place(ours: Ledger, theirs: Ledger):
    (holder,) = admit(theirs, arrival(1))
    admit(ours, arrival(1))
    take_over(ours, hosts={"send"})

    send(ours, state=State.FAILED, reason=Reason.REFUSED)

    assert state_of(ours, holder) is State.PENDING
