"""A ledger that fails for a while is told of once, and once when it works again."""

from __future__ import annotations

import inspect
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
import structlog

from ingestd.daemon.outage import Outage
from ingestd.emulator import Emulator
from ingestd.ledger import LedgerAway, LedgerError, LedgerFull, moves
from tests.daemon.test_promise import configure, image, running, states, turn
from tests.ledger_builders import NOW, arrival, open_ledger


@pytest.mark.slow
def test_empty_transaction_after_a_failure_is_no_recovery(tmp_path: Path) -> None:
    """A look that failed every five seconds, an empty transaction after each: every one was told as a recovery."""
    with Emulator(fsync=False) as server:
        config = configure(tmp_path, server)
        with structlog.testing.capture_logs() as logged, running(config) as daemon:
            driver = daemon.ledger.connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            refused = 0

            def refuse(*_: object) -> int:
                nonlocal refused
                frame = inspect.currentframe()
                while frame is not None and frame.f_code.co_name != "unremoved_sources":
                    frame = frame.f_back
                refused += frame is not None
                return sqlite3.SQLITE_OK if frame is None else sqlite3.SQLITE_DENY

            driver.set_authorizer(refuse)
            turn(daemon, lambda: refused >= 3, seconds=30)
            said = Counter(line["event"] for line in logged)
            assert (said["ledger.failed"], said["ledger.recovered_from_failure"]) == (1, 0)

            driver.set_authorizer(None)
            (tmp_path / "drop" / "image").write_bytes(image())
            turn(daemon, lambda: states(config) == {"CONFIRMED": 1})


class Log(list[str]):
    """What was said, by its event."""

    def error(self, event: str, **_: object) -> None:
        self.append(event)

    info = error


BROKEN = LedgerError("the disk failed")


def test_recovery_is_something_written_and_no_failure_for_a_while() -> None:
    log = Log()
    outage = Outage(log, Path("ledger"))
    assert outage.failed(BROKEN, 0.0) == outage.until == 2.0
    assert outage.holds
    outage.passed(2.0, wrote=True)
    assert not outage.holds, "what waits is taken up again"
    outage.failed(BROKEN, 5.0)
    outage.passed(7.0, wrote=False)
    outage.passed(30.0, wrote=False)
    assert log == ["ledger.failed"]

    outage.passed(31.0, wrote=True)
    assert log == ["ledger.failed", "ledger.recovered_from_failure"]
    outage.failed(BROKEN, 40.0)
    outage.passed(101.0, wrote=False)
    assert log == ["ledger.failed", "ledger.recovered_from_failure"] * 2, "with nothing to write it is over, too"


@pytest.mark.parametrize("wrote, ends", [(True, False), (False, True)])
def test_ledger_that_takes_nothing_for_a_minute_ends_the_daemon(wrote: bool, ends: bool) -> None:
    outage = Outage(Log(), Path("ledger"))
    raised = False
    for second in range(0, 90, 5):
        try:
            outage.failed(BROKEN, float(second))
        except LedgerError as error:
            raised = error is BROKEN
            break
        outage.passed(second + 2.0, wrote=wrote)
    assert raised is ends

    outage = Outage(Log(), Path("ledger"))
    for second in range(0, 600, 5):
        outage.failed(LedgerFull("full"), float(second))


def test_ledger_says_whether_a_transaction_wrote_anything(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        with ledger.transaction() as tx:
            moves.drop_candidates(tx, [])
        assert not tx.wrote
        with ledger.transaction() as tx:
            moves.admit(tx, [arrival(1)], now=NOW)
        assert tx.wrote
        with ledger.transaction() as tx:
            pass
        assert not tx.wrote


def test_what_passes_by_itself_is_tried_again_at_once_the_first_time() -> None:
    """A deadlock or an answer that was lost kept a lease of two seconds from being renewed: another took over."""
    outage = Outage(Log(), "ledger.db")

    assert outage.failed(LedgerAway("cut"), 10.0) == pytest.approx(10.2)
    assert outage.failed(LedgerAway("away"), 10.2) == pytest.approx(12.2)
    outage.passed(12.2, wrote=True)
    assert outage.failed(LedgerAway("cut"), 13.0) == pytest.approx(15.0)
    outage.passed(30.0, wrote=True)
    assert outage.failed(LedgerAway("cut"), 40.0) == pytest.approx(40.2)
