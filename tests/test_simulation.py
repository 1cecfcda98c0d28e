"""A slice of the simulation: a few seeds, each the same story whenever it is told (``python -m tests.simulation``)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.old_faults import OLD_FAULTS
from tests.simulation.running import simulate

# With how many destinations; the last routes by rules, and one of its two servers is away to the end.
SEEDS = ((1, 1), (2, 1), (7, 2))
FOUND_BY = {"plan": "201", "post": "90"}


@pytest.mark.parametrize("seed, destinations", SEEDS)
def test_every_promise_is_kept_whatever_the_seed_brings(seed: int, destinations: int, tmp_path: Path) -> None:
    outcome = simulate(seed, tmp_path, destinations=destinations)

    assert outcome.violations == [], "\n".join(outcome.trace[-60:])
    assert outcome.files > 0


def test_a_seed_replays_exactly(tmp_path: Path) -> None:
    stories = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        stories.append(simulate(7, tmp_path / name).trace)

    assert stories[0] == stories[1]


def run_seeds(*words: str) -> subprocess.CompletedProcess[str]:
    """Run seeds in a process of its own, in which a seed's story does not depend on how texts hash."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *words],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("fault", sorted(OLD_FAULTS))
def test_an_old_fault_put_back_is_found_and_is_what_was_found(fault: str) -> None:
    # From where each is found at once, as long as the seeds tell these stories; then within 300.
    found = run_seeds("--put-back", fault, "--first", FOUND_BY[fault], "--seeds", "300", "--keep-going", "1")

    failed = re.search(r"^failed: \[(\d+)\]", found.stdout, re.MULTILINE)
    assert (found.returncode, bool(failed)) == (1, True), found.stdout + found.stderr
    assert failed is not None
    assert run_seeds("--seed", failed[1]).returncode == 0
    assert run_seeds("--first", "3", "--seeds", "4").returncode == 0
