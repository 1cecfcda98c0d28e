"""The lines of the report, and how a figure is held against what was asked for."""

from __future__ import annotations

from dataclasses import dataclass


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
