"""Files in folders as batches for a store: what is DICOM, which instance it is, and where a batch ends."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from ingestd import places
from ingestd.dicomweb.part10 import read_uids
from ingestd.dicomweb.store_body import StorePart

MAX_BYTES = 64_000_000
MAX_INSTANCES = 200


def batches(
    paths: Iterable[Path | str],
    *,
    max_bytes: int = MAX_BYTES,
    max_instances: int = MAX_INSTANCES,
    on_skip: Callable[[Path, str], object] | None = None,
) -> Iterator[list[StorePart]]:
    """Walk files and folders and yield batches for ``DicomWebClient.store``, in the order of their names.

    A batch holds at most ``max_instances`` and, if more than one, at most ``max_bytes``; no SOP Instance UID twice.
    What is no regular file or no DICOM file with the three UIDs is told to ``on_skip`` with the reason.
    """
    batch: dict[str | None, StorePart] = {}
    size = 0
    for path, place in _files(paths, on_skip):
        part = _part(path, place, on_skip)
        if part is None:
            continue
        is_full = len(batch) >= max_instances or (batch and size + part.size_bytes > max_bytes)
        if is_full or part.sop_uid in batch:
            yield list(batch.values())
            batch, size = {}, 0
        batch[part.sop_uid] = part
        size += part.size_bytes
    if batch:
        yield list(batch.values())


def _files(paths: Iterable[Path | str], on_skip: Callable[[Path, str], object] | None) -> Iterator[tuple[str, str]]:
    """Give each file with its place: others may write in a folder that is named, and put links there meanwhile."""
    for path in map(Path, paths):
        root = str(path)
        if not path.is_dir():
            yield root, root
            continue

        def tell(error: OSError) -> None:
            if on_skip is not None:
                on_skip(Path(error.filename), f"cannot be read: {error.strerror}")

        for folder, below, names in os.walk(root, onerror=tell):
            below.sort()
            inside = folder[len(root) :].strip("/")
            for name in sorted(names):
                yield f"{folder.rstrip('/')}/{name}", places.below(root, f"{inside}/{name}" if inside else name)


def _part(path: str, place: str, on_skip: Callable[[Path, str], object] | None) -> StorePart | None:
    why = ""
    try:
        fd = places.open_file(place)
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    else:
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                why = "is no regular file"
            else:
                uids = read_uids(fd)
                if uids is not None:
                    opener = partial(_open, place)
                    return StorePart(path=Path(path), size_bytes=found.st_size, sop_uid=uids.sop, opener=opener)
                why = "is no DICOM file with study, series and SOP instance UID"
        except OSError as error:
            why = f"cannot be read: {error.strerror}"
        finally:
            os.close(fd)
    if on_skip is not None:
        on_skip(Path(path), why)
    return None


def _open(place: str, _path: str, flags: int) -> int:
    return places.open_file(place, flags)


def total_bytes(batch: Sequence[StorePart]) -> int:
    """Sum up the files of a batch."""
    return sum(part.size_bytes for part in batch)
