"""What keeps an eye on the folder itself: is it there, is it the same, on what mount, and do events come from it.

Nothing that happens to the folder is ever a deletion. It is an alarm, and when the folder is back, so are we.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from datetime import timedelta

import structlog

from ingestd.fs.mounts import Mount, mount_of
from ingestd.lifecycle import Backoff

from .types import InboxPolicy, Watch
from .walk import Root, RootGone, root_of
from .watch import Watcher

ALARM_FOR = 3_600.0  # seconds after which a change that nobody undid is taken as meant
# From a failed try to the next; whether that is due is asked when the folder itself is looked at.
REARM = Backoff(base=timedelta(seconds=1), cap=timedelta(seconds=60))
REARM_SHORT_AFTER = 900.0  # after the limit of watches was met: it may have been raised, folders may be gone
ARM_WAIT = 2.0  # seconds to wait for all observers at the start

_log = structlog.get_logger()


class FolderHealth:
    """Watches over one inbox's folder."""

    def __init__(self, policy: InboxPolicy, wake: Callable[[], object]) -> None:
        self.policy = policy
        self.root_path = str(policy.path.absolute())
        self.mount = mount_of(self.root_path)
        self.root: Root | None = None
        self.watcher: Watcher | None = None
        self._overflows = 0
        self._disarming: threading.Thread | None = None
        self._wake = wake
        self._gone = ""
        self._strange = ""
        self._strange_until = 0.0
        self._home: Mount | None = None
        self._hung = ""
        self._next_arm_at: float | None = None
        self._was_watching = False
        self._failures = 0  # in a row, to arm an observer

    @property
    def is_remote(self) -> bool:
        """Whether other machines may write here without our kernel seeing it."""
        return self.mount is not None and self.mount.is_remote

    @property
    def wants_events(self) -> bool:
        """Whether an observer is to be armed."""
        if self.policy.watch is Watch.AUTO:
            return not self.is_remote
        return self.policy.watch is Watch.EVENTS

    @property
    def is_watching(self) -> bool:
        return self.watcher is not None and self.watcher.is_watching

    @property
    def hears_all(self) -> bool:
        """Whether, as the folder was last looked at, whatever comes into it raises an event that we hear."""
        watcher = self.watcher
        return self._was_watching and watcher is not None and not watcher.hints.unwatched and not self.is_remote

    @property
    def alarm(self) -> str:
        """What is wrong with the folder, in words; "" when nothing is."""
        return self._hung or self._gone or self._strange

    @property
    def degraded(self) -> str:
        """What makes us slower than we could be, in words."""
        watcher = self.watcher
        if not self.wants_events or self._gone:
            return ""
        if watcher is None or watcher.state == "arming":
            return "events are not armed yet; files are found by the scan"
        if not self.is_watching:
            return f"no events ({watcher.note or 'the observer stopped'}); files are found by the scan"
        if watcher.hints.unwatched:
            return (
                f"the limit of inotify watches is reached; {watcher.hints.unwatched} folders are only found by the scan"
            )
        return ""

    @property
    def overflows(self) -> int:
        """How often events were lost since the start."""
        return self._overflows + (self.watcher.hints.overflows if self.watcher is not None else 0)

    def tells_gone(self, place: str) -> bool | None:
        """Whether a file missing at this place is gone; None for a path outside, see ``Inboxes.tells_gone``."""
        if not place.startswith(self.root_path.rstrip("/") + "/"):
            return None
        if self.alarm:
            return False
        found = root_of(self.root_path)
        if isinstance(found, RootGone):
            return False
        try:
            with os.scandir(self.root_path) as entries:
                is_empty = next(entries, None) is None
        except OSError:
            return False
        return not is_empty and self.root in {None, found}

    def arm(self, now: float, *, wait: float = 0.0) -> None:
        """Start an observer, in place of the one there may be."""
        self.disarm()
        if not self.wants_events:
            return
        self.watcher = Watcher(self.root_path, self._wake)
        self.watcher.start(wait=wait, after=self._disarming)
        self._was_watching = self.is_watching
        self._next_arm_at = now + REARM_SHORT_AFTER

    def disarm(self, *, wait: float = 0.0) -> None:
        """Stop the observer, and wait up to ``wait`` seconds until it let go of everything."""
        if self.watcher is not None:
            self._overflows += self.watcher.hints.overflows
            self._disarming = self.watcher.stop()
            self.watcher = None
        if self._disarming is not None:
            self._disarming.join(wait)

    def supervise(self, now: float) -> bool:
        """See that events come while they can; True when a scan is due because some may have been missed."""
        if self._strange and now >= self._strange_until:
            self._strange = ""
            self._home = self.mount
        if not self.wants_events or self._gone:
            return False
        watcher = self.watcher
        if watcher is None:
            self.arm(now)
            return True
        if self.is_watching:
            came, self._was_watching, self._failures = not self._was_watching, True, 0
            if watcher.hints.unwatched and self._next_arm_at is not None and now >= self._next_arm_at:
                self.arm(now)
                return True
            return came
        if watcher.state == "arming":
            return False
        if watcher.state == "armed":
            # A thread of the observer's died, or its folder was removed under it.
            _log.warning("inbox.observer_lost", inbox=self.policy.name)
            self._was_watching = False
            self.arm(now)
            return True
        wait = REARM.wait(self._failures + 1, jitter=0.0)
        if watcher.failed_at is None or now >= watcher.failed_at + wait.total_seconds():
            self._failures += 1
            self.arm(now)
            return self.is_watching
        return False

    def answers(self, busy_seconds: float, patience: float) -> None:
        self._hung = f"the folder has not answered for {int(busy_seconds)} s" if busy_seconds > patience else ""

    def root_seen(self, root: Root, now: float) -> bool:
        """Note that the folder is there; True when it is another than before, or is back."""
        was_gone, self._gone = bool(self._gone), ""
        if root == self.root and not was_gone:
            return False
        is_first = self.root is None
        self.root = root
        self._compare_mounts(now)
        if not is_first or was_gone:
            self.arm(now)
        return not is_first or was_gone

    def root_gone(self, error: RootGone) -> None:
        """Note that the folder cannot be listed. Nothing in it is taken for deleted."""
        self._gone = {
            errno.ENOENT: "the folder is not there",
            errno.ENOTDIR: "what is there is not a folder",
            errno.EACCES: "the folder may not be listed by this user",
            errno.EPERM: "the folder is the spool's own",
        }.get(error.errno, f"the folder cannot be listed ({os.strerror(error.errno).lower()})")
        if self.watcher is not None and error.errno in {errno.ENOENT, errno.ENOTDIR}:
            self.disarm()

    def emptied(self, what: str, now: float) -> None:
        """Note that everything vanished at once, which nobody does by hand."""
        self._strange = f"empty, where {what} were: unmounted?"
        self._strange_until = now + ALARM_FOR

    def not_empty(self) -> None:
        if self._strange.startswith("empty"):
            self._strange = ""

    def _compare_mounts(self, now: float) -> None:
        self.mount = mount_of(self.root_path)
        mount, home = self.mount, self._home
        if mount is None or home is None:
            self._home = mount
        elif len(mount.mount_point) < len(home.mount_point):
            # What was mounted here is gone, and we look at the bare folder under it. What lies there is taken all the
            # same: once the mount is back, nobody else would see it.
            self._strange = f"no longer mounted (was {home.kind}, now {mount.kind})"
            self._strange_until = now + ALARM_FOR
        else:
            self._home = mount
            self._strange = ""
