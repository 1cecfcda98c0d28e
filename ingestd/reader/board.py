"""A few bytes of memory shared between parent and child: which job the child is at, and how far it has come.

A child that dies cannot say what killed it; the board still does. Only the child writes.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_SIZE = mmap.PAGESIZE
_NUMBER = struct.Struct("<Q")
_WORK_AT = 8


class Board:
    """The shared page. ``serial`` 0: between jobs."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _SIZE)

    @staticmethod
    def create() -> int:
        """Make the page's descriptor, to be handed to a child; the caller closes it."""
        fd = os.memfd_create("ingestd-reader", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SIZE)
        return fd

    @contextmanager
    def at(self, serial: int) -> Iterator[None]:
        """While this lasts, that job is being worked on; then what was before."""
        before, work = self.serial, self.work_bytes
        _NUMBER.pack_into(self._map, _WORK_AT, 0)
        _NUMBER.pack_into(self._map, 0, serial)
        try:
            yield
        finally:
            _NUMBER.pack_into(self._map, _WORK_AT, work)
            _NUMBER.pack_into(self._map, 0, before)

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
        """How far it has come."""
        value: int = _NUMBER.unpack_from(self._map, _WORK_AT)[0]
        return value

    def close(self) -> None:
        """Give the page back."""
        self._map.close()
