"""What the inbox room and its caller hand each other: plain, frozen values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, TypeAlias

from ingestd.fs.places import below_of

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from ingestd.lifecycle import SourceStat

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


class Take(StrEnum):
    """What happens to a file that is admitted: it moves into the spool, or stays where it is."""

    MOVE = "move"
    IN_PLACE = "in_place"


class Watch(StrEnum):
    """How a folder is watched between scans; ``auto`` decides by the type of its mount."""

    AUTO = "auto"
    EVENTS = "events"
    POLL = "poll"


def check_inbox_name(name: str) -> str:
    """Return the name if it can be a folder's name inside the spool, else raise ValueError."""
    if not _NAME.fullmatch(name):
        message = f"inbox name {name!r} is not 1 to 64 letters, digits, '.', '_' or '-', not starting with '.' or '-'"
        raise ValueError(message)
    return name


@dataclass(frozen=True, kw_only=True, slots=True)
class InboxPolicy:
    """One drop folder and what is done with what lies in it.

    ``name`` is this inbox's stable id: a folder's name inside the spool and a key of the ledger. ``settle`` None
    means 2 s on a local disk and 30 s on a network mount. ``ignore`` holds globs (``fnmatch``), matched against the
    base name and against the path relative to the inbox. ``only``: the relative paths of the files that were asked
    for by name; nothing else in the folder is looked at, and no ignore rule holds for them. ``emptied_after``: folders
    that lay empty for that long are told by ``take_emptied``; None: none is.
    ``by_ctime``: on a local disk a file that has not changed for ``settle`` when it is first seen need not settle.
    ``unfinished_after``: a hidden or temporary name, or what is no regular file, is told after so long unchanged.
    """

    name: str
    path: Path
    take: Take = Take.MOVE
    settle: timedelta | None = None
    by_ctime: bool = False
    incomplete_after: timedelta = timedelta(minutes=15)
    unfinished_after: timedelta = timedelta(minutes=15)
    watch: Watch = Watch.AUTO
    priority: int = 0
    ignore: tuple[str, ...] = ()
    only: frozenset[str] | None = None
    emptied_after: timedelta | None = None

    def __post_init__(self) -> None:
        """Refuse a name that cannot be a folder's."""
        check_inbox_name(self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A file that looks finished, as it was when we last looked.

    ``relative_path`` and ``path`` are ``os.fsdecode``d (surrogateescape). ``final``: it did not change for
    ``incomplete_after``, so that "short" or "empty" is now a verdict. ``in_spool``: it already lies in the spool
    (a file without a row, or one in ``rejected/``); its ``relative_path`` is then relative to the spool, and
    ``dropped_as`` what it was in its inbox, where that is still known. ``was_admitted``: it was written to after it had
    been taken for an image once, so that it is no clutter whatever it is now.
    """

    inbox: str
    relative_path: str
    path: str
    source: SourceStat
    final: bool = False
    priority: int = 0
    in_place: bool = False
    in_spool: bool = False
    dropped_as: str = ""
    was_admitted: bool = False
    ctime_ns: int = 0  # 0: not known

    @property
    def place(self) -> str:
        """How it is reached (see ``places``)."""
        return self.path if self.in_spool else below_of(self.path, self.relative_path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What one ``Inboxes.look`` found.

    ``asked`` are files that the ledger may already know (see ``Inboxes.answer_known``). ``next_at`` is when to look
    again, on ``clocks.boottime``: in the past or now when there is more to do at once, None when only an
    event or the caller's answer brings more.
    """

    ready: tuple[Candidate, ...] = ()
    asked: tuple[Candidate, ...] = ()
    next_at: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class InboxReport:
    """How one inbox is doing.

    ``ignored``, ``not_regular``, ``dicomdir`` and ``directories`` are what the last complete scan counted and
    ``unreadable`` what cannot be opened now; ``files_seen``, ``vanished``, ``found_by_scan`` and ``overflows`` count
    since the start; the ``waiting_`` figures and ``in_hand`` (handed out, not yet decided) are of this moment.
    ``found_by_scan`` are files that no event named although events are on. ``barred`` are the files that could not be
    opened, read or moved, and the folders that may not be listed; ``stale_ignored`` files whose unfinished or hidden
    name is older than ``unfinished_after``, ``stale_not_regular`` links and devices that are; ``too_deep`` and
    ``other_device`` folders that are not looked into.
    ``oldest_since``: since when (monotonic) the file that waits longest lies there. ``alarm`` says what is wrong with
    the folder, "" when nothing is; ``degraded`` what costs only latency.
    """

    inbox: str
    files_seen: int = 0
    waiting_settle: int = 0
    waiting_incomplete: int = 0
    waiting_writer: int = 0
    in_hand: int = 0
    ignored: int = 0
    not_regular: int = 0
    stale_not_regular: int = 0
    unreadable: int = 0
    barred: int = 0
    stale_ignored: int = 0
    too_deep: int = 0
    other_device: int = 0
    oldest_since: float | None = None
    dicomdir: int = 0
    vanished: int = 0
    directories: int = 0
    found_by_scan: int = 0
    overflows: int = 0
    scans: int = 0
    scanning: bool = False
    watching: str = "poll"
    mount_type: str = ""
    alarm: str = ""
    degraded: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expect:
    """What the reader found in a file, which it must still be when it is taken.

    ``source`` is the ``fstat`` of the descriptor that was read, and ``ctime_ns`` its ctime, 0 where that is not known.
    The digests are checked while a file is copied from another filesystem; empty digests are not checked (files that
    are set aside unread).
    """

    source: SourceStat
    ctime_ns: int = 0
    digest: str = ""
    meta_digest: str = ""
    dataset_offset: int = 0


class WhyNot(StrEnum):
    """Why a file was not taken; it lies where it lay."""

    CHANGED = "changed"
    GONE = "gone"
    NO_SPACE = "no_space"
    NO_ROOM = "no_room"  # this file is too large for what is free; others may fit
    NO_SPOOL = "no_spool"  # what is not there, or may not be written, is the spool, not the file or its folder
    ERROR = "error"


# A file that is to be brought into the spool, what it must still be, and its name there (see ``new_name``).
Wanted: TypeAlias = "tuple[Candidate, Expect, str]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """The file is durable at ``path`` (relative to the spool).

    ``source_removed`` is False after a copy: the source is removed once the row is committed. ``ctime_ns`` is the
    file's in the spool, and ``source_ctime_ns`` that of a copied source, while they were surely what was read; else 0.
    """

    candidate: Candidate
    path: str
    source_removed: bool = True
    ctime_ns: int = 0
    source_ctime_ns: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class NotTaken:
    """The file was left where it is; ``note`` is a sentence without its name."""

    candidate: Candidate
    why: WhyNot
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stranded:
    """The file left its folder and lies at ``path`` in the spool, without any promise: it is to be adopted."""

    candidate: Candidate
    path: str
    note: str = ""


Brought: TypeAlias = Taken | NotTaken | Stranded


class Removal(StrEnum):
    """What became of a source that was copied. All but ``WAITS`` end the matter."""

    REMOVED = "removed"
    GONE = "gone"
    CHANGED = "changed"  # another file is there now: left in place (or put back), taken as new
    WAITS = "waits"  # could not be done now


@dataclass(frozen=True, kw_only=True, slots=True)
class WasRead:
    """What the kernel said of a file when its bytes were surely those that the ledger knows; None, or 0: not known."""

    size_bytes: int
    mtime_ns: int | None
    ctime_ns: int

    def is_of(self, found: os.stat_result) -> bool:
        """Whether nobody can have written to it since: its writer can set the mtime back, but not the ctime.

        On older kernels all that happens within one tick has one ctime; that is what the other two are for.
        """
        return (
            0 < self.ctime_ns == found.st_ctime_ns
            and self.size_bytes == found.st_size
            and self.mtime_ns in (None, found.st_mtime_ns)
        )


class LetGo(StrEnum):
    """What became of a file of ours that was to go."""

    GONE = "gone"
    MISSING = "missing"  # not found, which does not say that it is gone
    CHANGED = "changed"  # it may hold other bytes by now: its content decides
    WRITER = "writer"  # somebody has it open for writing
    STUCK = "stuck"  # could not be done now


class Leave(Enum):
    """What becomes of a candidate: its outcome is committed (DONE), or how it is left to its folder.

    INCOMPLETE, unchanged, comes back as ``final``.
    """

    AGAIN = "again"  # it changed, or could not be taken now: observed anew
    INCOMPLETE = "incomplete"  # short, empty or zeros while not ``final``: waits for a change
    UNREADABLE = "unreadable"  # could not be opened or read: tried again, ever less often
    DONE = "done"


class InboxError(ValueError):
    """These inboxes cannot be used together."""


class SpoolError(Exception):
    """The spool folder cannot be used."""


class SpoolInUse(SpoolError):
    """Another process holds the spool's lock."""

    def __init__(self, path: Path, pid: int | None) -> None:
        """Name the holder, as far as the lock file tells it."""
        self.path = path
        self.pid = pid
        holder = f"process {pid}" if pid else "another process"
        super().__init__(f"{holder} holds the spool {path}; only one daemon may use it")
