"""Which instance a file is, and nothing else: read up to its Series Instance UID, in constant memory."""

from __future__ import annotations

from ingestd.instance import tags
from ingestd.instance.facts import InvalidInstance
from ingestd.instance.frames import WalkEvent
from ingestd.instance.meta import uid_text
from ingestd.instance.opening import OpenedFile
from ingestd.instance.runs import KEPT_BYTES
from ingestd.instance.source import ignore_progress
from ingestd.instance.walk import Walker

_UIDS = (tags.STUDY_INSTANCE_UID, tags.SERIES_INSTANCE_UID, tags.SOP_INSTANCE_UID)


class _UidsAndWhatFollows:
    """Elements come in ascending order: behind the last UID begins what need not be read."""

    def __contains__(self, tag: object) -> bool:
        return isinstance(tag, int) and (tag > tags.SERIES_INSTANCE_UID or tag in _UIDS)


def read_uids(fd: int) -> tuple[str, str, str] | None:
    """Read Study, Series and SOP Instance UID from the beginning of a file with File Meta; "" for one that is absent.

    Stops behind them; only where one is missing in its place is it looked for in what follows. None for what is no
    DICOM file. Nothing is said of the rest of the file. Raises OSError as the kernel gives it.
    """
    found: dict[int, bytes] = {}
    try:
        file = OpenedFile(fd, progress=ignore_progress)
        file.read_meta()
        walker = Walker(
            file.open_dataset(),
            encoding=file.encoding,
            chosen=_UidsAndWhatFollows(),
            keep=_UIDS,
            keep_in=found,
        )
        if file.generated_meta:
            return None
        while walker.advance() is not WalkEvent.END and len(found) < len(_UIDS):
            if walker.tag in _UIDS and walker.length <= KEPT_BYTES:
                found.setdefault(walker.tag, walker.value())
    except InvalidInstance:
        if len(found) < len(_UIDS):
            return None
    study, series, sop = (uid_text(found.get(tag, b"")) for tag in _UIDS)
    return study, series, sop
