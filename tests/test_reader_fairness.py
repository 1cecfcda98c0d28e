"""Files that take long do not hold up those that do not."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import pytest

from ingestd.clocks import boottime
from ingestd.lifecycle import SourceStat
from ingestd.reader import InspectJob, Readers
from tests.builders import element, instance_bytes, part10

_UIDS = {0x00080018: "1.2.3", 0x0020000D: "1.2.4", 0x0020000E: "1.2.5"}


def dense(elements: int) -> bytes:
    head = [element(0x00080016, "UI", "1.2.840.10008.5.1.4.1.1.7"), *(element(t, "UI", u) for t, u in _UIDS.items())]
    return part10(b"".join(head) + struct.pack("<HH2sH", 0x0029, 0x1000, b"LO", 0) * elements, sop_uid="1.2.3")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_small_file_does_not_wait_for_slow_ones_and_those_are_read_in_the_end(processes: int, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_bytes(dense(10_000_000))
    small = tmp_path / "small"
    small.write_bytes(instance_bytes(sop_uid="1.2.7"))
    wake = threading.Event()
    readers = Readers(processes=processes, wake=wake.set)
    try:
        jobs = [InspectJob(key=number, path=str(slow), expect=SourceStat.of(slow.stat())) for number in range(2)]
        last = InspectJob(key=99, path=str(small), expect=SourceStat.of(small.stat()))
        readers.submit_all([*jobs, last])
        order: list[int] = []
        died: list[str] = []
        give_up_at = boottime() + 120
        while len(order) < 3:
            assert wake.wait(give_up_at - boottime()), f"only {order} came"
            wake.clear()
            for read in readers.collect():
                order.append(read.job.key)
                died += [read.cause or read.waits] if read.inspection is None else []
    finally:
        readers.close()
    assert (order[0], sorted(order), died) == (99, [0, 1, 99], [])
