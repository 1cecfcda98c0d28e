"""The demo's files: copies of what comes with pydicom, made to collide only where the demo wants to show it.

Pydicom's files share identities (one image in many encodings), and the same identity with other content is a
CONFLICT. So a copy whose identity was dropped already gets a SOP Instance UID of its own, of the same length, written
over the old one in the file's bytes; nothing else in it changes. One colliding pair is left as it is to show
CONFLICT, and one file is dropped twice to show DUPLICATE.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .common import ExitCode, Stop

if TYPE_CHECKING:
    from ingestd.reader import Inspection

# Not DICOM and not meant to be: what they are is beside the point of the demo.
_NOT_DROPPED = frozenset({"README.txt", "crayons.icc"})
_READ_SECONDS = 60.0


def drop_folder(folder: Path, drop: Path) -> list[str]:
    """Copy every regular file of ``folder`` into ``drop``, under the same names; return the names."""
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        name = str(path.relative_to(folder))
        _drop(path.read_bytes(), drop / name)
        names.append(name)
    return names


def drop_bundled(drop: Path) -> list[str]:
    """Copy pydicom's test files into ``drop``; return their names there."""
    folder = bundled_folder()
    names = [name for name in _bundled_names(folder) if name not in _NOT_DROPPED]
    found = _inspect(folder, names)
    seen: dict[tuple[str, str, str], str] = {}
    kept_conflict = kept_duplicate = False
    dropped: list[str] = []
    for name in names:
        content = (folder / name).read_bytes()
        inspection = found[name]
        identity = (inspection.study_uid, inspection.series_uid, inspection.sop_uid)
        if inspection.verdict == "whole" and identity in seen:
            first = found[seen[identity]]
            if (
                not kept_conflict
                and first.transfer_syntax == inspection.transfer_syntax
                and first.digest != inspection.digest
            ):
                kept_conflict = True
            else:
                content = _with_fresh_uid(content, inspection.sop_uid, number=len(dropped))
        elif inspection.verdict == "whole":
            seen[identity] = name
        _drop(content, drop / name)
        dropped.append(name)
        if inspection.verdict == "whole" and not kept_duplicate and identity in seen and seen[identity] == name:
            kept_duplicate = True
            again = f"again_{name}"
            _drop(content, drop / again)
            dropped.append(again)
    return dropped


def bundled_folder() -> Path:
    """Return the folder of test files inside the installed pydicom, found without importing it."""
    spec = find_spec("pydicom")
    if spec is None or not spec.submodule_search_locations:
        raise Stop(ExitCode.CONFIGURATION, "pydicom is not installed; give the demo a FOLDER of DICOM files")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "test_files"
    if not folder.is_dir():
        raise Stop(ExitCode.CONFIGURATION, "this pydicom has no test files; give the demo a FOLDER of DICOM files")
    return folder


def _bundled_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix not in (".py", ".pyc"))


def _inspect(folder: Path, names: list[str]) -> dict[str, Inspection]:
    from ingestd.reader import InspectJob, ReaderPool

    rung = threading.Semaphore(0)
    readers = ReaderPool(processes=2, wake=rung.release)
    found: dict[str, Inspection] = {}
    try:
        for key, name in enumerate(names):
            readers.submit(InspectJob(key=key, path=str(folder / name)))
        while len(found) < len(names):
            if not rung.acquire(timeout=_READ_SECONDS):
                raise Stop(ExitCode.TIMEOUT, "reading pydicom's files took too long")
            for read in readers.collect():
                if read.inspection is None:
                    raise Stop(ExitCode.INTERNAL, f"the reader gave no answer for {names[read.job.key]}")
                found[names[read.job.key]] = read.inspection
    finally:
        readers.close()
    return found


def _with_fresh_uid(content: bytes, uid: str, *, number: int) -> bytes:
    """Write another UID of the same length over ``uid``, wherever it stands."""
    digits = len(uid) - len("2.25.")
    if digits < len(str(number)) + 1:
        return content
    fresh = f"2.25.9{number:0{digits - 1}d}"
    return content.replace(uid.encode("ascii"), fresh.encode("ascii"))


def _drop(content: bytes, target: Path) -> None:
    """Write the file beside the folder first and rename it in, as a careful exporter does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".part")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    shutil.move(name, target)
