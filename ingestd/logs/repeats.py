"""A fault that repeats is written when it is new, and then once a backoff step, with how often it came meanwhile.

A full disk wrote the same line for every file and every try: 1,782 in 45 seconds, which filled what was left of it and
hid all else. One rule for every room, because it stands where all lines pass: what is said at ``warning`` or ``error``
again, with the same words about the same thing, waits; what counts (files, bytes, seconds) does not make it another.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from ingestd.clocks import boottime

FIRST_WAIT_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 600.0
# So many different faults are remembered; the one that was written longest ago is forgotten first.
_MOST = 4096
# Numbers that say what it is about, or what came back; all others count.
_NAMING = frozenset({"entry_id", "holder_id", "candidate_id", "attempt_id", "errno", "status", "http_status"})
# Facts, not tries: written on change alone by whoever writes them, or the answer to what a person has just done.
_ON_CHANGE = frozenset({"alarm.raised", "clock.set", "config.refused", "spool.orphan_found", "inbox.stranded"})


class _Fault:
    """One fault, as often as it came."""

    __slots__ = ("held_back", "next_at", "wait")

    def __init__(self, now: float) -> None:
        self.wait = FIRST_WAIT_SECONDS
        self.next_at = now + self.wait
        self.held_back = 0


class Repeats:
    """A processor of structlog's; may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        """Begin with every fault new; ``clock`` gives seconds."""
        self._clock = clock
        self._faults: OrderedDict[object, _Fault] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Let the line through, with how many like it were held back, or raise DropEvent."""
        if event["level"] not in {"warning", "error"} or event["event"] in _ON_CHANGE:
            return event
        now = self._clock()
        with self._lock:
            held_back = self._came(_same(event), now)
        if held_back is None:
            raise structlog.DropEvent
        return {**event, "repeated": held_back} if held_back else event

    def _came(self, key: object, now: float) -> int | None:
        """Count it; say how many were held back before this one is written, None where it is held back itself."""
        fault = self._faults.get(key)
        # One that stayed away for longer than it would have been held back has ended since, and is new.
        if fault is None or now > fault.next_at + fault.wait:
            self._faults[key] = _Fault(now)
            self._faults.move_to_end(key)
            if len(self._faults) > _MOST:
                self._faults.popitem(last=False)
            return 0 if fault is None else fault.held_back
        if now < fault.next_at:
            fault.held_back += 1
            return None
        held_back, fault.held_back = fault.held_back, 0
        fault.wait = min(2 * fault.wait, LONGEST_WAIT_SECONDS)
        fault.next_at = now + fault.wait
        self._faults.move_to_end(key)
        return held_back


def _same(event: MutableMapping[str, Any]) -> object:
    return tuple(
        (name, str(value))
        for name, value in sorted(event.items())
        if name in _NAMING or isinstance(value, bool) or not isinstance(value, (int, float))
    )
