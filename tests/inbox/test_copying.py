"""A file from another filesystem: its holes stay holes, and what does not fit is not begun."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from ingestd.inbox import NotTaken, Spool, Taken, WhyNot
from tests.builders import instance_bytes
from tests.daemon.test_promise import image
from tests.inboxing import candidate_of, expect_of, take_in
from tests.running import QUICK_INBOX, Site

DISK = 24 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB that nobody else fills; needs root to mount it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


def write_sparse(path: Path, size: int, *islands: int) -> None:
    """A file of this size that holds 4 kB of data at each of these places, and holes between them."""
    with path.open("wb") as file:
        file.truncate(size)
        for at in islands:
            file.seek(at)
            file.write(os.urandom(4096))


def take(spool: Spool, drop: Path, name: str) -> Taken | NotTaken:
    (result,) = take_in(spool, [(candidate_of(drop, name), expect_of(drop / name, offset=132))])
    assert isinstance(result, Taken | NotTaken)
    return result


@pytest.mark.parametrize("islands", [(0, 40 << 20), (8192, 63 << 20), (0, (64 << 20) - 4096), ()])
def test_sparse_file_larger_than_the_disk_is_copied_with_its_holes(
    small_disk: Path, drop: Path, islands: tuple[int, ...]
) -> None:
    """It was copied as zeros until the spool's disk was full, whatever low_water says."""
    spool = Spool(small_disk / "spool")
    spool.low_water = 4 << 20
    write_sparse(drop / "x", 64 << 20, *islands)

    result = take(spool, drop, "x")

    assert isinstance(result, Taken)
    copy = spool.path / result.path
    assert copy.stat().st_size == 64 << 20
    assert copy.stat().st_blocks * 512 <= len(islands) * 8192
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256((drop / "x").read_bytes()).digest()


def test_file_that_does_not_fit_is_left_and_nothing_is_written(small_disk: Path, drop: Path) -> None:
    spool = Spool(small_disk / "spool")
    spool.low_water = 8 << 20
    (drop / "x").write_bytes(os.urandom(17 << 20))

    result = take(spool, drop, "x")

    assert isinstance(result, NotTaken)
    assert result.why is WhyNot.NO_ROOM
    assert spool.free_bytes() > DISK - (1 << 20)
    assert (drop / "x").exists()
    assert list(spool.scratch().iterdir()) == []
    assert spool.wanted_bytes() == 0, "the disk is smaller than that"
    (drop / "x").write_bytes(os.urandom(15 << 20))
    assert isinstance(take(spool, drop, "x"), Taken)


def test_room_is_wanted_for_what_did_not_fit_until_it_does(small_disk: Path, drop: Path) -> None:
    spool = Spool(small_disk / "spool")
    spool.low_water = 2 << 20
    for name, megabytes in (("there", 16), ("x", 8), ("y", 9)):
        (drop / name).write_bytes(os.urandom(megabytes << 20))
    there = take(spool, drop, "there")
    assert isinstance(there, Taken)
    assert spool.wanted_bytes() == 0

    assert isinstance(take(spool, drop, "x"), NotTaken)
    assert spool.wanted_bytes() == 8 << 20
    assert isinstance(take(spool, drop, "y"), NotTaken)
    assert spool.wanted_bytes() == 9 << 20, "for one after the other"

    (spool.path / there.path).unlink()
    assert isinstance(take(spool, drop, "y"), Taken)
    assert spool.wanted_bytes() == 8 << 20


def test_hole_that_was_filled_meanwhile_is_noticed(small_disk: Path, drop: Path) -> None:
    spool = Spool(small_disk / "spool")
    write_sparse(drop / "x", 8 << 20, 0)
    expect = expect_of(drop / "x")
    before = (drop / "x").stat()
    with (drop / "x").open("r+b") as file:
        file.seek(4 << 20)
        file.write(b"late")
    os.utime(drop / "x", ns=(before.st_atime_ns, before.st_mtime_ns))

    (result,) = take_in(spool, [(candidate_of(drop, "x"), expect)])

    assert isinstance(result, NotTaken)
    assert result.why is WhyNot.CHANGED


def test_file_that_does_not_fit_holds_up_no_other(small_disk: Path, tmp_path: Path) -> None:
    with Emulator(fsync=False) as server:
        site = Site(
            tmp_path / "site",
            server.url,
            inboxes=[{"path": "./drop", **QUICK_INBOX}],
            spool={"path": str(small_disk / "spool"), "low_water": "4MB"},
        )
        (site.drop / "a").write_bytes(instance_bytes(rows=4000, columns=4000, pixels=os.urandom(32_000_000)))
        with site.start() as daemon:
            (site.drop / "b").write_bytes(image())
            site.wait_for({"CONFIRMED": 1})
            assert (site.drop / "a").exists()
            assert "no_room" in daemon.log.read_text()
