"""What keeps files from being confirmed or removed, for a person to read: raised and cleared by whoever sees it.

One rule: whatever keeps a file beyond the time that its own rule allows it (settle, ``incomplete_after``, quiet period)
stands here, so that ``status`` has a line "Stopped because ..." with the next step. What is raised twice is one alarm,
since the first time; each is logged when it is raised, when its note changes, and when it ends.
"""

from __future__ import annotations

from functools import partial
from typing import TypeAlias

import structlog

from ingestd.clocks import Now, utc_now
from ingestd.daemon.stage import Stage
from ingestd.ledger import KEY_MADE_ANEW, Alarm, Ledger, Transaction, moves

_KEY_EVERY_SECONDS = 5.0
# Its destination, its kind, and what it is about.
_Key: TypeAlias = tuple[str, str, str]


class Alarms(Stage):
    """All alarms of this host. Main thread only; what stands at the end of a tick is what the ledger keeps."""

    def __init__(self) -> None:
        """Begin with none; the ledger still keeps those of the last run, until the first transaction."""
        self._standing: dict[_Key, Alarm] = {}
        self._kept: dict[_Key, Alarm] | None = None  # as the ledger has them; None: those of the last run
        self._destination = ""
        self._log = structlog.get_logger()

    def of(self, destination: str) -> Alarms:
        """Give these very alarms to what serves one destination: what it raises is that one's."""
        part = Alarms()
        part._standing, part._destination = self._standing, destination
        return part

    def raise_(self, kind: str, about: str = "", *, note: str, next_step: str) -> None:
        """Let an alarm stand; ``kind`` is a word, ``about`` an inbox's name or "", neither text names a file."""
        key = (self._destination, kind, about)
        former = self._standing.get(key)
        if former is not None and (former.note, former.next_step) == (note, next_step):
            return
        since = former.since if former is not None else utc_now()
        self._standing[key] = Alarm(
            kind=kind, about=about, note=note, next_step=next_step, since=since, destination=self._destination
        )
        self._log_about(about).error("alarm.raised", kind=kind, alarm=note)

    def clear(self, kind: str, about: str = "") -> None:
        """End an alarm; nothing happens where none stands."""
        if self._standing.pop((self._destination, kind, about), None) is not None:
            self._log_about(about).info("alarm.cleared", kind=kind)

    def set(self, kind: str, about: str = "", *, note: str, next_step: str) -> None:
        """Raise the alarm with a note, or clear it with an empty one."""
        if note:
            self.raise_(kind, about, note=note, next_step=next_step)
        else:
            self.clear(kind, about)

    def clear_about(self, about: str) -> None:
        """End all alarms about this: whoever looks after it now tells of it."""
        for _, kind, of in [key for key in self._standing if key[2] == about]:
            self.clear(kind, of)

    def renew(self) -> None:
        """Have what stands be written once more, in place of all that the ledger keeps of whoever is gone."""
        self._kept = None

    def stands(self, kind: str, about: str = "") -> bool:
        return (self._destination, kind, about) in self._standing

    @property
    def standing(self) -> tuple[Alarm, ...]:
        return tuple(self._standing.values())

    def write(self, tx: Transaction, now: Now) -> None:  # noqa: ARG002 - each has its own time
        """Write all that stand; what is raised before this is durable waits for the next transaction."""
        if self._standing != self._kept:
            moves.put_alarms(tx, self._standing.values())
            tx.on_commit(partial(self._keep, dict(self._standing)))

    def _keep(self, written: dict[_Key, Alarm]) -> None:
        self._kept = written

    def _log_about(self, about: str) -> structlog.typing.FilteringBoundLogger:
        log: structlog.typing.FilteringBoundLogger = self._log.bind(inbox=about) if about else self._log
        return log.bind(destination=self._destination) if self._destination else log


class KeyAlarm(Stage):
    """Tells of a key of the search words that is not the one of before, until a person has put that back or agreed."""

    def __init__(self, ledger: Ledger, alarms: Alarms) -> None:
        self._ledger = ledger
        self._alarms = alarms
        self._look_at = 0.0

    def start(self) -> None:
        """Compare the keys."""
        self._alarms.set(
            KEY_MADE_ANEW,
            note=f"the key of the search words ({self._ledger.search_key.where}) was missing and another was made, or"
            " another was put there: what was taken in before is not found by patient or accession"
            if self._ledger.search_key.is_another
            else "",
            next_step="stop ingestd, put the key file back from its backup, and start it; or,"
            " where there is no backup of it, go on with the new one: `ingestd resolve --new-key`",
        )

    def collect(self, now: Now) -> None:
        """Follow a person who has agreed to a new key, be it that another worker of the spool has made it."""
        if self._alarms.stands(KEY_MADE_ANEW) or now.mono >= self._look_at:
            self._look_at = now.mono + _KEY_EVERY_SECONDS
            self._ledger.search_key.follow()
            self.start()
