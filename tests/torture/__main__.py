"""``python -m tests.torture --kills N --seed S``: kill ingestd N times; exit code 1 on a broken promise."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.torture.killing import Campaign


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how often to kill, at least (200)")
    parser.add_argument("--seed", type=int, default=0, help="what chance starts from (0: the time)")
    parser.add_argument("--folder", type=Path, help="work here and leave everything behind (a temporary folder)")
    parser.add_argument("--quiet", action="store_true", help="only the report")
    chosen = parser.parse_args()
    seed = chosen.seed or int(time.time()) % 1_000_000
    say = (lambda _: None) if chosen.quiet else (lambda text: print(text, flush=True))
    if chosen.folder:
        report = Campaign(chosen.folder, kills=chosen.kills, seed=seed, say=say).run()
    else:
        with tempfile.TemporaryDirectory(prefix="ingestd-torture-", dir="/var/tmp") as name:
            report = Campaign(Path(name), kills=chosen.kills, seed=seed, say=say).run()
    print(report)
    return 1 if report.findings.violations else 0


if __name__ == "__main__":
    sys.exit(main())
