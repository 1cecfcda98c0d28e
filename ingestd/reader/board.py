"""A few bytes of memory shared between parent and child: which job the child is at, and how far it has come.

A child that dies cannot say what killed it; the board still does. Only the child writes.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TypeAlias

_SIZE = mmap.PAGESIZE
_NUMBER = struct.Struct("<Q")
_PLACE = struct.Struct("<QQ")
_WORK_AT = 8
_READY_AT = 16

Place: TypeAlias = tuple[int, int]  # the job that is being worked on, and how far it has come


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

    def stand_ready(self) -> None:
        """Say that the start is got through."""
        self._map[_READY_AT] = 1

    @property
    def is_ready(self) -> bool:
        """Whether the child has got through its start."""
        return self._map[_READY_AT] == 1

    def begin(self, serial: int) -> Place:
        """Say that from now on that job is being worked on; gives what to go back to."""
        before: Place = _PLACE.unpack_from(self._map, 0)
        _PLACE.pack_into(self._map, 0, serial, 0)
        return before

    def go_back(self, before: Place) -> None:
        """Say that from now on what was before is worked on again, or nothing."""
        _PLACE.pack_into(self._map, 0, *before)

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
