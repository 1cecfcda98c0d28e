"""The hours in which a destination is sent to, by the wall clock of a named time zone.

A window opens once and closes once for each day of its zone's calendar. Where the clock is set forward over an end of
it, that end is when the clock is set; where an hour comes twice, its first coming counts, so that nothing is sent in
the second coming of an hour that was over.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import count
from zoneinfo import ZoneInfo

_DAY = timedelta(days=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeWindow:
    """From ``opens`` to ``closes``, over midnight where that is the earlier one; the two differ."""

    opens: time
    closes: time
    zone: ZoneInfo

    def around(self, at: datetime) -> tuple[datetime, datetime]:
        """Say (UTC) when the window that is open at this instant, or the next one, opens and closes."""
        # Two days back: a zone may leave out a whole day (Samoa, 2011).
        first = at.astimezone(self.zone).date() - 2 * _DAY
        for days in count():
            day = first + days * _DAY
            opens = self._instant(day, self.opens)
            closes = self._instant(day if self.opens < self.closes else day + _DAY, self.closes)
            if max(at, opens) < closes:
                return opens, closes
        raise AssertionError("there is always a tomorrow")

    def is_open(self, at: datetime) -> bool:
        return self.around(at)[0] <= at

    def _instant(self, day: date, wall: time) -> datetime:
        """Say when the zone's clock first shows this time, or a later one."""
        wanted = datetime.combine(day, wall)
        first, second = (int(wanted.replace(tzinfo=self.zone, fold=fold).timestamp()) for fold in (0, 1))
        if first > second:  # the clock leaves it out: what lies between has the moment in which it is set (PEP 495)

            def shown(at: int) -> datetime:
                return datetime.fromtimestamp(at, self.zone).replace(tzinfo=None)

            first = second + bisect_left(range(second, first), wanted, key=shown)
        return datetime.fromtimestamp(first, UTC)
