"""A disk that fails under a reader: a small library put in front of the C library makes one call fail, always."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from ingestd.instance import Verdict
from ingestd.reader import InspectJob, Read, Readers
from tests.builders import write_instance

WITHIN_SECONDS = 30.0
FAILING = {
    "fsync": "int fsync(int fd) { errno = EIO; return -1; }",
    "read": "ssize_t readv(int fd, const struct iovec *v, int n) { errno = EIO; return -1; }",
    "lease": (
        "int fcntl64(int fd, int op, ...) {\n"
        "  if (op == F_SETLEASE) { errno = EINVAL; return -1; }\n"
        "  va_list rest; va_start(rest, op); long value = va_arg(rest, long); va_end(rest);\n"
        "  return syscall(SYS_fcntl, fd, op, value);\n"
        "}"
    ),
}


@pytest.fixture
def failing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the call that the test names fail in every child started from here on."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    call = str(request.param)
    source = tmp_path / "failing.c"
    headers = ("errno.h", "fcntl.h", "stdarg.h", "sys/syscall.h", "sys/uio.h", "unistd.h")
    source.write_text("#define _GNU_SOURCE\n" + "".join(f"#include <{name}>\n" for name in headers) + FAILING[call])
    library = tmp_path / "failing.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", library, source], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    return call


def read(job: InspectJob) -> Read:
    wake = threading.Event()
    readers = Readers(processes=1, wake=wake.set)
    try:
        readers.submit(job)
        assert wake.wait(WITHIN_SECONDS)
        (found,) = readers.collect()
    finally:
        readers.close()
    return found


@pytest.mark.parametrize("failing", ["fsync"], indirect=True)
@pytest.mark.usefixtures("failing")
def test_failed_fsync_is_never_a_verdict(tmp_path: Path) -> None:
    path = str(write_instance(tmp_path / "a"))

    durable = read(InspectJob(key=1, path=path, durable=True))
    not_durable = read(InspectJob(key=2, path=path))

    assert durable.inspection is None
    assert durable.waits == "fsync failed: Input/output error"
    assert not_durable.inspection is not None


@pytest.mark.parametrize("failing", ["read"], indirect=True)
@pytest.mark.usefixtures("failing")
def test_read_error_waits_and_is_no_poison(tmp_path: Path) -> None:
    found = read(InspectJob(key=1, path=str(write_instance(tmp_path / "a", rows=512, columns=512))))

    assert (found.inspection, found.died) == (None, False)
    assert found.waits == "reading failed: Input/output error"


@pytest.mark.parametrize("failing", ["lease"], indirect=True)
@pytest.mark.usefixtures("failing")
def test_filesystem_without_leases_is_read_all_the_same(tmp_path: Path) -> None:
    path = write_instance(tmp_path / "a")

    with path.open("r+b"):
        found = read(InspectJob(key=1, path=str(path)))

    assert found.inspection is not None
    assert found.inspection.verdict is Verdict.WHOLE
