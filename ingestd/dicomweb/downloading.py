"""A study, series or instance into a folder, in as few requests as what is there already allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from ingestd.dicomweb.decoding import DicomJson, uid_of
from ingestd.dicomweb.part10 import SAFE_UID
from ingestd.dicomweb.retrieving import Retrieval, Saved

Target = tuple[str, str | None, str | None]  # study, series, instance


class Retriever(Protocol):
    """What is downloaded from; DicomWebClient is one."""

    def retrieve_study(self, study_uid: str) -> Retrieval:
        """Retrieve a study."""

    def retrieve_series(self, study_uid: str, series_uid: str) -> Retrieval:
        """Retrieve a series."""

    def retrieve_instance(self, study_uid: str, series_uid: str, sop_uid: str) -> Retrieval:
        """Retrieve an instance."""

    def find_instances(self, *, study_uid: str | None = None, series_uid: str | None = None) -> Iterator[DicomJson]:
        """Search for instances."""


def download(
    source: Retriever,
    folder: Path,
    target: Target,
    *,
    on_file: Callable[[Path], object] | None,
    on_bytes: Callable[[int], object] | None,
) -> Saved:
    """Save what is not in the folder yet; a file there is whole, for it got its name only then."""
    study, series, sop = target

    def save(retrieval: Retrieval) -> Saved:
        retrieval.on_bytes = on_bytes
        return retrieval.save_to(folder, on_file=on_file)

    if sop is not None:
        if series is None:
            raise ValueError("an instance needs its series")
        return save(source.retrieve_instance(study, series, sop))

    def whole() -> Saved:
        return save(source.retrieve_study(study) if series is None else source.retrieve_series(study, series))

    begun = folder / study if series is None else folder / study / series
    if not SAFE_UID.match(study) or not (series is None or SAFE_UID.match(series)) or not begun.is_dir():
        return whole()
    written: list[Path] = []
    kept: list[Path] = []
    size = 0
    for item in source.find_instances(study_uid=study, series_uid=series):
        its_series = uid_of(item, "SeriesInstanceUID") or series
        its_sop = uid_of(item, "SOPInstanceUID")
        if not its_series or not SAFE_UID.match(its_series) or not SAFE_UID.match(its_sop):
            # The server names instances otherwise than one may name a file: take the whole again.
            return whole()
        path = folder / study / its_series / f"{its_sop}.dcm"
        if path.is_file():
            kept.append(path)
            continue
        saved = save(source.retrieve_instance(study, its_series, its_sop))
        written.extend(saved.written)
        size += saved.size_bytes
    if not (written or kept):
        return whole()  # nothing is listed: whether there is nothing, only a retrieve can say (404)
    return Saved(written=tuple(written), kept=tuple(kept), size_bytes=size)
