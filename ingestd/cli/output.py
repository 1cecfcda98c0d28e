"""Where the commands' words go: a reader that has gone (``| head -1``) changes nothing of what a command does.

What is left to say is thrown away, and the exit code is what it would have been: else, with ``pipefail``,
``ingestd send F | head -1 && rm -r F`` would remove what the server never got.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


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
