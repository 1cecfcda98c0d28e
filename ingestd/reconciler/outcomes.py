"""Outcomes as the judges give them: what stays where it is, and what is gone from the server."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from ingestd.lifecycle import Outcome, Reason, State, Unproven


def not_settled(
    row: Unproven,
    reason: Reason,
    note: str,
    *,
    at: datetime | None = None,
    wait: timedelta | None = None,
    evidence: Mapping[str, str] | None = None,
) -> Outcome:
    """Leave a row in its state: it is recorded that it was asked about, what came of it, and when to ask next."""
    return Outcome(
        entry_id=row.entry_id,
        state=row.state,
        reason=reason,
        note=note,
        wait=wait,
        evidence=evidence or {},
        expected=row.state,
        evidence_at=at,
    )


def deleted(row: Unproven, how: str, *, at: datetime | None, **evidence: str) -> Outcome:
    """Say that somebody deleted it; by the feed, or by ``absences``."""
    return Outcome(
        entry_id=row.entry_id,
        state=State.DELETED,
        reason=Reason.ABSENT if "absences" in evidence else Reason.FEED,
        note=f"{how}; it is not sent again by itself: `ingestd retry` sends it, `ingestd resolve --discard` lets it go",
        evidence=evidence,
        expected=row.state,
        evidence_at=at,
    )


def spoken(span: timedelta) -> str:
    """Say a span of time as people do."""
    seconds = max(1, round(span.total_seconds()))
    for size, word in ((3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {word}{'s' * (count != 1)}"
    return f"{seconds} second{'s' * (seconds != 1)}"
