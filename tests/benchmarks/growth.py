"""What becomes of rate, memory, ``status``, restart and the ledger's size while one ledger grows.

Files come in turns of the same size, each proven by the change feed before the next begins, and nothing is removed: a
turn at the end differs from one at the beginning by what the ledger holds, and by nothing else. The feed is read every
two seconds and five seconds back; what it costs to read a whole minute again and again is not growth.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingestd.ledger import Ledger
from ingestd.lifecycle import State
from tests.benchmarks.feed_server import FeedServer
from tests.benchmarks.files import make_small
from tests.benchmarks.lines import Line, at_least, below
from tests.benchmarks.measures import ARRIVED, SETTINGS, Bench, open_ledger, waited_for
from tests.benchmarks.memory import PeakMemory, cpu_seconds
from tests.running import Daemon, Site

TURN_FILES, TURN_STUDIES = 5_000, 100
LOOKED_AT = (10_000, 100_000, 1_000_000)
# So many turns at each end, at most, are what a rate is the median of.
END_TURNS = 4
STARTS = 3
RECONCILE = {**SETTINGS["reconcile"], "interval": "2s", "lag": "5s"}  # type: ignore[dict-item]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn's files: how many a second to STORED, and what each cost up to its proof."""

    rate: float
    cpu_us: float  # of the daemon and its children
    written_bytes: float  # by the daemon itself: the ledger and its journal


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A ledger of so many files, all of them proven."""

    files: int
    status_seconds: float
    ledger_bytes: float  # a file


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What growing came to."""

    turns: tuple[Turn, ...]
    stages: tuple[Stage, ...]
    status_at_first: float  # of a ledger without a file: what starting the command takes
    peak_bytes: int
    ready_seconds: float

    def ends(self, name: str) -> tuple[float, float]:
        """The first turns' figure, and the last ones': medians."""
        few = max(1, min(END_TURNS, len(self.turns) // 2))
        first, last = (
            statistics.median(getattr(turn, name) for turn in some) for some in (self.turns[:few], self.turns[-few:])
        )
        return first, last


def growth_lines(bench: Bench) -> tuple[list[Line], Any]:
    """Grow one ledger to ``Sizes.growth_files``, and start again on it."""
    found = grow(bench)
    last = found.stages[-1]
    what = f"growth to {last.files:,}"
    first, then = found.ends("rate")
    lines = [
        at_least(f"{what}: rate, last against first", then / first, 0.9, f" ({first:.0f} to {then:.0f} files/s)"),
        Line(name=f"{what}: a file's CPU", figure=_told(found, "cpu_us", "us")),
        Line(name=f"{what}: written for a file", figure=_told(found, "written_bytes", "bytes")),
        below(f"{what}: peak memory", found.peak_bytes / 1e6, 150, "MB"),
        below(f"{what}: restart to READY, median of 3", found.ready_seconds, 2, "s"),
    ]
    for stage in found.stages:
        at = f"{stage.files:,} files"
        over = stage.status_seconds - found.status_at_first
        note = f" ({stage.status_seconds:.2f} s in all)"
        lines.append(below(f"{at}: ingestd status, over an empty ledger's", over, 0.3, "s", note))
        lines.append(below(f"{at}: ledger, proof included", stage.ledger_bytes, 1000, "bytes a file"))
    return lines, found


def _told(found: Growth, name: str, unit: str) -> str:
    first, then = found.ends(name)
    return f"{first:.0f} to {then:.0f} {unit} ({then / first:.2f}x)"


def grow(bench: Bench) -> Growth:
    turns: list[Turn] = []
    stages: list[Stage] = []
    with FeedServer() as server:
        site = Site(bench._fresh("site"), server.url, **{**SETTINGS, "reconcile": RECONCILE})
        with site.start() as daemon, PeakMemory(daemon.pid) as memory, open_ledger(site) as ledger:
            status_at_first = _status_seconds(bench, site)
            last = max(2, bench._sizes.growth_files // TURN_FILES) - 1
            for turn in range(last + 1):
                turns.append(_take_turn(bench, daemon, ledger, turn))
                files = (turn + 1) * TURN_FILES
                if files in LOOKED_AT or turn == last:
                    stages.append(_look(bench, site, files, turns[-1]))
            daemon.terminate(within_seconds=60)
        ready_seconds = statistics.median(_ready_seconds(site) for _ in range(STARTS))
    return Growth(
        turns=tuple(turns),
        stages=tuple(stages),
        status_at_first=status_at_first,
        peak_bytes=memory.peak_bytes,
        ready_seconds=ready_seconds,
    )


def _ready_seconds(site: Site) -> float:
    with site.start(wait=False) as daemon:
        taken = daemon.wait_ready(within_seconds=120)
        daemon.terminate(within_seconds=60)
    return taken


def _take_turn(bench: Bench, daemon: Daemon, ledger: Ledger, turn: int) -> Turn:
    files = make_small(bench._fresh("staging"), files=TURN_FILES, studies=TURN_STUDIES, turn=turn)
    os.sync()
    before = cpu_seconds(daemon), _written_bytes(daemon.pid)
    started = time.perf_counter()
    files.folder.rename(daemon.site.drop / f"in{turn:04d}")
    waited_for(ledger, (turn + 1) * TURN_FILES, *ARRIVED)
    seconds = time.perf_counter() - started
    waited_for(ledger, (turn + 1) * TURN_FILES, State.CONFIRMED, every=0.1)
    after = cpu_seconds(daemon), _written_bytes(daemon.pid)
    cpu, written = (now - then for now, then in zip(after, before, strict=True))
    return Turn(rate=len(files) / seconds, cpu_us=cpu / len(files) * 1e6, written_bytes=written / len(files))


def _look(bench: Bench, site: Site, files: int, turn: Turn) -> Stage:
    stage = Stage(
        files=files,
        status_seconds=_status_seconds(bench, site),
        ledger_bytes=site.ledger_file.stat().st_size / files,
    )
    bench._say(
        f"growth, {files:,}: {turn.rate:.0f}/s, CPU {turn.cpu_us:.0f} us a file, status"
        f" {stage.status_seconds:.2f} s, ledger {stage.ledger_bytes:.0f} bytes a file"
    )
    return stage


def _status_seconds(bench: Bench, site: Site) -> float:
    return bench._command_seconds("status", "-c", str(site.config_file))


def _written_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))
