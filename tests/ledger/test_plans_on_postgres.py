"""What a move costs a PostgreSQL server: so many statements, however many files, and none that reads a table whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from ingestd.ledger import Ledger, NewCandidate, moves, queries
from ingestd.lifecycle import Sighting, SourceStat
from tests.ledger_builders import LATER, URL, admit, arrival, confirm, identity, remove, send

FILES = 30
TABLES = "'file', 'delivery', 'study', 'study_sum', 'attempt', 'history'"
# A plan is made for good by the sixth time.
UNTIL_PLANNED = 8


@pytest.fixture
def ledger(database: str, tmp_path: Path) -> Iterator[Ledger]:
    destinations = {"default": URL}
    with Ledger.open(
        database, host="host-a", destinations=destinations, spool=tmp_path, key=tmp_path / "key"
    ) as ledger:
        yield ledger


def live(ledger: Ledger, study: int, files: int) -> None:
    """Have so many files of a study go all the way."""
    ids = admit(ledger, *(arrival(number, study=study) for number in range(files)))
    send(ledger, study)
    with ledger.transaction() as tx:
        seen = [
            Sighting(
                identity=identity(number, study=study), sequence=number + 1, action="create", state="current", at=LATER
            )
            for number in range(files)
        ]
        assert moves.record_sightings(tx, seen, now=LATER) == files
    confirm(ledger, *ids)
    with ledger.transaction() as tx:
        remove(tx, *ids)


def statements_of(ledger: Ledger, study: int, files: int) -> int:
    sent = 0

    def count(*said: Any) -> None:
        nonlocal sent
        sent += len(said[3]) if said[5] else 1

    event.listen(ledger.engine, "before_cursor_execute", count)
    try:
        live(ledger, study, files)
    finally:
        event.remove(ledger.engine, "before_cursor_execute", count)
    return sent


def whole_reads(ledger: Ledger) -> int:
    asked = f"SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE relname IN ({TABLES})"
    ledger.connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    read = int(ledger.connection.exec_driver_sql(asked).scalar_one())
    ledger.connection.rollback()
    return read


def entries_read(ledger: Ledger, index: str) -> int:
    asked = f"SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname LIKE '{index}%%'"
    ledger.connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    read = int(ledger.connection.exec_driver_sql(asked).scalar_one())
    ledger.connection.rollback()
    return read


def put_down(ledger: Ledger, study: int, files: int) -> None:
    """Have so many candidates come, and go."""
    with ledger.transaction() as tx:
        found = [
            NewCandidate(
                inbox="drop",
                relative_path=f"{study}/{number}",
                source=SourceStat(device=1, inode=number, size_bytes=1, mtime_ns=1),
                target=f"{study * 1000 + number:032x}",
            )
            for number in range(files)
        ]
        moves.drop_candidates(tx, moves.add_candidates(tx, found, now=LATER))


@pytest.mark.parametrize("index, do", [("delivery_sending", live), ("candidate_inbox_id", put_down)])
def test_what_an_open_snapshot_keeps_is_not_read_by_each_file_that_comes(
    ledger: Ledger, database: str, index: str, do: Callable[[Ledger, int, int], None]
):
    """While a backup ran, each file was looked for among all that had come since it began, and were gone."""
    do(ledger, 1, FILES)
    ledger.connection.exec_driver_sql("ANALYZE")
    ledger.connection.rollback()
    with psycopg.connect(database) as backup:
        backup.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        backup.execute("SELECT FROM meta")
        for study in range(2, UNTIL_PLANNED):
            do(ledger, study, FILES)
        before = entries_read(ledger, index)

        do(ledger, UNTIL_PLANNED, 1)

        assert entries_read(ledger, index) - before < FILES


def test_identity_is_looked_up_by_itself_in_a_ledger_that_nobody_has_analyzed(ledger: Ledger):
    """In the first minutes each batch read all that its destination had."""
    for study in range(1, UNTIL_PLANNED):
        live(ledger, study, FILES)
    before = entries_read(ledger, "delivery_holds")

    live(ledger, UNTIL_PLANNED, 1)

    assert entries_read(ledger, "delivery_holds") - before < FILES


def test_row_that_is_due_is_found_behind_what_an_open_snapshot_keeps(ledger: Ledger, database: str):
    (delivery_id,) = admit(ledger, arrival(1))
    send(ledger)
    with psycopg.connect(database) as backup:
        backup.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        backup.execute("SELECT FROM meta")
        for second in range(FILES):
            with ledger.transaction() as tx:
                moves.check_again(tx, [delivery_id], at=LATER + timedelta(seconds=second))
        before, at = entries_read(ledger, "delivery_check"), LATER + timedelta(seconds=FILES - 1)

        assert queries.next_check_at(ledger, now=at, since=at) == at
        assert [row.delivery_id for row in queries.unproven(ledger, now=at, since=at)] == [delivery_id]

        assert entries_read(ledger, "delivery_check") - before < 5
        assert queries.next_check_at(ledger, now=at) == at
        assert entries_read(ledger, "delivery_check") - before > FILES


def test_file_that_may_go_is_found_behind_what_an_open_snapshot_keeps(ledger: Ledger, database: str):
    with psycopg.connect(database) as backup:
        backup.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        backup.execute("SELECT FROM meta")
        for second in range(FILES):
            at = LATER + timedelta(seconds=second)
            (file_id,) = admit(ledger, arrival(second))
            send(ledger)
            confirm(ledger, file_id, now=at)
            if second < FILES - 1:
                with ledger.transaction() as tx:
                    remove(tx, file_id)
        before = entries_read(ledger, "file_unneeded")

        assert queries.unneeded_up_to(ledger, before=at, since=at, files=10) == at
        assert [row.file_id for row in queries.removable(ledger, before=at, since=at)] == [file_id]

        assert entries_read(ledger, "file_unneeded") - before < FILES


def test_many_files_take_as_many_statements_as_few(ledger: Ledger):
    """Sightings and counts were a statement for each file: three for each file of a batch, over a network."""
    live(ledger, 1, FILES)

    assert statements_of(ledger, 2, FILES) == statements_of(ledger, 3, 5)


def test_what_was_planned_for_small_tables_reads_no_large_one_whole(ledger: Ledger):
    """A file cost twice as much after 5,000 others, until somebody analyzed the tables: the plans were of the first."""
    live(ledger, 1, 1)
    ledger.connection.exec_driver_sql("ANALYZE")
    before = whole_reads(ledger)

    for study in range(2, UNTIL_PLANNED):
        live(ledger, study, 5)

    assert whole_reads(ledger) == before
