"""``python -m tests.torture``: kill ingestd (--kills), or have system calls fail (--faults); 1: a broken promise."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.torture.failing import FaultCampaign, NoCompilerError
from tests.torture.fleet import FleetCampaign
from tests.torture.killing import Campaign
from tests.torture.servers import one_server, two_servers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--kills", type=int, default=200, help="how often to kill, at least (200)")
    what.add_argument("--faults", type=int, default=0, help="in how many runs to have a system call fail (needs gcc)")
    parser.add_argument(
        "--two",
        choices=("archive", "research"),
        help="with --kills: deliver to two servers, of which this is away twice",
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="with --kills: strike so many workers on one PostgreSQL ledger"
    )
    parser.add_argument("--files", type=int, default=0, help="with --kills: write so many files, at least")
    parser.add_argument("--away", type=float, default=60.0, help="with --two: for so many seconds each time (60)")
    parser.add_argument("--seconds", type=float, default=0.0, help="with --faults: begin no run after so long")
    parser.add_argument("--seed", type=int, default=0, help="what chance starts from (0: the time)")
    parser.add_argument("--folder", type=Path, help="work here and leave everything behind (a temporary folder)")
    parser.add_argument("--quiet", action="store_true", help="only the report")
    chosen = parser.parse_args()
    if chosen.folder:
        chosen.folder.mkdir(parents=True, exist_ok=True)
        return _torture(chosen, chosen.folder)
    with tempfile.TemporaryDirectory(prefix="ingestd-torture-", dir="/var/tmp") as name:
        return _torture(chosen, Path(name))


def _torture(chosen: argparse.Namespace, folder: Path) -> int:
    seed = chosen.seed or int(time.time()) % 1_000_000
    say = (lambda _: None) if chosen.quiet else (lambda text: print(text, flush=True))
    if chosen.workers:
        fleet = FleetCampaign(folder, workers=chosen.workers, strikes=chosen.kills, seed=seed, say=say).run()
        print(fleet)
        return 1 if fleet.violations else 0
    if not chosen.faults:
        targets = partial(two_servers, away=chosen.two, seconds=chosen.away) if chosen.two else one_server
        report = Campaign(folder, kills=chosen.kills, seed=seed, say=say, targets=targets, files=chosen.files).run()
        print(report)
        return 1 if report.findings.violations else 0
    try:
        faults = FaultCampaign(folder, trials=chosen.faults, seed=seed, seconds=chosen.seconds, say=say).run()
    except NoCompilerError as error:
        print(error, file=sys.stderr)
        return 2
    print(faults)
    return 1 if faults.violations else 0


if __name__ == "__main__":
    sys.exit(main())
