"""The Accept header: the filter of JSON answers (AZURE.md 0.4) and the choice among media types (AZURE.md 2.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import NOT_ACCEPTABLE, Problem

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = rf"(?:{_NAME}|\"(?:[^\"\\]|\\.)*\")"
# One member with the comma behind it; between two commas may be nothing.
_MEMBER = re.compile(rf"\s*(?:({_NAME})/({_NAME})((?:\s*;\s*{_NAME}\s*=\s*{_VALUE})*)\s*)?(?:,|\Z)")
_PARAMETER = re.compile(rf";\s*({_NAME})\s*=\s*({_VALUE})")
_JSON = frozenset({"*/*", "application/*", "application/json", "application/dicom+json"})


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One member of an Accept header; names lowercase, parameter values without quotes."""

    media_type: str
    parameters: dict[str, str]
    quality: float


def parse_accept(header: str | None) -> list[MediaRange]:
    """The members in order; empty if there is no header or one member cannot be parsed, as in ASP.NET's strict list."""
    if header is None:
        return []
    members, at = [], 0
    while at < len(header):
        found = _MEMBER.match(header, at)
        if found is None:
            return []
        at = found.end()
        if found[1] is None:
            continue
        parameters = {
            name.lower(): re.sub(r"\\(.)", r"\1", value[1:-1]) if value[0] == '"' else value
            for name, value in _PARAMETER.findall(found[3])
        }
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            return []
        if not 0 <= quality <= 1:
            return []
        members.append(MediaRange(f"{found[1]}/{found[2]}".lower(), parameters, quality))
    return members


def accepts_json(header: str | None) -> bool:
    return any(member.media_type in _JSON for member in parse_accept(header))


@dataclass(frozen=True, slots=True)
class Representation:
    """What the Accept header settled on: single part or multipart, and in which transfer syntax (``*``: as stored)."""

    multipart: bool
    syntax: str
    media_type: str


@dataclass(frozen=True, slots=True)
class Offer:
    """One row of the table of what a resource can be had as: AZURE.md 2.1."""

    media_type: str
    multipart: bool
    default_syntax: str
    syntaxes: frozenset[str]


def choose(header: str | None, offers: tuple[Offer, ...]) -> Representation:
    """The best offer for an Accept header; raises Problem 406."""
    candidates: list[tuple[float, bool, Representation]] = []
    for member in parse_accept(header):
        chosen = _match(member, offers)
        if chosen is not None and member.quality > 0:
            candidates.append((member.quality, chosen.syntax == "*", chosen))
    if not candidates:
        raise Problem(406, NOT_ACCEPTABLE)
    # At equal quality the original transfer syntax is preferred; otherwise the header's order decides.
    best = max(candidates, key=lambda candidate: candidate[:2])
    return best[2]


def _match(member: MediaRange, offers: tuple[Offer, ...]) -> Representation | None:
    asked = member.parameters.get("transfer-syntax")
    is_multipart = member.media_type == "multipart/related"
    kind = member.parameters.get("type", "").lower() if is_multipart else member.media_type
    if kind == "*/*":
        # Anything at all, in parts or not, means the original, as multipart even for one instance.
        offer = next(offer for offer in offers if offer.multipart)
        syntax = asked or "*"
        return Representation(True, syntax, offer.media_type) if syntax in offer.syntaxes else None
    for offer in offers:
        syntax = asked or offer.default_syntax
        if (is_multipart, kind) == (offer.multipart, offer.media_type) and syntax in offer.syntaxes:
            return Representation(offer.multipart, syntax, offer.media_type)
    return None
