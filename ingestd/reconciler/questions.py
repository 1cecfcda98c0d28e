"""What the reconciler is asked and what it answers, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ingestd.lifecycle import FeedCursor, FeedEnd, Pause, Sameness, Sighting, Unproven


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedQuestion:
    """What is new in the change feed; with ``cursor`` None the first one is found beforehand.

    That is ten minutes before ``first_attempt_at`` (our clock; v1: the latest sequence before then), or before now if
    nothing was ever posted, or not yet. ``end`` is how far the feed ever went, ``cursor_moved_at`` when the cursor was
    put where it is (our clock), ``elapsed`` what has passed since the last answer by a clock that nobody can set.
    """

    cursor: FeedCursor | None
    version: int
    lag: timedelta = timedelta(seconds=60)
    first_attempt_at: datetime | None = None
    end: FeedEnd | None = None
    cursor_moved_at: datetime | None = None
    elapsed: timedelta = timedelta(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedAnswer:
    """What the change feed showed: each identity's newest entry, and how far it counts as read.

    ``unreadable`` counts the entries that could not be read and were stepped over.

    ``end`` is how far the feed goes, None where that could not be told. ``went_back_to`` is the sequence from which on
    the feed is not what it was: the server was restored from an older backup.

    ``complete`` is False where there is more to be read now, or nothing could be read. ``pause`` and ``error`` say why
    it broke off; what was read until then counts.
    """

    question: FeedQuestion
    sightings: tuple[Sighting, ...] = ()
    unreadable: int = 0
    cursor: FeedCursor | None = None
    end: FeedEnd | None = None
    went_back_to: int | None = None
    complete: bool = False
    asked_at: datetime
    clock_offset: timedelta | None = None
    pause: Pause | None = None
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyQuestion:
    """Whether the server has these instances of one study, and with ``fetch`` what it has under these UIDs.

    ``original`` asks Azure for the version before any bulk update. ``keep`` wants the copy also where it is our very
    bytes.
    """

    study_uid: str
    rows: tuple[Unproven, ...]
    fetch: bool
    original: bool = False
    keep: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What the server showed of one row at ``asked_at`` (our clock; ``asked_boot`` on ``clocks.boottime``).

    ``present`` None: it could not be told now, ``note`` says why, and ``is_ours`` that this machine is to blame.
    ``sameness`` is SAME where the server gave back the very bytes of our file; else what was fetched lies in scratch,
    for the caller to compare and to unlink: ``copies``, where the server has several; the row is proven if one of them
    is ours.
    """

    row: Unproven
    present: bool | None
    asked_at: datetime
    asked_boot: float = 0.0
    is_ours: bool = False
    sameness: Sameness | None = None
    copies: tuple[Path, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyAnswer:
    """The findings about a study's rows; rows without one could not be asked about (``pause``, ``error``)."""

    question: StudyQuestion
    findings: tuple[Finding, ...]
    clock_offset: timedelta | None = None
    pause: Pause | None = None
    error: str = ""

    @property
    def failure(self) -> str:
        """Say why not all rows could be asked about; empty where nothing failed."""
        error = self.error or (self.pause.note if self.pause else "")
        what = "its copy could not be had" if self.question.fetch else "the server could not be asked for it"
        return f"{what}: {error}" if error else ""


Question = FeedQuestion | StudyQuestion
Answer = FeedAnswer | StudyAnswer
