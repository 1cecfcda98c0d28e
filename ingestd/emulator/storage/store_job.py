"""A store on its way into the index: what the request asks for, its parts, and what becomes of each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from ..faults import Fault, FaultName
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
    faults: dict[FaultName, Fault] = field(default_factory=dict)  # those that fired on it
    refused: int = 0  # the reason for which it never came as far as the index

    @property
    def is_stored(self) -> bool:
        """Whether the answer lists it as stored."""
        return self.examined.failure == 0

    def seconds(self, name: FaultName, default: float) -> float:
        """How long this fault lasts, 0 where it did not fire."""
        fault = self.faults.get(name)
        return 0.0 if fault is None else default if fault.seconds is None else fault.seconds

    @property
    def commit_seconds(self) -> float:
        """For how long a fault holds the instance Creating."""
        return self.seconds(FaultName.COMMIT_DELAY, 1.0)


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
