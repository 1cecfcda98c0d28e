"""A slice of the simulation: a few seeds, each the same story whenever it is told (``python -m tests.simulation``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.running import simulate

SEEDS = (1, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_promise_is_kept_whatever_the_seed_brings(seed: int, tmp_path: Path) -> None:
    outcome = simulate(seed, tmp_path)

    assert outcome.violations == [], "\n".join(outcome.trace[-60:])
    assert outcome.files > 0


def test_a_seed_replays_exactly(tmp_path: Path) -> None:
    stories = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        stories.append(simulate(7, tmp_path / name).trace)

    assert stories[0] == stories[1]
