"""Faults of single instances while they are stored (``faults`` says what each does)."""

from __future__ import annotations

import os
from io import FileIO
from typing import Any

from pydicom import dcmread

from ..faults import FaultName
from .archive import Archive
from .examine import BEING_CREATED, PROCESSING_FAILURE, VALIDATION_FAILED
from .removal import remove
from .store_job import PartResult, StoreRequest

PATIENT_NAME = 0x00100010


# Those that refuse the instance, of which one is enough; then all the others.
_REFUSING = {FaultName.BEING_CREATED: BEING_CREATED, FaultName.PROCESSING_FAILURE: PROCESSING_FAILURE}
_OTHERS = (
    FaultName.STUCK_CREATING,
    FaultName.REFUSE_STORED,
    FaultName.UNDONE,
    FaultName.LATE_FEED,
    FaultName.FEED_GAP,
    FaultName.COMMIT_DELAY,
    FaultName.INDEX_LAG,
    FaultName.LOSE_STORED,
    FaultName.ALTER_STORED,
    FaultName.CHANGE_STORED,
    FaultName.CUT_STORED,
)


def draw_faults(archive: Archive, request: StoreRequest, result: PartResult) -> None:
    """Find out which faults this instance meets; those that refuse it have done so."""
    for name in (*_REFUSING, *_OTHERS):
        fault = archive.faults.take(name, method=request.method, path=request.path, uids=result.examined.identity)
        if fault is not None:
            result.faults[name] = fault
        if fault is not None and name in _REFUSING:
            result.examined.failure = _REFUSING[name]
            return


def alter_file(archive: Archive, result: PartResult) -> None:
    """Change the bytes that are to be kept, where a fault asks for it."""
    if not result.faults.keys() & {FaultName.ALTER_STORED, FaultName.CHANGE_STORED, FaultName.CUT_STORED}:
        return
    if isinstance(result.examined.source, bytes):
        descriptor, path = archive.files.new_part()
        os.write(descriptor, result.examined.source)
        os.close(descriptor)
        result.examined.source = path
    with result.examined.source.open("r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if FaultName.ALTER_STORED in result.faults:
            _flip(file, size - 1)
        if FaultName.CHANGE_STORED in result.faults:
            _flip(file, _place_of_name(file))
        if fault := result.faults.get(FaultName.CUT_STORED):
            file.truncate(max(0, size - (1 if fault.bytes is None else fault.bytes)))


def _flip(file: FileIO, at: int) -> None:
    os.pwrite(file.fileno(), bytes([os.pread(file.fileno(), 1, at)[0] ^ 1]), at)


def _place_of_name(file: FileIO) -> int:
    """Where the value of PatientName begins."""
    element: Any = dcmread(file, stop_before_pixels=True, force=True).get_item(PATIENT_NAME)
    assert element is not None, "only what has a name can be given another one"
    return int(element.value_tell)


def falsify_results(archive: Archive, request: StoreRequest, group: list[PartResult]) -> None:
    """Make the answer say something else than what was stored."""
    for result in group:
        if FaultName.REFUSE_STORED in result.faults and result.is_stored:
            result.examined.failure = VALIDATION_FAILED
        # As when the service's own cleanup of a failed entry meets a commit that had succeeded (AZURE.md 1.8).
        if FaultName.UNDONE in result.faults and result.is_stored:
            result.examined.failure = PROCESSING_FAILURE
            remove(archive, request.partition_key, *result.examined.identity)
