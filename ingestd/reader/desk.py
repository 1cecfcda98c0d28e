"""The work of a child: one job at a time, from a path to an answer."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from ingestd.fs.durable import new_file, start_writing
from ingestd.fs.places import open_file
from ingestd.instance.errors import CannotReencode, InvalidInstance
from ingestd.instance.facts import Inspection, Limits, Verdict
from ingestd.instance.inspection import inspect
from ingestd.lifecycle import Sameness, SourceStat
from ingestd.reader.board import Board
from ingestd.reader.files import (
    Waits,
    errno_text,
    hole_bytes,
    refuse_open_for_writing,
    sync,
)
from ingestd.reader.held import Done, Held
from ingestd.reader.jobs import CanonicalJob, CompareJob, InspectJob, Job, ReencodeJob
from ingestd.reader.wire import Answer
from ingestd.reader.words import place_of

_SEQUENTIAL_FROM = 1 << 20
# A file that stays more hole than data is admitted all the same up to this size: four times the largest Pixel Data.
_SPARSE_MOST = 16 << 30
_COMPARABLE = (Verdict.WHOLE, Verdict.ZEROS)
# Read to its end, and no whole object; a file that cannot be opened or changes says nothing.
_NOT_WHOLE = frozenset(Verdict) - {*_COMPARABLE, Verdict.CHANGED, Verdict.UNREADABLE}
# So many attributes in which a copy differs are named.
_NAMED_MOST = 8


class Desk:
    """Does one job at a time and keeps the board. Lets held answers go while a long job is on."""

    def __init__(self, board: Board, limits: Limits, held: Held) -> None:
        self._board = board
        self._limits = limits
        self._held = held
        self._work = 0

    def do(self, serial: int, job: Job) -> Done:
        """Do one job; whatever goes wrong becomes an answer."""
        self._work = 0
        before = self._board.begin(serial)
        try:
            return self._done(serial, job)
        except Waits as why:
            answer = Answer(serial=serial, waits=str(why))
        except OSError as error:
            answer = Answer(serial=serial, waits=f"reading failed: {errno_text(error)}")
        except InvalidInstance as problem:
            answer = Answer(serial=serial, refused=problem.reason)
        except CannotReencode as problem:
            answer = Answer(serial=serial, refused=str(problem))
        except (MemoryError, RecursionError):
            answer = Answer(serial=serial, short_of_memory=True)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not become a verdict on the file
            answer = Answer(serial=serial, crashed=place_of(error))
        finally:
            self._board.go_back(before)
        return Done(answer)

    def _done(self, serial: int, job: Job) -> Done:
        if isinstance(job, InspectJob):
            inspection, unsynced = self._inspect(job)
            return Done(Answer(serial=serial, inspection=inspection), unsynced)
        if isinstance(job, CanonicalJob):
            return Done(Answer(serial=serial, canonical=self._canonical(job.path)))
        if isinstance(job, ReencodeJob):
            return Done(Answer(serial=serial, inspection=self._reencode(job)))
        return Done(self._compare(serial, job))

    def _progress(self, count: int) -> None:
        self._work += count
        self._board.worked(self._work)
        self._held.flush_when_due()

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
                return _changed(before), None
            refuse_open_for_writing(fd)
            holes = _holes(fd, before, patient=job.patient)
            if holes is not None:
                return holes, None
            inspection = self._read(fd, before.st_size)
            if job.durable and inspection.verdict is not Verdict.CHANGED:
                start_writing(fd)
                unsynced = fd
            else:
                refuse_open_for_writing(fd)
            return inspection, unsynced
        finally:
            if unsynced is None:
                os.close(fd)

    def _read(self, fd: int, size: int) -> Inspection:
        if size >= _SEQUENTIAL_FROM:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return inspect(fd, limits=self._limits, progress=self._progress)

    def _canonical(self, path: str) -> str:
        from ingestd.instance.canonical import canonical_digest  # noqa: PLC0415 - few jobs need it

        return self._with_file(path, lambda fd: canonical_digest(fd, limits=self._limits, progress=self._progress))

    def _with_file(self, path: str, work: Callable[[int], str]) -> str:
        fd = open_file(path)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise Waits("is not a regular file")
            done = work(fd)
            if not SourceStat.of(before).is_of(os.fstat(fd)):
                raise Waits("the file changed while it was read")
            return done
        finally:
            os.close(fd)

    def _reencode(self, job: ReencodeJob) -> Inspection:
        from ingestd.instance.reencode import reencode_explicit  # noqa: PLC0415 - few jobs need it

        destination = Path(job.destination)
        part = Path(job.destination + ".part")
        part.unlink(missing_ok=True)
        out = new_file(part)
        try:

            def rewrite(fd: int) -> str:
                reencode_explicit(fd, out, limits=self._limits, progress=self._progress)
                return ""

            try:
                self._with_file(job.path, rewrite)
                sync(out)
                part.rename(destination)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            sync(destination.parent)
            return self._read(out, os.fstat(out).st_size)
        finally:
            os.close(out)

    def _compare(self, serial: int, job: CompareJob) -> Answer:
        ours = self._facts(job.ours, "our file")
        if job.our_digest not in ("", ours.digest):
            return Answer(serial=serial, lost="ours")
        theirs, _ = self._inspect(InspectJob(key=0, path=job.theirs))
        if theirs.verdict not in _COMPARABLE:
            not_whole = theirs.reason_text if theirs.verdict in _NOT_WHOLE else ""
            return Answer(serial=serial, waits=_incomparable(theirs, "the other copy"), differs=not_whole)
        if job.their_digest not in ("", theirs.digest):
            return Answer(serial=serial, lost="theirs")
        sameness = self._sameness(job, ours, theirs)
        return Answer(serial=serial, sameness=sameness.value, differs=self._differs(job, sameness, theirs))

    def _differs(self, job: CompareJob, sameness: Sameness, theirs: Inspection) -> str:
        if sameness is Sameness.OTHER_ENCODING:
            return f"its transfer syntax is {theirs.transfer_syntax}"
        if sameness is not Sameness.OTHER:
            return ""
        from ingestd.instance.canonical import differing_attributes  # noqa: PLC0415 - few jobs need it

        def compared(ours: int, theirs: int) -> str:
            names = differing_attributes(ours, theirs, limits=self._limits)
            more = f" and {len(names) - _NAMED_MOST} more" if len(names) > _NAMED_MOST else ""
            return f"{', '.join(names[:_NAMED_MOST])}{more} differ{'s' * (len(names) == 1)}" if names else ""

        return self._with_file(job.ours, lambda one: self._with_file(job.theirs, lambda two: compared(one, two)))

    def _sameness(self, job: CompareJob, ours: Inspection, theirs: Inspection) -> Sameness:
        if (ours.study_uid, ours.series_uid, ours.sop_uid) != (theirs.study_uid, theirs.series_uid, theirs.sop_uid):
            return Sameness.OTHER
        if ours.transfer_syntax != theirs.transfer_syntax:
            return Sameness.OTHER_ENCODING
        if ours.digest == theirs.digest or self._canonical(job.ours) == self._canonical(job.theirs):
            return Sameness.SAME
        return Sameness.OTHER

    def _facts(self, path: str, name: str) -> Inspection:
        inspection, _ = self._inspect(InspectJob(key=0, path=path))
        if inspection.verdict not in _COMPARABLE:
            raise Waits(_incomparable(inspection, name))
        return inspection


def _incomparable(inspection: Inspection, name: str) -> str:
    return f"{name} cannot be compared: {inspection.reason_text}"


def _holes(fd: int, found: os.stat_result, *, patient: bool) -> Inspection | None:
    """Judge a file that is more hole than data, where it need not be read for that."""
    size = found.st_size
    holes = hole_bytes(fd, size)
    if 2 * holes <= size or not (patient or size > _SPARSE_MOST):
        return None
    reason = f"{holes} of its {size} bytes were never written"
    return Inspection(
        verdict=Verdict.ZEROS if patient else Verdict.SHORT,
        reason_text=reason,
        size_bytes=size,
        device=found.st_dev,
        inode=found.st_ino,
        mtime_ns=found.st_mtime_ns,
    )


def _changed(found: os.stat_result) -> Inspection:
    return Inspection(
        verdict=Verdict.CHANGED,
        reason_text="the file is not the one that was seen before",
        size_bytes=found.st_size,
        device=found.st_dev,
        inode=found.st_ino,
        mtime_ns=found.st_mtime_ns,
    )
