"""Measure what more gateways on one ledger bring: `python -m tests.benchmarks.bench_gateways [--gateways 2]`.

Files of the same studies lie in as many drop folders as there are gateways; how long do one, and all, take until each
is CONFIRMED? All of it runs on this machine, server included, so that more of them have no more CPU: ``--commit-ms``
has the database wait before each COMMIT is durable, as over a network, and ``--cpu 40`` (root, cgroups) gives each
gateway no more than so many percent of a core, as if it were a machine of its own. The goal of two gateways with one
study, ``--studies 1``, is 1.5 x of one. It judges nothing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingestd.emulator import Emulator
from tests.builders import fresh_uid
from tests.fleet.gateways import Gateways, gateways
from tests.postgres import Cluster, fresh_database

_WITHIN_SECONDS = 600.0
_PERIOD_US = 20_000
# As a server has it that has earned its trust: of a new one the first 1,000 files are fetched and compared.
_RECONCILE = {"interval": "1s", "lag": "2s", "verify": "presence"}


@contextmanager
def _at_work(folder: Path, cluster: Cluster, *, working: int, drops: int, cpu: int) -> Iterator[Gateways]:
    folder.mkdir()
    with (
        Emulator(fsync=False) as server,
        gateways(
            folder, server, fresh_database(cluster), more_drops=drops - 1, lease="60s", reconcile=_RECONCILE
        ) as found,
    ):
        groups = [_CpuShare(f"ingestd-{os.getpid()}-{number}", cpu) for number in range(working)] if cpu else []
        for number in range(working):
            pid = found.start(f"gateway{number}").process.pid
            if groups:
                groups[number].take(pid)
        _wait_divided(found, working)
        yield found
    for group in groups:
        group.remove()


class _CpuShare:
    """A control group that has so many percent of a core (man 7 cgroups; Linux, cpu.max and cpu.cfs_quota_us)."""

    def __init__(self, name: str, percent: int) -> None:
        former = Path("/sys/fs/cgroup/cpu")
        self._folder = (former if former.is_dir() else former.parent) / name
        self._folder.mkdir()
        quota = str(percent * _PERIOD_US // 100)
        if former.is_dir():
            (self._folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (self._folder / "cpu.cfs_quota_us").write_text(quota)
        else:
            (self._folder / "cpu.max").write_text(f"{quota} {_PERIOD_US}")

    def take(self, pid: int) -> None:
        """Have a process and its children, with all that they start, share it."""
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (str(pid), *children):
            (self._folder / "cgroup.procs").write_text(each)

    def remove(self) -> None:
        self._folder.rmdir()


def _wait_divided(found: Gateways, working: int) -> None:
    while True:
        parts = [len(names - {"upkeep"}) for names in found.claims().values()]
        if len(parts) == working and sum(parts) == len(found.drops) and max(parts) - min(parts) <= 1:
            return
        time.sleep(0.1)


def seconds_of(found: Gateways, files: int, studies: int) -> float:
    """Drop so many files into each folder, at once, and say how long it takes until all are CONFIRMED."""
    begun = time.perf_counter()
    for study in [fresh_uid(1) for _ in range(studies)]:
        for drop in found.drops:
            found.feed(files // studies, study=study, drop=drop)
    found.wait_confirmed(within_seconds=_WITHIN_SECONDS)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--files", type=int, default=1000, help="into each drop folder")
    parser.add_argument("--studies", type=int, default=20, help="each in all of the folders")
    parser.add_argument("--commit-ms", type=int, default=0, help="have each COMMIT be durable so many ms later")
    parser.add_argument("--cpu", type=int, default=0, help="percent of a core that each gateway has; 0: all there is")
    parser.add_argument("--folder", type=Path, help="where to work; not on tmpfs, if the figures are to mean anything")
    options = parser.parse_args()
    late = {"commit_delay": str(options.commit_ms * 1000), "commit_siblings": "0"}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with Cluster(folder / "server", settings=late, durable=True) as cluster:
            rates = []
            for working in (1, options.gateways):
                with _at_work(
                    folder / str(working), cluster, working=working, drops=options.gateways, cpu=options.cpu
                ) as found:
                    seconds = seconds_of(found, options.files, options.studies)
                rates.append(options.files * options.gateways / seconds)
                print(f"{working} at work: {rates[-1]:,.0f} files/s")
            print(f"{rates[1] / rates[0]:.2f} x")


if __name__ == "__main__":
    main()
