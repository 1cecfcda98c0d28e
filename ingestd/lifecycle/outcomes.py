"""What came of a post or of a question to the server, and what is known of the server that answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias

from ingestd.sameness import Sameness

from .batches import Batch
from .files import Content, Identity
from .states import Reason, State


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What becomes of one row, and why; the ledger carries it out if the row is still where it was.

    ``charge`` counts a charged attempt against the row; ``alone`` makes it travel alone next; ``wait`` keeps it from
    being due (PENDING) or from being asked about again (UNCERTAIN, STORED) for that long; ``reread`` asks for the
    file to be read again before anything else; ``reencode`` asks for the Explicit VR copy; ``needs_content_check``
    stays on the row until it leaves UNCERTAIN and STORED: no mere presence proves it any more.

    A state equal to the row's own says "asked, not settled". With reason ABSENT it counts an absence (on CONFIRMED
    too, where it is no fresh evidence); with any other reason the absences start over.

    ``expected`` is the state that the row was asked about in: found in another one, it is left alone. ``evidence_at``
    is when the server was asked (our clock): what the evidence is newer than.

    ``sameness`` is how a copy that was fetched compares. ``untold``: the server was asked and could not tell.
    ``mismatch``: the server, not another sender, is to blame for a copy that is not ours. ``noted``: the note stays on
    the row although it does not move. ``unnamed``: a complete answer to a post of it alone said nothing of it.
    """

    delivery_id: int
    state: State
    reason: Reason
    note: str = ""
    evidence: Mapping[str, str] = field(default_factory=dict)
    failure_reason: int | None = None
    warning_reason: int | None = None
    failed_attributes: tuple[str, ...] = ()
    charge: bool = False
    alone: bool = False
    wait: timedelta | None = None
    reread: bool = False
    reencode: bool = False
    needs_content_check: bool = False
    expected: State | None = None
    evidence_at: datetime | None = None
    sameness: Sameness | None = None
    untold: bool = False
    mismatch: bool = False
    noted: bool = False
    unnamed: bool = False


class PauseCause(StrEnum):
    """Why the destination as a whole is not sent to."""

    UNREACHABLE = "unreachable"
    NOT_AUTHORIZED = "not_authorized"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    MISCONFIGURED = "misconfigured"
    NO_TOKEN = "no_token"  # noqa: S105 - a word for the ledger, not a secret


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """A reason to stop sending to the destination for a while; ``retry_after`` is the server's own wish, clamped."""

    cause: PauseCause
    note: str
    retry_after: timedelta | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchResult:
    """What one Store Transaction came to: one outcome per part, and what it says about destination and study."""

    batch: Batch
    outcomes: tuple[Outcome, ...]
    finished_at: datetime
    http_status: int | None = None
    body_bytes_left: int = 0  # bytes of the body that may have left the machine
    seconds: float = 0.0
    error: str = ""
    pause: Pause | None = None
    charge_study: bool = False  # moves the study's next_attempt_at on and halves its next batch
    whole_batch_refused: bool = False  # 400, 404, 406, 415 for all of it: the daemon watches for three in a row
    # Such a 400 from a server that had just answered a search for these very files: about them, not about the address.
    content_refused: bool = False
    answered: bool = False  # a complete, readable answer came: the destination works
    silent: bool = False  # a complete answer says that the post was taken, and names no instance of it


# What can be written anew as Explicit VR Little Endian without loss: Implicit VR Little Endian, Explicit Big Endian.
REENCODABLE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.2"})

# A transfer syntax and a SOP class.
Kind: TypeAlias = tuple[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How far the server's word "it is there" is trusted to mean "as it was sent"; earned by copies that matched.

    ``matched`` counts them by kind, since the last mismatch. From ``mismatched_at`` until a person has settled it
    everything is compared and no file is removed. While nothing ever matched, ``studies`` are those that mismatched in
    a row; from ``stopped_at`` on nothing is compared any more.
    """

    matched: Mapping[Kind, int] = field(default_factory=dict)
    ever_matched: bool = False
    mismatched_at: datetime | None = None
    stopped_at: datetime | None = None
    studies: tuple[str, ...] = ()
    differs: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unproven:
    """A row the reconciler has to settle: STORED or UNCERTAIN (or CONFIRMED in an audit), with what is known of it."""

    delivery_id: int
    identity: Identity
    state: State
    content: Content
    path: str | None  # a place, see ``places``
    first_attempt_at: datetime | None
    last_attempt_at: datetime | None
    stored_at: datetime | None
    attempt_id: int | None = None  # the last attempt's
    reason: Reason | None = None
    note: str = ""
    present_before: bool | None = None  # in the query right before the post (servers that take duplicates silently)
    was_stored: bool = False  # it was STORED once: sent again at most once
    resends: int = 0  # times it was absent twice and sent again
    charged: int = 0  # charged attempts, as on Part
    absences: int = 0  # how often in a row the server did not have it
    absent_for: timedelta | None = None  # since this process saw the first of them, by the clock that nobody can set
    checks: int = 0  # how often it was asked about since it came into this state
    seen_sequence: int | None = None  # the newest change feed entry of this identity
    seen_action: str | None = None  # create, update, delete
    seen_state: str | None = None  # current, replaced, deleted
    seen_at: datetime | None = None  # that entry's timestamp (server's clock)
    needs_content_check: bool = False
    sop_class_uid: str = ""
    sampled: bool = False  # compared to earn, or to keep, the server's trust: presence would be enough else
    differs_since: datetime | None = None  # the first complete copy that was not ours, while that settles nothing yet
    untold_since: datetime | None = None  # since when the server was asked and could not tell
    unnamed: int = 0  # complete answers to a post of this file alone that did not name it
    reencoded: bool = False  # the content is that of the Explicit VR copy

    @property
    def kind(self) -> Kind:
        """What the trust in a server is counted by."""
        return self.content.transfer_syntax, self.sop_class_uid

    next_check_at: datetime | None = None  # found changed later: somebody else wants to have it looked at


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """The newest change feed entry of one identity in one read, words in lower case; ``at`` is the server's clock.

    ``disturbed`` says that the same read had other entries of this identity (deleted and stored again, updated in
    bulk): somebody else's hand was in it, and the row needs a content check. The same follows where a row already has
    a sighting with a lower sequence than this one.
    """

    identity: Identity
    sequence: int
    action: str
    state: str
    at: datetime
    disturbed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedCursor:
    """How far the change feed was read: v2 by time, v1 by sequence."""

    version: int
    since: datetime | None = None
    sequence: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedEnd:
    """The highest sequence of a change feed, 0 where it has no entries, and the latest time that any of them had.

    That is not always the same entry's: some may have been stamped while the server's clock was ahead.
    """

    sequence: int
    at: datetime | None = None


class ServerKind(StrEnum):
    """Which server we talk to, as far as its habits matter."""

    AZURE = "azure"
    ORTHANC = "orthanc"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerProfile:
    """How the destination behaves where servers differ; found by asking it, or set by the configuration.

    ``refuses_duplicates``: a second object under the same UIDs gets its own failure reason (45070), so that an answer
    "stored" proves that the server took *our* bytes. ``compares_all``: the server may answer "stored" and keep an
    older object, and it gives back the very bytes it was given, so that each instance can be compared.
    ``gives_original``: it is asked for what it was given, in the original syntax, and keeps that whatever else it makes
    of it.
    ``absence_wait`` lies between the two absences that make an instance absent.
    """

    kind: ServerKind
    refuses_duplicates: bool
    compares_all: bool
    gives_original: bool
    has_feed: bool
    feed_version: int | None
    absence_wait: timedelta
