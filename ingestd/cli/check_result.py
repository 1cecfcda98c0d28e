"""What one look of ``ingestd check`` found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .asker import become, user_name
from .common import ExitCode


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """What one look found: fine, worth a note, or to be mended; and how."""

    name: str
    result: Literal["ok", "note", "bad"]
    text: str
    advice: str = ""
    code: ExitCode = ExitCode.CONFIGURATION
    destination: str = ""  # whose it is, where there are several

    @property
    def blocks(self) -> bool:
        """Whether ingestd cannot start with it; with any other problem the daemon starts and says so in its status."""
        return self.result == "bad" and self.name in {"user", "daemon", "inboxes", "spool", "ledger"}

    def as_plain(self) -> dict[str, Any]:
        found = {"name": self.name, "result": self.result, "text": self.text, "advice": self.advice or None}
        return found | ({"destination": self.destination} if self.destination else {})


def ok(name: str, text: str) -> CheckResult:
    return CheckResult(name=name, result="ok", text=text)


def note(name: str, text: str, advice: str = "") -> CheckResult:
    return CheckResult(name=name, result="note", text=text, advice=advice)


def bad(name: str, text: str, advice: str = "", *, code: ExitCode = ExitCode.CONFIGURATION) -> CheckResult:
    return CheckResult(name=name, result="bad", text=text, advice=advice, code=code)


def no_permission(name: str, path: str | Path) -> CheckResult:
    # A drop folder belongs to whoever delivers: its owner is not the user to become.
    opened = f"give {user_name()} the right to read it and to write in it (a shared group, setfacl or chown)"
    advice = opened if name == "inbox" else become(path)
    return bad(name, f"no permission for {path}", advice, code=ExitCode.NO_PERMISSION)


def nearest(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())
