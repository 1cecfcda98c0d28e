"""``python -m tests.benchmarks.ending``: how long ``ingestd send`` goes on after its last post was answered.

    python -m tests.benchmarks.ending                        20,000 small files, three times
    python -m tests.benchmarks.ending --files 2000 --runs 1  to see that it runs

Everything is real: files on the disk, the embedded server in a process of its own, ``ingestd send`` as a person calls
it, with the settings that it has when nothing is configured (`reconcile.verify: auto`: the first 1,000 are fetched
back, then 1 % and one of each study). What is measured is the time from the last answer to a
post (the ledger's last attempt) to the end of the command: in it the change feed is read, each file is proven, and the
command looks back. Exit code 1 when one run takes longer than ``--within``, or does not end with every file CONFIRMED.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.benchmarks.files import make_small
from tests.emulating import EmulatorProcess
from tests.running import PROGRAM, environment


def main() -> int:
    """Measure, tell, and say by the exit code whether every run was within the time."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ending")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--within", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--folder", type=Path, default=None, help="Where to work; 2 GB, on a disk.")
    wanted = parser.parse_args()
    met = [measure(run, wanted) for run in range(1, wanted.runs + 1)]
    return 0 if all(met) else 1


def measure(run: int, wanted: argparse.Namespace) -> bool:
    """Send a fresh set of files to a fresh server and tell how it ended."""
    with tempfile.TemporaryDirectory(prefix="ending-", dir=wanted.folder) as name:
        folder = Path(name)
        make_small(folder / "files", files=wanted.files, studies=wanted.studies)
        with EmulatorProcess(folder / "server") as server:
            (folder / "config.yaml").write_text(
                f"inboxes: [{{path: ./drop}}]\nspool: ./spool\nledger: sqlite:///ledger.db\n"
                f"destination: {{url: {json.dumps(server.url)}, auth: none}}\n"
            )
            (folder / "drop").mkdir()
            began = time.monotonic()
            with (folder / "log").open("wb") as log:
                sent = subprocess.run(
                    [*PROGRAM, "send", "-c", str(folder / "config.yaml"), "--json", str(folder / "files")],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment(),
                    check=False,
                )
            ended_at, seconds = datetime.now(UTC), time.monotonic() - began
        after = (ended_at - last_answer_at(folder / "ledger.db")).total_seconds()
        states = json.loads(sent.stdout)["states"] if sent.stdout else {}
        met = states == {"CONFIRMED": wanted.files} and after <= wanted.within
        print(
            f"run {run}: {wanted.files} files in {seconds:.1f} s, ended {after:.2f} s after the last post "
            f"(asked for: {wanted.within:g} s), {states}: {'met' if met else 'MISSED'}",
            flush=True,
        )
        return met


def last_answer_at(ledger: Path) -> datetime:
    """When the last post was answered, as the ledger has it."""
    with sqlite3.connect(ledger) as connection:
        (microseconds,) = connection.execute("SELECT max(finished_at) FROM attempt").fetchone()
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


if __name__ == "__main__":
    sys.exit(main())
