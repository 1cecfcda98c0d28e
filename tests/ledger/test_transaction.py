"""A transaction begins with its first statement; what waits for the commit is done after it, or not at all."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from ingestd.ledger import Ledger, LedgerBusy, LedgerError, moves, queries
from ingestd.lifecycle import BatchLimits, State
from tests.ledger_builders import LATER, NOW, admit, arrival, open_ledger
from tests.ledgers import FAILED, kept_out, raw, sqlite_only, url_of, wait_little


@pytest.fixture
def ledger(tmp_path: Path):
    with open_ledger(tmp_path) as ledger:
        yield ledger


def test_transaction_without_a_statement_never_begins(ledger: Ledger):
    done = []
    with kept_out(ledger), ledger.transaction() as tx:
        tx.on_commit(lambda: done.append("forgotten"))
        moves.drop_candidates(tx, [])
        assert not tx.has_begun
    assert done == ["forgotten"]


def test_what_waits_for_the_commit_is_done_after_it_in_order(ledger: Ledger):
    done = []

    def seen_by_another(name: str) -> None:
        with raw(ledger) as other:
            done.append((name, other.execute("SELECT count(*) FROM delivery").fetchone()[0]))

    with ledger.transaction() as tx:
        tx.on_commit(lambda: seen_by_another("first"))
        moves.admit(tx, [arrival(1)], now=NOW)
        tx.on_commit(lambda: seen_by_another("second"))
        assert done == []
    assert done == [("first", 1), ("second", 1)]


def test_what_waits_is_dropped_when_the_transaction_is_undone(ledger: Ledger):
    done = []
    with pytest.raises(ZeroDivisionError), ledger.transaction() as tx:  # noqa: PT012 - the block is the transaction
        tx.on_commit(lambda: done.append("never"))
        moves.admit(tx, [arrival(1)], now=NOW)
        raise ZeroDivisionError
    assert done == []
    admit(ledger, arrival(2))
    assert done == []
    assert queries.counts(ledger)[State.PENDING] == 1


@sqlite_only
def test_what_waits_is_dropped_when_the_commit_fails(ledger: Ledger):
    done = []
    ledger.connection.exec_driver_sql("PRAGMA busy_timeout=1")
    ledger.connection.rollback()
    reader = sqlite3.connect(ledger.name, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM delivery").fetchone()
    with pytest.raises(LedgerBusy), ledger.transaction() as tx:  # noqa: PT012 - the block is the transaction
        tx.on_commit(lambda: done.append("never"))
        moves.admit(tx, [arrival(1)], now=NOW)
    reader.close()
    assert done == []
    assert queries.counts(ledger).get(State.PENDING, 0) == 0


def test_one_that_raises_keeps_no_other_from_being_done(ledger: Ledger):
    done = []
    with pytest.raises(ZeroDivisionError), ledger.transaction() as tx:  # noqa: PT012 - the block is the transaction
        moves.admit(tx, [arrival(1)], now=NOW)
        tx.on_commit(lambda: 1 / 0)
        tx.on_commit(lambda: done.append("still"))
    assert done == ["still"]
    assert queries.counts(ledger)[State.PENDING] == 1


def test_query_in_a_transaction_keeps_others_out_and_sees_what_was_done_in_it(ledger: Ledger, tmp_path, monkeypatch):
    wait_little(monkeypatch)
    with ledger.transaction() as tx, Ledger.open(url_of(tmp_path), create=False) as other:
        assert queries.studies_due(tx, now=LATER) == []
        with pytest.raises(LedgerBusy), other.transaction() as refused:
            refused.begin()
        (admitted,) = moves.admit(tx, [arrival(1)], now=NOW)
        (due,) = queries.studies_due(tx, now=LATER)
        assert due.waiting == 1
        assert queries.counts(tx)[State.PENDING] == 1
        assert queries.story(tx, admitted.number).history[0].after is State.PENDING
        batch = moves.claim(tx, due.study_uid, now=LATER)
        assert len(batch.parts) == 1
        assert queries.studies_due(tx, now=LATER) == []
    assert queries.counts(ledger)[State.SENDING] == 1


@pytest.mark.parametrize("took_effect", [True, False])
def test_what_waits_is_done_late_where_a_commit_that_failed_is_durable(ledger: Ledger, monkeypatch, took_effect: bool):
    """The folder's fsync failed behind the journal's end: it was written again, and what was claimed sent by nobody."""
    done: list[str] = []
    dialect = ledger.connection.dialect
    commit = dialect.do_commit

    def fail(connection: Any) -> None:
        if took_effect:
            commit(connection)
        raise FAILED("disk I/O error")

    monkeypatch.setattr(dialect, "do_commit", fail)
    with pytest.raises(LedgerError), ledger.transaction() as tx:  # noqa: PT012 - the block is the transaction
        moves.admit(tx, [arrival(1)], now=NOW)
        tx.on_commit(lambda: done.append("late"))
    assert done == []
    monkeypatch.undo()

    ledger.resolve()
    ledger.resolve()

    assert done == ["late"] * took_effect
    assert queries.counts(ledger)[State.PENDING] == int(took_effect)


def test_other_limits_are_refused_by_a_locked_ledger_in_its_own_words(tmp_path: Path, monkeypatch):
    """The daemon gave other limits to a ledger that it took over, and ended of an error that no room knows."""
    wait_little(monkeypatch)
    with open_ledger(tmp_path) as ledger, kept_out(ledger), pytest.raises(LedgerBusy):
        ledger.set_limits(BatchLimits())


def fail_commit(ledger: Ledger, monkeypatch, done: list[str]) -> None:
    """Have a COMMIT fail that is durable all the same."""
    dialect = ledger.connection.dialect
    commit = dialect.do_commit

    def fail(connection: Any) -> None:
        commit(connection)
        raise FAILED("disk I/O error")

    monkeypatch.setattr(dialect, "do_commit", fail)
    with pytest.raises(LedgerError), ledger.transaction() as tx:  # noqa: PT012 - the block is the transaction
        moves.admit(tx, [arrival(1)], now=NOW)
        tx.on_commit(lambda: done.append("late"))
    monkeypatch.undo()


def test_other_limits_leave_the_mark_of_a_commit_in_doubt(ledger: Ledger, monkeypatch):
    """They wrote over it, and what waited for the commit was dropped although all of it was durable."""
    done: list[str] = []
    fail_commit(ledger, monkeypatch, done)
    ledger.set_limits(BatchLimits())
    ledger.resolve()
    assert done == ["late"]


def test_what_waits_for_a_commit_in_doubt_is_not_done_for_whoever_takes_the_ledger_over(ledger: Ledger, monkeypatch):
    done: list[str] = []
    fail_commit(ledger, monkeypatch, done)
    ledger.forget_doubt()
    ledger.resolve()
    assert done == []
    assert queries.counts(ledger)[State.PENDING] == 1


def test_mark_of_another_transaction_is_no_proof_of_one(ledger: Ledger, monkeypatch):
    done: list[str] = []
    admit(ledger, arrival(1))
    monkeypatch.setattr(ledger.connection.dialect, "do_commit", lambda _: (_ for _ in ()).throw(FAILED("no")))
    with pytest.raises(LedgerError), ledger.transaction() as tx:  # noqa: PT012 - the block is the transaction
        tx.begin()
        tx.on_commit(lambda: done.append("never"))
    monkeypatch.undo()
    ledger.resolve()
    assert done == []
