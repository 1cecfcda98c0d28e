"""The lines of the report, and how a figure is held against what was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from tests.benchmarks.measures import Rates


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the report; ``met`` is None where nothing was asked for."""

    name: str
    figure: str
    target: str = ""
    met: bool | None = None


def at_least(name: str, value: float | None, target: float, note: str = "") -> Line:
    """A ratio that must not be smaller."""
    if value is None:
        return Line(name=name, figure="not measured: Orthanc is not installed", target=f">= {target:g}x")
    return Line(name=name, figure=f"{value:.2f}x{note}", target=f">= {target:g}x", met=value >= target)


def below(name: str, value: float, target: float, unit: str, note: str = "") -> Line:
    """A figure that must stay under its target."""
    return Line(name=name, figure=f"{value:.4g} {unit}{note}", target=f"< {target:g} {unit}", met=value < target)


def rate_lines(kind: str, rates: Rates, *, chain: float, loop: float) -> list[Line]:
    """A rate, and what it must come to against Orthanc receiving and forwarding and against the tutorial's loop."""
    return [
        Line(
            name=f"{kind}: folder to STORED",
            figure=f"{rates.ingestd:.0f} files/s, {rates.ingestd * rates.size_bytes / rates.files / 1e6:.0f} MB/s",
        ),
        at_least(
            f"{kind}: against Orthanc receiving and forwarding",
            rates.ingestd / rates.orthanc if rates.orthanc else None,
            chain,
            f" ({rates.orthanc:.0f} files/s)" if rates.orthanc else "",
        ),
        at_least(
            f"{kind}: against the tutorial's loop",
            rates.ingestd / rates.tutorial,
            loop,
            f" ({rates.tutorial:.0f} files/s)",
        ),
    ]
