"""The key of the search words, in a file of its own: a copy of the ledger alone tells nobody who was examined."""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

from ingestd.fs.durable import write_once
from ingestd.fs.places import read_named

_LEAST_BYTES = 32


class CutShortError(Exception):
    """The key is shorter than any that was ever made."""


def read(file: Path) -> bytes:
    """Read the key; raises OSError, or CutShortError."""
    key = read_named(file)
    if len(key) < _LEAST_BYTES:
        raise CutShortError
    return key


def mark_of(key: bytes) -> str:
    """Say by what word the ledger knows this key again: nothing of the key can be told from it."""
    return hmac.digest(key, b"mark of the search key", "sha256")[:16].hex()


def make(file: Path) -> None:
    """Make the key, whole or not at all, whoever else is at it."""
    write_once(file, secrets.token_bytes(_LEAST_BYTES))
