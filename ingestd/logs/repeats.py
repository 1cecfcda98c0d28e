"""A fault that repeats is written when it is new, and then once a backoff step, with how often it came meanwhile.

A full disk wrote the same line for every file and every try: 1,782 in 45 seconds, which filled what was left of it and
hid all else. One rule for every room, because it stands where all lines pass: what is said at ``warning`` or ``error``
again, with the same words about the same thing, waits; what counts (files, bytes, seconds) does not make it another.
What was held back is told when its time is over, whether or not the fault comes again, and at the end: every line that
was said is one that stands in the log, or one of those that a ``repeated`` there counts.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import structlog

from ingestd.clocks import boottime

FIRST_WAIT_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 600.0
# So many different faults are remembered; the one that was written longest ago is forgotten first.
_MOST = 4096
# Numbers that say what it is about, or what came back; all others count.
_NAMING = frozenset(
    {"file_id", "delivery_id", "holder_id", "candidate_id", "attempt_id", "errno", "status", "http_status"}
)
# Facts, not tries: written on change alone by whoever writes them, or the answer to what a person has just done.
_ON_CHANGE = frozenset({"alarm.raised", "clock.set", "config.refused", "spool.orphan_found", "inbox.stranded"})


class _Fault:
    """One fault, as often as it came."""

    __slots__ = ("held_back", "last", "last_at", "next_at", "wait")

    def __init__(self, now: float) -> None:
        self.wait = FIRST_WAIT_SECONDS
        self.next_at = now + self.wait
        self.held_back = 0
        self.last: Mapping[str, Any] = {}  # of those held back
        self.last_at = now

    def is_over(self, now: float) -> bool:
        """Whether it stayed away for longer than it would have been held back: then it has ended."""
        return now > self.next_at + self.wait

    def written(self, now: float) -> int:
        """Note that a line of it is written now; say how many were held back before."""
        held_back, self.held_back = self.held_back, 0
        self.wait = min(2 * self.wait, LONGEST_WAIT_SECONDS)
        self.next_at = now + self.wait
        return held_back


class Repeats:
    """A processor of structlog's; may be called from any thread."""

    def __init__(self, tell: Callable[[dict[str, Any]], object], clock: Callable[[], float] = boottime) -> None:
        """Begin with every fault new; ``tell`` writes a line that was held back, and ``clock`` gives seconds."""
        self._tell = tell
        self._clock = clock
        self._faults: OrderedDict[object, _Fault] = OrderedDict()
        self._lock = threading.Lock()
        self._catch_up_at = 0.0

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Let the line through, with how many like it were held back, or raise DropEvent."""
        held_back: int | None = 0
        if event["level"] in {"warning", "error"} and event["event"] not in _ON_CHANGE:
            with self._lock:
                held_back, forgotten = self._came(event, self._clock())
            self._tell_all(forgotten)
        self.catch_up()
        if held_back is None:
            raise structlog.DropEvent
        return {**event, "repeated": held_back} if held_back else event

    def catch_up(self) -> None:
        """Write what was held back of the faults whose time is over; cheap, so it may be called at any moment."""
        now = self._clock()
        if now < self._catch_up_at:
            return
        late: list[dict[str, Any]] = []
        with self._lock:
            self._catch_up_at = now + FIRST_WAIT_SECONDS
            for key, fault in list(self._faults.items()):
                if now >= fault.next_at and fault.held_back:
                    late += _told(fault, now)
                    fault.written(now)
                elif fault.is_over(now):
                    del self._faults[key]
        self._tell_all(late)

    def finish(self) -> None:
        """Write everything that was held back: nobody will ask again."""
        now = self._clock()
        with self._lock:
            late = [line for fault in self._faults.values() for line in _told(fault, now)]
            self._faults.clear()
        self._tell_all(late)

    def _tell_all(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            self._tell(line)

    def _came(self, event: Mapping[str, Any], now: float) -> tuple[int | None, list[dict[str, Any]]]:
        """Count it; say how many were held back before this one is written, None where it is held back itself.

        Gives back, too, what is to be written of a fault that is forgotten for this one.
        """
        key = _same(event)
        fault = self._faults.get(key)
        if fault is None or fault.is_over(now):
            self._faults[key] = _Fault(now)
            self._faults.move_to_end(key)
            forgotten = self._faults.popitem(last=False)[1] if len(self._faults) > _MOST else None
            return fault.held_back if fault else 0, _told(forgotten, now) if forgotten else []
        if now < fault.next_at:
            fault.held_back += 1
            fault.last, fault.last_at = event, now
            return None, []
        self._faults.move_to_end(key)
        return fault.written(now), []


def _told(fault: _Fault, now: float) -> list[dict[str, Any]]:
    """Make the line, if any, of what was held back: the last of it, how long ago it came, and how many it was."""
    if not fault.held_back:
        return []
    line = {**fault.last, "age_seconds": round(now - fault.last_at, 3)}
    if fault.held_back > 1:
        line["repeated"] = fault.held_back - 1
    return [line]


def _same(event: Mapping[str, Any]) -> object:
    return tuple(
        (name, str(value))
        for name, value in sorted(event.items())
        if name in _NAMING or isinstance(value, bool) or not isinstance(value, (int, float))
    )
