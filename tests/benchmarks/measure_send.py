"""``ingestd send`` of a study to CONFIRMED, beside a plain client (``plain_client``) that posts it and proves nothing.

Each is timed from the start of its process to its end, with byte code that is compiled already, as an installation has
it. The embedded server serves both, and has a good part of the time of either. The first ``send`` of an installation
makes the ledger and compares every copy, until a thousand have matched; what is held against the plain client is one
after that, which compares the usual sample.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.files import make_ct, make_small
from tests.benchmarks.lines import Line, at_least
from tests.benchmarks.measures import Bench
from tests.emulating import EmulatorProcess
from tests.running import PROGRAM, PROJECT, Site, environment

FILES = 64
UNTIL_TRUSTED = 1_000  # as ``daemon/trust.py`` has it
TARGET = 0.8
# As a new installation has it: what the tests hurry is put back.
CONFIGURATION: Mapping[str, Mapping[str, Any]] = {
    "batch": {"quiet_period": "10s", "max_wait": "10m"},
    "retry": {"base": "5s", "cap": "15m"},
    "reconcile": {"interval": "10s", "lag": "60s", "grace": "15m", "absence_wait": "10s"},
    "shutdown_grace": "30s",
}


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a command took, its child processes included."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class Send:
    """The same files three ways; medians."""

    plain: Taken
    ingestd: Taken
    first: Taken


def send_lines(bench: Bench) -> tuple[list[Line], Any]:
    """Send a study, first in a new installation and then in one that knows its server."""
    turns = [_turn(bench) for _ in range(bench._sizes.repeat)]
    found = Send(
        plain=_median([turn.plain for turn in turns]),
        ingestd=_median([turn.ingestd for turn in turns]),
        first=_median([turn.first for turn in turns]),
    )
    ours, plain, first = found.ingestd, found.plain, found.first
    cpu = f"CPU {ours.cpu_seconds:.2f} against {plain.cpu_seconds:.2f} s"
    note = f" ({ours.seconds:.2f} against {plain.seconds:.2f} s; {cpu})"
    lines = [
        at_least(f"send {FILES} CT to CONFIRMED: against a plain client", plain.seconds / ours.seconds, TARGET, note),
        Line(
            name=f"send {FILES} CT to CONFIRMED: the first of a new installation",
            figure=f"{first.seconds:.2f} s, CPU {first.cpu_seconds:.2f} s",
        ),
    ]
    return lines, found


def _turn(bench: Bench) -> Send:
    files = make_ct(bench._fresh("sent"), files=3 * FILES, studies=3)
    first, plain, ours = (study[0].parent for study in files.studies)
    before = make_small(bench._fresh("before"), files=UNTIL_TRUSTED, studies=4)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "ingestd"], check=True, cwd=PROJECT)
    with EmulatorProcess(bench._fresh("server")) as server:
        site = Site(bench._fresh("site"), server.url, **CONFIGURATION)

        def send(folder: Path) -> Taken:
            return _taken([*PROGRAM, "send", str(folder), "-c", str(site.config_file)])

        found_first = send(first)
        send(before.folder)
        found = Send(
            plain=_taken([sys.executable, "-m", "tests.benchmarks.plain_client", server.url, str(plain)]),
            ingestd=send(ours),
            first=found_first,
        )
        states = site.states()
    if states != {"CONFIRMED": 2 * FILES + UNTIL_TRUSTED}:
        raise RuntimeError(f"send left {states}")
    bench._say(f"send: ingestd {found.ingestd.seconds:.2f} s, plain client {found.plain.seconds:.2f} s")
    return found


def _taken(command: Sequence[str]) -> Taken:
    before, started = _cpu_seconds(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment(), cwd=PROJECT)
    return Taken(seconds=time.perf_counter() - started, cpu_seconds=_cpu_seconds() - before)


def _cpu_seconds() -> float:
    """CPU of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _median(taken: Sequence[Taken]) -> Taken:
    return Taken(
        seconds=statistics.median(each.seconds for each in taken),
        cpu_seconds=statistics.median(each.cpu_seconds for each in taken),
    )
