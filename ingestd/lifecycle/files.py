"""A file by what it is, what it holds and where it came from; and whether two hold the same."""

from __future__ import annotations

from dataclasses import dataclass

from ingestd.sameness import Sameness, SourceStat

from .routing import Route
from .states import Reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The three UIDs that name an instance (PS3.3 C.7.2.1, C.7.3.1, C.12.1), trailing space and NUL stripped."""

    study_uid: str
    series_uid: str
    sop_uid: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What a file holds, as far as sameness goes.

    ``digest`` is that of the data set's bytes after the File Meta group, ``meta_digest`` that of the bytes before it
    (preamble and group 0002; of nothing when the file has neither), as ``ingestd.digests`` writes them;
    ``dataset_offset`` is where the one ends and the other begins.
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
    sha256: str = ""  # in hex, of the whole file, for people; "" where none was taken
    priority: int = 0
    modality: str = ""
    station: str = ""
    patient_hash: str = ""  # keyed hashes; the plain values never reach the ledger
    accession_hash: str = ""
    notes: tuple[str, ...] = ()
    route: Route | None = None  # where it goes, and by which rule; None: to every destination
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


def compare_content(ours: Content, theirs: Content) -> Sameness:
    """Say whether two contents are the same object, or what is still needed to say so."""
    if ours.transfer_syntax != theirs.transfer_syntax:
        return Sameness.OTHER_ENCODING
    return Sameness.SAME if ours.digest == theirs.digest else Sameness.COMPARE
