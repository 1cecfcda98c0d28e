"""The ledger's states, reasons and codes in words, and what to do about a row. Words only; JSON keeps the codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from ingestd.lifecycle import REFUSALS, Reason, State

from .asker import as_typed
from .output import clock

if TYPE_CHECKING:
    from ingestd.ledger import Entry

MEANING = {
    State.PENDING: "taken in, waiting to be sent",
    State.SENDING: "on its way to the server",
    State.UNCERTAIN: "sent, and not known to be there; the server is being asked",
    State.STORED: "the server said it stored it; proof is still to come",
    State.CONFIRMED: "the server itself shows it",
    State.FAILED: "given up; the file is kept, unless it is gone or had to make room",
    State.REJECTED: "not taken; the file is set aside or left where it is",
    State.UNROUTED: "taken in, and no rule says where it goes; the file is kept",
    State.DUPLICATE: "the same object is already here, with the same content or still to be compared",
    State.CONFLICT: "the same object with other content is already here or on the server; both are kept",
    State.DELETED: "was on the server, and somebody deleted it there",
    State.DISCARDED: "let go of, by a person or by a rule, or for other bytes in its place",
}

_WAIT = "nothing"
_RETRY = "retry it with `ingestd retry {id}`"
_DISCARD = "let go of it with `ingestd resolve {id} --discard`"
_WHY = "{why}"

# (state, reason): what to do next; (state, None) where the reason is not here. ``{id}`` is the ledger's number,
# ``{why}`` what the server or the reader said of the file, in brackets.
_NEXT: dict[tuple[State, Reason | None], str] = {
    (State.PENDING, None): f"{_WAIT}: it is sent when its study is due",
    (State.PENDING, Reason.NOT_SENT): f"{_WAIT}: it did not leave this machine and is tried again",
    (State.PENDING, Reason.ABSENT): f"{_WAIT}: the server does not have it, so it is sent again",
    (State.PENDING, Reason.CHANGED): f"{_WAIT}: the file changed after it was taken, and is read again",
    (State.PENDING, Reason.SERVER_ERROR): f"{_WAIT}: the server had trouble with it, and it is tried again",
    (State.PENDING, Reason.REFUSED): (
        "the server refused the request, which is tried again; where it refuses every one, its address is wrong: "
        "`ingestd check`"
    ),
    (State.PENDING, Reason.REENCODED): f"{_WAIT}: it is sent once more, in Explicit VR",
    (State.PENDING, Reason.HOLDER_GONE): f"{_WAIT}: the copy it duplicated is gone or not sent, so this one is",
    (State.SENDING, None): f"{_WAIT}: the request is on its way",
    (State.UNCERTAIN, None): f"{_WAIT}: ingestd asks the server and then knows; `ingestd reconcile` asks at once",
    (State.UNCERTAIN, Reason.BEING_CREATED): (
        f"{_WAIT}: the server says it is still being created; it is posted again alone, for a day at most"
    ),
    (State.UNCERTAIN, Reason.NOT_SHOWN): (
        "look for it on the server: it was stored there and nothing shows it; " + _RETRY.format(id="{id}")
    ),
    **{
        (State.UNCERTAIN, reason): f"{_WAIT} yet: ingestd asks the server whether it has it all the same"
        for reason in REFUSALS
    },
    (State.STORED, None): f"{_WAIT}: it is confirmed as soon as the server shows it",
    (State.CONFIRMED, None): "nothing: it is on the server",
    (State.DUPLICATE, None): "nothing: its content is taken care of by the file it duplicates",
    (State.DUPLICATE, Reason.NOT_COMPARED): (
        f"{_WAIT}: it is compared with the file that has its UIDs, or with the server's copy when that server answers"
    ),
    (State.DISCARDED, None): "nothing: it was decided; the file goes after the retain time",
    (State.FAILED, None): f"it was given up{_WHY}: mend the cause, then {_RETRY}, or {_DISCARD}",
    (State.FAILED, Reason.GONE): (
        f"the file vanished before it was confirmed: bring it back and drop it again, then {_DISCARD}"
    ),
    (State.FAILED, Reason.NO_ROOM): (
        "the disk was full and its destination is not required, so that its file was let go: drop it again when there "
        f"is room, then {_DISCARD}"
    ),
    (State.FAILED, Reason.TOO_LARGE): (
        f"the server takes no request of this size, even alone: raise its limit and {_RETRY}, or {_DISCARD}"
    ),
    (State.FAILED, Reason.SERVER_ERROR): (
        f"the server failed on this file again and again while others went through{_WHY}: look into its log, then "
        f"{_RETRY}"
    ),
    (State.FAILED, Reason.STUCK_ON_SERVER): (
        "the server says for a day that it is being created: delete the instance there "
        f"(`ingestd dicomweb delete` with the UIDs that `ingestd explain {{id}}` shows), then {_RETRY}"
    ),
    (State.FAILED, Reason.REFUSED): (
        f"the server will not have it{_WHY}: mend the file at its source and drop it again, or {_RETRY} after the "
        "server was changed"
    ),
    (State.REJECTED, None): f"it was not taken{_WHY}: mend the file and drop it again, or {_DISCARD}",
    (State.REJECTED, Reason.CHANGED): f"it was a whole image when it was taken; drop the image again, then {_DISCARD}",
    (State.REJECTED, Reason.NOT_DICOM): f"nothing, if it does not belong here; {_DISCARD}",
    (State.REJECTED, Reason.DICOMDIR): (
        "nothing: it is an index of other files, which are taken in by themselves; " + _DISCARD
    ),
    (State.REJECTED, Reason.ARCHIVE): f"unpack it and drop again what is in it; then {_DISCARD}",
    (State.REJECTED, Reason.TRUNCATED): (
        "export it again at its source: the file ends before its content does. If that is how it is meant to be, "
        "`ingestd resolve {id} --admit-anyway`"
    ),
    (State.REJECTED, Reason.NO_UIDS): (
        f"it cannot be sent without Study, Series and SOP Instance UID: export it again at its source, and {_DISCARD}"
    ),
    (State.REJECTED, Reason.HOSTILE): (
        "it asks for more memory or nesting than any image needs: find out where it comes from. If you trust it, "
        "`ingestd resolve {id} --admit-anyway`"
    ),
    (State.REJECTED, Reason.KILLED_READER): (
        "it brought down or hung the process that read it, twice: find out where it comes from; "
        f"after an update {_RETRY}"
    ),
    (
        State.REJECTED,
        Reason.UNREADABLE,
    ): f"it could not be read: look at its permissions and at the disk, then {_RETRY}",
    (State.UNROUTED, None): f"say in `rules` where such files go, then `ingestd route --again`; or {_DISCARD}",
    (State.CONFLICT, None): (
        "compare the two: keep the first with `ingestd resolve {id} --discard`, or, where the server can replace, "
        "send this one instead with `ingestd resolve {id} --replace`"
    ),
    (State.CONFLICT, Reason.NOT_COMPARABLE): (
        "look at both: whether they are the same cannot be found out{why}; then let go of this one with "
        "`ingestd resolve {id} --discard`, or, where the server can replace, send it instead with "
        "`ingestd resolve {id} --replace`"
    ),
    (State.CONFLICT, Reason.GONE): (
        "the file vanished before it could be compared: bring it back and drop it again, then " + _DISCARD
    ),
    (State.CONFLICT, Reason.OTHER_ENCODING): (
        "the same object in another transfer syntax, which cannot be compared byte by byte: keep the first with "
        "`ingestd resolve {id} --discard`, or, where the server can replace, send this one instead with "
        "`ingestd resolve {id} --replace`"
    ),
    (State.DELETED, Reason.DROPPED_AGAIN): f"nothing: its file was dropped again and is confirmed; or {_DISCARD}",
    (State.FAILED, Reason.DROPPED_AGAIN): f"nothing: its file was dropped again and is confirmed; or {_DISCARD}",
    (State.DELETED, None): (
        f"if it was deleted by mistake, {_RETRY} while the file is kept, or drop it again; else {_DISCARD}"
    ),
}


# What ``send`` took in waits for it, also when a daemon runs.
AFTER_SEND = "run `ingestd send` on its folder again: it came by that, and the daemon leaves it alone"


def next_step(state: State, reason: Reason | None, *, number: int | None = None, why: str = "") -> str:
    """Say in a sentence what to do next about a row in this state for this reason.

    ``why`` is what the server or the reader said of it; without one it is told how to see that.
    """
    sentence = _NEXT.get((state, reason)) or _NEXT[(state, None)]
    sentence = sentence.replace("{why}", f" ({why})" if why else " (why: `ingestd explain {id}`)")
    return as_typed(sentence.replace("{id}", "ID" if number is None else str(number)))


def advice_for(entry: Entry) -> str:
    """Say what to do next about this very row, and why it came to be what it is."""
    return next_step(entry.state, entry.reason, number=entry.delivery_id, why=_why_of(entry))


def alone_in_conflict(entry: Entry, holder: Entry) -> str:
    """Say what to do about a CONFLICT with a row that has given its identity up: there are no two any more."""
    had = f"row {holder.delivery_id}, which had its UIDs, is {holder.state}"
    return as_typed(f"{had}: {_RETRY}, which sends this one, or {_DISCARD}".replace("{id}", str(entry.delivery_id)))


def _why_of(entry: Entry) -> str:
    if entry.failure_reason is None:
        return entry.note.partition(";")[0]
    from ingestd.dicomweb import failure_meaning

    return f"{failure_meaning(entry.failure_reason)}, {entry.failure_reason:04X}H"


# Where the code itself is not the field's word for it.
_REASONS = {
    Reason.NOT_DICOM: "no DICOM",
    Reason.DICOMDIR: "DICOMDIR",
    Reason.NO_UIDS: "without UIDs",
    Reason.KILLED_READER: "killed its reader",
    Reason.NO_VERDICT: "no answer read",
    Reason.RECORD_LOST: "record perhaps lost",
    Reason.STORED_ANSWER: "stored, by its answer",
    Reason.FEED: "in the change feed",
    Reason.QUERY: "found by asking",
    Reason.CONTENT_CHECK: "content compared",
    Reason.ABSENT: "not on the server",
    Reason.REENCODED: "re-encoded",
}


def words_of(code: str | None) -> str:
    """Say a reason, a note or another code of the ledger in words."""
    if not code:
        return ""
    return _REASONS[Reason(code)] if code in _REASONS else code.replace("_", " ")


def reason_called(name: str) -> Reason | None:
    """Find the reason that goes by this name, its code or its words."""
    wanted = " ".join(name.replace("_", " ").casefold().split())
    found = (reason for reason in Reason if wanted in {reason.replace("_", " "), words_of(reason).casefold()})
    return next(found, None)


def evidence_in_words(evidence: Mapping[str, str]) -> Iterator[str]:
    """Say what a move rests on."""
    for name, value in evidence.items():
        match name, value:
            case ("present_before", "yes"):
                yield "the server had it before the post"
            case ("present_before", "no") | ("before_the_post", "absent"):
                yield "the server did not have it before the post"
            case ("content", "not compared"):
                yield "content not compared"
            case ("content", _):
                yield f"{words_of(value)} content" if value in {"same", "other"} else words_of(value)
            case ("sequence", _):
                yield f"change {value} of the server's feed"
            case ("server_time", _):
                yield f"of {clock(datetime.fromisoformat(value))}"
            case ("absences", _):
                yield "absent once" if value == "1" else f"absent {value} times"
            case ("silent_answers", _):
                yield f"{value} answers that do not name it"
            case _:
                yield f"{words_of(name)} {words_of(value)}"
