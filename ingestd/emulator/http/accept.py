"""The Accept header: the filter of JSON answers (AZURE.md 0.4) and the choice among media types (AZURE.md 2.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEMBER = re.compile(rf"\s*({_NAME}|\*)/({_NAME}|\*)((?:\s*;\s*{_NAME}\s*=\s*(?:{_NAME}|\"(?:[^\"\\]|\\.)*\"))*)\s*\Z")
_PARAMETER = re.compile(rf";\s*({_NAME})\s*=\s*({_NAME}|\"(?:[^\"\\]|\\.)*\")")
_JSON = frozenset({"*/*", "application/*", "application/json", "application/dicom+json"})


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One member of an Accept header; names lowercase, parameter values without quotes."""

    media_type: str
    parameters: dict[str, str] = field(default_factory=dict)
    quality: float = 1.0


def parse_accept(header: str | None) -> list[MediaRange]:
    """The members in order; empty if there is no header or one member cannot be parsed, as in ASP.NET's strict list."""
    if header is None:
        return []
    members = []
    for text in _split(header):
        if not text.strip():
            continue
        found = _MEMBER.match(text)
        if found is None:
            return []
        parameters = {
            name.lower(): re.sub(r"\\(.)", r"\1", value[1:-1]) if value[0] == '"' else value
            for name, value in _PARAMETER.findall(found[3])
        }
        quality = _quality(parameters.pop("q", "1"))
        if quality is None:
            return []
        members.append(MediaRange(f"{found[1]}/{found[2]}".lower(), parameters, quality))
    return members


def _quality(text: str) -> float | None:
    try:
        quality = float(text)
    except ValueError:
        return None
    return quality if 0 <= quality <= 1 else None


def _split(header: str) -> Iterable[str]:
    at, quoted, start = 0, False, 0
    while at < len(header):
        character = header[at]
        if character == "\\" and quoted:
            at += 1
        elif character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            yield header[start:at]
            start = at + 1
        at += 1
    yield header[start:]


def accepts_json(header: str | None) -> bool:
    """Whether a DICOM JSON answer is acceptable."""
    return any(member.media_type in _JSON for member in parse_accept(header))
