"""What all machines that share a ledger have to say alike: what is taken in, where it goes, how long it is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from .model import Config

# How each machine shows who it is may differ.
_OWN = {"auth", "tls"}
_WHERE_TO = {"destinations", "rules"}


def agreement_of(config: Config) -> dict[str, str]:
    """Give a digest of each inbox and destination by its name, and of each other section by its key in the file.

    Of the configuration of ``send`` it is only what that goes by: the folders are its own.
    """
    said: dict[str, Any] = {
        **({f"inboxes.{inbox.spool_name}": inbox.model_dump() for inbox in config.inboxes} or {"inboxes": []}),
        **{f"destinations.{name}": each.model_dump(exclude=_OWN) for name, each in config.destinations.items()},
        "rules": [rule.model_dump() for rule in config.rules],
        "spool.retain": config.spool.retain,
        "reconcile": config.reconcile.model_dump(),
    }
    digests = {key: _digest_of(value) for key, value in said.items()}
    return where_to(digests) if config.spool.is_for_send else digests


def where_to(said: Mapping[str, str]) -> dict[str, str]:
    """Give what of this says where a file goes."""
    return {key: digest for key, digest in said.items() if key.partition(".")[0] in _WHERE_TO}


def _digest_of(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
