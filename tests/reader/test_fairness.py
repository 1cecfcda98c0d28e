"""Files that take long do not hold up those that do not."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import pytest

from ingestd.clocks import boottime
from ingestd.lifecycle import SourceStat
from ingestd.reader import CompareJob, InspectJob, ReaderPool
from ingestd.reader.child_process import PendingJob
from ingestd.reader.schedule import Schedule
from tests.builders import element, instance_bytes, part10
from tests.patience import PATIENCE

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
    readers = ReaderPool(processes=processes, wake=wake.set)
    try:
        jobs = [InspectJob(key=number, path=str(slow), expect=SourceStat.of(slow.stat())) for number in range(2)]
        last = InspectJob(key=99, path=str(small), expect=SourceStat.of(small.stat()))
        readers.submit_all([*jobs, last])
        order: list[int] = []
        died: list[str] = []
        give_up_at = boottime() + PATIENCE
        while len(order) < 3:
            assert wake.wait(give_up_at - boottime()), f"only {order} came"
            wake.clear()
            for read in readers.collect():
                order.append(read.job.key)
                died += [read.cause or read.waits] if read.inspection is None else []
    finally:
        readers.close()
    assert (order[0], sorted(order), died) == (99, [0, 1, 99], [])


@pytest.mark.parametrize("processes", [1, 2])
def test_small_file_does_not_wait_for_many_that_stay_just_within_a_turn(processes: int, tmp_path: Path) -> None:
    """None of them is slow: 40 that took 1.7 s each held up the one image behind them by half a minute."""
    large = tmp_path / "large"
    large.write_bytes(dense(1_100_000))
    small = tmp_path / "small"
    small.write_bytes(instance_bytes(sop_uid="1.2.7"))
    wake = threading.Event()
    readers = ReaderPool(processes=processes, wake=wake.set)
    try:
        readers.submit_all(
            [InspectJob(key=number, path=str(large), expect=SourceStat.of(large.stat())) for number in range(10)]
        )
        readers.submit(InspectJob(key=99, path=str(small), expect=SourceStat.of(small.stat())))
        order = in_order(readers, wake, 11)
    finally:
        readers.close()
    assert order.index(99) <= 2 * processes, order


def test_large_file_is_read_in_its_turn_however_many_small_ones_come() -> None:
    schedule = Schedule(2)
    schedule.add([pending(1, 50_000_000), *(pending(serial, 500_000 + serial) for serial in range(2, 100))])
    first = [schedule.take().serial for _ in range(8)]
    assert first == [2, 3, 4, 1, 5, 6, 7, 8]

    schedule.put_back([pending(2, 500_002), pending(1, 50_000_000)])
    assert [schedule.take().serial for _ in range(4)] == [2, 9, 10, 1]


def test_what_has_no_size_is_no_smaller_than_an_image_and_comes_to_its_turn() -> None:
    """A comparison or a re-encoded copy counts as 8 MB: images go before it, and every fourth time it goes first."""
    schedule = Schedule(2)
    compare = CompareJob(key=1, ours="x", theirs="y")
    schedule.add([PendingJob(1, compare), *(pending(serial, 500_000) for serial in range(2, 10))])
    assert [schedule.take().serial for _ in range(5)] == [2, 3, 4, 1, 5]


def test_what_is_urgent_is_read_before_all_that_came_before_it() -> None:
    schedule = Schedule(2)
    schedule.add([*(pending(serial, 500_000) for serial in range(1, 100)), pending(100, 50_000_000, priority=10)])
    schedule.add([pending(101, 500_000, priority=10), pending(102, 500_000, priority=-1)])

    assert [schedule.take().serial for _ in range(5)] == [101, 100, 1, 2, 3]


def pending(serial: int, size_bytes: int, *, priority: int = 0) -> PendingJob:
    source = SourceStat(device=1, inode=serial, size_bytes=size_bytes, mtime_ns=0)
    return PendingJob(serial, InspectJob(key=serial, path="x", expect=source, priority=priority))


def in_order(readers: ReaderPool, wake: threading.Event, count: int) -> list[int]:
    """The keys of so many results, as they come."""
    order: list[int] = []
    give_up_at = boottime() + PATIENCE
    while len(order) < count:
        assert wake.wait(give_up_at - boottime()), f"only {order} came"
        wake.clear()
        order += [read.job.key for read in readers.collect()]
    return order
