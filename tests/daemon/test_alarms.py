"""Alarms: raised once however often they are seen, kept by the ledger, gone when they end."""

from __future__ import annotations

import pytest
import structlog

from ingestd.clocks import read_clocks
from ingestd.daemon.alarms import Alarms
from ingestd.ledger import queries
from tests.ledger_builders import open_ledger


@pytest.fixture
def ledger(tmp_path):
    with open_ledger(tmp_path) as ledger:
        yield ledger


def commit(alarms, ledger):
    """Write what stands; say whether there was anything to write."""
    with ledger.transaction() as tx:
        alarms.write(tx, read_clocks())
    return tx.has_begun


def test_what_is_raised_twice_is_one_alarm_since_the_first_time(ledger):
    alarms = Alarms()
    with structlog.testing.capture_logs() as logged:
        alarms.raise_("disk_low", note="full", next_step="make room")
        alarms.raise_("disk_low", note="full", next_step="make room")
        commit(alarms, ledger)
        [first] = queries.alarms(ledger)
        alarms.raise_("disk_low", note="fuller", next_step="make room")
        commit(alarms, ledger)
    [second] = queries.alarms(ledger)

    assert (second.note, second.since) == ("fuller", first.since)
    assert [line["event"] for line in logged] == ["alarm.raised", "alarm.raised"]
    assert not commit(alarms, ledger)


def test_alarm_raised_while_the_transaction_is_written_waits_for_the_next(ledger):
    alarms = Alarms()
    with ledger.transaction() as tx:
        alarms.write(tx, read_clocks())
        alarms.raise_("inbox", "drop-00000000", note="missing", next_step="mount it")

    assert commit(alarms, ledger)
    assert [alarm.about for alarm in queries.alarms(ledger)] == ["drop-00000000"]


def test_alarms_of_the_last_run_go_with_the_first_transaction(ledger):
    last = Alarms()
    last.raise_("disk_low", note="full", next_step="make room")
    commit(last, ledger)

    alarms = Alarms()
    assert commit(alarms, ledger)

    assert queries.alarms(ledger) == ()


def test_cleared_alarm_is_gone_and_said_to_be(ledger):
    alarms = Alarms()
    alarms.set("disk_low", note="full", next_step="make room")
    commit(alarms, ledger)
    with structlog.testing.capture_logs() as logged:
        alarms.set("disk_low", note="", next_step="make room")
        alarms.clear("disk_low")
    commit(alarms, ledger)

    assert not alarms.stands("disk_low")
    assert queries.alarms(ledger) == ()
    assert [line["event"] for line in logged] == ["alarm.cleared"]
