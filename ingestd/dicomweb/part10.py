"""The three UIDs of a PS3.10 file; for callers who do not know them already."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ingestd import instance

# A UID as it may become a file name: digits and dots, beginning with a digit, so never "." or "..".
SAFE_UID = re.compile(r"[0-9][0-9.]{0,63}\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceUids:
    """What names an instance."""

    study: str
    series: str
    sop: str


def read_uids(fd: int) -> InstanceUids | None:
    """Read the UIDs of an open file from its start, and no further; None if it is no DICOM file or lacks one."""
    uids = instance.read_uids(fd)
    if uids is None or not all(map(SAFE_UID.match, uids)):
        return None
    return InstanceUids(study=uids[0], series=uids[1], sop=uids[2])
