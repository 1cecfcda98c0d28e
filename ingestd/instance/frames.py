"""What a walk is made of: where it may stop, and the sequences, items and fragments that it is in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from ingestd.instance.source import Window


class WalkEvent(Enum):
    """Where the walk stopped."""

    ELEMENT = auto()
    SEQUENCE = auto()
    SEQUENCE_END = auto()
    ITEM = auto()
    ITEM_END = auto()
    FRAGMENTS = auto()
    FRAGMENT = auto()
    FRAGMENTS_END = auto()
    OPAQUE = auto()  # the rest of an item or sequence that cannot be read as elements
    END = auto()


class Kind(Enum):
    """What a frame is."""

    SEQUENCE = auto()
    ITEM = auto()
    FRAGMENTS = auto()


class Everything:
    """Holds every tag."""

    def __contains__(self, _tag: object) -> bool:
        return True


@dataclass(slots=True, eq=False)
class Frame:
    """A sequence, item or run of fragments that we are in."""

    kind: Kind
    end: int | None  # where its own length says it ends
    bound: int | None  # the nearest known end, its own or that of what holds it
    implicit: bool
    big: bool
    tag: int


def fits(end: int, frame: Frame | None, window: Window) -> bool:
    """Whether something may reach up to this offset; where only the end of the stream will tell, it may."""
    if frame is not None and frame.bound is not None:
        return end <= frame.bound
    return window.size is None or end <= window.size
