"""The system fails under a reader or its pool: one call at a time, by the library of ``tests/torture``."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.instance import Verdict
from ingestd.reader import InspectJob, Read, ReaderPool
from tests.builders import write_instance
from tests.patience import PATIENCE
from tests.running import environment
from tests.torture.failing import Fault, Injector

ALWAYS = 0
# Submits files one after the other, each once the one before is back, as a daemon does on a quiet day.
POOL = """
import queue, sys, time, structlog
from ingestd.reader import InspectJob, ReaderPool
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
bell = queue.SimpleQueue()
try:
    readers = ReaderPool(processes=1, wake=lambda: bell.put(None))
except OSError as error:
    sys.exit(f"not started: {error.strerror}")
for number in range(5):
    began = time.monotonic()
    readers.submit(InspectJob(key=number, path=sys.argv[2]))
    found = []
    while not found and time.monotonic() - began < 8:
        try:
            bell.get(timeout=1)
        except queue.Empty:
            pass
        found = readers.collect()
    print(number, [read.inspection.verdict.value if read.inspection else read.waits or "died" for read in found])
print("healthy" if readers.is_healthy() else "not healthy")
readers.close()
"""


@pytest.fixture
def failing(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Makes a call fail in every child started from here on."""

    def fail(call: str, error: int) -> None:
        fault = Fault(call=call, error=error, place="-", nth=1, times=ALWAYS, seconds=3600, process="reader")
        injector = Injector(library, tmp_path / "rule", fault, str(tmp_path / "a"))
        monkeypatch.setenv("LD_PRELOAD", injector.environment["LD_PRELOAD"])

    return fail


def read(job: InspectJob) -> Read:
    wake = threading.Event()
    readers = ReaderPool(processes=1, wake=wake.set)
    try:
        readers.submit(job)
        assert wake.wait(PATIENCE)
        (found,) = readers.collect()
    finally:
        readers.close()
    return found


def test_failed_fsync_is_never_a_verdict(failing: Callable[[str, int], None], tmp_path: Path) -> None:
    failing("fsync", errno.EIO)
    path = str(write_instance(tmp_path / "a"))

    durable = read(InspectJob(key=1, path=path, durable=True))
    not_durable = read(InspectJob(key=2, path=path))

    assert durable.inspection is None
    assert durable.waits == "fsync failed: Input/output error"
    assert not_durable.inspection is not None


def test_read_error_waits_and_is_no_poison(failing: Callable[[str, int], None], tmp_path: Path) -> None:
    failing("read", errno.EIO)
    found = read(InspectJob(key=1, path=str(write_instance(tmp_path / "a", rows=512, columns=512))))

    assert (found.inspection, found.died) == (None, False)
    assert found.waits == "reading failed: Input/output error"


def test_filesystem_without_leases_is_read_all_the_same(failing: Callable[[str, int], None], tmp_path: Path) -> None:
    failing("fcntl", errno.EINVAL)
    path = write_instance(tmp_path / "a")

    with path.open("r+b"):
        found = read(InspectJob(key=1, path=str(path)))

    assert found.inspection is not None
    assert found.inspection.verdict is Verdict.WHOLE


def supervise(library: Path, folder: Path, fault: Fault) -> tuple[list[str], str, Injector]:
    """Have a process of its own read five files while one call of its pool fails: what came, what was said."""
    script = folder / "supervise.py"
    script.write_text(POOL)
    path = write_instance(folder / "a")
    injector = Injector(library, folder / "rule", fault, fault.place)
    words = [sys.executable, str(script), "ingestd", str(path)]
    said, wrong = folder / "said", folder / "wrong"  # files: what it says must go through none of the pipes
    with said.open("w") as out, wrong.open("w") as err:
        subprocess.run(words, stdout=out, stderr=err, check=False, timeout=150, env=environment(injector.environment))
    return said.read_text().splitlines(), wrong.read_text(), injector


ALL_WELL = [f"{number} ['{Verdict.WHOLE}']" for number in range(5)] + ["healthy"]


@pytest.mark.parametrize("nth", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "call, error", [("write", errno.EIO), ("read", errno.EIO), ("read", errno.EAGAIN), ("write", errno.EAGAIN)]
)
def test_one_failed_call_on_a_pipe_stops_no_reader_for_ever(
    library: Path, tmp_path: Path, call: str, error: int, nth: int
) -> None:
    """Rings, jobs and answers all go through pipes; which one the N-th is does not matter."""
    said, wrong, injector = supervise(library, tmp_path, Fault(call=call, error=error, place="pipe:", nth=nth))

    assert injector.failed == 1
    assert said[-1:] == ["healthy"], wrong
    # A file whose answer was lost waits, and is handed in again by whoever asked: none is blamed, none is forgotten.
    assert all(line in ALL_WELL or "its answers cannot be read" in line for line in said), wrong
    assert len(said) == len(ALL_WELL)


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EBADF])
@pytest.mark.parametrize("nth", [2, 3, 4, 6])
def test_selector_that_fails_once_is_made_anew_or_told_at_the_start(
    library: Path, tmp_path: Path, nth: int, error: int
) -> None:
    said, wrong, injector = supervise(library, tmp_path, Fault(call="epoll", error=error, place="-", nth=nth))

    assert injector.failed == 1
    assert said == ALL_WELL or wrong.startswith("not started: "), wrong
    if nth > 3:  # the first three make the selector: without it there is no start
        assert said == ALL_WELL, wrong


def test_thread_that_cannot_be_had_at_once_is_asked_for_again(library: Path, tmp_path: Path) -> None:
    said, wrong, injector = supervise(
        library, tmp_path, Fault(call="thread", error=errno.EAGAIN, place="-", nth=1, times=3)
    )

    assert injector.failed == 3
    assert said == ALL_WELL, wrong


def test_thread_that_is_never_to_be_had_is_an_error_in_words(library: Path, tmp_path: Path) -> None:
    said, wrong, _ = supervise(
        library, tmp_path, Fault(call="thread", error=errno.EAGAIN, place="-", nth=1, times=ALWAYS, seconds=60)
    )

    assert said == []
    assert "not started: no thread can be started" in wrong
    assert "TasksMax" in wrong
