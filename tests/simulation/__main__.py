"""``python -m tests.simulation``: the whole daemon in one thread, by a seed; 1: a promise was broken.

``--seed 7`` replays one seed and prints all that happened; ``--seeds 10000`` runs that many, ``--seconds 60`` as many
as there is time for. One in four has two destinations; ``--destinations 2`` gives them to all. A seed that fails is
printed with the end of its story, and the run goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

from tests.simulation.old_faults import OLD_FAULTS
from tests.simulation.running import Outcome, simulate

MEMORY = Path("/dev/shm")
TAIL = 60


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="replay this one, and print its whole story")
    parser.add_argument("--seeds", type=int, default=0, help="run so many")
    parser.add_argument("--seconds", type=float, default=0.0, help="run as many as there is time for (60)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (1)")
    parser.add_argument("--destinations", type=int, choices=(1, 2), default=0, help="so many, whatever the seed says")
    parser.add_argument("--keep-going", type=int, default=5, help="stop after so many that failed (5)")
    parser.add_argument("--put-back", choices=sorted(OLD_FAULTS), help="with this old fault, which is to be found")
    chosen = parser.parse_args()
    with OLD_FAULTS[chosen.put_back]() if chosen.put_back else nullcontext():
        return _run(chosen)


def _run(chosen: argparse.Namespace) -> int:
    if chosen.seed is not None:
        outcome = run(chosen.seed, chosen.destinations)
        print("\n".join(outcome.trace))
        return 1 if outcome.violations else 0
    seconds = chosen.seconds or (0.0 if chosen.seeds else 60.0)
    return _run_many(chosen, seconds)


def run(seed: int, destinations: int = 0) -> Outcome:
    """Run one seed in a folder of its own, in memory where there is such a one."""
    memory = MEMORY if MEMORY.is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="ingestd-sim-", dir=memory) as name,
        tempfile.TemporaryDirectory(prefix="ingestd-sim-", dir="/var/tmp") as elsewhere,
    ):
        return simulate(seed, Path(name), Path(elsewhere), destinations=destinations)


def _run_many(chosen: argparse.Namespace, seconds: float) -> int:
    first, seeds, most_failed = chosen.first, chosen.seeds, chosen.keep_going
    began, seed, failed = time.monotonic(), first, []
    sums: Counter[str] = Counter()
    while (not seeds or seed < first + seeds) and (not seconds or time.monotonic() - began < seconds):
        outcome = run(seed, chosen.destinations)
        sums.update(files=outcome.files, posts=outcome.posts, ticks=outcome.ticks, deaths=outcome.deaths)
        if outcome.violations:
            failed.append(seed)
            print(f"seed {seed} fails; its story ends so:", *outcome.trace[-TAIL:], sep="\n", flush=True)
            if len(failed) >= most_failed:
                break
        seed += 1
        if (seed - first) % 500 == 0:
            print(f"{seed - first} seeds in {time.monotonic() - began:.0f} s, failed: {failed}", flush=True)
    took = time.monotonic() - began
    ran = seed - first + (1 if failed and len(failed) >= most_failed else 0)
    print(f"{ran} seeds in {took:.0f} s: {', '.join(f'{name} {count}' for name, count in sums.items())}")
    if failed:
        several = f" --destinations {chosen.destinations}" if chosen.destinations else ""
        print(f"failed: {failed}; replay one with `python -m tests.simulation --seed {failed[0]}{several}`")
    return 1 if failed else 0


if __name__ == "__main__":
    # Sets of texts have the order of their hashes, which are others in each process unless they are told not to be.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
