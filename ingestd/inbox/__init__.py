"""Drop folder to spool: what lies in the inboxes, when it is finished, and how it gets into our hands.

This room sees files, never what is in them, and never the ledger: it hands out plain values and is told what became of
them. The one rule: **events are hints, the scan is the truth.** Losing an event costs latency, never a file.

Two classes do it all.

``Inboxes`` (main thread only) looks and waits; it changes nothing on disk::

    Inboxes(policies, *, spool: Path, wake: Callable[[], object], scan_every=timedelta(seconds=30), track_most=20_000)
    .open() -> None                                   arm the observers, before the first scan
    .take_over(other) -> None                         know since when the other's files are as they are
    .look(*, now: float, room: int) -> Look           bounded work; at most ``room`` files in ``ready``
    .answer_known(asked: Sequence[Candidate], known: Collection[Candidate]) -> None
    .tells_gone(place: str) -> bool                   False while the inbox's folder is away: a share not mounted
    .done(candidate) / .again(candidate) / .incomplete(candidate) / .unreadable(candidate) -> None
    .is_observing(inbox, path) -> bool                whether a file in the spool is being observed
    .observe(candidate) -> None                       settle a file that lies in the spool
    .take_emptied() -> list[tuple[str, list[str]]]    by inbox: folders that lay empty for ``emptied_after``
    .folders_leave(inbox, count) -> None              so many of them are about to be removed
    .ignore_inodes(inbox, *, ignored: bool) -> None   to be told in its report
    .scan_now() -> None                               ask for a full scan at once
    .is_drained(since: float) -> bool                 for ``run --once``
    .barred() -> list[str]                            paths of files that cannot be read or moved
    .reports() -> list[InboxReport] / .is_healthy() -> bool / .close() -> None

``now`` is ``clocks.boottime()``. Every candidate in ``Look.ready`` must come back by exactly one of ``done`` (its
outcome is committed),
``again`` (it changed, or could not be taken now: observe it anew), ``incomplete`` (short, empty or zeros
while not ``final``) or ``unreadable`` (could not be opened or read: retried with a growing wait). Every candidate in
``Look.asked`` must be answered; those are files whose source the ledger may know: all of an ``in_place`` inbox, and
those of a ``move`` inbox on another filesystem than the spool. *Known* means, for ``in_place``: some row has this
inbox, relative path, size and mtime_ns, and inode and ctime as far as those tell anything; for ``move``: some row with
this inbox, relative path and exactly this ``SourceStat`` has its source **not yet removed**.
Known files are forgotten, the others settle.

``Spool`` (thread-safe) owns the daemon's folder, 0700, all paths below relative to it::

    Spool(path)                                       creates what is missing; raises SpoolError
    .low_water: int                                   bytes of its disk that no copy may use
    .path: Path / .host: str                          the spool's own id, a UUID in ``spool.id``
    .lock() -> None / .unlock() -> None               raises SpoolInUse(path, pid); empties ``scratch``
    .barred() -> str                                  why we may not write in it, "" when we may
    .trouble() -> str                                 what became of the folder under us, "" when nothing did
    .tells_gone(place: str) -> bool                   False while the spool is away
    .take_in(items: Sequence[tuple[Candidate, Expect]]) -> list[Brought]      same order; Taken is durable on return
    .set_aside(items: Sequence[tuple[Candidate, Expect]]) -> list[Brought]    to rejected/<inbox>/<random>/
    .remove_source(root: Path, relative_path: str, source: SourceStat) -> Removal
    .recover_removals(root: Path, unremoved: Sequence[tuple[Expect, str]]) -> int    at start, per inbox elsewhere
    .remove_folders(root: Path, folders: Sequence[str]) -> int    those that are empty still
    .is_squatted(root: Path) -> bool / .look_aside(root: Path) -> None    somebody else has our folder's name there
    .let_go(files: Sequence[tuple[str, WasRead]]) -> list[LetGo]      what still is what was read is removed
    .set_apart(inbox: str, path: str) -> str          a name of its own in files/, for bytes that no row knows
    .discard(*paths: str) -> None                     what we made ourselves and nobody needs; gone is fine
    .orphans(known: Callable[[list[str]], set[str]]) -> Iterator[Candidate]    G2; at most 1,000 paths a question
    .listed() -> Iterator[str] / .is_needless_copy(path) -> bool      to find such files while running
    .candidate_at(inbox: str, path: str) -> Candidate | None    None when it is gone
    .is_here(source: SourceStat) -> bool              on the spool's filesystem: the reader has to fsync it
    .stat(path: str) -> SourceStat | None
    .new_explicit(inbox: str) -> Path / .new_scratch() -> Path    fresh names for the reader to write to
    .free() -> FreeSpace / .free_bytes() -> int / .scratch() -> Path
"""

from ingestd.inbox.inboxes import Inboxes, check_places
from ingestd.inbox.names import Names
from ingestd.inbox.spool import Spool
from ingestd.inbox.types import (
    Brought,
    Candidate,
    Expect,
    InboxError,
    InboxPolicy,
    InboxReport,
    LetGo,
    Look,
    NotTaken,
    Removal,
    SpoolError,
    SpoolInUse,
    Stranded,
    Take,
    Taken,
    WasRead,
    Watch,
    WhyNot,
    check_inbox_name,
)

__all__ = [
    "Brought",
    "Candidate",
    "Expect",
    "InboxError",
    "InboxPolicy",
    "InboxReport",
    "Inboxes",
    "LetGo",
    "Look",
    "Names",
    "NotTaken",
    "Removal",
    "Spool",
    "SpoolError",
    "SpoolInUse",
    "Stranded",
    "Take",
    "Taken",
    "WasRead",
    "Watch",
    "WhyNot",
    "check_inbox_name",
    "check_places",
]
