"""A file by what it is, what it holds and where it came from; and whether two hold the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from os import stat_result

from .routing import Route
from .states import Reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The three UIDs that name an instance (PS3.3 C.7.2.1, C.7.3.1, C.12.1), trailing space and NUL stripped."""

    study_uid: str
    series_uid: str
    sop_uid: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceStat:
    """What the kernel said of a file when we looked: enough to see that it is another file, or has changed.

    ``device`` 0: not known, or not the same after a remount; two that differ in nothing else are equal.
    """

    device: int = field(default=0, compare=False)
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
            and self.device in (0, found.st_dev)
        )

    def looks_like(self, other: SourceStat) -> bool:
        """Whether size and mtime are the same: all that holds for a file in place, whose share is mounted anew."""
        return (self.size_bytes, self.mtime_ns) == (other.size_bytes, other.mtime_ns)


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
