"""What the whole process is told: the signals that stop or reload it, and how its interpreter is to share the time."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType

from ingestd.daemon.loop import Wake

# How long a thread that computes may keep the interpreter from one that has just read, hashed or sent a megabyte. With
# CPython's 5 ms the posting threads waited longer for their turn than for disk and network (measured: 1.6x the rate).
_SWITCH_SECONDS = 0.0003
# Objects made and not freed before the collector looks at the youngest. With CPython's 700 it looked at the values that
# travel between the rooms several times each, and ever again at all that was imported.
_YOUNG_OBJECTS = 10_000


class Asked(Enum):
    """What a signal asks for."""

    STOP = "stop"
    RELOAD = "reload"


class Signals:
    """What the signals asked for; rings the loop's bell."""

    def __init__(self, wake: Wake) -> None:
        self._wake = wake
        self.asked: Asked | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch SIGTERM, SIGINT and SIGHUP; the former handlers come back at the end."""
        former = {
            number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        # What asked for a reload while we started was kept back until somebody hears it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def reload(self) -> None:
        """Ask for a reload as a signal does, so that one that asks for the end meanwhile is not written over."""
        signal.raise_signal(signal.SIGHUP)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.asked = self.asked or Asked.RELOAD
        else:
            self.asked = Asked.STOP
        self._wake()


def set_up_interpreter() -> None:
    """Have threads and the collector disturb the main thread less; the settings are the whole process's."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
