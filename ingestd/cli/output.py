"""What commands print: how numbers, instants and foreign text are said, JSON, and where it all goes.

A reader that has gone (``| head -1``) changes nothing of what a command does. What is left to say is thrown away, and
the exit code is what it would have been: else, with ``pipefail``, ``ingestd send F | head -1 && rm -r F`` would remove
what the server never got.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO, TypeVar

import click

T = TypeVar("T")

_MOST_TOLD = 20


class ReaderGone(Exception):
    """Whoever read our output has gone, and there is nothing left to do but write: the command ends, with 0."""


class _Descriptor(io.FileIO):
    """A descriptor that leads nowhere once nobody reads it any more."""

    is_unread = False

    def write(self, data: Any, /) -> int:
        """Write, or throw away."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            self.is_unread = True
            return super().write(data)


def outlive_readers() -> None:
    """Have this process's stdout and stderr outlive whoever reads them."""
    sys.stdout, sys.stderr = _outliving(sys.stdout), _outliving(sys.stderr)


def _outliving(stream: TextIO | None) -> TextIO | None:
    if stream is None:  # it was closed before we began
        return None
    stream.flush()
    raw = _Descriptor(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=stream is sys.stderr or raw.isatty()
    )


def end_if_unread() -> None:
    """Raise ReaderGone where nobody reads stdout any more: for what would go on writing and does nothing else."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Descriptor) and raw.is_unread:
        raise ReaderGone


def print_json(value: object) -> None:
    """Print one JSON document; instants as ISO 8601 in UTC."""
    click.echo(json.dumps(value, indent=2, default=_to_json))


def _to_json(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return str(value)


def counted(count: int, one: str, many: str) -> str:
    """Say how many, with the words for one or for many of it."""
    return f"{count} {one if count == 1 else many}"


def in_files(count: int) -> str:
    return counted(count, "file", "files")


def tell_first(found: Sequence[T], words: Callable[[T], str], *, rest: str = "") -> None:
    """Print a line about each of the first; how many more there are is a number."""
    for each in found[:_MOST_TOLD]:
        click.echo(f"  {words(each)}")
    if len(found) > _MOST_TOLD:
        click.echo(f"  ... and {len(found) - _MOST_TOLD} more{rest}")


def plain(text: object) -> str:
    """Make text from a file name or a server safe to print: no control characters, no lone surrogates."""
    said = str(text)
    if said.isprintable():
        return said
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in said)


def clock(at: datetime) -> str:
    """Say an instant by the clock on the wall here, and how far that is from UTC: ``2026-03-01 08:30:00+01:00``."""
    local = at.astimezone()
    return local.isoformat(sep=" ", timespec="seconds")


def ago(seconds: float) -> str:
    """Say a duration as a person would: ``42 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 days 4 h``."""
    whole = max(0, int(seconds))
    for size, name, below, below_name in ((86400, "day", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            count, rest = whole // size, whole % size // below
            plural = "s" if name == "day" and count > 1 else ""
            return f"{count} {name}{plural}" + (f" {rest} {below_name}" if rest else "")
    return f"{whole} s"


def tried_again(paused_until: datetime | None, at: datetime) -> str:
    """Say when a server that is paused is tried again."""
    left = (paused_until - at).total_seconds() if paused_until else 0
    return f"tried again in {ago(left)}" if left > 0 else "being tried again"


def in_bytes(size: int) -> str:
    """Say a size as a person would: ``1.3 GB``."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
