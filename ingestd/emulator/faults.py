"""Faults on request: named misbehaviour that a test or a person switches on, never there by default.

None of it is what the original server does; all of it is what networks, proxies, throttling and crashed back ends do
to a client. A fault fires by ``probability`` (with a seed), for the next ``count`` requests it fits, after letting
``skip`` pass, and only for a ``uid`` or a ``method`` and ``path`` when those are given.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class FaultName(StrEnum):
    """Every fault there is; the value is its name on the command line and on the control port."""

    LATENCY = "latency"
    BANDWIDTH = "bandwidth"
    THROTTLE = "throttle"
    UNAVAILABLE = "unavailable"
    ERROR_BEFORE_STORE = "error_before_store"
    ERROR_AFTER_STORE = "error_after_store"
    REFUSE_STORED = "refuse_stored"
    DROP_BEFORE_BODY = "drop_before_body"
    DROP_DURING_BODY = "drop_during_body"
    DROP_AFTER_BODY = "drop_after_body"
    DROP_AFTER_STORE = "drop_after_store"
    HALF_ANSWER = "half_answer"
    FOREIGN_UID = "foreign_uid"
    MISSING_UID = "missing_uid"
    BEING_CREATED = "being_created"
    STUCK_CREATING = "stuck_creating"
    PROCESSING_FAILURE = "processing_failure"
    UNDONE = "undone"
    LATE_FEED = "late_feed"
    FEED_GAP = "feed_gap"
    COMMIT_DELAY = "commit_delay"
    INDEX_LAG = "index_lag"
    LOSE_STORED = "lose_stored"
    ALTER_STORED = "alter_stored"
    CHANGE_STORED = "change_stored"
    CUT_STORED = "cut_stored"
    NOT_FOUND = "not_found"


DESCRIPTIONS: dict[FaultName, str] = {
    FaultName.LATENCY: "wait `seconds` (default 1) before the request is looked at",
    FaultName.BANDWIDTH: "take the body in at `bytes` per second (default 65536)",
    FaultName.THROTTLE: "answer 429 without looking; `retry_after` is sent as it is given",
    FaultName.UNAVAILABLE: "answer 503 without looking; `retry_after` is sent as it is given",
    FaultName.ERROR_BEFORE_STORE: "answer 500, or `status`, after the whole body was read, nothing stored",
    FaultName.ERROR_AFTER_STORE: "answer 500, or `status`, although everything was stored",
    FaultName.REFUSE_STORED: "store the instance, and list it as refused for good (43264) all the same",
    FaultName.DROP_BEFORE_BODY: "cut the connection when the headers are in",
    FaultName.DROP_DURING_BODY: "cut the connection when `bytes` (default 1) of the body are in",
    FaultName.DROP_AFTER_BODY: "cut the connection when the body is in, nothing stored",
    FaultName.DROP_AFTER_STORE: "cut the connection after everything was stored, without an answer",
    FaultName.HALF_ANSWER: "send the answer's head and half of its body, then cut the connection",
    FaultName.FOREIGN_UID: "name a SOP Instance UID in the answer that was never sent, instead of one that was",
    FaultName.MISSING_UID: "leave one stored instance out of the answer",
    FaultName.BEING_CREATED: "refuse the instance with 45071, nothing stored",
    FaultName.STUCK_CREATING: "die between the two phases: the row stays Creating (45071) until DELETE",
    FaultName.PROCESSING_FAILURE: "refuse the instance with 272, nothing stored",
    FaultName.UNDONE: "store the instance, delete it again and answer 272: the feed has a Create and a Delete",
    FaultName.LATE_FEED: "show the feed entry only `seconds` (default 5) later, with its old timestamp",
    FaultName.FEED_GAP: "skip `numbers` (default 1000) sequence numbers, as SQL Server does after a restart",
    FaultName.COMMIT_DELAY: "hold the instance Creating for `seconds` (default 1) before it becomes visible",
    FaultName.INDEX_LAG: "let searches miss the study for `seconds` (default 5) after a store",
    FaultName.LOSE_STORED: "acknowledge the instance, then lose it without a trace in the feed",
    FaultName.ALTER_STORED: "acknowledge the instance, but keep it with one changed byte at its end",
    FaultName.CHANGE_STORED: "acknowledge the instance, but keep it with another patient's name",
    FaultName.CUT_STORED: "acknowledge the instance, but keep it without its last `bytes` (default 1)",
    FaultName.NOT_FOUND: "answer 404 without looking; with `path` for one instance that is there all the same",
}


# What can be said of a fault, and how a text is read as it.
_SETTINGS: dict[str, type] = {
    "probability": float, "seed": int, "count": int, "skip": int, "uid": str, "method": str, "path": str,
    "seconds": float, "bytes": int, "numbers": int, "status": int, "retry_after": str,
}  # fmt: skip


class UnknownFault(ValueError):
    """There is no such fault, or its settings make no sense."""


@dataclass(kw_only=True)
class Fault:
    """One fault that is switched on."""

    name: FaultName
    probability: float = 1.0
    seed: int = 0
    count: int | None = None
    skip: int = 0
    uid: str | None = None
    method: str | None = None
    path: str | None = None
    seconds: float | None = None
    bytes: int | None = None
    numbers: int | None = None
    status: int | None = None
    retry_after: str | None = None
    fired: int = 0
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            self.name = FaultName(self.name)
        except ValueError as error:
            raise UnknownFault(f"there is no fault {self.name!r}; there are: {', '.join(FaultName)}") from error
        if not 0 <= self.probability <= 1:
            raise UnknownFault(f"{self.name}: probability must lie between 0 and 1, not {self.probability}")
        if self.seconds is not None and not 0 <= self.seconds <= threading.TIMEOUT_MAX:
            raise UnknownFault(f"{self.name}: seconds must be a length of time, not {self.seconds}")
        self._random = random.Random(self.seed)  # noqa: S311 - repeatable on purpose

    @classmethod
    def parse(cls, text: str) -> Fault:
        """``name``, ``name=3`` (the next three), ``name=10%``, or ``name=key:value,key:value``; raises UnknownFault."""
        name, _, spec = text.partition("=")
        settings: dict[str, Any] = {}
        for item in filter(None, spec.split(",")):
            key, colon, value = item.partition(":")
            if not colon:
                key, value = ("probability", str(float(item[:-1]) / 100)) if item.endswith("%") else ("count", item)
            settings[key.strip()] = value.strip()
        return cls.from_settings(name.strip(), settings)

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any]) -> Fault:
        """A fault from loosely typed settings, as JSON and the command line give them; raises UnknownFault."""
        unknown = set(settings) - set(_SETTINGS)
        if unknown:
            raise UnknownFault(f"{name}: unknown setting {min(unknown)!r}; there are: {', '.join(_SETTINGS)}")
        try:
            return cls(
                name=FaultName(name) if name in set(FaultName) else name,  # type: ignore[arg-type]
                **{key: _SETTINGS[key](value) for key, value in settings.items() if value is not None},
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise error if isinstance(error, UnknownFault) else UnknownFault(f"{name}: {error}") from error

    def fits(self, *, method: str, path: str, uids: Iterable[str]) -> bool:
        """Whether this fault is meant for such a request or instance; says nothing about chance and count."""
        if self.method is not None and self.method.upper() != method:
            return False
        if self.path is not None and self.path.lower() not in path.lower():
            return False
        return self.uid is None or self.uid in set(uids)

    def fires(self) -> bool:
        """Count one fitting occasion and say whether the fault fires on it."""
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.count is not None and self.fired >= self.count:
            return False
        if self.probability < 1 and self._random.random() >= self.probability:
            return False
        self.fired += 1
        return True

    def facts(self) -> dict[str, Any]:
        """The fault as the control port shows it."""
        return {"name": self.name, "fired": self.fired, "retry_after": self.retry_after} | {
            name: getattr(self, name) for name in _SETTINGS
        }


class Faults:
    """The faults of one server; thread-safe, empty unless somebody asks."""

    def __init__(self, faults: Iterable[Fault | str] = ()) -> None:
        self._lock = threading.Lock()
        self._faults = [Fault.parse(fault) if isinstance(fault, str) else fault for fault in faults]

    def add(self, name: str, **settings: Any) -> Fault:
        """Switch a fault on; see ``Fault`` for the settings."""
        fault = Fault.from_settings(name, settings)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self, name: str | None = None) -> None:
        """Switch all faults off, or those of one name."""
        with self._lock:
            self._faults = [fault for fault in self._faults if name is not None and fault.name != name]

    def listed(self) -> list[dict[str, Any]]:
        """What is switched on and how often each has fired."""
        with self._lock:
            return [fault.facts() for fault in self._faults]

    def take(self, name: FaultName, *, method: str = "", path: str = "", uids: Iterable[str] = ()) -> Fault | None:
        """The fault of this name that fires on this occasion, if one does."""
        if not self._faults:
            return None
        wanted = tuple(uids)
        with self._lock:
            for fault in self._faults:
                if fault.name is name and fault.fits(method=method, path=path, uids=wanted) and fault.fires():
                    return fault
        return None
