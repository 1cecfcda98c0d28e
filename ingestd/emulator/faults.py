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
from typing import Any, Self


class FaultName(StrEnum):
    """Every fault there is: its name on the command line and on the control port, and what it does."""

    description: str

    def __new__(cls, name: str, description: str = "") -> Self:
        member = str.__new__(cls, name)
        member._value_ = name
        member.description = description
        return member

    LATENCY = "latency", "wait `seconds` (default 1) before the request is looked at"
    BANDWIDTH = "bandwidth", "take the body in at `bytes` per second (default 65536)"
    THROTTLE = "throttle", "answer 429 without looking; `retry_after` is sent as it is given"
    UNAVAILABLE = "unavailable", "answer 503 without looking; `retry_after` is sent as it is given"
    ERROR_BEFORE_STORE = "error_before_store", "answer 500, or `status`, after the whole body was read, nothing stored"
    ERROR_AFTER_STORE = "error_after_store", "answer 500, or `status`, although everything was stored"
    REFUSE_STORED = "refuse_stored", "store the instance, and list it as refused for good (43264) all the same"
    DROP_BEFORE_BODY = "drop_before_body", "cut the connection when the headers are in"
    DROP_DURING_BODY = "drop_during_body", "cut the connection when `bytes` (default 1) of the body are in"
    DROP_AFTER_BODY = "drop_after_body", "cut the connection when the body is in, nothing stored"
    DROP_AFTER_STORE = "drop_after_store", "cut the connection after everything was stored, without an answer"
    HALF_ANSWER = "half_answer", "send the answer's head and half of its body, then cut the connection"
    FOREIGN_UID = "foreign_uid", "name a SOP Instance UID in the answer that was never sent, instead of one that was"
    MISSING_UID = "missing_uid", "leave one stored instance out of the answer"
    BEING_CREATED = "being_created", "refuse the instance with 45071, nothing stored"
    STUCK_CREATING = "stuck_creating", "die between the two phases: the row stays Creating (45071) until DELETE"
    PROCESSING_FAILURE = "processing_failure", "refuse the instance with 272, nothing stored"
    UNDONE = "undone", "store the instance, delete it again and answer 272: the feed has a Create and a Delete"
    LATE_FEED = "late_feed", "show the feed entry only `seconds` (default 5) later, with its old timestamp"
    FEED_GAP = "feed_gap", "skip `numbers` (default 1000) sequence numbers, as SQL Server does after a restart"
    COMMIT_DELAY = "commit_delay", "hold the instance Creating for `seconds` (default 1) before it becomes visible"
    INDEX_LAG = "index_lag", "let searches miss the study for `seconds` (default 5) after a store"
    LOSE_STORED = "lose_stored", "acknowledge the instance, then lose it without a trace in the feed"
    ALTER_STORED = "alter_stored", "acknowledge the instance, but keep it with one changed byte at its end"
    CHANGE_STORED = "change_stored", "acknowledge the instance, but keep it with another patient's name"
    CUT_STORED = "cut_stored", "acknowledge the instance, but keep it without its last `bytes` (default 1)"
    NOT_FOUND = "not_found", "answer 404 without looking; with `path` for one instance that is there all the same"


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
        with self._lock:
            self._faults = [fault for fault in self._faults if name is not None and fault.name != name]

    def listed(self) -> list[dict[str, Any]]:
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
