"""What all machines that share a ledger have to say alike: what is taken in, where it goes, how long it is kept."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .model import Config

# How each machine shows who it is may differ.
_OWN = {"auth", "tls"}
# What `send` goes by; the folders are its own.
_OF_SEND = {"destinations", "rules"}


def agreement_of(config: Config) -> dict[str, str]:
    """Give a digest of each inbox and destination by its name, and of each other section by its key in the file.

    Of the configuration of ``send`` it is only what that goes by.
    """
    said: dict[str, Any] = {
        **({f"inboxes.{inbox.spool_name}": inbox.model_dump() for inbox in config.inboxes} or {"inboxes": []}),
        **{f"destinations.{name}": each.model_dump(exclude=_OWN) for name, each in config.destinations.items()},
        "rules": [rule.model_dump() for rule in config.rules],
        "spool.retain": config.spool.retain,
        "reconcile": config.reconcile.model_dump(),
    }
    if config.spool.is_for_send:
        said = {key: value for key, value in said.items() if key.partition(".")[0] in _OF_SEND}
    return {key: _digest_of(value) for key, value in said.items()}


def _digest_of(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
