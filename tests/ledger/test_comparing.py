"""A file whose identity another row holds with other bytes: a row of its own, which waits to be compared."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.ledger import Choice, Ledger, RefusedMove, moves, queries
from ingestd.lifecycle import Reason, Sameness, State
from tests.ledger_builders import (
    LATER,
    NOW,
    admit,
    arrival,
    assert_ledger_holds,
    compare,
    confirm,
    open_ledger,
    send,
    state_of,
)

MUCH_LATER = LATER + timedelta(days=1)


@pytest.fixture
def ledger(tmp_path: Path):
    with open_ledger(tmp_path) as opened:
        yield opened
        assert_ledger_holds(opened)


def removable(ledger: Ledger) -> list[int]:
    return [row.file_id for row in queries.removable(ledger, before=MUCH_LATER)]


def test_other_bytes_in_the_same_encoding_wait_behind_their_row_to_be_compared(ledger: Ledger):
    (holder,) = admit(ledger, arrival(1))
    (delivery_id,) = admit(ledger, arrival(1, seed="other"))

    entry = queries.entry(ledger, delivery_id)
    assert entry is not None
    assert (entry.state, entry.reason, entry.holder_id) == (State.DUPLICATE, Reason.NOT_COMPARED, holder)
    (row,) = queries.rows_to_compare(ledger, limit=9)
    assert (row.delivery_id, row.holder.delivery_id, row.holder.state) == (delivery_id, holder, State.PENDING)
    assert row.path != row.holder.path
    assert queries.unfinished(ledger) == 2
    send(ledger)
    confirm(ledger, holder)
    (known,) = queries.status(ledger).destinations
    assert (known.unconfirmed, known.oldest_unconfirmed_at) == (1, NOW)
    assert_ledger_holds(ledger)


@pytest.mark.parametrize(
    "sameness, state, reason",
    [
        (Sameness.SAME, State.DUPLICATE, Reason.SAME_CONTENT),
        (Sameness.OTHER, State.CONFLICT, Reason.OTHER_CONTENT),
        (Sameness.NOT_WHOLE, State.CONFLICT, Reason.OTHER_CONTENT),
    ],
)
def test_comparison_settles_what_waited_for_it(ledger: Ledger, sameness: Sameness, state: State, reason: Reason):
    admit(ledger, arrival(1))
    (delivery_id,) = admit(ledger, arrival(1, seed="other"))
    assert compare(ledger, delivery_id, sameness) is state

    entry = queries.entry(ledger, delivery_id)
    assert entry is not None
    assert (entry.state, entry.reason) == (state, reason)
    assert queries.rows_to_compare(ledger, limit=9) == []
    assert queries.unfinished(ledger) == 1
    assert_ledger_holds(ledger)


def test_what_was_not_compared_keeps_its_bytes_whatever_becomes_of_its_holder(ledger: Ledger):
    (holder,) = admit(ledger, arrival(1))
    (delivery_id,) = admit(ledger, arrival(1, seed="other"))
    send(ledger)
    confirm(ledger, holder, evidence_at=LATER)
    assert removable(ledger) == [holder]

    assert compare(ledger, delivery_id, Sameness.SAME) is State.DUPLICATE
    # Its holder is asked about once more: who has deleted it there may have dropped this for it.
    assert removable(ledger) == []
    confirm(ledger, holder, evidence_at=LATER)
    assert removable(ledger) == [holder, delivery_id]


def test_what_was_not_compared_takes_the_place_of_a_holder_that_is_gone(ledger: Ledger):
    (holder,) = admit(ledger, arrival(1))
    first, second, third = admit(ledger, *(arrival(1, seed=seed) for seed in ("b", "c", "b")))
    send(ledger, state=State.FAILED, reason=Reason.REFUSED)
    states = [state_of(ledger, each) for each in (holder, first, second, third)]
    assert states == [State.FAILED, State.PENDING, State.DUPLICATE, State.DUPLICATE]
    reasons = {each.delivery_id: each.reason for each in queries.entries(ledger, Choice(state=State.DUPLICATE))}
    assert reasons == {second: Reason.NOT_COMPARED, third: Reason.SAME_CONTENT}
    assert_ledger_holds(ledger)


def test_comparison_with_a_row_that_no_longer_holds_the_identity_does_not_count(ledger: Ledger):
    (holder,) = admit(ledger, arrival(1))
    first, second = admit(ledger, arrival(1, seed="b"), arrival(1, seed="c"))
    send(ledger, state=State.FAILED, reason=Reason.REFUSED)
    with ledger.transaction() as tx:
        for each in (first, second):
            assert moves.compared(tx, each, holder_id=holder, sameness=Sameness.SAME, now=LATER) is None
    assert [state_of(ledger, each) for each in (first, second)] == [State.PENDING, State.DUPLICATE]
    (row,) = queries.rows_to_compare(ledger, limit=9)
    assert (row.delivery_id, row.holder.delivery_id) == (second, first)


def test_file_that_was_not_compared_and_changed_gives_way_to_what_lies_there(ledger: Ledger):
    admit(ledger, arrival(1))
    (delivery_id,) = admit(ledger, arrival(1, seed="b"))
    with ledger.transaction() as tx:
        moves.read_before_comparing(tx, delivery_id, now=LATER)
    assert queries.rows_to_compare(ledger, limit=9) == []
    (row,) = queries.rows_to_read(ledger)
    assert row.delivery_id == delivery_id
    with ledger.transaction() as tx:
        told = moves.reread(tx, delivery_id, arrival(2), now=LATER)
    assert told.number is not None
    assert [state_of(ledger, each) for each in (delivery_id, told.number)] == [State.DISCARDED, State.PENDING]
    assert_ledger_holds(ledger)


def test_file_that_was_not_compared_and_is_what_it_was_is_compared_again(ledger: Ledger):
    admit(ledger, arrival(1))
    (delivery_id,) = admit(ledger, arrival(1, seed="b"))
    with ledger.transaction() as tx:
        moves.read_before_comparing(tx, delivery_id, now=LATER)
        told = moves.reread(tx, delivery_id, arrival(1, seed="b"), now=LATER)
    assert (told.number, told.state) == (delivery_id, State.DUPLICATE)
    assert queries.rows_to_read(ledger) == []
    assert [row.delivery_id for row in queries.rows_to_compare(ledger, limit=9)] == [delivery_id]


def test_file_that_is_gone_before_it_was_compared_is_for_a_person(ledger: Ledger):
    admit(ledger, arrival(1))
    (delivery_id,) = admit(ledger, arrival(1, seed="b"))
    with ledger.transaction() as tx:
        moves.read_before_comparing(tx, delivery_id, now=LATER)
        assert moves.read_no_more(tx, delivery_id, now=LATER)
    entry = queries.entry(ledger, delivery_id)
    assert entry is not None
    assert (entry.state, entry.reason) == (State.CONFLICT, Reason.GONE)
    assert queries.rows_to_read(ledger) == []
    assert_ledger_holds(ledger)


def test_what_was_not_compared_with_a_replaced_row_is_compared_with_what_replaces_it(ledger: Ledger):
    (holder,) = admit(ledger, arrival(1))
    conflict, same, other = admit(ledger, *(arrival(1, seed=seed) for seed in ("b", "b", "c")))
    assert compare(ledger, conflict, Sameness.OTHER) is State.CONFLICT
    with ledger.transaction() as tx:
        moves.replace(tx, conflict, now=LATER)
    assert [state_of(ledger, each) for each in (holder, conflict)] == [State.DISCARDED, State.PENDING]
    found = {entry.delivery_id: (entry.reason, entry.holder_id) for entry in queries.entries(ledger)}
    assert found[same] == (Reason.SAME_CONTENT, conflict)
    assert found[other] == (Reason.NOT_COMPARED, conflict)


def test_removing_a_destination_lets_go_of_what_was_not_compared_there(ledger: Ledger):
    (holder,) = admit(ledger, arrival(1))
    send(ledger)
    confirm(ledger, holder)
    (settled,) = admit(ledger, arrival(1))
    confirm(ledger, holder, now=MUCH_LATER)
    (delivery_id,) = admit(ledger, arrival(1, seed="b"))
    with ledger.transaction() as tx:
        assert moves.discard_all_at(tx, ledger.destination_id, now=MUCH_LATER) == 1
    states = [state_of(ledger, each) for each in (holder, settled, delivery_id)]
    assert states == [State.CONFIRMED, State.DUPLICATE, State.DISCARDED]


def test_what_cannot_be_compared_says_so(ledger: Ledger):
    (holder,) = admit(ledger, arrival(1))
    (delivery_id,) = admit(ledger, arrival(1, seed="b"))
    with ledger.transaction() as tx:
        moves.compared(tx, delivery_id, holder_id=holder, sameness=None, why="it is cut", now=LATER)
    entry = queries.entry(ledger, delivery_id)
    assert entry is not None
    assert (entry.state, entry.reason) == (State.CONFLICT, Reason.NOT_COMPARABLE)
    assert entry.note.endswith("cannot be compared with: it is cut")


def test_file_written_over_twice_is_one_file_for_both_rows(ledger: Ledger):
    """Each row that is read again found other bytes, and made a file of them."""
    path, place = "/drop/image", {"in_place": True}
    first, second = (replace(arrival(number, **place), path=path, relative_path="image") for number in (1, 2))
    last = replace(arrival(3, **place), path=path, relative_path="image")
    one, other = admit(ledger, first, second)
    with ledger.transaction() as tx:
        told = moves.reread(tx, one, last, now=LATER)
    with ledger.transaction() as tx:
        assert moves.reread(tx, other, last, now=LATER).number is None
    assert told.number is not None
    states = [state_of(ledger, each) for each in (one, other, told.number)]
    assert states == [State.DISCARDED, State.DISCARDED, State.PENDING]
    assert len(queries.entries(ledger)) == 3


def test_waiting_row_of_a_send_that_ended_can_be_let_go(ledger: Ledger):
    admit(ledger, arrival(1))
    (delivery_id,) = admit(ledger, arrival(1, seed="b"))
    with pytest.raises(RefusedMove), ledger.transaction() as tx:
        moves.discard(tx, delivery_id, now=LATER)
    with ledger.transaction() as tx:
        moves.discard(tx, delivery_id, idle_host=ledger.host, now=LATER)
    assert state_of(ledger, delivery_id) is State.DISCARDED


@pytest.mark.parametrize("state", [State.DISCARDED, State.FAILED, State.CONFIRMED])
def test_file_written_back_to_what_was_let_go_of_or_proven_is_taken_as_a_new_one(ledger: Ledger, state: State):
    """Whoever puts it there again wants it sent, or asked about on the server."""
    image = replace(arrival(1, in_place=True), path="/drop/image", relative_path="image")
    (known,) = admit(ledger, image)
    if state is State.CONFIRMED:
        send(ledger)
        confirm(ledger, known)
    else:
        send(ledger, state=State.FAILED, reason=Reason.REFUSED)
    if state is State.DISCARDED:
        with ledger.transaction() as tx:
            moves.discard(tx, known, now=LATER)
    (waiting,) = admit(ledger, replace(arrival(2, in_place=True), path="/drop/image", relative_path="image"))
    with ledger.transaction() as tx:
        told = moves.reread(tx, waiting, image, now=LATER)
    assert told.number is not None
    expected = State.DUPLICATE if state is State.CONFIRMED else State.PENDING
    assert [state_of(ledger, each) for each in (known, waiting, told.number)] == [state, State.DISCARDED, expected]
