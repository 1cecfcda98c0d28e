"""Nobody gets a row twice, and no walk through the ledger's moves makes its sums wrong or forgets a file."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.ledger import Choice, Ledger, RefusedMove, Transaction, moves, queries
from ingestd.lifecycle import Batch, BatchLimits, Content, Outcome, Pause, PauseCause, Reason, Sameness, Sighting, State
from tests.ledger_builders import (
    BACKOFF,
    LATER,
    NOW,
    admit,
    arrival,
    assert_ledger_holds,
    content,
    identity,
    open_ledger,
    refusal,
    remove,
    result_of,
)
from tests.ledgers import read_whole

ROWS = 400
SMALL = BatchLimits(max_instances=7)


def claim_all(ledger: Ledger) -> list[int]:
    """Claim until nothing is left, studies in the order that the ledger gives."""
    claimed: list[int] = []
    while due := queries.studies_due(ledger, now=LATER, flush=True):
        for study in due:
            with ledger.transaction() as tx:
                batch = moves.claim(tx, study.study_uid, now=LATER)
            claimed += [part.delivery_id for part in batch.parts] if batch else []
    return claimed


def fill(folder: Path) -> None:
    with open_ledger(folder, limits=SMALL) as ledger:
        admit(ledger, *(arrival(number, study=number % 5) for number in range(ROWS)))


def test_four_threads_claim_each_row_once(tmp_path: Path):
    """SELECT-then-UPDATE under the driver's own transactions gave out 412 of 400 rows, without an error."""
    fill(tmp_path)
    claimed: list[int] = []

    def work() -> None:
        with open_ledger(tmp_path, beside=True) as ledger:
            claimed.extend(claim_all(ledger))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(claimed) == list(range(1, ROWS + 1))
    with open_ledger(tmp_path, limits=SMALL) as ledger:
        assert_ledger_holds(ledger)


def test_processes_claim_each_row_once(tmp_path: Path):
    fill(tmp_path)
    script = (
        "from pathlib import Path\n"
        "from tests.ledger_builders import open_ledger\n"
        "from tests.ledger.test_claims import claim_all\n"
        f"with open_ledger(Path({str(tmp_path)!r}), beside=True) as ledger:\n"
        "    print(*claim_all(ledger))\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
        for _ in range(2)
    ]
    claimed = [int(word) for worker in workers for word in worker.communicate()[0].split()]
    assert sorted(claimed) == list(range(1, ROWS + 1))


SELDOM = frozenset(
    f"do_{name}"
    for name in (
        *("retry", "retry_all", "discard", "replace", "wish", "remove", "begin_to_remove", "refuse", "recover"),
    )
)


class Walk:
    """A seeded walk: any move at any time, legal or not, as daemon, reconciler and people would make them."""

    def __init__(self, ledger: Ledger, chance: random.Random) -> None:
        self.ledger = ledger
        self.chance = chance
        self.now = NOW
        self.out: list[Batch] = []
        self.sequence = 0

    def step(self) -> None:
        self.now += timedelta(seconds=self.chance.choice((0, 1, 5, 30)))
        names = [name for name in dir(self) if name.startswith("do_")]
        weights = [1 if name in SELDOM else 6 for name in names]
        with self.ledger.transaction() as tx:
            for name in self.chance.choices(names, weights, k=self.chance.randint(1, 3)):
                try:
                    getattr(self, name)(tx)
                except RefusedMove:
                    continue

    def some_ids(self, *states: State) -> list[int]:
        # The walk's own transaction sees what it has written so far.
        entries = queries.entries(self.ledger, Choice(state=self.chance.choice(states)), limit=20)
        ids = [entry.delivery_id for entry in entries]
        return self.chance.sample(ids, min(len(ids), 3))

    def do_admit(self, tx: Transaction) -> None:
        arrivals = [
            arrival(
                self.chance.randint(1, 12),
                study=self.chance.randint(1, 3),
                seed=self.chance.choice(("a", "b")),
                size=self.chance.choice((10, 1000)),
                transfer_syntax=self.chance.choice(("1.2.840.10008.1.2.1",) * 4 + ("1.2.840.10008.1.2.5",)),
                in_place=self.chance.random() < 0.2,
                priority=self.chance.randint(0, 1),
            )
            for _ in range(self.chance.randint(1, 5))
        ]
        moves.admit(tx, arrivals, now=self.now)

    def do_compare(self, tx: Transaction) -> None:
        for row in queries.rows_to_compare(tx, limit=3):
            if self.chance.random() < 0.2:
                moves.read_before_comparing(tx, row.delivery_id, now=self.now)
                continue
            holder_id, sameness = row.holder.delivery_id, self.chance.choice((Sameness.SAME, Sameness.OTHER))
            moves.compared(tx, row.delivery_id, holder_id=holder_id, sameness=sameness, now=self.now)

    def do_refuse(self, tx: Transaction) -> None:
        moves.refuse(tx, [refusal(self.chance.randint(1, 99))], now=self.now)

    def do_claim(self, tx: Transaction) -> None:
        batch = moves.claim(tx, f"1.2.{self.chance.randint(1, 3)}", now=self.now)
        if batch is not None:
            assert all(Path(part.path).is_absolute() for part in batch.parts)
            self.out.append(batch)

    def do_finish(self, tx: Transaction) -> None:
        if not self.out:
            return
        batch = self.out.pop(self.chance.randrange(len(self.out)))
        endings = (
            (State.STORED, Reason.STORED_ANSWER),
            (State.STORED, Reason.STORED_ANSWER),
            (State.UNCERTAIN, Reason.NO_VERDICT),
            (State.UNCERTAIN, Reason.ALREADY_THERE),
            (State.PENDING, Reason.SERVER_ERROR),
            (State.PENDING, Reason.CHANGED),
            (State.FAILED, Reason.REFUSED),
        )
        outcomes = []
        for part in batch.parts:
            state, reason = self.chance.choice(endings)
            pending = state is State.PENDING
            outcomes.append(
                Outcome(
                    delivery_id=part.delivery_id,
                    state=state,
                    reason=reason,
                    charge=self.chance.random() < 0.3,
                    alone=pending and self.chance.random() < 0.3,
                    wait=timedelta(seconds=20) if self.chance.random() < 0.3 else None,
                    reread=reason is Reason.CHANGED,
                    reencode=pending and self.chance.random() < 0.2,
                )
            )
        answered = self.chance.random() < 0.6
        result = result_of(batch, State.STORED)
        result = type(result)(
            batch=batch,
            outcomes=tuple(outcomes),
            finished_at=self.now,
            answered=answered,
            charge_study=self.chance.random() < 0.3,
            pause=None if answered else Pause(cause=PauseCause.UNREACHABLE, note="no route"),
        )
        moves.finish(tx, result, now=self.now, backoff=BACKOFF, jitter=self.chance.random())

    def do_recover(self, tx: Transaction) -> None:
        moves.recover(tx, now=self.now)  # the batches that are out come back too late

    def do_wake(self, tx: Transaction) -> None:
        moves.wake(tx, now=self.now)

    def do_apply(self, tx: Transaction) -> None:
        rows = queries.unproven(self.ledger, now=self.now + timedelta(minutes=1), limit=10)
        wanted = {
            State.UNCERTAIN: (State.UNCERTAIN, State.STORED, State.CONFIRMED, State.PENDING, State.CONFLICT),
            State.STORED: (State.STORED, State.CONFIRMED, State.UNCERTAIN, State.DELETED, State.CONFLICT),
            State.CONFIRMED: (State.CONFIRMED, State.DELETED, State.CONFLICT),
            State.DELETED: (State.DELETED, State.CONFIRMED),
        }
        moves.apply(
            tx,
            [
                Outcome(
                    delivery_id=row.delivery_id,
                    state=self.chance.choice(wanted[row.state]),
                    reason=self.chance.choice((Reason.ABSENT, Reason.QUERY, Reason.FEED, Reason.NOT_SHOWN)),
                    evidence_at=self.chance.choice((None, self.now - timedelta(seconds=3), self.now)),
                    expected=self.chance.choice((None, row.state)),
                )
                for row in rows
            ],
            now=self.now,
            backoff=BACKOFF,
            jitter=0.5,
        )

    def do_sightings(self, tx: Transaction) -> None:
        self.sequence += 1
        seen = Sighting(
            identity=identity(self.chance.randint(1, 12), study=self.chance.randint(1, 3)),
            sequence=self.sequence,
            action="create",
            state="current",
            at=self.now,
        )
        moves.record_sightings(tx, [seen], now=self.now)

    def do_reader(self, tx: Transaction) -> None:
        for need in queries.rows_to_read(self.ledger, limit=3):
            kind = self.chance.randint(0, 4)
            seed = self.chance.choice(("a", "b"))
            other = arrival(self.chance.randint(1, 12), study=self.chance.randint(1, 3), seed=seed)
            copy: Content = content(self.chance.randint(1, 9), size=77)
            if kind == 0:
                moves.reread(tx, need.delivery_id, other, now=self.now)
            elif kind == 1:
                moves.reread_refused(tx, need.delivery_id, refusal(1), now=self.now)
            elif kind == 2:
                moves.attach_reencoded(
                    tx, need.delivery_id, path=f"explicit/{need.delivery_id}", content=copy, now=self.now
                )
            elif kind == 3:
                moves.reencode_failed(tx, need.delivery_id, note="no", now=self.now)
            else:
                moves.read_no_more(tx, need.delivery_id, now=self.now)

    def do_retry(self, tx: Transaction) -> None:
        for delivery_id in self.some_ids(*State):
            moves.retry(tx, delivery_id, now=self.now)

    def do_retry_all(self, tx: Transaction) -> None:
        moves.retry_all(tx, Choice(study_uid=f"1.2.{self.chance.randint(1, 3)}"), now=self.now)

    def do_discard(self, tx: Transaction) -> None:
        for delivery_id in self.some_ids(State.FAILED, State.CONFLICT, State.REJECTED, State.DELETED):
            moves.discard(tx, delivery_id, now=self.now)

    def do_replace(self, tx: Transaction) -> None:
        for delivery_id in self.some_ids(State.CONFLICT):
            moves.replace(tx, delivery_id, now=self.now)

    def do_wish(self, tx: Transaction) -> None:
        for requested in queries.requested_rows(self.ledger, limit=2):
            arrived, formers = arrival(self.chance.randint(1, 12), candidate_id=None), {0: requested.file_id}
            (admitted,) = moves.admit(tx, [arrived], formers=formers, now=self.now)
            if admitted.number is None:
                moves.request_failed(tx, requested.file_id, note="compare first", now=self.now)

    def do_remove(self, tx: Transaction) -> None:
        rows = queries.removable(self.ledger, before=self.now - timedelta(seconds=60))
        remove(tx, *(row.file_id for row in rows), now=self.now)

    def do_begin_to_remove(self, tx: Transaction) -> None:
        for row in queries.removable(self.ledger, before=self.now, limit=2):
            moves.mark_removing(tx, [row.file_id], now=self.now)  # and die right after


@pytest.mark.parametrize("seed", range(4))
def test_no_walk_makes_the_ledger_wrong(tmp_path: Path, seed: int):
    limits = BatchLimits(max_instances=4, max_bytes=3000)
    with open_ledger(tmp_path, limits=limits) as ledger:
        walk = Walk(ledger, random.Random(seed))
        for step in range(120):
            walk.step()
            if step % 10 == 0:
                assert_ledger_holds(ledger)
        assert_ledger_holds(ledger)
        assert moves_made(ledger) > 20  # a walk that stood still would prove nothing


def moves_made(ledger: Ledger) -> int:
    """Count the different moves that the history tells of."""
    with read_whole(ledger) as connection:
        (number,) = connection.execute('SELECT count(DISTINCT "before" || "after") FROM history').fetchone()
    return int(number)
