"""Who may write a ledger that several machines share, and who goes on where that one is silent (DESIGN.md 8.11)."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import event

from ingestd.clocks import boottime
from ingestd.ledger import (
    Ledger,
    LedgerBusy,
    LedgerDiffers,
    LedgerError,
    LedgerFenced,
    LedgerHeld,
    LedgerMissing,
    StandingBy,
    Writer,
    moves,
    queries,
    stand_by,
    workers,
)
from ingestd.ledger.migrations import MIGRATIONS
from ingestd.lifecycle import Reason, State
from tests.ledger_builders import LATER, LIMITS, NOW, URL, admit, arrival, open_shared, state_of

LEASE = timedelta(seconds=3)
HOST = "host-a"
SAID = {"inboxes": "a", "rules": "b"}
# A machine that cannot be seen into: whether its process lives, nobody here knows.
ELSEWHERE = "UPDATE worker SET machine = 'elsewhere', process = 'boot:ns:1:1' WHERE id = %s"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def opened(database: str, folder: Path, writer: Writer | None = None, **options: object) -> Ledger:
    return open_shared(database, folder, writer or Writer(HOST, lease=LEASE), **options)


def standing(database: str, **said: str) -> StandingBy:
    return stand_by(database, host=HOST, lease=LEASE, agreement=SAID | said)


def execute(database: str, statement: str, *values: object) -> list[tuple]:
    with psycopg.connect(database, autocommit=True) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def holder_of(database: str) -> int:
    ((number,),) = execute(database, "SELECT id FROM worker WHERE holds = 1 AND ended_at IS NULL")
    return number


def go_elsewhere(database: str) -> int:
    number = holder_of(database)
    execute(database, ELSEWHERE, number)
    return number


def test_one_works_and_another_is_told_where(database, folder):
    with opened(database, folder) as ledger:
        with pytest.raises(LedgerHeld, match=r"another ingestd works on this spool: process \d+ on "):
            opened(database, folder)
        assert admit(ledger, arrival(1)) == [1]
    with opened(database, folder) as ledger:
        assert admit(ledger, arrival(2)) == [2]


def test_whoever_writes_keeps_all_others_out_until_the_end_of_it(database, folder):
    with opened(database, folder) as ledger, Ledger.open(database, create=False) as person:
        person.connection.exec_driver_sql("SET lock_timeout = '50ms'")
        person.connection.rollback()
        with ledger.transaction() as tx:
            tx.begin()
            with pytest.raises(LedgerBusy), person.transaction() as other:
                other.begin()
        with person.transaction() as other:
            other.begin()


def test_process_of_this_machine_that_is_gone_is_ended_without_waiting(database, folder):
    program = f"""
import os
from pathlib import Path
from tests.ledger.test_workers import opened
opened({database!r}, Path({str(folder)!r}))
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    with opened(database, folder) as ledger:
        first, second = reversed(ledger.workers())
        assert (first.why_ended, first.holds, second.holds) == ("its process is gone", True, True)
        assert not ledger.after_silence, "whoever is gone does nothing any more"


def test_silent_worker_is_ended_after_its_own_lease_and_writes_no_more(database, folder):
    with opened(database, folder) as silent:
        admit(silent, arrival(1))
        go_elsewhere(database)
        began = boottime()
        with standing(database) as other:
            assert other.look(began) is not None
            assert other.look(began + 2.9) is not None
            assert other.look(began + 3.0) is None
            with opened(database, folder, other.writer()) as ledger:
                assert ledger.after_silence
                assert admit(ledger, arrival(2)) == [2]
                with pytest.raises(LedgerFenced, match="was ended because it was silent"):
                    admit(silent, arrival(3))
                with pytest.raises(LedgerFenced):
                    silent.beat()
                assert queries.counts(ledger)[State.PENDING] == 2


def test_beat_is_seen_and_a_write_between_look_and_takeover_keeps_the_spool(database, folder):
    with opened(database, folder) as holder:
        go_elsewhere(database)
        began = boottime()
        with standing(database) as other:
            other.look(began)
            holder.beat()
            assert other.look(began + 4) is not None, "it has written since"
            assert other.look(began + 8) is None
            admit(holder, arrival(1))
            with pytest.raises(LedgerHeld):
                opened(database, folder, other.writer())
            admit(holder, arrival(2))


def test_worker_that_beats_between_the_look_and_its_end_goes_on(database, folder):
    with opened(database, folder) as ledger, Ledger.open(database, create=False) as other:
        with other.begin() as connection:
            seen = workers.holder_of(connection, ledger.spool_id)
            assert seen is not None
            ledger.beat()
            assert not workers.end_silent(connection, seen)
        admit(ledger, arrival(1))


def test_worker_that_ended_long_ago_is_forgotten_and_a_later_one_is_not(database, folder):
    for ended_days_ago in (31, 29):
        opened(database, folder).close()
        ended_at = "(extract(epoch FROM now() - %s * interval '1 day') * 1e6)::bigint"
        execute(
            database, f"UPDATE worker SET ended_at = {ended_at} WHERE id = (SELECT max(id) FROM worker)", ended_days_ago
        )
    with opened(database, folder) as ledger:
        ids = [number for (number,) in execute(database, "SELECT id FROM worker ORDER BY id")]
        assert ids == [0, 2, ledger.worker]


def test_lease_is_trusted_for_three_quarters_from_the_begin_of_what_was_committed(database, folder, monkeypatch):
    now = boottime()
    monkeypatch.setattr("ingestd.ledger.session.boottime", lambda: now)
    monkeypatch.setattr("ingestd.lease.boottime", lambda: now)
    with opened(database, folder) as ledger:
        now += 2.2
        assert ledger.lease.holds()
        now += 0.1
        assert not ledger.lease.holds()
        ledger.beat()
        assert ledger.lease.holds()
        now += 2.3
        admit(ledger, arrival(1))
        assert ledger.lease.holds()
    assert not ledger.lease.holds(), "closed, it is another's"


def test_those_that_share_a_spool_are_at_work_together_and_whoever_wants_it_alone_is_told(database, folder):
    with opened(database, folder), standing(database) as one, standing(database) as two:
        go_elsewhere(database)
        began = boottime()
        for each in (one, two):
            each.look(began)
        assert (one.look(began + 3), two.look(began + 3)) == (None, None)
        with opened(database, folder, one.writer()) as first, opened(database, folder, two.writer()) as second:
            assert (admit(first, arrival(1)), admit(second, arrival(2))) == ([1], [2])
            with pytest.raises(LedgerHeld):
                opened(database, folder)
            assert [each.beat.id for each in first.members()] == [first.worker, second.worker]


def test_whoever_ends_by_itself_is_replaced_at_once(database, folder):
    holder = opened(database, folder)
    go_elsewhere(database)
    with standing(database) as other:
        assert other.look(boottime()) is not None
        holder.close()
        assert other.look(boottime()) is None
        with opened(database, folder, other.writer()) as ledger:
            assert not ledger.after_silence


def test_where_machines_say_otherwise_nobody_takes_over_until_one_of_them_is_adopted(database, folder):
    opened(database, folder, agreement=SAID).close()
    with standing(database, rules="c") as other:
        with pytest.raises(LedgerDiffers, match=r"make this file equal .* it differs in rules"):
            other.look(boottime())
        with opened(database, folder) as ledger:
            (_, barred) = ledger.workers()[:2]
            assert (barred.is_alive, barred.stands_by, barred.bars) == (
                True,
                False,
                "its configuration differs in rules",
            )
        with Ledger.open(database, create=False) as person:
            assert person.agree(SAID | {"rules": "c"}, {}).said == SAID
        assert other.look(boottime()) is None
    with pytest.raises(LedgerDiffers, match="differs in rules"):
        opened(database, folder, agreement=SAID)


def test_nobody_counts_on_one_that_has_not_seen_the_spool_yet(database, folder):
    """Its row came first, and then why it would not take over: who gave the spool back in between gave it to nobody."""
    opened(database, folder).close()
    with opened(database, folder) as ledger, standing(database) as other:
        counted_on = []
        event.listen(
            other._engine,
            "before_cursor_execute",
            lambda *_: counted_on.extend(each.id for each in ledger.workers() if each.stands_by),
        )
        other.look(boottime(), bars="the spool has not answered yet")

    assert counted_on == []


def test_spool_that_the_ledger_does_not_know_is_no_reason_not_to_say_that_it_differs(database, folder):
    opened(database, folder, agreement=SAID).close()
    with (
        stand_by(database, host="another", lease=LEASE, agreement=SAID | {"rules": "c"}) as other,
        pytest.raises(LedgerDiffers, match="differs in rules"),
    ):
        other.look(boottime())


@pytest.mark.parametrize("said", ["environment", "hostaddr", "service"])
def test_server_that_is_not_local_is_to_prove_itself_however_it_is_named(database, tmp_path, monkeypatch, said):
    place = urlsplit(database)
    url = f"postgresql://{place.path}?user=postgres&port={place.port}"
    # An address of this machine, in a form that is not known for one.
    if said == "environment":
        monkeypatch.setenv("PGHOST", "127.1")
    elif said == "hostaddr":
        url = f"postgresql://localhost:{place.port}{place.path}?user=postgres&hostaddr=127.1"
    else:
        services = tmp_path / "services"
        services.write_text("[its]\nhost=127.1\n")
        monkeypatch.setenv("PGSERVICEFILE", str(services))
        url += "&service=its"
    with pytest.raises(LedgerError, match="does not support SSL"):
        Ledger.open(url, create=False)
    with pytest.raises(LedgerMissing):
        Ledger.open(f"{url}&sslmode=prefer", create=False)


def test_other_server_than_before_ends_whoever_was_connected_and_has_what_waits_asked_about(database, folder):
    with opened(database, folder) as ledger:
        waits, tried = admit(ledger, arrival(1), arrival(2, study=2))
        with ledger.transaction() as tx:
            batch = moves.claim(tx, "1.2.2", now=LATER)
        assert batch is not None
        ledger.database._server = "7:00000001"
        ledger.connection.invalidate()
        with pytest.raises(LedgerFenced, match="another than before"):
            queries.counts(ledger)
    execute(database, "UPDATE worker SET ended_at = 1 WHERE id > 0")
    execute(database, "UPDATE meta SET value = '7:00000001' WHERE key = %s", f"server {HOST}")

    with opened(database, folder) as ledger:
        assert ledger.lost_record
        with ledger.transaction() as tx:
            moves.recover(tx, now=NOW)
            assert moves.ask_first(tx, now=LATER) == 1
            assert moves.ask_first(tx, now=LATER) == 0
            ledger.trust_record(tx)
        assert {state_of(ledger, each) for each in (waits, tried)} == {State.UNCERTAIN}
        assert queries.story(ledger, waits).entry.reason is Reason.RECORD_LOST
        (asked, _) = sorted(queries.unproven(ledger, now=LATER), key=lambda row: row.delivery_id)
        assert asked.last_attempt_at == NOW, "as if it had been sent as soon as it could be"
    with opened(database, folder) as ledger:
        assert not ledger.lost_record


def test_dump_that_was_restored_has_what_waits_asked_about(database, folder):
    opened(database, folder).close()
    # As pg_restore has it: the same rows in a table of another number.
    execute(database, "ALTER TABLE worker RENAME TO former")
    execute(database, "CREATE TABLE worker (LIKE former INCLUDING ALL)")
    execute(database, "INSERT INTO worker SELECT * FROM former")

    with opened(database, folder) as ledger:
        assert ledger.lost_record
        with ledger.transaction() as tx:
            ledger.trust_record(tx)
    with opened(database, folder) as ledger:
        assert not ledger.lost_record


def test_backup_that_is_put_back_beside_a_worker_ends_it(database, folder):
    with opened(database, folder) as ledger:
        execute(database, "CREATE TABLE backup AS SELECT * FROM worker")
        admit(ledger, arrival(1))
        admit(ledger, arrival(2))
        execute(database, "UPDATE worker SET writes = backup.writes FROM backup WHERE backup.id = worker.id")
        with pytest.raises(LedgerFenced, match="a backup was put back"):
            admit(ledger, arrival(3))
    assert execute(database, "SELECT count(*) FROM delivery") == [(2,)]


def test_tables_change_beside_no_worker(database, folder, monkeypatch):
    later = (*MIGRATIONS, ("CREATE TABLE extra (id {int} NOT NULL) {strict}",))
    with opened(database, folder) as working:
        for module in ("ledger", "postgres"):
            monkeypatch.setattr(f"ingestd.ledger.{module}.MIGRATIONS", later)
        with pytest.raises(LedgerHeld):
            Ledger.open(database, create=False)
        monkeypatch.undo()
        admit(working, arrival(1))
    for module in ("ledger", "postgres"):
        monkeypatch.setattr(f"ingestd.ledger.{module}.MIGRATIONS", later)
    with opened(database, folder) as newer:
        assert execute(database, "SELECT value FROM meta WHERE key = 'schema'") == [(str(len(later)),)]
        monkeypatch.undo()
        with pytest.raises(LedgerError, match="brought up to date by a newer ingestd"):
            admit(newer, arrival(2))


def test_spool_belongs_to_one_ledger_of_those_that_are_shared(database, folder):
    """Two databases were named by two configurations, and both workers took in what was dropped and sent it."""
    spool = folder / "spool"
    with opened(database, folder) as ledger:
        ledger.expect_spool_of_ours(spool, said="")
        ledger.expect_spool_of_ours(spool, said=f"{ledger.id} {ledger.name}")
        with pytest.raises(
            LedgerError, match=r"belongs to the ledger postgresql://other/db, and not to .*spool\.ledger"
        ):
            ledger.expect_spool_of_ours(spool, said="0123 postgresql://other/db")
    with Ledger.open(
        f"sqlite:///{folder / 'ledger.db'}", host=HOST, destinations={"default": URL}, spool=spool
    ) as file:
        assert file.id == ""
        with pytest.raises(LedgerError, match="belongs to the ledger"):
            file.expect_spool_of_ours(spool, said="0123 postgresql://other/db")


def test_second_spool_is_no_spool_of_a_shared_ledger_but_that_of_send(database, folder):
    opened(database, folder).close()
    options = {"destinations": {"default": URL}, "limits": LIMITS, "key": folder / "search.key"}
    with pytest.raises(LedgerError, match="is not there, or has another id"):
        Ledger.open(database, host="unmounted", spool=folder / "spool", **options)
    Ledger.open(database, host="sender", spool=folder / "spool" / "send", **options).close()
