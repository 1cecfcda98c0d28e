"""What a destination is held to, its rate and its window, for ``status`` and ``check``: in values and in words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from .output import ago, in_bytes

if TYPE_CHECKING:
    from ingestd.config import Destination
    from ingestd.ledger import DestinationStatus

# What is older is told, whatever the window says: none is closed for longer.
_LONGEST = timedelta(hours=24)


def limits_of(destination: Destination | None, at: datetime) -> dict[str, Any]:
    """Say what it is held to, by the names of ``--json``; None: to nothing, or it is not in the configuration."""
    hours = destination.hours if destination is not None else None
    opens = hours.around(at)[0] if hours is not None else at
    return {
        "rate_bytes_per_second": destination.rate if destination is not None else None,
        "window": f"{hours.opens:%H:%M}-{hours.closes:%H:%M}" if hours is not None else None,
        "time_zone": hours.zone.key if hours is not None else None,
        "opens_at": opens if opens > at else None,
    }


def waits_for(destination: Mapping[str, Any], at: datetime) -> str:
    """Say what files for it wait for, of what ``limits_of`` gave; "" where it is neither its window nor its rate."""
    if not destination["unconfirmed"]:
        return ""
    if destination["opens_at"] is not None:
        return f"waits for its window, {_opens(destination, at)}"
    if (rate := destination["rate_bytes_per_second"]) is None:
        return ""
    size = destination["unconfirmed_bytes"]
    return f"held to {_a_second(rate)}: {in_bytes(size)} on the way ({ago(size / rate)} at least)"


def in_words(destination: Destination, at: datetime) -> list[tuple[str, str]]:
    """Say of each key what it is held to, and whether its window is open."""
    held = limits_of(destination, at)
    words = []
    if destination.rate is not None:
        words.append(("rate", f"what is sent leaves at {_a_second(destination.rate)} at most"))
    if held["window"] is not None:
        now = "it is open now" if held["opens_at"] is None else f"it is closed now, and {_opens(held, at)}"
        words.append(
            ("window", f"files are sent from {held['window'].replace('-', ' to ')} ({held['time_zone']}); {now}")
        )
    return words


def _a_second(rate: int) -> str:
    from ingestd.config import format_size

    return f"{format_size(rate)}/s"


def _opens(held: Mapping[str, Any], at: datetime) -> str:
    when = held["window"].partition("-")[0]
    return f"opens at {when} ({held['time_zone']}), in {ago((held['opens_at'] - at).total_seconds())}"


def is_held(destination: Destination | None, known: DestinationStatus, *, allowed: timedelta, at: datetime) -> bool:
    """Whether it is for its window or its rate that its oldest file is not confirmed after so long.

    Age counts from the opening of the window. What a rate holds is as old as what waits before it, while the server
    goes on answering.
    """
    oldest = known.oldest_unconfirmed_at
    if destination is None or oldest is None or at - oldest > _LONGEST:
        return False
    if destination.hours is not None and at - max(oldest, destination.hours.around(at)[0]) <= allowed:
        return True
    return destination.rate is not None and known.last_ok_at is not None and at - known.last_ok_at <= allowed
