"""What the proof costs: small files from the folder to CONFIRMED by change feed, by query, by comparing every copy.

The embedded server answers, in Python and beside ingestd on the same cores: seconds are those of both, and ``CPU`` is
ingestd's alone, its readers included. Against these stands the same way to STORED, with nobody asking. With the default
configuration on a server that is trusted a sample is compared: that one must not halve the line. The server is asked
every second, not every ten, whose length would be most of a short run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingestd.lifecycle import State
from tests.benchmarks.files import make_small
from tests.benchmarks.lines import Line, at_least
from tests.benchmarks.measures import ARRIVED, SETTINGS, Bench, open_ledger, waited_for
from tests.benchmarks.memory import cpu_seconds
from tests.emulating import EmulatorProcess
from tests.running import Site

KEPT = 0.5
UNTIL_TRUSTED = 1_000  # as ``daemon/trust.py`` has it
ASKED = {"interval": "1s", "lag": "60s", "grace": "15m", "absence_wait": "10s", "sample": "1%"}
NOT_ASKED = {**ASKED, "interval": "1h", "verify": "presence"}
NO_FEED = ("not_found=path:/changefeed",)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One way: seconds until all are there, ingestd's CPU, and what was asked of the server, for each file."""

    files: int
    seconds: float
    cpu_ms: float
    requests: float


def confirm_lines(bench: Bench) -> tuple[list[Line], Any]:
    """Take the same files each way once, each with a server of its own."""
    unproven = _proof(bench, NOT_ASKED, "STORED, nobody asks", until=ARRIVED)
    found = {
        "by feed": _proof(bench, {**ASKED, "verify": "presence"}, "by feed"),
        "by query": _proof(bench, {**ASKED, "verify": "presence"}, "by query", faults=NO_FEED),
        "every copy compared": _proof(bench, {**ASKED, "verify": "content"}, "every copy compared"),
        "sample compared": _proof(bench, {**ASKED, "verify": "auto"}, "sample compared", before=UNTIL_TRUSTED),
    }
    lines = [
        Line(
            name=f"folder to CONFIRMED, {way}",
            figure=f"{proof.files / proof.seconds:.0f} files/s, CPU {proof.cpu_ms:.2f} ms and {proof.requests:.2f} "
            f"requests a file ({proof.cpu_ms - unproven.cpu_ms:+.2f} ms over STORED)",
        )
        for way, proof in found.items()
    ]
    sampled = found["sample compared"]
    lines.append(
        at_least(
            "folder to CONFIRMED, sample compared: CPU against folder to STORED",
            unproven.cpu_ms / sampled.cpu_ms,
            KEPT,
            f" ({sampled.cpu_ms:.2f} against {unproven.cpu_ms:.2f} ms a file)",
        )
    )
    return lines, {"STORED": unproven, **found}


def _proof(
    bench: Bench,
    reconcile: Mapping[str, str],
    way: str,
    *,
    until: tuple[State, ...] = (State.CONFIRMED,),
    faults: tuple[str, ...] = (),
    before: int = 0,
) -> Proof:
    with EmulatorProcess(bench._fresh("server"), faults=faults) as server:
        site = Site(bench._fresh("site"), server.url, **{**SETTINGS, "reconcile": reconcile})
        with site.start() as daemon, open_ledger(site) as ledger:
            files = make_small(bench._fresh("staging"), files=before + bench._sizes.small_files, studies=100)
            count = len(files)
            os.sync()
            used, asked, there = cpu_seconds(daemon), 0, 0
            started = time.perf_counter()
            if before:
                there = _some(files.studies, before, site)
                waited_for(ledger, there, State.CONFIRMED)
                used, asked, started = cpu_seconds(daemon), _requests(server), time.perf_counter()
            files.folder.rename(site.drop / "in")
            waited_for(ledger, count, *until)
            seconds, used = time.perf_counter() - started, cpu_seconds(daemon) - used
            asked = _requests(server) - asked
            daemon.terminate(within_seconds=60)
    taken = count - there
    proof = Proof(files=taken, seconds=seconds, cpu_ms=used / taken * 1e3, requests=asked / taken)
    bench._say(f"{way}: {taken / seconds:.0f}/s, CPU {proof.cpu_ms:.2f} ms, {proof.requests:.2f} requests a file")
    return proof


def _some(studies: tuple[tuple[Path, ...], ...], files: int, site: Site) -> int:
    """Drop so many files, in whole studies, before the others; say how many."""
    dropped = 0
    for study in studies:
        if dropped >= files:
            break
        folder = study[0].parent
        folder.rename(site.drop / folder.name)
        dropped += len(study)
    return dropped


def _requests(server: EmulatorProcess) -> int:
    return sum(line["kind"] == "request" for line in server.lines())
