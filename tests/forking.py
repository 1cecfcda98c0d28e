"""ingestd started without its imports: a process that has made them forks for each start that is asked for.

They are two thirds of a second of each start, of which the tests make hundreds. What is forked has run nothing of the
program and has one thread; from there it is a process as any other, with its own signals, files, session and end. What
hangs on the interpreter (its environment, a library put before others) needs one of its own, and gets it by Popen.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

PROJECT = Path(__file__).resolve().parents[1]
# Set by conftest.py: what benchmarks measure and torture kills starts as it does elsewhere.
allowed = False
# Run as a program of their own, where the reader's imports nothing of the rest.
_NOT_IMPORTED = ("__main__", "child")


class Forked:
    """One process with its own life, and of Popen what is asked of it."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        out: IO[bytes],
        err: IO[bytes],
        cwd: Path,
        env: Mapping[str, str],
        session: bool = False,
        script: str | None = None,
    ) -> None:
        self.args = words
        self.returncode: int | None = None
        self._told, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            asked = {"words": list(words), "script": script, "cwd": str(cwd), "env": dict(env), "session": session}
            socket.send_fds(_forking(), [json.dumps(asked).encode()], [theirs.fileno(), out.fileno(), err.fileno()])
        self.pid = int(self._told.recv(100))

    def poll(self) -> int | None:
        """Its exit code, as Popen has it, when it has ended."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended; raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._told.recv(100))
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still lives."""
        # Whoever forked it takes its end, which may have come and not be told here yet.
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def _forking() -> socket.socket:
    """Start the process that forks, which ends with this one; return the way to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        words = [sys.executable, "-m", "tests.forking", str(theirs.fileno())]
        process = subprocess.Popen(
            words,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=PROJECT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy, which pydicom imports, would start more
            start_new_session=True,
        )
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _serve(asked: socket.socket) -> dict[str, Any] | None:
    """Return what to run, in the process that is to run it; or nothing, in the first one, when no more can come."""
    while True:
        text, files, *_ = socket.recv_fds(asked, 1 << 20, 3)
        if not text:
            return None
        if os.fork() == 0:
            asked.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _watched(json.loads(text), *files)
        for file in files:
            os.close(file)


def _watched(start: dict[str, Any], told: int, out: int, err: int) -> dict[str, Any]:
    """Return in a process that tells its id, and is waited for by this one, which tells its exit code."""
    if pid := os.fork():
        os.close(out)
        os.close(err)
        os.write(told, b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    if start["session"]:
        os.setsid()  # before anybody knows of it: who kills it, kills its session
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.write(told, b"%d" % os.getpid())
    for file in (told, out, err):
        os.close(file)
    return start


def _run(start: Mapping[str, Any]) -> None:
    """Be ``python -m ingestd`` with these words, or ``python -c`` with this script."""
    from ingestd.cli import main

    os.chdir(start["cwd"])
    os.environ.clear()
    os.environ.update(start["env"])
    time.tzset()
    sys.path[0] = start["cwd"]
    if start["script"] is None:
        sys.argv = [str(PROJECT / "ingestd" / "__main__.py"), *start["words"]]
        main()
    else:
        sys.argv = ["-c", *start["words"]]
        exec(start["script"], {"__name__": "__main__"})


def _import_all() -> None:
    import ingestd

    for module in pkgutil.walk_packages(ingestd.__path__, "ingestd."):
        if not module.name.endswith(_NOT_IMPORTED):
            importlib.import_module(module.name)
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would not be in what is forked"  # noqa: PTH208


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as way:
        _import_all()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries who waited for another
        to_run = _serve(way)
    if to_run is not None:
        _run(to_run)
