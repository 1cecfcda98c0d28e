"""Transactions of workers that write one ledger side by side: who waits for whom, and that nothing is lost between."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ingestd.clocks import read_clocks
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.stage import Gate
from ingestd.daemon.trust import Comparisons, Trust
from ingestd.ledger import (
    Ledger,
    LedgerBusy,
    Transaction,
    Writer,
    held_studies,
    moves,
    postgres_server,
    queries,
    transaction,
)
from ingestd.ledger.study_locks import MOST_STUDIES, key_of, waiting_for
from ingestd.lifecycle import FeedEnd, IllegalMove, Outcome, Reason, Sighting, Standing, State
from tests.ledger_builders import BACKOFF, LATER, NOW, URL, admit, arrival, open_shared, outcome, result_of, send
from tests.ledgers import read_whole
from tests.recounting import problems_of_ledger

HOST = "host-a"
WORKERS, ROUNDS, STUDIES = 4, 40, 3


def joined(database: str, folder: Path) -> Ledger:
    ledger = open_shared(database, folder, Writer(HOST, shares=True))
    ledger.in_turns = True
    return ledger


@pytest.fixture
def both(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Ledger, Ledger]]:
    """Two workers, of which none waits long for the other."""
    monkeypatch.setattr(postgres_server, "_SETTINGS", postgres_server._SETTINGS + "; SET lock_timeout = '50ms'")
    with joined(database, tmp_path) as a, joined(database, tmp_path) as b:
        yield a, b


def study(number: int) -> str:
    return f"1.2.{number}"


def put(tx: Transaction, number: int, *, of: int) -> None:
    moves.admit(tx, [arrival(number, study=of)], now=NOW)


def is_kept_out(ledger: Ledger, *studies: int, all_of_it: bool = False) -> bool:
    try:
        with ledger.transaction(None if all_of_it else [study(each) for each in studies]) as tx:
            tx.begin()
    except LedgerBusy:
        return True
    return False


def test_others_write_files_of_other_studies_meanwhile_and_only_of_those(both: tuple[Ledger, Ledger]):
    a, b = both
    admit(a, arrival(3, study=4))
    with a.transaction([study(1), study(2)]) as tx:
        put(tx, 1, of=1)

        with b.transaction([study(3)]) as beside:
            put(beside, 2, of=3)
        assert is_kept_out(b, 2)
        assert is_kept_out(b, 3, 2)
        assert is_kept_out(b, all_of_it=True)
        assert not is_kept_out(b)
    assert not is_kept_out(b, 1, 2)
    assert queries.counts(a)[State.PENDING] == 3


def test_who_writes_what_is_of_no_study_keeps_all_others_out(both: tuple[Ledger, Ledger]):
    a, b = both
    with a.transaction() as tx:
        tx.begin()
        assert is_kept_out(b, 1)
        assert is_kept_out(b)
    a.in_turns = False
    with a.transaction([study(1)]) as tx:
        tx.begin()
        assert is_kept_out(b, 2), "where nobody was seen beside us, all of the ledger is ours"


def test_further_study_is_locked_only_where_nobody_else_has_it(both: tuple[Ledger, Ledger]):
    a, b = both
    with a.transaction([study(1)]) as tx:
        assert tx.may_change([study(1), study(2)]) == {study(1), study(2)}
        put(tx, 1, of=2)
        with b.transaction([study(3)]) as beside:
            assert beside.may_change([study(1), study(2), study(4)]) == {study(4)}
            assert beside.may_change([study(2), study(3)]) == {study(3)}
    with b.transaction() as tx:
        assert tx.may_change([study(1), study(2)]) == {study(1), study(2)}


def test_so_many_studies_that_the_server_has_no_room_for_the_locks_are_the_whole_ledger(both: tuple[Ledger, Ledger]):
    a, b = both
    some = [study(number) for number in range(MOST_STUDIES)]
    with a.transaction(some) as tx:
        tx.begin()
        assert not is_kept_out(b)
        assert tx.may_change([*some, study(1000)]) == set(some)
    with a.transaction(some[2:]) as tx:
        assert tx.may_change([study(2001), study(1000), study(2000)]) == {study(2001), study(1000)}
    with a.transaction([*some, study(1000)]) as tx:
        tx.begin()
        assert is_kept_out(b)


def test_file_of_a_study_that_is_not_locked_is_not_changed(both: tuple[Ledger, Ledger]):
    a, b = both
    (number,) = admit(a, arrival(1))
    with pytest.raises(IllegalMove, match="no lock"), b.transaction([study(2)]) as tx:
        put(tx, 2, of=3)
    with pytest.raises(IllegalMove, match="no lock"), b.transaction([study(2)]) as tx:
        put(tx, 2, of=1)
    with pytest.raises(IllegalMove, match="no lock"), b.transaction([study(2)]) as tx:
        moves.claim(tx, study(1), now=LATER)
    with pytest.raises(IllegalMove, match="no lock"), b.transaction([]) as tx:
        moves.discard(tx, number, idle_host=HOST, now=LATER)
    with b.transaction([study(1), study(2)]) as tx:
        put(tx, 2, of=2)
        assert moves.claim(tx, study(1), now=LATER) is not None
    assert queries.counts(a) == {**dict.fromkeys(State, 0), State.PENDING: 1, State.SENDING: 1}


def test_locks_of_studies_are_waited_for_in_the_order_of_their_keys_however_they_are_named():
    """Two who wait for each other are seen by the server after a second, and one of them has to begin anew."""
    many = [study(number) for number in range(20)]
    assert waiting_for(many) == waiting_for(many[::-1]) != waiting_for(many[1:])
    assert len({key_of(each) for each in many}) == len(many)


def test_nobody_waits_for_a_row_of_all_with_one_that_another_waits_for(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Who read the feed of one destination and posted to another stood in a circle with who posted to both."""
    monkeypatch.setattr(postgres_server, "_SETTINGS", postgres_server._SETTINGS + "; SET lock_timeout = '50ms'")
    monkeypatch.setattr(transaction, "_SLOTS", 1)  # as of workers whose numbers are so far apart
    to = {"default": URL, "other": "http://other.example/v2"}
    with joined(database, tmp_path) as a, joined(database, tmp_path) as b:
        for ledger in (a, b):
            ledger.adopt_destinations(to)
        first, second = sorted(a.destinations.values())
        admit(a, arrival(3, study=3))  # the inbox is known
        with a.transaction([study(1)]) as tx:
            moves.seen_end(tx.at(second), FeedEnd(sequence=1, at=NOW))
            put(tx, 1, of=1)
            assert queries.newest_stored(tx.at(first)) == [], "which has the sums of the study written"
            with b.transaction([study(2)]) as beside:
                put(beside, 2, of=2)
                for number in (first, second):
                    moves.destination_answered(beside.at(number), now=NOW)
            moves.destination_answered(tx.at(first), now=NOW)
        ends = [queries.feed_end(a.at(name)) for name in to]
        assert ends == [None, FeedEnd(sequence=1, at=NOW)]
        assert [each.last_ok_at for each in queries.destinations(a)] == [NOW, NOW]
        assert queries.counts(a)[State.PENDING] == 6
    with read_whole(database) as whole:
        assert problems_of_ledger(whole) == []


def test_row_that_another_changed_before_its_study_was_locked_is_asked_about_the_next_time(
    both: tuple[Ledger, Ledger], monkeypatch: pytest.MonkeyPatch
):
    a, b = (each.at("default") for each in both)
    numbers = admit(a, arrival(1), arrival(2), arrival(3, study=2))
    for each in (1, 2):
        send(a, study=each, wait=timedelta(0))

    def asked_about() -> list[int]:
        with b.transaction([]) as tx:
            due = queries.unproven(tx, now=LATER, since=NOW, limit=10)
            return [row.delivery_id for row in moves.take_unproven(tx, due)]

    assert asked_about() == numbers
    with a.transaction([study(2)]) as tx:
        tx.begin()
        assert asked_about() == numbers[:2]

    lock = b.database.try_lock

    def comes_late(*wanted: Any) -> set[str]:
        with a.transaction([study(1)]) as tx:
            absent = outcome(numbers[0], State.STORED, Reason.ABSENT)
            moves.apply(tx, [absent], now=LATER, backoff=BACKOFF, jitter=0.5)
        return lock(*wanted)

    monkeypatch.setattr(b.database, "try_lock", comes_late)
    assert asked_about() == numbers[1:]


def test_who_asks_about_many_studies_leaves_room_for_claims(
    both: tuple[Ledger, Ledger], monkeypatch: pytest.MonkeyPatch
):
    """Whoever has the upkeep claimed nothing while many studies were to be proven: these had all the locks."""
    monkeypatch.setattr(held_studies, "MOST_STUDIES", 4)
    a = both[0].at("default")
    numbers = admit(a, *(arrival(number, study=10 - number) for number in range(1, 6)))
    for number in range(1, 6):
        send(a, study=10 - number, wait=timedelta(seconds=number))
    with a.transaction([]) as tx:
        due = queries.unproven(tx, now=LATER + timedelta(minutes=1), since=NOW)
        assert [row.delivery_id for row in moves.take_unproven(tx, due)] == numbers[:2], "the longest due first"
        assert tx.may_change([study(20), study(21), study(22)]) == {study(20), study(21)}


def test_newest_file_is_compared_with_a_server_that_was_mended_only_where_nobody_changes_its_study(
    both: tuple[Ledger, Ledger],
):
    """It was asked about whatever others did with it, and what the feed had shown of it ended the daemon."""
    a, b = (each.at("default") for each in both)
    numbers = admit(a, arrival(1))
    send(a)
    trust = Trust(ledger=b, alarms=Alarms(), removals=Gate(), sample=0.0, grace=timedelta(minutes=1))

    def compared() -> tuple[list[int], bool]:
        said = Comparisons(Standing())
        with b.transaction([]) as tx:
            rows = [row.delivery_id for row in trust.probe(tx, read_clocks(), said, asked=())]
            gone = [outcome(number, State.DELETED, Reason.FEED) for number in rows]
            moves.apply(tx, gone, now=LATER, backoff=BACKOFF, jitter=0.5)
        return rows, said.probed_at is not None

    with a.transaction([study(1)]) as tx:
        tx.begin()
        assert compared() == ([], False)
    assert compared() == (numbers, True)


def test_counts_are_right_that_one_added_to_and_another_took_from(both: tuple[Ledger, Ledger], database: str):
    a, b = both
    (number,) = admit(a, arrival(1))
    with b.transaction([study(1)]) as tx:
        batch = moves.claim(tx, study(1), now=LATER)
    assert batch is not None
    for ledger in both:
        assert queries.counts(ledger) == {**dict.fromkeys(State, 0), State.SENDING: 1}
        status = queries.status(ledger)
        assert [(count.state, count.rows) for count in status.counts] == [(State.SENDING, 1)]
        assert status.states == queries.counts(ledger)
    with read_whole(database) as whole:
        assert problems_of_ledger(whole) == []
        (parts,) = whole.execute("SELECT count(DISTINCT slot) FROM state_count").fetchone()
        assert parts == 2, number


def test_bytes_are_right_of_a_slot_in_which_as_many_rows_came_as_left(both: tuple[Ledger, Ledger]):
    a, b = both
    admit(a, arrival(1, size=1000))
    admit(b, arrival(2, study=2, size=500))
    with a.transaction([study(2)]) as tx:
        assert moves.claim(tx, study(2), now=LATER) is not None

    found = {count.state: (count.rows, count.size_bytes) for count in queries.status(b).counts}
    assert found == {State.PENDING: (1, 1000), State.SENDING: (1, 500)}


class _Life:
    """A worker that takes in, sends and proves files of the same few studies as all others."""

    def __init__(self, ledger: Ledger, number: int, begin: threading.Barrier) -> None:
        self._ledger = ledger
        self._chance = random.Random(number)
        self._begin = begin
        self._numbers = range(number * 10_000, (number + 1) * 10_000)
        self.confirmed = self.passed_over = 0

    def live(self) -> None:
        self._begin.wait()
        for turn in range(ROUNDS):
            self._turn(turn)

    def _turn(self, turn: int) -> None:
        chosen = self._chance.sample(range(1, STUDIES + 1), 2)
        # Every fourth file is one that another worker drops as well.
        numbers = [self._numbers[turn * 4 + place] for place in range(3)] + [turn]
        arrivals = [arrival(number, study=self._chance.choice(chosen)) for number in numbers]
        with self._ledger.transaction([study(each) for each in chosen]) as tx:
            moves.admit(tx, arrivals, now=NOW)
        with self._ledger.transaction([]) as tx:
            ours = [each for each in chosen if tx.may_change([study(each)])]
            self.passed_over += len(chosen) - len(ours)
            batches = [moves.claim(tx, study(each), now=LATER) for each in ours]
        for batch in batches:
            if batch is None:
                continue
            to = self._chance.choice([State.STORED, State.STORED, State.UNCERTAIN])
            with self._ledger.transaction([batch.study_uid]) as tx:
                result = result_of(batch, to, Reason.STORED_ANSWER if to is State.STORED else Reason.NO_VERDICT)
                moves.finish(tx, result, now=LATER, backoff=BACKOFF, jitter=0.5)
            with self._ledger.transaction([batch.study_uid]) as tx:
                seen = [
                    Sighting(identity=part.identity, sequence=turn, action="create", state="current", at=LATER)
                    for part in batch.parts
                ]
                moves.record_sightings(tx, seen, now=LATER)
                found: list[Outcome] = [
                    outcome(part.delivery_id, State.CONFIRMED, Reason.FEED, evidence_at=LATER) for part in batch.parts
                ]
                self.confirmed += moves.apply(tx, found, now=LATER, backoff=BACKOFF, jitter=0.5).moved
        if turn % 10 == 0:  # what a person asks for is of the whole ledger
            with self._ledger.transaction() as tx:
                moves.try_now(tx, now=LATER)


def test_whatever_many_do_side_by_side_with_the_same_studies_the_ledger_is_as_if_one_had_done_it(
    database: str, tmp_path: Path
):
    with ExitStack() as stack:
        ledgers = [stack.enter_context(joined(database, tmp_path)) for _ in range(WORKERS)]
        begin = threading.Barrier(WORKERS)
        lives = [_Life(ledger, number, begin) for number, ledger in enumerate(ledgers)]
        with ThreadPoolExecutor(WORKERS) as pool:
            for each in [pool.submit(life.live) for life in lives]:
                each.result()

        counts = queries.counts(ledgers[0])
        with read_whole(database) as whole:
            assert problems_of_ledger(whole) == []
        assert sum(counts.values()) == WORKERS * ROUNDS * 4
        assert counts[State.CONFIRMED] == sum(life.confirmed for life in lives)
        assert counts[State.DUPLICATE] > 0
        assert sum(life.passed_over for life in lives) > 0, "they met"
        assert queries.posts_out(ledgers[0].at("default")) == 0
        due = queries.studies_due(ledgers[0].at("default"), now=LATER + timedelta(hours=1))
        assert all(each.waiting for each in due)
