"""Which keys may stand in a log line, and the shape that each one's value must have."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from typing import Literal

WITHHELD = "<withheld>"
LONGEST_VALUE = 160
MOST_ITEMS = 12

_EVENT = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}|SIG[A-Z0-9]{2,6}|[A-Z][A-Za-z]{0,40}Warning")
_STATES = frozenset(
    {
        *("PENDING", "SENDING", "UNCERTAIN", "STORED", "CONFIRMED"),
        *("FAILED", "REJECTED", "UNROUTED", "DUPLICATE", "CONFLICT", "DELETED", "DISCARDED"),
    }
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,31}-[0-9a-f]{8}")  # config.Inbox.spool_name
_CHOSEN = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")  # a name that the configuration gives a destination
_MODULE = re.compile(r"[a-z_][A-Za-z0-9_.]{0,80}")
_PLACE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,80}:\d{1,7}|[a-z][a-z0-9_.]{0,63}")
_VERSION = re.compile(r"\d{1,4}(\.\d{1,4}){1,3}([a-z]{1,4}\d{1,4})?")
_CONFIG = re.compile(r"(/[A-Za-z0-9_.+-]{1,64}){1,16}\.ya?ml")
_UID = re.compile(r"[0-9.]{1,64}")
_REF = re.compile(r"[0-9a-f]{12}")

Shape = Literal[
    "event", "number", "sentence", "word", "name", "study", "module", "version", "numbers", "words", "config", "chosen"
]

_PATTERNS: Mapping[Shape, re.Pattern[str]] = {
    "event": _EVENT,
    "word": _WORD,
    "name": _NAME,
    "chosen": _CHOSEN,
    "module": _MODULE,
    "version": _VERSION,
    "config": _CONFIG,
}

# A sentence of our own is let through word by word: lower case, small numbers, and these. A file name, a path, an
# address, a UID or a patient's name has upper case, slashes, dots or carets in it, and becomes an ellipsis.
_LOWER = r"[(\[]?`?(--)?[a-z][a-z'-]{0,30}`?[)\]]?[,.;:?]?"
_STATUS = r"[(]?[0-9A-F]{4}H[)]?[,.;:]?"  # of DICOM (PS3.4, PS3.7), as it is written there
_SMALL_NUMBER = r"[(]?[<>=~]?\d{1,4}(\.\d{1,3})?[%)]?[,.;:]?"
_ERROR_CLASS = r"[A-Z][A-Za-z]{2,40}(Error|Exception|Warning)[,.;:]?"
# What Python quotes of somebody else's: str(OSError) ends with the file's name, which may be any word, or several.
_QUOTED = re.compile(r"""(?<![^\s(\[:=])(['"])(?:\\.|(?!\1).)*\1(?![\w'"])""", re.DOTALL)
_SENTENCE_WORD = re.compile(rf"{_LOWER}|{_SMALL_NUMBER}|{_STATUS}|{_ERROR_CLASS}|[-+=]")
_PROPER = frozenset(
    [
        "A",
        "Authorization",
        "Azure",
        "B",
        "Content-Length",
        "Content-Type",
        "DELETE",
        "DICOM",
        "DICOMDIR",
        "DICOMweb",
        "DNS",
        "Date",
        "EOF",
        "Endian",
        "Entra",
        "Explicit",
        "File",
        "FileChanged",
        "GB",
        "GET",
        "GiB",
        "HTML",
        "HTTP",
        "HTTPS",
        "I/O",
        "ID",
        "If",
        "Implicit",
        "It",
        "JSON",
        "KiB",
        "LedgerAway",
        "LedgerBusy",
        "LedgerDiffers",
        "LedgerFull",
        "Little",
        "MB",
        "Meta",
        "MiB",
        "MisconfiguredServer",
        "NFS",
        "No",
        "NotAuthorized",
        "NotFound",
        "OK",
        "Orthanc",
        "POST",
        "PUT",
        "QIDO",
        "QIDO-RS",
        "Refused",
        "Retry-After",
        "SMB",
        "SOP",
        "SQLite",
        "SSL",
        "STOW",
        "STOW-RS",
        "TCP",
        "TLS",
        "The",
        "Throttled",
        "TooLarge",
        "UID",
        "UIDs",
        "URL",
        "Unavailable",
        "Unintelligible",
        "VR",
        "WADO-RS",
        "XML",
        "and/or",
        "kB",
        "low_water",
        "no_room",
    ]
)
# What the kernel says of a failed call, as it is and as our sentences have it: it comes from the C library alone.
_SYSTEM = frozenset(
    word
    for code in errno.errorcode
    for text in (os.strerror(code), os.strerror(code).lower())
    for word in text.split()
    if "." not in word
)
ELLIPSIS = "..."

# key: the shape that its value must have. Words are machine words of our own, never text from a file or a server.
ALLOWED: Mapping[str, Shape] = {
    "event": "event",
    # what it is about
    "delivery_id": "number",
    "file_id": "number",
    "entries": "numbers",
    "holder_id": "number",
    "candidate_id": "number",
    "attempt_id": "number",
    "attempt": "number",
    "study": "study",
    "inbox": "name",
    "destination": "chosen",
    "port": "number",
    "pid": "number",
    "worker": "number",
    "version": "version",
    # what happened to it
    "state": "word",
    "before": "word",
    "after": "word",
    "reason": "word",
    "cause": "word",
    "evidence": "word",
    "verdict": "word",
    "why": "word",
    "note": "sentence",
    "notes": "words",
    "action": "word",
    "phase": "word",
    "signal": "word",
    "kind": "word",
    "take": "word",
    "watching": "word",
    "alarm": "sentence",
    "tag": "word",
    "status": "number",
    "http_status": "number",
    "exit_code": "number",
    "errno": "number",
    "schema": "number",
    "schema_before": "number",
    "api_version": "number",
    "failure_reason": "number",
    "warning_reason": "number",
    "sequence": "number",
    # how many, how much, how long
    "count": "number",
    "files": "number",
    "rows": "number",
    "instances": "number",
    "studies": "number",
    "bytes": "number",
    "bytes_free": "number",
    "bytes_low_water": "number",
    "bytes_left": "number",
    "seconds": "number",
    "wait_seconds": "number",
    "age_seconds": "number",
    "retry_after_seconds": "number",
    "clock_skew_seconds": "number",
    "repeated": "number",
    "tries": "number",
    "charged": "number",
    "pauses": "number",
    "absences": "number",
    "checks": "number",
    "posts": "number",
    "limit": "number",
    "lost": "number",
    "moved": "number",
    "uncertain": "number",
    "confirmed": "number",
    "stored": "number",
    "pending": "number",
    "failed": "number",
    "rejected": "number",
    "duplicate": "number",
    "conflict": "number",
    "deleted": "number",
    "waiting": "number",
    "ignored": "number",
    "unreadable": "number",
    "unreadable_folders": "number",
    "not_regular": "number",
    "too_deep": "number",
    "other_filesystem": "number",
    "failures": "number",
    "answered": "number",
    "low_water": "number",
    "candidates": "number",
    "attempts": "number",
    "readers": "number",
    "inboxes": "number",
    "has_feed": "number",
    "refuses_duplicates": "number",
    # where in the code; written by this module alone
    "error": "sentence",
    "category": "word",
    "logger": "module",
    "place": "words",
    # by what it goes; a path that an administrator chose
    "config": "config",
}


class _Naming:
    """How studies are named; one process has one way."""

    key = secrets.token_bytes(32)
    plain = False


def set_key(key: bytes) -> None:
    """Choose the key of ``study_ref``: the same key, the same references after a restart. Until then it is random."""
    _Naming.key = key


def study_ref(uid: str) -> str:
    """Return how logs name a study: a short keyed hash of its UID, or the UID itself with ``logging.uids: plain``."""
    if _Naming.plain:
        return uid
    return hashlib.blake2b(uid.encode("utf-8", "surrogateescape"), key=_Naming.key[:64], digest_size=6).hexdigest()


def name_studies(*, plain: bool) -> None:
    """Choose whether studies are named by their UIDs (``logging.uids: plain``)."""
    _Naming.plain = plain


def fit(value: object, shape: Shape) -> object:
    """Return the value if it has the shape, else WITHHELD."""
    if isinstance(value, Enum):
        value = value.value
    match shape:
        case "number":
            if isinstance(value, timedelta):
                return round(value.total_seconds(), 3)
            if isinstance(value, float):
                return round(value, 3)
            return value if isinstance(value, int) else WITHHELD
        case "numbers":
            fits = isinstance(value, (list, tuple)) and all(isinstance(item, int) for item in value)
            return list(value)[:20] if fits and isinstance(value, (list, tuple)) else WITHHELD
        case "words":
            items = value if isinstance(value, (list, tuple, set, frozenset)) else ()
            return [item if is_place(item) else WITHHELD for item in items][:MOST_ITEMS]
        case "sentence":
            return _sentence(value) if isinstance(value, str) else WITHHELD
        case "study":
            if not isinstance(value, str):
                return WITHHELD
            if _REF.fullmatch(value):
                return value
            return study_ref(value) if _UID.fullmatch(value) else WITHHELD
    pattern = _PATTERNS[shape]
    if not isinstance(value, str):
        return WITHHELD
    return value if pattern.fullmatch(value) or (shape == "word" and value in _STATES) else WITHHELD


def _sentence(text: str) -> str:
    words = (word if _is_ours(word) else ELLIPSIS for word in _QUOTED.sub(ELLIPSIS, text).split())
    return " ".join(words)[:LONGEST_VALUE]


def _is_ours(word: str) -> bool:
    bare = _bare(word)
    return _SENTENCE_WORD.fullmatch(word) is not None or bare in _PROPER or bare in _SYSTEM


def _bare(word: str) -> str:
    return word.strip("()[]\"',.;:")


def is_place(item: object) -> bool:
    """Whether this is a place in the code, a module with or without a line, or a machine word."""
    return isinstance(item, str) and _PLACE.fullmatch(item) is not None
