"""What all who share a ledger have to say alike (``config.agreement_of``), where that was said, and when."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from sqlalchemy import select

from ingestd.clocks import utc_now

from .column_types import Instant
from .errors import LedgerDiffers
from .schema import meta

AGREED = "agreed"  # its key in ``meta``
_NAMED = "destinations"
AGREEMENT = select(meta.c.value).where(meta.c.key == AGREED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """``said`` has a digest of each part of the configuration, by its key; ``machine`` said so at ``at``."""

    said: Mapping[str, str]
    machine: str
    at: datetime

    @classmethod
    def now(cls, said: Mapping[str, str]) -> Self:
        """What this machine says."""
        return cls(said=said, machine=os.uname().nodename, at=utc_now())

    @classmethod
    def read(cls, value: str) -> Self:
        """Read what ``meta`` keeps."""
        kept = json.loads(value)
        return cls(said=kept["said"], machine=kept["machine"], at=Instant.give(kept["at"]))

    @property
    def kept(self) -> str:
        """As ``read`` takes it."""
        return json.dumps({"said": dict(self.said), "machine": self.machine, "at": Instant.keep(self.at)})

    @property
    def destinations(self) -> frozenset[str]:
        """The names of those that files are to go to."""
        return frozenset(name for section, _, name in (key.partition(".") for key in self.said) if section == _NAMED)

    def differing(self, said: Mapping[str, str]) -> list[str]:
        """Say which keys, of the sections that are said, say otherwise, or are on one side alone."""
        sections = {_section_of(key) for key in said}
        keys = said.keys() | {key for key in self.said if _section_of(key) in sections}
        return sorted(key for key in keys if self.said.get(key) != said.get(key))

    def expect(self, said: Mapping[str, str], *, ledger: str) -> None:
        """Raise LedgerDiffers where this says otherwise; ``ledger``: its name."""
        if keys := self.differing(said):
            since = f"{self.at:%Y-%m-%d %H:%M} UTC, as {self.machine} has it"
            raise LedgerDiffers(
                f"this configuration is not what the ledger {ledger} has for all its machines since {since}: make this"
                " file equal to that one's, or, where this one is to hold for all, `ingestd config adopt` it; it"
                f" differs in {', '.join(keys)}",
                keys,
            )


def _section_of(key: str) -> str:
    return key.partition(".")[0]
