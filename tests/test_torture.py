"""A slice of the torture program: fifty kills, at least five in each phase (``python -m tests.torture`` does more)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.killing import LEAST_PER_PHASE, Campaign, Phase

KILLS = 50


@pytest.mark.slow
def test_killed_fifty_times_nothing_is_lost_nothing_confirmed_falsely_nothing_sent_again_unexplained(tmp_path: Path):
    report = Campaign(tmp_path, kills=KILLS, seed=1451).run()

    print(report)
    assert report.findings.violations == []
    assert report.kills >= KILLS
    assert {phase: count for phase, count in report.by_phase.items() if count < LEAST_PER_PHASE} == {}
    assert set(report.by_phase) == set(Phase)
