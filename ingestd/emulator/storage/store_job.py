"""A store on its way into the index: what the request asks for, its parts, and what becomes of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..faults import FaultName
from ..services.upload import Part
from .examine import Examined, Tag


@dataclass(kw_only=True)
class StoreRequest:
    """What all parts of one request share."""

    number: int
    version: int
    study_uid: str | None
    partition_key: int
    replace: bool  # PUT
    expires_at: int | None  # ticks
    tags: Sequence[Tag] = ()
    method: str = "POST"
    path: str = ""


@dataclass(kw_only=True, slots=True)
class Entry:
    """What became of one part."""

    examined: Examined
    watermark: int = 0
    instance_key: int = 0
    study_key: int = 0
    series_key: int = 0
    replaced: int = 0  # the watermark that a PUT took the place of
    faults: set[FaultName] = field(default_factory=set)
    late_seconds: float = 0.0  # late_feed
    commit_seconds: float = 0.0  # commit_delay
    lag_seconds: float = 0.0  # index_lag
    gap: int = 0  # feed_gap
    cut: int = 0  # cut_stored
    refused: int = 0  # the reason for which it never came as far as the index

    @property
    def is_stored(self) -> bool:
        """Whether the answer lists it as stored."""
        return self.examined.failure == 0


@dataclass(kw_only=True)
class Post:
    """One request's parts on their way into the index."""

    request: StoreRequest
    parts: Sequence[Part]
    entries: list[Entry] = field(default_factory=list)  # what became of them, as far as it is known
    group: list[Entry] = field(default_factory=list)  # looked at, and next to be stored

    @property
    def is_done(self) -> bool:
        """Whether everything is stored or refused."""
        return len(self.entries) == len(self.parts)

    @property
    def has_faults(self) -> bool:
        """Whether something is to go wrong with the group."""
        return any(entry.faults for entry in self.group)

    def identities(self) -> set[tuple[object, ...]]:
        """What the group is going to store."""
        return {(*entry.examined.identity, self.request.partition_key) for entry in self.group if entry.is_stored}
