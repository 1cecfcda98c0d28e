"""How urgent a line is, for journald, which reads it off the line's front and takes it away (sd-daemon(3))."""

from __future__ import annotations

import os
from typing import IO

_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3}


def goes_to_journal(stream: IO[str] | None) -> bool:
    """Whether what is written to this stream comes to journald as it is (systemd.exec(5), JOURNAL_STREAM)."""
    named = os.environ.get("JOURNAL_STREAM")
    if not named or stream is None:
        return False
    try:
        opened = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return named == f"{opened.st_dev}:{opened.st_ino}"


def marked(text: str, level: str) -> str:
    """Put the priority before each line."""
    return "\n".join(f"<{_PRIORITY[level]}>{line}" for line in text.split("\n"))
