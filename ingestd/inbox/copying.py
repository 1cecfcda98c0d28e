"""Copies a file's bytes from another filesystem and checks that they are those that were read.

Holes stay holes: a sparse file may be longer than the disk that it is copied to, and written out as zeros it filled it
for everybody. What is not a hole must fit, with ``low_water`` to spare, before the first byte is written.
"""

from __future__ import annotations

import hashlib
import os

from ingestd.fs.mounts import free_space
from ingestd.fs.open_files import extents

from .types import Expect

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)
# So much is written between two looks at the disk, which others fill too.
_LOOK_EVERY = 64 << 20


class Differs(Exception):
    """The file is not what was read; the text says how."""


class NoRoom(Exception):
    """The file does not fit on the disk."""


class _Digests:
    """The digests of the bytes before and after an offset."""

    def __init__(self, offset: int) -> None:
        self._head, self._rest = hashlib.sha256(), hashlib.sha256()
        self._head_left = offset

    def update(self, chunk: memoryview) -> None:
        if self._head_left:
            self._head.update(chunk[: self._head_left])
            self._rest.update(chunk[self._head_left :])
            self._head_left -= min(self._head_left, len(chunk))
        else:
            self._rest.update(chunk)

    def found(self) -> tuple[str, str]:
        return self._head.hexdigest(), self._rest.hexdigest()


def copy_checked(source: int, copy: int, expect: Expect, *, low_water: int) -> None:
    """Copy all bytes, and compare them with what the reader found before and after ``dataset_offset``.

    Raises Differs, NoRoom or OSError; what was written by then is of no use.
    """
    size = expect.source.size_bytes
    _check_room(source, copy, size, low_water)
    digests = _Digests(expect.dataset_offset)
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
                    raise Differs("the file's length changed while it was copied")
                chunk = buffer[:got]
                _write(copy, chunk, at)
                written += got
                if written >= look_at:
                    look_at = written + _LOOK_EVERY
                    if free_space(copy).free_bytes < low_water:
                        raise NoRoom
            digests.update(chunk)
            at += len(chunk)
    os.ftruncate(copy, size)
    if os.preadv(source, [buffer[:1]], size):
        raise Differs("the file's length changed while it was copied")
    if expect.digest and digests.found() != (expect.meta_digest or hashlib.sha256().hexdigest(), expect.digest):
        raise Differs("the file's content is not what was read")


def holds_what_was_read(descriptor: int, expect: Expect) -> bool:
    """Whether an open file has the bytes that the reader found."""
    digests, buffer = _Digests(expect.dataset_offset), memoryview(bytearray(_CHUNK))
    at = 0
    while got := os.preadv(descriptor, [buffer], at):
        digests.update(buffer[:got])
        at += got
    return digests.found() == (expect.meta_digest, expect.digest)


def _check_room(source: int, copy: int, size: int, low_water: int) -> None:
    left = free_space(copy).free_bytes - low_water
    if size <= left:
        return
    for start, end, is_data in extents(source, size):
        left -= end - start if is_data else 0
        if left < 0:
            raise NoRoom


def _write(copy: int, chunk: memoryview, at: int) -> None:
    while chunk:
        done = os.pwrite(copy, chunk, at)
        chunk, at = chunk[done:], at + done
