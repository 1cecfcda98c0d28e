"""What wakes the supervisor's thread while it waits for its children's pipes."""

from __future__ import annotations

import os


class Bell:
    """A pipe with a selector at one end. Rung by any thread; heard by one.

    A ring that fails is lost, and the next one is tried again: whoever listens must look around by itself now and then.
    """

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._is_rung = False

    def fileno(self) -> int:
        """Say what to select on."""
        return self._out

    def ring(self) -> None:
        """Wake the listener, once until it has heard."""
        if self._is_rung:
            return
        self._is_rung = True  # before the write: the listener may have heard, and said so, when it returns
        try:
            os.write(self._in, b"\0")
        except OSError:  # full, where what is in it wakes as well; or failed
            self._is_rung = False

    def heard(self) -> None:
        """Be ready for the next ring."""
        self._is_rung = False
        try:
            os.read(self._out, 4096)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the pipe back; nobody may ring any more."""
        os.close(self._in)
        os.close(self._out)
