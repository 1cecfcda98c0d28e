"""What several at work on one spool have in the ledger: claims, posts and alarms of their own (DESIGN.md 8.15)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.ledger import UPKEEP, Alarm, ClockLine, Ledger, Writer, inbox_claim, inbox_claimed, moves, queries
from ingestd.lifecycle import Jump, State
from tests.ledger_builders import BACKOFF, LATER, NOW, admit, arrival, open_shared, result_of, send, state_of
from tests.ledgers import read_whole
from tests.recounting import problems_of_ledger

HOST = "host-a"


def joined(database: str, folder: Path) -> Ledger:
    return open_shared(database, folder, Writer(HOST, shares=True))


@pytest.fixture
def both(database: str, tmp_path: Path) -> Iterator[tuple[Ledger, Ledger]]:
    with joined(database, tmp_path) as a, joined(database, tmp_path) as b:
        yield a, b


def claims(ledger: Ledger) -> list[set[str]]:
    return [set(each.claims) for each in ledger.members()]


def claim(ledger: Ledger, *names: str, gives: tuple[str, ...] = ()) -> None:
    with ledger.transaction() as tx:
        moves.claim_work(tx, takes=names, gives=gives)


def test_claim_is_of_one_until_it_is_given_back_or_that_one_has_ended(both: tuple[Ledger, Ledger]):
    a, b = both
    claim(a, "x", UPKEEP)
    claim(b, "x", "y")
    assert claims(a) == claims(b) == [{"x", UPKEEP}, {"y"}]

    claim(a, gives=("x", "y"))
    assert claims(a) == [{UPKEEP}, {"y"}]
    claim(b, "x")
    assert claims(a) == [{UPKEEP}, {"x", "y"}]

    a.close()
    claim(b, UPKEEP)
    assert claims(b) == [{UPKEEP, "x", "y"}]


def test_name_of_a_claim_says_which_inbox_it_is_of():
    assert (inbox_claimed(inbox_claim("upkeep")), inbox_claimed(UPKEEP)) == ("upkeep", "")


def test_what_another_at_work_is_sending_is_not_settled_and_what_one_that_ended_was_sending_is(
    both: tuple[Ledger, Ledger], database: str
):
    a, b = both
    first, second = admit(a, arrival(1), arrival(2, study=2))
    with a.transaction() as tx:
        assert moves.claim(tx, "1.2.1", now=LATER) is not None
    with b.transaction() as tx:
        assert moves.claim(tx, "1.2.2", now=LATER) is not None

    with b.transaction() as tx:
        recovered = moves.recover(tx, now=LATER)
    assert (recovered.uncertain, recovered.attempts) == (1, 1), "at our start, what we are said to be sending"
    assert (state_of(a, first), state_of(a, second)) == (State.SENDING, State.UNCERTAIN)
    admit(b, arrival(3, study=3))
    with b.transaction() as tx:
        batch = moves.claim(tx, "1.2.3", now=LATER)
    a.close()
    with b.transaction() as tx:
        assert moves.recover(tx, now=LATER, has_begun=True).uncertain == 1
    assert state_of(b, first) is State.UNCERTAIN
    with b.transaction() as tx:
        assert batch is not None
        finished = moves.finish(tx, result_of(batch, State.STORED), now=LATER, backoff=BACKOFF, jitter=0.5)
    assert finished.lost == 0
    with read_whole(database) as whole:
        assert problems_of_ledger(whole) == []
        assert whole.execute("SELECT sum(in_flight) FROM study_sum").fetchone() == (0,)


def test_waits_are_moved_once_when_the_clock_that_all_go_by_was_set(both: tuple[Ledger, Ledger]):
    """They were not moved, and what nobody looked at within that minute waited for an hour."""
    a, b = both
    admit(a, arrival(1), now=NOW)
    send(a, wait=timedelta(minutes=1))
    back = timedelta(hours=-1)

    for ledger in (b, a):
        with ledger.transaction() as tx:
            line = ClockLine(boot="", offset=back, jump=Jump(at=LATER + back, by=back))
            moves.put_clock(tx, line)

    assert queries.next_check_at(a, now=LATER + back) == LATER + back + timedelta(minutes=1)


def test_alarm_of_another_stays_what_both_tell_is_one_and_who_ended_tells_nothing(both: tuple[Ledger, Ledger]):
    a, b = both

    def told(kind: str, minutes: int) -> Alarm:
        since = NOW + timedelta(minutes=minutes)
        return Alarm(kind=kind, about="", note=f"{kind} {minutes}", next_step="", since=since, destination="")

    def tell(ledger: Ledger, *alarms: Alarm) -> None:
        with ledger.transaction() as tx:
            moves.put_alarms(tx, alarms)

    tell(a, told("disk", 2), told("own", 3))
    tell(b, told("disk", 1))
    assert [each.note for each in queries.alarms(a)] == ["disk 1", "own 3"]
    tell(b)
    assert [each.note for each in queries.alarms(b)] == ["disk 2", "own 3"]
    a.close()
    tell(b)
    assert queries.alarms(b) == ()
