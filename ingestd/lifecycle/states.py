"""Where a file can be in its life, why, and the moves between; ``MOVES`` has every one that is legal."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Where a file is in its life; the value is what the ledger and ``--json`` print."""

    PENDING = "PENDING"
    SENDING = "SENDING"
    UNCERTAIN = "UNCERTAIN"
    STORED = "STORED"
    CONFIRMED = "CONFIRMED"
    FAILED = "FAILED"
    REJECTED = "REJECTED"
    UNROUTED = "UNROUTED"
    DUPLICATE = "DUPLICATE"
    CONFLICT = "CONFLICT"
    DELETED = "DELETED"
    DISCARDED = "DISCARDED"


# Ends of a file that has no delivery.
FILE_ENDS = frozenset({State.REJECTED, State.UNROUTED, State.DISCARDED})
# An identity is held by at most one delivery in these states (the ledger's partial unique index says the same).
HOLDING = frozenset({State.PENDING, State.SENDING, State.UNCERTAIN, State.STORED, State.CONFIRMED})
# Still on its way: what "the oldest unconfirmed file" and the end of ``run --once`` look at.
UNCONFIRMED = frozenset({State.PENDING, State.SENDING, State.UNCERTAIN, State.STORED})
# No longer on its way: what ``demo`` waits for.
ENDED = frozenset({State.CONFIRMED, State.FAILED, State.DUPLICATE, State.CONFLICT, State.DELETED} | FILE_ENDS)
NEEDS_PERSON = frozenset({State.FAILED, State.CONFLICT, State.REJECTED, State.UNROUTED, State.DELETED})
# The server may be asked about it; what it answers about a row found anywhere else, moved meanwhile, changes nothing.
PROVABLE = frozenset({State.UNCERTAIN, State.STORED, State.CONFIRMED, State.DELETED})
# Its file may be removed once ``retain`` has passed since (G3).
SETTLED = frozenset({State.CONFIRMED, State.DISCARDED})
# A row that comes here has given up its identity for good: the oldest of its duplicates takes its place.
GIVES_IDENTITY_UP = frozenset({State.DELETED, State.FAILED, State.DISCARDED})


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
    NOT_COMPARED = "not_compared"
    NOT_COMPARABLE = "not_comparable"
    OTHER_CONTENT = "other_content"
    OTHER_ENCODING = "other_encoding"
    GONE = "gone"
    NO_ROOM = "no_room"
    CHANGED = "changed"
    TOO_LARGE = "too_large"
    SERVER_ERROR = "server_error"
    STUCK_ON_SERVER = "stuck_on_server"
    BEING_CREATED = "being_created"
    REFUSED = "refused"
    NOT_SENT = "not_sent"
    NO_VERDICT = "no_verdict"
    PROCESS_DIED = "process_died"
    RECORD_LOST = "record_lost"
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
    NO_RULE = "no_rule"
    BY_RULE = "by_rule"


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
    (None, _S.DUPLICATE): "the identity is held with the same content, or with bytes that have to be compared yet",
    (None, _S.CONFLICT): "the identity is held in another encoding",
    (_S.PENDING, _S.SENDING): "study due; claimed with a token, the attempt row written before connecting",
    (_S.PENDING, _S.PENDING): "its file was read again, and is what it was",
    (_S.SENDING, _S.PENDING): "proven not sent, or a verdict that asks for another try, or the bytes changed",
    (
        _S.PENDING,
        _S.UNCERTAIN,
    ): "refused for its encoding and not re-encodable, or perhaps sent with the record lost: the server is asked first",
    **{
        (before, _S.FAILED): "the disk is full, and no destination that is required wants its file"
        for before in (_S.PENDING, _S.DUPLICATE)
    },
    # Nobody runs what was to send or prove it, and a row of a host that runs has the same content and takes its place.
    **{(before, _S.DUPLICATE): "its place is taken" for before in (_S.PENDING, _S.SENDING, _S.UNCERTAIN, _S.STORED)},
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
    (_S.DUPLICATE, _S.DUPLICATE): "compared with its holder: the same content; or its file was read again before that",
    (_S.DUPLICATE, _S.CONFLICT): "compared with its holder: other content, or they cannot be compared",
    (_S.DUPLICATE, _S.DISCARDED): "a person: route --again, destination remove; or its bytes are others now",
    # Of what a rule took from a destination before, and nobody else.
    **{
        (_S.DISCARDED, after): "a person: route --again, by rules that send it there after all"
        for after in (_S.PENDING, _S.DUPLICATE, _S.CONFLICT)
    },
    (_S.FAILED, _S.PENDING): "a person: retry",
    (_S.CONFLICT, _S.PENDING): "a person: retry, or resolve --replace",
    (_S.DELETED, _S.PENDING): "a person: retry",
    (_S.FAILED, _S.DISCARDED): "a person: resolve --discard",
    (_S.CONFLICT, _S.DISCARDED): "a person: resolve --discard",
    (_S.DELETED, _S.DISCARDED): "a person: resolve --discard",
    # A holder that a person replaces; it holds its identity until this very transaction. Or, but for the last, what
    # only another `send` would send or prove: a person discards it.
    (
        _S.PENDING,
        _S.DISCARDED,
    ): "a person: resolve --replace of another row, destination remove, route --again; or its bytes are others now",
    (_S.SENDING, _S.DISCARDED): "a person: destination remove, while nobody sends",
    (_S.UNCERTAIN, _S.DISCARDED): "a person: resolve --replace of another row, or destination remove",
    (_S.STORED, _S.DISCARDED): "a person: resolve --replace of another row, or destination remove",
    (_S.CONFIRMED, _S.DISCARDED): "a person: resolve --replace of another row",
}


# The same of a file that has no delivery. Where `route --again` gives it some it has no state of its own any more.
FILE_MOVES: Mapping[tuple[State | None, State], str] = {
    (None, _S.REJECTED): "not DICOM, proven truncated, hostile, or without the UIDs",
    (None, _S.UNROUTED): "no rule wants it",
    (None, _S.DISCARDED): "a rule says that it goes nowhere",
    (_S.REJECTED, _S.DISCARDED): "a person: resolve --discard; or its file was admitted anew, as another row",
    (
        _S.UNROUTED,
        _S.DISCARDED,
    ): "a person: resolve --discard; or route --again, by a rule that says so; or retry, as another row",
}


def check_move(before: State | None, after: State, table: Mapping[tuple[State | None, State], str] = MOVES) -> None:
    """Raise IllegalMove unless the table has this move."""
    if (before, after) not in table:
        raise IllegalMove(f"no move from {before or 'no row'} to {after}")
