"""A terminal of a given width, with a command on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.patience import PATIENCE
from tests.running import PROGRAM, environment

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(
    *words: str,
    width: int = 120,
    until: str = "",
    interrupt: bool = False,
    program: Sequence[str] = PROGRAM,
    env: Mapping[str, str] | None = None,
    stderr: Path | None = None,
) -> tuple[int, str]:
    """Run a command on a terminal of its own and return its exit code and what it showed.

    With ``interrupt`` it is interrupted once ``until`` is seen; ``stderr``: a file in which that goes.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    errors = follower if stderr is None else os.open(stderr, os.O_WRONLY | os.O_CREAT)
    with subprocess.Popen(
        [*program, *words],
        stdin=follower,
        stdout=follower,
        stderr=errors,
        env=environment({"TERM": "xterm", **(env or {})}),
        start_new_session=True,
    ) as process:
        # Ours must not keep the terminal open once the command has ended.
        for descriptor in {follower, errors}:
            os.close(descriptor)
        seen = b""
        give_up_at = time.monotonic() + PATIENCE
        while time.monotonic() < give_up_at:
            if interrupt and until.encode() in seen:
                process.send_signal(signal.SIGINT)
                interrupt = False
            if not select.select([leader], [], [], 0.2)[0]:
                continue
            try:
                seen += os.read(leader, 65536)
            except OSError:  # Linux says EIO once the other side is closed
                break
        else:
            process.kill()
        os.close(leader)
    return process.returncode, seen.decode(errors="replace").replace("\r\n", "\n")


def without_colour(seen: str) -> str:
    """What a terminal was sent, but for colours and the moves of the cursor."""
    return _CONTROL.sub("", seen)
