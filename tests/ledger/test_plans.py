"""Every question asked of the ledger is answered off an index: with a million rows it costs what it costs with ten.

The figures themselves are measured by tests/benchmarks/bench_ledger.py; here the query plans are read, which do not
depend on how full the tables are. PostgreSQL goes by that, and is made to go by indexes; its plans are told in SQLite's
words, but for what it sorts: whether that is few rows, they do not say.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from ingestd.ledger import Choice, Ledger, NewCandidate, baseline, moves, queries
from ingestd.lifecycle import Reason, State
from tests.ledger_builders import (
    BACKOFF,
    LATER,
    NOW,
    admit,
    arrival,
    entry_in,
    open_ledger,
    outcome,
    refusal,
    remove,
    result_of,
    source,
)
from tests.ledgers import ON_POSTGRESQL, plan_for_many_rows

# Small by nature: a handful of rows, whatever the ledger holds.
# anon_1: a subquery that is cut off at 1,000 rows. CONSTANT ROW: nothing but subqueries, each a step of its own.
SMALL = (
    "state_count",
    "destination",
    "inbox",
    "alarm",
    "clock",
    "spool",
    "feed_cursor",
    "meta",
    "sqlite_master",
    "candidate",
    "anon_1",
    "CONSTANT ROW",
    "worker",
)


# By nature these find few rows: the duplicates of one row; the files that are being read.
FEW = ("delivery_holder", "sqlite_autoindex_candidate_1")
# What has one value in common are many rows: all of one end, all that are being read, all that are kept for `retain`.
MANY = (
    "delivery_end (state=?)",
    "delivery_holds (destination_id=?)",
    "delivery_gave_up (destination_id=?)",
    "sqlite_autoindex_candidate_1 (inbox_id=?)",
    "file_unneeded (spool_id=? AND unneeded_at>?)",
)
# Indexes that may be read whole: those of few rows, and of studies the latest until enough are found.
WHOLE = {"study_sum_changed"} | set(re.findall(r"INDEX (\w+) ON [^;]*?WHERE", "; ".join(baseline.STATEMENTS)))
_COMPARED = re.compile(r"\(+(?:\w+\.)?(\w+) (=|<=|>=|<|>|IS NULL|IS NOT NULL)")
# A list that the statement was given.
LIST = "VIRTUAL TABLE INDEX 1:"


@pytest.fixture
def ledger(tmp_path: Path):
    with open_ledger(tmp_path) as opened:
        entry_in(opened, State.CONFIRMED, 1, study=1)
        entry_in(opened, State.STORED, 2, study=2)
        yield opened


def read_by(ledger: Ledger, ask: Callable[[], object]) -> list[tuple[str, Any]]:
    """Run this and give each of its statements with its values."""
    statements: list[tuple[str, Any]] = []

    def remember(_connection, _cursor, statement, parameters, _context, executemany):
        statements.append((statement, parameters[0] if executemany else parameters))

    event.listen(ledger.engine, "before_cursor_execute", remember)
    try:
        ask()
    finally:
        event.remove(ledger.engine, "before_cursor_execute", remember)
    return statements


def plans_of(ledger: Ledger, ask: Callable[[], object]) -> list[tuple[str, list[str]]]:
    """Run this and say how each of its statements is carried out."""
    plans = []
    for statement, parameters in read_by(ledger, ask):
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            plans.append((statement, plan_of(ledger, statement, parameters)))
    assert plans
    return plans


def plan_of(ledger: Ledger, statement: str, parameters: Any) -> list[str]:
    """Say in SQLite's words by which steps a statement is carried out."""
    asked = "EXPLAIN (FORMAT JSON)" if ON_POSTGRESQL else "EXPLAIN QUERY PLAN"
    if ON_POSTGRESQL:
        plan_for_many_rows(ledger)
    rows = ledger.connection.exec_driver_sql(f"{asked} {statement}", parameters).all()
    ledger.connection.rollback()
    return list(steps_told(rows[0][0][0]["Plan"])) if ON_POSTGRESQL else [row[3] for row in rows]


def steps_told(node: dict[str, Any]) -> Iterator[str]:
    """Tell the steps of a plan of PostgreSQL's; an index that is read whole to leave most of it out serves nobody."""
    table, index = node.get("Relation Name", ""), node.get("Index Name")
    found = " AND ".join(f"{name}{is_}?" for name, is_ in _COMPARED.findall(node.get("Index Cond", "")))
    if index is not None and found:
        yield f"SEARCH {table} USING INDEX {index} ({found})"
    elif index is not None and (index in WHOLE or "Filter" not in node):
        yield f"SCAN {table} USING INDEX {index}"
    elif index is not None or node["Node Type"] == "Seq Scan":
        yield f"SCAN {table}"
    for below in node.get("Plans", ()):
        yield from steps_told(below)


def unserved(statement: str, plan: list[str]) -> list[str]:
    """The steps that read a whole table, or sort what is not few rows."""
    few = any(name in step for step in plan for name in (*FEW, LIST))
    bounded = "ORDER BY attempt.id" in statement and "LIMIT" in statement
    return [
        step
        for step in plan
        if (step.startswith("SCAN") and " USING " not in step and not step.endswith((*SMALL, LIST)) and not bounded)
        or (statement.startswith(("UPDATE", "DELETE")) and step.endswith(MANY))
        or (step == "USE TEMP B-TREE FOR ORDER BY" and not few)
    ]


IDS = range(1, 20)
QUESTIONS: dict[str, Callable[[Ledger], object]] = {
    "counts": queries.counts,
    "status": queries.status,
    "status at one": lambda ledger: queries.status(ledger, at="default"),
    "oldest": lambda ledger: queries.oldest_unconfirmed_at(ledger, at=1),
    "studies": queries.studies,
    **{f"studies {state}": lambda ledger, state=state: queries.studies(ledger, Choice(state=state)) for state in State},
    "studies since": lambda ledger: queries.studies(ledger, Choice(since=NOW)),
    "study": lambda ledger: queries.entry(ledger, 1),
    "entries": queries.entries,
    "entries by state": lambda ledger: queries.entries(ledger, Choice(state=State.CONFIRMED)),
    "entries since": lambda ledger: queries.entries(ledger, Choice(state=State.CONFIRMED, since=NOW)),
    "find": lambda ledger: queries.find(ledger, "1.2.3.4"),
    "find path": lambda ledger: queries.find(ledger, "/some/where"),
    "find by name": lambda ledger: queries.find_named(ledger, "im0.dcm"),
    "studies at one": lambda ledger: queries.studies(ledger, Choice(destination=1)),
    "entries at one": lambda ledger: queries.entries(ledger, Choice(destination=1)),
    "entries of files": lambda ledger: queries.of_files(ledger, [1, 2]),
    "story": lambda ledger: queries.story(ledger, 1),
    "due": lambda ledger: queries.studies_due(ledger, now=LATER),
    "due at the end": lambda ledger: queries.studies_due(ledger, now=LATER, flush=True),
    "next study": lambda ledger: (
        queries.next_study_at(ledger, now=LATER),
        queries.next_study_at(ledger, now=LATER, flush=True),
        queries.next_wake_at(ledger, now=LATER),
    ),
    "unproven": lambda ledger: (
        queries.unproven(ledger, now=LATER),
        queries.next_check_at(ledger, now=LATER),
        queries.unproven_rows(ledger, IDS),
    ),
    "reader": lambda ledger: (
        queries.rows_to_read(ledger),
        queries.rows_to_compare(ledger, limit=64),
        queries.requested_rows(ledger),
        queries.rejected_files(ledger),
    ),
    "sources": lambda ledger: (queries.known_sources(ledger, "in", ["a", "b"]), queries.unremoved_sources(ledger)),
    "emptied folders": lambda ledger: queries.emptied_by_us(ledger, "in", ["a", "b/c"]),
    "paths": lambda ledger: queries.paths_known(ledger, ["a", "b"]),
    "removable": lambda ledger: (queries.removable(ledger, before=LATER), queries.resting(ledger, before=LATER)),
    "clock": lambda ledger: (
        queries.clock(ledger),
        queries.jumps(ledger),
        queries.newest_at(ledger),
        queries.last_attempt_id(ledger),
    ),
    "end of run": lambda ledger: (
        queries.unfinished(ledger),
        queries.last_id(ledger),
    ),
    "what a run came to": lambda ledger: (queries.last_event_id(ledger), queries.called_since(ledger, 5)),
    "first attempt": lambda ledger: (
        queries.first_attempt_at(ledger),
        queries.cursor(ledger),
        queries.destination(ledger),
    ),
    "going back": lambda ledger: (
        queries.feed_end(ledger),
        queries.cursor_moved_at(ledger),
        queries.went_back_at(ledger),
        queries.newest_confirmed(ledger),
        queries.has_looks(ledger),
    ),
    "trust": lambda ledger: (queries.has_uncompared(ledger, before=LATER), queries.uncompared(ledger, before=LATER)),
    "on their way": lambda ledger: (queries.newest_stored(ledger), queries.others_on_their_way(ledger, ["1.2.1"])),
    "given up first": lambda ledger: queries.given_up_first(ledger, at=[1, 2], size_bytes=1),
    "waiting elsewhere": queries.waiting_elsewhere,
    "untold": lambda ledger: queries.untold(ledger, longer_than=timedelta(0), now=NOW),
    "candidates": queries.left_candidates,
    "routable": lambda ledger: (
        queries.routable(ledger),
        queries.routable(ledger, study_uid="1.2.1"),
        queries.reroutings(ledger, {1: ["default"]}),
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_question_is_answered_off_an_index(ledger: Ledger, name: str):
    for statement, plan in plans_of(ledger, lambda: QUESTIONS[name](ledger)):
        assert unserved(statement, plan) == [], (statement, plan)


@pytest.mark.parametrize("name", ["status", "entries", "entries at one", "on their way", "given up first"])
def test_what_waits_at_one_destination_is_read_past_by_no_question_about_another(ledger: Ledger, name: str):
    """One that was away, with 200,000 files, had each `status` take 80 ms to say how long the other's wait."""
    plans = plans_of(ledger, lambda: QUESTIONS[name](ledger))
    steps = [step for _, plan in plans for step in plan if "delivery_unconfirmed" in step]

    assert steps
    assert all("delivery_unconfirmed (destination_id=?" in step for step in steps), steps


@pytest.mark.parametrize("name", ["entries", "entries at one", "going back", "trust"])
def test_what_is_confirmed_at_one_destination_is_read_past_by_no_question_about_another(ledger: Ledger, name: str):
    """With a million files confirmed at one, each question about a new one read past all of them."""
    plans = plans_of(ledger, lambda: QUESTIONS[name](ledger))
    steps = [step for _, plan in plans for step in plan if "delivery_confirmed" in step]

    assert steps
    assert all("delivery_confirmed (destination_id=?" in step for step in steps), steps


def _admit(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        new = NewCandidate(inbox="in", relative_path="x", source=source(1))
        (candidate_id,) = moves.add_candidates(tx, [new], now=LATER)
        moves.admit(tx, [arrival(1, candidate_id=candidate_id), arrival(9, study=9)], now=LATER)
        moves.refuse(tx, [refusal(3)], now=LATER)


def _send(ledger: Ledger) -> None:
    admit(ledger, arrival(5, study=5), arrival(5, study=5), *(arrival(number, study=5) for number in range(50, 60)))
    with ledger.transaction() as tx:
        batch = moves.claim(tx, "1.2.5", now=LATER)
        assert batch is not None
        moves.finish(tx, result_of(batch, State.FAILED, Reason.REFUSED), now=LATER, backoff=BACKOFF, jitter=0.0)
        moves.wake(tx, now=LATER)
        moves.recover(tx, now=LATER)


def _prove(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        moves.apply(tx, [outcome(2, State.CONFIRMED)], now=LATER, backoff=BACKOFF, jitter=0.0)
        moves.check_again(tx, [1], at=LATER)
        remove(tx, *range(1, 100))


@pytest.mark.parametrize("move", [_admit, _send, _prove])
def test_move_finds_its_rows_by_an_index(ledger: Ledger, move: Callable[[Ledger], None]):
    for statement, plan in plans_of(ledger, lambda: move(ledger)):
        if "study_sum.in_flight >" in statement:
            continue  # at the start only, and over studies
        assert unserved(statement, plan) == [], (statement, plan)


def test_label_that_many_studies_share_keeps_to_the_newest(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ingestd.ledger.queries.search._FEW", 2)
    admit(ledger, *(arrival(number, study=number) for number in range(10, 20)), now=LATER + timedelta(seconds=1))
    plans = plans_of(ledger, lambda: queries.studies(ledger, Choice(modality="CT"), limit=3))
    assert all(unserved(statement, plan) == [] for statement, plan in plans)
    assert len(queries.studies(ledger, Choice(modality="CT"), limit=100)) == 12
    assert len(queries.entries(ledger, Choice(modality="CT"), limit=100)) == 12


def test_room_is_imported_in_little_time_and_with_nothing_heavy():
    script = (
        "import sys; import ingestd.ledger\n"
        "heavy = {'pydicom', 'requests', 'watchdog', 'pydantic', 'sqlalchemy.orm', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"


BEFORE_ALL = NOW - timedelta(days=30)
AT_EACH_TICK: dict[str, Callable[[Ledger], object]] = {
    "studies due": lambda ledger: queries.studies_due(ledger, now=NOW),
    "next study": lambda ledger: queries.next_study_at(ledger, now=NOW),
    "next study at the end": lambda ledger: queries.next_study_at(ledger, now=NOW, flush=True),
    "next wake": lambda ledger: queries.next_wake_at(ledger, now=NOW),
    "next check": lambda ledger: queries.next_check_at(ledger, now=NOW),
    "waiting elsewhere": queries.waiting_elsewhere,
    "removable": lambda ledger: queries.removable(ledger, before=BEFORE_ALL),
    "resting": lambda ledger: queries.resting(ledger, before=BEFORE_ALL),
    "went back": queries.went_back_at,
    "destination": queries.destination,
    "reader": queries.rows_to_read,
    "requested": queries.requested_rows,
    "standing": queries.standing,
    "untold": lambda ledger: queries.untold(ledger, longer_than=timedelta(0), now=NOW),
}


@pytest.mark.parametrize("name", AT_EACH_TICK)
def test_what_is_asked_at_each_tick_is_read_once_while_the_ledger_is_the_same(ledger: Ledger, name: str):
    """Seven questions in some twenty statements were a third of what a tick cost, and a lone file takes eight ticks."""
    admit(ledger, arrival(3, study=3))
    first = AT_EACH_TICK[name](ledger)

    asked = [statement for statement, _ in read_by(ledger, lambda: AT_EACH_TICK[name](ledger))]
    assert all("FROM worker" in statement for statement in asked), asked  # whether others have written
    assert AT_EACH_TICK[name](ledger) == first


def test_what_another_process_wrote_is_seen_by_the_next_question(ledger: Ledger, tmp_path: Path):
    admit(ledger, arrival(3, study=3))
    assert queries.next_study_at(ledger, now=LATER) is not None

    with open_ledger(tmp_path, beside=True) as other, other.transaction() as tx:
        assert moves.claim(tx, "1.2.3", now=LATER) is not None

    assert queries.next_study_at(ledger, now=LATER) is None
    assert queries.studies_due(ledger, now=LATER) == []


def test_what_was_read_in_a_transaction_that_was_undone_is_not_remembered(ledger: Ledger):
    admit(ledger, arrival(3, study=3))
    before = queries.next_study_at(ledger, now=LATER)

    def claim_in_vain() -> None:
        with ledger.transaction() as tx:
            assert moves.claim(tx, "1.2.3", now=LATER) is not None
            assert moves.claim(tx, "1.2.3", now=LATER) is None
            assert queries.next_study_at(ledger, now=LATER) is None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        claim_in_vain()

    assert before is not None
    assert queries.next_study_at(ledger, now=LATER) == before
