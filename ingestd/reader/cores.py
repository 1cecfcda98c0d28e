"""No core file of a process that holds patients' images or a token, and no look into its memory by its own user."""

from __future__ import annotations

import ctypes
import resource

_PR_SET_DUMPABLE = 4


def leave_no_core() -> None:
    """Have the kernel write no core file of this process, nor hand one to a crash handler (prctl(2), core(5)).

    A limit of 0 alone does not keep a handler that ``core_pattern`` pipes to from getting it. Children that are
    executed have to say so again.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
