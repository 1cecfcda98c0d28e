"""What people are shown of the ledger, as plain values: how things stand, studies, rows, and the story of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ingestd.lifecycle import Content, Identity, Jump, Reason, SourceStat, State

from .values import Alarm, DestinationStatus, InboxSummary, OperatorRequest, PendingRead


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """How many rows of an inbox are in a state for a reason."""

    inbox: str
    state: State
    reason: str
    rows: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Everything ``ingestd status`` says without being asked for more; read in constant time.

    ``needs_person`` counts FAILED, CONFLICT, REJECTED, UNROUTED and DELETED rows, save what was dropped again and is
    CONFIRMED, and ``not_dicom`` and ``dicomdir`` clutter, which ``clutter`` counts.
    ``oldest_unconfirmed_at`` counts files without a row, too. ``destination`` is the first of ``destinations``.
    """

    states: Mapping[State, int]
    counts: tuple[Count, ...]
    needs_person: int
    clutter: int
    oldest_unconfirmed_at: datetime | None
    oldest_needs_person_at: datetime | None
    studies_waiting: int
    destinations: tuple[DestinationStatus, ...]
    inboxes: tuple[InboxSummary, ...]
    alarms: tuple[Alarm, ...] = ()
    jumps: tuple[Jump, ...] = ()  # the last times that the wall clock was set, newest first

    @property
    def destination(self) -> DestinationStatus | None:
        return self.destinations[0] if self.destinations else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which studies or entries to show; everything given must hold. The hashes come from ``Ledger.search_key``."""

    study_uid: str | None = None
    accession_hash: str | None = None
    patient_hash: str | None = None
    modality: str | None = None
    state: State | None = None
    reason: Reason | None = None  # entries only
    since: datetime | None = None  # changed at or after
    destination: int | None = None  # by its id; what has no delivery is at none


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySummary:
    """One study in sum; ``host`` is the one that had it change last."""

    host: str
    study_uid: str
    states: Mapping[State, int]
    size_bytes: int
    modalities: tuple[str, ...]
    first_at: datetime
    changed_at: datetime
    next_attempt_at: datetime | None
    charged: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A delivery with its file, or a file that has none: whole. ``state`` is the file's own where it has one.

    ``destination`` is where it goes, "" for a file without a delivery; ``route`` which rule said so, in words.
    """

    delivery_id: int
    file_id: int
    destination: str
    route: str
    host: str
    state: State
    reason: Reason | None
    note: str
    inbox: str
    relative_path: str
    path: str | None  # as stored: relative to its host's spool, or absolute
    file: Path | None  # absolute, where its host's spool is known
    in_place: bool
    source: SourceStat
    source_removed: bool
    identity: Identity | None
    sop_class_uid: str
    content: Content | None
    sha256: str
    modality: str
    station: str
    notes: tuple[str, ...]
    priority: int
    admitted_at: datetime
    changed_at: datetime
    attempts: int
    charged: int
    resends: int
    next_attempt_at: datetime | None
    next_check_at: datetime | None
    stored_at: datetime | None
    confirmed_at: datetime | None
    removed_at: datetime | None
    pending_read: PendingRead | None
    request: OperatorRequest | None
    holder_id: int | None
    failure_reason: int | None
    warning_reason: int | None
    failed_attributes: tuple[str, ...]
    reencoded: bool
    compared: bool  # confirmed by a comparison with the server's copy


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line of a row's history."""

    at: datetime
    before: State | None
    after: State
    reason: str
    note: str
    attempt_id: int | None
    evidence: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One Store Transaction, as far as one of its rows is told of it."""

    attempt_id: int
    worker: int  # which sent it; 0: one without a number, of an SQLite ledger
    started_at: datetime
    finished_at: datetime | None
    instances: int
    size_bytes: int
    http_status: int | None
    body_bytes_left: int | None
    seconds: float | None
    error: str
    interrupted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """Everything the ledger knows of one row."""

    entry: Entry
    history: tuple[Event, ...]
    attempts: tuple[Attempt, ...]
    holder: Entry | None
    duplicates: tuple[Entry, ...]
    same_identity: tuple[Entry, ...] = field(default_factory=tuple)
