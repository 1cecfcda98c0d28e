"""Looking for a file without being ended by what the kernel says of its folder."""

from __future__ import annotations

from pathlib import Path


def is_gone(path: Path) -> bool:
    """Whether there is surely no such file: "no permission" or "input/output error" do not say so."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
