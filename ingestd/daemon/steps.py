"""A file on its way to its row: one frozen step at a time, which carries only what is known by then.

    Seen -> Reading -> Moving ---> Arrived -> Recorded
               |          |
               |          '-> Misplaced: it left its folder, and the spool's disk failed: looked at again
               '-> Returned: no verdict; its folder is told, and it comes again

``admission`` makes the next step of a step and an answer, in the transaction that writes it, and begins it once that is
durable. ``Origin`` says whose file it is; which rules differ for it stands in ``judgement``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ingestd.inbox import Candidate, Expect, Leave, Taken, name_in_spool, new_name
from ingestd.ledger import KnownSource, Ledger, RowToRead
from ingestd.lifecycle import Arrival, Content, Identity, Reason, Refusal, Route, State
from ingestd.reader import Inspection


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Who wants the file read: its folder did, where nothing is said."""

    adopted: bool = False  # it lies in the spool without a row, and was never the inboxes' to follow
    former: int | None = None  # the REJECTED row whose file it is
    requested: bool = False  # a person asked for that row, and waits for an answer
    admit_anyway: bool = False  # the person knows that it is not whole
    row: RowToRead | None = None  # the row that waits, whose file it is, which may hold other bytes by now

    @property
    def has_row(self) -> bool:
        """Whether it is the file of a row already."""
        return self.row is not None or self.former is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A file that looks finished; ``doubts`` are rows that one which stays in its folder may be."""

    candidate: Candidate
    origin: Origin = Origin()
    doubts: tuple[KnownSource, ...] = ()

    @property
    def relative_path(self) -> str:
        """What the ledger is to call it: where it was dropped, or where it lies."""
        return self.candidate.dropped_as or self.candidate.relative_path

    @property
    def seen(self) -> Seen:
        """Each step says which file it is of."""
        return self

    @property
    def like(self) -> str:
        """A digest of the row that it may be, which its own are to be held against; "" where there is none."""
        if self.origin.row is not None:
            return self.origin.row.content.digest
        return next((row.digests[1] for row in self.doubts if row.digests), "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Noted:
    """A file whose candidate row is durable; ``candidate_id`` None: it has a row already."""

    seen: Seen
    candidate_id: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading(Noted):
    """It is with a reader; ``target`` is the name that it will have in the spool (see ``target_of``)."""

    target: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """Why it is refused, in a word and in a sentence."""

    reason: Reason
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Moving(Noted):
    """It was read, and is on its way into the spool, or aside; ``since`` is when (``Now.mono``)."""

    target: str
    found: Inspection | None
    refused: Rejection | None
    since: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrived(Noted):
    """It lies where it is to stay and was read whole: the ledger says in this transaction what becomes of it."""

    arrival: Arrival


@dataclass(frozen=True, kw_only=True, slots=True)
class Misplaced(Noted):
    """It left its folder and lies at ``path`` in the spool, as far as anybody could see.

    Until it is found its candidate row alone has the name it was dropped under.
    """

    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Returned:
    """No row came of it; ``told`` None: nobody is to be told; ``is_full``: the spool had no space for it."""

    seen: Seen
    told: Leave | None
    is_full: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """Its row is durable; ``copied``: its source still lies in the folder, and waits for its removal."""

    seen: Seen
    number: int
    state: State
    reason: str = ""
    copied: bool = False


Step: TypeAlias = Seen | Reading | Moving | Misplaced | Returned | Recorded


def target_of(seen: Seen) -> str:
    """Say which name the file has or is to have in the spool, "" where it stays out of it.

    One without a row keeps its name whichever room it lies in: by that its candidate row is found again. But a folder
    of ``rejected/`` may hold what somebody put there, and a file that has a row has its place.
    """
    candidate = seen.candidate
    if candidate.in_place:
        return ""
    is_ours = candidate.relative_path.startswith("files/") or candidate.dropped_as
    if candidate.in_spool and seen.origin.former is None and is_ours:
        return name_in_spool(candidate.relative_path)
    return new_name()


def spool_path_of(step: Step) -> str:
    """Say where it lies in the spool, as far as it does."""
    if isinstance(step, Misplaced):
        return step.path
    candidate = step.seen.candidate
    return candidate.relative_path if candidate.in_spool else ""


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


# Where a file goes, by its inbox, its path in that, and what was read of it.
Routing: TypeAlias = Callable[[str, str, Inspection], Route]


def arrival_of(noted: Noted, found: Inspection, ledger: Ledger, taken: Taken, routing: Routing) -> Arrival:
    """Say what the ledger is to know of a file that was read whole and lies now where ``taken`` says."""
    identity, candidate = identity_of(found), noted.seen.candidate
    assert identity is not None, "what has no identity is refused"
    # What was found in the spool may have lost the name that it was dropped under.
    dropped_as = candidate.dropped_as if candidate.in_spool else noted.seen.relative_path
    return Arrival(
        candidate_id=noted.candidate_id,
        inbox=candidate.inbox,
        relative_path=noted.seen.relative_path,
        source=candidate.source,  # it was read as that, or the reader had said CHANGED
        path=taken.path,
        in_place=candidate.in_place,
        source_removed=taken.source_removed,
        identity=identity,
        sop_class_uid=found.sop_class_uid,
        content=content_of(found),
        sha256=found.sha256,
        priority=candidate.priority,
        modality=found.modality,
        station=found.station,
        patient_hash=ledger.search_key.hash("patient", found.patient_id),
        accession_hash=ledger.search_key.hash("accession", found.accession_number),
        notes=found.notes,
        route=routing(candidate.inbox, dropped_as, found),
        ctime_ns=taken.ctime_ns,
        source_ctime_ns=taken.source_ctime_ns,
    )


def refusal_of(noted: Noted, found: Inspection | None, refused: Rejection, taken: Taken) -> Refusal:
    """Say what the ledger is to know of a file that is refused and lies now where ``taken`` says."""
    candidate = noted.seen.candidate
    return Refusal(
        candidate_id=noted.candidate_id,
        inbox=candidate.inbox,
        relative_path=noted.seen.relative_path,
        source=candidate.source,
        path=taken.path,
        in_place=candidate.in_place,
        reason=refused.reason,
        note=refused.note,
        identity=identity_of(found) if found else None,
        priority=candidate.priority,
        source_removed=taken.source_removed,
        ctime_ns=taken.ctime_ns,
        source_ctime_ns=taken.source_ctime_ns,
    )


def expect_of(moving: Moving) -> Expect:
    """Say what the file must still be when it is moved."""
    candidate, found = moving.seen.candidate, moving.found
    if found is None:
        return Expect(source=candidate.source)
    return Expect(
        source=candidate.source,  # see arrival_of
        ctime_ns=found.ctime_ns,
        digest=found.digest,
        meta_digest=found.meta_digest,
        dataset_offset=found.dataset_offset,
    )


def where_it_lies(seen: Seen, found: Inspection | None) -> Taken:
    """Say where a file lies that is not moved; its ctime is 0 where none surely stood still while it was read."""
    candidate = seen.candidate
    path = candidate.relative_path if candidate.in_spool else candidate.path
    if found is not None:
        ctime_ns = found.ctime_ns if candidate.ctime_ns in (0, found.ctime_ns) else 0
    else:
        # Nobody could read it: as it was seen it is not tried again. What lies in the spool may be removed by this.
        ctime_ns = candidate.ctime_ns if candidate.in_place else 0
    return Taken(candidate=candidate, path=path, ctime_ns=ctime_ns)
