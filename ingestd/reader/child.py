"""The child: reads jobs from stdin, files from the disk, and writes answers to stdout, until stdin ends.

It runs with hard limits on memory and descriptors, in a session of its own, and dies with its parent. It holds no
secret and prints nothing: an unexpected exception is reported by its class and place, as its text may hold values.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ingestd.instance.errors import CannotReencode, InvalidInstance
from ingestd.instance.facts import Inspection, Limits, Verdict
from ingestd.instance.inspection import inspect
from ingestd.lifecycle import Sameness, SourceStat
from ingestd.reader.board import Board
from ingestd.reader.jobs import CanonicalJob, CompareJob, InspectJob, Job, ReencodeJob
from ingestd.reader.wire import Answer, decode_job, decode_limits, encode_answer

_PR_SET_PDEATHSIG = 1
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_READ_MOST = 1 << 16
_ANSWERS_MOST = 1 << 15  # bytes of answers held back while more jobs stand in line
_HELD_SECONDS = 0.02
_SEQUENTIAL_FROM = 1 << 20
EXIT_SHORT_OF_MEMORY = 77


class _Waits(Exception):
    """Nothing can be said of the file now; the text says why, without its name."""


def main() -> int:
    """Serve until stdin ends."""
    parent = os.getppid()
    _die_with_parent()
    if os.getppid() != parent:
        return 1
    # pydicom imports numpy where it is installed; nothing here looks at pixels, and it would cost 30 MB a child.
    sys.modules["numpy"] = None  # type: ignore[assignment]
    # A writer that opens a file while we hold a lease on it makes the kernel send SIGIO, which kills by default.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    lines = _Lines(0)
    first = lines.next()
    if first is None:
        return 0
    board_fd, limits = decode_limits(first)
    board = Board(board_fd)
    os.close(board_fd)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits.address_space_bytes, limits.address_space_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits.open_files, limits.open_files))
    _serve(lines, board, limits.instance)
    return 0


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent's supervisor is gone; stdin's end tells as much only between jobs."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _serve(lines: _Lines, board: Board, limits: Limits) -> None:
    """Work off jobs in order; answers go out when no job waits, when enough have come together, or soon."""
    held = _Held()
    desk = _Desk(board, limits, held)
    while (line := lines.next()) is not None:
        serial, job = decode_job(line)
        answer = desk.do(serial, job)
        held.add(encode_answer(answer))
        if not lines.waiting or answer.short_of_memory:
            held.flush()
        if answer.short_of_memory:
            # Start afresh: what is fragmented now would fail the next file too.
            os._exit(EXIT_SHORT_OF_MEMORY)
        held.flush_when_due()


class _Held:
    """Answers that wait to be written together; not for long, whatever the next job takes."""

    def __init__(self) -> None:
        self._answers: list[bytes] = []
        self._bytes = 0
        self._since = 0.0

    def add(self, answer: bytes) -> None:
        if not self._answers:
            self._since = time.monotonic()
        self._answers.append(answer)
        self._bytes += len(answer)

    def flush_when_due(self) -> None:
        if self._answers and (self._bytes > _ANSWERS_MOST or time.monotonic() - self._since > _HELD_SECONDS):
            self.flush()

    def flush(self) -> None:
        if self._answers:
            _write_all(1, b"".join(self._answers))
            self._answers.clear()
            self._bytes = 0


class _Lines:
    """Lines from a pipe, many to a read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: list[bytes] = []
        self._part = b""

    @property
    def waiting(self) -> bool:
        """Whether a whole line stands ready."""
        return bool(self._lines)

    def next(self) -> bytes | None:
        """Give the next line; None at the end."""
        while not self._lines:
            chunk = os.read(self._fd, _READ_MOST)
            if not chunk:
                return None
            *whole, self._part = (self._part + chunk).split(b"\n")
            self._lines = whole[::-1]
        return self._lines.pop()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _Desk:
    """Does one job at a time and keeps the board."""

    def __init__(self, board: Board, limits: Limits, held: _Held) -> None:
        self._board = board
        self._limits = limits
        self._held = held
        self._work = 0

    def do(self, serial: int, job: Job) -> Answer:
        """Do one job; whatever goes wrong becomes an answer."""
        self._work = 0
        self._board.begin(serial)
        try:
            return self._answer(serial, job)
        except _Waits as why:
            return Answer(serial=serial, waits=str(why))
        except OSError as error:
            return Answer(serial=serial, waits=f"reading failed: {_errno_text(error)}")
        except InvalidInstance as problem:
            return Answer(serial=serial, refused=problem.reason)
        except CannotReencode as problem:
            return Answer(serial=serial, refused=str(problem))
        except (MemoryError, RecursionError):
            return Answer(serial=serial, short_of_memory=True)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not become a verdict on the file
            return Answer(serial=serial, crashed=_place(error))
        finally:
            self._board.end()

    def _answer(self, serial: int, job: Job) -> Answer:
        if isinstance(job, InspectJob):
            return Answer(serial=serial, inspection=self._inspect(job))
        if isinstance(job, CanonicalJob):
            return Answer(serial=serial, canonical=self._canonical(job.path))
        if isinstance(job, ReencodeJob):
            return Answer(serial=serial, inspection=self._reencode(job))
        return Answer(serial=serial, sameness=self._compare(job))

    def _progress(self, count: int) -> None:
        self._work += count
        self._board.worked(self._work)
        self._held.flush_when_due()

    def _inspect(self, job: InspectJob) -> Inspection:
        try:
            fd = _open_regular(job.path)
        except OSError as error:
            return Inspection(verdict=Verdict.UNREADABLE, reason_text=f"cannot be opened: {_errno_text(error)}")
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                return Inspection(verdict=Verdict.UNREADABLE, reason_text="is not a regular file")
            if job.expect is not None and job.expect != _source_stat(before):
                return _changed(before)
            _refuse_open_for_writing(fd)
            inspection = self._read(fd, before.st_size)
            if job.durable and inspection.verdict is not Verdict.CHANGED:
                _sync(fd)
            _refuse_open_for_writing(fd)
            return inspection
        finally:
            os.close(fd)

    def _read(self, fd: int, size: int) -> Inspection:
        if size >= _SEQUENTIAL_FROM:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return inspect(fd, limits=self._limits, progress=self._progress)

    def _canonical(self, path: str) -> str:
        from ingestd.instance.canonical import canonical_digest  # noqa: PLC0415 - few jobs need it

        return self._with_file(path, lambda fd: canonical_digest(fd, limits=self._limits, progress=self._progress))

    def _with_file(self, path: str, work: Callable[[int], str]) -> str:
        fd = _open_regular(path)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise _Waits("is not a regular file")
            done = work(fd)
            if _source_stat(os.fstat(fd)) != _source_stat(before):
                raise _Waits("the file changed while it was read")
            return done
        finally:
            os.close(fd)

    def _reencode(self, job: ReencodeJob) -> Inspection:
        from ingestd.instance.reencode import reencode_explicit  # noqa: PLC0415 - few jobs need it

        destination = Path(job.destination)
        part = Path(job.destination + ".part")
        part.unlink(missing_ok=True)
        out = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:

            def rewrite(fd: int) -> str:
                reencode_explicit(fd, out, limits=self._limits, progress=self._progress)
                return ""

            try:
                self._with_file(job.path, rewrite)
                _sync(out)
                part.rename(destination)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            _sync_folder(destination.parent)
            return self._read(out, os.fstat(out).st_size)
        finally:
            os.close(out)

    def _compare(self, job: CompareJob) -> str:
        ours, theirs = self._facts(job.ours, "our file"), self._facts(job.theirs, "the other copy")
        if (ours.study_uid, ours.series_uid, ours.sop_uid) != (theirs.study_uid, theirs.series_uid, theirs.sop_uid):
            return Sameness.OTHER.value
        if ours.transfer_syntax != theirs.transfer_syntax:
            return Sameness.OTHER_ENCODING.value
        if ours.digest == theirs.digest or self._canonical(job.ours) == self._canonical(job.theirs):
            return Sameness.SAME.value
        return Sameness.OTHER.value

    def _facts(self, path: str, name: str) -> Inspection:
        inspection = self._inspect(InspectJob(key=0, path=path))
        if inspection.verdict not in (Verdict.WHOLE, Verdict.ZEROS):
            raise _Waits(f"{name} cannot be compared: {inspection.reason_text}")
        return inspection


def _open_regular(path: str) -> int:
    """Open without following a link, blocking on a FIFO or leaving the descriptor to children."""
    return os.open(path, _OPEN)


def _source_stat(found: os.stat_result) -> SourceStat:
    return SourceStat(device=found.st_dev, inode=found.st_ino, size_bytes=found.st_size, mtime_ns=found.st_mtime_ns)


def _changed(found: os.stat_result) -> Inspection:
    return Inspection(
        verdict=Verdict.CHANGED,
        reason_text="the file is not the one that was seen before",
        size_bytes=found.st_size,
        device=found.st_dev,
        inode=found.st_ino,
        mtime_ns=found.st_mtime_ns,
    )


def _refuse_open_for_writing(fd: int) -> None:
    """Ask the kernel for a read lease: it refuses while any process has the file open for writing.

    Only for files of our own user or with CAP_LEASE, and on filesystems that know leases; elsewhere nothing is said.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        raise _Waits("still open for writing") from None
    except OSError:
        return
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        # The kernel has marked the pages clean: a second fsync would lie. The file has to be read and judged anew.
        raise _Waits(f"fsync failed: {_errno_text(error)}") from None


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def _errno_text(error: OSError) -> str:
    """Say what the kernel said, without the file's name."""
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _place(error: BaseException) -> str:
    """Name an exception by its class and the line it came from; its text may hold values of the file."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {where}"
