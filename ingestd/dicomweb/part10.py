"""The three UIDs of a PS3.10 file, read with pydicom; for callers who do not know them already."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from io import RawIOBase
from typing import BinaryIO, cast

# A UID as it may become a file name: digits and dots, beginning with a digit, so never "." or "..".
SAFE_UID = re.compile(r"[0-9][0-9.]{0,63}\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceUids:
    """What names an instance."""

    study: str
    series: str
    sop: str


def read_uids(file: BinaryIO | RawIOBase) -> InstanceUids | None:
    """Read the UIDs of an open file from its start; None if it is no DICOM file or lacks one."""
    from pydicom import dcmread  # noqa: PLC0415 - 20 MB that only these callers pay

    binary = cast("BinaryIO", file)
    binary.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values
            found = dcmread(
                binary,
                stop_before_pixels=True,
                specific_tags=["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"],
            )
        uids = [str(found.get(name, "") or "").rstrip(" \0") for name in ("StudyInstanceUID", "SeriesInstanceUID")]
        uids.append(str(found.get("SOPInstanceUID", "") or "").rstrip(" \0"))
    except Exception:  # noqa: BLE001 - pydicom raises a dozen kinds for what is no DICOM file
        return None
    if not all(SAFE_UID.match(uid) for uid in uids):
        return None
    return InstanceUids(study=uids[0], series=uids[1], sop=uids[2])
