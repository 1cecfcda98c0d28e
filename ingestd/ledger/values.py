"""Plain values that cross the ledger's door, beside those of ``lifecycle``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from ingestd.lifecycle import Content, Identity, Jump, Reason, SourceStat, State

from .errors import RefusedMove


class PendingRead(StrEnum):
    """What a row waits for from the reader before it can be sent; REREAD: or compared with its holder."""

    REREAD = "reread"
    REENCODE = "reencode"


class OperatorRequest(StrEnum):
    """What a person asked of a REJECTED row; the daemon carries it out, because it takes reading the file."""

    RETRY = "retry"
    ADMIT_ANYWAY = "admit_anyway"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewCandidate:
    """A file about to be read; ``target`` is the name that it has or will have in the spool, "" where it never lies."""

    inbox: str
    relative_path: str
    source: SourceStat
    target: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftCandidate:
    """A file whose reading was not finished: ``tries`` counts the readers it has killed."""

    candidate_id: int
    inbox: str
    relative_path: str
    source: SourceStat
    target: str
    tries: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The row that holds an identity at a destination, as far as comparing with it goes.

    ``path`` is a place (``places``), and None once the file was removed (then only the server has the bytes).
    """

    delivery_id: int
    state: State
    path: str | None
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RowToCompare:
    """A row that may be a DUPLICATE of its holder, or in CONFLICT with it. ``path`` is a place (``places``)."""

    delivery_id: int
    file_id: int
    path: str
    digest: str
    holder: Holder


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """What became of one arrival: its file's number, which its first delivery has, and the state of that.

    Both are None where the row that was read again is elsewhere by now: nothing was written.
    """

    number: int | None
    state: State | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovered:
    """What start-up found unfinished and settled."""

    uncertain: int = 0
    attempts: int = 0
    candidates: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """What carrying out a BatchResult came to.

    ``lost`` counts rows that somebody else had moved meanwhile (G4); nothing was done to them. ``pauses`` counts the
    destination's pauses in a row that met this study in flight.
    """

    moved: int
    lost: int
    charged: int
    pauses: int
    next_attempt_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """How many outcomes were carried out, and how many found their row somewhere else."""

    moved: int
    lost: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RowToRead:
    """A row that the reader has to look at before it can be sent, or compared. ``path`` is a place (``places``)."""

    delivery_id: int
    pending_read: PendingRead
    inbox: str
    relative_path: str
    path: str
    in_place: bool
    source: SourceStat
    identity: Identity
    content: Content
    ctime_ns: int | None
    priority: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedFile:
    """A file set aside, to be looked at for changes. ``path`` is relative to the spool, or absolute in place."""

    file_id: int
    inbox: str
    relative_path: str
    path: str
    in_place: bool
    source: SourceStat
    reason: Reason
    priority: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestedRow(RejectedFile):
    """One that a person wants admitted."""

    request: OperatorRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownSource:
    """A row that came from this inbox and relative path.

    ``ctime_ns`` 0: not known. ``digests`` are those of the bytes before the data set and of the data set itself; None
    for a file that was refused, for ``reason``.
    """

    file_id: int
    state: State
    source: SourceStat
    in_place: bool
    source_removed: bool
    ctime_ns: int = 0
    digests: tuple[str, str] | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutableFile:
    """A file of which something may still be sent elsewhere. ``path`` is a place; None: its spool is not known.

    ``state`` is that of a file without a delivery.
    """

    file_id: int
    study_id: int
    state: State | None
    inbox: str
    relative_path: str
    path: str | None
    identity: Identity
    content: Content


class Rerouting(NamedTuple):
    """To which destinations a file is sent by another choice, which it is not sent to any more, and which keep it.

    These were tried, or a person has to decide there.
    """

    gains: tuple[str, ...] = ()
    loses: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class UnremovedSource:
    """A copied source that is still to be removed from its inbox.

    ``path`` is its copy's, relative to the spool; "" once that was let go of, its row being settled. A file that was
    set aside has no ``content``. ``ctime_ns`` is the source's when it was copied; 0: not known.
    """

    file_id: int
    inbox: str
    relative_path: str
    source: SourceStat
    path: str
    content: Content | None
    ctime_ns: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptFile:
    """A file of the spool that is not needed any more, and what it was: before it goes, it must still be that.

    ``path`` is relative to the spool. ``ctime_ns`` 0 and ``mtime_ns`` None: not known. ``digests`` are those of the
    bytes before the data set and of the data set itself; None for a file that nobody could read.
    """

    path: str
    size_bytes: int
    mtime_ns: int | None
    ctime_ns: int
    digests: tuple[str, str] | None


class Resting(NamedTuple):
    """The confirmed row that a file rests on, and since when: a duplicate's is its holder, confirmed long before it."""

    delivery_id: int
    settled_at: datetime  # since then the file is not needed
    confirmed_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Removable:
    """A row whose files may go: the file, and its Explicit VR copy if any."""

    file_id: int
    study_uid: str  # "": it was refused, and none was read of it
    state: State
    inbox: str
    relative_path: str
    files: tuple[KeptFile, ...]
    size_bytes: int
    is_being_removed: bool = False  # as the ledger has it since a former try; whether they are there, nobody knows


@dataclass(frozen=True, kw_only=True, slots=True)
class Retried:
    """What ``retry_all`` did: rows moved, rows whose new admission was asked for, and refusals with their sentences."""

    moved: tuple[int, ...]
    requested: tuple[int, ...]
    refused: tuple[RefusedMove, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class InboxSummary:
    """An inbox as its last look found it; ``counts`` are the report's numbers by name.

    ``oldest_at``: since when the file without a row that waits longest lies in it.
    """

    inbox: str
    path: str
    alarm: str
    watching: str
    counts: Mapping[str, int]
    oldest_at: datetime | None = None
    at: datetime | None = None


# The kind of the alarm that a person may end by accepting the key that is there.
KEY_MADE_ANEW = "key_made_anew"
# For a spool whose files are another ledger's.
OTHER_LEDGER_STEP = (
    "take the ledger that knows them over (`ingestd ledger move`), or, where that is lost for good, move them out of "
    "the spool into a drop folder"
)
OTHER_ADDRESS_STEP = (
    "set its url back; or, where the server and what it has moved there, say so with "
    "`ingestd destination move NAME URL`; another server needs a name of its own under `destinations` (the one under "
    "`destination` is called `default`)"
)


def lost_spool_step(spool: Path | str, host: str) -> str:
    """Say what to do where the spool with this id is lost for good: one that has it is known, and found empty."""
    return (
        "where it is lost for good, make an empty one that has its id, as ingestd's user:"
        f" `install -d -m 700 {quote(str(spool))} && echo {host} > {quote(str(Path(spool, 'spool.id')))}`, where"
        " the ledger is in PostgreSQL put what a backup has of its search.key beside it, and restart ingestd, on"
        " each machine that has it; what was in it then shows as failed, unless the server has it, and is to be dropped"
        " again"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """Something that keeps files from being confirmed, or from being removed, until it ends or somebody acts.

    ``kind``, ``destination`` ("": none) and ``about`` (an inbox's name, "" for the whole host) name it: one of each
    stands at a time. ``note`` is what ``status`` prints behind "Stopped because", ``next_step`` what a person does;
    neither names a file.
    """

    kind: str
    about: str
    note: str
    next_step: str
    since: datetime
    destination: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClockLine:
    """The wall clock from here on: ``offset`` beyond CLOCK_BOOTTIME in this boot; ``jump.by`` 0 for a new boot."""

    boot: str
    offset: timedelta
    jump: Jump


@dataclass(frozen=True, kw_only=True, slots=True)
class DestinationStatus:
    """A destination of this ledger, and whether it is sent to.

    What waits there, its deliveries and their bytes and since when, is counted by ``queries.destinations`` only.
    """

    name: str
    url: str
    kind: str
    paused_until: datetime | None
    pause_cause: str
    pause_note: str
    paused_since: datetime | None
    last_ok_at: datetime | None
    unconfirmed: int = 0
    unconfirmed_bytes: int = 0
    oldest_unconfirmed_at: datetime | None = None
