"""A server that answers that it took the posts, and not in the words of a store: an outage, which is no file's fault.

A gateway or a portal in its place answers so to all: with nothing, with text, with JSON of its own. Where nothing was
stored lately, or many files in a row were met with it, the destination pauses, and such answers do not count. (A
store's own answer that names no instance speaks of the file: Orthanc gives it to what it cannot parse.)
"""

from __future__ import annotations

from dataclasses import replace

from ingestd.daemon.alarms import Alarms
from ingestd.lifecycle import BatchResult, Pause, PauseCause

_POSTS_UNTIL_OUTAGE = 3
# So many different files in a row are no single file's fault, whatever was stored before.
_FILES_UNTIL_OUTAGE = 10


class Silence:
    """Counts silent answers since the server last showed that it stores. Main thread only."""

    def __init__(self, alarms: Alarms) -> None:
        """Begin with none."""
        self._alarms = alarms
        self._posts = 0
        self._files: set[int] = set()

    @property
    def is_outage(self) -> bool:
        """Whether the server takes nothing, as far as its answers tell."""
        return self._alarms.stands("silent")

    def judge(self, result: BatchResult, *, stored_lately: bool) -> BatchResult:
        """Turn a silent answer into a pause where it is an outage; an answer that names any ends that."""
        if not result.silent:
            if result.answered and result.http_status is not None and not result.whole_batch_refused:
                self.end()
            return result
        self._posts += 1
        self._files.update(part.entry_id for part in result.batch.parts)
        few = self._posts < _POSTS_UNTIL_OUTAGE or stored_lately
        if not self.is_outage and few and len(self._files) < _FILES_UNTIL_OUTAGE:
            return result
        self._alarms.raise_(
            "silent",
            note="the server answers that it took the posts and names no instance, neither as stored nor as failed "
            f"(last with HTTP {result.http_status})",
            next_step="something else may answer in its place, a gateway or a portal: `ingestd check`, and look at the "
            "server's log; no file is given up for it, and sending is tried again by itself",
        )
        pause = Pause(
            cause=PauseCause.UNAVAILABLE,
            note=f"it answers posts with HTTP {result.http_status} and names no instance; sending is tried again",
        )
        outcomes = tuple(replace(each, charge=False, alone=False, unnamed=False) for each in result.outcomes)
        return replace(result, outcomes=outcomes, pause=pause, charge_study=False, answered=False)

    def knows(self, entry_id: int) -> bool:
        """Whether this file was met with silence since."""
        return entry_id in self._files

    def end(self) -> None:
        """Begin anew: the server has shown that it stores."""
        self._posts = 0
        self._files.clear()
        self._alarms.clear("silent")
