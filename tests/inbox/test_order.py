"""In which order the kernel is asked: what must be durable first is, and what may have changed is looked at again.

The system calls of a real process are recorded, or held up, by strace.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders import IMPLICIT, write_instance
from tests.running import PROJECT, environment, wait_until

STRACE = shutil.which("strace")
pytestmark = pytest.mark.skipif(STRACE is None, reason="no strace here")

TAKE = """
import sys
from pathlib import Path
from ingestd.inbox import Spool
from tests.inboxing import candidate_of, expect_of, take_in
spool, drop = Spool(Path(sys.argv[1])), Path(sys.argv[2])
(result,) = take_in(spool, [(candidate_of(drop, "x"), expect_of(drop / "x", offset=132))])
print("then", type(result).__name__, getattr(result, "why", ""), flush=True)
"""
REMOVE = """
import sys
from pathlib import Path
from ingestd.inbox import Spool
from tests.inboxing import source_of
spool, drop = Spool(Path(sys.argv[1])), Path(sys.argv[2])
print("then", spool.remove_source(drop, "x", source_of(drop / "x")), flush=True)
"""
REENCODE = """
import sys, time
from ingestd.reader import ReaderPool, ReencodeJob
readers = ReaderPool(processes=1, wake=lambda: None)
readers.submit(ReencodeJob(key=1, path=sys.argv[2], destination=sys.argv[1]))
while not (done := readers.collect()):
    time.sleep(0.01)
print("then", done[0].inspection.verdict, flush=True)
readers.close()
"""


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another filesystem than ``tmp_path``."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second filesystem at /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory, prefix="ingestd-test-"))
    yield folder
    shutil.rmtree(folder)


def steps(tmp_path: Path, program: str, *words: Path) -> list[str]:
    """Run a program and say in which order it synced and renamed, each as "fsync PATH" or "rename PATH PATH"."""
    record = tmp_path / "record"
    traced = "trace=fsync,fdatasync,rename,renameat,renameat2,write"
    subprocess.run(
        [
            *(str(STRACE), "-f", "-y", "-qq", "-s", "200", "-e", traced, "-o", str(record)),
            *(sys.executable, "-c", program, *map(str, words)),
        ],
        env=environment(),
        cwd=PROJECT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    found = []
    for line in record.read_text(errors="replace").splitlines():
        if synced := re.search(r"fsync\(\d+<([^>]*)>\) += 0", line):
            found.append(f"fsync {synced[1]}")
        elif renamed := re.search(
            r'renameat2?\((?:\d+|AT_FDCWD)<([^>]*)>, "([^"]*)", [^<]*<([^>]*)>, "([^"]*)".*= 0', line
        ):
            # An absolute name counts from nowhere.
            source, target = Path(renamed[1], renamed[2]), Path(renamed[3], renamed[4])
            found.append(f"rename {source} {target}")
        elif renamed := re.search(r'rename\("([^"]*)", "([^"]*)"\) += 0', line):
            found.append(f"rename {renamed[1]} {renamed[2]}")
        elif re.search(r'write\(1<.*"then', line):
            found.append("told")
    return found


def assert_in_order(found: list[str], *wanted: str) -> None:
    """Each wanted step, a pattern, comes after the one before it."""
    at = 0
    for pattern in wanted:
        matching = [place for place in range(at, len(found)) if re.fullmatch(pattern, found[place])]
        assert matching, f"no {pattern!r} behind step {at} of {found}"
        at = matching[0] + 1


def test_rename_is_durable_in_both_folders_the_new_one_first_before_it_is_told(tmp_path: Path, drop: Path) -> None:
    (drop / "x").write_bytes(b"content" * 100)
    spool = tmp_path / "spool"

    found = steps(tmp_path, TAKE, spool, drop)

    files = re.escape(f"{spool}/files")
    home = rf"{files}/a/[0-9a-f]{{8}}"
    made = rf"fsync {files}", rf"fsync {files}/a"
    renamed = rf"rename {re.escape(str(drop))}/x {home}/[0-9a-f]{{32}}"
    assert_in_order(found, *made, renamed, rf"fsync {home}", rf"fsync {re.escape(str(drop))}", "told")


def test_copy_is_durable_before_it_has_its_name_and_its_name_before_it_is_told(tmp_path: Path, elsewhere: Path) -> None:
    (elsewhere / "x").write_bytes(b"content" * 100)
    spool = tmp_path / "spool"

    found = steps(tmp_path, TAKE, spool, elsewhere)

    home, scratch = re.escape(f"{spool}/files/a/") + "[0-9a-f]{8}", re.escape(f"{spool}/scratch")
    renamed = rf"rename {scratch}/[0-9a-f]{{32}} {home}/[0-9a-f]{{32}}"
    assert_in_order(found, rf"fsync {scratch}/[0-9a-f]{{32}}", renamed, rf"fsync {home}", "told")


def test_reencoded_copy_is_durable_before_it_has_its_name_and_its_name_before_it_is_told(tmp_path: Path) -> None:
    write_instance(tmp_path / "x", transfer_syntax=IMPLICIT)
    folder = tmp_path / "explicit"
    folder.mkdir()

    found = steps(tmp_path, REENCODE, folder / "copy", tmp_path / "x")

    copy = re.escape(f"{folder}/copy")
    assert_in_order(
        found, rf"fsync {copy}\.part", rf"rename {copy}\.part {copy}", rf"fsync {re.escape(str(folder))}", "told"
    )


@contextmanager
def held_up_after_rename(program: str, *words: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that stands still for two seconds behind each of its renames."""
    process = subprocess.Popen(
        [
            *(str(STRACE), "-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat,renameat2"),
            *("-e", "inject=renameat,renameat2:delay_exit=2000000"),
            *(sys.executable, "-c", program, *map(str, words)),
        ],
        env=environment(),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.communicate(timeout=60)


def test_file_written_to_between_the_look_and_the_rename_is_given_back(tmp_path: Path, drop: Path) -> None:
    spool = tmp_path / "spool"
    (drop / "x").write_bytes(b"content" * 100)
    with held_up_after_rename(TAKE, spool, drop) as process:
        (moved,) = wait_until(lambda: list(spool.glob("files/a/*/*")), what="the rename")
        with moved.open("ab") as file:
            file.write(b"and more")
        assert process.stdout is not None
        told = process.stdout.readline()

    assert told == "then NotTaken changed\n"
    assert (drop / "x").read_bytes() == b"content" * 100 + b"and more"
    assert list(spool.glob("files/a/*/*")) == []


@pytest.mark.slow
def test_source_written_to_between_the_look_and_its_removal_is_given_back(tmp_path: Path, elsewhere: Path) -> None:
    (elsewhere / "x").write_bytes(b"content" * 100)
    with held_up_after_rename(REMOVE, tmp_path / "spool", elsewhere) as process:
        (moved,) = wait_until(lambda: list(elsewhere.glob(".ingestd-removing*/*")), what="the rename")
        with moved.open("ab") as file:
            file.write(b"and more")
        assert process.stdout is not None
        told = process.stdout.readline()

    assert told == "then changed\n"
    assert (elsewhere / "x").read_bytes() == b"content" * 100 + b"and more"
