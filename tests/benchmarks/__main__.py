"""``python -m tests.benchmarks``: what ingestd's speed and memory come to, in one run on one machine.

    python -m tests.benchmarks              everything; takes an hour, half of it idle, and 12 GB of disk
    python -m tests.benchmarks --quick      the same with less of everything, to see that it runs
    python -m tests.benchmarks --only ct,small --json figures.json
    python -m tests.benchmarks --only growth --growth 1000000     a quarter of an hour and 14 GB

The daemon runs as shipped: every file is walked, hashed, made durable and recorded. It delivers to a null sink, which
reads at full speed and keeps nothing, so that what is measured is this side. What a user would do instead is measured
beside it: Orthanc receiving the same files and forwarding them by STOW to the same sink, and the loop of the DICOM
service's own tutorial. Settle time and quiet period are 100 ms, and are part of every figure but the lone file's.

The files lie on the disk (sync) when each clock starts; what is written and made durable after that counts. So the
working folder must lie on a disk: fsync on tmpfs costs nothing, and the figures would flatter. Exit code 1 when a
target is missed, 2 when it could not run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.growth import growth_lines
from tests.benchmarks.lines import Line, at_least, below, rate_lines
from tests.benchmarks.measure_confirm import confirm_lines
from tests.benchmarks.measure_idle import idle_lines
from tests.benchmarks.measure_send import send_lines
from tests.benchmarks.measure_sustained import sustained_lines
from tests.benchmarks.measure_tls import tls_lines
from tests.benchmarks.measures import QUICK_SIZES, Bench, Sizes
from tests.benchmarks.sink import Sink
from tests.orthanc import why_no_orthanc
from tests.running import filesystem_of

IN_MEMORY = {"tmpfs", "ramfs"}
NEEDED_BYTES = 14_000_000_000


def ct_lines(bench: Bench) -> tuple[list[Line], Any]:
    rates = bench.ct()
    return rate_lines("CT", rates, chain=4.0, loop=1.0), rates


def small_lines(bench: Bench) -> tuple[list[Line], Any]:
    rates = bench.small()
    return rate_lines("small", rates, chain=5.0, loop=1.0), rates


def second_lines(bench: Bench) -> tuple[list[Line], Any]:
    found = {"small": bench.second_small(), "CT": bench.second_ct()}
    lines = [
        at_least(
            f"two destinations, {kind}: against one",
            each.kept,
            0.65,
            f" ({each.two:.0f} against {each.one:.0f} files/s)",
        )
        for kind, each in found.items()
    ]
    return lines, found


def slow_lines(bench: Bench) -> tuple[list[Line], Any]:
    small, ct = bench.slow_server()
    lines = [
        at_least(
            "50 ms server, small: against one file, one POST",
            small.ingestd / small.tutorial,
            40.0,
            f" ({small.ingestd:.0f} against {small.tutorial:.1f} files/s)",
        ),
        Line(
            name="50 ms server, CT: against one file, one POST",
            figure=f"{ct.ingestd / ct.tutorial:.1f}x ({ct.ingestd:.0f} against {ct.tutorial:.1f} files/s)",
        ),
    ]
    return lines, {"small": small, "ct": ct}


def multiframe_lines(bench: Bench) -> tuple[list[Line], Any]:
    peak = bench.multiframe()
    note = f" ({peak.processes} processes, {peak.seconds:.1f} s)"
    return [below("one 2 GB file: peak memory", peak.peak_bytes / 1e6, 200, "MB", note)], peak


def backlog_lines(bench: Bench) -> tuple[list[Line], Any]:
    found = bench.backlog()
    lines = [
        below(
            "backlog, server away: peak memory",
            found.admission.peak_bytes / 1e6,
            200,
            "MB",
            f" (admitted in {found.admission.seconds:.1f} s)",
        ),
        below(
            "backlog, server back: peak memory",
            found.delivery.peak_bytes / 1e6,
            200,
            "MB",
            f" (delivered in {found.delivery.seconds:.1f} s)",
        ),
        below("backlog waiting: restart to READY", found.ready_seconds, 3, "s"),
        below("backlog waiting: ingestd status", found.status_seconds, 0.6, "s"),
    ]
    return lines, found


def lone_lines(bench: Bench) -> tuple[list[Line], Any]:
    latency = bench.lone()
    return [below("lone file", latency.median * 1e3, 100, "ms", f" (worst {latency.worst * 1e3:.0f} ms)")], latency


def help_lines(bench: Bench) -> tuple[list[Line], Any]:
    seconds = bench.help_seconds()
    return [below("ingestd --help", seconds, 0.2, "s")], {"seconds": seconds}


MEASUREMENTS: dict[str, Callable[[Bench], tuple[list[Line], Any]]] = {
    "help": help_lines,
    "lone": lone_lines,
    "send": send_lines,
    "confirm": confirm_lines,
    "ct": ct_lines,
    "small": small_lines,
    "second": second_lines,
    "slow": slow_lines,
    "tls": tls_lines,
    "multiframe": multiframe_lines,
    "backlog": backlog_lines,
    "sustained": sustained_lines,
    "growth": growth_lines,
    "idle": idle_lines,
}


def print_lines(lines: Sequence[Line]) -> None:
    width = max(len(line.name) for line in lines)
    figures = max(len(line.figure) for line in lines)
    for line in lines:
        verdict = {None: "", True: "met", False: "MISSED"}[line.met]
        print(f"{line.name:<{width}}  {line.figure:<{figures}}  {line.target:<10} {verdict}".rstrip(), flush=True)


def why_not_here(folder: Path, sizes: Sizes) -> str:
    """Say why this folder will not do; empty when it will."""
    kind = filesystem_of(folder)
    if kind in IN_MEMORY:
        return f"{folder} lies on {kind}, where fsync costs nothing; give a folder on a disk with --folder"
    room = os.statvfs(folder)
    if sizes == Sizes() and room.f_bavail * room.f_frsize < NEEDED_BYTES:
        return f"{folder} has less than {NEEDED_BYTES / 1e9:.0f} GB free"
    return ""


def about_this_machine(folder: Path) -> dict[str, Any]:
    with Sink() as sink:
        kind = sink.kind
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "filesystem": filesystem_of(folder),
        "sink": kind,
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less of everything, once: to see that it runs")
    parser.add_argument("--only", default="", help=f"some of {','.join(MEASUREMENTS)}")
    parser.add_argument("--repeat", type=int, default=0, help="repetitions of the rates; the median counts (3)")
    parser.add_argument("--growth", type=int, default=0, help="how far growth goes, in files (100,000)")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="where to work; must lie on a disk")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    chosen = parser.parse_args()
    wanted = [name for name in chosen.only.split(",") if name] or list(MEASUREMENTS)
    if unknown := set(wanted) - set(MEASUREMENTS):
        parser.error(f"there is no measurement {', '.join(sorted(unknown))}")
    sizes = QUICK_SIZES if chosen.quick else Sizes()
    if chosen.repeat:
        sizes = dataclasses.replace(sizes, repeat=chosen.repeat)
    if chosen.growth:
        sizes = dataclasses.replace(sizes, growth_files=chosen.growth)
    if reason := why_not_here(chosen.folder, sizes):
        print(reason, file=sys.stderr)
        return 2

    with tempfile.TemporaryDirectory(prefix="ingestd-benchmark-", dir=chosen.folder) as name:
        folder = Path(name)
        machine = about_this_machine(folder)
        print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
        if machine["load"] > 0.5:
            print("this machine is busy: the figures will not be its own", file=sys.stderr)
        if missing := why_no_orthanc():
            print(missing, file=sys.stderr)
        bench = Bench(folder, sizes, say=lambda text: print(f"  {text}", flush=True), orthanc=not missing)
        lines: list[Line] = []
        figures: dict[str, Any] = {}
        for measurement in wanted:
            more, found = MEASUREMENTS[measurement](bench)
            lines += more
            figures[measurement] = found
    print()
    print_lines(lines)
    if chosen.json:
        report = {"machine": machine, "figures": figures, "lines": [dataclasses.asdict(line) for line in lines]}
        chosen.json.write_text(json.dumps(report, indent=1, default=vars) + "\n")
    return 1 if any(line.met is False for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
