"""What the daemon, and whoever asks how things stand, ask of the ledger costs the same however many rows are done.

Counted are the steps of SQLite's machine, or the rows that PostgreSQL reads, which know no load and no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ingestd.ledger import Ledger, moves, queries
from ingestd.ledger.column_types import Note
from ingestd.ledger.row import kept_evidence, told_evidence
from ingestd.lifecycle import Reason, ServerKind, Sighting, State
from ingestd.reconciler import Rules, Verify, plan
from ingestd.sender import profile_of
from tests.ledger_builders import (
    BACKOFF,
    LATER,
    NOW,
    admit,
    arrival,
    identity,
    open_ledger,
    outcome,
    refusal,
    result_of,
)
from tests.ledgers import ON_POSTGRESQL, rows_read, sqlite_only

FEW, MANY = 20, 200
STUDY = 10


@pytest.fixture
def ledger(tmp_path: Path):
    with open_ledger(tmp_path) as opened:
        yield opened


def test_answers_of_a_ledger_that_stays_as_it_is_are_not_remembered_for_ever(ledger: Ledger):
    """What is due is asked for from a time on that goes on while nobody writes."""
    for seconds in range(2000):
        assert queries.next_check_at(ledger, now=NOW, since=NOW + timedelta(seconds=seconds)) is None

    assert len(ledger._answers) <= 500


def steps_of(ledger: Ledger, ask: Callable[[Ledger], object]) -> int:
    """Run this and count the steps of its statements."""
    if ON_POSTGRESQL:
        return rows_read(ledger, ask)
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    driver = ledger.connection.connection.driver_connection
    driver.set_progress_handler(count, 1)
    try:
        ask(ledger)
    finally:
        driver.set_progress_handler(None, 1)
    return steps


def confirm(ledger: Ledger, rows: int) -> None:
    """Take so many files all the way, in studies of their own."""
    admit(ledger, *(arrival(number, study=1000 + number // STUDY) for number in range(rows)))
    for study in range(rows // STUDY):
        at = LATER + timedelta(seconds=study)
        with ledger.transaction() as tx:
            batch = moves.claim(tx, f"1.2.{1000 + study}", now=at)
            assert batch is not None
            moves.finish(tx, result_of(batch, State.STORED), now=at, backoff=BACKOFF, jitter=0.0)
            proven = [outcome(part.delivery_id, State.CONFIRMED) for part in batch.parts]
            moves.apply(tx, proven, now=at, backoff=BACKOFF, jitter=0.0)


def clutter(ledger: Ledger, rows: int) -> None:
    """Set so many files aside that are none of DICOM's."""
    with ledger.transaction() as tx:
        moves.refuse(tx, [refusal(number, reason=Reason.NOT_DICOM) for number in range(rows)], now=NOW)


def take(ledger: Ledger) -> None:
    """A study's way, from its drop to its proof."""
    admit(ledger, *(arrival(number, study=5) for number in range(STUDY)), now=LATER)
    late = LATER + timedelta(hours=1)
    with ledger.transaction() as tx:
        batch = moves.claim(tx, "1.2.5", now=late)
        assert batch is not None
        moves.finish(tx, result_of(batch, State.STORED), now=late, backoff=BACKOFF, jitter=0.0)
    assert len(queries.unproven(ledger, now=late + timedelta(days=1))) == STUDY
    with ledger.transaction() as tx:
        proven = [outcome(part.delivery_id, State.CONFIRMED) for part in batch.parts]
        moves.apply(tx, proven, now=late, backoff=BACKOFF, jitter=0.0)


ASKED: dict[str, Callable[[Ledger], object]] = {
    "status": queries.status,
    "status at one": lambda ledger: queries.status(ledger, at="default"),
    "due": lambda ledger: queries.studies_due(ledger, now=LATER),
    "next": lambda ledger: (queries.next_study_at(ledger, now=LATER), queries.next_wake_at(ledger, now=LATER)),
    "unproven": lambda ledger: (queries.unproven(ledger, now=LATER), queries.next_check_at(ledger, now=LATER)),
    "reader": lambda ledger: (queries.rows_to_read(ledger), queries.requested_rows(ledger)),
    "retention": lambda ledger: (queries.removable(ledger, before=NOW), queries.resting(ledger, before=NOW)),
    "server": lambda ledger: (queries.newest_confirmed(ledger), queries.has_looks(ledger), queries.standing(ledger)),
    "trust": lambda ledger: (queries.has_mismatched(ledger), queries.has_uncompared(ledger, before=LATER)),
    "ends": lambda ledger: (queries.last_id(ledger), queries.last_attempt_id(ledger), queries.newest_at(ledger)),
    "a study's way": take,
}


@pytest.mark.parametrize("done", [confirm, clutter])
def test_what_is_done_costs_nothing(tmp_path: Path, done: Callable[[Ledger, int], None]):
    """`status` walked past each file that is no DICOM, to say since when others wait for a person."""
    steps: list[dict[str, int]] = []
    for rows in (FEW, MANY):
        folder = tmp_path / str(rows)
        folder.mkdir()
        with open_ledger(folder) as ledger:
            done(ledger, rows)
            steps.append({name: steps_of(ledger, ask) for name, ask in ASKED.items()})

    few, many = steps
    assert {name: (few[name], many[name]) for name in ASKED if many[name] > few[name] * 1.05 + 20} == {}


def test_what_is_held_is_looked_through_in_pieces(ledger: Ledger):
    """With a server away for days one look, each minute, went through a million files in a tick of seconds."""
    confirm(ledger, 200)
    before = LATER + timedelta(days=1)

    pieces: list[datetime] = []
    steps: list[int] = []
    since = None
    while since != before:
        since, former = queries.unneeded_up_to(ledger, before=before, since=since, files=40), since
        pieces.append(since)
        look = {"before": since, "since": former, "away": [1]}
        steps.append(steps_of(ledger, lambda ledger, look=look: queries.removable(ledger, **look)))

    whole = steps_of(ledger, lambda ledger: queries.removable(ledger, before=before, away=[1]))
    assert pieces == [*(LATER + timedelta(seconds=study) for study in (4, 8, 12, 16)), before]
    assert max(steps) < whole / 3


def test_so_many_that_are_held_since_one_instant_are_looked_through_at_once(ledger: Ledger):
    confirm(ledger, STUDY)
    before = LATER + timedelta(days=1)

    assert queries.unneeded_up_to(ledger, before=before, files=3) == LATER
    assert queries.unneeded_up_to(ledger, before=before, since=LATER, files=3) == before


def test_studies_are_not_remembered_without_end(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    """A daemon that ran for a year kept the UID of each study of that year."""
    monkeypatch.setattr("ingestd.ledger.transaction._STUDIES_REMEMBERED", 5)
    for study in range(20):
        admit(ledger, arrival(1, study=study), arrival(2, study=study))

    assert len(ledger.studies_known) <= 6
    assert len(queries.studies(ledger)) == 20


def test_what_each_row_says_in_the_end_is_kept_short_and_told_whole(ledger: Ledger):
    """Proof by the feed was 275 bytes of words a file, in a ledger of 1,450."""
    ids = admit(ledger, *(arrival(number) for number in range(STUDY)))
    seen_at = LATER.replace(microsecond=250_000)
    seen = [
        Sighting(identity=identity(number), sequence=70_000 + number, action="create", state="current", at=seen_at)
        for number in range(STUDY)
    ]
    with ledger.transaction() as tx:
        batch = moves.claim(tx, "1.2.1", now=LATER)
        assert batch is not None
        moves.finish(tx, result_of(batch, State.STORED), now=LATER, backoff=BACKOFF, jitter=0.0)
        moves.record_sightings(tx, seen, now=LATER)
        rules = Rules(profile=profile_of(ServerKind.AZURE, feed_version=2), verify=Verify.PRESENCE)
        proven = plan(queries.unproven_rows(tx, ids), rules=rules, now=LATER).outcomes
        moves.apply(tx, proven, now=LATER, backoff=BACKOFF, jitter=0.0)

    words = ledger.connection.exec_driver_sql(
        "SELECT max(length(delivery.note) + length(history.note) + length(evidence)) FROM delivery JOIN history"
        " ON history.delivery_id = delivery.id"
    ).scalar_one()
    ledger.connection.rollback()
    assert words < 40
    assert len(proven) == STUDY
    for each in proven:
        story = queries.story(ledger, each.delivery_id)
        assert story is not None
        assert story.entry.note == story.history[-1].note == each.note
        assert story.history[-1].evidence == each.evidence
        assert each.evidence["server_time"] == seen_at.isoformat()


@pytest.mark.parametrize(
    "note",
    [
        "confirmed: the server has it when asked (the server had refused it)",
        "confirmed again: the server has it when asked (it was confirmed before)",
        "\x1f3",
        "a server's own words",
        "",
    ],
)
def test_note_comes_back_as_it_was(note: str):
    keep, give = Note().bind_processor(None), Note().result_processor(None, None)  # type: ignore[arg-type]
    assert give is not None
    assert give(keep(note)) == note.replace("\x1f", "?")


@pytest.mark.parametrize(
    "evidence",
    [
        {},
        {"content": "same"},
        {"sequence": "5", "server_time": "2026-11-29T14:24:15+00:00", "content": "not compared"},
        {"sequence": "5", "server_time": "2026-11-29T14:24:15.000001+00:00", "content": "not compared"},
        {"sequence": "5", "server_time": "2026-11-29T15:24:15+01:00", "content": "not compared"},
        {"sequence": "5", "server_time": "2026-11-29T14:24:15+00:00", "content": "same"},
    ],
)
def test_evidence_comes_back_as_it_was(evidence: dict[str, str]):
    kept = kept_evidence(evidence)
    assert told_evidence(kept) == evidence


def pages_written(ledger: Ledger, first: int) -> int:
    """Admit forty files of a new study, and say how many pages of the ledger that changes."""
    journal = Path(f"{ledger.name}-journal")
    with ledger.transaction() as tx:
        moves.admit(tx, [arrival(first + number, study=900_000 + first) for number in range(40)], now=NOW)
        tx.flush_all()
        return journal.stat().st_size // 4096


@sqlite_only
def test_what_is_added_lies_together_in_a_large_ledger(ledger: Ledger):
    """An index by a random key had a page journaled and written for each file, once it was larger than those."""
    fill(ledger, 1, 400)
    few = pages_written(ledger, 100_000)
    fill(ledger, 1_000, 4_000)

    assert pages_written(ledger, 200_000) <= few + 12


def fill(ledger: Ledger, first: int, files: int) -> None:
    for start in range(first, first + files, 400):
        with ledger.transaction() as tx:
            moves.admit(tx, [arrival(number, study=number // 10) for number in range(start, start + 400)], now=NOW)
