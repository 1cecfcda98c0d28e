"""The tools that tests and benchmarks run ingestd with."""

from __future__ import annotations

import time

import pytest

from tests.running import wait_until


@pytest.mark.parametrize("every, longest", [(0.002, 0.002), (None, 0.05)])
def test_whoever_takes_the_time_looks_at_an_even_pace(monkeypatch: pytest.MonkeyPatch, every, longest):
    """A file that took 26 ms was measured with 36: the last looks at it lay 11 ms apart, those at a start 50 ms."""
    now, slept = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(seconds)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    wait_until(lambda: now >= 1.0, what="a second", every=every)
    monkeypatch.undo()

    assert max(slept) == pytest.approx(longest, rel=0.1)
