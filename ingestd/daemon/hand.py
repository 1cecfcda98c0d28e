"""A file in our hands: everything that is known of it between the inbox and its row, and how it is told onward."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path

from ingestd.inbox import Candidate, Expect, Taken
from ingestd.ledger import Holder, Judged, KnownSource, Ledger
from ingestd.lifecycle import Arrival, Content, Identity, Reason, Refusal, SourceStat
from ingestd.reader import Inspection, Verdict

# A file that kills its reader this often is set aside, or its row is rejected.
KILLS_MOST = 2

_REFUSED: dict[Verdict, Reason] = {
    Verdict.SHORT: Reason.TRUNCATED,
    Verdict.EMPTY: Reason.TRUNCATED,
    Verdict.NOT_DICOM: Reason.NOT_DICOM,
    Verdict.DICOMDIR: Reason.DICOMDIR,
    Verdict.ARCHIVE: Reason.ARCHIVE,
    Verdict.HOSTILE: Reason.HOSTILE,
    Verdict.NO_UIDS: Reason.NO_UIDS,
}
_CLUTTER = frozenset({Reason.NOT_DICOM, Reason.DICOMDIR})


@dataclass(eq=False, slots=True)
class Hand:
    """A file in our hands. ``former`` is the REJECTED row it is read again for, ``wished`` whether a person asked."""

    candidate: Candidate
    candidate_id: int = 0
    inspection: Inspection | None = None
    arrival: Arrival | None = None
    refused: tuple[Reason, str] | None = None
    judged: Judged | None = None
    comparing: Holder | None = None
    copy: Path | None = None  # the server's copy of the holder, where the holder's file is gone
    comparisons: int = 0  # that came to nothing
    distrusts: int = 0  # the row whose file could not be compared with: its server's copy may be
    former: int | None = None
    wished: bool = False
    admit_anyway: bool = False
    doubts: tuple[KnownSource, ...] = ()  # of a file in place: rows that it may be
    stranded_at: str = ""  # where it lies in the spool, though the move failed
    moving_since: float = inf  # when (``Now.mono``) the mover was given it
    adopted: bool = False  # did not come from Inboxes.look

    @property
    def spool_path(self) -> str:
        """Where it lies in the spool, as far as it does."""
        if self.stranded_at:
            return self.stranded_at
        if self.arrival is not None:
            return self.arrival.path
        return self.candidate.relative_path if self.candidate.in_spool else ""

    @property
    def relative_path(self) -> str:
        """What the ledger is to call it: where it was dropped, or where it lies."""
        return self.candidate.dropped_as or self.candidate.relative_path


def reason_of(verdict: Verdict, *, was_admitted: bool) -> Reason:
    """Say why a file with this verdict is refused; what was admitted once is damaged now, and never clutter."""
    reason = _REFUSED.get(verdict, Reason.TRUNCATED)
    return Reason.CHANGED if was_admitted and reason in _CLUTTER else reason


def content_of(found: Inspection) -> Content:
    """Take what sameness and sending need from a reader's findings."""
    return Content(
        transfer_syntax=found.transfer_syntax,
        digest=found.digest,
        meta_digest=found.meta_digest,
        dataset_offset=found.dataset_offset,
        size_bytes=found.size_bytes,
    )


def identity_of(found: Inspection) -> Identity | None:
    """Take the three UIDs, if all are there."""
    if not (found.study_uid and found.series_uid and found.sop_uid):
        return None
    return Identity(study_uid=found.study_uid, series_uid=found.series_uid, sop_uid=found.sop_uid)


def source_of(found: Inspection) -> SourceStat:
    """Take the stat of the descriptor that was read."""
    return SourceStat(device=found.device, inode=found.inode, size_bytes=found.size_bytes, mtime_ns=found.mtime_ns)


def arrival_of(hand: Hand, ledger: Ledger, taken: Taken) -> Arrival:
    """Say what the ledger is to know of a file that was read whole and lies now where ``taken`` says."""
    found = hand.inspection
    assert found is not None
    identity = identity_of(found)
    assert identity is not None
    candidate = hand.candidate
    return Arrival(
        candidate_id=hand.candidate_id,
        inbox=candidate.inbox,
        relative_path=hand.relative_path,
        source=candidate.source,  # it was read as that, or the reader had said CHANGED
        path=taken.path,
        in_place=candidate.in_place,
        source_removed=taken.source_removed,
        identity=identity,
        sop_class_uid=found.sop_class_uid,
        content=content_of(found),
        priority=candidate.priority,
        modality=found.modality,
        station=found.station,
        patient_hash=ledger.search_hash("patient", found.patient_id),
        accession_hash=ledger.search_hash("accession", found.accession_number),
        notes=found.notes,
        ctime_ns=taken.ctime_ns,
        source_ctime_ns=taken.source_ctime_ns,
    )


def refusal_of(hand: Hand, taken: Taken) -> Refusal:
    """Say what the ledger is to know of a file that is refused and lies now where ``taken`` says."""
    assert hand.refused is not None
    reason, note = hand.refused
    candidate = hand.candidate
    return Refusal(
        candidate_id=hand.candidate_id,
        inbox=candidate.inbox,
        relative_path=hand.relative_path,
        source=candidate.source,
        path=taken.path,
        in_place=candidate.in_place,
        reason=reason,
        note=note,
        identity=identity_of(hand.inspection) if hand.inspection else None,
        priority=candidate.priority,
        source_removed=taken.source_removed,
        ctime_ns=taken.ctime_ns,
        source_ctime_ns=taken.source_ctime_ns,
    )


def expect_of(hand: Hand) -> Expect:
    """Say what the file must still be when it is moved."""
    found = hand.inspection
    if found is None:
        return Expect(source=hand.candidate.source)
    return Expect(
        source=hand.candidate.source,  # see arrival_of
        ctime_ns=found.ctime_ns,
        digest=found.digest,
        meta_digest=found.meta_digest,
        dataset_offset=found.dataset_offset,
    )


def stop_comparing(hand: Hand) -> None:
    """Let go of what a comparison needed."""
    hand.comparing = None
    if hand.copy is not None:
        hand.copy.unlink(missing_ok=True)
        hand.copy = None
