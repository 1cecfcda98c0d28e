"""How a file from another filesystem gets into the spool: copied into ``scratch``, checked, and renamed from there.

The bytes are those that were read, or the file is left where it lies. Holes stay holes: a sparse file may be longer
than the disk that it is copied to, and written out as zeros it filled it for everybody. What is not a hole must fit,
with ``low_water`` to spare, before the first byte is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ingestd.digests import HeadAndRest
from ingestd.fs import places
from ingestd.fs.durable import new_file_of_ours, rename_to_ours
from ingestd.fs.mounts import free_space
from ingestd.fs.open_files import extents

from .types import Candidate, Expect, Taken, WhyNot

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)
# So much is written between two looks at the disk, which others fill too.
_LOOK_EVERY = 64 << 20
BARS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_NO_ROOM = "it does not fit on the spool's disk, of which low_water stays free"


class Left(Exception):
    """The file stays where it is."""

    def __init__(self, why: WhyNot, note: str) -> None:
        self.why = why
        self.note = note
        super().__init__(note)


class Target(NamedTuple):
    """Where in the spool a file is to go: an open folder, its path with a slash, and the name in it."""

    folder: int
    prefix: str
    name: str


def copy_in(
    name: str,
    folder: int,
    target: Target,
    candidate: Candidate,
    expect: Expect,
    *,
    scratch: int,
    low_water: int,
    may_act: Callable[[], bool],
) -> Taken:
    """Copy a file to ``target``, if it ``may_act`` still when that is done.

    Raises Left or OSError; of the copy nothing stays then.
    """
    temporary = secrets.token_hex(16)
    lies_in, named = scratch, temporary
    source = os.open(name, places.FILE, dir_fd=folder)
    try:
        with spool_to_be_there():
            copy = new_file_of_ours(temporary, scratch)
        try:
            before = os.fstat(source)
            check_same(before, expect, "the file changed after it was read")
            _copy_checked(source, copy, expect, low_water)
            after = os.fstat(source)
            check_same(after, expect, "the file changed while it was copied")
            check_same(places.look_in(name, folder), expect, "the file was replaced while it was copied")
            os.utime(copy, ns=(expect.source.mtime_ns, expect.source.mtime_ns))
            os.fsync(copy)
            expect_to_act(may_act)
            with spool_to_be_there():
                rename_to_ours(temporary, scratch, target.name, target.folder)
            lies_in, named = target.folder, target.name
            # 0 where it did not stand still.
            source_ctime_ns = after.st_ctime_ns if before.st_ctime_ns == after.st_ctime_ns else 0
            return Taken(
                candidate=candidate,
                path=target.prefix + target.name,
                source_removed=False,
                ctime_ns=os.fstat(copy).st_ctime_ns,
                source_ctime_ns=source_ctime_ns,
            )
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(named, dir_fd=lies_in)
            raise
        finally:
            os.close(copy)
    finally:
        os.close(source)


def holds_what_was_read(descriptor: int, expect: Expect) -> bool:
    """Whether an open file has the bytes that the reader found."""
    digests = HeadAndRest(expect.dataset_offset, like=expect.digest)
    buffer = memoryview(bytearray(_CHUNK))
    at = 0
    while got := os.preadv(descriptor, [buffer], at):
        digests.update(buffer[:got])
        at += got
    return digests.texts() == (expect.meta_digest, expect.digest)


def check_same(found: os.stat_result, expect: Expect, otherwise: str) -> None:
    """Raise Left, and say so, unless this is what was read."""
    if not stat.S_ISREG(found.st_mode) or not expect.source.is_of(found):
        raise Left(WhyNot.CHANGED, otherwise)


def expect_to_act(may_act: Callable[[], bool]) -> None:
    """Raise Left where that is not ours any more: who has it now may take in the same file."""
    if not may_act():
        raise Left(WhyNot.NO_SPOOL, "the ledger was away for so long that another worker may have taken over")


@contextlib.contextmanager
def spool_to_be_there() -> Iterator[None]:
    """Tell a folder of the spool that is not there, or not for us, from such a file."""
    try:
        yield
    except OSError as error:
        if error.errno not in BARS and not isinstance(error, places.MISSING):
            raise
        raise no_spool(error) from error


def no_spool(error: OSError) -> Left:
    """Say what keeps a folder of the spool from being used."""
    if error.errno in BARS:
        why = os.strerror(error.errno or errno.EIO).lower()
        return Left(WhyNot.NO_SPOOL, f"a folder of the spool may not be written: {why}")
    return Left(WhyNot.NO_SPOOL, "a folder of the spool is not there")


def _copy_checked(source: int, copy: int, expect: Expect, low_water: int) -> None:
    """Copy all bytes, and compare them with what the reader found before and after ``dataset_offset``."""
    size = expect.source.size_bytes
    _check_room(source, copy, size, low_water)
    digests = HeadAndRest(expect.dataset_offset, like=expect.digest)
    buffer = memoryview(bytearray(_CHUNK))
    zeros = memoryview(_ZEROS)
    look_at = _LOOK_EVERY
    written = 0
    for start, end, is_data in extents(source, size):
        at = start
        while at < end:
            if not is_data:
                chunk = zeros[: end - at]
            else:
                got = os.preadv(source, [buffer[: end - at]], at)
                if not got:
                    raise Left(WhyNot.CHANGED, "the file's length changed while it was copied")
                chunk = buffer[:got]
                _write(copy, chunk, at)
                written += got
                if written >= look_at:
                    look_at = written + _LOOK_EVERY
                    if free_space(copy).free_bytes < low_water:
                        raise Left(WhyNot.NO_ROOM, _NO_ROOM)
            digests.update(chunk)
            at += len(chunk)
    os.ftruncate(copy, size)
    if os.preadv(source, [buffer[:1]], size):
        raise Left(WhyNot.CHANGED, "the file's length changed while it was copied")
    if expect.digest and digests.texts() != (expect.meta_digest, expect.digest):
        raise Left(WhyNot.CHANGED, "the file's content is not what was read")


def _check_room(source: int, copy: int, size: int, low_water: int) -> None:
    left = free_space(copy).free_bytes - low_water
    if size <= left:
        return
    for start, end, is_data in extents(source, size):
        left -= end - start if is_data else 0
        if left < 0:
            raise Left(WhyNot.NO_ROOM, _NO_ROOM)


def _write(copy: int, chunk: memoryview, at: int) -> None:
    while chunk:
        done = os.pwrite(copy, chunk, at)
        chunk, at = chunk[done:], at + done
