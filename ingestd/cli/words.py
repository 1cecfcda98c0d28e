"""What the ledger's codes are called on a screen; JSON keeps the codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from ingestd.lifecycle import Reason

from .common import clock

# Where the code itself is not the field's word for it.
_REASONS = {
    Reason.NOT_DICOM: "no DICOM",
    Reason.DICOMDIR: "DICOMDIR",
    Reason.NO_UIDS: "without UIDs",
    Reason.KILLED_READER: "killed its reader",
    Reason.NO_VERDICT: "no answer read",
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
