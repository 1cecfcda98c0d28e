"""Durations and sizes as people write them: ``2s``, ``1h30m``, ``64MB``, ``256MiB``."""

from __future__ import annotations

import re
from datetime import time, timedelta

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_BYTES: dict[str, int] = {"b": 1} | {
    f"{letter}{middle}b": int(base**power)
    for power, letter in enumerate("kmgt", start=1)
    for middle, base in (("", 1000), ("i", 1024))
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern}\s*)+")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b)", re.IGNORECASE)
_TIME = r"([01]\d|2[0-3]):([0-5]\d)"
_HOURS = re.compile(rf"{_TIME}\s*-\s*{_TIME}")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_LONGEST = timedelta(days=36_500)
_LEAST_RATE, _MOST_RATE = 10_000, 1_000_000_000_000


def parse_duration(text: object) -> timedelta:
    """Read a duration with its unit (ms, s, m, h, d, w), or raise ValueError saying what is expected."""
    if isinstance(text, timedelta):
        return text
    if not isinstance(text, str) or not _DURATION.fullmatch(text.strip()):
        raise ValueError("must be a duration with its unit, like 30s, 15m, 24h or 1h30m")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    if seconds > _LONGEST.total_seconds():
        raise ValueError("must be a duration of at most a hundred years")
    return timedelta(seconds=seconds)


def parse_size(text: object) -> int:
    """Read a size with its unit (B, kB, MB, GB, TB; KiB, MiB, GiB, TiB) in bytes, or raise ValueError."""
    if type(text) is int and text >= 0:  # from code; a bare number in a file is refused before (see source.py)
        return text
    found = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found:
        raise ValueError("must be a size with its unit, like 64MB or 256MiB")
    return round(float(found[1]) * _BYTES[found[2].lower()])


def parse_rate(text: object) -> int:
    """Read a size a second (``8MB/s``, ``512KiB/s``) in bytes, or raise ValueError."""
    size, _, second = text.partition("/") if isinstance(text, str) else ("", "", "")
    if second.strip() != "s" or not _SIZE.fullmatch(size.strip()):
        raise ValueError("must be a size a second, like 8MB/s or 512KiB/s")
    if not _LEAST_RATE <= (rate := parse_size(size)) <= _MOST_RATE:
        raise ValueError(f"must be from {format_size(_LEAST_RATE)}/s to {format_size(_MOST_RATE)}/s")
    return rate


def parse_hours(text: object) -> tuple[time, time]:
    """Read two times of the day (``19:00-07:00``), or raise ValueError."""
    found = _HOURS.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found:
        raise ValueError('must be two times of the day, from 00:00 to 23:59, like "19:00-07:00"')
    opens, closes = time(int(found[1]), int(found[2])), time(int(found[3]), int(found[4]))
    if opens == closes:
        raise ValueError("must begin and end at different times; without it, files are sent at any time")
    return opens, closes


class Share(float):
    """A share of one that reads as a percentage."""

    __slots__ = ()

    def __str__(self) -> str:
        """Write it as a configuration has it."""
        return f"{self * 100:g}%"


def parse_share(text: object) -> Share:
    """Read a percentage (``1%``, ``0.5%``), or raise ValueError."""
    if isinstance(text, Share):
        return text
    found = _SHARE.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found or float(found[1]) > 100:
        raise ValueError("must be a percentage from 0% to 100%, like 1%")
    return Share(float(found[1]) / 100)


def format_size(value: int) -> str:
    """Write a size as a configuration would have it: the largest unit that leaves no fraction."""
    names = {name: size for name, size in _BYTES.items() if size > 1}
    for name, size in sorted(names.items(), key=lambda pair: -pair[1]):
        if value >= size and value % size == 0:
            letter = "k" if name == "kb" else name[0].upper()
            return f"{value // size}{letter}{name[1:-1]}B"
    return f"{value}B"
