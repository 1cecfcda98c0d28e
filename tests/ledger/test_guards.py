"""G4 and G5: a row moves only from where it was found, by whoever claimed it; and one row holds an identity."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from ingestd.ledger import Ledger, moves
from ingestd.ledger.schema import delivery
from ingestd.lifecycle import IllegalMove, Outcome, Reason, State
from tests.ledger_builders import (
    BACKOFF,
    LATER,
    admit,
    arrival,
    assert_ledger_holds,
    finish,
    open_ledger,
    outcome,
    refusal,
    result_of,
    state_of,
)
from tests.ledgers import REFUSED, raw


@pytest.fixture
def ledger(tmp_path: Path):
    with open_ledger(tmp_path) as opened:
        yield opened


def test_what_a_post_came_to_moves_no_row_that_was_claimed_anew_meanwhile(ledger: Ledger):
    """Its claim was given up and the row sent again: the answer to the first post says nothing of the second."""
    (delivery_id,) = admit(ledger, arrival(1))
    with ledger.transaction() as tx:
        first = moves.claim(tx, "1.2.1", now=LATER)
    with ledger.transaction() as tx:
        moves.recover(tx, now=LATER)
        moves.apply(tx, [outcome(delivery_id, State.PENDING, Reason.ABSENT)], now=LATER, backoff=BACKOFF, jitter=0.0)
        second = moves.claim(tx, "1.2.1", now=LATER)
    assert first is not None
    assert second is not None
    assert first.claim_token != second.claim_token

    with ledger.transaction() as tx:
        late = moves.finish(tx, result_of(first, State.STORED, answered=True), now=LATER, backoff=BACKOFF, jitter=0.0)

    assert (late.moved, late.lost) == (0, 1)
    assert state_of(ledger, delivery_id) is State.SENDING
    assert_ledger_holds(ledger)


_MOVED = {"state": State.CONFIRMED, "confirmed_at": LATER}


@pytest.mark.parametrize("rows", [1, 10])
@pytest.mark.parametrize(
    "before, changed", [(State.STORED, _MOVED), (State.SENDING, {"claim_token": "ab" * 16})], ids=["state", "token"]
)
def test_row_that_changes_between_look_and_move_is_left_and_nothing_is_committed(
    ledger: Ledger, before: State, changed: dict[str, object], rows: int
):
    """Every UPDATE says from which state, and by which claim; one by one, and for many at once."""
    ids = admit(ledger, *(arrival(number) for number in range(rows)))
    with ledger.transaction() as tx:
        batch = moves.claim(tx, "1.2.1", now=LATER)
        assert batch is not None
        if before is State.STORED:
            finish(tx, result_of(batch, State.STORED, answered=True))

    def meet() -> None:
        with ledger.transaction() as tx:
            found = tx.rows_by_id(ids)
            tx.connection.execute(update(delivery).where(delivery.c.id == ids[0]).values(**changed))
            tx.move(*list(found.values()), to=State.UNCERTAIN, at=LATER, reason=Reason.NO_VERDICT, next_check_at=LATER)

    with pytest.raises(IllegalMove):
        meet()

    assert {state_of(ledger, each) for each in ids} == {before}
    assert_ledger_holds(ledger)


def test_database_itself_lets_one_row_hold_an_identity_at_a_destination(ledger: Ledger):
    (delivery_id,) = admit(ledger, arrival(1))
    with ledger.transaction() as tx:
        (file_id,) = moves.refuse(tx, [refusal(2)], now=LATER)
    with raw(ledger) as connection:
        columns = ", ".join(column.name for column in delivery.c if column.name not in {"id", "file_id"})
        copy = f"INSERT INTO delivery (id, file_id, {columns}) SELECT 99, ?, {columns} FROM delivery WHERE id = ?"
        with pytest.raises(REFUSED, match=r"(UNIQUE|delivery_holds)(.|\n)*identity"):
            connection.execute(copy, (file_id, delivery_id))


def test_an_outcome_for_a_row_found_elsewhere_is_lost(ledger: Ledger):
    (delivery_id,) = admit(ledger, arrival(1))
    stored = Outcome(delivery_id=delivery_id, state=State.CONFIRMED, reason=Reason.FEED, expected=State.STORED)

    with ledger.transaction() as tx:
        applied = moves.apply(tx, [stored], now=LATER + timedelta(minutes=1), backoff=BACKOFF, jitter=0.0)

    assert (applied.moved, applied.lost) == (0, 1)
    assert state_of(ledger, delivery_id) is State.PENDING
