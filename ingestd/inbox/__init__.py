"""Drop folder to spool: what lies in the inboxes, when it is finished, and how it gets into our hands.

This room sees files, never what is in them, and never the ledger: it hands out plain values and is told what became of
them. The one rule: **events are hints, the scan is the truth.** Losing an event costs latency, never a file.

``Inboxes`` (main thread only) looks and waits; it changes nothing on disk. ``look(now=clocks.boottime(), room=n)`` does
a bounded piece of work and gives a ``Look``:

- Every candidate in ``ready`` must come back by ``take_back`` exactly once, with what became of it (``Leave``).
- Every candidate in ``asked`` must be answered by ``answer_known``; those are files whose source the ledger may know:
  all of an ``in_place`` inbox, and those of a ``move`` inbox on another filesystem than the spool. *Known* means, for
  ``in_place``: some row has this inbox, relative path, size and mtime_ns, and inode and ctime as far as those tell
  anything; for ``move``: some row with this inbox, relative path and exactly this ``SourceStat`` has its source **not
  yet removed**. Known files are forgotten, the others settle.

``Spool`` (thread-safe) owns the daemon's folder, 0700, all paths below relative to it: it takes files in, sets them
aside, lets go of them, and finds those that no row knows.

Inside, lowest first::

    types              what goes through this door
    names, walk        which names are left alone; the bounded walk over one folder
    tracker            when a file is finished (how files settle stands there)
    hints, watch       what events named; the watchdog observer that names it
    file_check         one look at a file
    folder_health, scan_statistics, scan_schedule, watched_folder, inboxes
    spool_names        what a file is called in the spool, and which folder it goes to
    copying, takein    how a file gets into the spool
    removal            how a copied source is removed
    spool_listing      what lies in the spool
    spool_folder, spool
"""

from ingestd.inbox.folder_views import UNSEEN
from ingestd.inbox.inboxes import Inboxes, check_places
from ingestd.inbox.names import Names
from ingestd.inbox.removal import remove_folders
from ingestd.inbox.spool import Spool
from ingestd.inbox.spool_folder import keeps_files, ledger_of, rehearse_spool
from ingestd.inbox.spool_listing import OfInbox
from ingestd.inbox.spool_names import name_in_spool, new_name
from ingestd.inbox.types import (
    Brought,
    Candidate,
    Expect,
    InboxError,
    InboxPolicy,
    InboxReport,
    Leave,
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
)

__all__ = [
    "UNSEEN",
    "Brought",
    "Candidate",
    "Expect",
    "InboxError",
    "InboxPolicy",
    "InboxReport",
    "Inboxes",
    "Leave",
    "LetGo",
    "Look",
    "Names",
    "NotTaken",
    "OfInbox",
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
    "check_places",
    "keeps_files",
    "ledger_of",
    "name_in_spool",
    "new_name",
    "rehearse_spool",
    "remove_folders",
]
