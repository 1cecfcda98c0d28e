"""The wall clock is set, back or forward: nothing waits for it, nothing ends early, and it is on record."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ingestd.ledger import Ledger
from ingestd.lifecycle import Reason, State, StudyQueue, order_studies
from tests.ledger_builders import LATER, NOW, admit, arrival, entry_in, open_ledger, outcome, send
from tests.ledger_builders import apply as apply_outcome

HOURS = timedelta(hours=3)
BACK = LATER - HOURS


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path) as opened:
        yield opened


def claimed(ledger: Ledger, now: datetime) -> list[int]:
    with ledger.write() as moves:
        moves.wake(now=now)
        batches = [moves.claim(study.study_uid, now=now) for study in ledger.studies_due(now=now)]
    return [part.entry_id for batch in batches if batch is not None for part in batch.parts]


def test_wait_beyond_its_own_longest_is_over(ledger: Ledger):
    """Set back three hours, what waited for five seconds waited three hours: each kind of wait that paces."""
    quiet, backoff = admit(ledger, arrival(1, study=1), arrival(2, study=2), now=LATER)
    send(ledger, 2, state=State.PENDING, reason=Reason.SERVER_ERROR, charge_study=True, answered=True)
    (deferred,) = admit(ledger, arrival(3, study=3), now=LATER)
    send(ledger, 3, state=State.PENDING, reason=Reason.BEING_CREATED, wait=timedelta(minutes=2), answered=True)
    (checked,) = admit(ledger, arrival(4, study=4), now=LATER)
    send(ledger, 4, wait=timedelta(minutes=15))

    assert ledger.studies_due(now=LATER) == []
    assert ledger.next_study_at(now=BACK) == BACK
    assert ledger.next_wake_at(now=BACK) == BACK
    assert ledger.next_check_at(now=BACK) == BACK
    assert [row.entry_id for row in ledger.unproven(now=BACK)] == [checked]
    with ledger.write() as moves:
        moves.wake(now=BACK)
    assert sorted(claimed(ledger, BACK)) == [quiet, backoff, deferred]


def test_wait_within_its_own_longest_stands(ledger: Ledger):
    admit(ledger, arrival(1))
    send(ledger, state=State.PENDING, reason=Reason.SERVER_ERROR, charge_study=True, answered=True)
    entry_id = entry_in(ledger, State.STORED, study=2)
    apply_outcome(ledger, outcome(entry_id, State.STORED, Reason.NOT_SHOWN, wait=timedelta(minutes=30)))

    assert ledger.studies_due(now=LATER) == []
    assert ledger.unproven(now=LATER) == []


def test_study_from_before_the_clock_was_set_back_goes_first():
    """It seemed to wait since a time to come, and every new study was served before it for three hours."""
    old = StudyQueue(study_uid="old", waiting=1, waiting_bytes=1, oldest_at=NOW, newest_at=NOW)
    new = StudyQueue(study_uid="new", waiting=1, waiting_bytes=1, oldest_at=NOW - HOURS, newest_at=NOW - HOURS)

    served = order_studies([new, old], now=NOW - HOURS + timedelta(minutes=10))

    assert [study.study_uid for study in served] == ["old", "new"]
