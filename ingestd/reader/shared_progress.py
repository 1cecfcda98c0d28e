"""A few bytes of memory shared between parent and child: which job the child is at, and how far it has come.

A child that dies cannot say what killed it; these bytes still do. Only the child writes.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_SIZE = mmap.PAGESIZE
_NUMBER = struct.Struct("<Q")
_SERIAL_AND_WORK = struct.Struct("<QQ")
_WORK_AT = 8
_READY_AT = 16


class SharedProgress:
    """The shared page, as parent and child both see it."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _SIZE)

    @staticmethod
    def create() -> int:
        """Make the page's descriptor, to be handed to a child; the caller closes it."""
        fd = os.memfd_create("ingestd-reader", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SIZE)
        return fd

    def stand_ready(self) -> None:
        """Say that the start is got through."""
        self._map[_READY_AT] = 1

    @property
    def is_ready(self) -> bool:
        return self._map[_READY_AT] == 1

    @contextmanager
    def at(self, serial: int) -> Iterator[None]:
        """Say that this job is being worked on, 0 for none; afterwards, that what was before is again."""
        before = _SERIAL_AND_WORK.unpack_from(self._map, 0)
        _SERIAL_AND_WORK.pack_into(self._map, 0, serial, 0)
        try:
            yield
        finally:
            _SERIAL_AND_WORK.pack_into(self._map, 0, *before)

    def worked(self, work_bytes: int) -> None:
        """So many bytes were read, inflated or written for this job up to now."""
        _NUMBER.pack_into(self._map, _WORK_AT, work_bytes)

    @property
    def serial(self) -> int:
        """The job that is being worked on, 0 for none."""
        value: int = _NUMBER.unpack_from(self._map, 0)[0]
        return value

    @property
    def work_bytes(self) -> int:
        value: int = _NUMBER.unpack_from(self._map, _WORK_AT)[0]
        return value

    def close(self) -> None:
        self._map.close()
