"""The clock of a worker that is not right: all go by the ledger's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.clocking import MovingClock, requires_compiler
from tests.fleet.gateways import Gateways
from tests.invariants import CLOCK_SLACK
from tests.recounting import at
from tests.running import wait_until

_TIMES = "SELECT at FROM history UNION ALL SELECT started_at FROM attempt UNION ALL SELECT finished_at FROM attempt"


@requires_compiler
@pytest.mark.slow
@pytest.mark.parametrize("hours", [-1, 1])
def test_clock_of_a_worker_that_is_an_hour_off_is_not_gone_by(both: Gateways, tmp_path: Path, hours: int):
    """What it wrote was to wait for an hour, once its clock was right again: less than the longest wait."""
    began_at = datetime.now(UTC)
    clock = MovingClock(tmp_path)
    both.start("a", env=clock.env)
    both.feed(2)
    both.wait_confirmed()
    both.server.faults.add("unavailable", method="POST")

    clock.set(timedelta(hours=hours))
    both.feed(2)
    wait_until(lambda: both.sql("SELECT id FROM attempt WHERE error <> ''"), what="a post that failed")
    clock.set(timedelta(0))
    both.start("b")
    both.server.faults.clear()

    both.wait_confirmed()
    times = [at(microseconds) for (microseconds,) in both.sql(_TIMES)]
    assert began_at - CLOCK_SLACK < min(times)
    assert max(times) < datetime.now(UTC) + CLOCK_SLACK
    assert both.check() == []
