"""The jobs that no child has yet: small files before large ones, and now and then whoever has waited longest."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ingestd.reader.child_process import Ticket

# Files up to 1 MB are alike; beyond, each doubling is a class of its own.
_SMALL_BITS = 20
# So often is the next one that which came first, whatever its size: a large file is read under any load.
_FIRST_COME_EVERY = 4


class Line:
    """A queue in classes by size; within one, first come is first served. Not thread-safe.

    A job's cost is not known before it was done, but a file costs little if it is small: 40 files that each stay just
    within a turn are not slow, and the one image behind them waited for all of them.
    """

    def __init__(self) -> None:
        self._classes: dict[int, deque[Ticket]] = {}
        self._picks = 0

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._classes)

    def add(self, tickets: Iterable[Ticket]) -> None:
        """Put jobs in line."""
        for ticket in tickets:
            self._classes.setdefault(_class_of(ticket), deque()).append(ticket)

    def put_back(self, tickets: Iterable[Ticket]) -> None:
        """Put jobs that were taken out in front again, in their order."""
        for ticket in reversed(list(tickets)):
            self._classes.setdefault(_class_of(ticket), deque()).appendleft(ticket)

    def take(self) -> Ticket:
        """Take the next one out."""
        self._picks += 1
        if self._picks % _FIRST_COME_EVERY:
            which = min(self._classes)
        else:
            which = min(self._classes, key=lambda each: self._classes[each][0].serial)
        ticket = self._classes[which].popleft()
        if not self._classes[which]:
            del self._classes[which]
        return ticket


def _class_of(ticket: Ticket) -> int:
    return max(_SMALL_BITS, ticket.size_bytes.bit_length())
