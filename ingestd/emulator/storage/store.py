"""The Store Transaction's work on files and index (PS3.18 §10.5; AZURE.md 1.2, 1.8).

The parts of all requests that wait are taken in groups (``writer``). For each group, in one transaction: rows
*Creating*, files renamed into place, small ones into the index, then rows *Created* together with their feed entries,
metadata and index values (``store_rows``). What a client sees is as if each part had been taken alone and in order;
what a crash leaves is files that no row knows, and the next start removes them. Only where a fault holds the instance
Creating are there two transactions, so that others meet it so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..faults import FaultName
from . import store_rows
from .archive import Archive
from .examine import STUDY_MISMATCH, VALIDATION_FAILED, Examined, examine
from .instance_faults import alter_file, draw_faults, falsify_results
from .store_job import PartResult, StoreJob
from .tags import Tag

GROUP = 64


def examine_part(
    archive: Archive, source: Path | bytes, *, version: int, study_uid: str | None, tags: Sequence[Tag]
) -> Examined:
    """Examine one part and make it ready for its place: digest taken, preamble zeroed where that is the flavour."""
    if archive.settings.is_managed:
        source = _without_preamble(source)
    if isinstance(source, Path):
        archive.files.write_early(source)  # the disk writes while the rest goes on
    return examine(
        source,
        version=version,
        study_uid=study_uid,
        tags=tags,
        mismatch=STUDY_MISMATCH if archive.settings.is_managed else VALIDATION_FAILED,
    )


def _without_preamble(source: Path | bytes) -> Path | bytes:
    # The managed service zeroes the preamble (AZURE.md 1.8).
    if isinstance(source, bytes):
        return bytes(128) + source[128:] if source[128:132] == b"DICM" else source
    with source.open("r+b", buffering=0) as file:
        if os.pread(file.fileno(), 4, 128) == b"DICM":
            file.write(bytes(128))
    return source


def fill_group(archive: Archive, job: StoreJob) -> None:
    """Examine the parts that are to be stored next, unless that has been done."""
    if job.group:
        return
    request = job.request
    for part in job.parts[len(job.results) : len(job.results) + GROUP]:
        if part.examined is not None:
            found = part.examined.result()
        else:
            found = examine_part(
                archive, part.source, version=request.version, study_uid=request.study_uid, tags=request.tags
            )
        result = PartResult(examined=found)
        if result.is_stored:
            draw_faults(archive, request, result)
        result.refused = found.failure
        job.group.append(result)


def commit(archive: Archive, jobs: Sequence[StoreJob]) -> None:
    """Store what can be stored of these jobs' groups, as if one after the other; none when it raises."""
    if any(result.commit_seconds for job in jobs for result in job.group):
        (job,) = jobs
        _store_slowly(archive, job)
    else:
        _store_at_once(archive, jobs)


def _store_at_once(archive: Archive, jobs: Sequence[StoreJob]) -> None:
    def undo() -> None:
        archive.files.take_back(_on_disk(result for job in jobs for result in job.group if result.watermark))

    try:
        with archive.index.write(undo=undo) as tx:
            begun = [store_rows.begin(tx, job.request, job.group) for job in jobs]
            _place(archive, [result for results in begun for result in results])
            unneeded = [
                mark
                for job, results in zip(jobs, begun, strict=True)
                for mark in store_rows.finish(archive.index, tx, job.request, results)
            ]
    except BaseException:
        for result in (result for job in jobs for result in job.group):
            result.watermark = result.instance_key = result.study_key = result.series_key = result.replaced = 0
            result.examined.failure = result.refused
        raise
    _clean_up(archive, jobs, [result for results in begun for result in results], unneeded)


def _store_slowly(archive: Archive, job: StoreJob) -> None:
    # The first transaction need not be durable: what a power cut takes of it, it takes of the whole store.
    with archive.index.write(durable=False) as tx:
        begun = store_rows.begin(tx, job.request, job.group)
    _place(archive, begun)
    time.sleep(max((result.commit_seconds for result in begun), default=0.0))
    with archive.index.write() as tx:
        unneeded = store_rows.finish(archive.index, tx, job.request, begun)
    _clean_up(archive, [job], begun, unneeded)


def _on_disk(results: Iterable[PartResult]) -> Iterator[tuple[Path, int]]:
    for result in results:
        if isinstance(result.examined.source, Path):
            yield result.examined.source, result.watermark


def _place(archive: Archive, begun: list[PartResult]) -> None:
    for result in begun:
        alter_file(archive, result)
    archive.files.put(_on_disk(begun))


def _clean_up(archive: Archive, jobs: Sequence[StoreJob], begun: list[PartResult], unneeded: list[int]) -> None:
    archive.files.remove(unneeded)
    if any(job.request.expires_at is not None for job in jobs):
        archive.look_for_expiry()
    for result in begun:
        if FaultName.INDEX_LAG in result.faults:
            archive.index_delay.hide(result.examined.study_uid, result.seconds(FaultName.INDEX_LAG, 5.0))


def report(archive: Archive, jobs: Sequence[StoreJob]) -> None:
    """Write down what became of these jobs' groups, once they are committed, and make way for the next."""
    for job in jobs:
        falsify_results(archive, job.request, job.group)
    archive.log.add("instance", [(job.request.number, _log_line(result)) for job in jobs for result in job.group])
    for job in jobs:
        for result in job.group:
            result.examined.metadata = b""
            result.examined.source = b""
        job.results.extend(job.group)
        job.group = []


def _log_line(result: PartResult) -> dict[str, object]:
    found = result.examined
    return {
        "study": found.study_uid,
        "series": found.series_uid,
        "sop": found.sop_uid,
        "sha256": found.dataset_sha256,
        "transfer_syntax": found.transfer_syntax,
        "result": "stored" if result.is_stored else "refused",
        "reason": found.failure,
        "warning": found.warning,
        "watermark": result.watermark,
        "faults": sorted(result.faults),
    }
