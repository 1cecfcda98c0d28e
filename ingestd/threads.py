"""How a thread is started on a machine that may have none to give at the moment."""

from __future__ import annotations

import errno
import os
import threading
import time

from ingestd.clocks import boottime

_TRY_SECONDS = 3.0
_TRY_EVERY_SECONDS = 0.1


class NoThread(OSError):
    """The system gives no further thread: its limit on processes, or the unit's, is reached."""


def start(thread: threading.Thread) -> None:
    """Start it, trying for a few seconds while the system has no thread to give; raises NoThread."""
    give_up_at = boottime() + _TRY_SECONDS
    while True:
        try:
            thread.start()
        except RuntimeError:  # pthread_create said EAGAIN
            if boottime() >= give_up_at:
                what = "no thread can be started, the limit on processes is reached (ulimit -u, TasksMax)"
                raise NoThread(errno.EAGAIN, f"{what}: {os.strerror(errno.EAGAIN).lower()}") from None
            time.sleep(_TRY_EVERY_SECONDS)
        else:
            return
