"""A share as one host of several sees it: a mount of its own of a folder, by ``share.c``, whose faults are switched.

Two mounts of one folder have device numbers of their own, and each believes for a minute what it has seen. What the
kernel's caches and a server's lost answers do to us is real here; NFS and SMB are not.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.running import wait_until

SOURCE = Path(__file__).with_suffix(".c")
BELIEVES_SECONDS = 60.0


class NoShareError(Exception):
    """A share cannot be made here; the message says what is missing."""


def compile_share(folder: Path) -> Path:
    """Make the program; raises NoShareError."""
    if shutil.which("gcc") is None or shutil.which("fusermount3") is None:
        raise NoShareError("a share is a FUSE filesystem of our own: apt-get install gcc libc6-dev libfuse3-dev fuse3")
    if not Path("/dev/fuse").exists():
        raise NoShareError("there is no /dev/fuse, so that nothing can be mounted here")
    program = folder / "share"
    words = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-I/usr/include/fuse3", "-o", program, SOURCE]
    made = subprocess.run([*words, "-lfuse3", "-lpthread"], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise NoShareError(f"gcc could not compile {SOURCE.name} (apt-get install libfuse3-dev):\n{made.stderr}")
    with Share(program, folder / "tried", folder / "tried-here"):
        return program


class Share:
    """The folder ``source``, mounted at ``path``; both are made where they are missing."""

    def __init__(self, program: Path, source: Path, path: Path) -> None:
        source.mkdir(exist_ok=True)
        path.mkdir()
        self.path = path
        self._bare = path.stat().st_dev
        self._process = subprocess.Popen(
            [program, source, path, str(BELIEVES_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        self._tell("forget")
        wait_until(lambda: self.path.stat().st_dev != self._bare, what="the mount", every=0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=20)

    def loses(self, call: str, code: int, *, times: int = 1) -> None:
        """Have the next such calls (rename, link, mkdir, unlink, create) done, and say that they failed."""
        self._tell(f"lost {call} {times} {code}")

    def fails(self, code: int = errno.ESTALE) -> None:
        """Have every call fail, until ``heals``."""
        self._tell(f"all {code}")
        self._tell("forget")

    def hangs(self) -> None:
        """Have every call wait, until ``heals``."""
        self._tell("forget")
        self._tell("hang 1")

    def is_read_only(self) -> None:
        """Have what writes fail, until ``heals``."""
        self._tell("readonly 1")

    def is_empty(self) -> None:
        """Have nothing in it, until ``heals``."""
        self._tell("empty 1")
        self._tell("forget")

    def knows_no_links(self) -> None:
        """Have hard links refused."""
        self._tell("nolink 1")

    def knows_no_flags(self) -> None:
        """Have the flags of renameat2(2) refused, as NFS does."""
        self._tell("norename 1")

    def heals(self) -> None:
        """End what lasts."""
        for fault in ("hang", "all", "readonly", "empty"):
            self._tell(f"{fault} 0")
        self._tell("forget")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer != "ok\n":
            assert self._process.stderr is not None
            raise NoShareError(f"the share ended: {self._process.stderr.read().strip()}")
