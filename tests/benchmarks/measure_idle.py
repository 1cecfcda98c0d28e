"""What a daemon costs that has nothing to do: 1, 10 and 100 inboxes that have 100,000 quiet folders in all.

Inboxes are scanned by the clock, large ones seldom. So the CPU is that of a minute, and for as long as it takes until
each inbox was scanned once more: a scan is in every figure.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingestd.ledger import Ledger, queries
from tests.benchmarks.files import make_one
from tests.benchmarks.lines import Line, below
from tests.benchmarks.measures import ARRIVED, SETTINGS, Bench, Sizes, open_ledger, waited_for
from tests.benchmarks.memory import cpu_seconds, pss_bytes
from tests.benchmarks.sink import Sink
from tests.running import Daemon, Site, wait_until

INBOXES = (1, 10, 100)
FOLDERS, QUICK_FOLDERS = 100_000, 5_000
BESIDE_EACH_OTHER = 100  # folders in one; the tree is two deep
# For what the start, the scan behind the last observer, and the one file that was delivered left to do, and until that
# scan was reported: a minute later, or it would count as another one.
REST_SECONDS = 90.0
LEAST_SECONDS = 60.0
ROUND_MOST_SECONDS = 1_200.0


@dataclass(frozen=True, kw_only=True)
class Idle:
    """A daemon at rest: CPU of all its processes as a share of one core, and how often their threads woke."""

    inboxes: int
    folders: int
    ready_seconds: float
    seconds: float
    cpu_share: float
    wakes_per_second: float
    pss_bytes: int


def idle_lines(bench: Bench) -> tuple[list[Line], Any]:
    is_quick = bench._sizes.backlog_files < Sizes.backlog_files
    found = [_at_rest(bench, 1, QUICK_FOLDERS)] if is_quick else [_at_rest(bench, each, FOLDERS) for each in INBOXES]
    return [line for idle in found for line in _lines(idle)], found


def _lines(idle: Idle) -> Iterator[Line]:
    name = f"idle, {idle.inboxes} inbox{'es' * (idle.inboxes > 1)}"
    note = f" ({idle.folders} folders, {idle.wakes_per_second:.1f} wakes/s, {idle.pss_bytes / 1e6:.0f} MB)"
    yield below(f"{name}: of a core", 100 * idle.cpu_share, 0.5, "%", note)
    yield Line(name=f"{name}: start to READY", figure=f"{idle.ready_seconds:.1f} s")


def _at_rest(bench: Bench, inboxes: int, folders: int) -> Idle:
    with Sink() as sink:
        roots = [f"./in{number:02d}" for number in range(inboxes)]
        several = [{**SETTINGS["inboxes"][0], "path": root, "name": root[2:]} for root in roots]
        site = Site(bench._fresh("site"), sink.url, **{**SETTINGS, "inboxes": several})
        for root in roots:
            _make_tree(site.folder / root, folders // inboxes)
        os.sync()
        with site.start(wait=False) as daemon, ExitStack() as opened:
            ready_seconds = daemon.wait_ready(within_seconds=300)
            ledger = opened.enter_context(open_ledger(site))
            make_one(site.folder / roots[0] / "lone", number=0)
            waited_for(ledger, 1, *ARRIVED)
            wait_until(
                lambda: all(inbox.watching.startswith("events") for inbox in queries.status(ledger).inboxes),
                what="an observer of each inbox",
                within_seconds=300,
            )
            time.sleep(REST_SECONDS)
            began_at, before, scans = time.monotonic(), _spent(daemon), _scans(ledger)
            time.sleep(LEAST_SECONDS)
            wait_until(
                lambda: all(now > then for now, then in zip(_scans(ledger), scans, strict=True)),
                what="another scan of each inbox",
                within_seconds=ROUND_MOST_SECONDS,
                every=5.0,
            )
            seconds, after = time.monotonic() - began_at, _spent(daemon)
            memory = sum(map(pss_bytes, [daemon.pid, *daemon.children()]))
            daemon.terminate(within_seconds=60)
    idle = Idle(
        inboxes=inboxes,
        folders=folders,
        ready_seconds=ready_seconds,
        seconds=seconds,
        cpu_share=(after[0] - before[0]) / seconds,
        wakes_per_second=(after[1] - before[1]) / seconds,
        pss_bytes=memory,
    )
    bench._say(f"{inboxes} inboxes at rest: {100 * idle.cpu_share:.2f} % of a core over {seconds:.0f} s")
    return idle


def _make_tree(root: Path, folders: int) -> None:
    for number in range(0, folders, BESIDE_EACH_OTHER):
        above = root / f"{number:06d}"
        above.mkdir(parents=True)
        for below_it in range(min(BESIDE_EACH_OTHER, folders - number) - 1):
            (above / f"{below_it:02d}").mkdir()


def _scans(ledger: Ledger) -> list[int]:
    """How often each inbox was scanned, as far as its daemon has reported."""
    return [inbox.counts.get("scans", 0) for inbox in queries.status(ledger).inboxes]


def _spent(daemon: Daemon) -> tuple[float, int]:
    """CPU seconds of all processes of a daemon, and how often a thread of theirs began to wait."""
    waits = 0
    for pid in (daemon.pid, *daemon.children()):
        for task in Path(f"/proc/{pid}/task").iterdir():
            told = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
            waits += int(told["voluntary_ctxt_switches"])
    return cpu_seconds(daemon), waits
