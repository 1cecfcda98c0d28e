"""What a client names and sends: attributes by keyword or number, bodies as JSON."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from pydicom.datadict import dictionary_has_tag, repeater_has_tag, tag_for_keyword

from .call import Call
from .errors import SYNTAX, Problem


@lru_cache(maxsize=2048)
def tag_of(name: str) -> int | None:
    """The tag of a keyword (case-sensitive) or of eight hex digits; None where the standard knows no such tag."""
    if not re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        return tag_for_keyword(name)
    tag = int(name, 16)
    is_private = bool(tag >> 16 & 1)
    return tag if is_private or dictionary_has_tag(tag) or repeater_has_tag(tag) else None


def json_of(call: Call) -> Any:
    """The request body as JSON; raises Problem 400 and, without a content type, 415."""
    if call.header("content-type") is None:
        raise Problem(415)
    try:
        return json.loads(call.body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, SYNTAX) from error
