"""Files in folders as batches for a store: what is whole, which instance it is, and where a batch ends."""

from __future__ import annotations

import os
import queue
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from ingestd import threads
from ingestd.dicomweb.store_body import StorePart
from ingestd.fs import places
from ingestd.instance import Verdict, file_meta_for, inspect

# What adds up; whether its zeros or its missing pixels were meant is what the daemon waits for, and then sends it.
_STORED = frozenset({Verdict.WHOLE, Verdict.ZEROS})
_LINKED = "is a link to a folder, which is not followed: name it to have it stored"
MAX_BYTES = 64_000_000
MAX_INSTANCES = 200

T = TypeVar("T")


def batches(
    paths: Iterable[Path | str],
    *,
    max_bytes: int = MAX_BYTES,
    max_instances: int = MAX_INSTANCES,
    on_skip: Callable[[Path, str], object] | None = None,
) -> Iterator[list[StorePart]]:
    """Walk files and folders and yield batches for ``DicomWebClient.store``, in the order of their names.

    A batch holds at most ``max_instances`` and, if more than one, at most ``max_bytes``; no SOP Instance UID twice.
    Each file is read whole, as the daemon reads it: what that would reject is told to ``on_skip``, in the same words.
    The next batch is read, in a thread, while the caller stores the last.
    """
    for found in _made_ahead(_batches(paths, max_bytes, max_instances)):
        if isinstance(found, list):
            yield found
        elif on_skip is not None:
            on_skip(found.path, found.why)


@dataclass(frozen=True, slots=True)
class _Skipped:
    """What is not stored, and why."""

    path: Path
    why: str


def _batches(paths: Iterable[Path | str], max_bytes: int, max_instances: int) -> Iterator[list[StorePart] | _Skipped]:
    batch: dict[str | None, StorePart] = {}
    size = 0
    for found in _files(paths):
        part = found if isinstance(found, _Skipped) else _part(*found)
        if isinstance(part, _Skipped):
            yield part
            continue
        is_full = len(batch) >= max_instances or (batch and size + part.size_bytes > max_bytes)
        if is_full or part.sop_uid in batch:
            yield list(batch.values())
            batch, size = {}, 0
        batch[part.sop_uid] = part
        size += part.size_bytes
    if batch:
        yield list(batch.values())


def _files(paths: Iterable[Path | str]) -> Iterator[tuple[str, str] | _Skipped]:
    """Give each file with its place: others may write in a folder that is named, and put links there meanwhile."""
    for path in map(Path, paths):
        root = str(path)
        if not path.is_dir():
            yield root, root
            continue
        barred: list[OSError] = []
        for folder, below, names in os.walk(root, onerror=barred.append):
            below.sort()
            for name in below:
                place = f"{folder.rstrip('/')}/{name}"
                if os.path.islink(place):  # noqa: PTH114 - a string for each of many folders
                    yield _Skipped(Path(place), _LINKED)
            inside = folder[len(root) :].strip("/")
            for name in sorted(names):
                yield f"{folder.rstrip('/')}/{name}", places.below(root, f"{inside}/{name}" if inside else name)
        for error in barred:
            yield _Skipped(Path(error.filename), f"cannot be read: {error.strerror}")


def _part(path: str, place: str) -> StorePart | _Skipped:
    try:
        fd = places.open_file(place)
    except OSError as error:
        return _Skipped(Path(path), f"cannot be opened: {error.strerror}")
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return _Skipped(Path(path), "is not a regular file")
        found = inspect(fd)
    except OSError as error:
        return _Skipped(Path(path), f"cannot be read: {error.strerror}")
    finally:
        os.close(fd)
    if found.verdict not in _STORED:
        return _Skipped(Path(path), found.reason_text)
    prefix = b""
    if found.generated_meta:
        prefix = file_meta_for(
            sop_class_uid=found.sop_class_uid, sop_uid=found.sop_uid, transfer_syntax=found.transfer_syntax
        )
    opener = partial(_open, place)
    return StorePart(path=Path(path), size_bytes=found.size_bytes, sop_uid=found.sop_uid, prefix=prefix, opener=opener)


def _open(place: str, _path: str, flags: int) -> int:
    return places.open_file(place, flags)


def _made_ahead(items: Iterable[T]) -> Iterator[T]:
    """Give the items in their order, one made ahead in a thread; what making them raises is raised in its place.

    The thread ends with the items, or after the one it is at when the iterator is closed.
    """
    # An item, or how it ended.
    ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(1)
    is_closed = threading.Event()

    def make() -> None:
        end: BaseException | None = None
        try:
            for item in items:
                ready.put((item,))
                if is_closed.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            end = error
        ready.put(end)

    try:
        threads.start(threading.Thread(target=make, name="ahead", daemon=True))
    except threads.NoThread:
        yield from items
        return
    try:
        while isinstance(made := ready.get(), tuple):
            yield made[0]
    finally:
        is_closed.set()
        while not ready.empty():
            ready.get()  # room for what is made now: it is the last
    if made is not None:
        raise made
