"""Files that are mostly hole: what a tool that allocates first leaves for a while, and what one line makes of 15 TB."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ingestd.instance import Inspection, Verdict
from ingestd.reader import InspectJob, ReaderPool
from tests.builders import instance_bytes, write_instance
from tests.patience import PATIENCE

TERABYTE = 1 << 40


def inspections(*jobs: InspectJob) -> dict[int, Inspection]:
    wake = threading.Event()
    readers = ReaderPool(processes=2, wake=wake.set)
    found: dict[int, Inspection] = {}
    give_up_at = time.monotonic() + PATIENCE
    try:
        readers.submit_all(jobs)
        while len(found) < len(jobs):
            assert wake.wait(max(0.0, give_up_at - time.monotonic())), f"only {sorted(found)} came"
            wake.clear()
            for read in readers.collect():
                assert read.inspection is not None, read
                found[read.job.key] = read.inspection
    finally:
        readers.close()
    return found


def sparse(path: Path, size: int, *, content: bytes | None = None) -> Path:
    path.write_bytes(instance_bytes() if content is None else content)
    os.truncate(path, size)
    return path


@pytest.mark.parametrize("patient", [True, False], ids=["just dropped", "unchanged for long"])
def test_two_sparse_files_of_15_terabytes_keep_no_reader_from_the_others(tmp_path: Path, patient: bool):
    jobs = [
        InspectJob(key=number, path=str(sparse(tmp_path / f"huge{number}", 15 * TERABYTE)), patient=patient)
        for number in range(2)
    ]
    jobs.append(InspectJob(key=2, path=str(write_instance(tmp_path / "a")), patient=True))

    found = inspections(*jobs)

    assert found[2].verdict is Verdict.WHOLE
    assert {found[0].verdict, found[1].verdict} == {Verdict.ZEROS if patient else Verdict.SHORT}
    assert "were never written" in found[0].reason_text


def test_file_with_more_hole_than_data_waits_and_is_then_read_like_any_other(tmp_path: Path):
    whole = instance_bytes(rows=1024, columns=1024, pixels=bytes(2 * 1024 * 1024))
    # As `cp --sparse=always` writes a black picture: the data that are zero are left out.
    path = sparse(tmp_path / "black", len(whole), content=whole[:4096])
    plain = tmp_path / "plain"
    plain.write_bytes(whole)

    found = inspections(
        InspectJob(key=1, path=str(path), patient=True),
        InspectJob(key=2, path=str(path)),
        InspectJob(key=3, path=str(plain)),
    )

    assert found[1].verdict is Verdict.ZEROS
    assert "were never written" in found[1].reason_text
    # Once it has waited, what it is does not depend on how the filesystem keeps it.
    assert (found[2].verdict, found[2].digest) == (found[3].verdict, found[3].digest)
    assert found[3].digest


def test_hole_that_is_smaller_than_the_data_is_no_matter(tmp_path: Path):
    content = instance_bytes(rows=256, columns=256)
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write(content)
    found = inspections(InspectJob(key=1, path=str(path), patient=True))
    assert found[1].verdict is Verdict.WHOLE
