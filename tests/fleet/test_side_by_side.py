"""What a worker keeps others out of while it writes: nobody who changes files of other studies (``Stage.studies``)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ingestd.config import Config
from ingestd.daemon import Daemon, outage, run_once
from ingestd.daemon.daemon import spool_of
from ingestd.emulator import Emulator
from ingestd.ledger import Ledger, LedgerDiffers, LedgerError, Transaction, Writer, moves, queries, study_locks
from ingestd.lifecycle import State
from tests.builders import fresh_uid, instance_bytes
from tests.daemon.test_promise import configure, turn

STUDIES = [fresh_uid(1) for _ in range(2)]
WRITTEN = ("add_candidates", "admit", "claim", "finish", "record_sightings", "apply", "mark_removing", "mark_removed")
# Refuses to write a row of a study that the transaction has no lock for.
EXPECT_LOCK = """CREATE FUNCTION expect_lock() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE held TEXT := current_setting('test.held', true);
    BEGIN
        IF held LIKE ',%' AND NEW.study_id IS NOT NULL
            AND strpos(held, ',' || (SELECT uid FROM study WHERE id = NEW.study_id) || ',') = 0
        THEN RAISE EXCEPTION '% of a study that is not locked', TG_TABLE_NAME; END IF;
        RETURN NEW;
    END $$"""
OF_STUDIES = ("delivery", "file", "study_sum", "study_label", "attempt", "rendition")


@pytest.fixture
def config(tmp_path: Path, server: Emulator, database: str) -> Config:
    return configure(tmp_path, server, retain="0s", verify="presence", ledger=database)


@pytest.fixture
def daemon(config: Config, database: str) -> Iterator[Daemon]:
    """One at work beside another, which has no drop folder."""
    writer = Writer(spool_of(config).host, shares=True, lease=config.lease)
    with ExitStack() as stack:
        found = Daemon(config, writer=writer)
        stack.callback(found.close)
        found.start()
        other = {"host": writer.host, "destinations": config.addresses, "spool": config.spool.path}
        stack.enter_context(Ledger.open(database, **other, key=config.spool.search_key, writer=writer))
        turn(found, lambda: found.ledger.in_turns and found.assignment.upkeep and found.assignment.inboxes)
        yield found


@pytest.fixture
def _expects_locks(daemon: Daemon, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting_for, try_lock = study_locks.waiting_for, study_locks.try_lock

    def saying(studies: Collection[str] | None) -> list[str]:
        held = "all" if studies is None else f",{','.join(studies)},"
        return [*waiting_for(studies), f"SELECT set_config('test.held', '{held}', true)"]

    def trying(connection: Any, studies: Collection[str]) -> set[str]:
        got = try_lock(connection, studies)
        more = "SELECT set_config('test.held', current_setting('test.held') || %s, true)"
        connection.exec_driver_sql(more, (",".join(got) + ",",))
        return got

    monkeypatch.setattr(study_locks, "waiting_for", saying)
    monkeypatch.setattr(study_locks, "try_lock", trying)
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(EXPECT_LOCK)
        for table in OF_STUDIES:
            before = f"BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION expect_lock()"
            owner.execute(f"CREATE TRIGGER expect_lock_{table} {before}")


def drop(folder: Path, *studies: str) -> None:
    for number, study in enumerate(studies):
        made = instance_bytes(study_uid=study, series_uid=f"{study}.1", sop_uid=f"{study}.1.{number + 1}")
        (folder / "drop" / f"{study}-{number}").write_bytes(made)


def counts(daemon: Daemon) -> dict[State, int]:
    return {state: rows for state, rows in queries.counts(daemon.ledger).items() if rows}


@pytest.mark.usefixtures("_expects_locks")
def test_all_that_a_file_goes_through_keeps_out_only_those_who_change_files_of_its_study(
    tmp_path: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    written: set[tuple[str, bool]] = set()

    def noting(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def noted(tx: Transaction, *rest: Any, **more: Any) -> Any:
            written.add((name, tx.is_of_studies))
            return act(tx, *rest, **more)

        return noted

    for name in WRITTEN:
        monkeypatch.setattr(moves, name, noting(name, getattr(moves, name)))
    drop(tmp_path, *STUDIES, *STUDIES)

    turn(daemon, lambda: counts(daemon) == {State.CONFIRMED: 4})
    turn(daemon, lambda: ("mark_removed", True) in written and daemon.stages.retention.is_idle)

    assert written == {(name, True) for name in WRITTEN}


def test_study_that_another_changes_just_now_is_sent_later_and_the_others_meanwhile(
    tmp_path: Path, daemon: Daemon, database: str
):
    daemon.gates.claims.shut("test")
    drop(tmp_path, *STUDIES)
    turn(daemon, lambda: counts(daemon) == {State.PENDING: 2})
    turn(daemon, lambda: len(queries.studies_due(daemon.ledger.at("default"), now=daemon.ledger.clock.utc())) == 2)
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("; ".join(("BEGIN", *study_locks.waiting_for(STUDIES[:1]))), prepare=False)
        daemon.gates.claims.open("test")
        turn(daemon, lambda: State.SENDING in counts(daemon))
        assert counts(daemon) == {State.PENDING: 1, State.SENDING: 1}
        other.execute("ROLLBACK")
    turn(daemon, lambda: counts(daemon) == {State.CONFIRMED: 2})


def test_study_that_another_changes_just_now_is_waited_for_where_nothing_else_is_to_be_asked(
    tmp_path: Path, daemon: Daemon, database: str
):
    """The loop turned without a rest, and wrote the ledger each time, as long as another had what was due."""
    drop(tmp_path, STUDIES[0])
    turn(daemon, lambda: counts(daemon) == {State.CONFIRMED: 1})
    (row,) = queries.entries(daemon.ledger)
    with Ledger.open(database) as person, person.transaction() as tx:
        moves.check_again(tx, [row.delivery_id], at=daemon.ledger.clock.utc())
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("; ".join(("BEGIN", *study_locks.waiting_for(STUDIES[:1]))), prepare=False)
        ends = threading.Timer(1.0, other.execute, ["ROLLBACK"])
        ends.start()
        try:
            rounds = turn(daemon, lambda: not ends.is_alive())
        finally:
            ends.join()
    assert rounds < 15, "it waited"
    turn(daemon, lambda: not queries.has_looks(daemon.ledger.at("default")))


def test_nothing_is_taken_in_by_a_configuration_that_holds_no_more(
    tmp_path: Path, daemon: Daemon, config: Config, database: str
):
    """What comes for a destination that goes would be sent by nobody, and no configuration without it could start."""
    with Ledger.open(database) as person:
        former = person.agree({"rules": "others"}, config.addresses)
        assert former is not None
        drop(tmp_path, STUDIES[0])
        turn(daemon, lambda: daemon.stages.admission.is_held)
        ends_at = time.monotonic() + 1
        rounds = turn(daemon, lambda: time.monotonic() >= ends_at)
        assert rounds < 15, "it waited"
        assert counts(daemon) == {}

        person.agree(former.said, config.addresses)
    turn(daemon, lambda: counts(daemon) == {State.CONFIRMED: 1})


def test_single_run_ends_where_another_configuration_comes_to_hold(tmp_path: Path, config: Config, database: str):
    drop(tmp_path, STUDIES[0])

    def adopt(_: Daemon) -> None:
        with Ledger.open(database) as person:
            person.agree({"rules": "others"}, config.addresses)

    with pytest.raises(LedgerDiffers, match="differs in"):
        run_once(config, timeout=timedelta(seconds=20), watch=adopt)


def test_key_of_the_search_words_that_a_person_agreed_to_is_gone_by_where_another_was_read(
    daemon: Daemon, config: Config, database: str
):
    """What it took in from then on was kept by a key that nobody had any more, and found by no patient."""
    key = config.spool.search_key
    assert daemon.ledger.search_key.hash("patient", "P")
    key.write_bytes(os.urandom(32))
    with Ledger.open(database, key=key) as person:
        person.search_key.accept()
        word = person.search_key.hash("patient", "P")

    turn(daemon, lambda: daemon.ledger.search_key.hash("patient", "P") == word)
    assert not daemon.stages.alarms.standing


def test_ledger_that_takes_nothing_of_files_ends_the_daemon_though_it_takes_all_else(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    """The first transaction of a tick, which had nothing to write, began the minute anew."""

    def refused(*_: object) -> None:
        raise LedgerError("the disk failed")

    monkeypatch.setattr(outage, "_BROKEN_SECONDS", 1.0)
    monkeypatch.setattr(outage, "_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(daemon.stages.admission, "write", refused)
    with pytest.raises(LedgerError, match="the disk failed"):
        turn(daemon, lambda: False)
