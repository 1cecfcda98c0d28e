"""The work of a child: one job at a time, from a path to a reply."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingestd.error_location import location_of
from ingestd.fs.durable import new_file, start_writing
from ingestd.fs.places import open_file
from ingestd.instance.facts import CannotReencode, Inspection, InvalidInstance, Verdict
from ingestd.instance.inspection import inspect
from ingestd.reader.files import Waits, errno_text, hole_bytes, refuse_open_for_writing, sync
from ingestd.reader.protocol import CompareJob, InspectJob, Job, ReaderAnswer, ReencodeJob
from ingestd.reader.reply_buffer import Reply, ReplyBuffer
from ingestd.reader.shared_progress import SharedProgress
from ingestd.sameness import Sameness, SourceStat

_SEQUENTIAL_FROM = 1 << 20
# A file that stays more hole than data is admitted all the same up to this size: four times the largest Pixel Data.
_SPARSE_MOST = 16 << 30
_COMPARABLE = (Verdict.WHOLE, Verdict.ZEROS)
# So many attributes in which a copy differs are named.
_NAMED_MOST = 8


class JobRunner:
    """Does one job at a time and says how far it is. Lets replies go while a long job is on."""

    def __init__(self, progress: SharedProgress, replies: ReplyBuffer) -> None:
        self._shared = progress
        self._replies = replies
        self._work = 0

    def run(self, serial: int, job: Job) -> Reply:
        """Do one job; whatever goes wrong becomes an answer."""
        self._work = 0
        try:
            with self._shared.at(serial):
                return self._reply_to(serial, job)
        except Waits as why:
            answer = ReaderAnswer(serial=serial, waits=str(why))
        except OSError as error:
            answer = ReaderAnswer(serial=serial, waits=f"reading failed: {errno_text(error)}")
        except InvalidInstance as problem:
            answer = ReaderAnswer(serial=serial, refused=problem.reason)
        except CannotReencode as problem:
            answer = ReaderAnswer(serial=serial, refused=str(problem))
        except (MemoryError, RecursionError):
            answer = ReaderAnswer(serial=serial, short_of_memory=True)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not become a verdict on the file
            answer = ReaderAnswer(serial=serial, crashed=location_of(error))
        return Reply(answer)

    def _reply_to(self, serial: int, job: Job) -> Reply:
        if isinstance(job, InspectJob):
            inspection, unsynced = self._inspect(job)
            return Reply(ReaderAnswer(serial=serial, inspection=inspection), unsynced)
        if isinstance(job, ReencodeJob):
            return Reply(ReaderAnswer(serial=serial, inspection=self._reencode(job)))
        return Reply(self._compare(serial, job))

    def _progress(self, count: int) -> None:
        self._work += count
        self._shared.worked(self._work)
        self._replies.flush_when_due()

    def _inspect(self, job: InspectJob) -> tuple[Inspection, int | None]:
        """Inspect one file; where it has to be durable its descriptor is given back open, to be synced."""
        try:
            fd = open_file(job.path)
        except OSError as error:
            reason = f"cannot be opened: {errno_text(error)}"
            return Inspection(verdict=Verdict.UNREADABLE, reason_text=reason), None
        unsynced = None
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                return Inspection(verdict=Verdict.UNREADABLE, reason_text="is not a regular file"), None
            if job.expect is not None and not job.expect.is_of(before):
                return _unread(before, Verdict.CHANGED, "the file is not the one that was seen before"), None
            refuse_open_for_writing(fd)
            holes = _holes(fd, before, patient=job.patient)
            if holes is not None:
                return holes, None
            inspection = self._read(fd, before.st_size, like=job.like, sha256=job.sha256)
            if job.durable and inspection.verdict is not Verdict.CHANGED:
                start_writing(fd)
                unsynced = fd
            else:
                refuse_open_for_writing(fd)
            return inspection, unsynced
        finally:
            if unsynced is None:
                os.close(fd)

    def _read(self, fd: int, size: int, *, like: str = "", sha256: bool = False) -> Inspection:
        if size >= _SEQUENTIAL_FROM:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return inspect(fd, like=like, sha256=sha256, progress=self._progress)

    def _reencode(self, job: ReencodeJob) -> Inspection:
        from ingestd.instance.reencode import reencode_explicit  # noqa: PLC0415 - few jobs need it

        destination = Path(job.destination)
        part = Path(job.destination + ".part")
        part.unlink(missing_ok=True)
        out = new_file(part)
        try:
            try:
                with _opened(job.path) as fd:
                    reencode_explicit(fd, out, progress=self._progress)
                sync(out)
                part.rename(destination)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            sync(destination.parent)
            return self._read(out, os.fstat(out).st_size)
        finally:
            os.close(out)

    def _compare(self, serial: int, job: CompareJob) -> ReaderAnswer:
        ours, _ = self._inspect(InspectJob(key=0, path=job.ours, like=job.our_digest))
        if (answer := _not_compared(serial, "ours", "our file", ours, job.our_digest)) is not None:
            return answer
        theirs, _ = self._inspect(InspectJob(key=0, path=job.theirs, like=job.their_digest or ours.digest))
        if (answer := _not_compared(serial, "theirs", "the other copy", theirs, job.their_digest)) is not None:
            return answer
        sameness = self._sameness(job, ours, theirs)
        return ReaderAnswer(serial=serial, sameness=sameness.value, differs=self._differs(job, sameness, theirs))

    def _sameness(self, job: CompareJob, ours: Inspection, theirs: Inspection) -> Sameness:
        if (ours.study_uid, ours.series_uid, ours.sop_uid) != (theirs.study_uid, theirs.series_uid, theirs.sop_uid):
            return Sameness.OTHER
        if ours.transfer_syntax != theirs.transfer_syntax:
            return Sameness.OTHER_ENCODING
        if ours.digest == theirs.digest or self._canonical(job.ours) == self._canonical(job.theirs):
            return Sameness.SAME
        return Sameness.OTHER

    def _canonical(self, path: str) -> str:
        from ingestd.instance.canonical import canonical_digest  # noqa: PLC0415 - few jobs need it

        with _opened(path) as fd:
            return canonical_digest(fd, progress=self._progress)

    def _differs(self, job: CompareJob, sameness: Sameness, theirs: Inspection) -> str:
        if sameness is Sameness.OTHER_ENCODING:
            return f"its transfer syntax is {theirs.transfer_syntax}"
        if sameness is not Sameness.OTHER:
            return ""
        from ingestd.instance.canonical import differing_attributes  # noqa: PLC0415 - few jobs need it

        with _opened(job.ours) as our_fd, _opened(job.theirs) as their_fd:
            names = differing_attributes(our_fd, their_fd)
        more = f" and {len(names) - _NAMED_MOST} more" if len(names) > _NAMED_MOST else ""
        return f"{', '.join(names[:_NAMED_MOST])}{more} differ{'s' * (len(names) == 1)}" if names else ""


def _not_compared(serial: int, which: str, name: str, found: Inspection, digest: str) -> ReaderAnswer | None:
    """Say why one of two files is not compared; None: it can be. One that was cut since is another one, and not cut."""
    is_read = found.verdict not in (Verdict.CHANGED, Verdict.UNREADABLE)
    if is_read and digest not in ("", found.digest):
        return ReaderAnswer(serial=serial, lost=which)
    if found.verdict in _COMPARABLE:
        return None
    # Of a copy that was read it is known what it is not.
    differs = found.reason_text if is_read and which == "theirs" else ""
    waits = f"{name} cannot be compared: {found.reason_text}"
    return ReaderAnswer(serial=serial, waits=waits, not_whole=which if is_read else "", differs=differs)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """Open a regular file for a look at all of it; raises Waits afterwards if it is not what it was."""
    fd = open_file(path)
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise Waits("is not a regular file")
        yield fd
        if not SourceStat.of(before).is_of(os.fstat(fd)):
            raise Waits("the file changed while it was read")
    finally:
        os.close(fd)


def _holes(fd: int, found: os.stat_result, *, patient: bool) -> Inspection | None:
    """Judge a file that is more hole than data, where it need not be read for that."""
    size = found.st_size
    holes = hole_bytes(fd, size)
    if 2 * holes <= size or not (patient or size > _SPARSE_MOST):
        return None
    reason = f"{holes} of its {size} bytes were never written"
    return _unread(found, Verdict.ZEROS if patient else Verdict.SHORT, reason)


def _unread(found: os.stat_result, verdict: Verdict, reason: str) -> Inspection:
    """Judge a file by what stat(2) said of it alone."""
    return Inspection(
        verdict=verdict,
        reason_text=reason,
        size_bytes=found.st_size,
        device=found.st_dev,
        inode=found.st_ino,
        mtime_ns=found.st_mtime_ns,
    )
