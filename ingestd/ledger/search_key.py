"""The key of the search words, in a file of its own: a copy of the ledger alone tells nobody who was examined."""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from ingestd.places import read_named, sync_folder

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
    scratch = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(secrets.token_bytes(_LEAST_BYTES))
            opened.flush()
            os.fsync(opened.fileno())
        with suppress(FileExistsError):
            os.link(scratch, file)
    finally:
        scratch.unlink()
    sync_folder(file.parent)
