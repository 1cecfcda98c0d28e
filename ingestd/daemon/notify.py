"""Tell systemd how we are (sd_notify(3)) over one datagram socket.

READY, WATCHDOG, STATUS, STOPPING, RELOADING, EXTEND_TIMEOUT_USEC.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from datetime import timedelta

_PATIENCE_SECONDS = 0.5
# As long as the unit's TimeoutStartSec: what comes after the longest start has as much time as it has after any other.
_START_TIME = timedelta(minutes=15)


class Notifier:
    """The service manager's ear; says nothing where there is none (``$NOTIFY_SOCKET`` unset)."""

    def __init__(self) -> None:
        """Take the address from the environment, so that children do not inherit it."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        # A leading @ is an abstract socket, whose name begins with NUL.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec = os.environ.pop("WATCHDOG_USEC", "")
        watched_pid = os.environ.pop("WATCHDOG_PID", "")
        ours = not watched_pid or watched_pid == str(os.getpid())
        self.watchdog_interval: timedelta | None = (
            timedelta(microseconds=int(usec)) / 3 if usec.isdigit() and int(usec) > 0 and ours else None
        )

    def starting(self, status: str) -> None:
        """The start takes longer, and goes on: from now on it has its whole time again."""
        self._send(f"EXTEND_TIMEOUT_USEC={_START_TIME // timedelta(microseconds=1)}\nSTATUS={status}")

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def waiting(self) -> None:
        """The ledger is away: neither the start nor what stands by has come to a halt."""
        self.starting("the ledger is away, and is waited for")
        self.alive()

    def reloading(self) -> None:
        """A new configuration is being read; ``ready`` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def status(self, status: str) -> None:
        """One line for ``systemctl status``; holds no patient data."""
        self._send(f"STATUS={status}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=finishing the posts in flight")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # Losing a datagram loses a line of status; it must never stop the pipeline, not even where nobody takes them
        # out of a full socket any more.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.settimeout(_PATIENCE_SECONDS)
            ear.connect(self._address)
            ear.send(message.encode())
