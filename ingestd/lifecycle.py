"""The life of a file: its states, the legal moves between them, and the pure rules that choose one.

Nothing here touches a disk, a clock, a network or the ledger; every function takes plain values and gives plain
values back, so each rule can be read and tested alone. Everything that may change a row's state is in ``MOVES``.

G1  A PENDING, SENDING, UNCERTAIN, STORED, FAILED, CONFLICT or DUPLICATE (until its holder is confirmed) row has its
    file. What leaves the machine is what the digest says: it is checked while it streams, and the last 64 KB of each
    part are withheld until its digest matches; a mismatch kills the request.
G2  A spool file without a row is work not begun (a crash between the two); start-up admits it again.
G3  A file is removed only after CONFIRMED (or DISCARDED) is committed and ``retain`` has passed.
G4  A row moves only by UPDATE ... WHERE id AND expected state AND claim token; 0 rows means somebody else moved it,
    and we do nothing.
G5  Intent before act: nothing leaves the machine before a durable attempt row says it may have left.
G6  Unknown is a state. A status code is never evidence; only an identity that we asked for, named in a parsed answer
    or found on the server, is.
G7  A false rejection is as bad as a loss: what real equipment writes is admitted, with notes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from os import stat_result
from typing import TypeAlias


class State(StrEnum):
    """Where a file is in its life; the value is what the ledger and ``--json`` print."""

    PENDING = "PENDING"
    SENDING = "SENDING"
    UNCERTAIN = "UNCERTAIN"
    STORED = "STORED"
    CONFIRMED = "CONFIRMED"
    FAILED = "FAILED"
    REJECTED = "REJECTED"
    DUPLICATE = "DUPLICATE"
    CONFLICT = "CONFLICT"
    DELETED = "DELETED"
    DISCARDED = "DISCARDED"


# An identity is held by at most one row in these states (the ledger's partial unique index says the same).
HOLDING = frozenset({State.PENDING, State.SENDING, State.UNCERTAIN, State.STORED, State.CONFIRMED})
# Still on its way: what "the oldest unconfirmed file" and the end of ``run --once`` look at.
UNCONFIRMED = frozenset({State.PENDING, State.SENDING, State.UNCERTAIN, State.STORED})
# No longer on its way: what ``demo`` waits for.
ENDED = frozenset(
    {State.CONFIRMED, State.FAILED, State.REJECTED, State.DUPLICATE, State.CONFLICT, State.DELETED, State.DISCARDED}
)
NEEDS_PERSON = frozenset({State.FAILED, State.CONFLICT, State.REJECTED, State.DELETED})
# The server may be asked about it; what it answers about a row found anywhere else, moved meanwhile, changes nothing.
PROVABLE = frozenset({State.UNCERTAIN, State.STORED, State.CONFIRMED, State.DELETED})
# Its file may be removed once ``retain`` has passed since (G3).
SETTLED = frozenset({State.CONFIRMED, State.DISCARDED})
# A row that comes here has given up its identity for good: the oldest of its duplicates takes its place.
GIVES_IDENTITY_UP = frozenset({State.DELETED, State.FAILED, State.DISCARDED, State.REJECTED})


class Reason(StrEnum):
    """Why a row is where it is, as a word a person can search for; the sentence beside it is in the row's ``note``."""

    NOT_DICOM = "not_dicom"
    DICOMDIR = "dicomdir"
    ARCHIVE = "archive"
    TRUNCATED = "truncated"
    NO_UIDS = "no_uids"
    HOSTILE = "hostile"
    KILLED_READER = "killed_reader"
    UNREADABLE = "unreadable"
    SAME_CONTENT = "same_content"
    OTHER_CONTENT = "other_content"
    OTHER_ENCODING = "other_encoding"
    GONE = "gone"
    CHANGED = "changed"
    TOO_LARGE = "too_large"
    SERVER_ERROR = "server_error"
    STUCK_ON_SERVER = "stuck_on_server"
    BEING_CREATED = "being_created"
    REFUSED = "refused"
    NOT_SENT = "not_sent"
    NO_VERDICT = "no_verdict"
    PROCESS_DIED = "process_died"
    ALREADY_THERE = "already_there"
    STORED_ANSWER = "stored_answer"
    FEED = "feed"
    QUERY = "query"
    CONTENT_CHECK = "content_check"
    ABSENT = "absent"
    NOT_SHOWN = "not_shown"
    HOLDER_GONE = "holder_gone"
    DROPPED_AGAIN = "dropped_again"
    REENCODED = "reencoded"
    RETRIED = "retried"
    ADMITTED_ANYWAY = "admitted_anyway"
    REPLACED = "replaced"
    DISCARDED = "discarded"


# Verdicts that give a file up. The server may have it all the same, and is asked before the row is FAILED.
REFUSALS = frozenset({Reason.REFUSED, Reason.TOO_LARGE, Reason.SERVER_ERROR, Reason.STUCK_ON_SERVER})


def needs_person(state: State, reason: str | None) -> bool:
    """Whether a row waits for a person: not where its very file was dropped again, and that row is CONFIRMED."""
    return state in NEEDS_PERSON and reason != Reason.DROPPED_AGAIN


class IllegalMove(RuntimeError):
    """A move that the table does not have was asked for; nothing was changed."""


_S = State
# (from, to): when. ``None`` is "no row yet". Anything not here raises IllegalMove.
MOVES: Mapping[tuple[State | None, State], str] = {
    (None, _S.PENDING): "settled, whole, readable; durable in the spool first, then the row",
    (None, _S.REJECTED): "not DICOM, proven truncated, hostile, or without the UIDs",
    (None, _S.DUPLICATE): "the identity is held with the same content",
    (None, _S.CONFLICT): "the identity is held with other content",
    (_S.PENDING, _S.SENDING): "study due; claimed with a token, the attempt row written before connecting",
    (_S.PENDING, _S.PENDING): "the bytes no longer match the digest: read again, noted",
    (_S.SENDING, _S.PENDING): "proven not sent, or a verdict that asks for another try, or the bytes changed",
    (
        _S.PENDING,
        _S.UNCERTAIN,
    ): "the server refused its encoding, it cannot be re-encoded, and the server is asked first",
    (_S.PENDING, _S.DUPLICATE): "read again after a change: another row holds what it now is; or as below",
    # Nobody runs what was to send or prove it, and a row of a host that runs has the same content and takes its place.
    **{(before, _S.DUPLICATE): "its place is taken" for before in (_S.SENDING, _S.UNCERTAIN, _S.STORED)},
    (_S.PENDING, _S.CONFLICT): "read again after a change: another row holds its identity with other content",
    (_S.PENDING, _S.REJECTED): "read again after a change: no longer a whole DICOM file",
    (
        _S.UNCERTAIN,
        _S.FAILED,
    ): "gone, or refused, and the server, which was asked, does not have it or cannot tell for the grace time",
    (_S.SENDING, _S.STORED): "its SOP Instance UID is in the parsed answer's Referenced SOP Sequence",
    (
        _S.SENDING,
        _S.UNCERTAIN,
    ): "a body byte left and no verdict on it was read; or it is given up or gone, and the server is asked first",
    (_S.SENDING, _S.FAILED): "a verdict against this instance, of which not a byte had ever left",
    (_S.UNCERTAIN, _S.STORED): "the server shows it, proof of content to follow",
    (_S.UNCERTAIN, _S.CONFIRMED): "the server shows it, with our content",
    (_S.UNCERTAIN, _S.PENDING): "absent twice, or a person asked for another try",
    (_S.UNCERTAIN, _S.CONFLICT): "the server has this identity with other content, or less than all of ours",
    (_S.UNCERTAIN, _S.DELETED): "it was STORED once, and the change feed says that somebody deleted it since",
    (_S.STORED, _S.CONFIRMED): "proven on the server",
    (_S.STORED, _S.UNCERTAIN): "the grace time passed and nothing shows it",
    (_S.STORED, _S.CONFLICT): "the server kept an older object under this identity",
    (_S.STORED, _S.DELETED): "somebody deleted it on the server",
    (_S.CONFIRMED, _S.DELETED): "somebody deleted it on the server",
    (_S.CONFIRMED, _S.CONFLICT): "an audit found other content under this identity on the server",
    (_S.DELETED, _S.CONFIRMED): "it is there again with our content",
    (_S.DUPLICATE, _S.PENDING): "its holder became DELETED, FAILED or DISCARDED, or waits for what nobody runs",
    (_S.DUPLICATE, _S.CONFLICT): "its holder was read again after a change and now has other content",
    (_S.FAILED, _S.PENDING): "a person: retry",
    (_S.CONFLICT, _S.PENDING): "a person: retry, or resolve --replace",
    (_S.DELETED, _S.PENDING): "a person: retry",
    (_S.FAILED, _S.DISCARDED): "a person: resolve --discard",
    (_S.CONFLICT, _S.DISCARDED): "a person: resolve --discard",
    (_S.REJECTED, _S.DISCARDED): "a person: resolve --discard; or its file was admitted anew, as another row",
    (_S.DELETED, _S.DISCARDED): "a person: resolve --discard",
    # A holder that a person replaces; it holds its identity until this very transaction. Or, but for the last, what
    # only another `send` would send or prove: a person discards it.
    (_S.PENDING, _S.DISCARDED): "a person: resolve --replace of another row",
    (_S.UNCERTAIN, _S.DISCARDED): "a person: resolve --replace of another row",
    (_S.STORED, _S.DISCARDED): "a person: resolve --replace of another row",
    (_S.CONFIRMED, _S.DISCARDED): "a person: resolve --replace of another row",
}


def check_move(before: State | None, after: State) -> None:
    """Raise IllegalMove unless the table has this move."""
    if (before, after) not in MOVES:
        raise IllegalMove(f"no move from {before or 'no row'} to {after}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The three UIDs that name an instance (PS3.3 C.7.2.1, C.7.3.1, C.12.1), trailing space and NUL stripped."""

    study_uid: str
    series_uid: str
    sop_uid: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceStat:
    """What the kernel said of a file when we looked: enough to see that it is another file, or has changed."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, found: stat_result) -> SourceStat:
        """Take what stat(2) gave."""
        return cls(device=found.st_dev, inode=found.st_ino, size_bytes=found.st_size, mtime_ns=found.st_mtime_ns)

    def is_of(self, found: stat_result) -> bool:
        """Whether stat(2) gave all of this again: the very file, as it was."""
        return (
            found.st_mtime_ns == self.mtime_ns
            and found.st_size == self.size_bytes
            and found.st_ino == self.inode
            and found.st_dev == self.device
        )

    def looks_like(self, other: SourceStat) -> bool:
        """Whether size and mtime are the same: all that holds for a file in place, whose share is mounted anew."""
        return (self.size_bytes, self.mtime_ns) == (other.size_bytes, other.mtime_ns)


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What a file holds, as far as sameness goes.

    ``digest`` is the SHA-256 (hex) of the data set's bytes after the File Meta group, ``meta_digest`` that of the
    bytes before it (preamble and group 0002; of nothing when the file has neither); ``dataset_offset`` is where the
    one ends and the other begins.
    """

    transfer_syntax: str
    digest: str
    meta_digest: str
    dataset_offset: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """A file that was read whole and is durable where ``path`` says: what admission needs to know of it."""

    candidate_id: int | None
    inbox: str
    relative_path: str
    source: SourceStat
    path: str  # relative to the spool's folder for ``move``; absolute for ``in_place``
    in_place: bool
    source_removed: bool  # False while a copied source still waits for its removal
    identity: Identity
    sop_class_uid: str
    content: Content
    priority: int = 0
    modality: str = ""
    station: str = ""
    patient_hash: str = ""  # keyed hashes; the plain values never reach the ledger
    accession_hash: str = ""
    notes: tuple[str, ...] = ()
    ctime_ns: int = 0  # of the file in the spool while it was surely what was read; 0: nobody can say
    source_ctime_ns: int = 0  # the same of a copied source


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A file that is not admitted: it gets a REJECTED row and, with ``take: move``, a place in ``rejected/``."""

    candidate_id: int | None
    inbox: str
    relative_path: str
    source: SourceStat
    path: str
    in_place: bool
    reason: Reason
    note: str
    identity: Identity | None = None
    priority: int = 0
    source_removed: bool = True  # False while a copied source still waits for its removal
    ctime_ns: int = 0  # see Arrival
    source_ctime_ns: int = 0


class Sameness(StrEnum):
    """How a new file, or a server's copy, compares with the row that holds its identity."""

    SAME = "same"
    OTHER = "other"
    OTHER_ENCODING = "other_encoding"
    NOT_WHOLE = "not_whole"  # theirs ends too early, or cannot be read as an object at all
    COMPARE = "compare"  # bytes differ, transfer syntax is the same: the canonical digests decide


def compare_content(ours: Content, theirs: Content) -> Sameness:
    """Say whether two contents are the same object, or what is still needed to say so."""
    if ours.transfer_syntax != theirs.transfer_syntax:
        return Sameness.OTHER_ENCODING
    return Sameness.SAME if ours.digest == theirs.digest else Sameness.COMPARE


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLimits:
    """When a study is due and where its batch is cut."""

    quiet_period: timedelta = timedelta(seconds=5)
    max_wait: timedelta = timedelta(seconds=60)
    max_bytes: int = 64_000_000
    max_instances: int = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyQueue:
    """One study's waiting rows in sum, as the ledger keeps them."""

    study_uid: str
    waiting: int
    waiting_bytes: int
    oldest_at: datetime
    newest_at: datetime
    next_attempt_at: datetime | None = None
    charged: int = 0  # charged attempts in a row, 0 after a success
    priority: int = 0


def study_due_at(study: StudyQueue, limits: BatchLimits, *, flush: bool = False) -> datetime:
    """Say when this study is due: quiet, waiting too long, or full; never before its backoff ends.

    ``flush`` ignores the quiet period (``run --once`` after its last scan).
    """
    full = study.waiting >= limits.max_instances or study.waiting_bytes >= limits.max_bytes
    if full or flush:
        due = study.oldest_at
    else:
        due = min(study.newest_at + limits.quiet_period, study.oldest_at + limits.max_wait)
    if study.next_attempt_at is not None and study.next_attempt_at > due:
        return study.next_attempt_at
    return due


def order_studies(
    studies: Iterable[StudyQueue], *, now: datetime, ageing: timedelta = timedelta(minutes=1)
) -> list[StudyQueue]:
    """Put the studies in the order they are served: by priority, which grows by one with each ``ageing`` waited.

    One that seems to wait since a time to come waits since before the clock was set back, and goes first.
    """

    def order(study: StudyQueue) -> tuple[bool, int, datetime]:
        waited = now - study.oldest_at
        return waited > -ageing, -(study.priority + int(waited / ageing)), study.oldest_at

    return sorted(studies, key=order)


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """One PENDING row as the cutter sees it."""

    entry_id: int
    sop_uid: str
    size_bytes: int
    charged: int = 0
    alone: bool = False  # a verdict in a batch named it: once more, alone


def cut_batch(rows: Iterable[Waiting], limits: BatchLimits, *, charged: int = 0) -> tuple[Waiting, ...]:
    """Take the next batch from the front of a study's waiting rows, oldest first.

    After n charged attempts the limits are halved n times over, down to one instance, so that a poison instance
    isolates itself in log2 steps. What counts is the study's ``charged`` or that of the row in the batch that has
    most: a row that was in failing batches keeps travelling in small ones while others succeed and clear the study.
    A batch never holds one SOP Instance UID twice, holds at least one row, and a row marked ``alone`` travels alone.
    A file larger than ``max_bytes`` is a batch of its own.
    """
    halvings = charged
    chosen: list[Waiting] = []
    seen: set[str] = set()
    size = 0
    for row in rows:
        if row.alone:
            if chosen:
                continue
            return (row,)
        if row.sop_uid in seen:
            continue
        halvings = max(halvings, row.charged)
        most = max(1, limits.max_instances >> halvings)
        if chosen and (len(chosen) >= most or size + row.size_bytes > limits.max_bytes >> halvings):
            break
        chosen.append(row)
        seen.add(row.sop_uid)
        size += row.size_bytes
    return tuple(chosen)


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """Doubling waits with jitter: ``base``, 2 x base, ... up to ``cap``."""

    base: timedelta = timedelta(seconds=5)
    cap: timedelta = timedelta(minutes=15)

    def wait(self, attempt: int, *, jitter: float) -> timedelta:
        """Wait before try ``attempt`` + 1 (attempt counts from 1); ``jitter`` in [0, 1) takes off up to half of it."""
        doubled = min(self.cap, self.base * (1 << min(max(attempt, 1) - 1, 30)))
        return doubled * (1 - jitter / 2)

    def charged_wait(self, charged: int, *, jitter: float) -> timedelta:
        """Wait after this charged attempt on one file, four times as long with each, so that ten of them span hours.

        A server that is in trouble for an hour must not turn a good file into a FAILED one.
        """
        return min(self.longest, self.base * (1 << min(2 * (max(charged, 1) - 1), 30))) * (1 - jitter / 2)

    @property
    def longest(self) -> timedelta:
        """The longest wait of them all."""
        return 4 * self.cap


RETRY_AFTER_LEAST = timedelta(seconds=1)
RETRY_AFTER_MOST = timedelta(minutes=15)


@dataclass(frozen=True, kw_only=True, slots=True)
class LongestWaits:
    """How far ahead each kind of wait that paces can lie: one that lies further was set by another clock, and is over.

    ``quiet`` is a study's quiet period, ``backoff`` what a study or row waits to be sent again, ``check`` what a row
    waits until the server is asked about it.
    """

    quiet: timedelta = timedelta(seconds=5)
    backoff: timedelta = timedelta(hours=1)
    check: timedelta = timedelta(hours=1)


def clamp_retry_after(asked: timedelta) -> timedelta:
    """Honour a Retry-After within reason: at least a second, at most a quarter of an hour."""
    return min(max(asked, RETRY_AFTER_LEAST), RETRY_AFTER_MOST)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One instance of a batch: which row, which file, and the digests that it must still have."""

    entry_id: int
    identity: Identity
    path: str  # a place, see ``places``
    content: Content
    attempts: int = 0  # all attempts on this row, charged or not
    charged: int = 0  # charged attempts on this row since it last moved for the better
    sop_class_uid: str = ""  # for the File Meta that is written in front of a file without one
    being_created_since: datetime | None = None  # the first of its answers 45071 in a row, if the last one was that
    reencoded: bool = False  # the path is the Explicit VR Little Endian copy
    replaces: bool = False  # a person decided (`resolve --replace`) that it takes the place of what the server has: PUT
    generated_meta: bool = False  # the file has no File Meta: one is written in front while sending


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one Store Transaction carries. ``attempt_id`` and ``claim_token`` are durable before it is handed out."""

    attempt_id: int
    claim_token: str
    study_uid: str
    parts: tuple[Part, ...]
    started_at: datetime
    charged: int = 0

    @property
    def size_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(part.content.size_bytes for part in self.parts)


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

    entry_id: int
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Jump:
    """The wall clock was set: what it showed right after (``at``), and how far it went (``by``; negative: back).

    What came before it is told by what was on record, not by the time: rows up to ``last_entry_id``, attempts up to
    ``last_attempt_id``.
    """

    at: datetime
    by: timedelta
    last_entry_id: int = 0
    last_attempt_id: int = 0


def surely_since(since: datetime, *, now: datetime, jump: Jump | None) -> datetime:
    """Say from when a time counts that must have passed for certain: anew across a jump of the wall clock."""
    if jump is None or jump.at > now:
        return min(since, now)
    return max(since, jump.at) if since <= now else jump.at


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

    entry_id: int
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
