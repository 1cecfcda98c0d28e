"""A store on its way into the index: what the request asks for, its parts, and what becomes of each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from ..faults import FaultName
from .examine import Examined
from .tags import Tag


@dataclass(frozen=True, slots=True)
class UploadedPart:
    """One part of a request, whole; where it is on disk it is being examined meanwhile."""

    source: Path | bytes
    examined: Future[Examined] | None = None


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
class PartResult:
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
class StoreJob:
    """One request's parts on their way into the index."""

    request: StoreRequest
    parts: Sequence[UploadedPart]
    results: list[PartResult] = field(default_factory=list)  # what became of them, as far as it is known
    group: list[PartResult] = field(default_factory=list)  # examined, and next to be stored

    @property
    def is_done(self) -> bool:
        """Whether everything is stored or refused."""
        return len(self.results) == len(self.parts)

    @property
    def has_faults(self) -> bool:
        """Whether something is to go wrong with the group."""
        return any(result.faults for result in self.group)

    def identities(self) -> set[tuple[object, ...]]:
        """What the group is going to store."""
        return {(*result.examined.identity, self.request.partition_key) for result in self.group if result.is_stored}
