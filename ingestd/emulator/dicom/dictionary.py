"""The data dictionary (PS3.6) as the service asks it: tags by name, VRs and keywords by tag."""

from __future__ import annotations

import re
from functools import lru_cache

from pydicom.datadict import (
    dictionary_has_tag,
    dictionary_keyword,
    dictionary_VR,
    repeater_has_tag,
    tag_for_keyword,
)


@lru_cache(maxsize=2048)
def tag_of(name: str) -> int | None:
    """The tag of a keyword (case-sensitive) or of eight hex digits; None where the standard knows no such tag."""
    if not re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        return tag_for_keyword(name)
    tag = int(name, 16)
    return tag if is_private(tag) or dictionary_has_tag(tag) or repeater_has_tag(tag) else None


def is_private(tag: int) -> bool:
    return bool(tag >> 16 & 1)


def is_private_creator(tag: int) -> bool:
    return is_private(tag) and 0x10 <= tag & 0xFFFF <= 0xFF


def tag_text(tag: int) -> str:
    """``(gggg,eeee)``, lowercase, as every message has it."""
    return f"({tag >> 16:04x},{tag & 0xFFFF:04x})"


@lru_cache(maxsize=4096)
def keyword_of(tag: int, default: str = "") -> str:
    """The dictionary's keyword; where there is none, ``default`` or the tag."""
    try:
        return dictionary_keyword(tag) or default or tag_text(tag)
    except KeyError:
        return default or tag_text(tag)


@lru_cache(maxsize=8192)
def vr_of_tag(tag: int) -> str:
    """The VR that an implicit file's element has; private and unknown ones are UN, private creators LO."""
    if is_private(tag):
        return "LO" if is_private_creator(tag) else "UN"
    if tag & 0xFFFF == 0:
        return "UL"
    return dictionary_vr(tag) or "UN"


def dictionary_vr(tag: int) -> str | None:
    """What the dictionary has, perhaps a choice as in ``US or SS``; None where it has nothing."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return None
