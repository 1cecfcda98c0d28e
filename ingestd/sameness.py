"""Whether a file is still the one that was seen, and whether two hold the same: what a reader knows of the lifecycle.

It is here so that a reader's child need not import the rest, which is a quarter of what it takes to start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from os import stat_result


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


class Sameness(StrEnum):
    """How a new file, or a server's copy, compares with the row that holds its identity."""

    SAME = "same"
    OTHER = "other"
    OTHER_ENCODING = "other_encoding"
    NOT_WHOLE = "not_whole"  # theirs ends too early, or cannot be read as an object at all
    COMPARE = "compare"  # bytes differ, transfer syntax is the same: the canonical digests decide
