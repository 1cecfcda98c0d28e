"""A server that answers none of what proof is asked of it with: told within about a minute, and no file's fault.

Where anything else that is asked would fail the same way (403, a redirect, a web page, no connection) one file is
enough to know it by. What may be one file's own trouble (404, 500, a broken answer) speaks of the server when it befell
several files. The first answer ends it, and so does it that nothing is waited for any more.
"""

from __future__ import annotations

from datetime import timedelta

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.circuit_breaker import AWAY, PROBE_AT_LEAST_EVERY
from ingestd.lifecycle import Pause
from ingestd.reconciler import StudyAnswer

# A server that is only started anew is no alarm.
_TELL_AFTER_SECONDS = 45.0
# So many different files in a row are no single file's fault.
_FILES_UNTIL_OUTAGE = 3


class Unanswered:
    """Failures in a row of what is asked in one way. Main thread only."""

    def __init__(self, alarms: Alarms, kind: str, *, wanted: str, again: str) -> None:
        """Begin with none; while the alarm ``kind`` stands, the server does not do what is ``wanted``.

        ``again`` says when it is asked again.
        """
        self._alarms = alarms
        self._kind = kind
        self._wanted = wanted
        self._again = again
        self._files: set[int] = set()
        self._since: dict[bool, float] = {}  # the first in a row, by whether it concerned the server (``Now.mono``)

    def take(self, answer: StudyAnswer, now: Now) -> None:
        """Count what became of a question; where some of its rows were answered before it failed, that came first."""
        for finding in answer.findings:
            if finding.present is not None:
                self.end()
            elif not finding.is_ours:
                self._files.add(finding.row.delivery_id)
                self._since.pop(True, None)
                self._failed(finding.note, now, None, whole=False)
        if answer.failure:
            self.failed(answer.failure, now, answer.pause)

    def failed(self, note: str, now: Now, pause: Pause | None) -> None:
        """Count a failure that concerns the server as a whole; ``pause`` says of which kind."""
        self._failed(note, now, pause, whole=True)

    def wait(self, pause: Pause | None, now: Now, *, cap: timedelta) -> timedelta:
        """Say how long to ask for nothing: as long as it has failed already, at most ``cap``, or as the server wishes.

        One that is away is looked for at least once a minute; one that lets us in no more is not (``destination``).
        """
        lasts = timedelta(seconds=now.mono - self._since.get(True, now.mono))
        if pause is None or pause.cause in AWAY:
            cap = min(cap, PROBE_AT_LEAST_EVERY)
        wished = pause.retry_after if pause is not None else None
        return max(min(lasts, cap), wished or timedelta(0))

    def end(self) -> None:
        """Begin anew: there was an answer, or nothing waits for one."""
        self._files.clear()
        self._since.clear()
        self._alarms.clear(self._kind)

    def _failed(self, note: str, now: Now, pause: Pause | None, *, whole: bool) -> None:
        lasts = now.mono - self._since.setdefault(whole, now.mono)
        if lasts >= _TELL_AFTER_SECONDS and (whole or len(self._files) >= _FILES_UNTIL_OUTAGE):
            rights = "" if pause is not None and pause.cause in AWAY else "give our account the right to read, and "
            look = f"{rights}look at the server and at what stands in front of it, a gateway or a proxy"
            self._alarms.raise_(
                self._kind,
                note=f"the server {self._wanted}, so that nothing is proven; last: {note}",
                next_step=f"{look}; it is asked again by itself, {self._again}",
            )
