"""What becomes of a file that was read: taken, refused, or left to come again; one table, whoever wants it read.

Where the origin of a file matters it is said here: a file in a folder may still be growing, so that what is short waits
until it is ``final``; a person's request wants an answer now; a row's own file was whole once, so that whatever else it
holds by now is damage and no clutter, and other bytes with the ctime of before are the disk's doing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ingestd.daemon.steps import Origin, Rejection, Seen, identity_of
from ingestd.inbox import Leave
from ingestd.lifecycle import Reason
from ingestd.reader import Inspection, Read, Verdict

# A file that kills its reader this often is set aside, or its row is rejected.
KILLS_MOST = 2

# A file with one of these adds up; of ZEROS it is only unsure, while it may grow, whether it was written to its end.
ADMISSIBLE = frozenset({Verdict.WHOLE, Verdict.ZEROS})
# Of WHOLE no file is refused, and CHANGED and UNREADABLE say nothing about what a file holds.
_REFUSED: dict[Verdict, Reason] = {
    Verdict.SHORT: Reason.TRUNCATED,
    Verdict.EMPTY: Reason.TRUNCATED,
    Verdict.ZEROS: Reason.TRUNCATED,
    Verdict.NOT_DICOM: Reason.NOT_DICOM,
    Verdict.DICOMDIR: Reason.DICOMDIR,
    Verdict.ARCHIVE: Reason.ARCHIVE,
    Verdict.HOSTILE: Reason.HOSTILE,
    Verdict.NO_UIDS: Reason.NO_UIDS,
}
_CLUTTER = frozenset({Reason.NOT_DICOM, Reason.DICOMDIR})
_INCOMPLETE = frozenset({Verdict.SHORT, Verdict.EMPTY, Verdict.ZEROS})
_ROTTEN = (
    "it holds other bytes than were taken in, and nobody has written to it since: its disk has altered them, so that it"
    " is not sent; drop it again from its source, and have the disk looked at"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """It is taken, with these findings."""

    found: Inspection


def reason_of(verdict: Verdict, *, was_admitted: bool) -> Reason:
    """Say why a file with this verdict is refused; what was admitted once is damaged now, and never clutter."""
    reason = _REFUSED[verdict]
    return Reason.CHANGED if was_admitted and reason in _CLUTTER else reason


def refused_as(seen: Seen, verdict: Verdict) -> Reason:
    return reason_of(verdict, was_admitted=seen.candidate.was_admitted or seen.origin.row is not None)


def died(origin: Origin) -> Rejection:
    """Say why a file is refused that ended ``KILLS_MOST`` readers."""
    if origin.row is not None:
        note = f"it changed after it was admitted, and reading it ended {KILLS_MOST} reader processes"
    else:
        note = f"reading it ended {KILLS_MOST} reader processes; it is damaged or hostile"
    return Rejection(reason=Reason.KILLED_READER, note=note)


def judge(seen: Seen, read: Read) -> Whole | Rejection | Leave:
    """Say what becomes of a file by what a reader, which did not die of it, has found."""
    found, origin, candidate = read.inspection, seen.origin, seen.candidate
    if found is None or found.verdict is Verdict.CHANGED:
        return Leave.AGAIN
    if found.verdict is Verdict.UNREADABLE:
        # A person waits for an answer.
        return Rejection(reason=Reason.UNREADABLE, note=found.reason_text) if origin.requested else Leave.UNREADABLE
    if _is_rotten(origin, found):
        return Rejection(reason=Reason.CHANGED, note=_ROTTEN)
    has_identity = identity_of(found) is not None
    if has_identity and (found.verdict is Verdict.WHOLE or (found.verdict is Verdict.ZEROS and candidate.final)):
        return Whole(found=found)
    if has_identity and origin.admit_anyway:
        return Whole(found=replace(found, notes=(*found.notes, f"admitted_anyway_{found.verdict}")))
    if found.verdict in _INCOMPLETE and not candidate.final and not origin.requested:
        return Leave.INCOMPLETE
    is_nameless = found.verdict in ADMISSIBLE and not has_identity
    reason = Reason.NO_UIDS if is_nameless else refused_as(seen, found.verdict)
    prefix = "it changed after it was admitted: " if origin.row is not None else ""
    return Rejection(reason=reason, note=prefix + found.reason_text)


def _is_rotten(origin: Origin, found: Inspection) -> bool:
    row = origin.row
    if row is None or row.in_place or found.ctime_ns != row.ctime_ns:
        return False
    return (found.meta_digest, found.digest) != (row.content.meta_digest, row.content.digest)
