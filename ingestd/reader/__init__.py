"""Supervised child processes that read files: ``python -m ingestd.reader``, spawned, never forked.

::

    readers = ReaderPool(wake=wake)         # children start at once, in the background
    readers.submit(InspectJob(key=1, path="/drop/a"))
    ...                                     # wake() is called, from another thread, when there is something to collect
    for read in readers.collect(): ...      # list[Read], in any order
    readers.in_flight                       # submitted and not yet collected
    readers.trouble                         # why no reader can be started, or ""
    readers.is_healthy(); readers.close()

The daemon never imports pydicom and never looks into a file itself: hostile input ends a child, not the daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ingestd.instance.facts import Inspection, Verdict
from ingestd.reader.protocol import CompareJob, InspectJob, Job, Read, ReaderLimits, Readers, ReencodeJob

if TYPE_CHECKING:
    from ingestd.reader.pool import ReaderPool

__all__ = [
    "CompareJob",
    "InspectJob",
    "Inspection",
    "Job",
    "Read",
    "ReaderLimits",
    "ReaderPool",
    "Readers",
    "ReencodeJob",
    "Verdict",
]


def __getattr__(name: str) -> Any:
    # The pool is the parent's half; a child, which imports this package too, has no use for it.
    if name == "ReaderPool":
        from ingestd.reader.pool import ReaderPool  # noqa: PLC0415

        return ReaderPool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
