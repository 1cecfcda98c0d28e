"""Supervised child processes that read files: ``python -m ingestd.reader``, spawned, never forked.

::

    readers = Readers(wake=wake)            # children start at once, in the background
    readers.submit(InspectJob(key=1, path="/drop/a"))
    ...                                     # wake() is called, from another thread, when there is something to collect
    for read in readers.collect(): ...      # list[Read], in any order
    readers.in_flight                       # submitted and not yet collected
    readers.is_healthy(); readers.close()

The daemon never imports pydicom and never looks into a file itself: hostile input ends a child, not the daemon.
"""

from __future__ import annotations

from ingestd.instance.facts import Inspection, Limits, Verdict
from ingestd.reader.jobs import CanonicalJob, CompareJob, InspectJob, Job, Read, ReaderLimits, ReencodeJob

__all__ = [
    "CanonicalJob",
    "CompareJob",
    "InspectJob",
    "Inspection",
    "Job",
    "Limits",
    "Read",
    "ReaderLimits",
    "ReencodeJob",
    "Verdict",
]
