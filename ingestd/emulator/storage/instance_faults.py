"""Faults that strike single instances while they are stored (``faults`` says what each does)."""

from __future__ import annotations

import os
from typing import Any

from pydicom import dcmread

from ..faults import FaultName
from ..services.delete import remove
from .archive import Service
from .examine import BEING_CREATED, PROCESSING_FAILURE, VALIDATION_FAILED
from .store_job import Entry, StoreRequest

PATIENT_NAME = 0x00100010


def ask_faults(service: Service, request: StoreRequest, entry: Entry) -> None:
    """Find out which faults this instance meets; those that refuse it have done so."""

    def take(name: FaultName) -> bool:
        fault = service.faults.take(name, method=request.method, path=request.path, uids=entry.examined.identity)
        if fault is None:
            return False
        entry.faults.add(name)
        if name is FaultName.LATE_FEED:
            entry.late_seconds = 5.0 if fault.seconds is None else fault.seconds
        elif name is FaultName.COMMIT_DELAY:
            entry.commit_seconds = 1.0 if fault.seconds is None else fault.seconds
        elif name is FaultName.INDEX_LAG:
            entry.lag_seconds = 5.0 if fault.seconds is None else fault.seconds
        elif name is FaultName.FEED_GAP:
            entry.gap = 1000 if fault.numbers is None else fault.numbers
        elif name is FaultName.CUT_STORED:
            entry.cut = 1 if fault.bytes is None else fault.bytes
        return True

    if take(FaultName.BEING_CREATED):
        entry.examined.failure = BEING_CREATED
    elif take(FaultName.PROCESSING_FAILURE):
        entry.examined.failure = PROCESSING_FAILURE
    else:
        for name in (
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
        ):
            take(name)


def alter_where_asked(service: Service, entry: Entry) -> None:
    """Change the bytes that are to be kept."""
    if not entry.faults & {FaultName.ALTER_STORED, FaultName.CHANGE_STORED, FaultName.CUT_STORED}:
        return
    if isinstance(entry.examined.source, bytes):
        descriptor, path = service.files.new_part()
        os.write(descriptor, entry.examined.source)
        os.close(descriptor)
        entry.examined.source = path
    descriptor = os.open(entry.examined.source, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if FaultName.ALTER_STORED in entry.faults:
            _flip(descriptor, size - 1)
        if FaultName.CHANGE_STORED in entry.faults:
            _flip(descriptor, _place_of_name(descriptor))
        os.ftruncate(descriptor, max(0, size - entry.cut))
    finally:
        os.close(descriptor)


def _flip(descriptor: int, at: int) -> None:
    os.pwrite(descriptor, bytes([os.pread(descriptor, 1, at)[0] ^ 1]), at)


def _place_of_name(descriptor: int) -> int:
    """Where the value of PatientName begins."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        element: Any = dcmread(file, stop_before_pixels=True, force=True).get_item(PATIENT_NAME)
    assert element is not None, "only what has a name can be given another one"
    return int(element.value_tell)


def belie_where_asked(service: Service, request: StoreRequest, group: list[Entry]) -> None:
    """Make the answer say something else than what was stored."""
    for entry in group:
        if FaultName.REFUSE_STORED in entry.faults and entry.is_stored:
            entry.examined.failure = VALIDATION_FAILED
        # As when the service's own cleanup of a failed entry meets a commit that had succeeded (AZURE.md 1.8).
        if FaultName.UNDONE in entry.faults and entry.is_stored:
            entry.examined.failure = PROCESSING_FAILURE
            where = "study_uid = ? AND series_uid = ? AND sop_uid = ? AND partition_key = ?"
            remove(service, where, (*entry.examined.identity, request.partition_key))
