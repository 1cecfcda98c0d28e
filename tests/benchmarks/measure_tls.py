"""What TLS takes of the rate: CT images over HTTPS, with an authority of our own, and over HTTP, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.lines import Line, at_least
from tests.benchmarks.measures import SETTINGS, Bench
from tests.benchmarks.memory import cpu_seconds
from tests.benchmarks.sink import Certificate, Sink, local_certificate
from tests.running import Site


@dataclass(frozen=True, kw_only=True)
class Run:
    """One delivery: its rate, the CPU time of all of ingestd's processes, and the handshakes that it took."""

    files_per_second: float
    cpu_ms_per_file: float
    handshakes: int
    resumed: int


def tls_lines(bench: Bench) -> tuple[list[Line], Any]:
    folder = bench._fresh("certificates")
    folder.mkdir()
    certificate = local_certificate(folder)
    with Sink(tls=certificate) as sink:
        compiled = sink.kind == "C"  # both of one kind, or the difference would be theirs
    runs: dict[str, list[Run]] = {"plain": [], "tls": []}
    for turn in range(bench._sizes.repeat):
        # Each goes first in every other turn: a machine that becomes slower is slower for both.
        for name in ("plain", "tls") if turn % 2 == 0 else ("tls", "plain"):
            runs[name].append(_run(bench, certificate if name == "tls" else None, compiled=compiled))
        plain, tls = runs["plain"][-1], runs["tls"][-1]
        bench._say(
            f"CT: plain {plain.files_per_second:.0f}/s, TLS {tls.files_per_second:.0f}/s, {tls.handshakes} handshakes"
        )
    kept = [
        tls.files_per_second / plain.files_per_second for plain, tls in zip(runs["plain"], runs["tls"], strict=True)
    ]
    handshakes = max(run.handshakes - run.resumed for run in runs["tls"])
    lines = [
        at_least(
            "CT over TLS: against plain",
            statistics.median(kept),
            0.75,
            f" ({_rate(runs['tls']):.0f} against {_rate(runs['plain']):.0f} files/s)",
        ),
        Line(
            name="CT over TLS: CPU a file, against plain",
            figure=f"{_cpu(runs['tls']):.2f} against {_cpu(runs['plain']):.2f} ms",
        ),
        Line(name="CT over TLS: full handshakes", figure=f"{handshakes} for {bench._sizes.ct_files} files"),
    ]
    return lines, runs


def _rate(runs: Sequence[Run]) -> float:
    return statistics.median(run.files_per_second for run in runs)


def _cpu(runs: Sequence[Run]) -> float:
    return statistics.median(run.cpu_ms_per_file for run in runs)


def _run(bench: Bench, certificate: Certificate | None, *, compiled: bool) -> Run:
    with Sink(tls=certificate, compiled=compiled) as sink:
        server: dict[str, Any] = {"url": sink.url, "auth": "none"}
        if certificate is not None:
            server["tls"] = {"ca_file": str(certificate.authority)}
        site = Site(bench._fresh("site"), sink.url, **SETTINGS, destination=server)
        with site.start() as daemon:
            files = bench._make_ct(bench._fresh("staging"))
            before = cpu_seconds(daemon)
            seconds = bench._deliver(site, files)
            cpu = cpu_seconds(daemon) - before
            daemon.terminate(within_seconds=60)
        found = sink.counts()
        assert found.instances == len(files), "every file was sent once"
    return Run(
        files_per_second=len(files) / seconds,
        cpu_ms_per_file=cpu / len(files) * 1e3,
        handshakes=found.handshakes,
        resumed=found.resumed,
    )
