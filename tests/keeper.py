"""Runs one command of which nothing outlives the process that asked for it, however that one ends.

``python keeper.py PID FOLDER COMMAND...``, started by process PID. What the command's processes leave behind is handed
to this one, which ends when nothing is left. When PID is gone first, the command is sent SIGQUIT (to PostgreSQL: end at
once and clean up), then SIGKILL, stopped or not, and its folder is removed.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
# PostgreSQL gives its own processes five.
QUIT_WITHIN_SECONDS = 8.0


def keep(asker: int, folder: str, command: Sequence[str]) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    gone = os.pidfd_open(asker)
    if os.getppid() != asker:
        return  # it ended before we looked, and the number may be another's
    kept = subprocess.Popen(command)
    ended = os.pidfd_open(kept.pid)
    alone = ended not in select.select([gone, ended], [], [])[0]
    if alone:
        os.kill(kept.pid, signal.SIGQUIT)
        for pid in [kept.pid, *children(kept.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        select.select([ended], [], [], QUIT_WITHIN_SECONDS)
    # The children of a child that is killed are ours by the time that it is waited for.
    while left := children(os.getpid()):
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        os.wait()
    if alone:
        shutil.rmtree(folder)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


if __name__ == "__main__":
    keep(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
